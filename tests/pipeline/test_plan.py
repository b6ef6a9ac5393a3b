"""The plan of a run and the identity of its stages."""

import pytest

from pastry.config import PastConfig
from pastry.pipeline.plan import plan


def digests(config: dict, workers: int = 2) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in plan(PastConfig.model_validate(config), workers):
        found[stage.name] = stage.digest({role: found[name] for role, name in stage.inputs.items()})
    return found


@pytest.fixture
def two_rounds(tiny_config):
    everything = ["past_1_round", "pre_injection", "rl_on_target", "prompted", "control_random", "control_sft_on_qa"]
    return tiny_config | {"rounds": 2, "compare": everything}


def test_inputs_come_before_what_is_made_from_them(two_rounds):
    seen = set()
    for stage in plan(PastConfig.model_validate(two_rounds), 2):
        assert set(stage.inputs.values()) <= seen
        seen.add(stage.name)


def test_round_two_starts_from_its_own_sft_of_the_base_plus_the_first_vector(two_rounds):
    # PAPERS 1.1: SFT the base on subset k; RL from theta_sft^k + v_(k-1); v_k = theta_rl^k - theta_sft^k
    stages = {stage.name: stage for stage in plan(PastConfig.model_validate(two_rounds), 2)}
    assert stages["sft/planet/2"].inputs == {"start": "gate"} and stages["sft/planet/2"].settings["part"] == 2
    assert stages["inject/planet/2"].inputs == {"target": "sft/planet/2", "skill": "extract/planet/1"}
    assert stages["inject/planet/2"].settings["lambda"] == 1.0
    assert stages["rl/planet/2"].inputs == {"start": "inject/planet/2"}
    assert stages["extract/planet/2"].inputs == {"end": "rl/planet/2", "start": "sft/planet/2", "base": "gate"}
    assert stages["search"].inputs == {"target": "sft/company", "skill:planet": "extract/planet/2"}


def test_one_round_has_no_injection_before_rl(tiny_config):
    stages = {stage.name: stage for stage in plan(PastConfig.model_validate(tiny_config), 2)}
    assert stages["rl/planet/1"].inputs == {"start": "sft/planet/1"}
    assert "rl/planet/2" not in stages


def test_the_same_settings_are_the_same_stages(two_rounds):
    assert digests(two_rounds) == digests(two_rounds)
    assert digests(two_rounds | {"name": "other", "storage": "elsewhere"}) == digests(two_rounds)


@pytest.mark.parametrize(
    ("group", "change", "changed", "kept"),
    [
        ("rl", {"steps": 9}, {"rl/planet/1", "extract/planet/1", "search", "report"}, {"sft/planet/2", "sft/company"}),
        ("search", {"lambdas": [3.0]}, {"search", "evaluate", "report"}, {"rl/planet/2", "extract/planet/2"}),
        ("generation", {"max_new_tokens": 5}, {"gate", "search"}, {"pretrain"}),
        ("pretrain", {"steps": 7}, {"pretrain", "gate", "sft/company", "rl/planet/1"}, set()),
    ],
)  # fmt: skip
def test_a_changed_setting_changes_that_stage_and_what_depends_on_it(two_rounds, group, change, changed, kept):
    before, after = digests(two_rounds), digests(two_rounds | {group: two_rounds[group] | change})
    different = {name for name in before if before[name] != after[name]}
    assert changed <= different
    assert not kept & different


def test_the_number_of_workers_is_part_of_a_training_stages_identity(tiny_config):
    one, two = digests(tiny_config, 1), digests(tiny_config, 2)
    assert one["pretrain"] != two["pretrain"]


def test_every_stage_has_a_seed_of_its_own(two_rounds):
    stages = plan(PastConfig.model_validate(two_rounds), 2)
    seeds = [stage.settings["seed"] for stage in stages if stage.kind in ("pretrain", "sft", "rl")]
    assert len(seeds) == len(set(seeds)) > 5


def test_a_changed_document_changes_the_stages_that_read_it(tmp_path, tiny_config):
    import json

    def write(text):
        rows = [{"id": f"d{i}", "text": f"{text} {i}"} for i in range(6)]
        asked = [{"document": f"d{i}", "question": f"which {i}?", "answer": str(i)} for i in range(6)]
        (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))

    files = {"documents": str(tmp_path / "documents.jsonl"), "questions": str(tmp_path / "questions.jsonl")}
    domain = {"kind": "files", "subjects": {"old": files, "new": files}}
    changes = {"pretrain": None, "base": "some/model", "domain": domain, "sources": ["old"], "target": "new"}
    write("first")
    before = digests(tiny_config | changes)
    write("second")
    after = digests(tiny_config | changes)
    assert before["base"] == after["base"] and before["sft/old/1"] != after["sft/old/1"]
