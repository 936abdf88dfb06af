"""Run directories as the trainer writes them, made up for the tests of the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from fastqat.train.report import pick_pictures

POOL, CLASSES = 300, 10
COLUMNS = (
    *("stage", "epoch", "steps", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("samples_per_second", "seconds", "selection_seconds", "selected", "reselected", "beta"),
)


def metric_rows(float_epochs: int, qat_epochs: int, interval: int) -> list[dict[str, object]]:
    rows = []
    for stage, epochs in (("float", float_epochs), ("qat", qat_epochs)):
        for epoch in range(epochs):
            good = 0.93 - 0.5 * np.exp(-(epoch + 1) / 4) - (0.03 if stage == "qat" else 0)
            loss = {"train_loss": 1.3 - good, "val_loss": 1.1 - good, "train_accuracy": good - 0.02, "val_accuracy": good}
            again = int(stage == "qat" and epoch % interval == 0)
            time = {"samples_per_second": 5000, "seconds": 1.5 * epoch, "selection_seconds": 0.1 * epoch, "steps": 3 * (epoch + 1)}
            chosen = {"selected": 30, "reselected": again, "lr": 0.01, "beta": "" if stage == "float" else 0.5}
            rows.append({"stage": stage, "epoch": epoch, **loss, **time, **chosen})
    return rows


def write_metrics(run: Path, rows: list[dict[str, object]]) -> None:
    with (run / "metrics.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_selections(run: Path, epochs: list[int]) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(POOL) % CLASSES
    base = generator.gamma(1.0, 0.3, POOL)
    pictures: set[int] = set()
    (run / "selections").mkdir()
    for epoch in epochs:
        acs = (base + 0.05 * epoch * generator.random(POOL)).astype(np.float32)
        indices = np.argsort(-acs, kind="stable")[: POOL // 10]
        scores = {"score_acs": acs, "score_evs": acs * 1.2, "score_ds": generator.random(POOL).astype(np.float32)}
        np.savez(run / "selections" / f"epoch_{epoch:04d}.npz", indices=indices, labels=labels, **scores)
        pictures |= set(pick_pictures(indices, {name.removeprefix("score_"): value for name, value in scores.items()}))
    index = np.array(sorted(pictures))
    np.savez(run / "pictures.npz", x=generator.integers(0, 255, (len(index), 8, 8, 1), dtype=np.uint8), index=index)


CONFIG = "data: digits\nmodel: resnet8\nqconfig: w2a32\nselect: {select}\nfraction: 0.1\nloss: ce\nseed: 0\n"
SUMMARY = {
    **{
        "float_accuracy": 0.94,
        "val_accuracy": 0.91,
        "best_epoch": 11,
        "best_test_accuracy": 0.8975,
        "gradient_steps": 36,
        "unique_samples": 61,
    },
    **{"seconds": 70.0, "selection_seconds": 7.0, "params": 78042, "torch": "2.13.0", "commit": "abc1234"},
}


def make_run(
    folder: Path,
    *,
    float_epochs: int = 4,
    qat_epochs: int = 12,
    selections: tuple[int, ...] = (0, 5, 10),
    done: bool = True,
    test: float = 0.905,
) -> Path:
    """A run directory as the trainer writes it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(select="acs" if selections else "none"))
    if float_epochs + qat_epochs:
        write_metrics(folder, metric_rows(float_epochs, qat_epochs, 5))
    if selections:
        write_selections(folder, list(selections))
    if done:
        (folder / "summary.json").write_text(json.dumps({**SUMMARY, "test_accuracy": test}))
    return folder
