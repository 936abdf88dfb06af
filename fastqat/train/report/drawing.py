"""How our figures look: style, size and colours, and a figure as PNG bytes."""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastqat._files import atomic_path

# Okabe and Ito's colours: told apart by colour-blind readers and in a grey print.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#C3CAD3", "#1F2933"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#6B7280", "#8C6D31")
STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9AA5B1",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9EDF1",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "font.size": 10,
    "text.color": INK,
    "xtick.color": "#52606D",
    "ytick.color": "#52606D",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
WIDTH = 9.6  # inches: the width of the page
DPI = 140


@dataclass(frozen=True)
class Drawing:
    """A figure and the sentences that say what one sees in it."""

    figure: Figure
    caption: str


def style() -> AbstractContextManager[None]:
    """matplotlib's settings for our figures, for the length of a block."""
    settings: Any = STYLE
    return matplotlib.rc_context(settings)


def new_figure(height: float, columns: int = 1, rows: int = 1, layout: Any = "constrained", **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of the page's width and its axes [rows, columns]; drawn by Agg, so that no display is needed."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_png(figure: Figure, path: Path) -> str:
    """Write `figure` to `path` and return the same bytes as a data URI for an HTML page."""
    with atomic_path(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
