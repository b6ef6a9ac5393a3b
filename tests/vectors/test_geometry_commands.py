"""`pastry vector inspect`, `compare` and `verify`."""

import json
import os
import sys

import pytest
import torch

from pastry.cli import main
from pastry.commands.tables import open_update
from pastry.errors import PastryError
from pastry.vectors.extract import extract
from pastry.vectors.geometry.updates import CheckpointUpdate, SkillUpdate, compare, whole
from pastry.vectors.skill import Skill
from tests.vectors.conftest import random_tensors

PNG = b"\x89PNG"


@pytest.fixture
def pastry(monkeypatch, capsys):
    """Run the command; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pastry", "vector", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def models(save, tmp_path, monkeypatch):
    """base, sft, rl, and the skill vector v in the current directory; some of v is exactly zero."""
    base = random_tensors(0)
    sft = {name: base[name] + change for name, change in random_tensors(1, scale=1e-3).items()}
    rl = {name: sft[name] + change for name, change in random_tensors(2, scale=1e-4).items()}
    rl["lm_head.weight"] = sft["lm_head.weight"].clone()
    for name, tensors in {"base": base, "sft": sft, "rl": rl}.items():
        save(name, tensors)
    monkeypatch.chdir(tmp_path)
    extract(tmp_path / "rl", tmp_path / "sft", tmp_path / "v", name="skill", base=tmp_path / "base")
    return {"base": base, "sft": sft, "rl": rl}


def test_inspect(pastry, models, tmp_path):
    code, out, err = pastry("inspect", "v", "--plot", "size.png")
    assert code == 0 and not err and (tmp_path / "size.png").read_bytes().startswith(PNG)
    v = torch.cat([(models["rl"][name] - models["sft"][name]).double().flatten() for name in models["rl"]])
    assert f"norm {v.norm():.4g}, RMS {v.norm() / v.numel() ** 0.5:.3g}, exact zeros" in out
    assert f"{v.numel():,} parameters in 7 tensors, stored as float32" in out
    assert "mlp.down_proj" in out and "effective rank" not in out and "start: blake3:" in out
    assert out.splitlines()[-2].split()[:3] == ["-", "norm", "16"]


def test_inspect_with_ranks_for_a_program(pastry, models):
    code, out, _ = pastry("inspect", "v", "--rank", "--json")
    found = json.loads(out)
    skill = Skill("v")
    assert code == 0 and found["fingerprint"] == skill.manifest.fingerprint and found["norm"] == skill.manifest.norm
    assert found["bytes"] == sum(file.stat().st_size for file in skill.path.iterdir())
    head = found["modules"]["-"]["lm_head"]
    assert head == {"elements": 512, "zeros": 512, "norm": 0, "rms": 0, "sparsity": 1}
    q = found["modules"]["0"]["self_attn.q_proj"]
    change = torch.cat(
        [(models["rl"][n] - models["sft"][n]).flatten() for n in models["rl"] if "layers.0.self_attn.q_proj" in n]
    )
    assert q["elements"] == 16 * 16 + 16 and q["rms"] == pytest.approx(change.double().square().mean().sqrt().item())
    assert (
        found["ranks"]["-"]["lm_head"]["effective_rank"] is None
        and 8 < found["ranks"]["0"]["self_attn.q_proj"]["effective_rank"] < 16
    )
    assert "effective rank: exp(" in pastry("inspect", "v", "--rank")[1]


def test_compare_the_sft_update_with_the_skill(pastry, models, tmp_path):
    code, out, err = pastry("compare", "base..sft", "v", "--beside", "base..rl", "--angles", 2, "--plot", "cosines.png")
    assert code == 0 and not err and (tmp_path / "cosines.png").read_bytes().startswith(PNG)
    cell = whole(compare(CheckpointUpdate("sft", "base"), SkillUpdate("v")))
    assert f"{cell.cosine:+.4f}" in out and "zero update" in out and "of 5 rows" in out
    assert "A = base..sft" in out and "C = base..rl" in out and "(0.125)" in out


def test_compare_for_a_program(pastry, models):
    code, out, _ = pastry("compare", "base..sft", "base..rl", "--beside", "v", "--angles", 2, "--json")
    found = json.loads(out)
    assert code == 0 and found["a"] == "base..sft" and found["whole"]["cosine"] > 0.98 and found["whole"]["z"] > 10
    assert found["outside"] == found["rows"] == 6 and abs(found["whole"]["cosine_beside"]) < 0.2
    assert found["modules"]["1"]["mlp.down_proj"]["angles"]["columns"] > 0.9
    assert found["modules"]["-"]["norm"]["angles"] is None
    assert set(found["modules"]["0"]["self_attn.q_proj"]) >= {"elements", "norm_a", "norm_b", "sign_sd", "random_sd", "outside"}


def test_what_an_update_may_be(models, tmp_path, monkeypatch):
    assert isinstance(open_update("v"), SkillUpdate) and isinstance(open_update("sft/../v"), SkillUpdate)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for text in ("../base..../sft", f"{tmp_path}/base..{tmp_path}/sft", "../base/..../sft/"):
        update = open_update(text)
        assert isinstance(update, CheckpointUpdate) and os.path.samefile(update.weights.path, tmp_path / "sft")
    for text, message in {
        "../sft": r"no skill.json, so it is no change of weights; wanted a skill vector, or START..../sft",
        "../base..nowhere": r"nowhere: no such directory",
        "nowhere": r"nowhere: no such directory",
        "..": r"no skill.json",
    }.items():
        with pytest.raises(PastryError, match=message):
            open_update(text)


@pytest.mark.parametrize(("file", "message"), [("x.jpeg", "ends with .png"), ("absent/x.png", "no such directory absent")])
def test_a_picture_that_cannot_be_written(pastry, models, file, message):
    for command in (["inspect", "v"], ["compare", "v", "v"]):
        code, out, err = pastry(*command, "--plot", file)
        assert code == 2 and message in err and not out


def test_verify(pastry, models):
    code, out, _ = pastry("verify", "v")
    assert code == 0 and "7 tensors as recorded in skill.json" in out
    assert json.loads(pastry("verify", "v", "--json")[1])["damaged"] == {}
    info = Skill("v").tensors["model.norm.weight"]
    with open(info.file, "r+b") as stream:
        stream.seek(info.offset)
        byte = stream.read(1)[0]
        stream.seek(info.offset)
        stream.write(bytes([byte ^ 1]))
    code, out, err = pastry("verify", "v")
    assert (
        code == 2 and not out and err.startswith("error: v: tensor model.norm.weight: found blake3:") and err.count("\n") == 1
    )
    code, out, _ = pastry("verify", "v", "--json")
    assert code == 2 and list(json.loads(out)["damaged"]) == ["model.norm.weight"]
    code, _, err = pastry("verify", "base")
    assert code == 2 and "nothing is recorded" in err
