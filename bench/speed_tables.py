"""The README's tables of speed, from rows of results: shares of a copy, peers by size, steps, norms, the rest, and what was missed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .rows import COPY

Row = dict[str, str]
OURS, FLOAT, PLAIN = "fastqat", "float", "forward + backward"
ORDER = {"4k": 0, "64k": 1, "1M": 2, "16M": 3, "64M": 4, "256M": 5}


def latest(rows: Iterable[Row]) -> list[Row]:
    """The newest full measurement of every case, in the order measured."""
    full = [row for row in rows if row["size"] == "full" and row["how"] == "bench"]
    newest = {row["case"]: row["time"] for row in sorted(full, key=lambda row: row["time"])}
    return [row for row in full if row["time"] == newest[row["case"]]]


def speed_tables(rows: Iterable[Row]) -> str:
    """Everything of the newest full measurements in Markdown; a part without rows is left out."""
    rows = latest(rows)
    told = [_machines([row for row in rows if row["p50_ms"]])]
    rest = rows
    for family, table in FAMILIES.items():
        part = [row for row in rest if _family(row["case"]) in family]
        rest = [row for row in rest if row not in part]
        for prefix in ("", "gpu/"):
            own = [row for row in part if row["case"].startswith("gpu/") == bool(prefix)]
            if any(row["p50_ms"] for row in own):
                told += ["", table({**row, "case": row["case"].removeprefix(prefix)} for row in own)]
    if any(row["p50_ms"] for row in rest):
        told += ["", general_table(rest)]
    return "\n".join([*told, *_absent(rows), *_missed(rows)])


def _family(case: str) -> str:
    return case.removeprefix("gpu/").partition("/")[0]


def _machines(rows: list[Row]) -> str:
    """Where the rows come from, in the order measured."""
    facts = dict.fromkeys(
        (f"{row['cpu']} ({row['cpu_level']}), {row['threads']} threads" if row.get("device") in (None, "", "cpu") else row["device"])
        + f", torch {row['torch']}"
        for row in rows
    )
    return f"Medians of one run on {'; '.join(facts)}. `fastqat bench` measures the same on yours."


def _matrix(corner: str, rows: Iterable[str], columns: Iterable[str], cell: Callable[[str, str], str]) -> list[str]:
    columns = list(columns)
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {row} | {' | '.join(cell(row, column) for column in columns)} |" for row in rows]


def share_table(rows: Iterable[Row]) -> str:
    """Bytes per second over those of a copy: a line per pass and granularity, a column per size; cases ``pass/how-dtype-size``."""
    shares, goals = {}, {}
    for row in rows:
        way, _, variant = row["case"].partition("/")
        granularity, dtype, size = variant.rsplit("-", 2)
        key = f"{way}, {granularity.replace('_', '-')}", f"{dtype} {size}"
        if row["contender"] == OURS:
            shares[key] = row["copy_share"]
        elif row["contender"] == COPY:
            goals[key] = row["goals"]
    columns = sorted({column for _, column in shares}, key=lambda column: (column.startswith("bf16"), ORDER.get(column.split()[1], 9)))

    def cell(line: str, column: str) -> str:
        if not shares.get((line, column)):
            return ""
        missed = " (missed)" if "MISSED" in goals.get((line, column), "") else ""
        return f"{float(shares[line, column]):.2f}{missed}"

    asked = {column: text.partition(" of ")[0] for (_, column), text in goals.items()}
    wanted = "; ".join(f"{column} {asked[column]}" for column in columns if asked.get(column))
    head = f"Share of the bandwidth of `{COPY}` of as many bytes, measured in the same run. Goals: {wanted or 'none'}."
    return "\n".join([head, "", *_matrix("fake_quantize", dict.fromkeys(line for line, _ in shares), columns, cell)])


def peer_table(rows: Iterable[Row]) -> str:
    """LSQ forward and backward: fastqat's time per column, and every contender's time in multiples of it; cases ``lsq/how-size``."""
    found = {(row["contender"], row["case"].partition("/")[2].replace("-", " ").replace("_", "-")): row for row in rows}

    def cell(contender: str, column: str) -> str:
        row = found.get((contender, column))
        if row is None or not row["p50_ms"]:
            return "–"
        if contender == OURS:
            return f"{float(row['p50_ms']):.3g} ms"
        times = 1 / float(row["time_ratio"])
        return f"**{times:.3g} ×**" if times < 1 and contender != COPY else f"{times:.3g} ×"

    columns = dict.fromkeys(column for _, column in found)
    head = (
        "LSQ forward + backward: what each needs, in multiples of fastqat's time (bold: faster than fastqat; –: cannot, the rows say why)."
    )
    return "\n".join([head, "", *_matrix("LSQ", dict.fromkeys(contender for contender, _ in found), columns, cell)])


def step_table(rows: Iterable[Row]) -> str:
    """A training step: every contender's time and peak memory over those of the float step; cases ``step/network``."""
    head = "Training step at W4A4: time over the float step, and in brackets peak memory over it."
    return "\n".join([head, "", *_over_base(FLOAT, "step", {_network(row): row for row in rows})])


def norm_table(rows: Iterable[Row]) -> str:
    """Whole passes over the plain step (``norms/pass-network``, ``norms/quant-network``), layers (``norms/layer-shape``), and the rest."""
    passes, layers, rest = {}, {}, []
    for row in rows:
        contender, network = _network(row)
        kind, _, network = network.partition(", ")
        if kind in ("pass", "quant"):
            passes[contender, network + (", W4A4" if kind == "quant" else "")] = row
        elif kind == "layer":
            layers[network, contender] = row
        else:
            rest.append(row)
    head = (
        "Per-sample gradient norms of all layers: time over a plain forward + backward of the same network, and in brackets peak memory "
        "over it (W4A4: of the quantized network, step sizes included)."
    )
    told = ["\n".join([head, "", *_over_base(PLAIN, "norms", passes)])] if passes else []
    if layers:
        told.append("\n".join(_layer_rates(layers)))
    if any(row["p50_ms"] for row in rest):
        told.append(general_table(rest))
    return "\n\n".join(told)


def _layer_rates(found: dict[tuple[str, str], Row]) -> list[str]:
    """A line per layer, a column per contender: operations of the direct form and of the weight gradient over the time."""

    def cell(layer: str, contender: str) -> str:
        row = found.get((layer, contender))
        return f"{float(row['gflops']):.0f}" if row and row["gflops"] else "–"

    head = (
        "Norms of single layers of ResNet-50: GFLOP/s, counting for all what the weight gradient takes (fastqat: the direct form, which "
        "takes as much)."
    )
    return [head, "", *_matrix("layer", dict.fromkeys(layer for layer, _ in found), dict.fromkeys(name for _, name in found), cell)]


def _network(row: Row) -> tuple[str, str]:
    """Contender and network of a case ``family/network``."""
    return row["contender"], row["case"].partition("/")[2].replace("-", ", ").replace("_", "-")


def _over_base(base: str, corner: str, found: dict[tuple[str, str], Row]) -> list[str]:
    """A line per contender, a column per network: time and in brackets memory in multiples of those of `base`, whose own time is shown."""

    def over(row: Row, column: str, ratio: str) -> str:
        base_ratio = found[base, column][ratio]
        own = 1.0 if row["contender"] == OURS else float(row[ratio]) if row[ratio] else None
        return f"{float(base_ratio) / own:.2f}" if base_ratio and own else ""

    def cell(contender: str, column: str) -> str:
        row = found.get((contender, column))
        if row is None or not row["p50_ms"]:
            return "–"
        if contender == base:
            return f"{float(row['p50_ms']):.0f} ms"
        return f"{over(row, column, 'time_ratio')} × ({over(row, column, 'memory_ratio')})"

    columns = [column for contender, column in found if contender == base]
    order = sorted(dict.fromkeys(contender for contender, _ in found), key=lambda name: (name != base, name != OURS))
    return _matrix(corner, order, columns, cell)


def general_table(rows: Iterable[Row]) -> str:
    """One line per case and contender that was measured."""
    head = "What fastqat needs in proportion to each contender: below 1 it is ahead."
    lines = [head, "", "| case | contender | ms | fastqat: time | fastqat: peak memory |", "|---|---|---|---|---|"]
    for row in rows:
        if not row["p50_ms"]:
            continue
        ratio = f"{float(row['time_ratio']):.3g} × " if row["time_ratio"] else ""
        memory = f"{float(row['memory_ratio']):.2f} × " if row["memory_ratio"] else ""
        name = f"**{OURS}**" if row["contender"] == OURS else row["contender"]
        lines.append(f"| {row['case']} | {name} | {float(row['p50_ms']):.3g} | {ratio}| {memory}|")
    return "\n".join(lines)


def _absent(rows: list[Row]) -> list[str]:
    """Contenders that were not measured, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["absent"]:
            reasons.setdefault(f"{row['contender']}: {row['absent']}", []).append(row["case"])
    told = [f"{reason} ({', '.join(cases) if len(cases) < 4 else f'{len(cases)} cases'})" for reason, cases in reasons.items()]
    return ["", f"Not measured: {'; '.join(told)}."] if told else []


def _missed(rows: list[Row]) -> list[str]:
    """Goals that were not met, with what was measured."""
    shares = {row["case"]: row["copy_share"] for row in rows if row["contender"] == OURS}
    told = []
    for row in rows:
        for goal in row["goals"].split("; "):
            if "MISSED" in goal:
                kind = "peak bytes" in goal, "bandwidth" in goal
                value = row["memory_ratio"] if kind[0] else shares[row["case"]] if kind[1] else row["time_ratio"]
                told.append(f"- {row['case']}, {row['contender']}: goal {goal.partition(':')[0]}, measured {float(value):.3g}")
    return ["", "Goals missed (times and memory as fastqat over the contender):", "", *told] if told else []


FAMILIES: dict[tuple[str, ...], Callable[[Iterable[Row]], str]] = {
    ("forward", "backward"): share_table,
    ("lsq",): peer_table,
    ("step",): step_table,
    ("norms",): norm_table,
}
