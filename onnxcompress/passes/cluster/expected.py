"""What each choice for a tensor is expected to bring to the outputs: squared errors, what they are multiplied by, how far they arrive."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.allocate import Candidate
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.cluster.allocation import COARSE, REFERENCE, SIZES, candidates
from onnxcompress.passes.cluster.brought import brought
from onnxcompress.passes.cluster.layout import along
from onnxcompress.passes.cluster.sharing import placed, shared
from onnxcompress.passes.cluster.tensors import Clustered


def needs_of(layer: Layer) -> list[Need]:
    """Moments of what a layer reads and writes, and how far a relative error of what it writes arrives."""
    axis = layer.channel_axis
    reads = [] if layer.op == "Gather" else [Need("moments", layer.reads, axis)]
    return [*reads, Need("moments", layer.writes, axis), Need("sensitivity of logits", layer.writes, axis)]


def with_picked(model: Model, found: Sequence[Clustered], evidence: Evidence) -> Evidence:
    """The evidence, and how often calibration samples read each row of an embedding: Need(PICKED, its weight) -> [rows]."""
    tables = {each.weight.layer.name: each for each in found if each.weight.layer and each.weight.op == "Gather"}
    paired = evidence.get(Paired.NEED)
    if paired is None or not tables:
        return evidence
    picked, model = {}, model.as_original()
    for pair in replace(paired, original=model, current=model).walk(list(tables), still=True):
        each = tables[pair.node]
        layer, count = each.weight.layer, each.size // each.shape[each.axis]
        assert layer is not None
        picked[Need(PICKED, each.name)] = np.sum(pair.looked_up(layer.reads, count), axis=0)
    return {**evidence, **picked}


def with_brought(model: Model, found: Sequence[Clustered], evidence: Evidence) -> Evidence:
    """The evidence, and how far the expected noise of each tensor arrives, by what one book of REFERENCE entries really brings."""
    trial = evidence.get(Trial.NEED)
    if trial is None:
        return evidence
    changes, shares = {}, {}
    for each in found:
        values = model.array(each.name)
        rows = each.rows(values)
        weights, power = _weighed(each, rows, evidence)
        books = shared(rows, REFERENCE, "tensor", weights)
        symbols = placed(rows, books)
        shares[each.name] = _square(books.values(symbols) - rows, weights) / max(power, 1e-300)
        changes[each.name] = each.coded(symbols, books, values.dtype).decode() - values
    told = brought(model, found, changes, trial)
    if max(told.values(), default=0.0) > DROWNED:
        return evidence
    return {
        **evidence,
        **{Need(BROUGHT, name): noise / shares[name] for name, noise in told.items() if shares[name] > 0},
    }


BROUGHT = "noise brought"

DROWNED = 1.0
"""Noise share at the outputs above which no tensor's measurement is believed: it is no small change then. PP-OCRv4's recogniser, 4 bits
with data: one tensor alone 10.7; by these measurements .91 of lines at .142 of the file, by gates on layers' outputs .97 at .137."""

PICKED = "picked rows"

SEEN = 0.3
"""Of an embedding's error, the share of rows that calibration samples read, by the root of how often. MiniLM, its words alone in 16
entries, SQNR of the tokens' vectors and of the sentence: all rows alike 14.6, 22.2; 0.1 24.4, 23.1; 0.3 25.2, 23.4; 0.6 25.5, 23.5; by
how often itself, padding left out, 8.6 to 14.2, 23.5: few tokens are most of every text, and their entries are not like others'."""


def expected(
    model: Model,
    found: Sequence[Clustered],
    evidence: Evidence,
    sharings: Collection[str],
    coarse: float = COARSE,
) -> list[Candidate]:
    """Every choice of every tensor that is not too coarse: bytes, and share of noise at the outputs."""
    reached, tried = arriving(found, evidence), []
    for each in found:
        rows = each.rows(model.array(each.name))
        weights, power = _weighed(each, rows, evidence)
        options = candidates(each.name, rows, power, reached[each.name], SIZES, weights, coarse)
        mine = [option for option in options if option.setting.sharing in sharings]  # type: ignore[attr-defined]
        # where the books of the sharing that was asked for weigh too much, one is all that pays
        tried += mine or [option for option in options if option.setting.sharing == "tensor"]  # type: ignore[attr-defined]
    return tried


def arriving(found: Sequence[Clustered], evidence: Evidence) -> dict[str, float]:
    """How far a relative error of what each tensor makes arrives: by its own coding where that was tried, else by errors of its layer.

    Where nothing was measured an error arrives as the farthest of all. That of an embedding counts as many times as there are
    tensors: all others only add to the stream that begins with it (MiniLM without data, 4 bits: 5.6 dB where it counted once, 11.8 so).
    """
    known = {each.name: _measured(each, evidence) for each in found}
    most = max((value for value in known.values() if value is not None), default=1.0)
    unknown = {each.name: most * (len(found) if each.weight.op == "Gather" else 1) for each in found}
    return {name: unknown[name] if value is None else value for name, value in known.items()}


def _measured(each: Clustered, evidence: Evidence) -> float | None:
    layer, found = each.weight.layer, evidence.get(Need(BROUGHT, each.name))
    if found is None and layer is not None:
        found = evidence.get(Need("sensitivity of logits", layer.writes, layer.channel_axis))
    return None if found is None else float(found)


def met(each: Clustered, rows: np.ndarray, evidence: Evidence) -> tuple[np.ndarray | None, float]:
    """What a squared error of each weight counts, [n] or [out, n], and what the output's error then is a share of.

    Of a layer that was measured: the mean square of what it is multiplied by, and that of the whole output at a position. Of an
    embedding: how often its rows are read. Else None, and the rows' own square.
    """
    layer = each.weight.layer
    if layer is not None and layer.op == "Gather":
        counts = evidence.get(Need(PICKED, each.name))
        if counts is None or not counts.any():
            return None, _square(rows)
        often = np.sqrt(counts) / np.sqrt(counts).mean()
        shares = 1 - SEEN + SEEN * often
        return shares, _square(rows, shares)
    if layer is None or along(layer) is None:
        return None, _square(rows)
    reads, writes = (evidence.get(need) for need in needs_of(layer)[:2])
    if reads is None or writes is None:
        return None, _square(rows)
    per_group = reads.mean_square.reshape(layer.groups, -1)
    taps = rows.shape[1] // per_group.shape[1] if rows.shape[1] % per_group.shape[1] == 0 else 0
    power = float(writes.mean_square.sum())
    if not taps or len(rows) % layer.groups or power <= 0 or not per_group.any():
        return None, _square(rows)
    weights = np.repeat(per_group, taps, axis=1)
    return (weights[0] if layer.groups == 1 else np.repeat(weights, len(rows) // layer.groups, axis=0)), power


QUIET = 0.03
"""Of the mean square of all channels: what is below counts no more, since it may be nothing but rounding."""


def alike(rows: np.ndarray) -> np.ndarray:
    """[out, n] what a squared error counts where each channel's share of its own square is to count alike.

    What follows a convolution mostly makes its channels as large as each other (BatchNormalization, its own scales). ppocr-cls
    without data, 4 bits: logits 17.2 dB where all weights counted the same, 16.4 by what its BatchNormalizations multiply by, 19.6 so.
    """
    power = np.square(rows, dtype=np.float64).mean(axis=1)
    gains = power.mean() / np.maximum(power, QUIET * power.mean()) if power.any() else np.ones(len(rows))
    return np.broadcast_to(gains[:, None], rows.shape)


def channels_alike(each: Clustered) -> bool:
    """Is it a weight whose channels count as `alike` says, where nothing was measured?"""
    layer = each.weight.layer
    return layer is not None and along(layer) is not None and "Conv" in layer.op


def _square(rows: np.ndarray, weights: np.ndarray | None = None) -> float:
    square = np.square(rows, dtype=np.float64)
    return float((square if weights is None else square * weights).sum())


def of_rows(each: Clustered, rows: np.ndarray, evidence: Evidence) -> np.ndarray | None:
    """What a squared error of each weight counts where codes begin: of embeddings as samples read them, of others without data."""
    return _weighed(each, rows, evidence if each.weight.op == "Gather" else {})[0]


def _weighed(each: Clustered, rows: np.ndarray, evidence: Evidence) -> tuple[np.ndarray | None, float]:
    """As `met`; of a convolution that was not measured, each channel as much as every other."""
    weights, power = met(each, rows, evidence)
    if weights is not None or not channels_alike(each):
        return weights, power
    weights = alike(rows)
    return weights, _square(rows, weights)
