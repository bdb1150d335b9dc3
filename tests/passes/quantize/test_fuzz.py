"""Damaged models on their way through check and quantize: an answer or one line of error, never anything else."""

from __future__ import annotations

import functools
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import mutated, shuffled
from zoo import ZOO

from onnxcompress import OnnxCompressError, check, quantize
from onnxcompress.model.guard import forget
from onnxcompress.model.save import finished, to_bytes

MEMORY = 8 << 30
"""Bytes of address space while damaged models run; two workers share a machine."""

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """A mutated size can ask for terabytes: that must fail, not take the machine with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    forget()
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    forget()


@functools.cache
def quantized() -> bytes:
    """The sample model in int8."""
    return to_bytes(finished(quantize(DIGITS, measure=False, limit=8).model))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@example(seed=189, times=1, bytewise=False)  # a tensor with fewer bytes than its shape has entries
@given(seed=st.integers(0, 1 << 30), times=st.integers(1, 3), bytewise=st.booleans())
def test_check_answers_or_says_what_is_wrong(seed: int, times: int, bytewise: bool) -> None:
    rng = random.Random(seed)
    model = onnx.load_from_string(quantized())
    data = shuffled(quantized(), rng, times) if bytewise else mutated(model, rng, times).SerializeToString()
    try:
        assert check(data).headline
    except OnnxCompressError as error:
        assert "\n" not in str(error)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(ZOO)),
    seed=st.integers(0, 1 << 30),
    times=st.integers(1, 2),
    mode=st.sampled_from(["static", "weights", "dynamic"]),
)
def test_quantize_answers_or_says_what_is_wrong(name: str, seed: int, times: int, mode: str) -> None:
    data = mutated(ZOO[name](), random.Random(seed), times).SerializeToString()
    try:
        result = quantize(data, mode=mode, measure=False)
    except OnnxCompressError as error:
        assert "\n" not in str(error)
    except MemoryError:
        return  # a size that the file declares; the command line says so in one line
    else:
        assert to_bytes(finished(result.model))
