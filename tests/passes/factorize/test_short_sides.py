"""Decompositions from whichever side is short: the same as from the long one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.passes.factorize.alternate import alternated
from onnxcompress.passes.factorize.candidates import Seen
from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.forms.dropped import kept
from onnxcompress.passes.factorize.forms.grouped import _second
from onnxcompress.passes.factorize.metric import Metric, root
from onnxcompress.passes.merge.maps import Window
from onnxcompress.passes.quantize.fitting import Fitting
from onnxcompress.passes.refit.solver import Held, Sums


@pytest.mark.parametrize(("rows", "width", "outs"), [(9, 30, 20), (40, 12, 20), (40, 12, 8)])
def test_leading_directions_are_the_same_by_outputs_by_rows_and_by_inputs(rows: int, width: int, outs: int) -> None:
    rng = np.random.default_rng(rows + outs)
    metric = Metric(rows=rng.normal(size=(2, rows, width)))
    weight = rng.normal(size=(2, outs, width, 1))
    vectors = np.linalg.eigh(metric.outputs(weight))[1][:, :, :-5:-1]
    found = metric.leading(weight, 4)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), vectors @ vectors.transpose(0, 2, 1), atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_rows_with_noise_beside_them_count_as_the_gram_matrix_of_both(name: str) -> None:
    """Of every form: what it starts from, and what the sweeps make of that."""
    kernel = (5, 5) if name == "stacked" else (3, 3)
    window = Window(kernel, (1, 1), (1, 1), *[tuple(size // 2 for size in kernel)] * 2)
    form, shape = FORMS[name], Shape(1, 12, 10, kernel, room=(1, 1), window=window)
    rng = np.random.default_rng(1)
    weight, noise = rng.normal(size=(1, 12, 10, shape.taps)), np.array([3.0])
    rows = rng.normal(size=(1, 40, 10 * shape.taps)) * np.linspace(0.2, 2, 10 * shape.taps)
    gram = rows.transpose(0, 2, 1) @ rows
    whole = Metric(gram + noise * np.eye(gram.shape[1]))
    ranks = form.ladder(shape)[len(form.ladder(shape)) // 2]
    errors = []
    for metric in (whole, Metric(gram, noise=noise), Metric(rows=rows, noise=noise)):
        begun = form.start(shape, weight, ranks, metric)
        made = [begun] if form.closed else [begun, alternated(form, shape, weight, begun, metric)]
        errors.append([whole.error(weight - form.dense(shape, each)) for each in made])
        assert metric.error(weight) == pytest.approx(whole.error(weight))
    np.testing.assert_allclose(errors[1:], errors[:1] * 2, rtol=1e-3)


@pytest.mark.parametrize("bias", ["b", None])
def test_a_stop_with_fewer_rows_than_columns_knows_the_same(bias: str | None) -> None:
    rng = np.random.default_rng(2)
    weight, offset = rng.normal(size=(1, 4, 50)), rng.normal(size=(1, 4))
    fit, rows, judge = Sums(), Held(), Held()
    for n in (12, 15, 9):
        x = rng.normal(size=(1, n, 50)).astype(np.float32).astype(float) + 1
        y = (x @ weight.transpose(0, 2, 1) + rng.normal(size=(1, n, 4))).astype(np.float32).astype(float)
        for part in (fit, rows) if n > 9 else (judge,):
            part.add(x, y)
    start = weight + rng.normal(size=weight.shape)
    by_sums, by_rows = (Fitting(start, offset, bias, each, judge) for each in (fit, rows))
    np.testing.assert_allclose(by_rows.aim(), by_sums.aim(), atol=1e-5)
    assert not np.allclose(by_rows.aim(), start)
    np.testing.assert_allclose(by_rows.gram(), by_sums.gram(), atol=1e-3)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1), (2, 9)])
def test_the_second_singular_vector(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(sum(shape)).normal(size=shape) ** 2
    vectors = np.linalg.svd(matrix, full_matrices=False)[2]
    found = _second(matrix)
    assert abs(found @ vectors[min(1, len(vectors) - 1)]) == pytest.approx(np.linalg.norm(found), rel=1e-6)


def test_kept_weights_are_the_same_from_rows_and_from_their_gram_matrix() -> None:
    rng = np.random.default_rng(0)
    fed, weight, places = rng.normal(size=(1, 12, 30)), rng.normal(size=(6, 30)), np.arange(0, 30, 2)
    by_rows = kept(weight, places, Metric(rows=fed))
    np.testing.assert_allclose(by_rows, kept(weight, places, Metric(gram=fed.transpose(0, 2, 1) @ fed)), atol=1e-8)


@pytest.mark.parametrize("n", [20, 300])
def test_roots_and_their_inverses_small_and_large(n: int) -> None:
    rows = np.random.default_rng(n).normal(size=(1, 2 * n, n))
    moments = rows.transpose(0, 2, 1) @ rows
    for damping in (1e-6, 0.0):  # by Cholesky, and by eigenvectors
        factor, inverse = root(moments, damping)
        np.testing.assert_allclose(factor @ factor.transpose(0, 2, 1), moments, rtol=1e-4, atol=1e-4 * n)
        np.testing.assert_allclose(inverse @ factor, np.eye(n)[None], atol=1e-6)


def test_rows_of_any_size_are_squared_in_float32_without_overflow():
    """A net whose norms were never calibrated feeds its layers with 1e20; a power of two as unit changes no digit."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1, 32, 6)).astype(np.float32), rng.normal(size=(1, 32, 4))
    weight = rng.normal(size=(1, 4, 6, 1))
    shares = []
    for size in (1.0, 2.0**70):
        seen = Seen()
        seen.add(x * np.float32(size), y * size)
        shares.append(seen.metric(seen.unit).error(weight) / (seen.power / seen.count / seen.unit**2))
    assert shares[1] == pytest.approx(shares[0], rel=1e-6)
    assert Seen().unit == 1.0
