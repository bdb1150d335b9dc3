"""Forms of the packed file whose bytes are made when all symbols are there: planes of bits, and Huffman's codes level by level.

The .onnx file holds the bits of a symbol in different places; by itself each place says little of what the others hold. The packed
file has the symbols, and makes the bits again as the writer of the .onnx made them (plain.py, levels.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.weights import levels
from onnxcompress.weights.plain import packed, planes, table

MOST = 1 << 26
"""Symbols of a tensor; larger ones are coded by their bytes."""


@dataclass(eq=False)
class Gathered:
    """Symbols of all blocks, as they come; lengths of their codes, where they have some."""

    symbols: np.ndarray
    lengths: np.ndarray

    def add(self, elements: np.ndarray, start: int) -> bool:
        """Whether these are the last ones."""
        self.symbols[start : start + len(elements)] = elements
        return start + len(elements) == len(self.symbols)


def size_of_planes(symbols: int, bits: int) -> int:
    """Bytes of all planes."""
    return sum(-(-symbols * each // 8) for each in planes(2**bits))


def to_planes(symbols: np.ndarray, bits: int) -> np.ndarray:
    """The bytes of all planes, the highest first."""
    left, parts = bits, []
    for each in planes(2**bits):
        left -= each
        parts.append(packed(symbols >> np.uint8(left) & np.uint8(2**each - 1), 2**each))
    return np.concatenate(parts)


def of_planes(values: np.ndarray, sizes: list[int], bits: int) -> np.ndarray | None:
    """The symbols whose planes have so many bytes; None where these are no planes. At the end some zeros may be too many."""
    own = planes(2**bits)
    if len(own) < 2 or len(sizes) != len(own):
        return None
    count = min(size * 8 // each for size, each in zip(sizes, own, strict=True))
    symbols, left, place = np.zeros(count, np.uint8), bits, 0
    for size, each in zip(sizes, own, strict=True):
        left -= each
        part = table(2**each).take(values[place : place + size], axis=0).reshape(-1)
        place += size
        symbols |= part[:count] << np.uint8(left)
    fits = count <= MOST and size_of_planes(count, bits) == len(values)
    return symbols if fits and np.array_equal(to_planes(symbols, bits), values) else None


def to_levels(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The bits of codes of these lengths [K], eight a byte. ValueError where they are no code, or a symbol has none."""
    room = 1 << levels.LONGEST
    if lengths.max(initial=0) > levels.LONGEST or (room >> lengths[lengths > 0].astype(np.int64)).sum() != room:
        raise ValueError("code lengths that are no code")
    used = np.append(lengths, np.zeros(1, np.uint8)).take(symbols, mode="clip")
    if not used.all():
        raise ValueError("a symbol without a code")
    return np.packbits(1 - np.concatenate(levels.encode(symbols, levels.code_for(lengths))))


def of_levels(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Symbols, and lengths of their codes [K], where symbols that occur so often [256] have these bits; None where they have not."""
    if np.count_nonzero(counts) < 2 or counts.sum() > MOST:
        return None
    lengths = levels.lengths_for(counts)[: int(np.flatnonzero(counts)[-1]) + 1]
    total = int((counts[: len(lengths)] * lengths).sum())
    if -(-total // 8) != len(values):
        return None
    symbols = levels.decode(1 - np.unpackbits(values)[:total], levels.code_for(lengths), counts)
    fits = np.array_equal(to_levels(symbols, lengths), values)
    return (symbols, lengths) if fits else None
