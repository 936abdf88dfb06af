"""Teacher logits on disk: which file may be used, and batches on their way to it and from it."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.selection.scoring.content import describe
from fastqat.selection.scoring.sharing import Team
from fastqat.selection.teachers.logit_file import LogitFile
from fastqat.selection.teachers.stores import View, content_key

_FORWARD = "forward"  # of the keys, what may differ among processes: it may speak of a device


class DiskStore:
    """A `LogitFile` as the store of a `TeacherCache`; on a GPU the copies overlap with the forwards."""

    def __init__(self, path: str | Path, dtype: torch.dtype, key: str | None):
        self.file, self.dtype, self.own_key = LogitFile(path, dtype), dtype, key
        self.complete, self.token = False, 0
        self._key: dict[str, str] = {}
        self._pending: Callable[[], None] | None = None
        self._classes = 0

    def begin(self, view: View, model: nn.Module | None) -> bool:
        assert model is not None
        team = view.team
        with team.step():
            own = self._key_of(view, model)
        keys = team.gather(own)
        self._key = keys[0]
        if any(key | {_FORWARD: ""} != self._key | {_FORWARD: ""} for key in keys):
            raise InputError("the processes differ in the key= of the teacher's logits or in torch.autocast; give all of them the same")
        self.complete, self.token = team.on_first(lambda: self._usable(view.size)), 0
        if not self.complete:
            return self._begin_part(view)
        with team.step():
            if (reason := self.file.open_whole(self._key)) is not None:
                raise self._not_shared(reason)
        return True

    def _key_of(self, view: View, model: nn.Module) -> dict[str, str]:
        return {**content_key(view, model, self.own_key), _FORWARD: "" if view.forward is None else describe(view.forward)}

    def _begin_part(self, view: View) -> bool:
        """Open the unfinished file for all processes: that of the pass that is continued, or a new one. Whether it has what was done."""
        team = view.team
        earlier = [token for token in dict.fromkeys(team.gather(view.token)) if token]
        self.token = team.on_first(lambda: self._continued(earlier))
        with team.step():
            if team.rank > 0 and not self.file.open_part(self._key, self.token):
                raise self._not_shared("it is on another disk")
        return view.done == 0 or view.token == self.token

    def _continued(self, earlier: list[int]) -> int:
        """The token of the file that is open from now on: the first of `earlier` that is there, or of a new one."""
        for token in earlier:
            if self.file.open_part(self._key, token):
                return token
        token = secrets.randbits(62) + 1
        self.file.create_part(self._key, token)
        return token

    def _usable(self, size: int | None) -> bool:
        """Whether the whole file is there and is what this pass needs; warns when it will be replaced."""
        reason = self.file.open_whole(self._key)
        if reason is None and size is not None and self.file.shape is not None and self.file.shape[0] != size:
            reason = f"it has {self.file.shape[0]} samples and the data set {size}"
        if reason:
            warnings.warn(f"the teacher logits in {self.file.path} are computed again: {reason}", stacklevel=2)
        return reason is None

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
