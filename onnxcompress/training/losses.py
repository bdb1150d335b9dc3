"""Losses: each a small graph over values of student and teacher, one entry with its paper. They give a scalar.

Losses of logits take [rows, classes]: a row is an image, a frame of a text line, a pixel. Losses of features take any tensor whose
first axis is the batch; those that compare within each model allow other widths in the student. Losses of labels take logits or log
odds [rows, classes] and in the teacher's place the probabilities that labels stand for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxcompress.training.lowering import step
from onnxcompress.training.pen import Pen, element_of, shape_of

Of = Literal["logits", "log odds", "features", "labels", "text"]
TINY = 1e-12
"""Added under a square root, whose slope at zero is not finite."""


@dataclass(frozen=True)
class Loss:
    """of: what it takes; widths: student and teacher may differ in all axes but the first (two, for attention).

    channels  it takes [n, c, *places]: the axis of channels, where it is known, is moved to the second place
    weight    its paper's, of a term of features                connects  a learned connector brings the student to the teacher's width
    """

    function: Callable[..., ir.Value]
    of: Of
    widths: bool = False
    channels: bool = False
    weight: float = 1.0
    connects: bool = False

    def __call__(self, op: Pen, student: ir.Value, teacher: ir.Value, **settings: Any) -> ir.Value:
        """The scalar; settings that this loss does not have are left out."""
        own = inspect.signature(self.function).parameters
        return self.function(op, student, teacher, **{name: value for name, value in settings.items() if name in own})


LOSSES: dict[str, Loss] = {}


def loss(name: str, of: Of, **facts: Any) -> Callable[[Callable[..., ir.Value]], Callable[..., ir.Value]]:
    """Registers a loss under its name on the command line; `facts` are further fields of Loss."""

    def register(function: Callable[..., ir.Value]) -> Callable[..., ir.Value]:
        LOSSES[name] = Loss(function, of, **facts)
        return function

    return register


def mean(op: Pen, x: ir.Value) -> ir.Value:
    """Of all numbers."""
    return op.Mul(op.ReduceSum(x, keepdims=0), 1.0 / prod(shape_of(x)))  # type: ignore[no-any-return]


def _divergence(op: Pen, log_p: ir.Value, log_q: ir.Value) -> ir.Value:
    """KL(p ‖ q), mean over rows."""
    terms = op.ReduceSum(op.Mul(op.Exp(log_p), op.Sub(log_p, log_q)), [-1], keepdims=0)
    return mean(op, terms)


def _log_softmax(op: Pen, x: ir.Value, temperature: float) -> ir.Value:
    return op.LogSoftmax(op.Mul(x, 1.0 / temperature), axis=-1)  # type: ignore[no-any-return]


@loss("soft-cross-entropy", "logits")
def soft_cross_entropy(op: Pen, student: ir.Value, teacher: ir.Value, *, temperature: float = 4.0) -> ir.Value:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)): the cross-entropy with soft targets, less the teacher's own entropy, which
    has no gradient, so that a perfect student has 0. T² keeps the size of gradients.
    Hinton, Vinyals, Dean 2015, arXiv:1503.02531."""
    log_p, log_q = _log_softmax(op, teacher, temperature), _log_softmax(op, student, temperature)
    return op.Mul(_divergence(op, log_p, log_q), temperature**2)  # type: ignore[no-any-return]


@loss("frames", "logits")
def frames(op: Pen, student: ir.Value, teacher: ir.Value, *, temperature: float = 4.0, floor: float = 0.1) -> ir.Value:
    """soft-cross-entropy of the frames of a text line, weighted by max(1 - p(blank), floor) over the mean weight. Most frames of a CTC
    reader are blank, and their mean hides the few that hold a character. The blank is the class that the teacher gives most in the batch.
    A soft form of the selection of frames that Hilmes et al. 2025, arXiv:2506.01503, compare."""
    log_p, log_q = _log_softmax(op, teacher, temperature), _log_softmax(op, student, temperature)
    each = op.ReduceSum(op.Mul(op.Exp(log_p), op.Sub(log_p, log_q)), [-1], keepdims=0)
    said = op.Softmax(teacher, axis=-1)
    often = op.ReduceSum(said, [0], keepdims=1)
    blank = op.Gather(said, op.ArgMax(op.Reshape(often, [-1]), axis=0, keepdims=0), axis=1)
    weight = op.Max(op.Sub(1.0, op.Reshape(blank, [-1])), floor)
    total = op.ReduceSum(weight, keepdims=0)
    return op.Mul(op.Div(op.ReduceSum(op.Mul(each, weight), keepdims=0), total), temperature**2)  # type: ignore[no-any-return]


@loss("reverse-kl", "logits")
def reverse_kl(op: Pen, student: ir.Value, teacher: ir.Value, *, temperature: float = 4.0) -> ir.Value:
    """T² · KL(student ‖ teacher): the student may leave out modes, and is punished where the teacher sees none.
    Gu et al., ICLR 2024 (MiniLLM), arXiv:2306.08543."""
    log_p, log_q = _log_softmax(op, teacher, temperature), _log_softmax(op, student, temperature)
    return op.Mul(_divergence(op, log_q, log_p), temperature**2)  # type: ignore[no-any-return]


@loss("js", "logits")
def jensen_shannon(op: Pen, student: ir.Value, teacher: ir.Value, *, temperature: float = 4.0) -> ir.Value:
    """T² · (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2. Lin, IEEE Trans. Inf. Theory 1991."""
    log_p, log_q = _log_softmax(op, teacher, temperature), _log_softmax(op, student, temperature)
    middle = op.Log(op.Add(op.Mul(op.Add(op.Exp(log_p), op.Exp(log_q)), 0.5), TINY))
    both = op.Add(_divergence(op, log_p, middle), _divergence(op, log_q, middle))
    return op.Mul(both, 0.5 * temperature**2)  # type: ignore[no-any-return]


@loss("alpha", "logits")
def alpha_divergence(
    op: Pen,
    student: ir.Value,
    teacher: ir.Value,
    *,
    temperature: float = 1.0,
    lowest: float = -1.0,
    highest: float = 1.0,
    clip: float = 5.0,
) -> ir.Value:
    """max over α in {lowest, highest} of D_α(teacher p ‖ student q), row by row, importance ratios (p/q)^α clipped at `clip`.

    D_α = Σ q (f(p/q) - f(1)), with the gradient -Σ q ρ(p/q) ∇log q: q and the ratio count as constants there, so that clipping
    bounds the gradient and does not stop it. The value is D_α, the gradient that of the larger one.
    Wang et al., ICML 2021 (AlphaNet), arXiv:2102.07954, as in its published code.
    """
    log_p, log_q = _log_softmax(op, teacher, temperature), _log_softmax(op, student, temperature)
    fixed_q = op.stopped(log_q)
    sides = [_alpha_terms(op, log_p, fixed_q, log_q, alpha, clip) for alpha in (lowest, highest)]
    first = step(op, op.stopped(op.Sub(sides[0][0], sides[1][0])))  # 1 where the first is larger
    chosen = [op.Add(op.Mul(one, first), op.Mul(two, op.Sub(1.0, first))) for one, two in zip(*sides, strict=True)]
    value, pull = (mean(op, each) for each in chosen)
    return op.Add(pull, op.stopped(op.Sub(value, pull)))  # type: ignore[no-any-return]


def _alpha_terms(
    op: Pen, log_p: ir.Value, fixed_q: ir.Value, log_q: ir.Value, alpha: float, clip: float
) -> tuple[ir.Value, ir.Value]:
    """[rows]: the divergence, and what has its gradient."""
    log_ratio, q = op.stopped(op.Sub(log_p, fixed_q)), op.Exp(fixed_q)
    bounds = [np.array(0, element_of(q)), np.array(clip, element_of(q))]
    if abs(alpha) < 1e-3:
        ratio = op.Clip(op.Exp(log_ratio), op.constant(bounds[0] + 1e-30), op.constant(bounds[1]))
        f, base, weight = op.Neg(op.Log(ratio)), 0.0, op.Sub(op.Log(ratio), 1.0)
    elif abs(alpha - 1) < 1e-3:
        ratio = op.Clip(op.Exp(log_ratio), op.constant(bounds[0]), op.constant(bounds[1]))
        f, base, weight = op.Mul(ratio, log_ratio), 0.0, ratio
    else:
        ratio = op.Clip(op.Exp(op.Mul(log_ratio, alpha)), op.constant(bounds[0]), op.constant(bounds[1]))
        base = 1 / alpha / (alpha - 1)
        f, weight = op.Mul(ratio, base), op.Add(op.Mul(ratio, 1 / alpha), base)
    value = op.ReduceSum(op.Mul(q, op.Sub(f, base)), [-1], keepdims=0)
    pull = op.Neg(op.ReduceSum(op.Mul(op.Mul(op.stopped(q), op.stopped(weight)), log_q), [-1], keepdims=0))
    return value, pull


@loss("logits-mse", "logits")
def logits_mse(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Mean square difference of logits, each row without its mean, which no Softmax sees.
    Ba and Caruana, NeurIPS 2014, arXiv:1312.6184."""
    difference = op.Sub(student, teacher)
    centre = op.Mul(op.ReduceSum(difference, [-1], keepdims=1), 1.0 / shape_of(student)[-1])
    centred = op.Sub(difference, centre)
    return mean(op, op.Mul(centred, centred))


@loss("binary", "log odds")
def binary(op: Pen, student: ir.Value, teacher: ir.Value, *, temperature: float = 4.0) -> ir.Value:
    """T² · KL of the two Bernoulli distributions with these log odds over T, mean over all numbers: the soft cross-entropy of an
    output that ends in Sigmoid. KL(p ‖ q) = softplus(s) - softplus(t) - p (s - t). Hinton et al. 2015, for two classes."""
    s, t = op.Mul(student, 1.0 / temperature), op.Mul(teacher, 1.0 / temperature)
    each = op.Sub(op.Sub(op.Softplus(s), op.Softplus(t)), op.Mul(op.Sigmoid(t), op.Sub(s, t)))
    return op.Mul(mean(op, each), temperature**2)  # type: ignore[no-any-return]


@loss("cross-entropy", "labels")
def cross_entropy(op: Pen, student: ir.Value, labels: ir.Value) -> ir.Value:
    """-Σ p log softmax(student), mean over rows; p: ones of hard labels, smoothed or mixed ones. At the temperature 1, as the hard part
    of Hinton, Vinyals, Dean 2015, arXiv:1503.02531."""
    each = op.ReduceSum(op.Mul(labels, op.LogSoftmax(student, axis=-1)), [-1], keepdims=0)
    return op.Neg(mean(op, each))  # type: ignore[no-any-return]


@loss("binary-labels", "labels")
def binary_labels(op: Pen, student: ir.Value, labels: ir.Value) -> ir.Value:
    """Cross-entropy of two classes from log odds: softplus(s) - p s, mean over all numbers."""
    return mean(op, op.Sub(op.Softplus(student), op.Mul(labels, student)))


@loss("mse", "features")
def mse(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Mean square difference. Of hidden values: Romero et al., ICLR 2015 (FitNets), arXiv:1412.6550, without a connector."""
    difference = op.Sub(student, teacher)
    return mean(op, op.Mul(difference, difference))


@loss("hint", "features", connects=True)
def hint(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Mean square difference, after a learned connector where the widths differ, which is thrown away at the end (connectors.py).
    Romero et al., ICLR 2015 (FitNets), arXiv:1412.6550."""
    return mse(op, student, teacher)


@loss("relative-mse", "features")
def relative_mse(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """‖s - t‖² / ‖t‖² of each sample, mean over the batch: the inverse of the SQNR that reports show, so that values of any size, and
    each sample alike, count the same."""
    n = shape_of(student)[0]
    error, size = (op.Reshape(each, [n, -1]) for each in (op.Sub(student, teacher), teacher))
    squares = [op.ReduceSum(op.Mul(each, each), [1], keepdims=0) for each in (error, size)]
    return mean(op, op.Div(squares[0], op.Add(squares[1], TINY)))


def _unit_rows(op: Pen, x: ir.Value) -> ir.Value:
    """[rows, n], each row over its length."""
    return op.Div(x, op.Sqrt(op.Add(op.ReduceSum(op.Mul(x, x), [-1], keepdims=1), TINY)))  # type: ignore[no-any-return]


def _per_place(op: Pen, x: ir.Value) -> ir.Value:
    """[n, c, *s] -> [n s, c]."""
    shape = shape_of(x)
    flat = op.Reshape(x, [shape[0], shape[1], -1])
    return op.Reshape(op.Transpose(flat, perm=[0, 2, 1]), [-1, shape[1]])  # type: ignore[no-any-return]


@loss("cosine", "features", channels=True)
def cosine(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """1 - cos of the angle between the channels of student and teacher, mean over samples and places (tokens, frames, pixels):
    for embeddings and hidden states, whose length does not matter. Sanh et al. 2019 (DistilBERT), arXiv:1910.01108."""
    one, two = (_unit_rows(op, _per_place(op, x)) for x in (student, teacher))
    return mean(op, op.Sub(1.0, op.ReduceSum(op.Mul(one, two), [-1], keepdims=0)))


@loss("channel-wise", "features", channels=True)
def channel_wise(op: Pen, student: ir.Value, teacher: ir.Value, *, temperature: float = 4.0) -> ir.Value:
    """T² · KL between where teacher and student have each channel: its values over all places, softened to a distribution; mean over
    samples and channels. For maps of detection and segmentation heads. Shu et al., ICCV 2021, arXiv:2011.13256."""

    def rows(x: ir.Value) -> ir.Value:
        n, c = shape_of(x)[:2]
        return op.Reshape(x, [n * c, -1])  # type: ignore[no-any-return]

    return soft_cross_entropy(op, rows(student), rows(teacher), temperature=temperature)


@loss("attention", "features", widths=True, channels=True, weight=1000.0)
def attention_transfer(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Where both look: sums of squares over channels [n, c, *s] -> [n, s], each over its length; mean square difference.
    Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928."""

    def seen(x: ir.Value) -> ir.Value:
        energy = op.ReduceSum(op.Mul(x, x), [1], keepdims=0)
        return _unit_rows(op, op.Reshape(energy, [shape_of(x)[0], -1]))

    return mse(op, seen(student), seen(teacher))


@loss("similarity", "features", widths=True, weight=3000.0)
def similarity_preserving(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Which samples resemble each other: G = X Xᵀ of the batch [n, n], rows over their length; ‖G_t - G_s‖² / n².
    Tung and Mori, ICCV 2019, arXiv:1907.09682."""

    def alike(x: ir.Value) -> ir.Value:
        rows = op.Reshape(x, [shape_of(x)[0], -1])
        return _unit_rows(op, op.MatMul(rows, op.Transpose(rows, perm=[1, 0])))

    return mse(op, alike(student), alike(teacher))


def _huber(op: Pen, difference: ir.Value) -> ir.Value:
    """d²/2 below 1, |d| - 1/2 above."""
    size = op.Abs(difference)
    near = op.Min(size, 1.0)
    return op.Mul(near, op.Sub(size, op.Mul(near, 0.5)))  # type: ignore[no-any-return]


def _between_rows(op: Pen, x: ir.Value) -> ir.Value:
    """[n, n, d]: row j less row i, at [i, j]."""
    n = shape_of(x)[0]
    rows = op.Reshape(x, [n, -1])
    return op.Sub(op.Reshape(rows, [1, n, -1]), op.Reshape(rows, [n, 1, -1]))  # type: ignore[no-any-return]


@loss("relational-distance", "features", widths=True, weight=25.0)
def relational_distance(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Huber loss between the distances of all pairs of samples, each over its model's mean distance.
    Park et al., CVPR 2019, arXiv:1904.05068."""
    n = shape_of(student)[0]
    apart = 1.0 - np.eye(n)

    def distances(x: ir.Value) -> ir.Value:
        gaps = _between_rows(op, x)
        squares = op.ReduceSum(op.Mul(gaps, gaps), [2], keepdims=0)
        found = op.Mul(op.Sqrt(op.Add(squares, np.eye(n) + TINY)), apart)  # the root of a sample to itself has no slope
        centre = op.Mul(op.ReduceSum(found, keepdims=0), 1.0 / max(n * (n - 1), 1))
        return op.Div(found, op.Add(centre, TINY))  # type: ignore[no-any-return]

    return mean(op, _huber(op, op.Sub(distances(student), distances(teacher))))


@loss("relational-angle", "features", widths=True, weight=50.0)
def relational_angle(op: Pen, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """Huber loss between the cosines of the angles that all triples of samples form. Park et al., CVPR 2019, arXiv:1904.05068."""

    def cosines(x: ir.Value) -> ir.Value:
        sides = _unit_rows(op, _between_rows(op, x))  # [n, n, d]
        return op.MatMul(sides, op.Transpose(sides, perm=[0, 2, 1]))  # type: ignore[no-any-return]

    return mean(op, _huber(op, op.Sub(cosines(student), cosines(teacher))))
