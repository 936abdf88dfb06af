"""Every figure of a report, drawn, saved and ready to be put into a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastqat.train.report import curves, labels, selection
from fastqat.train.report.drawing import Drawing, save_png, style
from fastqat.train.report.folder import Run

# file stem, heading, what draws it (None: the run has no data for it)
FIGURES: tuple[tuple[str, str, Callable[[Run], Drawing | None]], ...] = (
    ("curves", "Training", curves.curves),
    ("pictures", "Chosen and dropped", selection.pictures),
    ("classes", "Classes", selection.class_share),
    ("scores", "Scores", selection.histograms),
    ("drift", "Drift", selection.drift),
    ("labels", "Suspicious labels", labels.suspicious_labels),
)


@dataclass(frozen=True)
class Saved:
    """A figure on disk: its file stem, heading, caption and its bytes as a data URI."""

    stem: str
    title: str
    caption: str
    uri: str


def draw_run(run: Run) -> list[Saved]:
    """Write the figures of `run` into its folder ``figures/``; those without data are left out."""
    saved = (_save(partial(build, run), stem, title, run.path / "figures") for stem, title, build in FIGURES)
    return [figure for figure in saved if figure is not None]


def draw_comparison(runs: Sequence[Run], page_path: Path) -> Saved | None:
    """Write the curves of all `runs` beside the page they belong to; None when no run has a validated epoch."""
    return _save(partial(curves.overlay, runs), f"{page_path.stem}_curves", "Training", page_path.parent)


def _save(build: Callable[[], Drawing | None], stem: str, title: str, folder: Path) -> Saved | None:
    with style():
        drawing = build()
        if drawing is None:
            return None
        return Saved(stem, title, drawing.caption, save_png(drawing.figure, folder / f"{stem}.png"))
