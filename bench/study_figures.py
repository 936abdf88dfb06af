"""Every figure that there are rows for, by study and name, and how it is kept."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fastqat._files import atomic_path
from fastqat.train.report.drawing import Drawing, style

from .landscape import OUT as LANDSCAPE
from .rows import read_rows
from .run_figures import drift_figure, landscape_figure
from .score_drift import OUT as DRIFT
from .study_against import against
from .study_curves import curves, seconds
from .study_dots import dots
from .study_groups import Comparison, usual
from .study_rows import Row, Study, read_studies

# Figures of a study about ways of choosing data.
OF_WAYS: dict[str, Callable[[Study, Comparison], Drawing | None]] = {
    "dots": dots,
    "fraction": partial(against, axis="fraction"),
    "noise": partial(against, axis="label_noise"),
    "curves": curves,
    "seconds": seconds,
}
FIGURE_NAMES = (*OF_WAYS, "correction", "drift", "landscape")
COLORS, DPI = 64, 100  # for pictures that stay small in the repository


@dataclass(frozen=True)
class Evidence:
    """All rows: `studies` by name, `drift` and `landscape` of single runs."""

    studies: dict[str, Study] = field(default_factory=dict)
    drift: list[Row] = field(default_factory=list)
    landscape: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """The rows in `folder`; a file that is not there has none."""
        runs = [read_rows([path]) if (path := folder / name).is_file() else [] for name in (DRIFT.name, LANDSCAPE.name)]
        return cls(read_studies(folder), *runs)

    @property
    def names(self) -> list[str]:
        """Every study that has rows of any kind."""
        return sorted({*self.studies, *(row["study"] for row in (*self.drift, *self.landscape))})

    def drawings(self, name: str) -> dict[str, Drawing]:
        """Name → figure of the study `name`; what has no rows is left out."""
        study = self.studies.get(name)
        how = usual(study) if study else None
        found = {kind: draw(study, how) for kind, draw in OF_WAYS.items()} if study and how else {}
        if study:
            found["correction"] = dots(study.where({"loss": ["kd", "kd_clc"]}), Comparison.of({"loss": "kd"}))
        found["drift"] = drift_figure([row for row in self.drift if row["study"] == name])
        found["landscape"] = landscape_figure([row for row in self.landscape if row["study"] == name])
        return {kind: drawing for kind, drawing in found.items() if drawing is not None}


def draw_all(evidence: Evidence, folder: Path) -> list[Path]:
    """Write every figure to ``<study>_<name>.png`` in `folder`, and remove pictures there that have no rows any more."""
    written = []
    for study in evidence.names:
        with style():
            for name, drawing in evidence.drawings(study).items():
                written.append(folder / f"{study}_{name}.png")
                save_small(drawing.figure, written[-1])
    for path in set(folder.glob("*.png")) - set(written):
        path.unlink()
    return written


def save_small(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG with a palette of its own: lines and text need few colours, and the file is a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    with atomic_path(path) as part, Image.open(buffer) as picture:
        picture.convert("RGB").quantize(COLORS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            part, format="png", optimize=True
        )
