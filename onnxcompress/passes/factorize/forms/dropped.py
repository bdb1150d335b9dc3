"""What is kept of a weight, so that it makes up for what is dropped: the best weights on some of the inputs.

min ‖(W − Ŵ) X‖² over Ŵ that is zero elsewhere:   Ŵ_S = W_S + W_R G_RS (G_SS + λ)⁻¹,   S kept, R the rest
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from onnxcompress.passes.factorize.metric import Metric

DAMPING = 1e-3
"""Of the kept inputs' moments, as a share of their mean diagonal: there may be fewer rows than weights."""


def kept(rows: np.ndarray, places: np.ndarray, metric: Metric, group: int = 0) -> np.ndarray:
    """[out, n] of one group -> [out, places]."""
    if metric.gram is None and metric.rows is None:
        return rows[:, places]
    dropped = rows.astype(np.float64)
    dropped[:, places] = 0
    noise = 0.0 if metric.noise is None else float(metric.noise[group])
    if metric.gram is not None:
        gram = metric.gram[group]
        cross, moments = dropped @ gram[:, places], gram[np.ix_(places, places)]
    else:
        assert metric.rows is not None
        fed = metric.rows[group].astype(np.float64)
        read, missing = fed[:, places], dropped @ fed.T
        if len(read) < len(places):  # (RᵀR + λ)⁻¹ from the side of the rows: M R (RᵀR + λ)⁻¹ = M (R Rᵀ + λ)⁻¹ R
            damped = _damped(read @ read.T, len(places), noise)
            return np.asarray(rows[:, places] + cho_solve(cho_factor(damped), missing.T).T @ read)
        cross, moments = missing @ read, read.T @ read
    return np.asarray(rows[:, places] + cho_solve(cho_factor(_damped(moments, len(places), noise)), cross.T).T)


def _damped(moments: np.ndarray, count: int, noise: float) -> np.ndarray:
    """With the noise that is there, and DAMPING of the mean over `count` inputs."""
    mean = float(np.trace(moments)) / count + noise
    return np.asarray(moments + (noise + DAMPING * max(mean, 1e-300)) * np.eye(len(moments)))
