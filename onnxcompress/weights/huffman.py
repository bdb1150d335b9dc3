"""Streams of byte symbols by canonical Huffman codes of at most 15 bits, coded and decoded many at a time.

    payload   u8 last symbol m | u4 length[m + 1], low nibble first | u8 width b, u32 shortest | ub extra bytes[lanes] | lanes

A lane is 4096 symbols, most significant bit first, and begins on a byte; all lanes are decoded side by side, a symbol each in a step.
Huffman, Proc. IRE 1952; lengths by package-merge, Larmore and Hirschberg, JACM 1990.
"""

from __future__ import annotations

import struct

import numpy as np

LONGEST = 15
LANE = 4096


def lengths_of(counts: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """uint8 [256]: bits of each symbol's code, 0 for those that do not occur; the least total with none over `longest`."""
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    coins = counts[order].astype(np.int64)
    levels, packages = [], coins[:0]
    for _ in range(longest):
        both = np.concatenate([coins, packages])
        rank = np.argsort(both, kind="stable")
        levels.append(rank < len(coins))
        merged = both[rank][: len(both) // 2 * 2]
        packages = merged[::2] + merged[1::2]
    lengths, taken = np.zeros(len(counts), np.uint8), 2 * (len(coins) - 1)
    for own in reversed(
        levels
    ):  # of the cheapest that are taken, coins are a beginning of all coins, and the others two of the level below
        coin = int(own[:taken].sum())
        lengths[order[:coin]] += 1
        taken = 2 * (taken - coin)
    return lengths


def size(counts: np.ndarray) -> float:
    """Bytes of the payload, nearly."""
    if not counts.any():
        return 0.0
    total = int(counts.sum())
    used = counts[counts > 0]
    if (used * np.log2(total / used)).sum() > 0.999 * 8 * total:  # no code is shorter than the entropy
        return float(total)
    body = float((counts * lengths_of(counts)).sum() / 8)
    return body + np.flatnonzero(counts)[-1] / 2 + 7 + 1.5 * (total / LANE + 1)


def encode(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    """The payload of uint8 symbols [n] with these counts [256], of which two or more are not zero."""
    lengths = lengths_of(counts)
    last = int(np.flatnonzero(counts)[-1])
    lanes = -(-len(symbols) // LANE)
    bits = np.zeros(lanes * LANE, np.int64)
    bits[: len(symbols)] = lengths.take(symbols)
    ends = bits.reshape(lanes, LANE).cumsum(axis=1)
    sizes = -(-ends[:, -1] // 8)
    starts = 8 * (np.cumsum(sizes) - sizes)
    places = (ends + starts[:, None]).reshape(-1)[: len(symbols)] - bits[: len(symbols)]
    body = _written(canonical(lengths).take(symbols), bits[: len(symbols)], places, int(sizes.sum()))
    nibbles = np.append(lengths, np.uint8(0))[: 2 * (last // 2 + 1)]  # none is longer than `last`
    extra = sizes - sizes.min()
    width = 1 if extra.max() < 256 else 2
    head = struct.pack("<BI", width, int(sizes.min()))
    return (
        bytes([last])
        + (nibbles[::2] | nibbles[1::2] << 4).tobytes()
        + head
        + extra.astype(f"<u{width}").tobytes()
        + body
    )


def _written(codes: np.ndarray, bits: np.ndarray, places: np.ndarray, size: int) -> bytes:
    """Codes at their bit places: each reaches into at most two words of 32 bits, and bits of one word add up without a carry."""
    words, values = places >> 5, codes.astype(np.uint64) << (64 - bits - (places & 31)).astype(np.uint64)
    count = -(-size // 4) + 1
    sums = np.bincount(words, values >> np.uint64(32), count)
    low = values & np.uint64(0xFFFFFFFF)
    over = np.flatnonzero(low)
    sums += np.bincount(words[over] + 1, low[over], count)[:count]
    return sums.astype(">u4").tobytes()[:size]


def canonical(lengths: np.ndarray) -> np.ndarray:
    """uint32 [256] codes: shorter ones first, equal lengths in order of their symbols."""
    codes = np.zeros(len(lengths), np.uint32)
    code, before = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        if bits := int(lengths[symbol]):
            code <<= bits - before
            codes[symbol], before = code, bits
            code += 1
    return codes


def decode(payload: bytes | memoryview, count: int) -> np.ndarray:
    """uint8 [count]; ValueError for a payload that `encode` does not make."""
    lanes = -(-count // LANE)
    last = payload[0] if len(payload) else 0
    packed = np.frombuffer(payload[1 : last // 2 + 2], np.uint8)
    rest = payload[last // 2 + 2 :]
    if len(packed) != last // 2 + 1 or len(rest) < 5:
        raise ValueError("code lengths cut short")
    lengths = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    if (1 << LONGEST >> lengths[lengths > 0].astype(np.int64)).sum() != 1 << LONGEST:
        raise ValueError("code lengths that are no code")
    width, shortest = struct.unpack_from("<BI", rest)
    if width not in (1, 2) or len(rest) < 5 + width * lanes:
        raise ValueError("lanes cut short")
    sizes = np.frombuffer(rest, f"<u{width}", lanes, 5).astype(np.int64) + shortest
    body = rest[5 + width * lanes :]
    if int(sizes.sum()) != len(body):
        raise ValueError("lanes of another length")
    return _read(np.frombuffer(body, np.uint8), sizes, lengths, count)


def _read(body: np.ndarray, sizes: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """All lanes side by side, each in as many parts as make it worth while; the last lane may be shorter."""
    padded = np.concatenate([body, np.zeros(4, np.uint8)]).astype(np.int32)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    table = _table(lengths)
    ends = np.cumsum(sizes)
    places = (8 * (ends - sizes)).astype(np.int32)
    parts = 1 if len(sizes) >= MANY else PARTS
    starts = places[:, None] if parts == 1 else _starts(windows, table, places, parts)
    found, stops = _steps(windows, table, starts.reshape(-1), LANE // parts)
    stops = stops.reshape(len(sizes), parts)[:, -1]
    whole = found.reshape(-1)
    left = count - (len(sizes) - 1) * LANE
    if left < LANE:  # beyond the end of the last lane there are symbols that nobody wrote
        stops[-1] = places[-1] + (lengths.take(whole[-LANE:][:left])).sum(dtype=np.int64)
    if not np.array_equal(-(-stops.astype(np.int64) // 8), ends):
        raise ValueError("symbols that do not end where their lane does")
    return whole[:count]


MANY, PARTS = 64, 64
"""Fewer lanes than MANY are cut into PARTS, whose places are found by jumps of LANE / PARTS symbols from every bit."""


def _starts(windows: np.ndarray, table: np.ndarray, places: np.ndarray, parts: int) -> np.ndarray:
    """int32 [lanes, parts]: where each part of each lane begins. A jump of two symbols is two jumps of one, and so on."""
    every = np.arange(8 * len(windows), dtype=np.int32)
    jump = np.minimum(every + (_entries(windows, table, every) >> 8), every[-1])
    for _ in range((LANE // parts).bit_length() - 1):
        jump = jump.take(jump)
    starts = np.empty((len(places), parts), np.int32)
    for part in range(parts):
        starts[:, part] = places
        places = jump.take(places)
    return starts


def _entries(windows: np.ndarray, table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Symbol + 256 · bits of the codes that begin at these bits."""
    windows = windows.take(places >> 3, mode="clip")
    return table.take(windows >> (9 - (places & 7)) & ((1 << LONGEST) - 1))


def _steps(windows: np.ndarray, table: np.ndarray, places: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [starts, steps] symbols from each start on, and where they end."""
    found = np.empty((steps, len(places)), np.uint8)
    for step in range(steps):
        entry = _entries(windows, table, places)
        found[step] = entry
        places = places + (entry >> 8)
    return np.ascontiguousarray(found.T), places


def _table(lengths: np.ndarray) -> np.ndarray:
    """int32 [2**15]: symbol and bits of the code that 15 bits begin with, as symbol + 256 · bits."""
    used = np.flatnonzero(lengths)
    order = used[np.lexsort((used, lengths[used]))]
    bits = lengths[order].astype(np.int64)
    return np.repeat(order + 256 * bits, 1 << (LONGEST - bits)).astype(np.int32)
