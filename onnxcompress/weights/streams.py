"""Coders of one stream of byte symbols: a row a coder, its number as the file has it. The smallest that is allowed wins.

A stream holds at most a block of symbols (2**20), so whatever a damaged file claims, no coder makes more than a megabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard

from onnxcompress.errors import SettingError, nearest
from onnxcompress.weights import ans, huffman

RAW, CONSTANT, ZSTD, ANS, HUFFMAN = range(5)
LEVEL, LONG_LEVEL, LONG = 15, 9, 1 << 14
"""Of zstd; the second of streams of more than LONG bytes whose repetitions save little, where level 15 does a few MB a second."""

CLEARLY = 0.75
"""Share of what the entropy coder takes, below which zstd saves much."""

PROBE = 1 << 16
"""Bytes of a stream that zstd is tried on at its fastest level."""

SHORT = 64
"""Bytes of a stream in which no repetitions are looked for."""


@dataclass(frozen=True)
class Coder:
    """encode(symbols [n], counts [256]) -> payload; decode(payload, n) -> symbols, ValueError for what is damaged."""

    name: str
    encode: Callable[[np.ndarray, np.ndarray], bytes]
    decode: Callable[[bytes | memoryview, int], np.ndarray]


def _raw(payload: bytes | memoryview, count: int) -> np.ndarray:
    if len(payload) != count:
        raise ValueError("bytes cut short")
    return np.frombuffer(payload, np.uint8)


def _constant(payload: bytes | memoryview, count: int) -> np.ndarray:
    if len(payload) != 1:
        raise ValueError("not one byte")
    return np.full(count, payload[0], np.uint8)


def zipped(data: bytes | memoryview, level: int = LEVEL) -> bytes:
    """A zstd frame that states its size."""
    return (FASTEST if level == 1 else zstandard.ZstdCompressor(level=level)).compress(data)


FASTEST = zstandard.ZstdCompressor(level=1)
"""Kept, since it looks at every stream; those of higher levels hold megabytes."""


def unzipped(payload: bytes | memoryview, count: int) -> bytes:
    """Exactly `count` bytes; ValueError otherwise, before anything larger is made."""
    try:
        if zstandard.frame_content_size(payload) != count:
            raise ValueError("a frame of another size")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=count)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


CODERS = {
    RAW: Coder("raw", lambda symbols, _: symbols.tobytes(), _raw),
    CONSTANT: Coder("constant", lambda symbols, _: symbols[:1].tobytes(), _constant),
    ZSTD: Coder("zstd", lambda symbols, _: zipped(symbols.data), lambda p, n: np.frombuffer(unzipped(p, n), np.uint8)),
    ANS: Coder("ans", ans.encode, ans.decode),
    HUFFMAN: Coder("huffman", huffman.encode, huffman.decode),
}

ENTROPY = {"ans": (ANS, ans.size), "huffman": (HUFFMAN, huffman.size)}
"""What `pack --entropy` takes -> coder, and its size in bytes from counts."""


def check_entropy(name: str) -> None:
    """SettingError for a name that is not in the table."""
    if name not in ENTROPY:
        raise SettingError(f"entropy is {name!r}; {nearest(name, ENTROPY)}")


def counted(symbols: np.ndarray) -> np.ndarray:
    """How often each byte occurs, [256]."""
    return np.bincount(symbols, minlength=256)


def expected(counts: np.ndarray, entropy: str) -> float:
    """Bytes of a stream with these counts and without repetitions, nearly: of the entropy coder, or as it is."""
    total = float(counts.sum())
    return min(1.0, total) if counts.max(initial=0) == total else min(ENTROPY[entropy][1](counts), total)


def coded(symbols: np.ndarray, entropy: str) -> tuple[int, bytes]:
    """Number of the coder with the smallest payload, and the payload."""
    if not len(symbols):
        return RAW, b""
    counts = counted(symbols)
    if counts[symbols[0]] == len(symbols):
        return CONSTANT, CODERS[CONSTANT].encode(symbols, counts)
    number, size = ENTROPY[entropy]
    guess = size(counts)
    best = (number, CODERS[number].encode(symbols, counts)) if guess < 0.999 * len(symbols) else (RAW, b"")
    if best[0] == RAW or len(best[1]) >= len(symbols):
        best = RAW, symbols.tobytes()
    if len(symbols) > SHORT:
        share, wanted = _repeats(symbols), min(guess / len(symbols), 1.0)
        if share < 0.98 * wanted:
            frame = zipped(symbols.data, LONG_LEVEL if len(symbols) > LONG and share > CLEARLY * wanted else LEVEL)
            best = (ZSTD, frame) if len(frame) < len(best[1]) else best
    return best


def _repeats(symbols: np.ndarray) -> float:
    """Share of its bytes that a stream takes in zstd, which finds repetitions: by a piece, at its fastest level."""
    middle = max(0, (len(symbols) - PROBE) // 2)
    piece = symbols[middle : middle + PROBE]
    return len(zipped(piece.data, 1)) / len(piece)


def decoded(coder: int, payload: bytes | memoryview, count: int) -> np.ndarray:
    """uint8 [count]; ValueError for a coder that is not in the table or a damaged payload."""
    if coder not in CODERS:
        raise ValueError(f"coder {coder} is not known")
    return CODERS[coder].decode(payload, count) if count else _raw(payload, 0)
