"""`TeacherCache`: a teacher's logits of a data set, computed in the first pass that needs them and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.selection.forwards import Forward, logits_of


class TeacherCache:
    """Teacher logits in data-set order, fp32 ``[N, C]``: give it to `score_dataset` as ``teacher=`` and later passes run the student only.

    Memory: 4·N·C bytes on `device` (50,000 × 10: 2 MB; 1.28 million × 1000: 5.1 GB), see `nbytes`. A pass that breaks off leaves the
    cache empty. It belongs to one data set in one order; it does not notice when the data changes.

    Args:
        teacher: the model, run in eval mode; or its logits ``[N, C]``.
        device: where the logits are kept; None: where scoring runs.

    Example:
        >>> import torch
        >>> cache = TeacherCache(torch.zeros(4, 10))
        >>> cache.complete, cache.nbytes
        (True, 160)
    """

    def __init__(self, teacher: nn.Module | Tensor, *, device: torch.device | str | None = None):
        if not isinstance(teacher, (nn.Module, Tensor)):
            raise InputError(f"teacher must be a module, its logits [N, C], or a TeacherCache; got {type(teacher).__name__}")
        self.model = teacher if isinstance(teacher, nn.Module) else None
        self.device = device
        self._logits: Tensor | None = None
        self._filled = 0
        if isinstance(teacher, Tensor):
            if teacher.dim() != 2:
                raise InputError(f"teacher logits must be [N, C]; got shape {list(teacher.shape)}")
            self._logits = teacher.detach().float() if device is None else teacher.detach().float().to(device)
            self._filled = teacher.shape[0]

    @property
    def complete(self) -> bool:
        """Whether the logits of every sample are there."""
        return self._logits is not None and self._filled == self._logits.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self._logits is None else self._logits.nbytes

    @property
    def logits(self) -> Tensor | None:
        """``[N, C]`` once complete, else None."""
        return self._logits if self.complete else None

    def begin(self, size: int) -> None:
        """Prepare for a pass over `size` samples.

        Raises:
            InputError: it holds the logits of another number of samples.
        """
        if not self.complete:
            self._logits, self._filled = None, 0
        elif self._logits is not None and len(self._logits) != size:
            raise InputError(f"the teacher logits are of {len(self._logits)} samples, the data set has {size}; make a new TeacherCache")
        self._size = size

    def take(self, start: int, x: Any, like: Tensor, forward: Forward | None = None) -> Tensor:
        """Teacher logits of the batch at `start` whose student logits are `like`: fp32, same shape and device.

        Raises:
            InputError: the teacher has another number of classes than the student.
        """
        complete = self.logits
        if complete is not None:
            logits = complete[start : start + like.shape[0]].to(like.device, non_blocking=True)
        else:
            assert self.model is not None
            logits = logits_of(self.model, x, forward).float()
        if logits.shape != like.shape:
            raise InputError(f"teacher logits {list(logits.shape)} and model logits {list(like.shape)} must have the same classes")
        if complete is None:
            self._store(start, logits)
        return logits

    def _store(self, start: int, logits: Tensor) -> None:
        if self._logits is None:
            self._logits = torch.empty(self._size, logits.shape[1], device=self.device or logits.device)
        self._logits[start : start + logits.shape[0]].copy_(logits)
        self._filled += logits.shape[0]
