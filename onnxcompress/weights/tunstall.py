"""Tunstall's variable-to-fixed code: words of symbols, each one byte (Tunstall 1967, "Synthesis of noiseless compression codes").

Every codeword has 8 bits, so that a table decodes it; the more probable a symbol, the longer the words that hold it. The words
are the leaves of a tree that always splits its most probable leaf, hence every sequence of symbols parses in one way.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

WORDS = 256


@dataclass(frozen=True, eq=False)
class Dictionary:
    """symbols  uint8, all words one after another      lengths  uint8 [words]"""

    symbols: np.ndarray
    lengths: np.ndarray

    @property
    def kinds(self) -> int:
        """How many symbols there are."""
        return int(self.symbols.max()) + 1

    @property
    def starts(self) -> np.ndarray:
        """int32 [words]: where each word begins in `symbols`."""
        return (np.cumsum(self.lengths, dtype=np.int32) - self.lengths).astype(np.int32)

    def bits(self, counts: np.ndarray) -> float:
        """Expected, a symbol, where symbols occur so often; they need not be those that the words were made for."""
        with np.errstate(divide="ignore"):
            share = np.log(counts / counts.sum())
        words = np.exp(np.add.reduceat(share[self.symbols], self.starts))
        return float(8 / (words @ self.lengths))


def dictionary(counts: np.ndarray) -> Dictionary | None:
    """The best words for symbols that occur so often; None where a word would hold one symbol, or a word 255 of them."""
    kinds = len(counts)
    shares = counts / counts.sum()
    if kinds < 2 or 2 * kinds - 1 > WORDS:
        return None
    # by probability, then by age, so that the tree does not depend on how ties of floats are sorted
    leaves: list[tuple[float, int, tuple[int, ...]]] = [(-1.0, 0, ())]
    age = 0
    while len(leaves) + kinds - 1 <= WORDS:
        share, _, word = heapq.heappop(leaves)
        for symbol in range(kinds):
            age += 1
            heapq.heappush(leaves, (share * shares[symbol], age, (*word, symbol)))
    words = sorted(word for _, _, word in leaves)
    if max(map(len, words)) > 255:
        return None
    symbols = np.array([symbol for word in words for symbol in word], np.uint8)
    return Dictionary(symbols, np.array([len(word) for word in words], np.uint8))


def encode(symbols: np.ndarray, words: Dictionary) -> np.ndarray:
    """uint8 codewords. The last word may run over the end; what stands there is not decoded.

    All positions are parsed at once, a few levels of the tree at a time; then the words that follow each other are picked.
    """
    tree = _tree(words)
    kinds = tree.shape[1]
    span = digits(kinds)
    padded = np.concatenate([symbols, np.zeros(int(words.lengths.max()) + span, np.uint8)])
    ahead = np.zeros(len(padded) - span, np.uint8)
    for place in range(span):
        ahead = ahead * np.uint8(kinds) + padded[place : place + len(ahead)]
    leaps = _leaps(tree, span)
    word, at = np.zeros(len(symbols), np.int16), leaps[0, ahead[: len(symbols)]]
    active, depth = np.arange(len(symbols)), span
    while len(active):
        done = at < 0
        word[active[done]] = -1 - at[done]
        active, at = active[~done], at[~done]
        at = leaps[at, ahead[active + depth]]
        depth += span
    following = (np.arange(len(symbols)) + words.lengths[word]).tolist()
    picked, position = [], 0
    while position < len(following):
        picked.append(position)
        position = following[position]
    return word[picked].astype(np.uint8)


def decode(codes: np.ndarray, words: Dictionary, size: int) -> np.ndarray:
    """The first `size` symbols; the same sums that the nodes of `forms.py` compute. ValueError where the codes hold fewer."""
    lengths, starts = words.lengths.astype(np.int64), words.starts.astype(np.int64)
    ends = np.cumsum(lengths[codes])
    if (ends[-1] if len(ends) else 0) < size:
        raise ValueError(f"{len(codes)} codewords hold fewer than {size} symbols")
    steps = np.ones(size, np.int64)
    last = np.concatenate([[0], (starts + lengths - 1)[codes[:-1]]]) if len(codes) else np.zeros(0, np.int64)
    begins = ends - lengths[codes]
    inside = begins < size
    steps[begins[inside]] = (starts[codes] - last)[inside]
    return words.symbols[np.cumsum(steps)]


def kinds_of(lengths: np.ndarray) -> int | None:
    """Of how many symbols words of such lengths are the leaves of a tree; None where they are none."""
    inner, rest = len(lengths) - 1, [int(each) for each in lengths]
    for kinds in (count + 1 for count in range(1, min(inner, 127) + 1) if inner % count == 0):
        if sum(kinds ** (max(rest) - each) for each in rest) == kinds ** max(rest):
            return kinds
    return None


def words_of(lengths: np.ndarray, kinds: int) -> Dictionary:
    """The words that have these lengths, in their order; ValueError where these are no words of so many symbols."""
    if not len(lengths) or lengths.min() < 1 or kinds < 2:
        raise ValueError("words without symbols")
    words, word = [], [0] * int(lengths[0])
    for number, length in enumerate(lengths.tolist()):
        if number:
            while word and word[-1] == kinds - 1:
                word.pop()
            if not word or len(word) > length:
                raise ValueError("lengths that are no words")
            word = [*word[:-1], word[-1] + 1, *[0] * (length - len(word))]
        words.append(bytes(word))
    if any(symbol != kinds - 1 for symbol in word):
        raise ValueError("lengths that are no words")
    return Dictionary(np.frombuffer(b"".join(words), np.uint8), lengths.astype(np.uint8))


def _tree(words: Dictionary) -> np.ndarray:
    """[inner node, symbol] -> the next inner node, or -1 - word at a leaf."""
    inner: list[dict[int, int]] = [{}]
    for number, (start, length) in enumerate(zip(words.starts, words.lengths, strict=True)):
        node = 0
        *path, last = words.symbols[start : start + length].tolist()
        for symbol in path:
            if symbol not in inner[node]:
                inner.append({})
                inner[node][symbol] = len(inner) - 1
            node = inner[node][symbol]
        inner[node][last] = -1 - number
    return np.array([[node[symbol] for symbol in range(words.kinds)] for node in inner], np.int16)


def _leaps(tree: np.ndarray, span: int) -> np.ndarray:
    """[inner node, the next `span` symbols as one number] -> where the tree has been left, or the node that is reached."""
    reached = np.arange(len(tree), dtype=np.int16)[:, None]
    for _ in range(span):
        further = tree[np.maximum(reached, 0)]
        reached = np.where(reached[:, :, None] < 0, reached[:, :, None], further).reshape(len(tree), -1)
    return reached


def digits(kinds: int) -> int:
    """Symbols that one byte holds as digits of a number: 8 of 2, 5 of 3, 4 of 4, 3 of up to 6, 2 of up to 16."""
    return next(count for count in range(8, 0, -1) if max(kinds, 2) ** count <= 256)
