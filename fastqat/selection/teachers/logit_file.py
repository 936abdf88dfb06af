"""`LogitFile`: logits ``[N, C]`` in one file, written batch by batch by one process or several, and read back in any order."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from fastqat._files import naming_errors
from fastqat.selection.teachers.stores import changed_since

_FORMAT = "fastqat.logits.1"
_HEADER = 4096  # bytes before the logits: their shape is known when the last batch is
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


class LogitFile:
    """A safetensors file with one tensor, ``logits``. It has its name only when it is whole; until then it is ``.NAME.KEY.TOKEN.part``.

    The token is that of one pass, so that runs which compute the same logits at the same time write to files of their own.

    Args:
        path: where the whole file is.
        dtype: float32 or bfloat16.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype):
        self.path, self.dtype = Path(path), dtype
        self.shape: tuple[int, int] | None = None  # of the whole file
        self._file: BinaryIO | None = None
        self._part: Path | None = None
        self._classes = 0

    def open_whole(self, key: Mapping[str, str]) -> str | None:
        """Open the whole file for reading; returns why it cannot be used for `key`, None when it can, "" when there is none."""
        self.close()
        if not self.path.is_file():
            return ""
        try:
            header, size = _header_of(self.path)
            metadata, entry = header.get("__metadata__", {}), header.get("logits", {})
        except (OSError, ValueError):
            return "it is damaged"
        if metadata.get("format") != _FORMAT or entry.get("dtype") != _NAMES[self.dtype]:
            return f"it does not hold {str(self.dtype).removeprefix('torch.')} logits of this version"
        if size != _HEADER + entry["data_offsets"][1]:
            return "it is damaged"
        if changed := changed_since(metadata, key):
            return changed
        self.shape = (entry["shape"][0], entry["shape"][1])
        self._classes, self._file = self.shape[1], self.path.open("rb", buffering=0)
        return None

    def create_part(self, key: Mapping[str, str], token: int) -> None:
        """Begin the unfinished file of `key` and `token` and open it for writing; one process does."""
        self._open_part(key, token, os.O_CREAT | os.O_EXCL)

    def open_part(self, key: Mapping[str, str], token: int) -> bool:
        """Open the unfinished file of `key` and `token`, with what is in it, for writing; several processes may. False: it is not there."""
        try:
            self._open_part(key, token, 0)
        except FileNotFoundError:
            return False
        return True

    def _open_part(self, key: Mapping[str, str], token: int, how: int) -> None:
        self.close()
        part = self.path.with_name(f"{self._part_of(key)}{token:016x}.part")
        with naming_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(part, os.O_RDWR | how | getattr(os, "O_BINARY", 0), 0o666), "rb+", buffering=0)
        self._part = part

    def _part_of(self, key: Mapping[str, str]) -> str:
        """How the names of all unfinished files of `key` begin."""
        digest = hashlib.sha256(json.dumps(dict(key)).encode()).hexdigest()[:16]
        return f".{self.path.name}.{digest}."

    def write(self, start: int, logits: Tensor) -> None:
        """Put logits ``[B, C]``, on the CPU and of the file's dtype, at rows `start` and up.

        Raises:
            OSError: the disk is full or fails; the message names the file.
        """
        self._classes = logits.shape[1]
        self._put(_HEADER + start * self._row_bytes, _bytes_of(logits))

    def read(self, start: int, out: Tensor) -> Tensor:
        """Fill `out` ``[B, C]``, on the CPU and of the file's dtype, with the rows from `start` on."""
        assert self._file is not None
        self._file.seek(_HEADER + start * self._row_bytes)
        left = _bytes_of(out)
        while len(left):
            count = self._file.readinto(left)  # type: ignore[attr-defined]  # a raw file has it
            if not count:
                raise OSError(f"{self.path} became shorter while it was read; do not write to it during a pass")
            left = left[count:]
        return out

    @property
    def _row_bytes(self) -> int:
        return self._classes * self.dtype.itemsize

    def _put(self, offset: int, data: memoryview) -> None:
        assert self._file is not None
        with naming_errors(self.path):
            self._file.seek(offset)
            while len(data):
                data = data[self._file.write(data) :]

    def flush(self) -> None:
        """Return when all that was written is on the disk."""
        assert self._file is not None
        with naming_errors(self.path):
            os.fsync(self._file.fileno())

    def finish(self, shape: tuple[int, int], key: Mapping[str, str]) -> None:
        """Give the file, to which all processes have written and flushed, its header and its name; one process does.

        Other unfinished files of `key` are of no use now, and removed. One of a run that still writes to it is not missed: that run ends
        here too, and takes the whole file.
        """
        assert self._file is not None and self._part is not None
        nbytes = shape[0] * shape[1] * self.dtype.itemsize
        entry = {"dtype": _NAMES[self.dtype], "shape": list(shape), "data_offsets": [0, nbytes]}
        header = json.dumps({"__metadata__": {"format": _FORMAT, **key}, "logits": entry}).encode()
        length = _HEADER - 8
        self._put(0, memoryview(length.to_bytes(8, "little") + header.ljust(length)))
        with naming_errors(self.path):
            self._file.truncate(_HEADER + nbytes)
            self.flush()
            try:
                os.replace(self._part, self.path)
            except FileNotFoundError:
                if self.open_whole(key) is not None or self.shape != shape:
                    raise
        for part in self.path.parent.glob(f"{glob.escape(self._part_of(key))}*.part"):
            with suppress(OSError):
                part.unlink()

    def discard(self) -> None:
        """Remove the unfinished file."""
        self.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
        self._file, self.shape = None, None

    def mapped(self) -> Tensor:
        """The logits of the whole file ``[N, C]``, mapped into memory: read from the disk where they are looked at."""
        with safe_open(self.path, framework="pt") as stored:
            return stored.get_tensor("logits")


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file that `LogitFile` wrote, and the size of the file. ValueError when it is something else."""
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") != _HEADER - 8:
            raise ValueError("another header")
        header = json.loads(file.read(_HEADER - 8))
    return header, path.stat().st_size


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
