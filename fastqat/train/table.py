"""The table at the end of a run, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fastqat.selection.labels import find_label_issues
from fastqat.selection.reweighting import reweighting_line
from fastqat.selection.table import ScoreTable


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout; the first column left, the others right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 140).print(table)


def print_scores(table: ScoreTable) -> None:
    """The range of every score, and of gradient norms what reweighting by them could gain."""
    shown = {name: table[name].double() for name in table}  # torch.quantile takes at most 16 million values
    ranked = {name: values.sort().values for name, values in shown.items()}
    rows = [
        (name, *(f"{values[round(q * (len(values) - 1))]:.4f}" for q in (0.0, 0.5, 1.0)), f"{values.mean():.4f}")
        for name, values in ranked.items()
    ]
    print_table(("score", "least", "median", "most", "mean"), rows, f"{table.num_samples:,} samples")
    for name in ("grand", "grand_last"):
        if name in table:
            print(reweighting_line(name, table[name]))


def print_issues(table: ScoreTable, most: int = 20) -> None:
    """The labels that are probably wrong by out-of-sample probabilities, the most suspicious first."""
    issues = find_label_issues(table, method="confident")
    columns = (issues.indices, issues.given, issues.suggested, issues.quality)
    rows = [(str(int(i)), str(int(y)), str(int(other)), f"{p:.4f}") for i, y, other, p in zip(*(c[:most] for c in columns), strict=True)]
    title = f"{len(issues.indices):,} of {table.num_samples:,} labels are suspicious"
    print_table(("index", "label", "suggested", "probability of the label"), rows, title)


def print_summary(summary: dict[str, Any]) -> None:
    """Accuracies and costs of one run."""
    percent = {key: "-" if summary[key] is None else f"{100 * summary[key]:.2f} %" for key in summary if key.endswith("_accuracy")}
    best = "" if summary["best_epoch"] < 0 else f" (epoch {summary['best_epoch'] + 1})"
    selecting = summary["selection_seconds"] / summary["seconds"] if summary["seconds"] else 0.0
    rows = [
        ("test accuracy, float model", percent["float_accuracy"]),
        *([("test accuracy, teacher", percent["teacher_accuracy"])] if "teacher_accuracy" in percent else []),
        ("test accuracy, last epoch", percent["test_accuracy"]),
        (f"test accuracy, best on validation{best}", percent["best_test_accuracy"]),
        ("validation accuracy, best", percent["val_accuracy"]),
        *(
            [("wrong labels trained on, last epoch", f"{100 * wrong:.1f} %")]
            if (wrong := summary.get("noisy_selected")) is not None
            else []
        ),
        ("gradient steps", f"{summary['gradient_steps']:,}"),
        ("unique samples trained on", f"{summary['unique_samples']:,}"),
        ("samples scored", f"{summary['scoring_forwards']:,}"),
        ("seconds (of them selecting)", f"{summary['seconds']:.1f} ({100 * selecting:.0f} %)"),
    ]
    title = f"{summary['model']} on {summary['dataset']}, {summary['qconfig']}, select {summary['select']}, loss {summary['loss']}"
    print_table(("", "result"), rows, title)
