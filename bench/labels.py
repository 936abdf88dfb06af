"""How well planted label errors are found, beside cleanlab: a row per rule, noise rate and seed.

    python -m bench.labels --seeds 1

Noise is symmetric: that share of the training labels, drawn at random, becomes another class, each other class as likely. One training
on all the samples is recorded for ``aum``, ``loss`` and ``self_confidence``, a second one with threshold samples; one cross-validation
gives the out-of-sample probabilities that ``confident``, ``self_confidence`` and cleanlab judge by, the same for all. ``auc``: the chance
that a right label has a better quality than a wrong one; ``r_precision``: the share of wrong labels among as many of the lowest quality as
there are wrong ones. Both say how good the order is, whatever the rule flags.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat._files import write_atomic
from fastqat.data import TensorData, load, stratified_subset
from fastqat.selection import DynamicsRecorder, ScoreTable, find_label_issues, label_quality, out_of_sample, threshold_labels

from .case import needs_package
from .machine import this_machine
from .rows import RESULTS

SETTINGS = {"digits": {"samples": 1438, "epochs": 12}, "fashion-mnist": {"samples": 4000, "epochs": 12}}
NOISE = (0.0, 0.1, 0.2)
CLASSES, FOLDS, BATCH = 10, 5, 64
CLEANLAB = ("prune_by_noise_rate", "confident_learning", "predicted_neq_given")  # the first is its default


class Planted(NamedTuple):
    """A data set with wrong labels: `data` carries them, `true` the right ones, `wrong` says which are which."""

    data: TensorData
    true: Tensor
    wrong: Tensor


def planted(name: str, noise: float, seed: int) -> Planted:
    """A stratified part of the training set, `noise` of its labels wrong."""
    whole = load(name).train
    assert isinstance(whole, TensorData)
    part = whole.subset(stratified_subset(whole.y, SETTINGS[name]["samples"], seed))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(part), generator=generator)[: round(noise * len(part))]
    wrong = torch.zeros(len(part), dtype=torch.bool).index_fill(0, chosen, True)
    shifted = (part.y + torch.randint(1, CLASSES, part.y.shape, generator=generator)) % CLASSES
    return Planted(TensorData(part.x, torch.where(wrong, shifted, part.y), part.mean, part.std), part.y, wrong)


def train(data: TensorData, epochs: int, seed: int, recorder: DynamicsRecorder | None = None, classes: int = CLASSES) -> nn.Module:
    """Three convolutions, one-cycle SGD; batches in an order of the seed."""
    torch.manual_seed(seed)
    widths = (data.x.shape[1], 16, 32, 32)
    layers = [
        (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2) if b == 16 or a == 16 else nn.Identity())
        for a, b in itertools.pairwise(widths)
    ]
    model = nn.Sequential(*itertools.chain(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(data) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(data))
        for index, (x, y) in zip(order.split(BATCH), data.batches(BATCH, order[: steps * BATCH]), strict=False):
            logits = model(x)
            if recorder is not None:
                recorder.update(index, logits, y)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            schedule.step()
    return model


def auc(quality: Tensor, wrong: Tensor) -> float | None:
    """The chance that a right label has a better quality than a wrong one, ties counted half."""
    if not wrong.any():
        return None
    _, place, counts = quality.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[place]
    right = int((~wrong).sum())
    return float((ranks[~wrong].sum() - right * (right + 1) / 2) / (right * int(wrong.sum())))


def found(indices: Tensor, suggested: Tensor | None, quality: Tensor, case: Planted, judged: Tensor) -> dict[str, Any]:
    """The numbers of one rule: `indices` are what it flagged among the samples that it `judged`."""
    hits = case.wrong[indices]
    wrong = int((case.wrong & judged).sum())
    named = None if suggested is None or not hits.any() else float((suggested == case.true[indices])[hits].float().mean())
    return {
        "flagged": len(indices),
        "precision": float(hits.float().mean()) if wrong and len(indices) else None,
        "recall": int(hits.sum()) / wrong if wrong else None,
        "auc": auc(quality[judged], case.wrong[judged]),
        "r_precision": float(case.wrong[judged][quality[judged].argsort(stable=True)[:wrong]].float().mean()) if wrong else None,
        "suggested_right": named,
    }


def ours(table: ScoreTable, method: str, case: Planted, threshold_samples: Tensor | None = None) -> dict[str, Any]:
    """One rule of `find_label_issues`."""
    judged = torch.ones_like(case.wrong)
    if threshold_samples is not None:
        judged[threshold_samples] = False
    start = time.perf_counter()
    issues = find_label_issues(table, method=method, threshold_samples=threshold_samples)
    seconds = time.perf_counter() - start
    return {**found(issues.indices, issues.suggested, label_quality(table, method=method), case, judged), "find_seconds": seconds}


def cleanlab_rows(table: ScoreTable, case: Planted) -> Iterator[tuple[str, dict[str, Any]]]:
    """cleanlab's rules on the same out-of-sample probabilities; its quality is the self-confidence."""
    if reason := needs_package("cleanlab")():
        print(f"cleanlab: {reason}")
        return
    from cleanlab.filter import find_label_issues as find
    from cleanlab.rank import get_label_quality_scores

    p, y = table.features.double().numpy(), case.data.y.numpy()
    quality = torch.from_numpy(get_label_quality_scores(y, p))
    for rule in CLEANLAB:
        start = time.perf_counter()
        indices = find(y, p, filter_by=rule, return_indices_ranked_by="self_confidence", n_jobs=1)
        seconds = time.perf_counter() - start
        numbers = found(torch.from_numpy(indices.copy()).long(), None, quality, case, torch.ones_like(case.wrong))
        yield f"cleanlab {rule}", {**numbers, "find_seconds": seconds}


def rows_of(name: str, noise: float, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule on one case, by name."""
    case, epochs = planted(name, noise, seed), SETTINGS[name]["epochs"]
    recorder = DynamicsRecorder(len(case.data))
    train(case.data, epochs, seed, recorder)
    recorded = recorder.table()
    for method in ("aum", "loss", "self_confidence"):
        yield f"recorded {method}", ours(recorded, method, case)
    chosen, extended = threshold_labels(case.data.y, seed=seed)
    recorder = DynamicsRecorder(len(case.data))
    train(TensorData(case.data.x, extended, case.data.mean, case.data.std), epochs, seed, recorder, CLASSES + 1)
    yield "recorded aum, threshold samples", ours(recorder.table(), "aum", case, chosen)
    held = out_of_sample(lambda index, fold: train(case.data.subset(index), epochs, seed), case.data, FOLDS, seed=seed, progress=False)
    for method in ("confident", "self_confidence"):
        yield f"out of sample {method}", ours(held, method, case)
    yield from cleanlab_rows(held, case)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write all rows in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--noise", nargs="+", type=float, default=list(NOISE))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "labels.csv")
    args = parser.parse_args()
    machine = this_machine()
    facts = {key: getattr(machine, key) for key in ("time", "commit", "torch", "cpu", "threads")}
    rows = []
    for name, noise, seed in itertools.product(args.data, args.noise, range(args.seeds)):
        for rule, numbers in rows_of(name, noise, seed):
            told = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in numbers.items()}
            rows.append({"dataset": name, "noise": noise, "seed": seed, "rule": rule, **told, **SETTINGS[name], "folds": FOLDS, **facts})
            print(name, noise, seed, rule, *(f"{key} {value}" for key, value in told.items()), flush=True)
        save(rows, args.out)


if __name__ == "__main__":
    main()
