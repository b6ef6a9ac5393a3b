"""The memory estimate against the ZeRO paper's table, PEFT's adapters, and what autograd really keeps."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from pastry.config import RLSettings, TextSettings
from pastry.pipeline.memory import BUCKET, LIVE_PARAMETERS, trained_parameters, worker_memory
from pastry.pipeline.model_size import decoder_parameters, model_size

SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
SIZE = model_size(SHAPE, decoder_parameters(SHAPE), "the test")


def text(**settings):
    return TextSettings(**{"steps": 1, "batch_rows": 64, "row_tokens": 128} | settings)


def rl(**settings):
    return RLSettings(**{"questions_per_step": 64} | settings)


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_papers_figure_1(stage, gigabytes):
    # arXiv 1910.02054, figure 1: 7.5 G parameters, 64 workers, mixed precision with Adam; without DeepSpeed's own buffers.
    size = replace(SIZE, parameters=7_500_000_000)
    found = worker_memory(size, text(precision="bf16", parallelism=f"zero{stage}"), 64, True)
    buffers = 2 * BUCKET + (2 * LIVE_PARAMETERS if stage == 3 else 0)
    assert found.weights + found.gradients + found.optimizer - buffers == pytest.approx(gigabytes * 1e9, rel=0.02)


@pytest.mark.parametrize(("workers", "per_parameter"), [(1, 16), (2, 20)])
def test_ddp_holds_sixteen_bytes_a_parameter_and_its_buckets(workers, per_parameter):
    found = worker_memory(SIZE, text(), workers, False)
    assert found.weights + found.gradients + found.optimizer == per_parameter * SIZE.parameters


def test_offload_moves_the_optimizer_to_main_memory():
    settings = (text(precision="bf16", parallelism=name) for name in ("zero2", "zero2_offload"))
    kept, moved = (worker_memory(SIZE, train, 8, True) for train in settings)
    assert kept.optimizer == 12 * (SIZE.parameters // 8) and moved.optimizer == 0 and moved.gradients < kept.gradients
    # On a GPU the float32 weights pass through main memory first, and are larger than what is offloaded here.
    assert kept.host == moved.host == 4 * SIZE.parameters
    alone = worker_memory(SIZE, text(precision="bf16", parallelism="zero2_offload"), 1, True)
    assert alone.host == 16 * SIZE.parameters


def test_without_a_gpu_offloading_saves_nothing():
    kept, moved = (worker_memory(SIZE, text(parallelism=name), 2, False) for name in ("zero3", "zero3_offload"))
    assert moved.host == 0 and moved.total >= kept.weights + kept.optimizer


def test_a_reference_model_is_held_for_the_kl_term_alone():
    without, with_kl = (worker_memory(SIZE, rl(kl=kl), 1, False) for kl in (0.0, 0.1))
    assert with_kl.weights - without.weights == 4 * SIZE.parameters
    # An adapter switched off is the reference.
    adapted = [worker_memory(SIZE, rl(kl=kl, lora={"rank": 2}), 1, False).weights for kl in (0.0, 0.1)]
    assert adapted[0] == adapted[1]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_trained_parameters_are_those_of_pefts_adapter(targets):
    facts = dict(SHAPE)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(facts.pop("model_type"), **facts))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    wanted = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_parameters(SIZE, text(lora={"rank": 4, "targets": targets})) == wanted


def kept_for_backward(layers, *, dtype=torch.float32, autocast=None):
    """Bytes of distinct tensors that autograd saves in a forward pass of packed rows, the weights left out."""
    facts = SHAPE | {"num_hidden_layers": layers}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(facts.pop("model_type"), **facts), dtype=dtype).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    matrices = {tuple(p.shape) for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # autocast's copies of the weights are counted with the weights
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in matrices | {shape[::-1] for shape in matrices}:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    ids = torch.randint(0, 512, (2, 128))
    positions = torch.cat([torch.arange(64), torch.arange(64)]).expand(2, -1)
    context = torch.autocast("cpu", dtype=autocast, enabled=autocast is not None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        model.model(input_ids=ids[:, :127], position_ids=positions[:, :127], use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({}, {}),
        ({"precision": "bf16", "parallelism": "zero1"}, {"dtype": torch.bfloat16}),
        ({"precision": "bf16"}, {"autocast": torch.bfloat16}),
    ],
    ids=["float32", "bfloat16", "autocast"],
)
def test_activations_of_a_layer_are_what_autograd_keeps(settings, made):
    # 127 tokens: no shape of activations is then one of the weights'.
    wanted = kept_for_backward(2, **made) - kept_for_backward(1, **made)
    one, two = (
        worker_memory(replace(SIZE, layers=layers), text(batch_rows=2, row_tokens=127, **settings), 1, False).activations
        for layers in (1, 2)
    )
    assert two - one == pytest.approx(wanted, rel=0.03)


def test_checkpointing_and_micro_batches_need_less():
    whole = worker_memory(SIZE, text(), 1, False).activations
    assert worker_memory(SIZE, text(micro_rows=1), 1, False).activations < whole / 10
    deep = replace(SIZE, layers=32)
    recomputed = worker_memory(deep, text(gradient_checkpointing=True), 1, False).activations
    assert recomputed < worker_memory(deep, text(), 1, False).activations / 5


def test_rollouts_of_vllm_are_not_the_workers():
    own = worker_memory(SIZE, rl(), 2, True, prompt=100)
    assert own.rollouts > 0 == worker_memory(SIZE, rl(rollouts="vllm_colocate"), 2, True, prompt=100).rollouts
    gathered = worker_memory(SIZE, rl(parallelism="zero3", precision="bf16"), 2, True, prompt=100)
    sharded = worker_memory(SIZE, rl(parallelism="zero2", precision="bf16"), 2, True, prompt=100)
    assert gathered.rollouts - sharded.rollouts == 2 * SIZE.parameters
