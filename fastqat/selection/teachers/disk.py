"""Teacher logits on disk: which file may be used, and batches on their way to it and from it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.selection.scoring.fingerprint import data_fingerprint, describe, model_fingerprint
from fastqat.selection.scoring.sharing import Team
from fastqat.selection.teachers.logit_file import LogitFile
from fastqat.selection.teachers.stores import View

_TOKEN = 16


class DiskStore:
    """A `LogitFile` as the store of a `TeacherCache`; on a GPU the copies overlap with the forwards."""

    def __init__(self, path: str | Path, dtype: torch.dtype, key: str | None):
        self.file, self.dtype, self.own_key = LogitFile(path, dtype), dtype, key
        self.complete = False
        self._key: dict[str, str] = {}
        self._pending: Callable[[], None] | None = None
        self._classes = 0

    def begin(self, view: View, model: nn.Module | None) -> bool:
        assert model is not None
        team = view.team
        with team.step():
            self._key = self._key_of(view, model)
        if len({tuple(key.items()) for key in team.gather(self._key)}) > 1:
            raise InputError("the processes have different teachers or data; load the same weights and the same data in all of them")
        self.complete = team.on_first(lambda: self._usable(view.size))
        with team.step():
            if not self.complete:
                there = self.file.open_part(self._key)
            elif (reason := self.file.open_whole(self._key)) is not None:
                raise self._not_shared(reason)
        if self.complete:
            return True
        self._check_shared(team)
        return there or view.done == 0

    def _key_of(self, view: View, model: nn.Module) -> dict[str, str]:
        data = self.own_key or view.data_key or data_fingerprint(view.dataset)
        return {"data": data, "teacher": model_fingerprint(model), "forward": "" if view.forward is None else describe(view.forward)}

    def _usable(self, size: int | None) -> bool:
        """Whether the whole file is there and is what this pass needs; warns when it will be replaced."""
        reason = self.file.open_whole(self._key)
        if reason is None and size is not None and self.file.shape is not None and self.file.shape[0] != size:
            reason = f"it has {self.file.shape[0]} samples and the data set {size}"
        if reason:
            warnings.warn(f"the teacher logits in {self.file.path} are computed again: {reason}", stacklevel=2)
        return reason is None

    def _check_shared(self, team: Team) -> None:
        """Refuse processes whose files of that name are not the same."""
        if team.size == 1:
            return
        token = team.gather(os.urandom(_TOKEN))[0]
        with team.step():
            if team.rank == 0:
                self.file.mark(token)
        with team.step():
            if self.file.marked(_TOKEN) != token:
                raise self._not_shared("another file is there")

    def _not_shared(self, reason: str) -> InputError:
        return InputError(f"the processes do not see the same {self.file.path} ({reason}); choose a path on a disk that all of them share")

    @property
    def nbytes(self) -> int:
        return 0

    def read(self, start: int, offset: int, like: Tensor) -> Tensor:
        assert self.file.shape is not None
        pinned = like.device.type == "cuda"
        rows = torch.empty(len(like), self.file.shape[1], dtype=self.dtype, pin_memory=pinned)
        return self.file.read(start, rows).to(like.device, non_blocking=True)

    def write(self, start: int, offset: int, logits: Tensor) -> None:
        """Copy a batch to the host, and write the one before, whose copy is done by now."""
        before, self._pending = self._pending, self._copied(start, logits)
        self._classes = logits.shape[1]
        if before is not None:
            before()

    def _copied(self, start: int, logits: Tensor) -> Callable[[], None]:
        """What writes `logits`, whose copy to the host is under way."""
        if logits.device.type != "cuda":
            host = logits.cpu().contiguous()
            return lambda: self.file.write(start, host)
        host = torch.empty(logits.shape, dtype=self.dtype, pin_memory=True).copy_(logits, non_blocking=True)
        copied = torch.cuda.current_stream(logits.device).record_event()

        def write() -> None:
            copied.synchronize()
            self.file.write(start, host)

        return write

    def _write_pending(self) -> None:
        if self._pending is not None:
            self._pending()
        self._pending = None

    def flush(self) -> None:
        if not self.complete:
            self._write_pending()
            self.file.flush()

    def finish(self, size: int, team: Team) -> None:
        if not self.complete:
            self._complete_file(size, team)
        self.file.close()

    def _complete_file(self, size: int, team: Team) -> None:
        with team.step():
            self.flush()
        shape = (size, max(team.gather(self._classes)))
        team.on_first(lambda: self.file.finish(shape, self._key))
        with team.step():
            reason = self.file.open_whole(self._key)
            if reason is not None:
                raise self._not_shared(reason or "it is gone")
        self.complete = True

    def abandon(self, resumed: bool) -> None:
        self._pending = None
        if self.complete or resumed:
            self.file.close()
        else:
            self.file.discard()

    def all(self) -> Tensor | None:
        return self.file.mapped() if self.complete else None
