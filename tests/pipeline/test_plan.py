"""The plan of a run and the identity of its stages."""

import json

import pytest

from pastry.config import PastConfig
from pastry.errors import PastryError
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
    assert stages["rl/planet/2"].inputs == {"start": "inject/planet/2", "base": "gate"}
    assert stages["extract/planet/2"].inputs == {"end": "rl/planet/2", "start": "sft/planet/2", "base": "gate"}
    assert stages["search"].inputs == {"target": "sft/company", "skill:planet": "extract/planet/2"}


def test_one_round_has_no_injection_before_rl(tiny_config):
    stages = {stage.name: stage for stage in plan(PastConfig.model_validate(tiny_config), 2)}
    assert stages["rl/planet/1"].inputs == {"start": "sft/planet/1", "base": "gate"}
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


MIDTRAIN = {"steps": 4, "batch_rows": 4, "row_tokens": 64, "mixture": {"documents": 1, "recall": 2}}


def test_midtraining_gives_the_base_of_everything_after_it(two_rounds):
    before = {stage.name: stage for stage in plan(PastConfig.model_validate(two_rounds), 2)}
    after = {stage.name: stage for stage in plan(PastConfig.model_validate(two_rounds | {"midtrain": MIDTRAIN}), 2)}
    assert list(after)[:3] == ["pretrain", "gate", "midtrain"] and after["midtrain"].inputs == {"start": "gate"}
    for name, stage in before.items():
        if stage.kind not in ("gate", "report"):
            inputs = {role: "midtrain" if made == "gate" else made for role, made in stage.inputs.items()}
            assert after[name].inputs == inputs, name


def test_a_changed_share_changes_midtraining_but_not_the_gate(tiny_config):
    shares = tiny_config | {"midtrain": MIDTRAIN | {"mixture": {"documents": 1, "recall": 3}}}
    before, after = digests(tiny_config | {"midtrain": MIDTRAIN}), digests(shares)
    assert before["gate"] == after["gate"] and before["midtrain"] != after["midtrain"]
    assert before["sft/company"] != after["sft/company"]


def test_a_mixture_of_unknown_kinds_is_refused_before_anything_runs(tiny_config):
    config = tiny_config | {"midtrain": MIDTRAIN | {"mixture": {"wikipedia": 1}}}
    with pytest.raises(PastryError, match=r"no kind of text 'wikipedia'; there are: documents, direct, recall"):
        plan(PastConfig.model_validate(config), 2)


def test_a_second_sft_stage_stands_between_reading_and_everything_after(two_rounds):
    sft = two_rounds["sft"]
    before = {stage.name: stage for stage in plan(PastConfig.model_validate(two_rounds), 2)}
    after = {s.name: s for s in plan(PastConfig.model_validate(two_rounds | {"sft": sft | {"second": sft | {"steps": 3}}}), 2)}
    read = ("sft/planet/1", "sft/planet/2", "sft/company", "sft/company/pre_injection")
    assert set(after) - set(before) == {f"{name}/second" for name in read}
    for name in read:
        assert after[name].inputs == before[name].inputs
        first, second = after[name].settings, after[f"{name}/second"].settings
        assert (first["texts"], second["texts"]) == ("documents", "derived") and second["train"].steps == 3
        assert (first["subject"], first["part"]) == (second["subject"], second["part"])
        assert after[f"{name}/second"].inputs == {"start": name}
    for name, stage in before.items():
        if name not in read and stage.kind != "report":
            inputs = {role: f"{made}/second" if made in read else made for role, made in stage.inputs.items()}
            assert after[name].inputs == inputs, name


def test_a_changed_second_sft_stage_does_not_repeat_the_first(tiny_config):
    # With a base of one's own: a gate would probe the second stage, too.
    sft, config = tiny_config["sft"], tiny_config | {"pretrain": None, "base": "some/model"}
    before, after = (digests(config | {"sft": sft | {"second": sft | {"steps": steps}}}) for steps in (3, 5))
    assert before["sft/company"] == after["sft/company"] and before["sft/planet/1"] == after["sft/planet/1"]
    assert before["sft/company/second"] != after["sft/company/second"] and before["rl/planet/1"] != after["rl/planet/1"]


def test_every_stage_has_a_seed_of_its_own(two_rounds):
    sft = two_rounds["sft"]
    stages = plan(PastConfig.model_validate(two_rounds | {"midtrain": MIDTRAIN, "sft": sft | {"second": sft}}), 2)
    seeds = [stage.settings["seed"] for stage in stages if stage.kind in ("pretrain", "midtrain", "sft", "rl")]
    assert len(seeds) == len(set(seeds)) > 5


@pytest.fixture
def own_files(tmp_path, tiny_config):
    """Write a text into a subject's files; gives the run's settings."""

    def write(document="a document", derived="a fact", keys=("documents", "questions")):
        rows = {
            "documents": [{"id": f"d{i}", "text": f"{document} {i}"} for i in range(6)],
            "questions": [{"document": f"d{i}", "question": f"which {i}?", "answer": str(i)} for i in range(6)],
            "derived": [{"document": f"d{i}", "text": f"{derived} {i}"} for i in range(6)],
        }
        for name, content in rows.items():
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
        files = {key: str(tmp_path / f"{key}.jsonl") for key in keys}
        corpora = {"read": str(tmp_path / "documents.jsonl")}
        domain = {"kind": "files", "subjects": {"old": files, "new": files}, "corpora": corpora}
        return tiny_config | {
            "pretrain": None, "base": "some/model", "domain": domain, "sources": ["old"], "target": "new"
        }  # fmt: skip

    return write


def test_a_changed_document_changes_the_stages_that_read_it(own_files):
    midtrain = {"midtrain": MIDTRAIN | {"mixture": {"read": 1}}}
    before = digests(own_files("first") | midtrain)
    after = digests(own_files("second") | midtrain)
    assert before["base"] == after["base"] and before["midtrain"] != after["midtrain"]
    before, after = digests(own_files("first")), digests(own_files("second"))
    assert before["base"] == after["base"] and before["sft/old/1"] != after["sft/old/1"]


def test_a_changed_derived_text_changes_the_second_sft_stage_alone(own_files, tiny_config):
    sft, keys = {"sft": tiny_config["sft"] | {"second": tiny_config["sft"]}}, ("documents", "questions", "derived")
    before, after = digests(own_files(derived="one", keys=keys) | sft), digests(own_files(derived="two", keys=keys) | sft)
    assert before["sft/old/1"] == after["sft/old/1"] and before["sft/old/1/second"] != after["sft/old/1/second"]


def test_a_second_sft_stage_without_derived_texts_is_refused_before_anything_runs(own_files, tiny_config):
    config = own_files() | {"sft": tiny_config["sft"] | {"second": tiny_config["sft"]}}
    with pytest.raises(PastryError, match=r"domain.subjects.old.derived: is not set"):
        plan(PastConfig.model_validate(config), 2)


def test_a_base_from_scratch_needs_a_domain_that_can_make_one(own_files, tiny_config):
    config = own_files() | {"base": None, "pretrain": tiny_config["pretrain"]}
    with pytest.raises(PastryError, match=r"pretrain: domain.kind 'files' has no corpus to make a base from; give base"):
        plan(PastConfig.model_validate(config), 2)
