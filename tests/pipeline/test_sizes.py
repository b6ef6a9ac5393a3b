"""How large models, texts and results are, before anything is started."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pastry.config import PastConfig
from pastry.domains import load_corpus, load_domain
from pastry.pipeline.model_size import PUBLISHED, decoder_parameters, run_model
from pastry.pipeline.plan import plan
from pastry.pipeline.sizes import disk, work
from pastry.training.data import packed_epochs


def on_the_meta_device(shape):
    facts = dict(shape)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(facts.pop("model_type"), **facts))


@pytest.mark.parametrize(("name", "parameters"), [("Qwen/Qwen2.5-1.5B", 1_543_714_304), ("Qwen/Qwen2.5-7B", 7_615_616_512)])
def test_published_shapes_have_the_published_number_of_parameters(name, parameters):
    assert decoder_parameters(PUBLISHED[name]) == parameters == on_the_meta_device(PUBLISHED[name]).num_parameters()


def test_a_models_linear_layers_are_the_ones_transformers_makes(tiny_config, tmp_path):
    tiny_config["pretrain"]["model"]["num_key_value_heads"] = 1
    size = run_model(PastConfig.model_validate(tiny_config), Path()).size
    shape = tiny_config["pretrain"]["model"] | {"model_type": "llama", "vocab_size": size.vocabulary, "num_hidden_layers": 2}
    modules = dict(on_the_meta_device(shape | {"tie_word_embeddings": True}).named_modules())
    for name, (inputs, outputs) in size.linear_layers().items():
        block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        linear = modules[f"model.layers.0.{block}.{name}"]
        assert (linear.in_features, linear.out_features) == (inputs, outputs)


def test_a_model_from_scratch_and_its_checkpoint_are_known_to_be_as_large(tiny_config, tmp_path):
    config = PastConfig.model_validate(tiny_config)
    made = run_model(config, Path())
    load_corpus(config.domain, config.seed).save_tokenizer(tmp_path / "base")
    shape = config.pretrain.model.model_dump() | {"vocab_size": made.size.vocabulary}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    model.save_pretrained(tmp_path / "base")
    assert made.size.parameters == model.num_parameters()
    read = run_model(PastConfig.model_validate(tiny_config | {"pretrain": None, "base": str(tmp_path / "base")}), Path())
    assert read.size.parameters == made.size.parameters and read.size.positions == 256
    assert read.tokenizer.get_vocab_size() == made.tokenizer.get_vocab_size()


def test_a_model_that_is_nowhere_is_unknown_and_says_why(tiny_config, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = PastConfig.model_validate(tiny_config | {"pretrain": None, "base": "models:/nobody/1"})
    found = run_model(config, tmp_path)
    assert found.size is None and "models:/nobody/1: no registry at sqlite" in found.unknown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("row_tokens", "overlap"), [(64, 0), (16, 0), (16, 4)])
def test_tokens_of_epochs_are_those_that_training_packs(tiny_config, tmp_path, row_tokens, overlap):
    text = {"epochs": 1, "batch_rows": 1, "row_tokens": row_tokens, "overlap_tokens": overlap}
    config = PastConfig.model_validate(tiny_config | {"sft": text})
    model = run_model(config, Path())
    stage = next(stage for stage in plan(config, 1) if stage.kind == "sft")
    load_corpus(config.domain, config.seed).save_tokenizer(tmp_path)
    domain = load_domain("planet", config.domain, config.seed)
    rows = packed_epochs(
        lambda rng: domain.sft_epoch(1, rng),
        AutoTokenizer.from_pretrained(tmp_path),
        length=row_tokens,
        overlap=overlap,
        rows=None,
        epochs=1,
        seed=stage.settings["seed"],
    )
    found = work(stage, model)
    # Every text is taken to get an end-of-sequence token; the lab's answers have theirs already.
    assert found.known == "" and found.tokens == pytest.approx(sum(map(len, rows["input_ids"])), rel=0.04)
    assert found.steps == found.tokens // row_tokens


def test_without_a_tokenizer_tokens_are_marked_as_a_guess(tiny_config):
    config = PastConfig.model_validate(tiny_config | {"sft": {"epochs": 2}})
    stage = next(stage for stage in plan(config, 1) if stage.kind == "sft")
    model = run_model(config, Path())
    guess = work(stage, type(model)(None, None, "unknown"))
    assert guess.known == "~" and 0.4 < guess.tokens / work(stage, model).tokens < 2.5


def test_results_take_what_they_take_on_the_disk(tiny_config):
    config = PastConfig.model_validate(tiny_config)
    size = run_model(config, Path()).size
    model = 4 * size.parameters
    found = {stage.kind: disk(stage, size, config) for stage in plan(config, 1)}
    assert found["rl"].result == 2 * model and found["extract"].result == found["inject"].result == model
    # two kept and one being written, of weights and two moments in float32
    assert found["sft"].working == 3 * 3 * model and found["report"].result == 0


def test_disk_of_checkpoints_depends_on_what_is_sharded_and_trained(tiny_config):
    def working(**settings):
        config = PastConfig.model_validate(tiny_config | {"sft": {**tiny_config["sft"], **settings}})
        size = run_model(config, Path()).size
        stage = next(stage for stage in plan(config, 1) if stage.kind == "sft")
        return disk(stage, size, config).working / size.parameters / 3

    assert working() == 12 and working(parallelism="zero2", precision="bf16") == 16
    assert working(parallelism="zero3_offload", precision="bf16") == 14
    assert working(lora={"rank": 1}) < 1
