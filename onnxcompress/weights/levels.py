"""Huffman codes that a graph decodes at once: the first bits of all codewords, then the second bits, and so on.

The codewords of a sequence lie level by level. From one level to the next the sequence is divided: those whose bit was 0 come
first, in order, then those with 1, in reverse. What a level reads is found again by counting, hence all symbols of a level
together, whatever bits came before. Codes of a length are chosen so that those that end with a level are the last of the next.

A wavelet matrix in the shape of a Huffman code: Claude, Navarro, Ordóñez, Information Systems 2015; Huffman, Proc. IRE 1952.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import Coded
from onnxcompress.weights.huffman import lengths_of
from onnxcompress.weights.pen import NODE_BYTES, Lookup, Pen

LONGEST = 12
"""Bits of a code: each level takes eight nodes."""


@dataclass(frozen=True, eq=False)
class Code:
    """bits    uint8 [levels, 256]: the bit of each symbol on each level; 2 on levels behind its last
    leaves  symbols whose codes end with each level, in the order in which they then lie
    """

    bits: np.ndarray
    leaves: tuple[tuple[int, ...], ...]


def code_of(counts: np.ndarray) -> Code | None:
    """The best code for symbols that occur so often [K]; None where fewer than two do."""
    return None if np.count_nonzero(counts) < 2 else code_for(lengths_for(counts))


def lengths_for(counts: np.ndarray) -> np.ndarray:
    """uint8 [256]: bits of each symbol's code, 0 where it does not occur."""
    return lengths_of(np.pad(counts, (0, 256 - len(counts))), LONGEST)


def code_for(lengths: np.ndarray) -> Code:
    """The code of such lengths [K], which are those of a code."""
    bits, leaves = np.full((int(lengths.max()), 256), 2, np.uint8), []
    open_: list[tuple[int, ...]] = [()]
    for level in range(len(bits)):
        open_ = [(*path, 0) for path in open_] + [(*path, 1) for path in reversed(open_)]
        ending = np.flatnonzero(lengths == level + 1).tolist()
        paths = open_[len(open_) - len(ending) :]
        del open_[len(open_) - len(ending) :]
        for symbol, path in zip(ending, paths, strict=True):
            bits[: level + 1, symbol] = path
        leaves.append(tuple(ending))
    return Code(bits, tuple(leaves))


def encode(symbols: np.ndarray, code: Code) -> list[np.ndarray]:
    """uint8 bits of each level, for symbols that all have a code."""
    found, active = [], symbols
    for bits, ending in zip(code.bits, code.leaves, strict=True):
        own = bits.take(active)
        found.append(own)
        divided = np.concatenate([active[own == 0], active[own == 1][::-1]])
        active = divided[: len(divided) - int(np.isin(divided, ending).sum())]
    return found


def decode(bits: np.ndarray, code: Code, counts: np.ndarray) -> np.ndarray:
    """Symbols again from the bits of all levels, one after another, where they occur so often [256]."""
    parts, place, left = [], 0, int(counts.sum())
    for ending in code.leaves:
        parts.append(bits[place : place + left])
        place, left = place + left, left - int(counts[list(ending)].sum())
    below = np.zeros(0, np.uint8)
    for part, ending in zip(reversed(parts), reversed(code.leaves), strict=True):
        leaves = np.array(ending, np.uint8)
        divided = np.concatenate([below, np.repeat(leaves, counts[leaves])])
        below, zeros = np.empty(len(part), np.uint8), part == 0
        count = int(np.count_nonzero(zeros))
        below[zeros], below[~zeros] = divided[:count], divided[count:][::-1]
    return below


def size(coded: Coded) -> float | None:
    """Bytes in the file, nodes counted; None where fewer than two symbols occur."""
    bits = bits_size(coded)
    return None if bits is None else bits + NODE_BYTES * (8 * (coded.entries - 1).bit_length() + 24)


def bits_size(coded: Coded) -> float | None:
    """Bytes of the codewords alone."""
    counts = np.bincount(coded.symbols, minlength=256)
    if np.count_nonzero(counts) < 2:
        return None
    return float((counts * lengths_of(counts, LONGEST)).sum()) / 8


def numbers(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    """Entries by the nodes that decode them: from the last level to the first, each finds its symbols in the one behind it."""
    counts = np.bincount(coded.symbols, minlength=coded.entries)
    code = code_of(counts)
    assert code is not None
    levels = encode(coded.symbols, code)
    flags = flagged(pen, [1 - bits for bits in levels])
    ended = _ended(pen, code, counts)
    zero, one = pen.constant(np.array(0, np.int64)), pen.constant(np.array([1], np.int32))
    first = pen.constant(np.array([0], np.uint8))
    below: list[ir.Value] = []
    for flag, leaves in zip(reversed(flags), reversed(ended), strict=True):
        divided = pen.node("Concat", first, *below, *leaves, axis=0)
        stays = pen.node("Cast", flag, to=ir.DataType.INT32)
        # a zero is as far from the beginning as there are zeros up to it, a one as far from the end as there are ones
        zeros, ones = pen.node("CumSum", stays, zero), pen.node("CumSum", pen.node("Sub", stays, one), zero)
        where = pen.node("Where", pen.node("Cast", flag, to=ir.DataType.BOOL), zeros, ones)
        below = [pen.node("Gather", divided, where)]
    return look(pen.node("Cast", below[0], to=ir.DataType.INT32))


def _ended(pen: Pen, code: Code, counts: np.ndarray) -> list[list[ir.Value]]:
    """For each level the symbols that end with it, as often as they occur; an empty list where none does."""
    order = np.array([symbol for ending in code.leaves for symbol in ending])
    begins = np.cumsum(counts[order])[:-1]
    zeros = pen.node("Expand", pen.constant(np.array([0], np.int32)), pen.constant(np.array([counts.sum()], np.int64)))
    ones = pen.node("Expand", pen.constant(np.array([1], np.int32)), pen.constant(np.array([len(begins)], np.int64)))
    marks = pen.node("ScatterElements", zeros, pen.numbers(begins.astype(np.int32)), ones, axis=0)
    which = pen.node("CumSum", marks, pen.constant(np.array(0, np.int64)))
    every = pen.node("Gather", pen.constant(order.astype(np.uint8)), which)
    sizes = [int(counts[list(ending)].sum()) for ending in code.leaves]
    parts = iter(pen.split(every, [each for each in sizes if each]))
    return [[next(parts)] if each else [] for each in sizes]


def flagged(pen: Pen, parts: list[np.ndarray]) -> list[ir.Value]:
    """uint8 zeros and ones of each part, a bit each in the file."""
    whole = np.concatenate(parts)
    stored = np.packbits(whole)[:, None]
    shifts = pen.constant(np.arange(7, -1, -1, dtype=np.uint8)[None])
    bits = pen.node("BitShift", pen.constant(stored), shifts, direction="RIGHT")
    flat = pen.shape(pen.node("Mod", bits, pen.constant(np.array([2], np.uint8))), (-1,))
    fill = 8 * len(stored) - len(whole)
    return pen.split(flat, [*map(len, parts), *([fill] if fill else [])])[: len(parts)]
