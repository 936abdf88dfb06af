"""`ScoreTable`: the scores of a data set, one column per score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import as_labels
from fastqat.selection.table_files import FEATURES, LABELS, read_tensors, write_tensors


class ScoreTable(Mapping[str, Tensor]):
    """Score name → fp32 tensor ``[N]`` on the CPU, in data-set order; ``.labels`` int64 ``[N]`` and ``.features`` fp32 ``[N, D]``, or None.

    Args:
        scores: name → ``[N]``; stored as fp32.
        labels: integers ``[N]``.
        features: what the selectors that compare samples go by, ``[N, D]``; stored as fp32.

    Raises:
        InputError: no column, columns of different lengths, labels or features of another length.

    Example:
        >>> import torch
        >>> table = ScoreTable({"evs": torch.tensor([0.5, 1.0])}, labels=torch.tensor([0, 1]))
        >>> table["evs"].shape, table.num_samples
        (torch.Size([2]), 2)
    """

    def __init__(self, scores: Mapping[str, Tensor], labels: Tensor | None = None, features: Tensor | None = None):
        self._columns = {name: values.detach().float().cpu() for name, values in scores.items()}
        shapes = {name: list(values.shape) for name, values in self._columns.items()}
        if not shapes or len({tuple(shape) for shape in shapes.values()}) != 1 or len(next(iter(shapes.values()))) != 1:
            raise InputError(f"a score table needs columns of one length, [N] each; got {shapes}")
        self.num_samples = next(iter(shapes.values()))[0]
        self.labels = None if labels is None else as_labels(labels, self.num_samples)
        if features is not None and (features.dim() != 2 or len(features) != self.num_samples):
            raise InputError(f"features must have one row per sample, [{self.num_samples}, D]; got {list(features.shape)}")
        self.features = None if features is None else features.detach().float().cpu()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            raise InputError(f"the table has no score {name!r}; it has {', '.join(self._columns)}")
        return self._columns[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The column, or `default` when the table has no such score."""
        return self._columns.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        more = "" if self.labels is None else ", labels"
        more += "" if self.features is None else f", {self.features.shape[1]} features"
        return f"ScoreTable({', '.join(self._columns)}; {self.num_samples} samples{more})"

    def only_name(self) -> str:
        """The name of the only column; InputError when there are several."""
        if len(self._columns) != 1:
            raise InputError(f"the table has several scores; say which one: by={' or '.join(map(repr, self._columns))}")
        return next(iter(self._columns))

    def with_score(self, name: str, values: Tensor) -> ScoreTable:
        """A table with one more column (or that column replaced)."""
        return ScoreTable({**self._columns, name: values}, self.labels, self.features)

    def save(self, path: str | Path) -> None:
        """Write a ``.safetensors``, ``.npz`` or ``.parquet`` file, by the name's ending, whole or not at all.

        The last two hold the columns ``index``, ``label``, every score and ``features``, for other programs too.

        Raises:
            InputError: another ending, or Parquet without pyarrow.
            OSError: the disk is full or not writable.
        """
        write_tensors(path, {name: values for name, values in self.state_dict().items() if values is not None})

    @classmethod
    def load(cls, path: str | Path) -> ScoreTable:
        """Read what `save` wrote.

        Raises:
            InputError: another ending, or Parquet without pyarrow.
            DataError: there is no such file, or it is damaged or something else.
        """
        return cls.from_state_dict(read_tensors(path))

    def state_dict(self) -> dict[str, Tensor | None]:
        """Columns, labels and features as plain tensors, for a checkpoint."""
        return {**self._columns, LABELS: self.labels, FEATURES: self.features}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor | None]) -> ScoreTable:
        """The table that `state_dict` described."""
        columns = {name: values for name, values in state.items() if name not in (LABELS, FEATURES) and values is not None}
        return cls(columns, state.get(LABELS), state.get(FEATURES))
