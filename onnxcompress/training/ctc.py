"""Connectionist temporal classification: the loss of a line of text beside frames of class scores, without knowing which frame shows what.

Graves, Fernández, Gomez, Schmidhuber, ICML 2006. With states s = blank, l1, blank, l2, ..., blank of a label l, a_t(s) the sum over all
beginnings that are in s at frame t and b_t(s) over all ends from there, the frame's class c has the share

    G_t(c) = sum over s with class c of a_t(s) b_t(s) / p(l)            p(l) = sum over s of a_t(s) b_t(s), at any t

and -log p(l) has the gradient softmax - G by the scores: a cross-entropy with soft targets that are computed anew in each step. Both
recursions are loops (Scan) in logarithms; what they give counts as a constant, so that nothing goes back through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.training.losses import loss
from onnxcompress.training.pen import Pen, element_of, shape_of

NEVER = -1e30
"""The logarithm of what cannot be: sums over ten million frames stay finite in float32."""

NONE = -1
"""In codes, behind the end of a label."""


@loss("ctc", "text")
def ctc(op: Pen, student: ir.Value, labels: ir.Value, *, blank: int = 0) -> ir.Value:
    """-log p(label) over the number of frames, mean over lines; scores [frames, lines, classes], labels [lines, longest] class numbers,
    NONE behind their ends. A line with more signs than frames (a repeated one takes two) can have no score: it does not count.
    Over the frames, so that beside a teacher, whose losses are means over frames, a share is a share."""
    frames, lines, classes = shape_of(student)
    log_q = op.LogSoftmax(student, axis=-1)
    spelled = _Spelling(op, labels, blank, element_of(student))
    places = op.Expand(op.Reshape(spelled.classes, [1, lines, -1]), [frames, lines, spelled.states])
    emitted = op.Add(op.GatherElements(op.stopped(log_q), places, axis=2), spelled.dead)
    ends = spelled.walk(emitted, back=True)
    shares = op.Softmax(op.Sub(op.Add(spelled.walk(emitted), ends), emitted), axis=-1)
    line = _either(
        op, *(op.Slice(ends, [0, state], [1, state + 1], [0, 2]) for state in range(2))
    )  # log p, [1, lines, 1]
    can = op.Cast(op.Greater(line, NEVER / 2), to=student.dtype)
    shares = op.Mul(shares, can)
    said = op.MatMul(op.Transpose(shares, perm=[1, 0, 2]), spelled.one_hot(classes))  # G, [lines, frames, classes]
    crossed = op.Neg(op.ReduceSum(op.Mul(op.stopped(op.Transpose(said, perm=[1, 0, 2])), log_q), keepdims=0))
    value = op.Neg(op.ReduceSum(op.Mul(line, can), keepdims=0))
    made = op.Add(crossed, op.stopped(op.Sub(value, crossed)))  # the value of one, the gradient of the other
    return op.Mul(made, 1.0 / (frames * lines))  # type: ignore[no-any-return]


class _Spelling:
    """The states of labels [lines, longest]: [lines, 2 longest + 1].

    classes  of each state    dead    NEVER where the label has ended    skips  NEVER where a state cannot follow the last but one
    ends     0 at the last state, else NEVER
    """

    def __init__(self, op: Pen, labels: ir.Value, blank: int, kind: np.dtype) -> None:  # type: ignore[type-arg]
        lines, longest = shape_of(labels)
        self.op, self.kind, self.lines, self.states = op, kind, lines, 2 * longest + 1
        there = op.Cast(op.Greater(labels, NONE + 0.5), to=labels.dtype)
        signs = op.Add(op.Mul(labels, there), op.Mul(op.Sub(1.0, there), float(blank)))
        blanks = op.constant(np.full((lines, longest, 1), blank, kind))
        pairs = op.Reshape(op.Concat(blanks, op.Reshape(signs, [lines, longest, 1]), axis=2), [lines, 2 * longest])
        self._numbers = op.Concat(pairs, op.constant(np.full((lines, 1), blank, kind)), axis=1)
        self.classes = op.Cast(self._numbers, to=ir.DataType.INT64)
        last = op.Mul(op.ReduceSum(there, [1], keepdims=1), 2.0)
        at = op.constant(np.arange(self.states, dtype=kind)[None])
        self.dead = self._never(op.Greater(at, op.Add(last, 0.5)))
        self.ends = self._never(op.Greater(op.Abs(op.Sub(at, last)), 0.5))
        before = op.Concat(
            op.constant(np.full((lines, 2), blank, kind)), op.Slice(self._numbers, [0], [-2], [1]), axis=1
        )
        same = op.Less(op.Abs(op.Sub(self._numbers, before)), 0.5)
        self.skips = self._never(op.Or(same, op.constant((np.arange(self.states) % 2 == 0)[None])))

    def _never(self, where: ir.Value) -> ir.Value:
        return self.op.Mul(self.op.Cast(where, to=ir.DataType.from_numpy(self.kind)), NEVER)  # type: ignore[no-any-return]

    def walk(self, emitted: ir.Value, *, back: bool = False) -> ir.Value:
        """log a [frames, lines, states]; back: log of b times what its own frame emits."""
        begin = np.full((self.lines, self.states), NEVER, self.kind)
        begin[:, 0] = 0.0

        def step(
            op: Pen, states: Sequence[ir.Value], slices: Sequence[ir.Value]
        ) -> tuple[list[ir.Value], list[ir.Value]]:
            (now,) = states
            jump = (
                _moved(op, op.Add(now, self.skips), 2, back) if back else op.Add(_moved(op, now, 2, back), self.skips)
            )
            ways = [now, _moved(op, now, 1, back), jump]
            new = op.Add(_either(op, *ways), slices[0])
            return [new], [new]

        start = self.ends if back else self.op.constant(begin)
        return self.op.scan([start], [emitted], step, back=back)[1]

    def one_hot(self, classes: int) -> ir.Value:
        """[lines, states, classes]."""
        kind = ir.DataType.from_numpy(self.kind)
        lined = self.op.Reshape(self._numbers, [self.lines, self.states, 1])
        each = self.op.constant(np.arange(classes, dtype=self.kind))
        return self.op.Cast(self.op.Less(self.op.Abs(self.op.Sub(lined, each)), 0.5), to=kind)  # type: ignore[no-any-return]


def _either(op: Pen, *ways: ir.Value) -> ir.Value:
    """The logarithm of a sum."""
    most = op.Max(*ways)
    return op.Add(most, op.Log(op.Sum(*(op.Exp(op.Sub(way, most)) for way in ways))))  # type: ignore[no-any-return]


def _moved(op: Pen, x: ir.Value, by: int, back: bool) -> ir.Value:
    """The state's own place takes what stood `by` states before it, or behind it."""
    lines, states = shape_of(x)
    gone = op.constant(np.full((lines, by), NEVER, element_of(x)))
    kept = op.Slice(x, [by], [states], [1]) if back else op.Slice(x, [0], [states - by], [1])
    return op.Concat(*((kept, gone) if back else (gone, kept)), axis=1)  # type: ignore[no-any-return]


def log_likelihood(log_q: np.ndarray, label: Sequence[int], blank: int = 0) -> float:
    """log p(label) of one line, log_q [frames, classes] logarithms of probabilities; -inf where the frames are too few."""
    states = np.full(2 * len(label) + 1, blank)
    states[1::2] = label
    skips = np.array([s % 2 == 1 and s > 1 and states[s] != states[s - 2] for s in range(len(states))])
    now = np.full(len(states), -np.inf)
    now[0] = 0.0
    for frame in log_q:
        one = np.concatenate([[-np.inf], now[:-1]])
        two = np.where(skips, np.concatenate([[-np.inf] * 2, now[:-2]])[: len(now)], -np.inf)
        now = np.logaddexp(np.logaddexp(now, one), two) + frame[states]
    return float(np.logaddexp.reduce(now[-2:]))


def collapsed(best: np.ndarray, blank: int = 0) -> list[int]:
    """The label that the best class of each frame spells: repeats count once, blanks not at all."""
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return [int(each) for each in best[changed & (best != blank)]]


__all__ = ["NONE", "collapsed", "ctc", "log_likelihood"]
