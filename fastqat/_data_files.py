"""Readers of the files of data sets: idx, CIFAR's python files, npz; a damaged file is one error that names it."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastqat._errors import DataError
from fastqat._files import DAMAGED_ARCHIVE


def read_idx(path: Path) -> np.ndarray:
    """One uint8 array of the IDX format: 0, 0, type, number of dimensions, big-endian int32 sizes, values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    dims = content[3] if len(content) > 3 else 0
    shape = tuple(np.frombuffer(content, ">i4", dims, 4).tolist()) if len(content) >= 4 + 4 * dims else ()
    if content[:3] != b"\x00\x00\x08" or not shape or len(content) != 4 + 4 * dims + int(np.prod(shape)):
        raise DataError(f"{path} is not a whole IDX file of uint8 values; fetch it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles the CIFAR files: dictionaries, lists, bytes and numpy arrays, and nothing that could run code."""

    allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed or (module.startswith("numpy.") and module.endswith(".multiarray") and name == "_reconstruct"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def read_cifar(paths: Sequence[Path], label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures ``[N, 32, 32, 3]`` and labels of CIFAR's python files."""
    pictures, labels = [], []
    for path in paths:
        try:
            batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
            pictures.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[label_key], np.int64))
        except Exception as error:  # a damaged pickle may raise anything
            raise DataError(f"{path} is not a whole CIFAR file ({error}); fetch it again") from error
    return np.concatenate(pictures), np.concatenate(labels)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{path} cannot be read as .npz ({error}); it needs plain arrays x_train, y_train, x_test, y_test") from error
