"""Small Llama models and PEFT adapters on them."""

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from pastry.vectors.derived import DerivedWork, write_derived
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.rounding import Scratch
from tests.vectors.conftest import load

SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
IDS = torch.arange(12).reshape(2, 6)


def save_base(path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def save_adapter(base, path, seed, **settings):
    """A random PEFT adapter on the base."""
    torch.manual_seed(seed)
    chosen = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
    get_peft_model(load_model(base), LoraConfig(**{**chosen, **settings})).save_pretrained(path)
    return path


def load_model(path):
    return transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def merged(base, adapter):
    """The weights of the base with the adapter merged in by PEFT, under the base's names."""
    if adapter is None:
        return load(base)
    return PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload().state_dict()


def whole(skill, name):
    return skill.widened_block(name, 0, skill.tensors[name].elements, Scratch())[0].copy()


class Materialised(DerivedWork):
    def __init__(self, path):
        super().__init__()
        self.skill = open_skill(path)

    def values(self, spec, start, stop, prepared, scratch):
        return self.skill.widened_block(spec.name, start, stop, scratch)[0], None


def materialise(path, out):
    skill = open_skill(path)
    fields = {"name": "math", "method": "difference", "stored_dtype": "float32", "source_dtypes": ["float32"]}
    specs = list(skill.tensors.values())
    fields |= {"like": path, "architecture": skill.architecture}
    write_derived(out, specs, lambda: Materialised(path), {"does": "test"}, **fields)
    return out
