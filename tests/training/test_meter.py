"""Speed and memory in the logs of TRL's own trainers, by one worker and by two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = """
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from pastry.training.meter import Meter, process_peak
from pastry.training.trl_adapter import PackedRowsCollator

torch.set_num_threads(1)
kind, out = sys.argv[1], Path(sys.argv[2])
words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="a"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")
shape = dict(vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=1))
common = dict(output_dir=str(out), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True)
common |= dict(max_steps=6, per_device_train_batch_size=4, save_strategy="no")
if int(sys.argv[3]) > 1:
    common["ddp_backend"] = "gloo"


class Lines(TrainerCallback):
    lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" not in logs:
            self.lines.append({"step": state.global_step, **logs})


def sft(workers):
    rows = Dataset.from_list([{"input_ids": [2, 3] * 8, "labels": [2, 3] * 8, "seq_lengths": [16]}] * 64)
    settings = SFTConfig(
        **common, logging_steps=2, max_length=16, dataset_kwargs={"skip_prepare_dataset": True}, loss_type="nll"
    )
    return SFTTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=PackedRowsCollator(pad_token_id=0, return_position_ids=True),
        callbacks=[Meter(tokens_per_step=4 * workers * 16), Lines()],
    )


def rl(workers):
    settings = GRPOConfig(**common, logging_steps=1, num_generations=4, max_completion_length=5)
    return GRPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "a b a"}] * 16),
        processing_class=tokenizer,
        reward_funcs=[lambda completion_ids, **_: [float(ids[0]) for ids in completion_ids]],
        callbacks=[Meter(), Lines()],
    )


trainer = {"sft": sft, "rl": rl}[kind](int(sys.argv[3]))
if trainer.args.process_index == 1:
    ballast = torch.ones(50_000_000)  # 200 MB that only the second worker holds
trainer.train()
own = process_peak()
(out / f"lines-{trainer.args.process_index}.json").write_text(json.dumps({"lines": Lines.lines, "own": own}))
"""


def train(kind: str, out: Path, workers: int) -> list[dict]:
    """Every worker's log `lines`, and the peak of its `own` memory."""
    (out / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(workers)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(out / "script.py"), kind, str(out), str(workers)],
            env=os.environ | (address | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {}),
        )
        for rank in range(workers)
    ]
    assert [process.wait() for process in processes] == [0] * workers
    return [json.loads((out / f"lines-{rank}.json").read_text()) for rank in range(workers)]


@pytest.mark.parametrize("workers", [1, 2])
def test_text_training(tmp_path, workers):
    found = train("sft", tmp_path, workers)
    for line in found[0]["lines"]:
        assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(4 * workers * 16)
        assert line["num_tokens"] == line["step"] * 4 * workers * 16
        assert line["memory/process_bytes"] > 200e6 and "memory/gpu_bytes" not in line
    assert [line["step"] for line in found[0]["lines"]] == [2, 4, 6]
    most = max(worker["own"] for worker in found)
    for worker in found:
        assert worker["lines"][-1]["memory/process_bytes"] == pytest.approx(most, rel=0.03), "who holds most speaks for all"
    assert workers == 1 or found[1]["own"] > found[0]["own"] + 150e6


@pytest.mark.parametrize("workers", [1, 2])
def test_reinforcement_learning(tmp_path, workers):
    logged = train("rl", tmp_path, workers)[0]["lines"]
    seen = 0
    for line in logged:
        sampled = 4 * workers * (3 + line["completions/mean_length"])
        assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(sampled)
        seen += sampled
        assert line["num_tokens"] == pytest.approx(seen)
    assert len(logged) == 6
