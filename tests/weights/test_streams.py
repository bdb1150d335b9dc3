"""Coders of streams: what goes in comes out, sizes are those of theory, and damaged payloads raise ValueError only."""

from __future__ import annotations

import heapq
import random
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import shuffled

from onnxcompress.errors import SettingError
from onnxcompress.weights import ans, huffman, streams

DISTRIBUTIONS = {
    "gaussian": np.exp(-(np.linspace(-2.5, 2.5, 16) ** 2) / 2),
    "sparse": np.r_[0.8, np.full(15, 0.2 / 15)],
    "sparser": np.r_[0.9, 0.05, 0.05],
    "bytes": np.exp(-(np.linspace(-4, 4, 256) ** 2) / 2),
    "bits": np.r_[0.5, 0.5],
    "steep": 0.5 ** np.arange(40.0),
}
COUNT = 1 << 18


def drawn(shares: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), count, p=shares / shares.sum()).astype(np.uint8)


def entropy(symbols: np.ndarray) -> float:
    """Bytes of all of them."""
    counts = np.bincount(symbols)
    used = counts[counts > 0]
    return float((used * np.log2(len(symbols) / used)).sum() / 8)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ans_is_within_one_percent_of_the_entropy(name: str) -> None:
    symbols = drawn(DISTRIBUTIONS[name], COUNT)
    payload = ans.encode(symbols, streams.counted(symbols))
    assert np.array_equal(ans.decode(payload, COUNT), symbols)
    assert len(payload) <= 1.01 * entropy(symbols)
    assert ans.size(streams.counted(symbols)) == pytest.approx(len(payload), rel=2e-3)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_huffman_is_within_one_percent_of_its_ideal(name: str) -> None:
    symbols = drawn(DISTRIBUTIONS[name], COUNT)
    payload = huffman.encode(symbols, streams.counted(symbols))
    assert np.array_equal(huffman.decode(payload, COUNT), symbols)
    assert len(payload) <= 1.01 * ideal(np.bincount(symbols)) / 8


def ideal(counts: np.ndarray) -> int:
    """Bits of Huffman's code of any length: what all merges of the two rarest add up to."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(st.lists(st.integers(0, 1 << 12), min_size=2, max_size=64).filter(lambda counts: sum(map(bool, counts)) > 1))
def test_lengths_are_a_code_and_as_short_as_can_be(counts: list[int]) -> None:
    padded = np.array(counts + [0] * (256 - len(counts)))
    lengths = huffman.lengths_of(padded)
    used = lengths[lengths > 0].astype(int)
    assert np.array_equal(lengths > 0, padded > 0)
    assert (2.0**-used).sum() == 1 and used.max() <= huffman.LONGEST
    bits = int((padded * lengths).sum())
    assert bits >= ideal(padded)
    if used.max() < huffman.LONGEST:
        assert bits == ideal(padded)


def test_lengths_stay_within_the_longest_code() -> None:
    """Fibonacci's numbers make Huffman's deepest tree."""
    counts = np.zeros(256, np.int64)
    counts[:2] = 1
    for place in range(2, 40):
        counts[place] = counts[place - 1] + counts[place - 2]
    lengths = huffman.lengths_of(counts).astype(int)
    assert lengths.max() == huffman.LONGEST and (2.0 ** -lengths[:40]).sum() == 1


@pytest.mark.parametrize("count", [2, 3, 4095, 4096, 4097, 8192, 70_000, 300_000])
@pytest.mark.parametrize("coder", [ans, huffman])
def test_every_length(coder, count: int) -> None:  # type: ignore[no-untyped-def]
    symbols = drawn(DISTRIBUTIONS["gaussian"], count)
    symbols[[0, -1]] = 0, 255
    assert np.array_equal(coder.decode(coder.encode(symbols, streams.counted(symbols)), count), symbols)


@given(st.binary(max_size=5000), st.sampled_from(sorted(streams.ENTROPY)))
def test_any_bytes_come_back(data: bytes, name: str) -> None:
    symbols = np.frombuffer(data, np.uint8)
    coder, payload = streams.coded(symbols, name)
    assert streams.decoded(coder, payload, len(symbols)).tobytes() == data
    assert len(payload) <= len(data)


def test_the_page_describes_ans() -> None:
    """The decoder as docs/container.md has it, in whole numbers."""
    symbols = drawn(DISTRIBUTIONS["steep"], 2000, 3)
    payload = ans.encode(symbols, streams.counted(symbols))
    last = payload[0]
    table = [(symbol, q) for symbol, q in enumerate(payload[1 : last + 2]) if q]
    weights = [(8 + (q & 7)) << (q >> 3) for _, q in table]
    found = [1 + w * ((1 << 24) - len(table) - 1) // sum(weights) for w in weights]
    found[-1] += 1
    found[found.index(max(found))] += (1 << 24) - sum(found)
    starts = [sum(found[:place]) for place in range(len(found))]
    words = [int.from_bytes(payload[at : at + 4], "little") for at in range(last + 2, len(payload), 4)]
    state = words.pop() << 32
    state |= words.pop()
    decoded = []
    for _ in range(len(symbols)):
        low = state & ((1 << 24) - 1)
        place = max(index for index, start in enumerate(starts) if start <= low)
        decoded.append(table[place][0])
        state = (state >> 24) * found[place] + low - starts[place]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
    assert decoded == symbols.tolist() and not words


@settings(max_examples=300)
@given(st.sampled_from([ans, huffman]), st.integers(0, 1 << 32), st.integers(1, 4), st.sampled_from([50, 5000, 30_000]))
def test_damaged_payloads(coder, seed: int, times: int, count: int) -> None:  # type: ignore[no-untyped-def]
    symbols = drawn(DISTRIBUTIONS["gaussian"], count)
    payload = shuffled(coder.encode(symbols, streams.counted(symbols)), random.Random(seed), times)
    with suppress(ValueError):
        assert len(coder.decode(payload, count)) == count


@given(st.integers(0, 8), st.binary(max_size=300), st.sampled_from([0, 1, 100, 70_000]))
def test_any_payload(coder: int, payload: bytes, count: int) -> None:
    with suppress(ValueError):
        assert len(streams.decoded(coder, payload, count)) == count


def test_a_zstd_frame_of_another_size_makes_nothing() -> None:
    bomb = streams.zipped(b"\0" * (64 << 20))
    with pytest.raises(ValueError, match="another size"):
        streams.decoded(streams.ZSTD, bomb, 1000)


def test_repetitions_go_to_zstd() -> None:
    once = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    coder, payload = streams.coded(np.tile(once, 40), "ans")
    assert coder == streams.ZSTD and len(payload) < 6000


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(SettingError, match="nearest name is 'huffman'"):
        streams.check_entropy("hufman")
