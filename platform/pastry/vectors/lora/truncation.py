"""The best approximation of a matrix by one of rank r, and what it misses.

Eckart and Young 1936: no matrix of rank r is nearer to v than its r leading singular triplets, ‖v − v_r‖² = Σ_{i>r} σ_i².
"""

import math

import numpy as np
from scipy.linalg import eigh, eigvalsh

EXACT_UP_TO = 4096
"""min(rows, columns) above which a matrix is first projected onto a random range: eigenvectors take its cube."""
_OVERSAMPLING = 16
_POWER_ITERATIONS = 4
_RESIDUAL_ELEMENTS = 1 << 22


def leading_factors(v: np.ndarray, rank: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 B [out, rank] and A [rank, in]: the best approximation B·A of the float32 matrix v, its scale split evenly.

    Up to EXACT_UP_TO rows or columns: U of the eigenvectors of v·vᵀ in float64, whose eigenvalues are σ², and
    B = U·√σ, A = Uᵀ·v/√σ. Above: the same within the range of v·Ω after power iterations (Halko, Martinsson and Tropp
    2011, arXiv 0909.4061, algorithms 4.4 and 5.1), which loses a little energy where the singular values fall slowly.
    """
    if v.shape[0] > v.shape[1]:
        a, b = leading_factors(v.T, rank, key)
        return np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
    if v.shape[0] > max(EXACT_UP_TO, rank + _OVERSAMPLING):
        q = _range(v, rank + _OVERSAMPLING, key)
        b, a = leading_factors(q.T @ v, rank, key)
        return q @ b, a
    wide = v.astype(np.float64)
    rows, kept = v.shape[0], min(rank, v.shape[0])
    values, vectors = eigh(wide @ wide.T, subset_by_index=[rows - kept, rows - 1])
    u, roots = vectors[:, ::-1], np.clip(values[::-1], 0, None) ** 0.25
    b, a = np.zeros((rows, rank), np.float32), np.zeros((rank, v.shape[1]), np.float32)
    b[:, :kept] = u * roots
    np.divide(u.T @ wide, roots[:, None], out=a[:kept], where=roots[:, None] > 0, casting="same_kind")
    return b, a


def energies(v: np.ndarray) -> np.ndarray:
    """float64[min(out, in)]: the squared singular values of the float32 matrix v, the largest first."""
    wide = (v if v.shape[0] <= v.shape[1] else v.T).astype(np.float64)
    return np.clip(eigvalsh(wide @ wide.T)[::-1], 0, None)


def residual(v: np.ndarray, b: np.ndarray, a: np.ndarray) -> tuple[float, float]:
    """‖v‖² and ‖v − B·A‖² of float32 v [out, in], b [out, rank] and a [rank, in], in float64, some rows at a time."""
    wide, step = a.astype(np.float64), max(1, _RESIDUAL_ELEMENTS // v.shape[1])
    own, lost = [], []
    for start in range(0, v.shape[0], step):
        rows = v[start : start + step].astype(np.float64)
        own.append(np.square(rows).sum())
        lost.append(np.square(rows - b[start : start + step].astype(np.float64) @ wide).sum())
    return math.fsum(own), math.fsum(lost)


def _range(v: np.ndarray, size: int, key: int) -> np.ndarray:
    noise = np.random.default_rng(key).standard_normal((v.shape[1], size), dtype=np.float32)
    q = np.linalg.qr(v @ noise)[0]
    for _ in range(_POWER_ITERATIONS):
        q = np.linalg.qr(v @ np.linalg.qr(v.T @ q)[0])[0]
    return q
