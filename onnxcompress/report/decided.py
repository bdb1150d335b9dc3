"""What plans decided, as tables and charts: a function a kind of plan, and the table that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcompress.report import words
from onnxcompress.report.parts import Chart, Table, table


def _cut(plan: Mapping[str, Any]) -> Table:
    rows = sorted(plan["decisions"], key=lambda each: -len(each["cut"]))
    cells = [
        (
            each["group"],
            str(len(each["cut"])),
            str(each["of"]),
            words.percent(len(each["cut"]) / each["of"], 0),
            str(len(each["free"])) if each.get("free") else words.UNKNOWN,
        )
        for each in rows
    ]
    return table(
        "cuts: units that go together",
        ("group", "cut", "of", "share", "free"),
        cells,
        ("cut", "of", "share", "free"),
        bars=[(len(each["cut"]) / each["of"],) for each in rows],
    )


def _refitted(plan: Mapping[str, Any]) -> Table:
    rows = sorted(plan["decisions"], key=lambda each: each["before_db"] - each["after_db"])
    cells = [(each["layer"], words.decibel(each["before_db"]), words.decibel(each["after_db"])) for each in rows]
    return table("refits: SQNR of the layer's output", ("layer", "before", "after"), cells, ("before", "after"))


def _learned(plan: Mapping[str, Any]) -> Table:
    """The loss of each epoch; of a dry run what would be learned."""
    rows = plan["decisions"]
    if not all("epoch" in each for each in rows):
        return _to_learn(rows)
    terms = [name for name in (rows[0] if rows else ()) if name.startswith(TERM)]
    most = max((each["loss"] for each in rows), default=0.0) or 1.0
    judged = {name: head for name, head in JUDGED.items() if all(name in each for each in rows)}
    cells = [
        (
            str(each["epoch"]),
            f"{each['loss']:.4g}",
            *(f"{each[name]:.4g}" for name in terms),
            f"{each['gradient']:.3g}",
            f"{each['rate']:.3g}",
            f"{each['seconds']:.1f}",
            *(_said(name, each[name]) for name in judged),
        )
        for each in rows
    ]
    columns = (
        "epoch", "loss", *(_short(name.removeprefix(TERM)) for name in terms), "gradient", "rate", "seconds", *judged.values(),
    )  # fmt: skip
    return table(
        "distillation: mean loss of each epoch", columns, cells, columns[1:], bars=[(e["loss"] / most,) for e in rows]
    )


def _said(name: str, value: float) -> str:
    """In its unit."""
    if name.endswith("_loss"):
        return f"{value:.4g}"
    return words.decibel(value) if name.endswith("_db") else words.percent(value, 1)


def _short(name: str) -> str:
    """As the head of a narrow column."""
    return name if len(name) <= 12 else f"…{name[-11:]}"


JUDGED = {
    "kept_loss": "kept back",
    "averaged_kept_loss": "of average",
    "sqnr_db": "SQNR",
    "averaged_sqnr_db": "of average",
    "accuracy": "kept back",
    "averaged_accuracy": "of average",
}
"""What a row of an epoch says of the samples that judge -> the head of its column."""

TERM = "term/"
"""Before the name of a term of the loss, in the row of an epoch."""


def _to_learn(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What a dry run of distillation lists."""
    names = ("name", "loss", "student", "teacher", "weight", "why")
    cells = [tuple(f"{each[n]:g}" if n == "weight" else str(each[n]) for n in names) for each in rows]
    return table(
        "what would be learned", ("term", "loss", "of the student", "from", "weight", "why"), cells, ("weight",)
    )


def _plain(plan: Mapping[str, Any]) -> Table:
    cells = [(", ".join(f"{name} {value}" for name, value in each.items())[:100],) for each in plan["decisions"]]
    return table(plan["method"], ("decision",), cells)


def _equalized(plan: Mapping[str, Any]) -> Table:
    rows = sorted(plan["decisions"], key=lambda each: each["before_db"] - each["after_db"])
    cells = [
        (
            words.names(each["written_by"]),
            words.names(each["read_by"]),
            str(each["channels"]),
            words.decibel(each["before_db"]),
            words.decibel(each["after_db"]),
        )
        for each in rows
    ]
    columns = ("written by", "read by", "channels", "before", "after")
    return table("channels scaled against each other: SQNR on one grid", columns, cells, columns[2:])


def _quantized(plan: Mapping[str, Any]) -> Table:
    """Layers with weights; where errors were measured one by one, every node that computes."""
    ops = {each["node"]: each["op"] for each in plan["decisions"] if "node" in each}
    alone = {each["node"]: each for each in plan["decisions"] if "node" in each and "alone_db" in each}
    weights = {each["layer"]: each for each in plan["decisions"] if "weight" in each}
    sqnr = {name: each["alone_db"] for name, each in alone.items()} or {n: e["sqnr_db"] for n, e in weights.items()}
    order = sorted(sqnr, key=lambda name: float(sqnr[name]))
    cells = [_int8_row(name, ops[name], alone.get(name), weights.get(name)) for name in order]
    most = "bring most error" if alone else "lose most"
    title = f"int8: {words.things(len(weights), 'weight')} in {words.things(len(ops), 'node')}, those that {most} first"
    columns = ("layer", "operator", "SQNR alone", "mostly by", "SQNR of the weight", "lost to portability")
    bars = [tuple(alone[name]["shares"].values()) for name in order if name in alone]
    legend = next(iter(alone.values()))["shares"] if alone else ()
    return table(title, columns, cells, ("SQNR alone", *columns[4:]), bars=bars, legend=legend)


def _int8_row(name: str, op: str, alone: Mapping[str, Any] | None, weight: Mapping[str, Any] | None) -> tuple[str, ...]:
    return (
        name,
        op,
        words.decibel(alone["alone_db"]) if alone else words.UNKNOWN,
        str(alone["mostly"]) if alone else words.UNKNOWN,
        words.decibel(weight["sqnr_db"]) if weight else words.UNKNOWN,
        f"{weight['portable_db']:.1f} dB" if weight and weight["portable_db"] > 0.05 else words.UNKNOWN,
    )


def _weighed(plan: Mapping[str, Any]) -> Table:
    cells = [
        (
            each["weight"],
            each["op"],
            FORMS[each["form"]],
            str(each["bits"]),
            words.decibel(each["sqnr_db"]),
            words.size(each["bytes"][0] - each["bytes"][1]),
        )
        for each in sorted(plan["decisions"], key=lambda each: each["sqnr_db"])
    ]
    columns = ("weight", "operator", "at run time", "bits", "SQNR", "saved")
    return table(f"integer weights: {len(cells)}, those that lose most first", columns, cells, columns[3:])


FORMS = {"dynamic": "multiplied as integers", "run": "read as integers", "load": "floats, rebuilt at load"}
"""What `passes.QuantizeWeights` does with a weight, in words."""


def _clustered(plan: Mapping[str, Any]) -> Table:
    cells = [
        (
            each["weight"],
            each["op"],
            str(each["entries"]),
            each["share"],
            words.decibel(each["sqnr_db"]),
            words.decibel(each["held_out_db"]) if "held_out_db" in each else words.UNKNOWN,
            words.size(each["bytes"][0]),
            words.size(each["bytes"][1]),
        )
        for each in sorted(plan["decisions"], key=lambda each: each.get("held_out_db", each["sqnr_db"]))
    ]
    columns = ("weight", "operator", "entries", "shared by", "SQNR", "SQNR of the layer", "before", "after")
    return table(
        f"codebooks: {len(cells)} weights, those that lose most first", columns, cells, (columns[2], *columns[4:])
    )


def _factorized(plan: Mapping[str, Any]) -> Table:
    cells = [
        (
            each["weight"],
            each["op"],
            each["form"],
            " ".join(map(str, each["ranks"])),
            words.percent(each["macs"][1] / each["macs"][0], 0) if each["macs"][0] else words.UNKNOWN,
            words.UNKNOWN if each["time"] is None else words.percent(each["time"], 0),
            words.decibel(each["plain_db"]) if "plain_db" in each else words.UNKNOWN,
            words.decibel(each["held_out_db"]) if "held_out_db" in each else words.UNKNOWN,
        )
        for each in sorted(plan["decisions"], key=lambda each: each.get("held_out_db", 0.0))
    ]
    columns = ("weight", "operator", "form", "ranks", "MACs left", "time left", "SQNR by weights", "on data")
    return table(
        f"factors: {words.things(len(cells), 'layer')}, those that lose most first", columns, cells, columns[3:]
    )


def _merged(plan: Mapping[str, Any]) -> Table:
    cells = [
        (
            RULES[each["rule"]],
            words.names(each["nodes"]),
            *(f"{number:,}" for number in each["parameters"]),
            *(f"{number:,}" for number in each["macs"]),
        )
        for each in plan["decisions"]
    ]
    columns = ("merged", "nodes", "parameters before", "after", "multiply-adds a position before", "after")
    return table(f"{words.things(len(cells), 'merge')}, in this order", columns, cells, columns[2:])


RULES = {
    "hard": "an activation in pieces",
    "response": "a norm, in faster operators",
    "idle": "changes nothing",
    "chain": "one after the other",
    "through": "a scale, through the shift behind it",
    "ahead": "a norm or scale, into what reads it",
    "branches": "parallel branches",
    "concat": "laid end to end",
}
"""Rules of `passes.Merge` in words."""

DECISIONS = {
    "merge": _merged,
    "factorize": _factorized,
    "cluster": _clustered,
    "binarize": _clustered,
    "distill": _learned,
    "train": _learned,
    "slim": _learned,
    "prune": _cut,
    "refit": _refitted,
    "equalize": _equalized,
    "quantize": _quantized,
    "quantize-weights": _weighed,
}
"""Method of a plan -> its table."""


def decided(plan: Mapping[str, Any]) -> Table:
    """The table of what a plan decided."""
    return DECISIONS.get(plan["method"], _plain)(plan)


def charts(plan: Mapping[str, Any]) -> list[Chart]:
    """What was seen of each value that has a histogram in the plan, and its grid's range; what costs most first."""
    seen = [each for each in plan["decisions"] if "histogram" in each]
    return [
        Chart(
            each["value"],
            f"{words.decibel(each.get('alone_db'))} alone, {words.percent(each['clipped'], 2)} clipped, "
            f"{each['bits']:.1f} of 8 bits used",
            each["seen"][0],
            each["seen"][1],
            tuple(each["histogram"]),
            tuple(each["range"]),
        )
        for each in sorted(seen, key=lambda each: float(each.get("alone_db", "inf")))
    ]
