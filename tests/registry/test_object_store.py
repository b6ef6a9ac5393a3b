"""Weights in S3, as moto's server speaks it."""

import json
import shutil

import pytest

from pastry.errors import PastryError
from pastry.registry import store
from pastry.registry.catalogue import Catalogue
from pastry.registry.resolve import local_path
from pastry.vectors.skill import Skill
from tests.registry.test_catalogue import TENSOR, flip, vector

moto = pytest.importorskip("moto.server", reason="S3 is tested where moto is installed: pip install '.[dev]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket():
    """The bucket's file system; S3's address and keys are in the environment, where a user has them."""
    from pyarrow import fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    patch = pytest.MonkeyPatch()
    for key, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        patch.setenv(key, value)
    remote = fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, request_timeout=60)
    remote.create_dir("skills")
    yield remote
    patch.undo()
    server.stop()


@pytest.fixture(scope="module")
def catalogue(bucket, tmp_path_factory):
    return Catalogue(f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db", "s3://skills/team")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def objects(bucket):
    from pyarrow import fs

    return {info.path for info in bucket.get_file_info(fs.FileSelector("skills/team", recursive=True)) if info.is_file}


def test_a_vector_goes_to_s3_and_is_fetched_once(bucket, catalogue, cache, tmp_path):
    version = catalogue.register(vector(tmp_path, "far", 1))
    assert version.location == f"s3://skills/team/{version.fingerprint.replace(':', '-')}"
    shutil.rmtree(tmp_path / "far")
    place = local_path(version.uri, catalogue.given)
    Skill(place).verify()
    assert place == cache / version.fingerprint.replace(":", "-")
    for path in objects(bucket):
        bucket.delete_file(path)
    assert local_path(version.uri, catalogue.given) == place, "the second time from the cache"
    flip(place / "skill.safetensors")
    with pytest.raises(PastryError, match=f"tensor {TENSOR}"):
        catalogue.pull(version.uri, tmp_path / "out")


def test_what_s3_gives_is_verified_before_it_is_there(bucket, catalogue, cache, tmp_path):
    version = catalogue.register(vector(tmp_path, "tampered", 2))
    key = f"skills/team/{version.fingerprint.replace(':', '-')}"
    with bucket.open_input_stream(f"{key}/skill.safetensors") as stream:
        data = bytearray(stream.read())
    data[-1] ^= 1
    with bucket.open_output_stream(f"{key}/skill.safetensors") as stream:
        stream.write(bytes(data))
    with pytest.raises(PastryError, match=f"tensor {TENSOR}"):
        local_path(version.uri, catalogue.given)
    assert not [path for path in cache.iterdir() if path.name != ".locks"]


def test_an_upload_that_was_cut_short_is_not_there_and_registering_again_completes_it(bucket, catalogue, cache, tmp_path):
    skill = vector(tmp_path, "short", 3)
    version = catalogue.register(skill)
    key = f"skills/team/{version.fingerprint.replace(':', '-')}"
    for lost in ("stored.json", "skill.safetensors"):
        bucket.delete_file(f"{key}/{lost}")
        with pytest.raises(PastryError, match=r"models:/short/1: .*register it again"):
            local_path(version.uri, catalogue.given)
        catalogue.register(skill)
        with bucket.open_input_stream(f"{key}/stored.json") as stream:
            assert set(json.loads(stream.read())["bytes"]) == {"skill.json", "skill.safetensors"}
    Skill(local_path(version.uri, catalogue.given)).verify()


def test_keys_in_the_uri_and_a_bucket_that_is_not_there_are_said(catalogue, tmp_path):
    skill = vector(tmp_path, "v", 4)
    for uri, said in (("s3://key:secret@skills/x", "AWS_ACCESS_KEY_ID"), ("s3://nobodys-bucket/x", "nobodys-bucket")):
        with pytest.raises(PastryError, match=said) as error:
            Catalogue(catalogue.given, uri).register(skill)
        assert "secret" not in str(error.value)
    assert not catalogue.list(name="v")
