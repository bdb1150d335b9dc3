"""What the rows of the tables see of one node: ranks, sizes, attributes and constants. And what they answer: a Case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of, input_of

Size = int | str | None
"""A known size, a symbol, or nothing known."""

SPREAD = "removing one entry changes the others"
"""Why an axis is inexact along which a softmax or norm goes."""


@dataclass(frozen=True)
class Case:
    """One operator in one setting.

    signature   in the notation of notation.py
    sizes       capital letter -> its size, where it does not follow from the others
    attributes  attribute -> letter: the attribute is the number of units along it, and is patched when they are cut
    zeros       what becomes of a unit that is zero on the way in, a key of ZEROS
    inexact     letter -> why cutting along it changes what is left
    origin      the letters along which a weight makes new channels; None: all of its own
    adds_up     a letter met by no output is summed over, so that a zero unit adds nothing; else such a letter is closed
    """

    signature: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    zeros: str = "linear"
    inexact: Mapping[str, str] = field(default_factory=dict)
    origin: tuple[str, ...] | None = None
    adds_up: bool = True


ZEROS: Mapping[str, Callable[[list[bool]], bool]] = {
    "linear": lambda rests: True,  # the unit's weight and bias slices are zeroed, so it is zero on the way out
    "keeps": lambda rests: bool(rests) and rests[0],  # f(0) = 0
    "all": lambda rests: bool(rests) and all(rests),  # a sum
    "any": any,  # a product
    "moves": lambda rests: False,  # f(0) is something else
}
"""Name -> is a zeroed unit zero on the way out, given for each operand that carries the unit whether it is zero there."""


@dataclass(frozen=True)
class View:
    """A node as the rows read it.

    known  axes of values that were followed, for those whose shape ONNX's inference does not know
    """

    node: ir.Node
    known: Mapping[ir.Value, Sequence[Any]] = field(default_factory=dict)

    def shape(self, index: int) -> tuple[Size, ...] | None:
        """Sizes of input `index`, None where its rank is not known or it is left out."""
        value = input_of(self.node, index)
        if value is None or (value.shape is None and value in self.known):
            return None if value is None else tuple(track.size for track in self.known[value])
        return sizes_of(value)

    def rank(self, index: int) -> int | None:
        """Number of axes of input `index`."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def output_shape(self, index: int = 0) -> tuple[Size, ...] | None:
        """Sizes of output `index`."""
        return sizes_of(self.node.outputs[index])

    def constant(self, index: int) -> np.ndarray | None:
        """Values of input `index` where it is a constant."""
        return constant_of(input_of(self.node, index))

    def has(self, index: int) -> bool:
        """Is input `index` given?"""
        return input_of(self.node, index) is not None

    def number(self, name: str, default: int) -> int:
        """An integer attribute."""
        return self.node.attributes.get_int(name, default)

    def ints(self, name: str, default: list[int]) -> list[int]:
        """A list attribute."""
        found = self.node.attributes.get_ints(name)
        return default if found is None else list(found)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.node.attributes.get(name)
        return found.value if found is not None and isinstance(found.value, str) else default


def sizes_of(value: ir.Value) -> tuple[Size, ...] | None:
    """The sizes of a value as numbers, symbols or None."""
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape)  # type: ignore[arg-type]
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def rank_of(value: ir.Value | None) -> int | None:
    """How many axes a value has, where that is known."""
    sizes = None if value is None else sizes_of(value)
    return None if sizes is None else len(sizes)


def letters(count: int, prefix: str = "d") -> list[str]:
    """Names for `count` axes."""
    return [f"{prefix}{number}" for number in range(count)]
