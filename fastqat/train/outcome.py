"""What a run leaves behind: selections, pictures, summary, report."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fastqat
from fastqat._distributed import world
from fastqat._errors import FastqatError
from fastqat._info import cpu_model
from fastqat.data import TensorData
from fastqat.selection.labels import Method as LabelMethod
from fastqat.selection.labels import find_label_issues
from fastqat.selection.policies import SelectionPolicy
from fastqat.selection.table import ScoreTable
from fastqat.train.config import TrainConfig
from fastqat.train.float_stage import teacher_config
from fastqat.train.folder import RunFolder
from fastqat.train.models import count_parameters
from fastqat.train.parallel import weights_name
from fastqat.train.pool import RunData
from fastqat.train.report import pick_pictures, write_comparison, write_report
from fastqat.train.stage import StageState

# What the numbers of a run come from; rows in bench/results are written while it goes on.
_CODE = ("fastqat", "csrc", "bench/*.py", "setup.py", "pyproject.toml")
SUSPECTS = 48  # pictures of suspicious labels: six rows of eight


def selection_arrays(policy: SelectionPolicy, data: RunData) -> dict[str, np.ndarray]:
    """Arrays of one selection file: ``indices`` (best first), ``labels`` of the pool, ``score_<name>`` of the pool, and under label noise
    ``wrong``, which labels of the pool were replaced."""
    assert policy.selection is not None
    scores = {} if policy.table is None else {f"score_{name}": policy.table[name].numpy() for name in policy.table}
    wrong = {} if data.wrong is None else {"wrong": data.wrong.numpy()}
    return {"indices": policy.selection.indices.numpy(), "labels": data.labels.numpy(), **wrong, **scores}


def save_pictures(folder: RunFolder, data: RunData, say: Callable[[str], None]) -> None:
    """``pictures.npz``: what was chosen and dropped first, at the first and the last selection that have scores."""
    scored = [arrays for arrays in folder.read_selections(say) if any(name.startswith("score_") for name in arrays)]
    if not scored or len(data.input_shape) != 3:
        return
    index: set[int] = set()
    for arrays in (scored[0], scored[-1]):
        scores = {name.removeprefix("score_"): values for name, values in arrays.items() if name.startswith("score_")}
        index.update(int(i) for i in pick_pictures(arrays["indices"], scores))
    chosen = sorted(index)
    folder.write_pictures({"index": np.array(chosen), "x": np.stack([_picture(data, i) for i in chosen])})


def save_label_issues(folder: RunFolder, data: RunData, table: ScoreTable, method: LabelMethod) -> None:
    """``label_issues.npz``: the labels of the pool that are probably wrong, the most suspicious first, with pictures of the first."""
    issues = find_label_issues(table, method=method)
    arrays = {name: values.numpy() for name, values in zip(("index", "given", "suggested", "quality"), issues, strict=True)}
    shown = [_picture(data, int(i)) for i in arrays["index"][:SUSPECTS]] if len(data.input_shape) == 3 else []
    pictures = {"x": np.stack(shown)} if shown else {}
    folder.write_label_issues({**arrays, **pictures, "method": np.array(method)})


def _picture(data: RunData, index: int) -> np.ndarray:
    """One sample of the pool as uint8 ``[H, W, C]``; floating values are stretched to the whole range."""
    raw = data.pool.x[index] if isinstance(data.pool, TensorData) else data.pool[index][0]
    if raw.dtype != torch.uint8:
        low, high = raw.min(), raw.max()
        raw = ((raw - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    return raw.permute(1, 2, 0).cpu().numpy()


def summarise(
    config: TrainConfig,
    data: RunData,
    float_net: nn.Module,
    model: nn.Module,
    state: StageState,
    policy: SelectionPolicy,
    tests: dict[str, float | None],
) -> dict[str, Any]:
    """The content of ``summary.json``: settings that tell runs apart, results, costs, versions."""
    seen = int(state.seen.sum())
    return {
        "dataset": config.data,
        "model": config.model,
        "qconfig": config.qconfig,
        "quantizer": config.quantizer,
        "grad_factor": config.grad_factor,
        "select": config.select,
        "score": config.used_score,
        "features": config.features,
        "interval": config.interval,
        "score_source": config.score_source,
        "fraction": 1.0 if config.select == "none" else config.fraction,
        "loss": config.loss,
        "seed": config.seed,
        "float_seed": config.used_float_seed,
        "float_model": weights_name(float_net.state_dict()),
        "teacher": None if (teacher := teacher_config(config)) is None else teacher.model,
        **_noise_facts(config, state),
        **tests,
        "val_accuracy": None if state.best_accuracy < 0 else state.best_accuracy,
        "best_epoch": state.best_epoch,
        "epochs": config.epochs,
        "gradient_steps": state.steps,
        "scoring_forwards": policy.scoring_forwards,
        "unique_samples": seen,
        "seconds": state.seconds,
        "selection_seconds": policy.selection_seconds,
        "params": count_parameters(model),
        "class_names": list(data.class_names),
        "commit": source_commit(),
        "torch": torch.__version__,
        "fastqat": fastqat.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and config.device != "cpu" else "cpu",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "jobs": config.jobs,
        "processes": world().size,
    }


def _noise_facts(config: TrainConfig, state: StageState) -> dict[str, Any]:
    """What was wrong with the labels, which models may have seen the right ones, and what share of the samples trained on had a wrong one:
    in the last epoch, and the mean over the epochs."""
    if not config.label_noise:
        return {"label_noise": 0.0}
    shares = [row["noisy_selected"] for row in state.rows]
    return {
        "label_noise": config.label_noise,
        "label_noise_type": config.label_noise_type,
        "oracle_teacher": config.oracle_teacher,
        "oracle_models": list(config.oracle_models),
        "noisy_selected": shares[-1] if shares else None,
        "noisy_selected_mean": sum(shares) / len(shares) if shares else None,
    }


@functools.cache
def source_commit() -> str | None:
    """The commit of the source tree, with ``-dirty`` where its code differs from that; None for an installed package or without git.

    The answer is that of the first call: a process that lives for hours says which code it has imported, not what was committed since.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    return commit and commit + "-dirty" * bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", *_CODE))


def _git(root: Path, *words: str) -> str | None:
    """What git says; None when it fails. It takes no lock: another git may be at work."""
    try:
        found = subprocess.run(["git", "--no-optional-locks", *words], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def write_page(folder: RunFolder, say: Callable[[str], None]) -> None:
    """``report.html``; where it cannot be drawn (no matplotlib) that is said, and the run is no failure."""
    _say_page("report", lambda: write_report(folder.path), say)


def write_comparison_page(run_dirs: Sequence[Path], path: Path, say: Callable[[str], None]) -> None:
    """One page that compares runs; where it cannot be drawn (no matplotlib) that is said."""
    _say_page("comparison", lambda: write_comparison(run_dirs, path), say)


def _say_page(what: str, write: Callable[[], Path], say: Callable[[str], None]) -> None:
    try:
        say(f"{what}: {write()}")
    except FastqatError as error:
        say(f"no {what}: {error}")
