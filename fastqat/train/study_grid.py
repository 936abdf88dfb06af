"""The grid of a study: its YAML file read and expanded to runs, with every setting's type and range checked before anything starts.

What only the data and the model tell, such as a fraction that leaves a class empty or layers that do not exist, the study's first process
checks for a run of each cell.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastqat._errors import InputError
from fastqat.train.config import DATA_FIELDS, FLOAT_FIELDS, TrainConfig, read_mapping
from fastqat.train.float_stage import teacher_config

_KEYS = ("base", "seeds", "float_seeds", "cells")
# Nobody reads what a run of a study says; a checkpoint takes 20 ms, as much as some epochs of a small part of the data.
_DEFAULTS = {"threads": 1, "report": False, "rho": False, "checkpoint_seconds": 5.0}
# What the study itself decides for each run.
_OWN = frozenset({"config", "study", "only", "results", "jobs", "minutes", "runs", "float_cache", "resume", "overwrite", "progress"})
_OWN |= {"seed", "float_seed"}
# What float weights depend on: where runs of one float seed differ in it, they do not start from the same ones.
_FLOAT = (*FLOAT_FIELDS, "data", "val_fraction", "limit", "label_noise", "label_noise_type", "image_size", "float_checkpoint")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: `cell`, without the seed, and its settings."""

    cell: str
    config: TrainConfig

    @property
    def label(self) -> str:
        return f"{self.cell} seed {self.config.seed}"

    @cached_property
    def float_models(self) -> frozenset[tuple[Any, ...]]:
        """What tells apart the float models that this run trains: its own, and its teacher where that is another."""
        config = self.config if self.config.label_noise else replace(self.config, label_noise_type="symmetric")
        trained = [each for each in (config, teacher_config(config)) if each is not None and each.float_checkpoint is None]
        names = (*FLOAT_FIELDS, *DATA_FIELDS, "used_float_seed")
        return frozenset(tuple(getattr(each, name) for name in names) for each in trained)

    @property
    def is_past_float(self) -> bool:
        """Whether this run has all its float weights."""
        checkpoints, teacher = self.config.run_dir / "checkpoints", teacher_config(self.config)
        stages = {"float": self.config, **({"teacher": teacher} if teacher else {})}
        whole = all(each.float_checkpoint is not None or (checkpoints / f"{name}.pt").is_file() for name, each in stages.items())
        return whole or any(checkpoints.glob("epoch_*.pt"))


@dataclass(frozen=True)
class Study:
    """A study as its file has it.

    Attributes:
        folder: of its runs.
        results: folder of its rows.
        runs: in the order in which they start, all cells of a seed before the next seed.
    """

    name: str
    folder: Path
    results: Path
    runs: tuple[StudyRun, ...]

    @property
    def rows(self) -> Path:
        """The file of its rows."""
        return self.results / f"study_{self.name}.csv"


def read_study(path: Path, runs: Path = Path("runs"), threads: int | None = None, *, jobs: int = 1, results: Path | None = None) -> Study:
    """The study in the YAML file `path`, as `fastqat.train.study` describes it.

    Args:
        path: the file; its stem is the study's name.
        runs: folder above the study's.
        threads: CPU threads of each run; None: those of the file, else 1.
        jobs: how many runs go on side by side, which their summaries tell.
        results: folder of the rows; None: ``results`` beside the file's own folder ``studies``, as in a source tree's bench; else with the
            runs.

    Raises:
        InputError: the file cannot be read, a key or a setting is unknown or out of range, or two cells have one name; says which cell.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "mine.yaml")
        >>> _ = path.write_text("base: {epochs: 5}\\nseeds: 2\\ncells: [{name: acs, select: acs, loss: [ce, kd]}]")
        >>> [str(run.config.run_dir) for run in read_study(path).runs][1:3]
        ['runs/mine/acs-kd-seed0', 'runs/mine/acs-ce-seed1']
    """
    plan = _plan(path)
    folder = runs / path.stem
    own = {"runs": folder, "float_cache": runs / ".float", "resume": True, "progress": False, "jobs": jobs}
    own |= {"threads": threads} if threads is not None else {}
    seeds, float_seeds = _seeds(plan.get("seeds", 1), path), plan.get("float_seeds")
    if float_seeds is not None and (type(float_seeds) is not int or float_seeds < 1):
        raise InputError(f"{path}: float_seeds must be the number of float models, at least 1; got {float_seeds!r}")
    cells = _cells(plan, path)
    grid = []
    for seed, (cell, settings) in itertools.product(seeds, cells.items()):
        float_seed = seed if float_seeds is None else seed % float_seeds
        run = {**settings, **own, "seed": seed, "float_seed": float_seed, "name": f"{cell}-seed{seed}"}
        grid.append(StudyRun(cell, _config(_filled(run, seed, float_seed), f"{path}: cell {cell!r}: ")))
    return Study(path.stem, folder, results or _results(path, folder), tuple(grid))


def _results(path: Path, folder: Path) -> Path:
    beside = path.resolve().parent.parent / "results"
    return beside if path.resolve().parent.name == "studies" and beside.is_dir() else folder


def float_differences(runs: Iterable[StudyRun]) -> list[str]:
    """The settings in which the float models of runs with one float seed differ."""
    values = defaultdict[tuple[str, int], set[Any]](set)
    for run in runs:
        for name in _FLOAT:
            values[name, run.config.used_float_seed].add(getattr(run.config, name))
    return list(dict.fromkeys(name for (name, _), found in values.items() if len(found) > 1))


def _plan(path: Path) -> dict[str, Any]:
    """The mapping in `path`, its keys checked."""
    plan = read_mapping(path)
    if unknown := [str(key) for key in plan if key not in _KEYS]:
        raise InputError(f"{path}: unknown key {', '.join(unknown)}; accepted: {', '.join(_KEYS)}")
    if path.stem.startswith("."):
        raise InputError(f"the name of a study is that of its file, which must not begin with a dot; got {path}")
    return plan


def _seeds(value: Any, path: Path) -> list[int]:
    """A number N as 0..N−1, or the list itself."""
    seeds = list(range(value)) if type(value) is int else value
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds must be a number, at least 1, or a list of different seeds, such as [0, 1, 2]; got {value!r}")
    return seeds


def _cells(plan: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """Name of each cell → its settings, those of the base included; a list of values is expanded to one cell for each."""
    base, cells = plan.get("base") or {}, plan.get("cells")
    if not isinstance(base, dict) or "name" in base:
        raise InputError(f"{path}: base must be a mapping of settings, without a name; got {base!r}")
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, dict) and isinstance(cell.get("name"), str) for cell in cells):
        raise InputError(f"{path}: cells must be a list of mappings, each with a name, such as {{name: acs, select: acs}}; got {cells!r}")
    found: list[tuple[str, dict[str, Any]]] = []
    for cell in cells:
        source, settings = f"{path}: cell {cell['name']!r}: ", {**base, **cell}
        if own := sorted(str(key) for key in settings if key in _OWN):
            told = "cannot be set here; seeds and float_seeds stand beside cells, and the command knows the rest"
            raise InputError(f"{source}{', '.join(own)} {told}")
        found += _expanded(settings, source)
    if twice := [name for name, count in Counter(name for name, _ in found).items() if count > 1]:
        raise InputError(f"{path}: {len(twice)} names of cells are there twice, {twice[0]!r} for one; give each cell a name of its own")
    return dict(found)


def _expanded(settings: Mapping[str, Any], source: str) -> list[tuple[str, dict[str, Any]]]:
    """The product over the lists in `settings`; ``{setting}`` in the name stands for its value, lists that it does not name follow it."""
    lists = {key: value for key, value in settings.items() if isinstance(value, list)}
    if empty := [key for key, values in lists.items() if not values]:
        raise InputError(f"{source}{empty[0]} is an empty list; give at least one value")
    cells = []
    for values in itertools.product(*lists.values()):
        cell = {**settings, **dict(zip(lists, values, strict=True))}
        name = pattern = cell.pop("name")
        for key, value in cell.items():
            name = name.replace(f"{{{key}}}", _text(value))
        if "{" in name:
            raise InputError(f"{source}the name must use settings of this cell or of base in its braces; got {name!r}")
        rest = [key for key in lists if f"{{{key}}}" not in pattern]
        cells.append(("-".join([name, *(_part(key, cell[key]) for key in rest)]), cell))
    return cells


def _part(key: str, value: Any) -> str:
    """How a value of a list is told in a cell's name: text alone, anything else after its key."""
    return _text(value) if isinstance(value, str) else f"{key}{_text(value)}"


def _text(value: Any) -> str:
    """A value as a part of the name of a folder; what means something to a shell becomes an underscore."""
    return f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.+-]+", "_", str(value))


def _filled(settings: Mapping[str, Any], seed: int, float_seed: int) -> dict[str, Any]:
    """``{seed}`` and ``{float_seed}`` in text replaced, so that each float model can have a file of its own."""

    def fill(value: Any) -> Any:
        return value.replace("{seed}", str(seed)).replace("{float_seed}", str(float_seed)) if isinstance(value, str) else value

    return {key: fill(value) for key, value in settings.items()}


def _config(settings: Mapping[str, Any], source: str) -> TrainConfig:
    try:
        config = TrainConfig.of({**_DEFAULTS, **settings})
    except InputError as error:
        raise InputError(f"{source}{error}") from error
    if config.threads is None:
        raise InputError(f"{source}threads must be a number in a study, where one process does many runs; leave it out for 1")
    return config
