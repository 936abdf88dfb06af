"""Checkpoints that survive a crash: whole or absent, the two latest and the best kept, damage found before it is used."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastqat._errors import CheckpointError
from fastqat._files import DAMAGED_ARCHIVE, write_atomic
from fastqat.train.models import first_mismatch

_DAMAGE = (*DAMAGED_ARCHIVE, pickle.UnpicklingError)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` in one step; an older file stays whole when the disk is full.

    Raises:
        OSError: the disk is full or not writable; the message names the file.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, onto the CPU; tensors and plain values only, no code.

    Raises:
        CheckpointError: `path` is missing, truncated, has a changed byte, or is no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CheckpointError(f"{path} is damaged (checksum of {broken}); remove it, or use an older checkpoint")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; give the path of a file that was saved by fastqat or torch.save") from error
    except _DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or no checkpoint ({_first_line(error)}); use an older one") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state_dict or a checkpoint of fastqat")
    return state


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


def load_weights(model: nn.Module, state: dict[str, Any], source: Path | str) -> None:
    """Load `state` into `model`, strictly.

    Raises:
        CheckpointError: names or shapes differ; says the first difference.
    """
    mismatch = first_mismatch(model, state)
    if mismatch is not None:
        raise CheckpointError(f"{source} is of another architecture: {mismatch}; use the model, classes and qconfig that it was saved with")
    model.load_state_dict(state)


def check_same_data(saved: dict[str, Any], fingerprint: str, source: Path | str) -> None:
    """Refuse a checkpoint that was trained on other data than that of `fingerprint`.

    Raises:
        CheckpointError: the fingerprints differ.
    """
    if saved.get("data") != fingerprint:
        raise CheckpointError(
            f"{source} was trained on other data than is there now; bring the data back to what it was, or train anew (--overwrite)"
        )


class CheckpointStore:
    """The checkpoints of one stage: ``<prefix>_0007.pt`` for the latest epochs.

    Args:
        folder: where they are.
        prefix: ``"epoch"`` or ``"float"``.
        say: told, in one line, when a damaged checkpoint is passed over.
    """

    def __init__(self, folder: Path, prefix: str, say: Callable[[str], None]):
        self.folder, self.prefix, self.say = folder, prefix, say

    def path(self, epoch: int) -> Path:
        return self.folder / f"{self.prefix}_{epoch:04d}.pt"

    def paths(self) -> list[Path]:
        """Checkpoints that are there, oldest first."""
        return sorted(self.folder.glob(f"{self.prefix}_[0-9]*.pt"), key=lambda path: int(path.stem.rpartition("_")[2]))

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state after `epoch`, then remove all but this and the latest before it."""
        save_state(self.path(epoch), state)
        paths = self.paths()
        place = paths.index(self.path(epoch))
        for path in paths[: max(0, place - 1)] + paths[place + 1 :]:
            path.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The newest undamaged state; None when nothing was saved yet.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return load_state(path)
            except CheckpointError as error:
                self.say(f"{error} -- trying the checkpoint before it")
        if paths:
            raise CheckpointError(f"every checkpoint {self.prefix}_*.pt in {self.folder} is damaged; start again with --overwrite")
        return None

    def clear(self) -> None:
        """Remove all of them."""
        for path in self.paths():
            path.unlink(missing_ok=True)
