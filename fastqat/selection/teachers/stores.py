"""What a `TeacherCache` keeps its logits in, and the store in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from fastqat._errors import InputError
from fastqat.selection.forwards import Forward
from fastqat.selection.scoring.arithmetic import autocast_dtype
from fastqat.selection.scoring.fingerprint import data_fingerprint, model_fingerprint
from fastqat.selection.scoring.rows import Rows
from fastqat.selection.scoring.sharing import Team


class View(NamedTuple):
    """What a pass goes over: its data, how they are divided, and how the models read them.

    `size`, `share`: samples in all and of this process, None where only the end tells. `done`: samples that a resumed pass does not read
    again. `token`: what `Store.token` was when these were scored.
    """

    dataset: Any
    data_key: str | None
    size: int | None
    share: int | None
    batch_size: int | None
    team: Team
    device: torch.device
    forward: Forward | None = None
    done: int = 0
    token: int = 0


class Store(Protocol):
    """Where the logits are kept. `start`: of a batch in the data set, `offset`: among the samples of this process.

    `token`: of the unfinished file that holds what was written, 0 without one.
    """

    complete: bool
    token: int

    @property
    def nbytes(self) -> int: ...

    def begin(self, view: View, model: nn.Module | None) -> bool: ...

    def read(self, start: int, offset: int, like: Tensor) -> Tensor: ...

    def write(self, start: int, offset: int, logits: Tensor) -> None: ...

    def flush(self) -> None: ...

    def finish(self, size: int, team: Team) -> None: ...

    def abandon(self, resumed: bool) -> None: ...

    def all(self) -> Tensor | None: ...


def content_key(view: View, model: nn.Module, own_key: str | None) -> dict[str, str]:
    """Name → fingerprint of what logits depend on; `own_key` stands for the data.

    Raises:
        InputError: data without a fingerprint or a name.
    """
    data = own_key or view.data_key or data_fingerprint(view.dataset)
    return {"data": data, "teacher": model_fingerprint(model), "autocast": autocast_dtype(view.device)}


def changed_since(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What differs, in words; \"\" when nothing does."""
    changed = [name for name, value in new.items() if old.get(name) != value]
    return f"changed since: {', '.join(changed)}" if changed else ""


class MemoryStore:
    """Logits in memory: of all samples, or of this process's in the order in which it scores them (`_layout` then says which)."""

    def __init__(self, device: torch.device | str | None, dtype: torch.dtype, given: Tensor | None, keep: bool, own_key: str | None = None):
        self.device, self.dtype, self.keep, self.given, self.own_key = device, dtype, keep, None, own_key
        self._key: dict[str, str] = {}
        self.complete, self.token = given is not None, 0
        self._rows: Rows | None = None
        self._layout: tuple[Any, ...] | None = None
        if given is not None:
            if given.dim() != 2:
                raise InputError(f"teacher logits must be [N, C]; got shape {list(given.shape)}")
            self.given = given.detach().to(device=device, dtype=dtype)

    @property
    def nbytes(self) -> int:
        if self.given is not None:
            return self.given.nbytes
        return 0 if self._rows is None else self._rows.nbytes

    def begin(self, view: View, model: nn.Module | None) -> bool:
        team = view.team
        layout = None if team.size == 1 else (*team.deal, view.batch_size)
        key = self._key_of(view, model) if self.keep and model is not None else {}
        if self.complete and (self.given is not None or layout == self._layout):
            held = len(self.given) if self.given is not None else len(self._rows or ())
            wanted = view.size if self.given is not None else view.share
            if wanted is not None and held != wanted:
                raise InputError(f"the teacher logits are of {held} samples, the data set has {wanted}; make a new TeacherCache")
            if self.given is not None or not self._outdated(key):
                return True
        self.complete, self._layout, self._key = False, layout, key
        partial = view.done > 0  # a resumed pass leaves out what cannot be completed
        self._rows = Rows(view.share, self.dtype) if self.keep and not partial else None
        return True

    def _key_of(self, view: View, model: nn.Module) -> dict[str, str]:
        """As far as it can be told: of a stream without a name the data count as the same."""
        streams = isinstance(view.dataset, IterableDataset) or not hasattr(view.dataset, "__getitem__")
        return content_key(view, model, self.own_key or ("" if not streams else view.data_key or "a stream"))

    def _outdated(self, key: dict[str, str]) -> bool:
        """Whether these are logits of something else; warns when they are."""
        reason = changed_since(self._key, key)
        if reason:
            warnings.warn(f"the teacher logits in memory are computed again: {reason}", stacklevel=2)
        return bool(reason)

    def read(self, start: int, offset: int, like: Tensor) -> Tensor:
        if self.given is not None:
            rows = self.given[start : start + len(like)]
        else:
            assert self._rows is not None
            rows = self._rows.part(offset, offset + len(like))
        return rows.to(like.device, non_blocking=True)

    def write(self, start: int, offset: int, logits: Tensor) -> None:
        if self._rows is not None:
            self._rows.append(logits if self.device is None else logits.to(self.device))

    def flush(self) -> None:
        """Memory outlives no process."""

    def finish(self, size: int, team: Team) -> None:
        self.complete |= self._rows is not None

    def abandon(self, resumed: bool) -> None:
        if not self.complete:
            self._rows = None

    def all(self) -> Tensor | None:
        if self.given is not None or not self.complete:
            return self.given
        return self._rows.all() if self._rows is not None and self._layout is None else None
