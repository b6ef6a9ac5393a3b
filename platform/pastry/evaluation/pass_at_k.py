"""pass@k."""

from __future__ import annotations

import math


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate, from n samples of which some are correct, that one of k is: 1 − C(n−c, k) / C(n, k) (M. Chen et al.,
    arXiv 2107.03374, section 2.1)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
