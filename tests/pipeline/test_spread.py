"""Shards written by Ray tasks."""

import pytest
import ray

from pastry.errors import PastryError
from pastry.pipeline.workers import spread
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from tests.vectors.conftest import random_tensors, save  # noqa: F401 (a fixture)


@pytest.fixture
def cluster(monkeypatch):
    yield
    ray.shutdown()


@pytest.mark.slow
def test_same_bytes_from_several_processes(save, tmp_path, cluster):  # noqa: F811
    import torch

    start, end = save("start", random_tensors(0), torch.bfloat16, 2000), save("end", random_tensors(1), torch.bfloat16)
    for name, workers in (("here", None), ("there", spread(2))):
        extract(end, start, tmp_path / f"v-{name}", name="v", spread=workers, max_shard_bytes=3000)
        options = {"rounding": "stochastic", "spread": workers, "max_shard_bytes": 1500}
        inject(start, [(tmp_path / f"v-{name}", 0.01)], tmp_path / f"out-{name}", **options)
    for kind in ("v", "out"):
        files = sorted(path.name for path in (tmp_path / f"{kind}-here").iterdir())
        assert files == sorted(path.name for path in (tmp_path / f"{kind}-there").iterdir()) and len(files) > 4
        for file in set(files) - {"inject.json"}:  # which names the vector's directory
            assert (tmp_path / f"{kind}-here" / file).read_bytes() == (tmp_path / f"{kind}-there" / file).read_bytes(), file

    damaged = tmp_path / "v-there"
    file = next(damaged.glob("skill-00002*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(PastryError, match=r"^[^\n]*tensor .* has digest[^\n]*$"):
        inject(start, [(damaged, 1.0)], tmp_path / "out", spread=spread(2), max_shard_bytes=1500)
    assert not list(tmp_path.glob("*out")) and not list(tmp_path.glob(".out*"))
