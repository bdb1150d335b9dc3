"""One price λ for error and bits over a whole model: found so that its codes meet a size, on data with the walk inside.

What an error of a tensor is worth is what `expected` takes it for: its share of the layer's output power, times how far it arrives.
Where each channel counts as much as every other, channels may be divided by a scale: one step is then right for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import numpy as np

from onnxcompress.allocate import Candidate
from onnxcompress.errors import BudgetError
from onnxcompress.evidence.need import Evidence
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.passes.cluster.allocation import COARSE, Choice
from onnxcompress.passes.cluster.books import loss
from onnxcompress.passes.cluster.choices import ByBooks, ByRate
from onnxcompress.passes.cluster.expected import alike, arriving, channels_alike, expected, met, of_rows
from onnxcompress.passes.cluster.rate import MOST, NEAR, Sketch, Tensor, rated, searched
from onnxcompress.passes.cluster.sharing import SHARINGS, pruned
from onnxcompress.passes.cluster.tensors import Clustered
from onnxcompress.passes.cluster.walk import Begun, Found, Start, Walk, begun, walked
from onnxcompress.passes.cluster.written import Budget, Whole
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.forms import FORMS, chosen, chosen_together
from onnxcompress.weights.pools import POOLED, shared_bytes

WALKS = 4
"""At most, to meet a size on data."""

APART = 0.1
"""Share of the size that lies between two walks, up to which another one begins with some tensors of each. Where they were 37 % apart that
cost digits 2.4 dB at two bits."""

T = TypeVar("T")


def in_file(coded: Coded) -> float:
    """Bytes of a tensor in the form that its file will have, without nodes."""
    return _held(coded, chosen(coded))


def _held(coded: Coded, form: str | None) -> float:
    """Symbols in a form, and two bytes for each entry of the book and each scale."""
    symbols = None if form is None else FORMS[form].size(coded)
    if symbols is None:
        return float(np.prod(coded.shape) * coded.dtype.itemsize)
    return float(symbols + _beside(coded))


def _beside(coded: Coded) -> int:
    return 2 * (coded.books.size + (0 if coded.scales is None else coded.scales.size))


def together(tensors: Mapping[str, Coded]) -> float:
    """Of a file: what tensors share counts once."""
    forms = chosen_together(tensors)
    pooled = [tensors[name] for name, form in forms.items() if form in POOLED]
    shared = shared_bytes(pooled) if pooled else 0
    return shared + sum(_held(each, forms.get(name)) for name, each in tensors.items())


def in_container(coded: Coded) -> float:
    """Bytes of a tensor in an ideal entropy code, and two for each entry and each scale."""
    return coded.entropy() * len(coded.symbols) / 8 + _beside(coded)


Size = Callable[[Coded], float]

SIZES: dict[str, tuple[tuple[int, ...], Size, Whole]] = {
    "file": ((15, 31, 63), in_file, together),
    "container": ((MOST,), in_container, lambda tensors: sum(map(in_container, tensors.values()))),
}
"""Where symbols will lie -> how many entries a book may have, the bytes of a tensor there, and of all tensors together. A file holds
them in Tunstall's code, whose 256 words are short where there are many: on PP-OCRv4's recogniser 15 entries took 2.56 bits a weight for
12.9 dB, 31 took 2.75 for 13.3, 255 took 2.79 for 13.4, at one λ."""


def at_one_price(
    how: Walk, model: Model, evidence: Evidence, tensors: Sequence[Clustered], where: str, budget: Budget
) -> tuple[Start, Found]:
    """What each tensor begins with and what it becomes, within the budget; BudgetError where that is too little.

    where  a key of SIZES
    No tensor is made coarser than COARSE while a size can be met so.
    """
    try:
        return _at_one_price(how, model, evidence, tensors, where, budget, COARSE)
    except BudgetError:
        return _at_one_price(how, model, evidence, tensors, where, budget, np.inf)


def _at_one_price(
    how: Walk, model: Model, evidence: Evidence, tensors: Sequence[Clustered], where: str, budget: Budget, coarse: float
) -> tuple[Start, Found]:
    most, size, _ = SIZES[where]
    reached, paired = arriving(tensors, evidence), evidence.get(Paired.NEED)
    ways = {each.name: _ways(model, each, evidence, reached[each.name], coarse) for each in tensors}
    sketches = {name: [[Sketch(way.tensor, count) for count in most] for way in found] for name, found in ways.items()}

    def coded(price: float) -> tuple[float, tuple[Start, Found]]:
        """Without a walk."""
        start: dict[str, Begun] = {}
        for each in tensors:
            tried = zip(ways[each.name], sketches[each.name], strict=True)
            begins = (way.begun(each, price, sketch, size) for way, of_way in tried for sketch in of_way)
            paid, start[each.name] = min(begins, key=itemgetter(0))
            found = even.cheapest(each, ways[each.name][0].per_bit(price), paid) if even else None
            start[each.name] = found or start[each.name]
        codes = begun(model, start)
        return budget.of(codes.coded), (start, codes)

    def begins(target: float) -> tuple[Start, Found]:
        """The coarsest where none is small enough: a walk may take fewer bytes."""
        try:
            return searched(coded, first, target)[1]
        except BudgetError:
            return coded(max(sketch.coarsest for sketch in first))[1]

    even = _Even(model, tensors, evidence, coarse, how.seed) if where == "file" else None
    first = [of_way[0][-1] for of_way in sketches.values()]
    if paired is None:
        return searched(coded, first, budget.bytes)[1]
    return _walked_to(budget, begins, lambda start: walked(how, model, paired, start))


@dataclass(frozen=True, eq=False)
class _Walked:
    """What a walk began with, what it made of it, and the bytes of that."""

    start: Start
    found: Found
    bytes: float


def _walked_to(
    budget: Budget, begins: Callable[[float], tuple[Start, Found]], walks: Callable[[Start], Found]
) -> tuple[Start, Found]:
    """What takes the most bytes of those walks that stay within the budget, each begun where the ones before it say that it will end.

    begins  bytes -> what takes them before a walk      BudgetError where no walk stays within the budget

    As soon as one walk takes a little too much and one a little less, the next ones begin as one for the first tensors and as the other for
    the rest.
    """
    aim, least, under, over = budget.bytes, np.inf, None, None
    tried: set[float] = set()
    for _ in range(WALKS):
        start: Start | None
        if under is not None and over is not None and over.bytes - under.bytes <= APART * budget.bytes:
            start, before = _between(budget, under, over), 0.0
        else:
            start, before = _other(budget, begins, aim, tried, aim if under is None else aim * (1 + APART))
        if start is None:
            break
        found = walks(start)
        this = _Walked(start, found, budget.of(found.coded))
        least = min(least, this.bytes)
        if this.bytes > budget.bytes:
            over = this
        elif under is None or this.bytes > under.bytes:
            under = this
        if (1 - NEAR) * budget.bytes <= this.bytes <= budget.bytes:
            break
        aim = before * (1 - NEAR / 2) * budget.bytes / this.bytes
    if under is None:
        raise BudgetError(
            f"the smallest that was found takes {least:,.0f} bytes, not {budget.bytes:,.0f}; give a larger target size"
        )
    return under.start, under.found


def _other(
    budget: Budget, begins: Callable[[float], tuple[Start, Found]], aim: float, tried: set[float], most: float
) -> tuple[Start | None, float]:
    """What takes about `aim` bytes before a walk, up to `most` where bytes jump there, and how many; None where all that was `tried`."""
    while True:
        start, codes = begins(aim)
        before = budget.of(codes.coded)
        if before not in tried:
            tried.add(before)
            return start, before
        if aim >= most:
            return None, before
        aim = min(aim * (1 + 2 * NEAR), most)


def _between(budget: Budget, under: _Walked, over: _Walked) -> Start | None:
    """What begins as `over` up to some tensor and as `under` behind it; None where that is one of them.

    A walk makes of the first tensors what it made of `over`, so that bytes grow with their number in small steps, however far they jump
    with the price. The number is the most with which the codes that both walks left would be within the budget.
    """
    names = list(over.start)

    def first(count: int, one: Mapping[str, T], other: Mapping[str, T]) -> dict[str, T]:
        return {name: (one if place < count else other)[name] for place, name in enumerate(names)}

    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        fits = budget.of(first(middle, over.found.coded, under.found.coded)) <= (1 - NEAR / 2) * budget.bytes
        low, high = (middle, high) if fits else (low, middle)
    start = first(low, over.start, under.start)
    same = (all(each is walk.start[name] for name, each in start.items()) for walk in (under, over))
    return None if any(same) else start


@dataclass(frozen=True, eq=False)
class _Way:
    """How a tensor may be coded at a price.

    counts  [out] or one number: what an error of a row is worth at the outputs      measured  is what the layer meets known?
    scales  [out] that its channels were divided by; None: by nothing                dtype     of the tensor
    """

    tensor: Tensor
    counts: np.ndarray | float
    measured: bool
    dtype: np.dtype
    scales: np.ndarray | None = None

    def per_bit(self, price: float) -> float:
        """What a bit costs, as a share of the outputs: λ, as far as that does not make the tensor too coarse."""
        return self.tensor.price(price) * self.tensor.worth

    def begun(self, each: Clustered, price: float, sketch: Sketch, size: Size) -> tuple[float, Begun]:
        """What error and bytes cost together, and what the tensor begins with."""
        unit = self.tensor
        found = rated(unit, price, sketch=sketch)
        lost = float((loss(unit.rows, found.symbols, found.books, unit.gram) * self.counts).sum())
        books = replace(found.books, scales=self.scales)
        paid = self.per_bit(price) * 8 * size(each.coded(found.symbols, books, self.dtype))
        sharing = "tensor" if self.scales is None else "scaled"
        choice = ByRate(books.entries.size, sharing, price, unit.worth, sketch.most, unit.limit, self.measured)
        return lost + paid, (each, choice, found.symbols, books)


class _Even:
    """Books with indices of even length, as an allocation has them: for tensors that an entropy code does not make smaller."""

    def __init__(
        self, model: Model, tensors: Sequence[Clustered], evidence: Evidence, coarse: float, seed: int
    ) -> None:
        self._model, self._evidence, self._seed = model, evidence, seed
        self._options: dict[str, list[Candidate]] = {}
        for option in expected(model, tensors, evidence, list(SHARINGS), coarse):
            self._options.setdefault(option.layer, []).append(option)
        self._begun: dict[tuple[str, Choice], Begun] = {}

    def cheapest(self, each: Clustered, per_bit: float, paid: float) -> Begun | None:
        """What the tensor begins with where error and bytes cost least so; None where they cost more than `paid`."""
        best = min(self._options[each.name], key=lambda one: one.error + per_bit * 8 * one.cost)
        if best.error + per_bit * 8 * best.cost >= paid:
            return None
        choice = best.setting
        assert isinstance(choice, Choice)
        if (each.name, choice) not in self._begun:
            rows, coder = each.rows(self._model.array(each.name)), ByBooks(choice.entries, choice.sharing)
            codes = coder.begun(rows, self._seed, of_rows(each, rows, self._evidence))
            self._begun[each.name, choice] = (each, coder, *codes)
        return self._begun[each.name, choice]


def _ways(model: Model, each: Clustered, evidence: Evidence, reached: float, coarse: float) -> list[_Way]:
    """What may be coded of a tensor: as it is, and where its channels count alike also with these divided by scales."""
    values = model.array(each.name)
    rows = each.rows(values).astype(np.float64)
    zeros = rows == 0 if pruned(rows) else None
    weights, power = met(each, rows, evidence)
    gram = weights if weights is not None and weights.ndim == 1 else None
    if weights is not None and gram is None:
        power /= float(weights.mean())
    plain = _unit(rows, power, reached, coarse, gram, zeros)
    if weights is not None or not channels_alike(each):
        return [_Way(plain, plain.worth, weights is not None, values.dtype)]
    gains = alike(rows)
    scales = (1 / np.sqrt(gains[:, 0])).astype(np.float16).astype(np.float64)
    worth = reached / max(float((rows**2 * gains).sum()), 1e-300)
    narrow = rows / scales[:, None]
    scaled = _unit(narrow, float((narrow**2).sum()), reached, coarse, None, zeros)
    return [
        _Way(plain, gains[:, 0] * worth, False, values.dtype),
        _Way(scaled, scaled.worth, False, values.dtype, scales),
    ]


def _unit(
    rows: np.ndarray, power: float, reached: float, coarse: float, gram: np.ndarray | None, zeros: np.ndarray | None
) -> Tensor:
    """Rows to code, whose errors are shares of a power that arrive so far."""
    limit = 2 * np.log(2) * coarse * power / max(rows.size, 1)  # of a form whose noise is that share: see rate.py
    return Tensor(rows, gram, max(reached / max(power, 1e-300), 1e-300), zeros, max(limit, 1e-300))
