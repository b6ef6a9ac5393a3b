"""The matrices of an update by their singular values: how many directions they use, and which ones two updates share.

Everything is computed in float64 from one matrix at a time. Singular values come from LAPACK's SVD for matrices of up to
EXACT elements. Larger ones go through the eigenvalues σ² of the Gram matrix of their shorter side, accumulated a slice at
a time: σ is then exact to about 1e-7·σ_1, which is what float32 elements say about it. Subspaces always do.
"""

import numpy as np

from pastry.errors import PastryError
from pastry.vectors.compatibility import Weights, check_same_architecture
from pastry.vectors.geometry.updates import ByModule, Update, by_module
from pastry.vectors.modules import layer_and_module
from pastry.vectors.rounding import BLOCK, Scratch, block_ranges
from pastry.vectors.shards import Progress

EXACT = 2048 * 2048


def ranks(update: Update, progress: Progress | None = None) -> ByModule[dict[str, float | None]]:
    """{"effective_rank": …, "stable_rank": …} of each 2-D tensor, by layer and module; None for a matrix of zeros.

    `progress` is told how many matrices of how many are done. Memory: one matrix, and its Gram matrix.
    """
    names = matrix_names(update.weights)
    rows = {}
    for done, name in enumerate(names, start=1):
        sigma = singular_values(read_matrix(update, name))
        rows[layer_and_module(name)] = {"effective_rank": effective_rank(sigma), "stable_rank": stable_rank(sigma)}
        if progress:
            progress(done, len(names))
    return by_module(rows)


def overlaps(a: Update, b: Update, rank: int, progress: Progress | None = None) -> ByModule[dict[str, float | None]]:
    """How far the leading `rank` singular directions of two updates are the same, for each 2-D tensor.

    {"columns": mean cos² of the principal angles, "columns_random": what random subspaces give, "rows": …, "rows_random":
    …}; None for a matrix of zeros. A matrix of a lower rank counts with what it has. Memory: one matrix of each update.
    Raises PastryError if the updates do not have the same architecture, or if `rank` is not positive.
    """
    if rank < 1:
        raise PastryError(f"--angles is {rank}, wanted how many leading directions to compare, for instance 8")
    check_same_architecture(a.weights, b.weights, chat_template=False)
    names = matrix_names(a.weights)
    rows = {}
    for done, name in enumerate(names, start=1):
        sides = [leading_subspaces(read_matrix(update, name), rank) for update in (a, b)]
        cell: dict[str, float | None] = {}
        for side, of_a, of_b in zip(("columns", "rows"), *sides, strict=True):
            cell[side] = overlap(of_a, of_b)
            # E‖QᵃᵀQᵇ‖² = r_a·r_b/m for uniformly random subspaces, over the min(r_a, r_b) angles there are.
            cell[f"{side}_random"] = max(of_a.shape[1], of_b.shape[1]) / of_a.shape[0]
        rows[layer_and_module(name)] = cell
        if progress:
            progress(done, len(names))
    return by_module(rows)


def matrix_names(weights: Weights) -> list[str]:
    """The tensors with two dimensions, in order."""
    return [name for name, info in sorted(weights.tensors.items()) if len(info.shape) == 2 and info.elements]


def read_matrix(update: Update, name: str) -> np.ndarray:
    """A 2-D tensor of an update, whole: float32[m, n]."""
    info = update.weights.tensors[name]
    matrix, scratch = np.empty(info.elements, np.float32), Scratch()
    for start, stop in block_ranges(info.elements):
        matrix[start:stop] = update.block(name, start, stop, scratch)
    return matrix.reshape(info.shape)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """float[m, n] → float64[min(m, n)], the largest first."""
    if matrix.size <= EXACT:
        return np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(_gram(matrix))[::-1], 0))


def effective_rank(sigma: np.ndarray) -> float | None:
    """exp(−Σ p_i ln p_i) of p_i = σ_i / Σσ: between 1 and min(m, n); None where all σ are zero.

    Roy, Vetterli: The effective rank, a measure of effective dimensionality, EUSIPCO 2007.
    """
    if not sigma.any():
        return None
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def stable_rank(sigma: np.ndarray) -> float | None:
    """‖A‖_F² / ‖A‖₂² = Σσ² / σ_1²: between 1 and the rank; None where all σ are zero.

    Rudelson, Vershynin: Sampling from large matrices, JACM 54(4), 2007.
    """
    return float(np.sum((sigma / sigma[0]) ** 2)) if sigma.any() else None


def leading_subspaces(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the leading column and row subspaces: float[m, n] → float64[m, r], float64[n, r].

    r is `rank`, or the matrix's own rank where that is lower: singular values above σ_1·max(m, n)·2⁻²³, the usual bound
    for float32 elements.
    """
    from scipy.linalg import eigh

    short = min(matrix.shape)
    squares, vectors = eigh(_gram(matrix), subset_by_index=[max(short - rank, 0), short - 1])
    floor = squares[-1] * (max(matrix.shape) * np.finfo(np.float32).eps) ** 2
    near = vectors[:, squares > max(floor, 0)][:, ::-1]
    tall = _tall(matrix)
    far = np.linalg.qr(np.concatenate([rows.astype(np.float64) @ near for rows in _slices(tall)]))[0]
    return (far, near) if tall is matrix else (near, far)


def overlap(of_a: np.ndarray, of_b: np.ndarray) -> float | None:
    """Mean cos² of the principal angles between two subspaces with orthonormal bases float64[m, r_a], float64[m, r_b].

    1: the smaller lies in the larger; 0: orthogonal; None: one is empty. The cosines are the singular values of QᵃᵀQᵇ.
    Björck, Golub: Numerical methods for computing angles between linear subspaces, Math. Comp. 27, 1973.
    """
    if not of_a.shape[1] or not of_b.shape[1]:
        return None
    cosines = np.linalg.svd(of_a.T @ of_b, compute_uv=False)
    return float(np.mean(np.minimum(cosines, 1) ** 2))


def _tall(matrix: np.ndarray) -> np.ndarray:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _slices(tall: np.ndarray) -> list[np.ndarray]:
    step = max(1, BLOCK // tall.shape[1])
    return [tall[start : start + step] for start in range(0, tall.shape[0], step)]


def _gram(matrix: np.ndarray) -> np.ndarray:
    """AᵀA or AAᵀ, whichever is smaller: float64[k, k] with k = min(m, n)."""
    tall = _tall(matrix)
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for rows in _slices(tall):
        wide = rows.astype(np.float64)
        gram += wide.T @ wide
    return gram
