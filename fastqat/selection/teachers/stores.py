"""What a `TeacherCache` keeps its logits in, and the store in memory."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.selection.forwards import Forward
from fastqat.selection.scoring.rows import Rows
from fastqat.selection.scoring.sharing import Team


class View(NamedTuple):
    """What a pass goes over: its data, how they are divided, and how the models read them.

    `size`, `share`: samples in all and of this process, None where only the end tells. `done`: samples that a resumed pass does not read
    again.
    """

    dataset: Any
    data_key: str | None
    size: int | None
    share: int | None
    batch_size: int | None
    team: Team
    forward: Forward | None = None
    done: int = 0


class Store(Protocol):
    """Where the logits are kept. `start`: of a batch in the data set, `offset`: among the samples of this process."""

    complete: bool

    @property
    def nbytes(self) -> int: ...

    def begin(self, view: View, model: nn.Module | None) -> bool: ...

    def read(self, start: int, offset: int, like: Tensor) -> Tensor: ...

    def write(self, start: int, offset: int, logits: Tensor) -> None: ...

    def flush(self) -> None: ...

    def finish(self, size: int, team: Team) -> None: ...

    def abandon(self, resumed: bool) -> None: ...

    def all(self) -> Tensor | None: ...


class MemoryStore:
    """Logits in memory: of all samples, or of this process's in the order in which it scores them (`_layout` then says which)."""

    def __init__(self, device: torch.device | str | None, dtype: torch.dtype, given: Tensor | None, keep: bool):
        self.device, self.dtype, self.keep, self.given = device, dtype, keep, None
        self.complete = given is not None
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
        if self.complete and (self.given is not None or layout == self._layout):
            held = len(self.given) if self.given is not None else len(self._rows or ())
            wanted = view.size if self.given is not None else view.share
            if wanted is not None and held != wanted:
                raise InputError(f"the teacher logits are of {held} samples, the data set has {wanted}; make a new TeacherCache")
            return True
        self.complete, self._layout = False, layout
        partial = view.done > 0  # a resumed pass leaves out what cannot be completed
        self._rows = Rows(view.share, self.dtype) if self.keep and not partial else None
        return True

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
