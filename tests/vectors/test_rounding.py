import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.rounding import round_nearest, round_stochastic, to_float32


def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour():
    low, step = 1.0, 2.0**-7
    for fraction in (0.1, 0.5, 0.9):
        for sign in (1, -1):
            values = torch.full((200_000,), sign * (low + fraction * step))
            rounded = round_stochastic(values, "w", 0, "w").double()
            assert set(rounded.unique().tolist()) == {sign * low, sign * (low + step)}
            # Five standard errors of a binomial with 200,000 draws.
            assert abs(rounded.mean().item() - values[0].item()) < 5 * step * 0.5 / 200_000**0.5


def test_stochastic_rounding_keeps_what_bfloat16_holds():
    generator = torch.Generator().manual_seed(0)
    held = torch.cat(
        [torch.randn(1000, generator=generator).to(torch.bfloat16).float(), torch.tensor([0.0, -0.0, 1e-40, 2.0**-126])]
    )
    held = held.to(torch.bfloat16).float()
    rounded = round_stochastic(held, "w", 0, "w")
    assert torch.equal(rounded.view(torch.int16), held.to(torch.bfloat16).view(torch.int16))


def test_stochastic_rounding_depends_on_seed_and_name_alone():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    first = round_stochastic(values, "w", 0, "here")
    torch.manual_seed(99)
    assert torch.equal(first, round_stochastic(values.clone(), "w", 0, "there"))
    assert not torch.equal(first, round_stochastic(values, "w", 1, "here"))
    assert not torch.equal(first, round_stochastic(values, "x", 0, "here"))


def test_non_finite_inputs_and_overflow_are_refused():
    values = torch.zeros(2, 3)
    values[1, 2] = float("nan")
    with pytest.raises(PastryError, match=r"tensor w is nan at index \[1, 2\]"):
        to_float32(values, "tensor w")
    with pytest.raises(PastryError, match=r"tensor w is -inf at index \[\]"):
        to_float32(torch.tensor(float("-inf")), "tensor w")
    with pytest.raises(PastryError, match=r"w is inf at index \[0\]; the value does not fit float16"):
        round_nearest(torch.tensor([70000.0]), torch.float16, "w")
    with pytest.raises(PastryError, match="does not fit bfloat16"):
        round_stochastic(torch.full((100,), torch.finfo(torch.float32).max), "w", 0, "w")
