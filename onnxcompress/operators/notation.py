"""The one-line notation of an operator's axes, e.g. ``x[n,i,*s] w[o,i,*k] b[o] -> y[n,o,*t]``.

    n, i, o    a letter names an axis; the same letter is the same channel, in whichever terms it stands
    *s         any number of axes; with the same star in two terms they correspond one by one
    1          an axis of size one
    (G i)      one axis laid out as a product, outer factor first; a CAPITAL is a size only: along it positions go together
    ...o       aligned at the right: leading axes may be missing, and an axis of size one is repeated

A letter that stands in one term only meets nothing: it is closed, and what is labelled along it is frozen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property

TERM = re.compile(r"(\w+)\[([^\]]*)\]")


@dataclass(frozen=True)
class Axis:
    """One axis of a term: its factors, outer first. One factor is the common case; `()` is an axis of size one."""

    factors: tuple[str, ...]

    @cached_property
    def letter(self) -> str | None:
        """The one factor that may be cut: the small letter. None for a size-one axis or one of capitals only."""
        return next((factor for factor in self.factors if not factor[0].isupper()), None)


@dataclass(frozen=True)
class Term:
    """The axes of one input or output. `star` is the place and letter of the repeated axes, `aligned` marks ``...``."""

    name: str
    axes: tuple[Axis, ...]
    star: tuple[int, str] | None = None
    aligned: bool = False

    def expand(self, rank: int) -> tuple[Axis, ...] | None:
        """The axes of a tensor of that rank; None where the term does not fit it."""
        if self.star is not None:
            place, letter = self.star
            count = rank - len(self.axes)
            starred = tuple(Axis((f"{letter}{number}",) if letter != "1" else ()) for number in range(count))
            return None if count < 0 else (*self.axes[:place], *starred, *self.axes[place:])
        if self.aligned:
            leading = tuple(Axis((f"lead{number}",)) for number in range(rank - len(self.axes)))
            return (*leading, *self.axes[max(len(self.axes) - rank, 0) :])
        return self.axes if rank == len(self.axes) else None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs in the operator's own order."""

    inputs: tuple[Term, ...]
    outputs: tuple[Term, ...]


@cache
def parse(text: str) -> Signature:
    """Read one line of the notation; ValueError where it does not follow it."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"signature without an arrow: {text!r}")
    return Signature(_terms(left), _terms(right))


def _terms(text: str) -> tuple[Term, ...]:
    return tuple(_term(name, inner.strip()) for name, inner in TERM.findall(text))


def _term(name: str, inner: str) -> Term:
    aligned = inner.startswith("...")
    axes: list[Axis] = []
    star: tuple[int, str] | None = None
    for place, part in enumerate(piece.strip() for piece in inner.removeprefix("...").split(",") if piece.strip()):
        if part.startswith("*"):
            if star is not None:
                raise ValueError(f"two stars in one term: {name}[{inner}]")
            star = (place, part[1:])
        elif part == "1":
            axes.append(Axis(()))
        else:
            axes.append(Axis(tuple(part.strip("()").split())))
    return Term(name, tuple(axes), star, aligned)
