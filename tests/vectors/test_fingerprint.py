import torch

from pastry.vectors.checkpoint import checkpoint_fingerprint
from pastry.vectors.fingerprint import fingerprint, tensor_blocks, tensor_digest
from pastry.vectors.rounding import BLOCK
from pastry.vectors.safetensors_format import TensorSpec
from tests.vectors.conftest import random_tensors


def digest(tensor: torch.Tensor) -> str:
    return tensor_digest(TensorSpec("w", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)), tensor_blocks(tensor))


def test_fingerprint_does_not_depend_on_sharding_or_order(save):
    tensors = {**random_tensors(0), "model.layers.1.mlp.down_proj.weight": torch.randn(3, BLOCK // 2)}
    single, sharded = save("single", tensors), save("sharded", tensors, max_shard_bytes=2000)
    assert checkpoint_fingerprint(single) == checkpoint_fingerprint(sharded)
    digests = {name: digest(tensor) for name, tensor in tensors.items()}
    assert checkpoint_fingerprint(single) == fingerprint(dict(reversed(digests.items())))
    assert checkpoint_fingerprint(single).startswith("blake3:")


def test_fingerprint_sees_a_bit_a_name_and_a_swap():
    tensors = random_tensors(0)
    digests = {name: digest(tensor) for name, tensor in tensors.items()}
    flipped = tensors["lm_head.weight"].clone()
    flipped.view(torch.int32)[3, 5] ^= 1
    q0, q1 = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    swapped = {**digests, q0: digests[q1], q1: digests[q0]}
    renamed = {("other" if name == q0 else name): digest for name, digest in digests.items()}
    changed = {**digests, "lm_head.weight": digest(flipped)}
    assert len({fingerprint(d) for d in (digests, swapped, renamed, changed)}) == 4


def test_tensor_digest_covers_dtype_and_shape_but_not_layout():
    zeros = [torch.zeros(shape) for shape in [(4,), (2, 2), (2,), (), (0,)]] + [torch.zeros(4, dtype=torch.bfloat16)]
    assert len({digest(tensor) for tensor in zeros}) == len(zeros)
    matrix = torch.arange(6.0).reshape(2, 3)
    assert digest(matrix.t()) == digest(matrix.t().contiguous()) != digest(matrix)
