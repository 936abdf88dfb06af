"""Figures and tables of bench/evidence.md, from the rows in bench/results and from nothing else.

    python -m bench.evidence            both
    python -m bench.evidence figures    bench/results/figures/*.png, all that there are rows for
    python -m bench.evidence tables     what stands between the markers of bench/evidence.md

A marker is a comment with a mapping; what follows it, up to the closing comment, is written anew::

    <!-- table: {study: why, kind: cells, compare: {select: rs2}, where: {loss: kd}} -->
    <!-- /table -->

`kind`: ``cells`` (default; a line per cell), ``matrix`` (a column per value of `across`, by default fraction), ``seconds`` (to an
accuracy), ``drift`` (of selections and scores), ``studies`` (what has been run; without `study`). `compare`: a setting and the value of it
that the others are compared with, all else equal; default: ways of choosing data with rs2. `free`: settings that may differ beside those
that belong to the one compared. `where`: settings, or ``cell``, with the values wanted; Holm's correction is over the comparisons that are
left. `measure`: default test_accuracy. `cost`: false leaves out what the runs cost. ``<!-- figures: {study: why, only: [dots, fraction]}
-->`` shows the figures of a study with their captions. A study that is planned in bench/studies and has no rows is said so; anything else
that is not known, a setting, a value or a study, is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastqat._files import write_atomic
from fastqat.train.report.drawing import style

from .markers import read_marker
from .rows import RESULTS
from .run_tables import drift_table
from .study_figures import Evidence, draw_all
from .study_groups import Comparison, usual
from .study_plans import plans_in
from .study_rows import MEASURE
from .study_tables import cells_table, coverage_table, matrix_table, seconds_table

BENCH = Path(__file__).resolve().parent
PAGE, PLANS = BENCH / "evidence.md", BENCH / "studies"
FIGURES = RESULTS / "figures"
MARKER = re.compile(r"(?P<head><!-- (?P<what>table|figures): (?P<spec>\{.*?\}) -->\n).*?(?P<end><!-- /(?P=what) -->)", re.DOTALL)


def filled(text: str, evidence: Evidence, plans: Path = PLANS) -> str:
    """`text` with everything between its markers written anew from the rows.

    Raises:
        InputError: a marker with an unknown key, kind, study, setting, value, column or figure; says which and where.
    """

    def part(found: re.Match[str]) -> str:
        what, spec = found["what"], read_marker(found["what"], found["spec"], evidence, plans)
        body = _table(spec, evidence, plans) if what == "table" else _figures(spec, evidence)
        return f"{found['head']}{body}\n{found['end']}"

    return MARKER.sub(part, text)


def _table(spec: Mapping[str, Any], evidence: Evidence, plans: Path) -> str:
    if spec["kind"] == "studies":
        return coverage_table(evidence.studies, plans_in(plans))
    if spec["kind"] == "drift":
        rows = [row for row in evidence.drift if row["study"] == spec["study"]]
        return drift_table(rows) if rows else f"Study `{spec['study']}` has no rows yet of how selections drift."
    study = evidence.studies.get(spec["study"])
    if study is None:
        return f"Study `{spec['study']}` has no rows yet."
    study = study.where(spec.get("where", {}))
    if not study.cells:
        return f"Study `{study.name}` has no rows yet of the cells that this table is about ({_words(spec['where'])})."
    how = Comparison.of(spec["compare"], spec.get("free", ())) if "compare" in spec else usual(study) or Comparison()
    measure = spec.get("measure", MEASURE)
    if spec["kind"] == "matrix":
        return matrix_table(study, how, spec.get("across", "fraction"), measure)
    return seconds_table(study, how) if spec["kind"] == "seconds" else cells_table(study, how, measure, spec.get("cost", True))


def _words(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in wanted.items())


def _figures(spec: Mapping[str, Any], evidence: Evidence) -> str:
    """The figures of a study that there are rows for, each with its caption, and which of those asked for there are not."""
    with style():
        drawings = evidence.drawings(spec["study"])
    wanted = spec.get("only", list(drawings))
    shown = [
        f"![{spec['study']}, {kind}](results/figures/{spec['study']}_{kind}.png)\n\n*{drawings[kind].caption}*"
        for kind in wanted
        if kind in drawings
    ]
    missing = [kind for kind in wanted if kind not in drawings]
    if missing or not shown:
        shown.append(f"Study `{spec['study']}` has no rows yet for {'the figure ' + ', '.join(missing) if missing else 'any figure'}.")
    return "\n\n".join(shown)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if len(argv) > 1 or not set(argv) <= {"figures", "tables"}:
        print("usage: python -m bench.evidence [figures|tables]", file=sys.stderr)
        return 2
    evidence = Evidence.read(RESULTS)
    if argv != ["tables"]:
        for path in draw_all(evidence, FIGURES):
            print(f"{path.relative_to(BENCH.parent)}: {path.stat().st_size / 1024:.0f} KB")
    if argv != ["figures"]:
        write_atomic(PAGE, filled(PAGE.read_text(encoding="utf-8"), evidence))
        print(PAGE.relative_to(BENCH.parent))
    print(f"studies with rows: {', '.join(evidence.names) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
