"""Forms that give frequent symbols less room: codewords that stand for runs, and one common entry apart from all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import NODE_BYTES, Form, Lookup, Pen
from onnxcompress.weights.plain import PLAIN
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
    every = _numbered(words.symbols, words.kinds)
    make = PLAIN["packed" if digits(words.kinds) > 1 else "bytes"].write
    return pen.once(
        ("words", words.symbols.tobytes()), lambda: pen.shape(make(pen, every, lambda numbers: numbers), (-1,))
    )


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


def common_first(coded: Coded) -> Coded:
    """The same tensor, its most frequent entry being number 0."""
    return coded if np.bincount(coded.symbols).argmax() == 0 else _reordered(coded)


@remembered
def _reordered(coded: Coded) -> Coded:
    common = int(np.bincount(coded.symbols).argmax())
    order = np.r_[common, np.delete(np.arange(coded.entries), common)]
    return replace(coded, symbols=np.argsort(order).astype(np.uint8)[coded.symbols], books=coded.books[:, order])


@remembered
def parts_of(coded: Coded) -> Parts | None:
    """Of a tensor as `common_first` has it; None where there is one entry, or all weights have it."""
    mask = (coded.symbols > 0).astype(np.uint8)
    if coded.entries < 2 or not mask.any():
        return None
    share = SHARES[np.abs(SHARES - (1 - mask.mean())).argmin()]
    words = dictionary(np.array([share, 1 - share]))
    assert words is not None
    rest = _numbered(coded.symbols[mask > 0] - 1, coded.entries - 1)
    sizes = {form: size for form, each in RESTS.items() if (size := each.size(rest)) is not None}
    return Parts(_numbered(mask, 2), words, rest, min(sizes, key=lambda form: sizes[form]))


def _numbered(symbols: np.ndarray, entries: int) -> Coded:
    """Symbols that stand for themselves."""
    return Coded((len(symbols),), symbols, np.arange(entries, dtype=np.float32)[None, :, None])


def _sparse_size(coded: Coded) -> float | None:
    parts = parts_of(common_first(coded))
    if parts is None:
        return None
    rest = RESTS[parts.form].size(parts.rest)
    assert rest is not None
    bits = parts.words.bits(np.bincount(parts.mask.symbols, minlength=2))
    return len(coded.symbols) * bits / 8 + _words_size(parts.words) + rest + 16 * NODE_BYTES


def _sparse(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
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
    **{name: PLAIN[name] for name in ("bytes", "packed", "planes")},
    "tunstall": Form(_tunstall_size, _tunstall),
}
"""How the symbols beside the common one may be stored."""

RUNS: dict[str, Form] = {"tunstall": RESTS["tunstall"], "sparse": Form(_sparse_size, _sparse, arranged=common_first)}
