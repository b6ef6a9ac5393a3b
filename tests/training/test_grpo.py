"""SelectiveGRPOTrainer: the loss, the gradients and the metrics of TRL's trainer, from fewer and shorter rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import torch

from tests.training import grpo_run
from tests.training.grpo_run import GROUP_SIZE, GROUPS, LONGEST, STEPS, WORDS, no_reward, run, save_tiny_model

LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # TRL asks for one
    yield save_tiny_model(tmp_path_factory.mktemp("tiny"))
    torch.distributed.destroy_process_group()


def given_rollouts(prompts, trainer, tools: bool = False):
    """The same completions whoever trains; a third are cut off."""
    rng = random.Random(trainer.state.global_step)
    words = range(2, len(WORDS))
    completions = [[*rng.choices(words, k=rng.randint(1, LONGEST - 1)), 1] for _ in prompts]
    completions = [rng.choices(words, k=LONGEST) if rng.random() < 0.3 else ids for ids in completions]
    masks = {"env_mask": [[int(rng.random() < 0.7) for _ in ids] for ids in completions]} if tools else {}
    prompt_ids = trainer.processing_class(prompts)["input_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None} | masks


def with_tools(prompts, trainer):
    """Parts of the completions were not written by the model."""
    return given_rollouts(prompts, trainer, tools=True)


def both(tiny, tmp_path, **options) -> tuple[dict, dict]:
    return tuple(run(tiny, tmp_path, selective, **options) for selective in (False, True))


def assert_same_training(plain: dict, ours: dict) -> None:
    assert len(plain["gradients"]) == len(ours["gradients"]) == STEPS
    for expected, found in zip(plain["gradients"], ours["gradients"], strict=True):
        expected, found = torch.tensor(expected), torch.tensor(found)
        assert expected.norm() > 1e-4
        assert (found - expected).norm() < 2e-5 * expected.norm()
    for expected, found in zip(plain["logs"], ours["logs"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=2e-6)
        assert found.get("reward") == expected.get("reward")


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_are_the_plain_trainers(tiny, tmp_path, loss, beta, accumulation):
    plain, ours = both(
        tiny, tmp_path, rollouts=given_rollouts, loss_type=loss, beta=beta, gradient_accumulation_steps=accumulation
    )
    assert_same_training(plain, ours)


@pytest.mark.parametrize(
    "options",
    [{"mask_truncated_completions": True}, {"num_iterations": 2}, {"rollouts": with_tools}],
    ids=["masks", "older weights", "tools"],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_also_with_masks_and_with_samples_of_older_weights(tiny, tmp_path, loss, options):
    plain, ours = both(tiny, tmp_path, **{"rollouts": given_rollouts, "loss_type": loss} | options)
    assert_same_training(plain, ours)


def test_only_rows_with_an_advantage_are_run_without_their_padding(tiny, tmp_path):
    plain, ours = both(tiny, tmp_path, rollouts=given_rollouts)
    assert [rows for rows, _ in plain["shapes"]] == [GROUPS * GROUP_SIZE] * STEPS
    assert len(ours["shapes"]) > STEPS
    assert len({length for _, length in ours["shapes"]}) > 1
    tokens = [sum(rows * length for rows, length in each["shapes"]) for each in (plain, ours)]
    assert tokens[1] < 0.5 * tokens[0]


def test_metrics_over_several_buckets_are_the_plain_trainers(tiny, tmp_path):
    plain, ours = both(tiny, tmp_path, rollouts=given_rollouts, beta=0.2, num_iterations=2, epsilon=0.05)
    assert len(ours["shapes"]) > len(plain["shapes"])
    compared = [name for name in plain["logs"][0] if name in ("entropy", "kl") or name.startswith("clip_ratio")]
    assert len(compared) == 7, compared
    for expected, found in zip(plain["logs"], ours["logs"], strict=True):
        assert {name: found[name] for name in compared} == pytest.approx({name: expected[name] for name in compared}, rel=1e-4)
    assert any(log["clip_ratio/region_mean"] > 0 for log in plain["logs"])


def test_a_step_without_any_advantage_has_no_gradient(tiny, tmp_path):
    ours = run(tiny, tmp_path, True, rollouts=given_rollouts, reward=no_reward)
    assert not any(map(any, ours["gradients"]))
    assert [rows for rows, _ in ours["shapes"]] == [1] * STEPS
    assert all(log["loss"] == 0 and log["entropy"] is None for log in ours["logs"])


def test_an_entropy_bonus_is_left_to_the_plain_trainer(tiny, tmp_path):
    plain, ours = both(tiny, tmp_path, rollouts=given_rollouts, entropy_coef=0.1)
    assert ours["shapes"] == plain["shapes"]
    assert_same_training(plain, ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.2}, {"zero3": True}, {"zero3": True, "loss_type": "grpo"}],
    ids=str,
)
def test_two_workers_train_as_the_plain_trainer_alone(tiny, tmp_path, options):
    """The first worker's groups have no advantage, so that without a KL term it has nothing to run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", grpo_run.__file__]
    command += [str(tiny), str(tmp_path), json.dumps(options | {"workers": 2})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = run(tiny, tmp_path, False, **{name: value for name, value in options.items() if name != "zero3"})

    assert first["completions"] == alone["completions"]
    assert first["shapes"][0][0] == second["shapes"][0][0]
    assert len(first["shapes"]) == len(second["shapes"]) >= STEPS
    expected, found = torch.tensor(alone["update"]), torch.tensor(first["update"])
    assert expected.norm() > 0.1
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert first["update"] == second["update"]
