"""When a policy selects: every few epochs or once, between epochs that train on everything."""

from __future__ import annotations

from dataclasses import dataclass

from fastqat._errors import InputError
from fastqat.selection.budget import check_count


@dataclass(frozen=True)
class Calendar:
    """Selections before the epochs `warmup`, `warmup` + `interval`, ... (None: only the first of these); all samples before and after.

    Args:
        interval: epochs between selections; None: one selection that stays.
        epochs: length of the whole training, where it is known.
        warmup, anneal: epochs at the start and at the end that train on all samples.

    Raises:
        InputError: a number of another type or out of range, `anneal` without `epochs`, or no epoch left for a selection.

    Example:
        >>> calendar = Calendar(interval=2, epochs=8, warmup=1, anneal=2)
        >>> [epoch for epoch in range(8) if calendar.due(epoch)], [epoch for epoch in range(8) if calendar.whole(epoch)]
        ([1, 3, 5, 6], [0, 6, 7])
    """

    interval: int | None
    epochs: int | None = None
    warmup: int = 0
    anneal: int = 0

    def __post_init__(self) -> None:
        for name, least in (("interval", 1), ("epochs", 1), ("warmup", 0), ("anneal", 0)):
            value = getattr(self, name)
            if value is not None or least == 0:
                check_count(name, value, least=least)
        if self.anneal and self.epochs is None:
            raise InputError("anneal counts from the end; pass epochs= the length of the whole training")
        if self.epochs is not None and self.warmup + self.anneal >= self.epochs:
            raise InputError(
                f"warmup {self.warmup} and anneal {self.anneal} leave none of {self.epochs} epochs for a selection; lower them"
            )

    def whole(self, epoch: int) -> bool:
        """Whether `epoch` trains on all samples."""
        return epoch < self.warmup or (self.anneal > 0 and epoch >= self._end)

    def due(self, epoch: int) -> bool:
        """Whether the samples change before `epoch` (epoch 0 of a warm-up aside)."""
        if self.whole(epoch):
            return epoch >= self.warmup and epoch == self._end
        since = epoch - self.warmup
        return since == 0 or (self.interval is not None and since % self.interval == 0)

    def next_selection(self, epoch: int) -> int | None:
        """The first selection after the one that holds in `epoch`; None when there is none."""
        following = self.warmup if epoch < self.warmup else None
        if following is None and self.interval is not None:
            following = self.warmup + ((epoch - self.warmup) // self.interval + 1) * self.interval
        return following if following is not None and (self.epochs is None or following < self._end) else None

    def selections(self) -> list[int]:
        """The epochs before which a selection is made; the first two where the length of the training is not known."""
        found, epoch = [self.warmup], self.next_selection(self.warmup)
        while epoch is not None and (self.epochs is not None or len(found) < 2):
            found.append(epoch)
            epoch = self.next_selection(epoch)
        return found

    @property
    def _end(self) -> int:
        """The epoch from which on all samples are trained on again, or that is past the last."""
        assert self.epochs is not None
        return self.epochs - self.anneal
