"""Streams of byte symbols by asymmetric numeral systems (rANS), within a thousandth of their entropy.

    payload   u8 last symbol m | u8 frequency[m + 1] | u32 words[...], little-endian

The coder is constriction's `AnsCoder` (a 64-bit state, 32-bit words, 24-bit frequencies), which docs/container.md writes out.
Duda, arXiv:1311.2540; Bamler, arXiv:2201.01741.
"""

from __future__ import annotations

import math
from typing import Any

import constriction
import numpy as np

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

PRECISION = 24
"""Bits of a frequency: they sum to 2**24."""

MANTISSA = 3
LARGEST = 1 << 34
"""What the most frequent symbol's frequency is before it is rounded to a byte."""


def encode(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    """The payload of uint8 symbols [n] with these counts [256], of which two or more are not zero."""
    last = int(np.flatnonzero(counts)[-1])
    table = rounded(counts[: last + 1])
    present, model = _model(table)
    coder = AnsCoder()
    number = np.zeros(256, np.int32)
    number[present] = np.arange(len(present))
    coder.encode_reverse(number.take(symbols), model)
    words = coder.get_compressed().astype("<u4")
    return bytes([last]) + table.tobytes() + words.tobytes()


def decode(payload: bytes | memoryview, count: int) -> np.ndarray:
    """uint8 [count]; ValueError for a payload that `encode` does not make."""
    last = payload[0] if len(payload) else 0
    table = np.frombuffer(payload[1 : last + 2], np.uint8)
    rest = payload[last + 2 :]
    if len(table) != last + 1 or np.count_nonzero(table) < 2 or len(rest) % 4:
        raise ValueError("frequencies cut short")
    present, model = _model(table)
    coder = AnsCoder(np.frombuffer(rest, "<u4").astype(np.uint32))
    found = coder.decode(model, count)
    if not coder.is_empty():
        raise ValueError("symbols left over")
    return present.astype(np.uint8).take(found)


def size(counts: np.ndarray) -> float:
    """Bytes of the payload, nearly."""
    places = np.flatnonzero(counts)
    if not len(places):
        return 0.0
    used = counts[places].astype(np.float64)
    total = float(used.sum())
    return (total * math.log2(total) - float(used @ np.log2(used))) / 8 + int(places[-1]) + 2 + 6


def rounded(counts: np.ndarray) -> np.ndarray:
    """Counts as bytes, q = 8·e + m for (8 + m)·2**e, 0 for none: a step is at most an eighth, which costs 0.0005 bits a symbol."""
    scaled = np.maximum(counts.astype(np.float64) * (LARGEST / counts.max()), 9.0)
    exponent = np.maximum(np.floor(np.log2(scaled)).astype(np.int64) - MANTISSA, 0)
    steps = np.rint(scaled / np.exp2(exponent)).astype(
        np.int64
    )  # 8 to 16: 16 is the next exponent's 8, which is the next byte
    return np.where(counts > 0, 8 * exponent + steps - 8, 0).astype(np.uint8)


def frequencies(table: np.ndarray) -> np.ndarray:
    """int64, of the symbols that occur; they sum to 2**24, by integers only, so that every machine finds the same."""
    own = table[table > 0].astype(np.int64)
    values = (8 + (own & 7)) << (own >> MANTISSA)
    found = 1 + values * ((1 << PRECISION) - len(own) - 1) // values.sum()
    found[-1] += 1
    found[np.argmax(found)] += (1 << PRECISION) - found.sum()
    return found


def _model(table: np.ndarray) -> tuple[np.ndarray, Any]:
    """Symbols that occur, and constriction's model with exactly `frequencies`.

    It gives every symbol 1, and symbol i all of [floor(P_i), floor(P_i + p_i)) beside, P the sums of the probabilities times the
    2**24 - K that are left: with p = frequency - 1 these are whole numbers, and a half keeps them from rounding down.
    """
    present = np.flatnonzero(table)
    shares = frequencies(table).astype(np.float64) - 1
    shares[0] += 0.5
    shares[-1] -= 0.5
    return present, Categorical(shares, lazy=False, perfect=False)
