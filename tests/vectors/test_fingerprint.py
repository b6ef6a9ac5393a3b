import torch

from pastry.vectors.fingerprint import checkpoint_fingerprint, fingerprint, tensor_digest
from tests.vectors.conftest import random_tensors


def test_fingerprint_does_not_depend_on_sharding_or_order(save):
    tensors = random_tensors(0)
    single, sharded = save("single", tensors), save("sharded", tensors, max_shard_bytes=2000)
    assert checkpoint_fingerprint(single) == checkpoint_fingerprint(sharded)
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    assert checkpoint_fingerprint(single) == fingerprint(dict(reversed(digests.items())))
    assert checkpoint_fingerprint(single).startswith("sha256:")


def test_fingerprint_sees_a_bit_a_name_and_a_swap(save):
    tensors = random_tensors(0)
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    flipped = tensors["lm_head.weight"].clone()
    flipped.view(torch.int32)[3, 5] ^= 1
    q0, q1 = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    swapped = {**digests, q0: digests[q1], q1: digests[q0]}
    renamed = {("other" if name == q0 else name): digest for name, digest in digests.items()}
    changed = {**digests, "lm_head.weight": tensor_digest(flipped)}
    assert len({fingerprint(d) for d in (digests, swapped, renamed, changed)}) == 4


def test_tensor_digest_covers_dtype_and_shape_but_not_layout():
    zeros = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(2),
        torch.zeros(()),
        torch.zeros(0),
    ]
    assert len({tensor_digest(tensor) for tensor in zeros}) == len(zeros)
    matrix = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(matrix.t()) == tensor_digest(matrix.t().contiguous()) != tensor_digest(matrix)
