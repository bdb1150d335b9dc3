"""Trellis-coded symbols: which half of a book a symbol looks into depends on the lowest bits of the symbols before it.

    state[t] = bits u[t-1], u[t-2], ... of the symbols s[t-1], s[t-2], ..., u = s mod 2, zero before the first
    value[t] = book[2 · (s[t] xor turned(state[t])) + odd(state[t])]            a book of 2K entries in ascending order, s < K

so that K symbols choose among 2K values: consecutive weights share what a finer book costs. Trellis-coded quantization (Marcellin,
Fischer, IEEE Transactions on Communications 1990) with the codes of Ungerboeck (IEEE Transactions on Information Theory 1982,
table I), which split a book into four subsets, e[i] in subset i mod 4. As dependent quantization it is in VVC and in the neural
network coding of ISO/IEC 15938-17 (Schwarz et al. 2021), where the state follows from parities by feedback; here the encoder is
its feedforward equivalent, so that a decoder needs the last few bits alone: no sum over all symbols, and no order of decoding.
"""

from __future__ import annotations

from functools import cache

import numpy as np

CODES = {4: (0b010, 0b101), 8: (0b0100, 0b1011), 16: (0b00100, 0b10011), 32: (0b001000, 0b100101)}
"""States -> the two polynomials of Ungerboeck's code, bit i for the symbol i places before: which half, and which way round in it."""


def memory(states: int) -> int:
    """Symbols before one that its state depends on."""
    return states.bit_length() - 1


@cache
def rules(states: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [states] each: odd, the half of the book; turned, what a symbol's lowest bit is flipped by. Bit i of a state is u[t-1-i]."""
    half, way = CODES[states]
    numbers = np.arange(states)
    return _parity(numbers & half >> 1), _parity(numbers & way >> 1)


def _parity(numbers: np.ndarray) -> np.ndarray:
    return np.bitwise_count(numbers).astype(np.uint8) & 1


@cache
def table(states: int, symbols: int) -> np.ndarray:
    """uint16 [states · symbols], the entry of the book for a symbol in a state: row by row, a state each. `symbols` is even."""
    odd, turned = rules(states)
    return (2 * (np.arange(symbols) ^ turned[:, None]) + odd[:, None]).astype(np.uint16).reshape(-1)


def states_of(symbols: np.ndarray, states: int) -> np.ndarray:
    """uint8, of symbols [..., T, B] that follow each other along the second axis from the end."""
    bits = symbols & 1
    found = np.zeros(symbols.shape, np.uint8)
    for back in range(1, min(memory(states), symbols.shape[-2] - 1) + 1):
        found[..., back:, :] |= (bits[..., :-back, :] << (back - 1)).astype(np.uint8)
    return found


def levels_of(symbols: np.ndarray, states: int) -> np.ndarray:
    """uint8 entries of the book, of symbols [..., T, B]."""
    odd, turned = rules(states)
    at = states_of(symbols, states)
    return ((symbols ^ turned[at]) << 1 | odd[at]).astype(np.uint8)


def symbols_of(levels: np.ndarray, states: int) -> np.ndarray:
    """The symbols again, uint8 [..., T, B]; ValueError where the entries follow no path through the trellis."""
    odd, turned = rules(states)
    found = np.empty(levels.shape, np.uint8)
    state = np.zeros(levels[..., 0, :].shape, np.intp)
    for t in range(levels.shape[-2]):
        each = levels[..., t, :]
        if (each & 1 != odd[state]).any():
            raise ValueError("these entries follow no path of the trellis")
        found[..., t, :] = each >> 1 ^ turned[state]
        state = (state << 1 | found[..., t, :] & 1) & (states - 1)
    return found
