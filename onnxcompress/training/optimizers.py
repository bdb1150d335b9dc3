"""Optimizers, schedules, averages and clipping in numpy over one flat buffer. All work in place; state is arrays by name.

Weight decay is decoupled in all of them (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101): weights shrink by rate x decay
before the step, only where `decays` is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import cos, pi

import numpy as np

State = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Settings:
    """What an optimizer is told.

    momentum    of SGD; the first beta of the others        beta        the second one
    nesterov    of SGD: look ahead along the velocity       epsilon     under the root's quotient
    decay       of weights, a rate                          decays      [n], 1 where a weight decays
    bounds      begin and end of each array in the buffer, for LAMB
    """

    momentum: float = 0.9
    nesterov: bool = False
    beta: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.0
    decays: np.ndarray = field(default_factory=lambda: np.ones(1, np.float32))
    bounds: Sequence[tuple[int, int]] = ()


Update = Callable[[np.ndarray, np.ndarray, State, float, int, Settings], None]
"""(weights [n], gradient [n], state, rate, step from 1, settings): change weights and state in place."""


def _shrink(weights: np.ndarray, rate: float, settings: Settings) -> None:
    if settings.decay:
        weights *= 1 - np.float32(rate * settings.decay) * settings.decays


def sgd(weights: np.ndarray, gradient: np.ndarray, state: State, rate: float, step: int, settings: Settings) -> None:
    """v = momentum v + g; w -= rate v, with Nesterov rate (g + momentum v).

    Sutskever et al., ICML 2013, in the form that frameworks use.
    """
    velocity = state.setdefault("velocity", np.zeros_like(weights))
    _shrink(weights, rate, settings)
    velocity *= np.float32(settings.momentum)
    velocity += gradient
    ahead = gradient + np.float32(settings.momentum) * velocity if settings.nesterov else velocity
    weights -= np.float32(rate) * ahead


def _adam_direction(gradient: np.ndarray, state: State, step: int, settings: Settings) -> np.ndarray:
    """The mean of gradients over the root of the mean of their squares, both freed of their start at zero."""
    first = state.setdefault("first", np.zeros_like(gradient))
    second = state.setdefault("second", np.zeros_like(gradient))
    first += np.float32(1 - settings.momentum) * (gradient - first)
    second += np.float32(1 - settings.beta) * (gradient * gradient - second)
    root = np.sqrt(second / np.float32(1 - settings.beta**step))
    root += np.float32(settings.epsilon)
    return first / (np.float32(1 - settings.momentum**step) * root)


def adamw(weights: np.ndarray, gradient: np.ndarray, state: State, rate: float, step: int, settings: Settings) -> None:
    """Kingma and Ba, ICLR 2015, arXiv:1412.6980, with decoupled decay (arXiv:1711.05101)."""
    direction = _adam_direction(gradient, state, step, settings)
    _shrink(weights, rate, settings)
    weights -= np.float32(rate) * direction


def lamb(weights: np.ndarray, gradient: np.ndarray, state: State, rate: float, step: int, settings: Settings) -> None:
    """Adam's direction and the decay, scaled array by array by ‖w‖ / ‖direction‖ (1 where either is 0).

    You et al., ICLR 2020, arXiv:1904.00962.
    """
    direction = _adam_direction(gradient, state, step, settings)
    if settings.decay:
        direction += np.float32(settings.decay) * settings.decays * weights
    for first, last in settings.bounds or ((0, len(weights)),):
        size, length = np.linalg.norm(weights[first:last]), np.linalg.norm(direction[first:last])
        trust = size / length if size > 0 and length > 0 else 1.0
        weights[first:last] -= np.float32(rate * trust) * direction[first:last]


OPTIMIZERS: dict[str, Update] = {"sgd": sgd, "adamw": adamw, "lamb": lamb}
"""Name -> one step."""


def _steps(done: float) -> float:
    """A tenth after half of the time, a hundredth after three quarters (as ResNet's training on CIFAR: He et al. 2016)."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + cos(pi * done)),
    "step": _steps,
}
"""Name -> factor of the rate after a share of the steps. Cosine: Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983."""


def rate_at(step: int, total: int, *, rate: float, schedule: str, warmup: float = 0.0) -> float:
    """The rate of step 0, 1, ... of `total`; it rises linearly over the first `warmup` share of them (Goyal et al. 2017)."""
    warm = round(warmup * total)
    if step < warm:
        return rate * (step + 1) / warm
    return rate * SCHEDULES[schedule]((step - warm) / max(total - warm, 1))


def clip_to(gradient: np.ndarray, longest: float | None) -> float:
    """Scale the gradient in place to at most this length; its length before. Pascanu et al., ICML 2013, arXiv:1211.5063."""
    length = float(np.linalg.norm(gradient))
    if longest is not None and length > longest:
        gradient *= np.float32(longest / length)
    return length


def average_into(average: np.ndarray, weights: np.ndarray, keep: float, step: int) -> None:
    """average = k average + (1 - k) weights, in place; k is `keep`, less in the first steps so that the start is soon forgotten.

    Polyak and Juditsky 1992; the exponential form as in Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780.
    """
    k = min(keep, (1 + step) / (10 + step))
    average += np.float32(1 - k) * (weights - average)
