"""`TeacherCache`: a teacher's logits of a data set, computed in the first pass that needs them and kept in memory or on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.selection.forwards import Forward, logits_of, unwrapped
from fastqat.selection.scoring.sharing import Team
from fastqat.selection.teachers.disk import DiskStore
from fastqat.selection.teachers.stores import MemoryStore, Store, View

DTYPES = (torch.float32, torch.bfloat16)


class TeacherCache:
    """Teacher logits in data-set order, ``[N, C]``: give it to `score_dataset` as ``teacher=`` and later passes run the student only.

    In memory (no `path`): 4·N·C bytes on `device`, 2·N·C in bfloat16 (50,000 × 10 in fp32: 2 MB; 1.28 million × 1000: 5.1 GB), see
    `nbytes`. When the teacher's layers or weights, the data's fingerprint (see below) or the dtype of `torch.autocast` change, they are
    computed again, with a warning; a change of `forward` or of a stream without a name is not noticed. Several processes keep their own
    batches' logits each, and run the teacher again when these change (another batch size). A pass that breaks off leaves it empty.

    On disk (`path`): a safetensors file with the tensor ``logits``, of which a pass holds one batch in memory. Written batch by batch under
    another name, by all processes into the same file, and renamed when it is whole: what is read was never half written. Its key is the
    data's fingerprint (see `fastqat.selection.scoring.fingerprint.data_fingerprint`), the teacher's layers and weights, the content of
    `forward` (see `fastqat.selection.scoring.content.content_hash`: with its closure, so that a counter in there makes another one of it)
    and the dtype of `torch.autocast`. A file with the same key serves every later pass, process and run without running the teacher; one
    with another key is computed again and replaced, with a warning. Runs that compute the same file at the same time do not disturb each
    other. Scoring does not see what the fingerprint does not see, least of all an augmentation: give it the plain view of the data.
    Several processes must see the same disk.

    Args:
        teacher: the model, run in eval mode; or its logits ``[N, C]``.
        device: where logits in memory are kept; None: where scoring runs.
        path: file to keep them in; None: memory.
        dtype: torch.float32, or torch.bfloat16, which halves them: 8 bits of precision, already in the pass that computes them.
        key: a name of yours for the data (and their preprocessing) in place of the fingerprint; a file of an iterable data set needs it.
        keep: False keeps nothing in memory and runs the teacher in every pass, as `score_dataset` does with a teacher that is a module.

    Attributes:
        forwards: samples that the teacher has run on.

    Example:
        >>> import torch
        >>> cache = TeacherCache(torch.zeros(4, 10))
        >>> cache.complete, cache.nbytes
        (True, 160)
    """

    def __init__(
        self,
        teacher: nn.Module | Tensor,
        *,
        device: torch.device | str | None = None,
        path: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        key: str | None = None,
        keep: bool = True,
    ):
        if not isinstance(teacher, (nn.Module, Tensor)):
            raise InputError(f"teacher must be a module, its logits [N, C], or a TeacherCache; got {type(teacher).__name__}")
        if dtype not in DTYPES:
            raise InputError(f"teacher logits can be kept as torch.float32 or torch.bfloat16; got {dtype}")
        if path is not None and not isinstance(teacher, nn.Module):
            raise InputError("path= keeps the logits that a model computes; these are computed already: leave out path=")
        self.model = unwrapped(teacher) if isinstance(teacher, nn.Module) else None
        self.path, self.dtype, self.forwards = path, dtype, 0
        self._store: Store
        if path is not None:
            self._store = DiskStore(path, dtype, key)
        else:
            self._store = MemoryStore(device, dtype, teacher if isinstance(teacher, Tensor) else None, keep, key)

    @property
    def complete(self) -> bool:
        """Whether the logits of every sample (of this process) are there, as far as the last pass knew."""
        return self._store.complete

    @property
    def token(self) -> int:
        """Which unfinished file the logits of this pass are in; 0: none."""
        return self._store.token

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self._store.nbytes

    @property
    def logits(self) -> Tensor | None:
        """``[N, C]`` once complete (mapped into memory from a file), else None; None too where each process keeps its own."""
        return self._store.all()

    def begin(self, view: View) -> bool:
        """Prepare for a pass, in every process; returns False when the `view.done` samples of it are not there as they should.

        Raises:
            InputError: it holds the logits of another number of samples; a data set without a fingerprint.
        """
        return self._store.begin(view, self.model)

    def take(self, start: int, offset: int, x: Any, like: Tensor, forward: Forward | None = None) -> Tensor:
        """Teacher logits of a batch whose student logits are `like`: of the cache's dtype, same shape and device.

        Args:
            start, offset: of the batch in the data set, and among the samples of this process.

        Raises:
            InputError: the teacher has another number of classes than the student.
        """
        if self.complete:
            logits = self._store.read(start, offset, like)
        else:
            assert self.model is not None
            logits = logits_of(self.model, x, forward).to(self.dtype)
            self.forwards += len(logits)
        if logits.shape != like.shape:
            raise InputError(f"teacher logits {list(logits.shape)} and model logits {list(like.shape)} must have the same classes")
        if not self.complete:
            self._store.write(start, offset, logits)
        return logits

    def flush(self) -> None:
        """Return when what was computed so far would outlive this process."""
        self._store.flush()

    def finish(self, size: int, team: Team) -> None:
        """After the last batch of all `size` samples, in every process."""
        self._store.finish(size, team)

    def abandon(self, *, resumed: bool) -> None:
        """After a pass that failed: keep nothing of it, but what another one that is `resumed` from it needs."""
        self._store.abandon(resumed)
