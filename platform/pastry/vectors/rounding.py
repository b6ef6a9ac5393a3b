"""From stored dtypes to float32 and back: exact widening, and one rounding at the end."""

import hashlib

import torch

from pastry.errors import PastryError

FLOAT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DISCARDED_BITS = 16  # float32 keeps 23 bits of mantissa, bfloat16 the upper 7 of them


def float_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`; PastryError if it is not one that weights can be computed and stored in."""
    if name not in FLOAT_DTYPES:
        raise PastryError(f"dtype {name!r} is not supported; wanted one of {', '.join(FLOAT_DTYPES)}")
    return FLOAT_DTYPES[name]


def to_float32(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """`tensor` (float32, bfloat16, float16) widened exactly. NaN or Inf is a PastryError naming `where` and index."""
    values = tensor.to(torch.float32)
    _refuse_non_finite(values, where, "repair or retrain this checkpoint")
    return values


def add(theta: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """θ + d in float32. Where d is zero θ stays bit for bit: −0.0 + 0.0 would be 0.0, another fingerprint."""
    return torch.where(d == 0, theta, theta + d)


def round_nearest(values: torch.Tensor, dtype: torch.dtype, where: str) -> torch.Tensor:
    """float32 `values` rounded to nearest, ties to even, in `dtype`. Overflow is a PastryError naming `where`."""
    rounded = values.to(dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    _refuse_non_finite(rounded, where, f"the value does not fit {dtype_name}; use a wider --dtype or a smaller λ")
    return rounded


def round_stochastic(values: torch.Tensor, name: str, seed: int, where: str) -> torch.Tensor:
    """float32 `values` rounded to bfloat16 so that the expectation is exact; overflow is a PastryError naming `where`.

    A uniform random integer below one bfloat16 step is added to the bit pattern and the surplus bits are cut off: the
    magnitude goes up with probability equal to the fraction that would be lost, and values that bfloat16 holds stay.
    The bits depend on `seed`, the tensor's `name` and its shape alone, not on files, order or workers.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, name))
    noise = torch.randint(0, 1 << DISCARDED_BITS, values.shape, generator=generator, dtype=torch.int32)
    bits = (noise.add_(values.view(torch.int32))).bitwise_and_(-1 << DISCARDED_BITS)
    rounded = bits.view(torch.float32).to(torch.bfloat16)
    _refuse_non_finite(rounded, where, "the value does not fit bfloat16; use a wider --dtype or a smaller λ")
    return rounded


def derive_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the tensor `name`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1


def _refuse_non_finite(tensor: torch.Tensor, where: str, advice: str) -> None:
    finite = torch.isfinite(tensor)
    if finite.all():
        return
    index = tuple((~finite).nonzero()[0].tolist())
    raise PastryError(f"{where} is {tensor[index].item()} at index {list(index)}; {advice}")
