"""Inner products of large tensors, accumulated in float64."""

import math

import torch

# 8 MB per operand in float64: small beside any tensor for which memory matters.
CHUNK_ELEMENTS = 1 << 20


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨a, b⟩ over all elements of two tensors of one shape and any floating dtype, in float64 without a whole copy."""
    total = 0.0
    for left, right in zip(a.reshape(-1).split(CHUNK_ELEMENTS), b.reshape(-1).split(CHUNK_ELEMENTS), strict=True):
        total += torch.dot(left.double(), right.double()).item()
    return total


def cosine_from_dots(ab: float, aa: float, bb: float) -> float | None:
    """⟨a,b⟩ / √(⟨a,a⟩⟨b,b⟩); None where either norm is zero, because no direction is defined."""
    if aa == 0 or bb == 0:
        return None
    return ab / (math.sqrt(aa) * math.sqrt(bb))
