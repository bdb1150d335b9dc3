"""Fire: a 1×1 squeeze, then some outputs by 1×1 and the others by the kernel, laid end to end and put back in their order.

    W[o, i, k] = Σ_s E[o, s, k] S[s, i]      E[o, s, k] = 0 beside the tap that a 1×1 has, for outputs that are expanded by it

SqueezeNet's module (Iandola et al. 2016, arXiv:1602.07360) without the functions between, so that it can be fitted to a layer that is
there. Full rank is s inputs squeezed and e outputs under the whole kernel, all of them: then it is `squeeze`, and exact where s is too.
Which outputs get along with 1×1 is found: those whose error grows least by it. For a given squeeze both expansions are solved for.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape, rounded
from onnxcompress.passes.factorize.forms.lowrank import channels
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.merge.maps import Window, still

SHARES = (0.2, 0.33, 0.47, 0.62)
"""Of the layer's weights."""

UNDER_KERNEL = (0.25, 0.5, 0.75)
"""Of the outputs; SqueezeNet has a half."""

DAMPING = 1e-5
"""Of normal equations, as a share of their mean diagonal: more than rounding of moments in float32."""


class Fire(Form):
    """Squeeze, two expansions side by side."""

    name: ClassVar[str] = "fire"
    equation: ClassVar[str] = ""
    source: ClassVar[str] = "Fire module; Iandola et al. 2016 (SqueezeNet)"
    formula: ClassVar[str] = "g·s·(i + (o - e) + e·k)"
    letters: ClassVar[str] = "se"
    closed: ClassVar[bool] = True
    offered: ClassVar[bool] = False
    nested: ClassVar[bool] = False

    def unfit(self, shape: Shape) -> str:
        """A kernel with a tap that a 1×1 without padding meets at all positions."""
        if shape.taps == 1:
            return "it has one tap: that is lowrank"
        if shape.transposed:
            return "it is transposed"
        if min(shape.ins, shape.outs) == 1:
            return "it has one channel a group"
        return "" if _tap(shape) is not None else "no 1×1 has as many positions"

    def full(self, shape: Shape) -> Ranks:
        """(s, e)"""
        return min(shape.ins, shape.outs * shape.taps), shape.outs

    def ladder(self, shape: Shape) -> list[Ranks]:
        """Several parts of the outputs, each with squeezes of several widths."""
        found = set()
        for under in UNDER_KERNEL:
            e = rounded(under * shape.outs, shape.outs)
            each = shape.ins + shape.outs - e + e * shape.taps
            found |= {(rounded(share * shape.size / shape.groups / each, shape.ins), e) for share in SHARES}
        return sorted(ranks for ranks in found if self.size(shape, ranks) < shape.size)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """1×1; 1×1 beside the kernel, where there is any; the order of outputs."""
        g, (s, e) = shape.groups, ranks
        every, narrow = tuple(range(len(shape.kernel))), shape.outs - e
        assert shape.window is not None
        ones = still(len(every))
        moved = Window(ones.kernel, shape.window.strides, ones.dilations, ones.begins, ones.ends)
        squeeze = Part(g * s, g * shape.ins, g)
        pointwise = (Part(g * narrow, g * s, g, every, window=moved),) if narrow else ()
        order = Part(g * shape.outs, g * shape.outs, order=True)
        return squeeze, *pointwise, Part(g * e, g * s, g, every, beside=bool(narrow)), order

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """Squeeze [g, s, i], expansion [g, o, s, k] with its zeros, and for each group its outputs, those under the kernel last."""
        weight = weight.astype(np.float64)
        s, e = ranks
        reading, restoring = channels(shape, weight, s, metric)
        plain = np.einsum("goik,gis->gosk", weight, restoring, optimize=True)
        tap = _tap(shape)
        whole = _expanded(shape, weight, reading, range(shape.taps), metric, plain)
        one = _expanded(shape, weight, reading, [tap or 0], metric, plain)
        errors = [
            _errors(weight - np.einsum("gosk,gsi->goik", each, reading, optimize=True), metric) for each in (one, whole)
        ]
        order = np.argsort(errors[0] - errors[1], axis=1, kind="stable")
        for group, outs in enumerate(order):
            narrow = outs[: shape.outs - e]
            whole[group, narrow] = one[group, narrow]
            order[group] = [*np.sort(narrow), *np.sort(outs[shape.outs - e :])]
        return [reading, whole, order.astype(np.float64), np.array([e, tap or 0], np.float64)]

    def dense(self, shape: Shape, factors: Factors) -> np.ndarray:
        """Both expansions of the squeeze."""
        return np.ascontiguousarray(np.einsum("gosk,gsi->goik", factors[1], factors[0], optimize=True))

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """Squeeze, both expansions, and where each output lies in what they write."""
        reading, expansion, order, (e, tap) = factors
        order, narrow, s = order.astype(int), shape.outs - int(e), reading.shape[1]
        ones = tuple(1 for _ in shape.kernel)
        rows = np.stack([each[outs] for each, outs in zip(expansion, order, strict=True)])  # [g, o, s, k]
        places = order + shape.outs * np.arange(shape.groups)[:, None]
        laid = np.concatenate([places[:, :narrow].reshape(-1), places[:, narrow:].reshape(-1)])
        pointwise = [rows[:, :narrow, :, int(tap)].reshape(-1, s, *ones)] if narrow else []
        kernel = rows[:, narrow:].reshape(-1, s, *shape.kernel)
        return [reading.reshape(-1, shape.ins, *ones), *pointwise, kernel, np.argsort(laid)]


def _tap(shape: Shape) -> int | None:
    """The tap of the kernel that a 1×1 without padding stands for; None where it would have other positions."""
    window = shape.window
    if window is None or any(
        b + e != reach for b, e, reach in zip(window.begins, window.ends, window.reach, strict=True)
    ):
        return None
    if any(begin % step for begin, step in zip(window.begins, window.dilations, strict=True)):
        return None
    place = [begin // step for begin, step in zip(window.begins, window.dilations, strict=True)]
    return int(np.ravel_multi_index(place, shape.kernel)) if prod(shape.kernel) > 1 else 0


def _expanded(
    shape: Shape, weight: np.ndarray, reading: np.ndarray, taps: range | list[int], metric: Metric, plain: np.ndarray
) -> np.ndarray:
    """[g, o, s, k]: the best expansion of the squeezed channels at these taps, zero at others."""
    groups, s, _ = reading.shape
    found = np.zeros((groups, shape.outs, s, shape.taps))
    if metric.plain:
        found[..., list(taps)] = plain[..., list(taps)]
        return found
    grams, sides = _moments(shape, weight, reading, list(taps), metric)
    for group, (gram, side) in enumerate(zip(grams, sides, strict=True)):
        damped = gram + DAMPING * max(float(np.trace(gram)) / len(gram), 1e-300) * np.eye(len(gram))
        try:
            solved = np.asarray(cho_solve(cho_factor(damped), side.T)).T
        except LinAlgError:  # moments that are mostly rounding
            found[group][..., list(taps)] = plain[group][..., list(taps)]
            continue
        found[group][..., list(taps)] = solved.reshape(shape.outs, s, len(taps))
    return found


def _moments(
    shape: Shape, weight: np.ndarray, reading: np.ndarray, taps: list[int], metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Of what is squeezed at these taps [groups, n, n], and with what the weight puts out [groups, out, n]; n = s · taps, in order."""
    groups, s, ins = reading.shape
    n, flat = s * len(taps), weight.reshape(groups, shape.outs, -1)
    if metric.rows is not None and metric.noise is None:  # in the rows' own precision, which judges well enough
        rows = metric.rows
        narrow = rows.reshape(groups, -1, ins, shape.taps)[..., taps]
        moved = np.moveaxis(narrow, 2, 3).reshape(groups, -1, ins) @ reading.astype(rows.dtype).transpose(0, 2, 1)
        seen = np.moveaxis(moved.reshape(groups, -1, len(taps), s), 2, 3).reshape(groups, -1, n)
        put_out = flat.astype(rows.dtype) @ rows.transpose(0, 2, 1)
        return (seen.transpose(0, 2, 1) @ seen).astype(np.float64), (put_out @ seen).astype(np.float64)
    placed = np.zeros((groups, s, len(taps), ins, shape.taps))
    for number, tap in enumerate(taps):
        placed[:, :, number, :, tap] = reading
    columns = placed.reshape(groups, n, -1)
    return metric.between(columns, columns), metric.between(flat, columns)


def _errors(difference: np.ndarray, metric: Metric) -> np.ndarray:
    """[groups, out]: the error of each output."""
    flat = difference.reshape(*difference.shape[:2], -1)
    return np.asarray((metric.times(flat) * flat).sum(axis=2))
