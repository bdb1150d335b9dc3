"""Forms in which tensors train: values as the file decodes them, gradients by the chain rule, and what must not move does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from onnx import helper, numpy_helper

from onnxcompress.data import Data, open_data
from onnxcompress.model import Model, load
from onnxcompress.model.edit import coded_of, set_coded, set_constant
from onnxcompress.model.save import written_as
from onnxcompress.runtime.session import open_session
from onnxcompress.training.kept import Booked, Dense, Moving, form_of
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.loop import train
from onnxcompress.training.parameters import Parameters, parameters_of
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import targets_of
from onnxcompress.training.teacher import Teacher
from onnxcompress.weights.coded import Coded, per_tensor

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"


@st.composite
def coded_tensors(draw: st.DrawFn) -> Coded:
    """Any shape, axis, number of books, width of vectors, scales or none; an entry may be zero."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    rank, axis = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    shape = tuple(int(rng.integers(1, 5)) for _ in range(rank))
    axis %= rank
    width = draw(st.sampled_from([1, 1, 2]))
    grouped = draw(st.booleans())
    if width > 1:
        shape, axis = (shape[0], *(size * width for size in shape[1:])) if rank > 1 else (shape[0] * width,), 0
        grouped = grouped and rank > 1
    size, count, entries = int(np.prod(shape)), 2 if grouped else 1, draw(st.integers(1, 5))
    books = rng.normal(size=(count, entries, width)).astype(np.float32)
    books[:, 0] *= draw(st.integers(0, 1))
    scales = rng.uniform(0.5, 2, shape[axis]).astype(np.float32) if draw(st.booleans()) else None
    groups = rng.integers(0, count, shape[axis]) if grouped else None
    return Coded(shape, rng.integers(0, entries, size // width).astype(np.uint8), books, scales, groups, axis)


@settings(max_examples=150, deadline=None)
@given(coded_tensors())
def test_values_are_decoded_ones_and_gradients_follow_the_chain_rule(coded: Coded) -> None:
    form = Booked(coded)
    parts = form.start()
    assert np.array_equal(form.values(parts), coded.decode())
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=coded.shape).astype(np.float32)
    pulled = form.pull(gradient, parts)
    for name, part in parts.items():  # the tensor is linear in books and in scales: a difference is exact
        for place in np.ndindex(part.shape):
            moved = {each: array.astype(np.float64) for each, array in parts.items()}
            before = (gradient * form.values(moved)).sum()
            moved[name][place] += 1.0
            slope = (gradient * form.values(moved)).sum() - before
            if name == "books" and form.fixed[place]:
                slope = 0.0
            assert pulled[name][place] == pytest.approx(slope, abs=1e-3)


@settings(max_examples=150, deadline=None)
@given(coded_tensors())
def test_symbols_that_may_move_start_where_they_are(coded: Coded) -> None:
    """Where the nearest entry to a coded value is itself, which repeated entries and one of zero scale may break."""
    form = Moving(coded)
    parts = form.start()
    np.testing.assert_allclose(form.values(parts), coded.decode(), rtol=1e-5, atol=1e-6)
    form.settle(parts)
    np.testing.assert_allclose(form.now(parts).decode(), coded.decode(), rtol=1e-5, atol=1e-6)


def test_a_latent_weight_crosses_the_middle_and_its_symbol_follows() -> None:
    coded = Coded(
        (1, 4), np.array([0, 0, 1, 1], np.uint8), np.array([[[-1.0], [1.0]]], np.float32), np.array([0.5], np.float32)
    )
    form = Moving(coded)
    parts = form.start()
    assert parts["latent"].tolist() == [[-0.5, -0.5, 0.5, 0.5]]
    parts["latent"][0, 1:3] += [0.7, 3.0]
    form.settle(parts)
    assert parts["latent"][0].tolist() == pytest.approx([-0.5, 0.2, 0.5, 0.5])  # not beyond the outermost entry
    assert form.now(parts).symbols.tolist() == [0, 1, 1, 1]
    pulled = form.pull(np.array([[1.0, 2.0, 3.0, 4.0]], np.float32), parts)
    assert pulled["latent"].tolist() == [[1.0, 2.0, 3.0, 4.0]]  # straight through
    assert not pulled["books"].any() and pulled["scales"].tolist() == [
        0.5 * (-1.0 + 2.0 + 3.0 + 4.0)
    ]  # signs are fixed


def test_the_weights_before_coding_are_the_latent_ones_where_symbols_agree() -> None:
    coded = Coded((4,), np.array([0, 1, 1, 0], np.uint8), np.array([[[-1.0], [1.0]]], np.float32))
    form = Moving(coded, guess=np.array([-0.25, 0.5, -0.5, -3.0], np.float32))
    assert form.start()["latent"].tolist() == [-0.25, 0.5, 1.0, -1.0]


def test_pruned_zeros_stay_in_any_form() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([0, -0.5, 0.25, 1, 2], np.float32), size=(8, 16), p=[0.5, 0.125, 0.125, 0.125, 0.125])
    gradient = rng.normal(size=values.shape).astype(np.float32)
    for form in (
        form_of(values, None),
        form_of(values, per_tensor(values)),
        form_of(values, per_tensor(values), move=True),
    ):
        parts = form.start()
        for _ in range(50):
            for name, pulled in form.pull(gradient, parts).items():
                parts[name] -= np.float32(0.1) * pulled
            form.settle(parts)
        found = form.values(parts)
        assert (found[values == 0] == 0).all() and not np.array_equal(found, values)
    assert form_of(np.zeros((4, 4), np.float32), None).zeros is None  # type: ignore[attr-defined]  # it has not trained yet


def digits() -> tuple[Model, Data]:
    session = open_session(DIGITS)
    data = open_data(str(DIGITS.with_suffix(".npz")), session.inputs, limit=64, session=session)
    return load(DIGITS), data.calibration


def lesson(student: Model, teacher: Model, data: Data, **recipe: object) -> Lesson:
    targets = targets_of(student, teacher)
    taught = Teacher.of(teacher, [target.teacher for target in targets])
    return Lesson(student, taught, targets, data, Recipe(**{"epochs": 2, "minibatch": 16, "rate": 0.01, **recipe}))  # type: ignore[arg-type]


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_a_coded_student_stays_coded(move: bool, optimizer: str) -> None:
    teacher, data = digits()
    graph = teacher.ir.clone()
    names = [name for name in parameters_of(teacher) if teacher.array(name).ndim > 1]
    for name in names:
        rows = teacher.array(name).astype(np.float32)
        scales = np.abs(rows).reshape(len(rows), -1).mean(1)
        book = np.array([[[-1.0], [1.0]]], np.float32)
        set_coded(graph, name, Coded(rows.shape, (rows > 0).reshape(-1).astype(np.uint8), book, scales))
    student = teacher.edited(graph)
    wanted = lesson(student, teacher, data, keep_encoding=True, move_symbols=move, optimizer=optimizer, decay=0.01)
    made = train(replace(wanted, guesses={name: teacher.array(name) for name in names}))
    assert made.curve[-1]["loss"] < made.curve[0]["loss"]
    changed = 0
    for name in names:
        before, after = (written_as(model.initializers[name]) for model in (student, made.model))
        assert before is not None and after is not None and after.scales is not None
        assert np.array_equal(before.books, after.books) and not np.array_equal(before.scales, after.scales)  # type: ignore[arg-type]
        changed += int((before.symbols != after.symbols).sum())
    assert (changed > 0) == move


def tied() -> Model:
    """x @ w, Relu, @ w transposed: one embedding, read twice."""
    w = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
         helper.make_node("MatMul", ["r", "v"], ["y"])],
        "tied", [helper.make_tensor_value_info("x", 1, ["N", 40])], [helper.make_tensor_value_info("y", 1, ["N", 40])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.ascontiguousarray(w.T), "v")],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("keep", ["dense", "books", "moving"])
def test_matrices_that_are_one_transposed_stay_so(keep: str) -> None:
    teacher = tied()
    graph = teacher.ir.clone()
    w = teacher.array("w")
    if keep == "dense":
        set_constant(graph, "w", w * np.float32(1.1))
        set_constant(graph, "v", (w * np.float32(1.1)).T)
    else:
        coded = per_tensor(np.round(w))
        assert coded is not None
        coded = replace(coded, books=coded.books + np.float32(0.1))
        set_coded(graph, "w", coded)
        set_coded(graph, "v", coded.transposed())
    student = teacher.edited(graph)
    x = np.random.default_rng(1).normal(size=(32, 40)).astype(np.float32)
    data = open_data({"x": x}, open_session(teacher.serialized).inputs).calibration
    made = train(lesson(student, teacher, data, keep_encoding=keep != "dense", move_symbols=keep == "moving"))
    one, two = made.model.array("w"), made.model.array("v")
    assert one.tobytes() == np.ascontiguousarray(two.T).tobytes() and not np.array_equal(one, student.array("w"))
    assert (coded_of(made.model.initializers["v"]) is None) == (keep == "dense")


def test_the_gradient_of_both_readers_of_a_tied_matrix_counts() -> None:
    held = Parameters.of(tied())
    total = np.zeros(held.layout.size, np.float32)
    one, two = np.ones((40, 30), np.float32), np.arange(1200, dtype=np.float32).reshape(30, 40)
    held.gather(total, {"w": one, "v": two}, 0.5, held.start())
    assert np.array_equal(held.layout.views(total)["w"], 0.5 * (one + two.T))


def test_books_do_not_decay_and_dense_matrices_do() -> None:
    values = np.round(np.random.default_rng(0).normal(size=(4, 6))).astype(np.float32)
    dense, coded = Dense(values), form_of(values, per_tensor(values))
    assert dense.decays == ("",) and coded.decays == ()
