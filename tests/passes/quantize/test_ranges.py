"""Calibration against brute force on the samples themselves; what all methods have in common; odd tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import DataError, SettingError
from onnxcompress.evidence.kinds import KINDS, Histogram
from onnxcompress.model import load
from onnxcompress.operators.layer import layers
from onnxcompress.passes.quantize.grid import Kind, grid_of
from onnxcompress.passes.quantize.ranges import CALIBRATORS, calibrate, read_energy

FORMS: tuple[tuple[Kind, bool], ...] = (
    ("uint8", False),
    ("int8", True),
    ("uint8", True),
    ("uint4", False),
    ("int4", True),
)
SEARCHED = ("entropy", "mse", "output")


def tensor(name: str, seed: int = 0, count: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "normal": lambda: rng.standard_normal(count),
        "relu": lambda: np.maximum(rng.standard_normal(count), 0),
        "heavy": lambda: rng.standard_t(2, count),
        "skewed": lambda: rng.exponential(1, count) - 0.2,
        "outlier": lambda: np.append(rng.standard_normal(count), [60.0]),
        "two ends": lambda: np.concatenate([rng.normal(-3, 0.1, count), rng.normal(1, 0.5, count)]),
        "small": lambda: 1e-12 * rng.standard_normal(count),
    }
    return made[name]().astype(np.float32)  # type: ignore[no-any-return]


TENSORS = ("normal", "relu", "heavy", "skewed", "outlier", "two ends", "small")


def measured(x: Any) -> Histogram:
    return KINDS["histogram"].update(None, np.asarray(x, np.float32).reshape(-1, 1))  # type: ignore[no-any-return]


def error(x: np.ndarray, low: float, high: float, kind: Kind, symmetric: bool) -> float:
    """Mean squared error of the samples themselves."""
    grid = grid_of(low, high, kind, symmetric=symmetric)
    return float(np.mean((grid.rounded(x).astype(np.float64) - x) ** 2))


values = st.lists(st.floats(-1e6, 1e6, width=32) | st.floats(-2, 2, width=32) | st.just(0.0), min_size=1, max_size=60)


@pytest.mark.parametrize("method", CALIBRATORS)
@settings(max_examples=60)
@given(x=values, form=st.sampled_from(FORMS))
def test_every_range_holds_zero_and_no_more_than_was_seen(method: str, x: list[float], form: tuple[Kind, bool]) -> None:
    kind, symmetric = form
    low, high = calibrate("x", measured(x), method, kind, symmetric=symmetric)
    assert isinstance(low, float) and isinstance(high, float)
    assert min(*x, 0) <= low <= 0 <= high <= max(*x, 0)


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize("form", FORMS)
def test_one_point_and_no_point(method: str, form: tuple[Kind, bool]) -> None:
    kind, symmetric = form
    assert calibrate("x", measured(np.zeros(5)), method, kind, symmetric=symmetric) == (0, 0)
    for point in (3.0, -0.125):
        low, high = calibrate("x", measured(np.full(5, point)), method, kind, symmetric=symmetric)
        assert error(np.float32([point]), low, high, kind, symmetric) <= (abs(point) / 15) ** 2


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("form", FORMS)
def test_mse_is_as_good_as_brute_force_on_the_samples(name: str, form: tuple[Kind, bool]) -> None:
    """Within 3 % of the best of 1,600 ranges (40 ends on each side)."""
    (kind, symmetric), x = form, tensor(name)
    low, high = calibrate("x", measured(x), "mse", kind, symmetric=symmetric)
    shares = np.concatenate([np.linspace(1, 0.2, 25), 2.0 ** -np.linspace(2.5, 6, 15)])
    ends = [(a, b) for a in shares * min(float(x.min()), 0) for b in shares * max(float(x.max()), 0)]
    tried = [error(x[::8], a, b, kind, symmetric) for a, b in dict.fromkeys(ends)]
    best = list(dict.fromkeys(ends))[int(np.argmin(tried))]
    assert error(x, low, high, kind, symmetric) <= 1.03 * error(x, *best, kind, symmetric)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("share", [50, 99, 99.9, 99.99, 100])
def test_percentiles_are_those_of_the_samples(name: str, share: float) -> None:
    x = tensor(name)
    found = calibrate("x", measured(x), "percentile", "uint8", symmetric=False, percentile=share)
    for end, at in zip(found, ((100 - share) / 2, 100 - (100 - share) / 2), strict=True):
        # beside the order statistics on both sides: at most a bin away, a 64th
        below, above = (np.percentile(x, at, method=how) for how in ("lower", "higher"))
        if not min(below, 0) == max(above, 0) == 0 and (below < 0) == (at < 50):
            assert below - abs(below) / 60 <= end <= above + abs(above) / 60
    top = max(np.abs(calibrate("x", measured(x), "percentile", "int8", symmetric=True, percentile=share)))
    below, above = (np.percentile(np.abs(x), share, method=how) for how in ("lower", "higher"))
    assert below * (1 - 1 / 60) <= top <= above * (1 + 1 / 60)


def test_extremes_and_their_average() -> None:
    batches = [np.float32([-1, 2]), np.float32([0, 8, 3]), np.float32([-5, 5])]
    state = None
    for batch in batches:
        state = KINDS["histogram"].update(state, batch.reshape(-1, 1))
    assert state is not None
    assert calibrate("x", state, "minmax", "uint8", symmetric=False) == (-5, 8)
    assert calibrate("x", state, "average", "uint8", symmetric=False) == (-2, 5)


@pytest.mark.parametrize("method", CALIBRATORS)
def test_joining_in_any_order_gives_the_same_range(method: str) -> None:
    parts = [tensor(name, seed) for seed, name in enumerate(("normal", "heavy", "relu", "outlier"))]
    found = set()
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        state = None
        for place in order:
            state = KINDS["histogram"].merge(state, measured(parts[place]))
        assert state is not None
        low, high = calibrate("x", state, method, "uint8", symmetric=False)
        found.add((round(low, 6), round(high, 6)))
    assert len(found) == 1


@pytest.mark.parametrize("method", SEARCHED)
@pytest.mark.parametrize("form", FORMS)
def test_one_far_outlier_does_not_cost_the_rest_its_levels(method: str, form: tuple[Kind, bool]) -> None:
    kind, symmetric = form
    x = np.append(tensor("relu"), np.float32(1000.0))
    low, high = calibrate("x", measured(x), method, kind, symmetric=symmetric)
    if method == "entropy":
        assert error(x[:-1], low, high, kind, symmetric) < 0.1 * error(x[:-1], 0, 1000, kind, symmetric)
    else:
        assert error(x, low, high, kind, symmetric) <= error(x, 0, 1000, kind, symmetric)


@pytest.mark.parametrize("name", ["normal", "relu", "skewed"])
def test_entropy_keeps_the_body_of_a_light_tail(name: str) -> None:
    x = tensor(name)
    low, high = calibrate("x", measured(x), "entropy", "uint8", symmetric=False)
    assert np.mean((x < low) | (x > high)) < 0.01


@pytest.mark.parametrize("form", FORMS[:2])
def test_entropy_is_the_divergence_of_the_samples(form: tuple[Kind, bool]) -> None:
    """Beside TensorRT's own recipe on 2048 bins, where that resolves the tensor: nearly the least divergence there."""
    (kind, symmetric), x = form, np.abs(tensor("normal", count=200_000))
    _, high = calibrate("x", measured(x), "entropy", kind, symmetric=symmetric)
    levels, counts = 128 if symmetric else 256, np.histogram(x, 2048, (0, float(x.max())))[0].astype(float)

    def divergence(bins: int) -> float:
        p = counts[:bins].copy()
        filled = p > 0
        parts = np.array_split(np.arange(bins), levels)
        q = np.concatenate([filled[part] * p[part].sum() / max(filled[part].sum(), 1) for part in parts])
        p[-1] += counts[bins:].sum()
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-6)
        return float(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0).sum())

    tried = [divergence(bins) for bins in range(levels, 2049, 16)]
    assert divergence(round(2048 * high / float(x.max()))) <= min(tried) + 0.1 * (max(tried) - min(tried))


def test_zeros_do_not_sway_entropy() -> None:
    x = tensor("relu")
    ranges = [
        calibrate("x", measured(np.append(x, np.zeros(more, np.float32))), "entropy", "uint8", symmetric=False)
        for more in (0, 500_000)
    ]
    assert ranges[0] == ranges[1]


def test_entropy_of_few_entries_does_not_clip_half_of_them() -> None:
    """A pooled tensor: 128 numbers, each in a bin of its own."""
    x = np.abs(tensor("normal", count=128))
    _, high = calibrate("x", measured(x), "entropy", "uint8", symmetric=False)
    assert np.mean(x > high) < 0.05


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e6, 1e30])
@pytest.mark.parametrize("method", CALIBRATORS)
def test_a_scaled_tensor_has_a_scaled_range(method: str, scale: float) -> None:
    """By a power of two, to the last bits."""
    scale = 2.0 ** round(np.log2(scale))
    x = tensor("skewed")
    plain = calibrate("x", measured(x), method, "uint8", symmetric=False)
    scaled = calibrate("x", measured(x * np.float32(scale)), method, "uint8", symmetric=False)
    assert np.allclose(scaled, np.multiply(plain, scale), rtol=1e-6)


# ---- by the error of the output ----


def test_output_weighs_channels_by_who_reads_them() -> None:
    """A wide channel that nobody reads is clipped; read by all, it keeps its levels: better than `mse` for the output."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((4000, 8)), 0).astype(np.float32) * np.float32([1, 1, 1, 1, 1, 1, 1, 30])
    histogram, moments = measured(x), KINDS["moments"].update(None, x)
    for wide in (1e-3, 3.0):
        weight = rng.standard_normal((8, 5)) * np.append(np.ones(7), wide)[:, None]
        energy = (weight**2).sum(1)
        found = calibrate("x", histogram, "output", "uint4", symmetric=False, moments=moments, energy=energy)
        plain = calibrate("x", histogram, "mse", "uint4", symmetric=False)

        def harm(low: float, high: float, weight: np.ndarray = weight) -> float:
            return float(np.mean(((grid_of(low, high, "uint4", symmetric=False).rounded(x) - x) @ weight) ** 2))

        tops = np.linspace(0.5, float(x.max()), 200)
        assert harm(*found) <= harm(*plain) * 1.05
        assert harm(*found) <= 1.15 * min(harm(0.0, float(top)) for top in tops)


def test_output_without_channels_is_mse() -> None:
    histogram = measured(tensor("heavy"))
    assert calibrate("x", histogram, "output", "uint8", symmetric=False) == calibrate(
        "x", histogram, "mse", "uint8", symmetric=False
    )


def test_energy_of_grouped_and_plain_readers() -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,6,8,8] x) => (float[N,4,8,8] y, float[N,6,8,8] z) {
        a = Relu(x)  y = Conv(a, dense)  z = Conv<group=3>(a, grouped) }"""
    proto = onnx.parser.parse_model(text)
    stored = {"dense": rng.standard_normal((4, 6, 1, 1)), "grouped": rng.standard_normal((6, 2, 1, 1))}
    for name, array in stored.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = load(proto)
    readers = layers(model)
    assert len(readers) == 2
    found = read_energy(readers, [model.array(layer.weight) for layer in readers], 6)
    dense, grouped = stored["dense"][..., 0, 0], stored["grouped"][..., 0, 0]
    by_hand = [(dense[:, c] ** 2).sum() + (grouped[c // 2 * 2 : c // 2 * 2 + 2, c % 2] ** 2).sum() for c in range(6)]
    assert np.allclose(found, by_hand)


# ---- errors ----


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("method", CALIBRATORS)
def test_what_is_not_finite_is_an_error_with_the_name(method: str, bad: float, word: str) -> None:
    with pytest.raises(DataError, match=f"'block3/relu' has entries that are {word}"):
        calibrate("block3/relu", measured([1.0, bad]), method, "uint8", symmetric=False)


def test_wrong_settings() -> None:
    histogram = measured([1.0])
    with pytest.raises(SettingError, match=r"no calibration is called 'entrpy'.*entropy"):
        calibrate("x", histogram, "entrpy", "uint8", symmetric=False)
    for share in (0, 101):
        with pytest.raises(SettingError, match=f"percentile is {share}"):
            calibrate("x", histogram, "percentile", "uint8", symmetric=False, percentile=share)
