"""The tableau of column selection on a Gram matrix: regression's sweep operator, with the readers' target swept along.

For a Gram matrix G [n, n], a target T = WᵀW [n, n], kept columns S and the rest R:

            S     R                                               S    R
    A  =  [ -P    F ]   P = G[S,S]⁻¹,  F = P G[S,R]        M  = [ I    F ]        Z = M T Mᵀ
          [  Fᵀ   C ]   C = G[R,R] - G[R,S] F                   [ 0    C ]

    taking unit J out of S, or into it, changes E by  tr(Z[J,J] |A[J,J]|⁻¹)           (J: the unit's columns)
    a pivot on J moves it, at rank |J| for both matrices:  U = A[:,J] A[J,J]⁻¹,
        A ← A - U A[J,:]          Z ← Z - U Z[J,:] - Z[:,J] Uᵀ + U Z[J,J] Uᵀ

where E = tr(T (G - G[:,S] G[S,S]⁻¹ G[S,:])) is the error that a least-squares refit leaves. The sweep operator is in
Goodnight, The American Statistician 1979; sweeping Z along makes any number of outputs cost as much as one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dgemm

from onnxcompress.errors import DataError

PANEL = 64  # columns of postponed updates: wide enough for a matrix product, narrow enough for reading one column


class Reader(NamedTuple):
    """One tensor that the group's readers are fed: ridged Gram [n, n], target [n, n], positions [units, k]."""

    gram: np.ndarray
    target: np.ndarray
    positions: np.ndarray


def cholesky(matrix: np.ndarray) -> tuple[np.ndarray, bool]:
    try:
        return cho_factor(matrix, lower=True, check_finite=False)
    except LinAlgError as error:
        raise DataError("the Gram matrix of a reader is singular; raise ridge or give more samples") from error


def tableau(reader: Reader, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and Z of the module's docstring, with the columns `inside` as S."""
    g, t, _ = reader
    n, s = len(g), np.sort(inside)
    r = np.setdiff1d(np.arange(n), s)
    a, m = np.empty((n, n)), np.zeros((n, n))
    if not len(s):
        return g.copy(), g @ t @ g
    factor = cholesky(g[np.ix_(s, s)])
    a[np.ix_(s, s)] = -cho_solve(factor, np.eye(len(s)), check_finite=False)
    if not len(r):
        return a, t.copy()
    cross = g[np.ix_(s, r)]
    f = cho_solve(factor, cross, check_finite=False)
    c = g[np.ix_(r, r)] - cross.T @ f
    a[np.ix_(s, r)], a[np.ix_(r, s)], a[np.ix_(r, r)] = f, f.T, c
    m[s, s], m[np.ix_(s, r)], m[np.ix_(r, r)] = 1.0, f, c
    return a, m @ t @ m.T


def _subtract(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """matrix -= left @ right.T in place, for a symmetric product: without a second [n, n] array."""
    dgemm(-1.0, left, right, 1.0, matrix.T, trans_b=True, overwrite_c=True)


def pivot(a: np.ndarray, z: np.ndarray, columns: np.ndarray, entering: bool) -> None:
    """Move columns [k] into S or out of it, in place."""
    panel, zpanel = a[:, columns], z[:, columns]
    inverse = np.linalg.inv(panel[columns])
    sign = 1.0 if entering else -1.0
    u = panel @ inverse
    half = zpanel - u @ zpanel[columns] / 2
    _subtract(a, u, panel)
    _subtract(z, np.hstack([u, half]), np.hstack([half, u]))
    zrow = (zpanel - u @ zpanel[columns]) @ (sign * inverse)
    a[:, columns], a[columns] = sign * u, sign * u.T
    z[:, columns], z[columns] = zrow, zrow.T
    a[np.ix_(columns, columns)] = -inverse
    z[np.ix_(columns, columns)] = inverse @ zpanel[columns] @ inverse


def swap_changes(a: np.ndarray, z: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Change of E by each swap, [inside, outside]: what taking j in gains, and what i then costs beside j.

    inside [s, k], outside [r, k] columns. With c = A[j,j], f = A[i,j], q = f c⁻¹:
        -tr(Z[j,j] c⁻¹) + tr( (Z[i,i] - q Z[j,i] - Z[i,j] qᵀ + q Z[j,j] qᵀ) (-A[i,i] + q fᵀ)⁻¹ )
    """
    if inside.shape[1] == 1:
        i, j = inside[:, 0], outside[:, 0]
        c, zj = a[j, j], z[j, j]
        f = a[np.ix_(i, j)]
        q = f / c
        f *= q
        f -= a[i, i][:, None]
        rest = (q * zj - 2 * z[np.ix_(i, j)]) * q + z[i, i][:, None]
        return rest.clip(min=0) / f - zj / c
    return np.stack([_costs_beside(a, z, inside, j) for j in outside], axis=1)


def _costs_beside(a: np.ndarray, z: np.ndarray, inside: np.ndarray, j: np.ndarray) -> np.ndarray:
    rows, columns = inside[:, :, None], inside[:, None, :]
    zj, inverse = z[np.ix_(j, j)], np.linalg.inv(a[np.ix_(j, j)])
    f, zij = a[rows, j], z[rows, j]
    q = f @ inverse
    cross = q @ zij.swapaxes(1, 2)
    rest = z[rows, columns] - cross - cross.swapaxes(1, 2) + q @ zj @ q.swapaxes(1, 2)
    left = q @ f.swapaxes(1, 2) - a[rows, columns]
    return np.trace(np.linalg.solve(left, rest), axis1=1, axis2=2) - np.trace(zj @ inverse)


# ---- one way through a tableau, with postponed updates ----


class Queue:
    """A tableau from which units are only taken: diagonal blocks are current, the rest is updated by panels."""

    def __init__(self, a: np.ndarray, z: np.ndarray, positions: np.ndarray):
        self.a, self.z, self.where = a, z, positions.copy()
        rows, columns = positions[:, :, None], positions[:, None, :]
        self.diagonal_a, self.diagonal_z = a[rows, columns], z[rows, columns]
        self.alive = np.ones(len(positions), dtype=bool)
        self._clear()

    def _clear(self) -> None:
        self.panel, self.u, self.half = (np.zeros((len(self.a), PANEL + self.where.shape[1])) for _ in range(3))
        self.used = 0

    def gains(self) -> np.ndarray:
        """|change of E| by taking each unit, [units]; 0 for those that went."""
        eye = np.eye(self.where.shape[1])
        blocks = np.where(self.alive[:, None, None], self.diagonal_a, eye)
        # A division where blocks are numbers: a batched solve of 2,048 of them takes longer than the rest of the step.
        ratio = self.diagonal_z / blocks if len(eye) == 1 else np.linalg.solve(blocks, self.diagonal_z)
        return np.where(self.alive, np.abs(np.trace(ratio, axis1=1, axis2=2)), 0.0)

    def take(self, unit: int) -> None:
        j, k, m = self.where[unit], self.where.shape[1], self.used
        panel, u, half = self.panel[:, :m], self.u[:, :m], self.half[:, :m]
        new = self.a[:, j] - panel @ u[j].T
        znew = self.z[:, j] - half @ u[j].T - u @ half[j].T
        unew = np.linalg.solve(new[j].T, new.T).T
        hnew = znew - unew @ znew[j] / 2
        for store, value in ((self.panel, new), (self.u, unew), (self.half, hnew)):
            store[:, m : m + k] = value
        blocks = unew[self.where].swapaxes(1, 2)
        self.diagonal_a -= new[self.where] @ blocks
        change = hnew[self.where] @ blocks
        self.diagonal_z -= change + change.swapaxes(1, 2)
        self.alive[unit] = False
        self.used += k
        if self.used >= PANEL:
            self._flush()

    def _flush(self) -> None:
        """Apply the postponed updates, and let go of the columns that went."""
        stay = np.setdiff1d(np.arange(len(self.a)), self.where[~self.alive])
        panel, u, half = (part[stay, : self.used] for part in (self.panel, self.u, self.half))
        self.a, self.z = self.a[np.ix_(stay, stay)], self.z[np.ix_(stay, stay)]
        if len(stay):
            _subtract(self.a, panel, u)
            _subtract(self.z, np.hstack([half, u]), np.hstack([u, half]))
        # Units that went point at no column any more (-1): what their blocks become is never read.
        renumbered = np.full(len(self.panel) + 1, -1)
        renumbered[stay] = np.arange(len(stay))
        self.where = renumbered[self.where]
        self._clear()
