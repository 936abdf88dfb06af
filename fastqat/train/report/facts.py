"""What a report says in words and numbers: headline, sentence, table rows, warnings, how to run it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastqat.train.report import page
from fastqat.train.report.folder import Run, series

SELECT_WORDS = {
    "none": "trained on all of the training data",
    "random": "trained on a random {part} of the training data",
    "rs2": "trained on a random {part} of the training data, drawn afresh every epoch (RS2)",
    "acs": "trained on the {part} of the training data that adaptive coreset selection (ACS) picked",
    "quarc": "trained on the {part} of the training data that the scores of QuaRC picked",
}
TABLE_CAPTION = (
    "Test: accuracy on the test set, read once, with the weights of the last epoch. Validation: the best epoch. Change: test accuracy "
    "against the float model of the same run, in percentage points. Steps and time are those of the quantized model. Selecting: the "
    "part of the time spent on choosing samples."
)


def percent(value: Any, digits: int = 2) -> str:
    """A fraction of 1 as a percentage: ``percent(0.9123)`` is ``"91.23 %"``."""
    return "–" if not _known(value) else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    return f"{'−' if round(100 * value, 2) < 0 else '+'}{abs(100 * value):.2f}"


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if not _known(value) else f"{int(value):,}".replace(",", "\u2009")


def duration(seconds: Any) -> str:
    """Seconds as people say them: ``"42 s"``, ``"3 min 05 s"``, ``"2 h 10 min"``."""
    if not _known(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _last(run: Run, key: str) -> float | None:
    """The last known value of a metric of the quantized stage, or of the float stage when there is no other."""
    values = [value for value in series(run.stage("qat") or run.rows, key) if math.isfinite(value)]
    return float(values[-1]) if values else None


def row(run: Run) -> dict[str, Any]:
    """The facts of one run by name; None where the run does not say."""
    best = max((value for value in series(run.stage("qat"), "val_accuracy") if math.isfinite(value)), default=None)
    found = {"run": run.name, "finished": run.finished, "val_accuracy": run.fact("val_accuracy", best)}
    for key in ("seconds", "selection_seconds"):
        found[key] = run.fact(key, _last(run, key))
    found["gradient_steps"] = run.fact("gradient_steps", _last(run, "steps"))
    found["noisy_selected"] = run.fact("noisy_selected", _last(run, "noisy_selected"))
    found["dataset"] = run.fact("dataset", run.fact("data"))
    found["fraction"] = 1.0 if run.fact("select") == "none" else run.fact("fraction")
    return {name: found[name] if name in found else run.fact(name) for name in COLUMNS}


def _change(facts: dict[str, Any]) -> str:
    test, float_accuracy = facts["test_accuracy"], facts["float_accuracy"]
    return points(test - float_accuracy) if _known(test) and _known(float_accuracy) else "–"


def _text(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda facts: "–" if facts[key] is None else str(facts[key])


def _selecting(facts: dict[str, Any]) -> str:
    seconds, selecting = facts["seconds"], facts["selection_seconds"]
    return percent(selecting / seconds, 1) if _known(selecting) and _known(seconds) and seconds > 0 else "–"


COLUMNS = (
    *("run", "finished", "dataset", "model", "qconfig", "select", "fraction", "loss", "seed"),
    *("label_noise", "oracle_teacher", "oracle_models", "noisy_selected", "float_accuracy", "val_accuracy", "test_accuracy", "best_epoch"),
    *("gradient_steps", "scoring_forwards", "unique_samples"),
    *("seconds", "selection_seconds", "params", "commit", "torch", "fastqat"),
)
# heading → text of a row's facts
READABLE: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": _text("run"),
    "data": _text("dataset"),
    "model": _text("model"),
    "bits": _text("qconfig"),
    "select": _text("select"),
    "fraction": lambda facts: f"{100 * facts['fraction']:.3g} %" if _known(facts["fraction"]) else "–",
    "loss": _text("loss"),
    "seed": _text("seed"),
    "float": lambda facts: percent(facts["float_accuracy"]),
    "validation": lambda facts: percent(facts["val_accuracy"]),
    "test": lambda facts: percent(facts["test_accuracy"]),
    "change": _change,
    "wrong labels": lambda facts: percent(facts["noisy_selected"], 1),
    "steps": lambda facts: count(facts["gradient_steps"]),
    "unique samples": lambda facts: count(facts["unique_samples"]),
    "time": lambda facts: duration(facts["seconds"]),
    "selecting": _selecting,
}
# Left out of a comparison where all runs agree: the sentence above the table says them.
SHARED = ("data", "model", "bits", "loss", "seed")


def readable(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int | None]:
    """Header, one line of text per run, and the line with the best test accuracy (None when no run has one)."""
    rows = [row(run) for run in runs]
    columns = {title: [tell(facts) for facts in rows] for title, tell in READABLE.items()}
    kept = [title for title, cells in columns.items() if not (title in SHARED and len(set(cells)) == 1) and set(cells) != {"–"}]
    tested = [i for i, facts in enumerate(rows) if _known(facts["test_accuracy"])]
    best = max(tested, key=lambda i: rows[i]["test_accuracy"], default=None)
    return kept, [[columns[title][i] for title in kept] for i in range(len(rows))], best


def comparison_sentence(runs: Sequence[Run]) -> str:
    """What all runs have in common."""
    rows = [row(run) for run in runs]
    common = {title: READABLE[title](rows[0]) for title in SHARED if len({READABLE[title](facts) for facts in rows}) == 1}
    said = ", ".join(f"{title} {text}" for title, text in common.items() if text != "–")
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}" + (f" with the same {said}." if said else ".")


def sentence(run: Run) -> str:
    """One sentence that tells a newcomer what this run is."""
    select, fraction = str(run.fact("select", "none")), run.fact("fraction")
    words = SELECT_WORDS.get(select, f"trained on the {{part}} of the training data picked by {select}")
    how = words.format(part=f"{100 * fraction:.3g} %" if _known(fraction) else "part")
    dataset, bits = run.fact("dataset", run.fact("data")), str(run.fact("qconfig", "none"))
    what = f"{run.fact('model', 'A network')} on {dataset}" if dataset else str(run.fact("model", "A network"))
    return f"{what}, {'not quantized' if bits == 'none' else 'quantized to ' + bits.upper()}, {how}."


def warnings(run: Run) -> list[str]:
    """What a reader must know first: damage, and a run that is not finished."""
    found = list(run.notes)
    if not run.rows:
        found.insert(0, "No epoch is finished yet: the curves appear with the first one.")
    elif not run.finished:
        done = f"{len(run.rows)} epoch{'s' if len(run.rows) > 1 else ''} so far"
        goes_on = f"To go on: fastqat train --name {run.name} --resume"
        found.insert(0, f"This run is not finished ({done}): the test accuracy is read once, at the end. {goes_on}")
    return found


def headline(run: Run) -> list[page.Card]:
    """The numbers at the top of the page; those that the run does not know are left out."""
    facts = row(run)
    test, selecting = facts["test_accuracy"], facts["selection_seconds"]
    change = f"; float model {percent(facts['float_accuracy'])}, change {_change(facts)} points" if _change(facts) != "–" else ""
    spent = f"; {duration(selecting)} of it to select samples" if _known(selecting) and selecting > 0 else ""
    candidates = [
        page.Card("Test accuracy", percent(test), f"last epoch{change}", main=True),
        _validation_card(run, facts),
        page.Card("Float accuracy", percent(facts["float_accuracy"]), "before quantization") if test is None else page.Card("", "–"),
        _data_card(run),
        _noise_card(facts),
        page.Card("Gradient steps", count(facts["gradient_steps"]), "of the quantized model"),
        page.Card("Time", duration(facts["seconds"]), f"training of the quantized model{spent}"),
        page.Card("Parameters", count(facts["params"]), f"quantized to {str(facts['qconfig']).upper()}" if facts["qconfig"] else ""),
    ]
    return [card for card in candidates if card.value != "–"]


def _validation_card(run: Run, facts: dict[str, Any]) -> page.Card:
    best, test = facts["best_epoch"], run.fact("best_test_accuracy")
    hint = f"best, after epoch {best + 1}" if _known(best) else "best so far"
    return page.Card(
        "Validation accuracy", percent(facts["val_accuracy"]), hint + (f"; test accuracy {percent(test)} there" if _known(test) else "")
    )


def _data_card(run: Run) -> page.Card:
    used, unique = _last(run, "selected"), run.fact("unique_samples")
    if not run.selections:
        return page.Card("Samples per epoch", count(used), f"{count(unique)} different ones in all" if _known(unique) else "")
    pool, chosen = len(run.selections[-1].labels), len(run.selections[-1].indices)
    hint = f"{count(chosen)} of {count(pool)} samples per epoch" + (f"; {count(unique)} different ones in all" if _known(unique) else "")
    return page.Card("Data in use", percent(chosen / max(pool, 1), 1), hint)


def _noise_card(facts: dict[str, Any]) -> page.Card:
    made = f"; {100 * facts['label_noise']:.3g} % of each class were made wrong" if _known(facts["label_noise"]) else ""
    models = " and ".join(f"{name} model" if name == "float" else name for name in facts["oracle_models"] or ())
    made += f"; oracle: the right labels were there for the {models}" if models else ""
    return page.Card("Wrong labels", percent(facts["noisy_selected"], 1), f"of the samples trained on in the last epoch{made}")


def why_no_selection(run: Run) -> str:
    """Why the page has no part about selections."""
    if str(run.fact("select", "none")) == "none":
        return "This run trained on all of its data, so there is no selection to show."
    return "This run has not stored a selection yet."


def reproduction(run: Run) -> str:
    """How to run it again, as HTML: the command, and the versions it ran with."""
    folder = f"{run.path.parent.name}/{run.name}"
    command = f"fastqat train --config {folder}/config.yaml --name {run.name}-again\nfastqat report {folder}-again"
    about = (
        f"To be run from the folder that holds {run.path.parent.name}. The same settings, versions, machine and number of threads give the "
        "same weights on a CPU, bit for bit."
    )
    known = [(name, str(run.fact(name))) for name in ("fastqat", "commit", "torch", "seed", "threads") if run.fact(name) is not None]
    return page.code(command) + page.paragraph(about) + (page.table(["ran with", "version or value"], known) if known else "")


def footer(run: Run) -> str:
    """The last line of the page."""
    version = run.fact("fastqat")
    return "Written by fastqat" + (f" {version}" if version else "") + " from the run directory alone."


def epoch_table(run: Run) -> str:
    """Every epoch as a table, folded."""
    header = ["stage", "epoch", "train loss", "train accuracy", "val loss", "val accuracy", "samples", "samples/s", "time"]
    lines = [
        [
            *(entry["stage"], f"{entry['epoch'] + 1:.0f}"),
            *(text for part in ("train", "val") for text in (_decimal(entry.get(f"{part}_loss")), percent(entry.get(f"{part}_accuracy")))),
            *(count(entry.get("selected")), count(entry.get("samples_per_second")), duration(entry.get("seconds"))),
        ]
        for entry in run.rows
    ]
    return page.fold("All epochs as a table", page.table(header, lines))


def _decimal(value: Any) -> str:
    return f"{value:.4f}" if _known(value) else "–"
