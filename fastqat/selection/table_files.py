"""Score tables on disk, in the format that the file's name ends in: safetensors, npz or Parquet."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastqat._errors import DataError, InputError
from fastqat._files import DAMAGED_ARCHIVE, write_atomic

_MARK = "fastqat.scores.1"
LABELS, FEATURES = "__labels__", "__features__"
_PLAIN = {LABELS: "label", FEATURES: "features"}  # what they are called where people read them


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write columns ``[N]`` (and features ``[N, D]``) to `path`, whole or not at all.

    Raises:
        InputError: the name ends in none of the known formats, or Parquet is asked for without pyarrow.
        OSError: the disk is full or not writable.
    """
    write_atomic(path, _format_of(path).write({name: values.contiguous() for name, values in tensors.items()}))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote.

    Raises:
        InputError: as `write_tensors`.
        DataError: there is no such file, or it is damaged or something else.
    """
    kind = _format_of(path)
    try:
        found = kind.read(Path(path))
    except (SafetensorError, *DAMAGED_ARCHIVE) as error:
        raise DataError(f"cannot read the score table {path}: {error}; score the data again and save it anew") from error
    if found is None:
        raise DataError(f"{path} is not a score table; score the data again and save it anew")
    return found


def _write_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    return save(dict(tensors), metadata={"format": _MARK})


def _read_safetensors(path: Path) -> dict[str, Tensor] | None:
    with safe_open(path, framework="pt") as stored:
        if (stored.metadata() or {}).get("format") != _MARK:
            return None
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)


def _columns(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """index, label, then every score, as numpy arrays; features last."""
    taken = {"index", *_PLAIN.values()} & set(tensors)
    if taken:
        raise InputError(f"a score cannot be called {', '.join(sorted(taken))} in this format; rename it, or save a .safetensors file")
    named = {_PLAIN.get(name, name): values.numpy() for name, values in tensors.items()}
    size = len(next(iter(named.values())))
    order = ["label", *(name for name in named if name not in _PLAIN.values()), "features"]
    return {"index": np.arange(size), **{name: named[name] for name in order if name in named}}


def _tensors(columns: Mapping[str, np.ndarray]) -> dict[str, Tensor] | None:
    """The reverse of `_columns`; None where there is no index from 0 on."""
    index = columns.get("index")
    if index is None or not np.array_equal(index, np.arange(len(index))):
        return None
    names = {plain: name for name, plain in _PLAIN.items()}
    return {names.get(name, name): torch.from_numpy(np.array(values)) for name, values in columns.items() if name != "index"}


def _write_npz(tensors: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_columns(tensors))  # type: ignore[arg-type]  # numpy's stub takes the names for options
    return buffer.getvalue()


def _read_npz(path: Path) -> dict[str, Tensor] | None:
    with np.load(path, allow_pickle=False) as arrays:
        return _tensors(dict(arrays))


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"Parquet needs pyarrow, which does not import ({error}); pip install 'fastqat[parquet]', or use .npz") from error
    return pyarrow


def _write_parquet(tensors: Mapping[str, Tensor]) -> bytes:
    arrow = _parquet()
    columns = {
        name: arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), values.shape[1]) if values.ndim == 2 else values
        for name, values in _columns(tensors).items()
    }
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(arrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _read_parquet(path: Path) -> dict[str, Tensor] | None:
    arrow = _parquet()
    columns = {}
    try:
        table = arrow.parquet.read_table(path)
        for name in table.column_names:
            values = table.column(name).combine_chunks()
            nested = arrow.types.is_fixed_size_list(values.type)
            flat = values.flatten().to_numpy() if nested else values.to_numpy()
            columns[name] = flat.reshape(len(values), -1) if nested else flat
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from error
    return _tensors(columns)


class _Format(NamedTuple):
    write: Callable[[Mapping[str, Tensor]], bytes]
    read: Callable[[Path], dict[str, Tensor] | None]


_FORMATS = {
    ".safetensors": _Format(_write_safetensors, _read_safetensors),
    ".npz": _Format(_write_npz, _read_npz),
    ".parquet": _Format(_write_parquet, _read_parquet),
}


def check_ending(path: str | Path) -> None:
    """Refuse now what `write_tensors` would refuse after a long pass.

    Raises:
        InputError: as `write_tensors`.
    """
    _format_of(path)


def _format_of(path: str | Path) -> _Format:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"a score table is a {', '.join(_FORMATS)} file; got {Path(path).name!r}; give it one of these endings")
    if suffix == ".parquet":
        _parquet()
    return _FORMATS[suffix]
