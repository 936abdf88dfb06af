"""`ScoreTable`: the scores of a data set, one column per score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastqat._errors import DataError, InputError
from fastqat._files import write_atomic
from fastqat.selection.budget import as_labels

_FORMAT = "fastqat.scores.1"
_LABELS, _FEATURES = "__labels__", "__features__"


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
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: the disk is full or not writable.
        """
        tensors = {name: values.contiguous() for name, values in self.state_dict().items() if values is not None}
        write_atomic(path, save(tensors, metadata={"format": _FORMAT}))

    @classmethod
    def load(cls, path: str | Path) -> ScoreTable:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is damaged or something else.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                if (stored.metadata() or {}).get("format") != _FORMAT:
                    raise DataError(f"{path} is not a score table; score the data again and save it anew")
                columns = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise DataError(f"cannot read the score table {path}: {error}; score the data again and save it anew") from error
        return cls.from_state_dict(columns)

    def state_dict(self) -> dict[str, Tensor | None]:
        """Columns, labels and features as plain tensors, for a checkpoint."""
        return {**self._columns, _LABELS: self.labels, _FEATURES: self.features}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor | None]) -> ScoreTable:
        """The table that `state_dict` described."""
        columns = {name: values for name, values in state.items() if name not in (_LABELS, _FEATURES) and values is not None}
        return cls(columns, state.get(_LABELS), state.get(_FEATURES))
