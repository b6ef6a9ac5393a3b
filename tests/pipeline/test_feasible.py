"""What cannot work is refused with the key, what was found, what is wanted and what helps."""

import re
from dataclasses import replace

import pytest

from pastry.config import PastConfig
from pastry.errors import PastryError
from pastry.pipeline.feasible import check_resources, check_settings, shared_batches
from pastry.pipeline.forecast import forecast
from pastry.pipeline.place import Machine, Place, find_place
from pastry.pipeline.plan import plan

GPU = Machine(cpus=64, memory=80 * 10**9, gpu="A100", bf16=True, vllm=True, compiler=True)
GPUS = {"workers": 2, "use_gpu": True}


def settings(base, **changes):
    """`base` with single keys of its groups changed."""
    groups = {key: base[key] | value for key, value in changes.items() if key in base}
    return PastConfig.model_validate(base | changes | groups)


def checked(config, tmp_path, place, starting=False, **facts):
    """What `check_resources` says of the whole run in `place`."""
    workers = config.resources.workers
    stages = plan(config, workers)
    found = replace(forecast(config, workers, stages, tmp_path), place=place, **facts)
    return check_resources(found, stages, starting)


@pytest.mark.parametrize(
    ("changes", "workers", "message"),
    [
        ({}, 3, "sft.batch_rows = 4 cannot be shared by 3 workers: change it, or resources.workers"),
        ({}, 3, "rl.questions_per_step = 4 cannot be shared by 3 workers"),
        ({"sft": {"second": {"steps": 1, "batch_rows": 3}}}, 2, "sft.second.batch_rows = 3 cannot be shared by 2 workers"),
        ({"midtrain": {"steps": 1, "batch_rows": 3, "mixture": {"documents": 1}}}, 2, "midtrain.batch_rows = 3 cannot be"),
        ({"sft": {"micro_rows": 3}}, 2, "sft.micro_rows = 3 does not divide the 2 that each of 2 workers has .* to 2"),
        ({"rl": {"micro_completions": 3}}, 1, "rl.micro_completions = 3 does not divide the 8 .* set it to 2"),
        ({"rl": {"precision": "fp16"}}, 1, r"rl.precision = fp16 needs GPUs \(resources.use_gpu: true\)"),
        ({"pretrain": {"lora": {"rank": 2}}}, 1, "pretrain.lora is set, but"),
        ({"rl": {"rollouts": "vllm_colocate"}}, 1, "rl.rollouts = vllm_colocate needs GPUs"),
    ],
)
def test_settings_that_contradict_each_other(tiny_config, changes, workers, message):
    with pytest.raises(PastryError, match=message):
        check_settings(settings(tiny_config, **changes), workers)


def test_settings_that_can_work_pass(tiny_config):
    check_settings(settings(tiny_config, sft={"micro_rows": 1, "precision": "bf16"}, rl={"micro_completions": 2}), 2)


def test_what_workers_share_is_rows_and_whole_questions(tiny_config):
    config = settings(tiny_config, sft={"second": {"steps": 1, "batch_rows": 6}})
    assert shared_batches(config) == {
        "pretrain.batch_rows": 4,
        "sft.batch_rows": 4,
        "sft.second.batch_rows": 6,
        "rl.questions_per_step": 4,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": {"row_tokens": 257}}, "sft.row_tokens = 257 is longer than the 256 tokens the model was made for"),
        ({"rl": {"max_new_tokens": 250}}, r"rl.max_new_tokens = 250 after a prompt of \d+ is longer than the 256"),
        ({"sft": {"steps": None, "epochs": 1, "batch_rows": 64}}, "sft/planet/1: the texts of 1 epochs .* less than one step"),
        ({"resources": {"workers": 2, "cpus_per_worker": 100}}, "resources.workers = 2, but this machine has room for 0"),
    ],
)
def test_what_the_model_the_texts_and_this_machine_cannot_do(tiny_config, tmp_path, changes, message):
    config = settings(tiny_config, **changes)
    with pytest.raises(PastryError, match=message):
        checked(config, tmp_path, find_place(config.resources))


def test_this_machine_can_run_the_smallest_run(tiny_config, tmp_path):
    config = settings(tiny_config)
    assert checked(config, tmp_path, find_place(config.resources), starting=True) == []


@pytest.mark.parametrize(
    ("changes", "machine", "message"),
    [
        ({}, {"memory": 10**6}, r"sft/planet/1: a worker needs about \d.* but a GPU \(A100\) has 0.0 GB"),
        ({"sft": {"parallelism": "zero2_offload"}}, {"compiler": False}, "sft.parallelism = zero2_offload .* g.. and ninja"),
        ({"rl": {"rollouts": "vllm_colocate"}}, {"vllm": False}, r"rl.rollouts = vllm_colocate needs vLLM .*pastry\[gpu\]"),
        ({"rl": {"precision": "bf16"}}, {"bf16": False}, "rl.precision = bf16, but A100 .* has no bfloat16"),
    ],
)
def test_what_a_clusters_gpus_cannot_do(tiny_config, tmp_path, changes, machine, message):
    config = settings(tiny_config, resources=GPUS, **changes)
    assert checked(config, tmp_path, Place(2, GPU, "the cluster")) == []
    with pytest.raises(PastryError, match=message):
        checked(config, tmp_path, Place(2, replace(GPU, **machine), "the cluster"))


def test_vllm_on_the_same_gpu_takes_its_share_of_the_memory(tiny_config, tmp_path):
    config = settings(tiny_config, resources=GPUS, rl={"rollouts": "vllm_colocate"})
    stages = plan(config, 2)
    needed = next(
        each.memory.total for name, each in forecast(config, 2, stages, tmp_path).stages.items() if name.startswith("rl/")
    )
    assert checked(config, tmp_path, Place(2, replace(GPU, memory=int(needed / 0.6)), "the cluster")) == []
    with pytest.raises(PastryError, match="rl/planet/1: a worker needs"):
        checked(config, tmp_path, Place(2, replace(GPU, memory=int(needed / 0.8)), "the cluster"))


def test_a_full_disk_is_found_where_the_run_would_be(tiny_config, tmp_path):
    here = find_place(settings(tiny_config).resources)
    with pytest.raises(PastryError, match=r"storage = .*: the run writes up to \d.* GB, 0.0 GB are free"):
        checked(settings(tiny_config), tmp_path, here, free=0)
    assert "free disk" in checked(settings(tiny_config, resources=GPUS), tmp_path, None, free=0)[0]


def test_without_gpus_a_dry_run_says_what_it_could_not_check_and_a_start_is_refused(tiny_config, tmp_path):
    config = settings(tiny_config, resources=GPUS)
    assert re.match("GPUs, their memory and software, free disk: there is no GPU", checked(config, tmp_path, None)[0])
    with pytest.raises(PastryError, match=r"resources.use_gpu is true, but there is no GPU here; set RAY_ADDRESS"):
        checked(config, tmp_path, None, starting=True)


def test_a_judge_that_does_not_answer_is_found_at_the_start(tiny_config, tmp_path):
    nobody = "http://127.0.0.1:9/v1"  # the discard port
    config = settings(tiny_config, rl={"rewards": {"judge": {"url": nobody, "model": "m", "retries": 0}}})
    here = find_place(config.resources)
    assert checked(config, tmp_path, here) == [f"rl.rewards.judge: {nobody} was not asked"]
    with pytest.raises(PastryError, match=f"rewards.judge: m at {nobody} does not judge: APIConnectionError"):
        checked(config, tmp_path, here, starting=True)


def test_all_that_is_wrong_is_said_at_once(tiny_config):
    with pytest.raises(PastryError) as refused:
        check_settings(settings(tiny_config, rl={"precision": "fp16"}, sft={"micro_rows": 3}), 1)
    assert "sft.micro_rows" in str(refused.value) and "rl.precision" in str(refused.value)
