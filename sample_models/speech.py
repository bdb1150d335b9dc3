"""Sound that a voice detector takes for speech, made by a formant synthesizer, with what is spoken where.

A train of glottal pulses with a moving pitch runs through three resonators at the formants of vowels, between bursts of
noise and pauses (Klatt, J. Acoust. Soc. Am. 67, 1980, in its simplest form). 16 kHz, float32 in -1..1.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

RATE = 16_000
FRAME, CONTEXT = 512, 64  # what silero-vad takes at 16 kHz: 32 ms, and the end of the frame before it
# Formants in Hz of seven vowels, means of male speakers: Peterson and Barney, J. Acoust. Soc. Am. 24, 1952.
FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410),
            (440, 1020, 2240), (640, 1190, 2390))  # fmt: skip
BANDWIDTHS = (80, 100, 140)  # Hz
SILENT, SPOKEN, UNCLEAR = 0, 1, -1


def _vowel(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """80 to 250 ms of one vowel at about `pitch` Hz."""
    count = int(rng.uniform(0.08, 0.25) * RATE)
    time = np.arange(count)
    wobble = 1 + 0.1 * np.sin(2 * np.pi * time / count * rng.uniform(0.3, 1) + rng.uniform(0, 2 * np.pi))
    pulses = np.diff(np.floor(np.cumsum(pitch * wobble / RATE)), prepend=0)
    sound = lfilter([1], [1, -0.95], pulses) + rng.normal(0, 0.01, count)
    for frequency, width in zip(FORMANTS[rng.integers(len(FORMANTS))], BANDWIDTHS, strict=True):
        r = np.exp(-np.pi * width / RATE)
        sound = lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * frequency / RATE), r * r], sound)
    fade = np.minimum(1, np.minimum(time, count - time) / (0.02 * RATE))
    return sound / np.abs(sound).max() * rng.uniform(0.2, 0.6) * fade


def _consonant(rng: np.random.Generator) -> np.ndarray:
    """40 to 120 ms of high-pitched noise."""
    return lfilter([1, -0.9], [1], rng.normal(0, 0.05, int(rng.uniform(0.04, 0.12) * RATE)))


def clip(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and pauses: windows [frames, CONTEXT + FRAME] float32, and SILENT, SPOKEN or UNCLEAR for each frame.

    A frame that a vowel or a consonant fills is spoken, one that ends 0.25 s or more after speech is silent.
    """
    pieces: list[np.ndarray] = []
    spoken: list[np.ndarray] = []
    pitch, wanted = rng.uniform(90, 220), frames * FRAME
    while sum(map(len, pieces)) < wanted:
        if rng.random() < 0.5:
            pieces.append(np.zeros(int(rng.uniform(0.4, 0.8) * RATE)))
            spoken.append(np.zeros(len(pieces[-1]), bool))
        for _ in range(int(rng.integers(2, 6))):
            sounds = [_consonant(rng), _vowel(rng, pitch)] if rng.random() < 0.4 else [_vowel(rng, pitch)]
            pieces += sounds
            spoken += [np.ones(len(sound), bool) for sound in sounds]
    sound = np.concatenate(pieces)[:wanted] + rng.normal(0, 0.002, wanted)
    padded = np.concatenate([np.zeros(CONTEXT), sound]).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    return windows.copy(), _truth(np.concatenate(spoken)[:wanted].reshape(frames, FRAME).mean(1))


def _truth(share: np.ndarray) -> np.ndarray:
    """Label of each frame from the share [frames] of it that is spoken."""
    hold = int(np.ceil(0.25 * RATE / FRAME))
    quiet = np.array([share[max(0, at - hold) : at + 2].max() == 0 for at in range(len(share))])
    return np.where(share == 1, SPOKEN, np.where(quiet, SILENT, UNCLEAR)).astype(np.int64)


def frame(rng: np.random.Generator, spoken: bool) -> tuple[np.ndarray, int]:
    """One window [1, CONTEXT + FRAME] of a clip, spoken or silent as asked, and its label."""
    while True:
        windows, truth = clip(rng, 64)
        (places,) = np.nonzero(truth == (SPOKEN if spoken else SILENT))
        if len(places):
            at = int(rng.choice(places))
            return windows[at : at + 1], int(truth[at])
