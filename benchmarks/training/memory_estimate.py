"""The memory that `--dry-run` estimates for a worker against the memory a worker really takes, on CPUs.

    .venv/bin/python benchmarks/training/memory_estimate.py

Every case trains two steps of TRL's SFTTrainer with Pastry's own settings, in as many processes as it has workers. Measured:
the largest resident set of a worker while it trains, above the one before there is a model, less the same of a model of no
size. The latter is what Python, torch and DeepSpeed take themselves, which is not part of the estimate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"
SHAPE = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
NOTHING = SHAPE | {"hidden_size": 12, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 64}
LEAST = {"row_tokens": 8}
TRAIN = {"steps": 2, "batch_rows": 2, "row_tokens": 256, "lr": 1e-4}
MORE = {"batch_rows": 4}
CASES = [
    ("ddp", 1, {}),
    ("zero2", 2, {"parallelism": "zero2"}),
    ("zero3", 2, {"parallelism": "zero3"}),
    ("ddp", 2, {}),
    ("ddp, 4 rows", 1, MORE),
    ("ddp, 4 rows, checkpointing", 1, MORE | {"gradient_checkpointing": True}),
    ("ddp, LoRA rank 16", 1, {"lora": {"rank": 16, "alpha": 32}}),
    ("zero2, bf16", 2, {"parallelism": "zero2", "precision": "bf16"}),
    ("zero1", 2, {"parallelism": "zero1"}),
    ("ddp, 4 rows, bf16", 1, MORE | {"precision": "bf16"}),
]


def estimate(settings: dict, workers: int) -> dict:
    from pastry.config import TextSettings
    from pastry.pipeline.memory import worker_memory
    from pastry.pipeline.model_size import decoder_parameters, model_size

    size = model_size(SHAPE, decoder_parameters(SHAPE), "")
    return worker_memory(size, TextSettings(**TRAIN | settings), workers, use_gpu=False).document()


def measure(settings: dict, workers: int, shape: dict) -> float:
    """Bytes of the largest worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, __file__, "--worker", json.dumps([settings, shape])]
    with tempfile.TemporaryDirectory() as scratch:
        logs = [Path(scratch, f"{rank}.log") for rank in range(workers)]
        processes = [
            subprocess.Popen(
                command,
                stdout=log.open("w"),
                stderr=subprocess.STDOUT,
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, log in enumerate(logs)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"a worker failed:\n{logs[codes.index(max(codes, key=abs))].read_text()[-3000:]}")
        return max(float(log.read_text().splitlines()[-1].split()[1]) for log in logs)


def worker(settings: dict, shape: dict) -> None:
    """One process of a case: trains and prints what it took."""
    import deepspeed
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from pastry.config import TextSettings
    from pastry.training import trl_adapter

    torch.set_num_threads(1)
    train = TextSettings(**TRAIN | settings)
    if int(os.environ["WORLD_SIZE"]) > 1:
        torch.distributed.init_process_group("gloo")
        if train.parallelism != "ddp":
            deepspeed.init_distributed("gloo")  # ZeRO-3 shards the model while it is made, before the trainer would do this
    words = {f"w{index}": index for index in range(shape["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w1", eos_token="w2", unk_token="w0"
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, len(words), (train.steps * train.batch_rows, train.row_tokens), generator=generator).tolist()
    rows = Dataset.from_list([{"input_ids": row, "labels": row, "seq_lengths": [len(row)]} for row in ids])
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trl_adapter.text_arguments(
            train, workers=int(os.environ["WORLD_SIZE"]), seed=0, out=scratch, save_every=None
        )
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = resident("VmRSS")
        facts = dict(shape)
        config = AutoConfig.for_model(facts.pop("model_type"), **facts)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        trl_adapter.language_model_trainer(model, tokenizer, rows, arguments, train.lora, []).train()
        print(f"\ntook {resident('VmHWM') - before}", flush=True)


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--results", type=Path, default=RESULTS)
    arguments = options.parse_args()
    if arguments.worker:
        worker(*json.loads(arguments.worker))
        return
    rows = []
    # What libraries take depends on which of them a case needs.
    libraries = cache(lambda workers, parallelism: measure(LEAST | {"parallelism": parallelism}, workers, NOTHING))
    for name, workers, settings in CASES:
        expected = estimate(settings, workers)
        took = measure(settings, workers, SHAPE) - libraries(workers, settings.get("parallelism", "ddp"))
        rows.append({"case": name, "workers": workers, "settings": settings, "estimate": expected, "measured": took})
        write(arguments.results, rows)


def write(directory: Path, rows: list[dict]) -> None:
    lines = ["| case | workers | estimated MB | measured MB | estimated / measured |", "|---|---|---|---|---|"]
    for row in rows:
        expected, took = row["estimate"]["total"] / 1e6, row["measured"] / 1e6
        lines.append(f"| {row['case']} | {row['workers']} | {expected:.0f} | {took:.0f} | {expected / took:.2f} |")
    ratios = [row["estimate"]["total"] / row["measured"] for row in rows]
    about = (
        f"Ratios from {min(ratios):.2f} to {max(ratios):.2f}. A Llama of 59 M parameters, float32 where nothing else is said, "
        "packed rows; peak resident set of a worker above the one of a model of no size. On CPUs: nothing here measures a GPU."
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{datetime.now(UTC).date()}; {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    text = "\n".join(lines) + f"\n\n{about}\n\n{machine}.\n"
    (directory / "memory_estimate.md").write_text(text)
    (directory / "memory_estimate.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
