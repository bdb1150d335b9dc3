"""Mean and variance of a BatchNormalization re-estimated, where no fitted layer feeds it.

With x what it is now fed and y what the original puts out at the same channels, mean and variance are chosen so that the
output has y's mean and variance, channel by channel: statistics taken anew on the network as it now is (Li et al., AdaBN,
arXiv:1603.04779), and in the first moment the bias correction of Nagel et al., ICCV 2019, arXiv:1906.04721. Behind a layer that
was fitted there is nothing to correct: least squares leaves no error of the mean.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.refit.solver import Sums, in_db
from onnxcompress.passes.refit.validated import LEAST_GAIN

NOTHING = 1e-12
"""A channel whose variance is smaller than this share of the largest does not vary."""


@dataclass(frozen=True)
class Statistics:
    """One BatchNormalization as a layer of one weight a channel; names of scale, shift, mean and variance."""

    layer: Layer
    names: tuple[str, str, str, str]
    epsilon: float


@dataclass(frozen=True, eq=False)
class Matched:
    """New mean and variance [channels], and SQNR on held-out rows before and after."""

    mean: np.ndarray
    variance: np.ndarray
    before_db: float
    after_db: float


def normalisations(model: Model, fitted: Container[str]) -> list[Statistics]:
    """Those of the main graph whose mean and variance are theirs alone and whose input no layer of `fitted` writes."""
    found = []
    for node in model.ir.graph:
        if node.op_type != "BatchNormalization" or node.domain or node.attributes.get_int("training_mode", 0) == 1:
            continue
        names = tuple(value.name or "" for value in node.inputs[1:5] if value is not None)
        constants = [constant_of(value) for value in node.inputs[1:5]]
        alone = all(value is not None and len(list(value.uses())) == 1 for value in node.inputs[3:5])
        fed = node.inputs[0]
        maker = fed.producer() if fed is not None else None
        if fed is None or any(c is None for c in constants) or not alone or (maker and maker.name in fitted):
            continue
        channels = len(constants[0])  # type: ignore[arg-type]
        layer = Layer(
            node.name or "", node.op_type, names[3], (0,), 1, 0, None,
            fed.name or "", node.outputs[0].name or "", groups=channels,
        )  # fmt: skip
        found.append(Statistics(layer, names, node.attributes.get_float("epsilon", 1e-5)))  # type: ignore[arg-type]
    return found


def matched(fit: Sums, judge: Sums, present: tuple[np.ndarray, ...], epsilon: float) -> Matched | None:
    """Statistics from the rows of `fit`, then of both (`fit` takes `judge` in); None where they are no better on `judge`.

    fit, judge  with a group a channel      present  scale, shift, mean and variance as they are, each [channels]
    """
    scale, shift, mean, var = present

    def error(mean: np.ndarray, var: np.ndarray) -> float:
        slope = scale / np.sqrt(var + epsilon)
        return judge.error(slope[:, None, None], (shift - mean * slope)[:, None])

    before, after = error(mean, var), error(*_moments(fit, present, epsilon))
    if after >= before * (1 - LEAST_GAIN):
        return None
    signal = float(judge.power.sum())
    fit.absorb(judge)
    return Matched(*_moments(fit, present, epsilon), in_db(signal, before), in_db(signal, after))


def _moments(sums: Sums, present: tuple[np.ndarray, ...], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance that give the output the goal's; the present ones where a channel does not vary."""
    scale, shift, mean, var = present
    x, y = sums.x[:, 0] / sums.count, sums.y[:, 0] / sums.count
    x_var = np.maximum(sums.gram[:, 0, 0] / sums.count - x**2, 0)
    y_var = np.maximum(sums.power[:, 0] / sums.count - y**2, 0)
    varies = (x_var > NOTHING * x_var.max()) & (y_var > NOTHING * y_var.max()) & (scale != 0)
    wide = np.sqrt(np.divide(x_var, y_var, out=np.ones_like(x_var), where=varies))
    new = np.where(varies, np.maximum((scale * wide) ** 2 - epsilon, 0), var)
    slope = np.divide(scale, np.sqrt(new + epsilon), out=np.ones_like(scale), where=varies)
    return np.where(varies, x - (y - shift) / slope, mean), new
