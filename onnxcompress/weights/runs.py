"""Forms that give frequent symbols less room: codewords that stand for runs, and one common entry apart from all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxcompress.weights import levels
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import NODE_BYTES, Form, Lookup, Pen
from onnxcompress.weights.plain import PLAIN, computed, computed_planes, numbered
from onnxcompress.weights.tunstall import Dictionary, dictionary, digits, encode

# -- an entropy code ---------------------------------------------------------------------------------------------------

T = TypeVar("T")


def remembered(make: Callable[[Coded], T]) -> Callable[[Coded], T]:
    """`make`, once for each tensor: its size is asked for, and it is written, several times in a run."""
    memory: WeakKeyDictionary[Coded, T] = WeakKeyDictionary()

    def found(coded: Coded) -> T:
        if coded not in memory:
            memory[coded] = make(coded)
        return memory[coded]

    return found


@remembered
def words_of(coded: Coded) -> Dictionary | None:
    """The Tunstall code of its symbols."""
    return dictionary(np.bincount(coded.symbols, minlength=2))


@remembered
def _codewords(coded: Coded) -> np.ndarray:
    words = words_of(coded)
    assert words is not None
    return encode(coded.symbols, words)


def _tunstall_size(coded: Coded) -> float | None:
    words = words_of(coded) if coded.entries > 1 else None
    if words is None:
        return None
    bits = words.bits(np.bincount(coded.symbols, minlength=2))
    return len(coded.symbols) * bits / 8 + _words_size(words) + 11 * NODE_BYTES


def _words_size(words: Dictionary) -> float:
    return len(words.symbols) / digits(words.kinds) + len(words.lengths) + 5 * NODE_BYTES


def _words(pen: Pen, words: Dictionary) -> ir.Value:
    """int32 numbers of all words, one after another; tensors that have the same words share them."""
    every = numbered(words.symbols, words.kinds)
    make = computed if digits(words.kinds) > 1 else PLAIN["bytes"].write

    def written() -> ir.Value:
        if words.kinds == 2:
            return pen.node("Cast", levels.flagged(pen, [words.symbols])[0], to=ir.DataType.INT32)
        return pen.shape(make(pen, every, lambda numbers: numbers), (-1,))

    return pen.once(("words", words.symbols.tobytes()), written)


def _tunstall(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    words = words_of(coded)
    assert words is not None
    return _runs(pen, _codewords(coded), words, look(_words(pen, words)), len(coded.symbols))


def _runs(pen: Pen, codes: np.ndarray, words: Dictionary, entries: ir.Value, size: int) -> ir.Value:
    """The first `size` entries that codewords stand for: each word is a run in the table of all words.

    From one number of the table to the next it is a step of one inside a word, and a jump where a word ends.
    """
    zero, one = pen.constant(np.array(0, np.int64)), pen.constant(np.array([1], np.int32))
    first, last = pen.constant(np.array([0], np.int64)), pen.constant(np.array([-1], np.int64))
    stored = pen.node("Cast", pen.constant(codes), to=ir.DataType.INT32)
    lengths = pen.numbers(words.lengths)
    starts = pen.shared("CumSum", lengths, zero, exclusive=1)
    begins, length = pen.node("Gather", starts, stored), pen.node("Gather", lengths, stored)
    end = pen.node("Sub", pen.node("Add", begins, length), one)
    before = pen.node("Concat", pen.constant(np.array([0], np.int32)), pen.node("Slice", end, first, last), axis=0)
    steps = pen.shared("Expand", one, pen.constant(np.array([size], np.int64)))
    where = pen.node("CumSum", length, zero, exclusive=1)
    steps = pen.node("ScatterElements", steps, where, pen.node("Sub", begins, before), axis=0)
    return pen.node("Gather", entries, pen.node("CumSum", steps, zero))


# -- one entry that most weights have, the others apart -------------------------------------------------------------------

SHARES = 1 - 2.0 ** -np.arange(0.25, 5.75, 0.25)
"""Shares of the common entry for which words are made, so that tensors as sparse as each other have the same ones in the file."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A tensor whose entry 0 is common.

    mask  symbols 0 and 1: which weights have another entry      words  of the mask
    rest  the symbols of these, less one      form  in which they are stored
    """

    mask: Coded
    words: Dictionary
    rest: Coded
    form: str

    @cached_property
    def codes(self) -> np.ndarray:
        """Of the mask."""
        return encode(self.mask.symbols, self.words)

    @property
    def bytes(self) -> float:
        """Of mask and rest in the file, without the words and the nodes of the mask."""
        bits = self.words.bits(np.bincount(self.mask.symbols, minlength=2))
        rest = RESTS[self.form].size(self.rest)
        return len(self.mask.symbols) * bits / 8 + (rest or 0.0)


def by_rank(coded: Coded) -> Coded:
    """The same tensor, its entries in the order of how often they occur: number 0 is the common one."""
    counts = np.bincount(coded.symbols, minlength=coded.entries)
    return coded if (np.diff(counts) <= 0).all() else _ranked(coded)


@remembered
def _ranked(coded: Coded) -> Coded:
    order = np.argsort(-np.bincount(coded.symbols, minlength=coded.entries), kind="stable")
    return replace(coded, symbols=np.argsort(order).astype(np.uint8)[coded.symbols], books=coded.books[:, order])


def words_for(zeros: float) -> Dictionary:
    """Of masks with such a share of the common entry: those of the nearest of SHARES."""
    nearest = int(np.abs(SHARES - zeros).argmin())
    if nearest not in _WORDS:
        words = dictionary(np.array([SHARES[nearest], 1 - SHARES[nearest]]))
        assert words is not None
        _WORDS[nearest] = words
    return _WORDS[nearest]


_WORDS: dict[int, Dictionary] = {}


@remembered
def parts_of(coded: Coded) -> Parts | None:
    """Of a tensor as `by_rank` has it; None where weights have two entries or one: of these the mask would be all."""
    kinds = int(coded.symbols.max())
    if kinds < 2:
        return None
    mask = (coded.symbols > 0).astype(np.uint8)
    words = words_for(1 - mask.mean())
    rest = numbered(coded.symbols[mask > 0] - np.uint8(1), kinds)
    sizes = {form: size for form, each in RESTS.items() if (size := each.size(rest)) is not None}
    return Parts(numbered(mask, 2), words, rest, min(sizes, key=lambda form: sizes[form]))


def _sparse_size(coded: Coded) -> float | None:
    """What a tensor adds to others in this form: words and nodes are those of all (`pools.SHARED_BYTES`)."""
    parts = parts_of(by_rank(coded))
    return None if parts is None else parts.bytes


def sparse(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    """Where the mask is set, the next number of the others; else zero: the common entry."""
    parts = parts_of(coded)
    assert parts is not None
    zero, one = pen.constant(np.array(0, np.int64)), pen.constant(np.array([1], np.int32))
    mask = _runs(pen, parts.codes, parts.words, _words(pen, parts.words), len(coded.symbols))
    rest = RESTS[parts.form].write(pen, parts.rest, lambda numbers: pen.shared("Add", numbers, one))
    rest = pen.node("Concat", pen.constant(np.array([0], np.int32)), pen.shape(rest, (-1,)), axis=0)
    others = pen.node("Gather", rest, pen.node("CumSum", mask, zero))
    return look(pen.node("Mul", others, mask))


RESTS: dict[str, Form] = {
    "bytes": PLAIN["bytes"],
    "packed": replace(PLAIN["packed"], write=computed),
    "planes": replace(PLAIN["planes"], write=computed_planes),
    "tunstall": Form(_tunstall_size, _tunstall),
    "huffman": Form(levels.size, levels.numbers),
}
"""How the symbols beside the common one may be stored."""

RUNS: dict[str, Form] = {
    "tunstall": RESTS["tunstall"],
    "huffman": Form(levels.bits_size, levels.numbers, arranged=by_rank, auto=False),
    "sparse": Form(_sparse_size, sparse, arranged=by_rank),
}
"""Huffman's code of all symbols takes four times the memory of others while a file loads: it is never taken unasked."""
