"""The labels that are probably wrong, as a grid of pictures."""

from __future__ import annotations

from fastqat.train.report.drawing import Drawing, new_figure
from fastqat.train.report.folder import Run
from fastqat.train.report.selection import class_name, show

COLUMNS = 8

MEASURES = {
    "aum": "the mean margin of the label over the training of the float model (AUM, below 0: another class was ahead on average)",
    "confident": "the probability of the label by a model that has not seen the sample (`fastqat score --folds`)",
}


def suspicious_labels(run: Run) -> Drawing | None:
    """The most suspicious first: given label, the label that the model suggests, and the measure."""
    found = run.label_issues
    pictures = found.get("x")
    if pictures is None or not len(pictures):
        return None
    rows = -(-len(pictures) // COLUMNS)
    figure, axes = new_figure(1.55 * rows, columns=COLUMNS, rows=rows)
    for panel in axes.flat:
        panel.set_axis_off()
    facts = zip(found["given"], found["suggested"], found["quality"], strict=True)
    for panel, picture, (given, suggested, quality) in zip(axes.flat, pictures, facts, strict=False):
        show(panel, picture)
        names = " → ".join(class_name(run, int(label)) if label >= 0 else "?" for label in (given, suggested))
        panel.set_title(f"{names}\n{quality:.2f}", fontsize=8, fontweight="normal", loc="center", pad=3)
    measure = MEASURES.get(str(found.get("method")), "how well the label fits")
    return Drawing(
        figure,
        f"The {len(pictures):,} most suspicious of {len(found['given']):,} labels that are probably wrong, in reading order. Above each "
        f"picture: its label → the label that the model suggests, and {measure}. Not all of them are wrong: some are only hard.",
    )
