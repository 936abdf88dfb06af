"""`PassCheckpoint`: the progress of a pass on disk, so that a killed one continues at the batch where it was."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastqat._files import atomic_path
from fastqat.selection.scoring.reading import Deal

_FORMAT = "fastqat.pass.1"
SECONDS = 30.0
"""Least time between two checkpoints of a pass."""
SHARE = 50
"""And that much longer than writing the last one took: 2 % of the pass at most."""


class PassCheckpoint:
    """One process's checkpoint, a safetensors file that is written whole or not at all.

    Args:
        path: of the file; with several processes each adds ``.RANKofSIZE``.
        key: what must be the same for a pass that continues: name → value.
        deal: which process of how many.
    """

    def __init__(self, path: str | Path, key: Mapping[str, str], deal: Deal):
        path = Path(path)
        self.path = path if deal.size == 1 else path.with_name(f"{path.name}.{deal.rank}of{deal.size}")
        self.key = {"format": _FORMAT, **key}
        self._due = time.monotonic() + SECONDS

    def load(self) -> dict[str, Tensor] | None:
        """What `save` wrote for the same key; None, with a warning, when there is something else, and silently when there is nothing."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as stored:
                found = stored.metadata() or {}
                changed = [name for name, value in self.key.items() if found.get(name) != value]
                if not changed:
                    return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            reason = f"changed since: {', '.join(changed)}"
        except (SafetensorError, OSError):
            reason = "it is damaged"
        self.warn(reason)
        return None

    def warn(self, reason: str) -> None:
        """Say that the pass starts at its first batch although there is a checkpoint."""
        warnings.warn(f"the pass starts anew, the checkpoint {self.path} cannot be used: {reason}", stacklevel=2)

    def save_if_due(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Write ``state()`` when the last time is long enough ago.

        Raises:
            OSError: the disk is full or not writable.
        """
        start = time.monotonic()
        if start < self._due:
            return
        with atomic_path(self.path) as part:
            save_file(state(), part, self.key)
        now = time.monotonic()
        self._due = now + max(SECONDS, SHARE * (now - start))

    def remove(self) -> None:
        """The pass is over."""
        self.path.unlink(missing_ok=True)
