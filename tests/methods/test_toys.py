"""Room for what is to come: several students, generations, assistants, rewound tickets and masks that train, over the engine as it is.

Each is a toy of its paper on the sample digits: small dense networks from random weights, a second of training, and a comparison
that can fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.networks import Net
from onnxcompress.data import Data, open_data
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.runtime.session import open_session
from onnxcompress.training.graph import GRADIENT, LOSS, MASK, Criterion, step_graph
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.loop import train
from onnxcompress.training.losses import LOSSES
from onnxcompress.training.parameters import parameters_of
from onnxcompress.training.pen import Pen
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import Target
from onnxcompress.training.teacher import Teacher

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits"
SEEN = 448
SURE = 12.0
"""Logit of a label: next to no other class is left."""

STEADY: dict[str, object] = {"schedule": "constant", "warmup": 0}

Kept = dict[int, dict[str, np.ndarray]]


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.load(SAMPLE.with_suffix(".npz")), np.load(SAMPLE.with_name("digits_labels.npz"))
    return images[images.files[0]], labels[labels.files[0]].astype(np.int64)


X, Y = digits()


def network(width: int, seed: int) -> Model:
    net = Net(seed)
    hidden = net.node("Relu", net.dense(net.node("Flatten", "x"), "hidden", 64, width))
    net.dense(hidden, "head", width, 10, gain=1.0)
    return load(net.built((1, 8, 8), 10))


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data({"x": X[:SEEN]}, open_session(to_bytes(finished(network(4, 0)))).inputs)


def logits(model: Model, images: np.ndarray = X[SEEN:]) -> np.ndarray:
    found: np.ndarray = open_session(to_bytes(finished(model))).run({"x": images})["logits"]
    return found


def accuracy(model: Model) -> float:
    return float((logits(model).argmax(1) == Y[SEEN:]).mean())


def agreement(one: Model, two: Model) -> float:
    return float((logits(one).argmax(1) == logits(two).argmax(1)).mean())


def of_labels() -> Kept:
    return {index: {"labels": SURE * np.eye(10, dtype=np.float32)[None, Y[index]]} for index in range(SEEN)}


def of(*models: Model) -> Kept:
    """Labels, and what each of the models answers."""
    told = of_labels()
    for number, model in enumerate(models):
        for index, row in enumerate(logits(model, X[:SEEN])):
            told[index][f"model {number}"] = row[None]
    return told


def learn(student: Model, data: Data, kept: Kept, names: Sequence[str], epochs: int = 12, **recipe: object) -> Model:
    """From these of the kept values, with equal weights."""
    targets = [Target(name, "logits", name, "soft-cross-entropy", -1, 1.0, "") for name in names]
    given = {"epochs": epochs, "rate": 1e-2, "minibatch": 32, **recipe}
    return train(Lesson(student, Teacher(None, names, kept), targets, data, Recipe(**given), temperature=1.0)).model  # type: ignore[arg-type]


def test_mutual_learning(data: Data) -> None:
    """Two students teach each other while they learn from labels: their answers are nearer than those of two that learn alone.
    Zhang et al., CVPR 2018, arXiv:1706.00384."""
    alone, pair = ([network(16, seed) for seed in (0, 1)] for _ in range(2))
    for _ in range(10):
        alone = [learn(one, data, of_labels(), ["labels"], 1, **STEADY) for one in alone]
        pair = [
            learn(one, data, of(other), ["labels", "model 0"], 1, **STEADY)
            for one, other in zip(pair, pair[::-1], strict=True)
        ]
    assert distance(*pair) < 0.7 * distance(*alone)
    assert min(map(accuracy, pair)) > 0.85


def test_born_again(data: Data) -> None:
    """Each generation starts from new random weights and learns from the one before, without labels: no generation is worse by more
    than four points, and each takes after its parent more than after a stranger. Furlanello et al., ICML 2018, arXiv:1805.04770."""
    first, stranger = (learn(network(24, seed), data, of_labels(), ["labels"]) for seed in (0, 9))
    parent = first
    for seed in (1, 2):
        child = learn(network(24, seed), data, of(parent), ["model 0"])
        assert accuracy(child) > accuracy(first) - 0.04
        assert agreement(child, parent) > agreement(child, stranger)
        parent = child


def test_teacher_assistant(data: Data) -> None:
    """Large to middle to small: the assistant is nearer to the teacher than the student that it teaches, and the small student gets
    nearly as good as both. Mirzadeh et al., AAAI 2020, arXiv:1902.03393."""
    teacher = learn(network(96, 0), data, of_labels(), ["labels"])
    assistant = learn(network(24, 1), data, of(teacher), ["model 0"])
    small = learn(network(8, 2), data, of(assistant), ["model 0"], 30)
    assert distance(teacher, assistant) < distance(teacher, small)
    assert accuracy(small) > accuracy(teacher) - 0.08


def test_several_teachers(data: Data) -> None:
    """A student of two teachers agrees with both at least as well as with one that it never met. You et al., KDD 2017."""
    one, two, stranger = (learn(network(24, seed), data, of_labels(), ["labels"], 4) for seed in (0, 1, 5))
    student = learn(network(24, 2), data, of(one, two), ["model 0", "model 1"])
    assert min(agreement(student, one), agreement(student, two)) > agreement(student, stranger)


def distance(teacher: Model, student: Model) -> float:
    """Mean KL of their answers."""
    log_p, log_q = (each - np.log(np.exp(each).sum(1, keepdims=True)) for each in (logits(teacher), logits(student)))
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def masked(model: Model, masks: Mapping[str, np.ndarray]) -> Model:
    graph = model.ir.clone()
    for name, mask in masks.items():
        set_constant(graph, name, model.array(name) * mask)
    return model.edited(graph)


def test_lottery_ticket(data: Data) -> None:
    """Train, keep the largest twelfth of each matrix, rewind these to their first values, train with the zeros held: better than as many
    weights at random places. Frankle and Carbin, ICLR 2019, arXiv:1803.03635."""
    start = network(32, 0)
    dense = learn(start, data, of_labels(), ["labels"])
    names, rng = ("hidden.weight", "head.weight"), np.random.default_rng(0)
    ticket, drawn = {}, {}
    for name in names:
        sizes = np.abs(dense.array(name))
        ticket[name] = (sizes > np.quantile(sizes, 11 / 12)).astype(np.float32)
        drawn[name] = rng.permutation(ticket[name].reshape(-1)).reshape(sizes.shape)
    won, lost = (
        learn(masked(start, masks), data, of_labels(), ["labels"], keep_encoding=True) for masks in (ticket, drawn)
    )
    for name in names:
        assert not won.array(name)[ticket[name] == 0].any()
    assert accuracy(won) > accuracy(lost) + 0.03


def test_supermask(data: Data) -> None:
    """No weight moves: the scores behind a mask do, by its gradient (straight through), and half of the random weights become a
    classifier. Zhou et al., NeurIPS 2019, arXiv:1905.01067; Ramanujan et al., CVPR 2020, arXiv:1911.13299."""
    model, rng = network(96, 3), np.random.default_rng(0)
    names = parameters_of(model)
    matrices = [name for name in names if name.endswith("weight")]
    session = step_graph(model, {"x": (64, 1, 8, 8)}, names, labelled(64), masks=matrices).open()
    weights = {name: model.array(name) for name in names}
    scores = {name: np.abs(rng.normal(size=weights[name].shape)).astype(np.float32) for name in matrices}

    def masks() -> dict[str, np.ndarray]:
        return {name: (each > np.median(each)).astype(np.float32) for name, each in scores.items()}

    before, losses = accuracy(masked(model, masks())), []
    for number in range(200):
        chosen = rng.permutation(SEEN)[:64]
        feed = {"x": X[chosen], "labels": np.eye(10, dtype=np.float32)[Y[chosen]]}
        given = session.run({**feed, **weights, **{f"{MASK}{name}": mask for name, mask in masks().items()}})
        losses.append(float(given[LOSS]))
        for name, score in scores.items():
            gradient = given[f"{GRADIENT}{MASK}{name}"]
            score -= (
                np.float32(0.5 / (1 + number / 60)) * gradient / (np.abs(gradient).mean() + 1e-12) * np.float32(0.2)
            )
    assert np.mean(losses[-10:]) < 0.75 * losses[0]
    assert accuracy(masked(model, masks())) > max(0.75, before + 0.4)


def labelled(rows: int) -> Criterion:
    """Cross-entropy with an input of ones."""

    def terms(op: Pen, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        labels = op.input("labels", (rows, 10), np.dtype(np.float32))
        return {"labels": LOSSES["soft-cross-entropy"](op, values["logits"], op.Mul(labels, SURE), temperature=1.0)}

    return terms
