"""Losses: their value against the formula in numpy, their gradient against differences in float64, zero for a perfect student."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.training.losses import LOSSES, loss
from onnxcompress.training.pen import Pen
from onnxcompress.training.reverse import differentiate
from tests.training.check import Arrays, close, differences, run_float64, run_stock

RNG = np.random.default_rng(5)
OURS = tuple(name for name, each in LOSSES.items() if each.function.__module__ == loss.__module__)
"""Those of the package: the benchmarks register one of their own."""

T = 3.0


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(-1).mean())


def huber(d: np.ndarray) -> np.ndarray:
    return np.where(np.abs(d) < 1, d * d / 2, np.abs(d) - 0.5)


def units(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)


def by_rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def distances(x: np.ndarray) -> np.ndarray:
    d = np.linalg.norm(by_rows(x)[:, None] - by_rows(x), axis=-1)
    return d / d[d > 0].mean()


def cosines(x: np.ndarray) -> np.ndarray:
    sides = units(by_rows(x)[None] - by_rows(x)[:, None])
    return np.einsum("ijd,ikd->ijk", sides, sides)


def alpha(s: np.ndarray, t: np.ndarray) -> float:
    """Both sides in numpy, with the published clip of 5."""
    p, q = softmax(t / T), softmax(s / T)
    ratio = p / q
    below = (q * (np.clip(ratio**-1.0, 0, 5) / 2 - 0.5)).sum(-1)
    above = (q * np.clip(ratio, 0, 5) * np.log(ratio)).sum(-1)
    return float(np.maximum(below, above).mean())


def frames(s: np.ndarray, t: np.ndarray) -> float:
    """Each frame weighs what is left of it beside the class that is most frequent."""
    p, q, said = softmax(t / T), softmax(s / T), softmax(t)
    each, weight = (p * np.log(p / q)).sum(-1), np.maximum(1 - said[:, said.sum(0).argmax()], 0.1)
    return float((each * weight).sum() / weight.sum() * T * T)


def attention(x: np.ndarray) -> np.ndarray:
    return units(by_rows((x**2).sum(1)))


def alike(x: np.ndarray) -> np.ndarray:
    return units(by_rows(x) @ by_rows(x).T)


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "soft-cross-entropy": lambda s, t: T * T * kl(softmax(t / T), softmax(s / T)),
    "reverse-kl": lambda s, t: T * T * kl(softmax(s / T), softmax(t / T)),
    "js": lambda s, t: T * T / 2 * sum(
        kl(p, (softmax(s / T) + softmax(t / T)) / 2) for p in (softmax(s / T), softmax(t / T))
    ),
    "alpha": alpha,
    "logits-mse": lambda s, t: float((((s - t) - (s - t).mean(-1, keepdims=True)) ** 2).mean()),
    "binary": lambda s, t: T * T * float(np.mean([
        kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
        for p, q in zip(1 / (1 + np.exp(-t.ravel() / T)), 1 / (1 + np.exp(-s.ravel() / T)), strict=True)
    ])),
    "cross-entropy": lambda s, p: -float((p * np.log(softmax(s))).sum(-1).mean()),
    "binary-labels": lambda s, p: -float((p * np.log(1 / (1 + np.exp(-s))) + (1 - p) * np.log(1 / (1 + np.exp(s)))).mean()),
    "frames": frames,
    "mse": lambda s, t: float(((s - t) ** 2).mean()),
    "hint": lambda s, t: float(((s - t) ** 2).mean()),
    "relative-mse": lambda s, t: float((by_rows((s - t) ** 2).sum(1) / by_rows(t**2).sum(1)).mean()),
    "cosine": lambda s, t: float(1 - (units(np.moveaxis(s, 1, -1)) * units(np.moveaxis(t, 1, -1))).sum(-1).mean()),
    "channel-wise": lambda s, t: T * T * kl(softmax(t.reshape(*t.shape[:2], -1) / T), softmax(s.reshape(*s.shape[:2], -1) / T)),
    "attention": lambda s, t: float(((attention(s) - attention(t)) ** 2).mean()),
    "similarity": lambda s, t: float(((alike(s) - alike(t)) ** 2).mean()),
    "relational-distance": lambda s, t: float(huber(distances(s) - distances(t)).mean()),
    "relational-angle": lambda s, t: float(huber(cosines(s) - cosines(t)).mean()),
}  # fmt: skip


def values(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher; the student narrower where the loss allows it."""
    if LOSSES[name].of == "labels":
        return RNG.normal(size=(4, 5)) * 3, softmax(RNG.normal(size=(4, 5)))
    if LOSSES[name].of != "features":
        return RNG.normal(size=(4, 5)) * 3, RNG.normal(size=(4, 5)) * 3
    return RNG.normal(size=(4, 2 if LOSSES[name].widths else 3, 2, 2)), RNG.normal(size=(4, 3, 2, 2))


def made(name: str, student: np.ndarray, teacher: np.ndarray, dtype: type = np.float64) -> tuple[ir.Model, Arrays]:
    """A graph with outputs loss and gradient by the student."""
    graph = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=8)
    op = Pen(graph)
    s, t = op.input("s", student.shape, dtype), op.input("t", teacher.shape, dtype)
    value = LOSSES[name](op, s, t, temperature=T)
    graph.graph.outputs[:] = [value, op.Identity(differentiate(op, value, [s])[s])]
    return graph, {"s": student.astype(dtype), "t": teacher.astype(dtype)}


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient(name: str) -> None:
    student, teacher = values(name)
    graph, feeds = made(name, student, teacher)
    loss, gradient = run_float64(graph, feeds)
    assert float(loss) == pytest.approx(FORMULAS[name](student, teacher), rel=1e-6)
    if name != "alpha":  # its gradient is not that of its value, below
        close(
            gradient,
            differences(lambda f: np.asarray(run_float64(graph, f)[0]), feeds, "s", np.ones(()), 1e-6),
            1e-6,
            "s",
        )
    single, feeds = made(name, student, teacher, np.float32)
    close(run_stock(single, feeds)[1], gradient, 1e-3, name)


@pytest.mark.parametrize("name", [name for name in OURS if LOSSES[name].of != "labels"])
def test_a_perfect_student_has_nothing_to_learn(name: str) -> None:
    _, teacher = values(name)
    graph, feeds = made(name, teacher, teacher)
    loss, gradient = run_float64(graph, feeds)
    assert abs(float(loss)) < 1e-9 and np.abs(gradient).max() < 1e-6


def test_every_loss_has_its_formula_here() -> None:
    assert FORMULAS.keys() == set(OURS)


def test_temperature_keeps_the_size_of_gradients() -> None:
    """Hinton's T²: the gradient tends to (s - t) / classes for centred logits as T grows, and does not shrink with 1 / T²."""
    student, teacher = (x - x.mean(-1, keepdims=True) for x in values("soft-cross-entropy"))
    graph = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=8)
    op = Pen(graph)
    s, t = op.input("s", student.shape, np.float64), op.input("t", teacher.shape, np.float64)
    loss = LOSSES["soft-cross-entropy"](op, s, t, temperature=1e4)
    graph.graph.outputs[:] = [op.Identity(differentiate(op, loss, [s])[s])]
    close(run_float64(graph, {"s": student, "t": teacher})[0], (student - teacher) / 5 / 4, 1e-3, "s")


def test_the_alpha_divergence_is_bounded_where_the_student_is_sure_and_wrong() -> None:
    """Unclipped, p²/q grows without bound: here e^40. The gradient -Σ q ρ ∇log q with ρ <= 5 stays below 2 · 5 a row."""
    student, teacher = np.array([[40.0, 0.0, 0.0]]), np.array([[0.0, 40.0, 0.0]])
    graph, feeds = made("alpha", student * T, teacher * T)
    loss, gradient = run_float64(graph, feeds)
    assert np.isfinite(loss) and 0 < np.abs(gradient).max() <= 10


def test_the_gradient_of_the_alpha_divergence_is_that_of_the_larger_side() -> None:
    """Of row 1 by hand: -Σ q ρ (onehot - q) / T with ρ of the side whose divergence is larger."""
    student, teacher = values("alpha")
    graph, feeds = made("alpha", student, teacher)
    p, q = softmax(teacher / T), softmax(student / T)
    ratio = p / q
    sides = [
        ((q * (np.clip(1 / ratio, 0, 5) / 2 - 0.5)).sum(-1), -np.clip(1 / ratio, 0, 5) + 0.5),
        ((q * np.clip(ratio, 0, 5) * np.log(ratio)).sum(-1), np.clip(ratio, 0, 5)),
    ]
    weight = np.where((sides[0][0] > sides[1][0])[:, None], sides[0][1], sides[1][1])
    pull = q * weight
    wanted = -(pull - q * pull.sum(-1, keepdims=True)) / T / len(q)
    close(run_float64(graph, feeds)[1], wanted, 1e-9, "s")
