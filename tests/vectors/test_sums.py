import math

import torch

from pastry.vectors.sums import CHUNK_ELEMENTS, cosine_from_dots, dot


def test_dot_is_accumulated_in_float64_over_all_chunks():
    a = torch.full((CHUNK_ELEMENTS + 3,), 0.1)
    exact = float(a[0].double()) ** 2 * a.numel()
    assert math.isclose(dot(a, a), exact, rel_tol=1e-10)
    # In float32 both the square and the 1 would be lost.
    assert dot(torch.tensor([1e10, 1.0, 1e10]), torch.tensor([1e5, 1.0, -1e5])) == 1.0
    assert dot(torch.tensor([1e-30]), torch.tensor([1e-30])) > 0
    assert dot(torch.zeros(0), torch.zeros(0)) == 0


def test_cosine_of_tiny_and_zero_norms():
    assert math.isclose(cosine_from_dots(1e-200, 1e-200, 1e-200), 1.0)
    assert cosine_from_dots(0.0, 0.0, 1.0) is None
    assert cosine_from_dots(0.0, 1.0, 0.0) is None
