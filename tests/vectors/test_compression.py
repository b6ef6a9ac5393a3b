import json

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from pastry.commands import vector as commands
from pastry.errors import PastryError
from pastry.vectors.compression.compress import compress, decompress
from pastry.vectors.compression.sparse_format import decode_block, encode_block
from pastry.vectors.extract import extract
from pastry.vectors.geometry.updates import SkillUpdate, cosine
from pastry.vectors.inject import inject
from pastry.vectors.rounding import BLOCK
from pastry.vectors.skill import Skill
from tests.vectors.conftest import edit_json, load, random_tensors, same_bits

BITS = {2: np.uint16, 4: np.uint32}
# −0.0, subnormals, the largest and smallest numbers, infinities, NaNs with a payload.
SPECIAL = {
    2: [0x8000, 0x0001, 0x8001, 0x03FF, 0x7F7F, 0x0080, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF],
    4: [0x80000000, 1, 0x80000001, 0x007FFFFF, 0x7F7FFFFF, 0x00800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF],
}


@st.composite
def blocks(draw):
    size = draw(st.sampled_from([2, 4]))
    elements = st.one_of(st.just(0), st.just(0), st.sampled_from(SPECIAL[size]), st.integers(0, 256**size - 1))
    return draw(hnp.arrays(BITS[size], st.integers(0, 300), elements=elements))


@settings(max_examples=300, deadline=None)
@given(blocks(), st.sampled_from([np.float16, np.float32]))
def test_any_block_comes_back_bit_for_bit(bits, as_float):
    stored = bits.view(as_float) if bits.itemsize == np.dtype(as_float).itemsize else bits
    out = np.full(bits.size, 7, bits.dtype)
    decode_block(encode_block(stored), out.view(stored.dtype))
    assert np.array_equal(out, bits)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 100), st.sampled_from([2, 4]), st.booleans())
def test_a_malformed_block_is_a_value_error(content, elements, size, framed):
    frame = zstandard.ZstdCompressor().compress(content) if framed else content
    try:
        decode_block(frame, np.empty(elements, BITS[size]))
    except ValueError:
        return
    bitmap = np.unpackbits(np.frombuffer(content, np.uint8)[: -(-elements // 8)], count=elements, bitorder="little")
    assert framed and len(content) == -(-elements // 8) + size * bitmap.sum()


def test_a_claim_is_checked_before_memory_is_taken():
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(10**5)))
    with pytest.raises(ValueError, match="a block claims 100000 bytes, wanted 2 to 66"):
        decode_block(bytes(frame), np.empty(16, np.uint32))
    # A frame that says 2^62: descriptor with an 8-byte size, single segment.
    huge = zstandard.FRAME_HEADER + bytes([0xE0]) + (1 << 62).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(ValueError, match="a block claims 4611686018427387904 bytes"):
        decode_block(huge, np.empty(16, np.uint32))
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(66))
    with pytest.raises(ValueError, match="wanted 2 to 66"):
        decode_block(unknown, np.empty(16, np.uint32))
    trailing = encode_block(np.zeros(16, np.uint32)) + b"more"
    with pytest.raises(ValueError):
        decode_block(trailing, np.empty(16, np.uint32))


def bf16_born(save, tmp_path, dtype="float32", shapes=None):
    """A skill vector of two bfloat16 checkpoints of which 12 % of the weights differ, by 1 to 3 steps."""
    start = {name: t.bfloat16() for name, t in random_tensors(0, **({"shapes": shapes} if shapes else {})).items()}
    generator = torch.Generator().manual_seed(1)
    end = {}
    for name, tensor in start.items():
        steps = torch.randint(-3, 4, tensor.shape, generator=generator).to(torch.int16)
        steps[torch.rand(tensor.shape, generator=generator) > 0.12] = 0
        end[name] = (tensor.view(torch.int16) + steps).view(torch.bfloat16)
    # Where start is 0.0, end is −0.0: the difference is −0.0, which is not the bit pattern 0.
    first = next(iter(start))
    start[first].reshape(-1)[0], end[first].reshape(-1)[0] = 0.0, -0.0
    paths = [save("end", end, torch.bfloat16), save("start", start, torch.bfloat16)]
    extract(*paths, tmp_path / "v", name="math", dtype=dtype)
    return tmp_path / "v", paths[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_same_tensors_and_fingerprint_for_every_reader(save, tmp_path, dtype):
    v, target = bf16_born(save, tmp_path, dtype)
    sizes = compress(v, tmp_path / "c", max_shard_bytes=2000)
    dense, small = Skill(v), Skill(tmp_path / "c")
    small.verify()
    assert small.manifest.encoding == "sparse-zstd"
    assert small.manifest.model_copy(update={"encoding": "dense"}) == dense.manifest
    assert same_bits({n: dense.read(n) for n in dense.tensors}, {n: small.read(n) for n in small.tensors})
    facts = [{name: (info.dtype, info.shape) for name, info in skill.tensors.items()} for skill in (dense, small)]
    assert facts[0] == facts[1]
    assert len(list((tmp_path / "c").glob("*.safetensors"))) > 1
    assert sizes.compressed_bytes < sizes.dense_bytes == sum(info.nbytes for info in dense.tensors.values())
    assert cosine(SkillUpdate(v), SkillUpdate(tmp_path / "c")) == pytest.approx(1.0, abs=1e-15)

    reports = [inject(target, [(path, 0.7)], tmp_path / f"out-{path.name}") for path in (v, tmp_path / "c")]
    assert reports[0].fingerprint == reports[1].fingerprint
    assert same_bits(load(tmp_path / "out-v"), load(tmp_path / "out-c"))

    assert decompress(tmp_path / "c", tmp_path / "d") == sizes
    assert Skill(tmp_path / "d").manifest == dense.manifest
    assert (tmp_path / "d" / "skill.safetensors").read_bytes() == (v / "skill.safetensors").read_bytes()


def test_blocks_that_end_in_the_middle_and_tensors_without_elements(save, tmp_path):
    shapes = {"model.norm.weight": (2 * BLOCK + 5,), "lm_head.weight": (BLOCK,), "model.empty": (0, 16), "model.one": ()}
    v, _ = bf16_born(save, tmp_path, shapes=shapes)
    sizes = compress(v, tmp_path / "c")
    dense, small = Skill(v), Skill(tmp_path / "c")
    small.verify()
    assert same_bits({n: dense.read(n) for n in dense.tensors}, {n: small.read(n) for n in small.tensors})
    for start, stop in [(0, 1), (BLOCK - 3, BLOCK + 3), (7, 2 * BLOCK + 1), (2 * BLOCK, 2 * BLOCK + 5), (BLOCK, BLOCK)]:
        parts = [skill.read_block("model.norm.weight", start, stop).view(np.uint32) for skill in (dense, small)]
        assert np.array_equal(*parts)
    assert sizes.ratio > 15
    decompress(tmp_path / "c", tmp_path / "d")
    assert (tmp_path / "d" / "skill.safetensors").read_bytes() == (v / "skill.safetensors").read_bytes()


def test_a_killed_run_goes_on_at_the_missing_shard(save, tmp_path, monkeypatch):
    v, _ = bf16_born(save, tmp_path)
    written = []

    def dies(document):
        written.append(document)
        if len(written) == 20:
            raise KeyboardInterrupt
        return encode_block(document)

    monkeypatch.setattr("pastry.vectors.compression.compress.encode_block", dies)
    # Seven tensors, one block and one shard each; the last block of the first attempt does not return.
    with pytest.raises(KeyboardInterrupt):
        written.extend([None] * 16)
        compress(v, tmp_path / "c", max_shard_bytes=1)
    assert not (tmp_path / "c").exists()
    compress(v, tmp_path / "c", max_shard_bytes=1)
    assert len(written) == 16 + 4 + 4
    Skill(tmp_path / "c").verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "end", "start", "v"]


def test_refusals(save, tmp_path):
    v, _ = bf16_born(save, tmp_path)
    compress(v, tmp_path / "c")
    for rewrite, source in [(compress, tmp_path / "c"), (decompress, v)]:
        with pytest.raises(PastryError, match="already; use it as it is"):
            rewrite(source, tmp_path / "x")
    with pytest.raises(PastryError, match="already exists"):
        compress(v, tmp_path / "c")
    content = bytearray((v / "skill.safetensors").read_bytes())
    content[-3] ^= 1
    (v / "skill.safetensors").write_bytes(content)
    with pytest.raises(PastryError, match=r"model.norm.weight has digest"):
        compress(v, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "end", "start", "v"]


def test_damage_names_file_and_tensor(save, tmp_path):
    v, _ = bf16_born(save, tmp_path)
    compress(v, tmp_path / "c")
    file = tmp_path / "c" / "skill.safetensors"
    good = file.read_bytes()
    name, info = next(iter(sorted(Skill(tmp_path / "c").tensors.items())))
    for at in range(info.offset, info.offset + 40):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        with pytest.raises(PastryError, match=rf"(skill.safetensors: tensor {name} is damaged|tensor {name} has digest)"):
            Skill(tmp_path / "c").verify()
    file.write_bytes(good)
    tensors = json.loads((tmp_path / "c" / "skill.json").read_text())["tensors"]
    for change, message in [
        ({"shape": [1 << 60]}, "cannot hold \\d+ blocks"),
        ({"shape": [0]}, "has digest"),
        ({"shape": [-1]}, "greater than or equal to 0"),
        ({"dtype": "int8"}, "the manifest says dtype int8"),
    ]:
        edit_json(tmp_path / "c" / "skill.json", tensors={**tensors, name: {**tensors[name], **change}})
        with pytest.raises(PastryError, match=message):
            Skill(tmp_path / "c").verify()
        with pytest.raises(PastryError):
            Skill(tmp_path / "c").read(name)
    edit_json(v / "skill.json", encoding="sparse-zstd")
    with pytest.raises(PastryError, match="it is float32"):
        Skill(v)


def test_command(save, tmp_path):
    v, _ = bf16_born(save, tmp_path)
    run = CliRunner().invoke(commands, ["compress", str(v), "--out", str(tmp_path / "c"), "--json"])
    assert run.exit_code == 0 and json.loads(run.stdout)["ratio"] > 5
    run = CliRunner().invoke(commands, ["compress", str(tmp_path / "c"), "--out", str(tmp_path / "d"), "--to", "dense"])
    assert run.exit_code == 0 and "d: dense; dense 9,344 bytes, compressed " in run.stdout
    assert Skill(tmp_path / "d").manifest == Skill(v).manifest
