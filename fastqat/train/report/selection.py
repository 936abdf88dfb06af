"""Figures of what was selected: per class, by score, from one selection to the next, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fastqat.train.report.drawing import BLUE, CYCLE, GREEN, GREY, INK, ORANGE, Drawing, new_figure
from fastqat.train.report.folder import Run, SelectionRecord
from fastqat.train.report.selection_facts import PICTURES, chosen_and_dropped, class_shares, kept_shares, leading_score, rank_correlation

COLUMNS = 24  # most selections that the class table shows
SCORE_ROWS = 6

SCORE_NAMES = {
    "acs": "ACS score (blend of EVS and DS)",
    "evs": "EVS (error vector score)",
    "ds": "DS (disagreement with the float model)",
    "res": "RES (relative entropy to the float model)",
    "el2n": "EL2N (error norm)",
    "loss": "loss",
    "entropy": "entropy of the prediction",
    "confidence": "confidence",
    "margin": "margin of the best class",
}


def class_share(run: Run) -> Drawing | None:
    """A table class × selection, coloured by the selected part of the class."""
    if not run.selections:
        return None
    records = _spread(run.selections, COLUMNS)
    shares = class_shares(records)
    classes = len(shares)
    figure, axes = new_figure(min(1.1 + 0.3 * classes, 6.5))
    panel = axes[0, 0]
    part = 100 * len(records[0].indices) / max(len(records[0].labels), 1)
    top = max(float(np.nanmax(shares)), 2 * part)  # a balanced selection gets the middle of the scale
    image = panel.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
    panel.grid(False)
    panel.set(xlabel="epoch of the selection", ylabel="class", title="Selected part of each class (%)")
    panel.set_xticks(range(len(records)), [str(record.epoch + 1) for record in records])
    panel.set_yticks(range(0, classes, max(1, classes // 20)))
    figure.colorbar(image, ax=panel, pad=0.01)
    if classes <= 20 and len(records) <= 16:
        _write_cells(panel, shares, top)
    caption = (
        f"How much of each class was selected, at each selection. Over all classes it is {part:.3g} %. One even colour means that the "
        "selection is balanced over the classes; a darker row is a class that the scores find harder."
    )
    if len(records) < len(run.selections):
        caption += f" Shown are {len(records)} of {len(run.selections)} selections, evenly spaced."
    return Drawing(figure, caption)


def _spread(records: Sequence[SelectionRecord], most: int) -> list[SelectionRecord]:
    """At most `most` records, evenly spaced, the first and the last among them."""
    positions = np.unique(np.linspace(0, len(records) - 1, min(most, len(records))).round().astype(int))
    return [records[i] for i in positions]


def _write_cells(panel: Axes, shares: np.ndarray, top: float) -> None:
    for row, column in np.argwhere(np.isfinite(shares)):
        value = shares[row, column]
        text = f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"
        panel.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if value > 0.65 * top else INK)


def histograms(run: Run) -> Drawing | None:
    """Each score over the pool with the selected part marked: at its first selection left, at its last right."""
    records = [record for record in run.selections if record.scores]
    if not records:
        return None
    names = _ordered_names(records[-1])[:SCORE_ROWS]
    ends = {name: _ends([record for record in records if name in record.scores]) for name in names}
    columns = max(map(len, ends.values()))
    figure, axes = new_figure(0.7 + 2.2 * len(names), columns=columns, rows=len(names))
    for panels, (name, pair) in zip(axes, ends.items(), strict=True):
        edges = _edges(np.concatenate([record.scores[name] for record in pair]))
        for panel, record in zip(panels, pair, strict=False):
            _histogram(panel, record, name, edges)
        for panel in panels[len(pair) :]:
            panel.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    caption = (
        "How the scores are spread over the training pool (grey) and which part was selected (blue)"
        + (": the first selection on the left, the last on the right" if columns > 1 else "")
        + ". The count is on a logarithmic axis, so that a small selected part stays visible. The score that the selection followed most "
        "closely comes first; where the selection is balanced over the classes, blue and grey overlap."
    )
    return Drawing(figure, caption)


def _ends(records: Sequence[SelectionRecord]) -> list[SelectionRecord]:
    """The first and the last, or the only one."""
    return [records[0], records[-1]] if len(records) > 1 else list(records)


def _ordered_names(record: SelectionRecord) -> list[str]:
    leader = leading_score(record.chosen, record.scores)
    first = leader[0] if leader else ""
    return sorted(record.scores, key=lambda name: (name != first, name))


def _edges(values: np.ndarray) -> list[float]:
    finite = values[np.isfinite(values)].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1, 41).tolist()


def _histogram(panel: Axes, record: SelectionRecord, name: str, edges: list[float]) -> None:
    values = record.scores[name].astype(float)
    finite = np.isfinite(values)
    panel.hist(values[finite], bins=edges, color=GREY, label="whole pool")
    panel.hist(values[finite & record.chosen], bins=edges, color=BLUE, label="selected")
    panel.set_yscale("log")
    panel.set_ylim(bottom=0.7)
    panel.set(title=f"{SCORE_NAMES.get(name, name)}, epoch {record.epoch + 1}", ylabel="samples")


def drift(run: Run) -> Drawing | None:
    """Rank correlation of each score, and overlap of the selected sets, between successive selections."""
    if len(run.selections) < 2:
        return None
    correlations = {name: points for name in _ordered_names(run.selections[-1]) if (points := _correlations(run.selections, name))}
    figure, axes = new_figure(4.0, columns=2 if correlations else 1, sharex=True)
    _draw_overlap(axes[0, -1], run.selections)
    if correlations:
        panel = axes[0, 0]
        for (name, points), color in zip(correlations.items(), CYCLE, strict=False):
            panel.plot(*zip(*points, strict=True), "o-", ms=4, color=color, label=name)
        panel.set_title("Rank correlation with the previous selection")
        panel.set_ylim(min(0.0, panel.get_ylim()[0]), 1.03)
    for panel in axes[0]:
        panel.set_xlabel("epoch of the selection")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return Drawing(figure, _drift_caption(bool(correlations)))


def _correlations(records: Sequence[SelectionRecord], name: str) -> list[tuple[int, float]]:
    """(epoch, rank correlation with the selection before) where both have the score."""
    pairs = [(a, b) for a, b in pairwise(records) if name in a.scores and name in b.scores]
    return [(b.epoch + 1, rank_correlation(a.scores[name], b.scores[name])) for a, b in pairs]


def _draw_overlap(panel: Axes, records: Sequence[SelectionRecord]) -> None:
    shares, epochs = kept_shares(records), [record.epoch + 1 for record in records]
    panel.plot(epochs, shares["previous"], "o-", ms=4, color=BLUE, label="kept from the previous selection")
    panel.plot(epochs, shares["first"], "o-", ms=4, color=ORANGE, label="kept from the first selection")
    panel.plot(epochs, shares["ever"], "o-", ms=4, color=GREEN, label="part of the pool ever selected")
    chance = 100 * len(records[-1].indices) / max(len(records[-1].labels), 1)
    panel.axhline(chance, color="#7B8794", ls="--", lw=1, label="overlap of two random draws")
    panel.set(ylim=(0, 103), title="Overlap of the selected sets (%)")


def _drift_caption(scored: bool) -> str:
    overlap = (
        "How many of the selected samples were already in the previous or the first selection, against what chance alone would keep "
        "(dashed), and how much of the pool has been used at least once."
    )
    if not scored:
        return overlap
    return (
        "Left: do the scores still rank the samples in the same order as at the selection before? 1 means the same order, 0 an unrelated "
        "one. Right: " + overlap[0].lower() + overlap[1:]
    )


def pictures(run: Run) -> Drawing | None:
    """What was chosen first and what was dropped first, at the first and the last selection."""
    if not run.selections or not run.pictures:
        return None
    rows = [row for record in dict.fromkeys((0, len(run.selections) - 1)) for row in _picture_rows(run, run.selections[record])]
    if not rows:
        return None
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 0.96), hspace=0.3)
    figure, axes = new_figure(1.25 * len(rows), columns=PICTURES, rows=len(rows), layout=layout)
    for panels, (title, indices, record, score) in zip(axes, rows, strict=True):
        heading = panels[0].text(0, 1.32, title, transform=panels[0].transAxes, fontsize=10.5, fontweight="bold", ha="left")
        heading.set_in_layout(False)  # wider than its column, which must not grow
        for panel, index in zip(panels, [*indices, *[None] * (PICTURES - len(indices))], strict=True):
            panel.set_axis_off()
            if index is not None:
                show(panel, run.pictures[index])
                worth = f" ({record.scores[score][index]:.2f})" if score else ""
                label = class_name(run, int(record.labels[index]))
                panel.set_title(label + worth, fontsize=8, fontweight="normal", loc="center", pad=3)
    return Drawing(figure, _pictures_caption(any(row[3] for row in rows)))


def _picture_rows(run: Run, record: SelectionRecord) -> list[tuple[str, list[int], SelectionRecord, str]]:
    """(title, pool indices that have a picture, selection, leading score) for the two rows of one selection; empty rows left out."""
    first, dropped = chosen_and_dropped(record.indices, record.scores, PICTURES)
    leader = leading_score(record.chosen, record.scores)
    rows = []
    for title, wanted in (("chosen first", first), ("dropped first", dropped)):
        known = [index for index in wanted if index in run.pictures]
        if known:
            rows.append((f"Epoch {record.epoch + 1}: {title}", known, record, leader[0] if leader else ""))
    return rows


def class_name(run: Run, label: int) -> str:
    """The name of a class, cut to ten letters; its number where it has none."""
    names = run.fact("class_names")
    return str(names[label])[:10] if isinstance(names, list) and 0 <= label < len(names) else str(label)


def show(panel: Axes, picture: np.ndarray) -> None:
    """Draw one picture, uint8 ``[H, W]`` or ``[H, W, C]``."""
    grey = picture.ndim == 2 or picture.shape[-1] == 1
    shown = picture.reshape(picture.shape[:2]) if grey else picture[..., :3]
    panel.imshow(shown, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")


def _pictures_caption(scored: bool) -> str:
    text = "The samples that the selection took first, and those that it dropped first. Above each picture: its label"
    text += " and, in brackets, the score that the selection followed. " if scored else ". "
    return (
        text + "Samples chosen first are often unusual, ambiguous or wrongly labelled; those dropped first are typical and already learned."
    )
