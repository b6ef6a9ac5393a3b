"""How much faster than a plain GRPOTrainer call is Pastry's RL, where does the time go, and do both learn the same?

    .venv/bin/python benchmarks/training/rl_speed.py

The quickstart's RL stage (jobs/quickstart.yaml) on one lab model after document SFT, which is made first and kept. Each run is
a process of its own with one thread a worker; runs of the two kinds alternate. Writes benchmarks/results/rl_speed.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from transformers import TrainerCallback

from pastry.config import RLSettings
from pastry.training.sharding import deepspeed_config

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from lab_models import ZOO, LabModel, Zoo  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SEED = 21
RUNS = {  # name → (kind, workers, ZeRO-3)
    "plain": ("plain", 1, False),
    "ours": ("ours", 1, False),
    "ours, 2 workers": ("ours", 2, False),
    "plain, ZeRO-3": ("plain", 1, True),
    "ours, ZeRO-3": ("ours", 1, True),
}
RATIOS = {  # what is claimed → (slower, faster)
    "one worker": ("plain", "ours"),
    "two workers against one": ("ours", "ours, 2 workers"),
    "ZeRO-3": ("plain, ZeRO-3", "ours, ZeRO-3"),
}
SECTIONS = ("generate", "rewards", "forward", "backward", "optimizer", "rest")
ZERO3 = deepspeed_config(RLSettings(parallelism="zero3"))
ZERO3["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # small weights are sharded, too


class Clock(TrainerCallback):
    """Seconds of every step, on the clock and of the processor, and of its sections."""

    def __init__(self):
        self.steps, self.cpu, self.sections, self.rewards = [], [], defaultdict(list), []
        self.current = defaultdict(float)

    def on_train_begin(self, args, state, control, **kwargs):
        self.last, self.last_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        now, cpu = time.perf_counter(), time.process_time()
        self.steps.append(now - self.last)
        self.cpu.append(cpu - self.last_cpu)
        self.current["rest"] = self.steps[-1] - sum(self.current.values())
        for name in SECTIONS:
            self.sections[name].append(self.current[name])
        self.current.clear()
        self.last, self.last_cpu = now, cpu

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            self.rewards.append(logs["reward"])

    def watch(self, owner, method: str, section: str) -> None:
        """Count the time of a method as a section's."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.current[section] += time.perf_counter() - began

        setattr(owner, method, timed)


def train(kind: str, workers: int, zero3: bool, seed: int, steps: int, zoo: Path) -> dict:
    """One RL run, in this process."""
    from trl import GRPOConfig, GRPOTrainer

    from pastry.training.grpo import SelectiveGRPOTrainer
    from pastry.training.rollouts import sample_rollouts

    if "RANK" not in os.environ:
        alone()
    models = Zoo(zoo, SEED)
    domain, settings = models.domain("planet"), models.config.rl
    lab = LabModel(models.sft("planet"))
    questions = {question.id: question for question in domain.questions(1, "train")}

    def correct(completions, completion_ids, question, **_):
        answers = zip(question, completions, completion_ids, strict=True)
        return [float(domain.verify(questions[id], text, ids[-1] == lab.eos).correct) for id, text, ids in answers]

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(
            output_dir=out,
            learning_rate=settings.lr,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            max_grad_norm=settings.clip,
            lr_scheduler_type="constant",
            max_steps=steps,
            per_device_train_batch_size=settings.questions_per_step * settings.group_size // workers,
            num_generations=settings.group_size,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=0,
            beta=settings.kl,
            epsilon=settings.clip_range,
            loss_type=settings.loss,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            ddp_backend="gloo",
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            deepspeed=ZERO3 if zero3 else None,
        )
        rows = Dataset.from_list([{"prompt": question.prompt, "question": id} for id, question in questions.items()])
        call = {"model": lab.model, "args": args, "train_dataset": rows, "processing_class": lab.tokenizer}
        call |= {"reward_funcs": correct, "callbacks": [clock]}
        trainer = GRPOTrainer(**call) if kind == "plain" else SelectiveGRPOTrainer(**call, rollout_func=sample_rollouts)
        clock.watch(trainer, *(("_generate_single_turn", "generate") if kind == "plain" else ("rollout_func", "generate")))
        clock.watch(trainer, "_calculate_rewards", "rewards")
        clock.watch(trainer, "compute_loss", "forward")
        clock.watch(trainer.accelerator, "backward", "backward")  # under DeepSpeed the optimizer's step too
        create = trainer.create_optimizer

        def watched_optimizer(*args, **kwargs):
            optimizer = create(*args, **kwargs)
            clock.watch(optimizer, "step", "optimizer")
            return optimizer

        trainer.create_optimizer = watched_optimizer
        trainer.train()
        found = {"steps": clock.steps, "cpu": clock.cpu, "sections": clock.sections, "rewards": clock.rewards}
        if not zero3:
            found["accuracy"] = accuracy(lab, domain)
        return found


def alone() -> None:
    """The process group TRL asks for, of this process only."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def accuracy(lab: LabModel, domain) -> float:
    """Greedy, on the questions trained on: what RL reached."""
    lab.model.eval()
    verdicts = lab.verdicts(domain, domain.questions(1, "train"), 32)
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)


def launch(name: str, seed: int, steps: int, zoo: Path) -> dict:
    """`train` in processes of its own."""
    _, workers, zero3 = RUNS[name]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "run.json")
        command = [sys.executable]
        if workers > 1 or zero3:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        command += [__file__, "--only", name, "--seed", str(seed), "--steps", str(steps), "--zoo", str(zoo), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-3000:]}")
        return json.loads(out.read_text())


def table(runs: dict[str, list[dict]], steps: int) -> str:
    """The ratios, the profile and the results as Markdown."""
    half = steps // 2
    windows = {f"steps 2–{half}": slice(1, half), f"steps {half + 1}–{steps}": slice(half, steps), "all": slice(1, steps)}
    seconds = {
        name: {window: [median(run["steps"][part]) for run in found] for window, part in windows.items()}
        for name, found in runs.items()
    }
    lines = [
        "### Ratio of the median seconds of a step",
        "",
        "| | " + " | ".join(windows) + " | whole run | processor seconds |",
    ]
    lines += ["|---" * (len(windows) + 3) + "|"]
    for claim, (slow, fast) in RATIOS.items():
        cells = [_spread([a / b for a, b in zip(seconds[slow][w], seconds[fast][w], strict=True)]) for w in windows]
        for clock in ("steps", "cpu"):
            pairs = zip(runs[slow], runs[fast], strict=True)
            cells.append(_spread([sum(a[clock][1:]) / sum(b[clock][1:]) for a, b in pairs]))
        lines.append(f"| {claim}: {slow} ÷ {fast} | " + " | ".join(cells) + " |")
    lines += ["", "### Milliseconds of a step (means over the run), by section", ""]
    lines += ["| | median step | " + " | ".join(SECTIONS) + " |", "|---" * (len(SECTIONS) + 2) + "|"]
    for name, found in runs.items():
        cells = [f"{median(median(run['steps'][1:]) for run in found) * 1e3:.0f}"]
        for section in SECTIONS:
            cells.append(f"{median(sum(run['sections'][section][1:]) / (steps - 1) for run in found) * 1e3:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "### What is learned",
        "",
        "| | mean reward, first 5 steps | last 10 steps | greedy accuracy after |",
        "|---|---|---|---|",
    ]
    for name, found in runs.items():
        first, last = ([sum(run["rewards"][p]) / len(run["rewards"][p]) for run in found] for p in (slice(5), slice(-10, None)))
        scores = [run["accuracy"] for run in found if "accuracy" in run]
        lines.append(f"| {name} | {_spread(first)} | {_spread(last)} | {_spread(scores) if scores else ''} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="every run so often, each time with another seed")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--only", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        found = train(*RUNS[arguments.only], arguments.seed, arguments.steps, arguments.zoo)
        if int(os.environ.get("RANK", 0)) == 0:
            arguments.out.write_text(json.dumps(found))
        with suppress(ValueError):
            torch.distributed.destroy_process_group()
        return
    alone()
    Zoo(arguments.zoo, SEED).sft("planet")
    runs = defaultdict(list)
    for seed in range(arguments.rounds):
        for name in RUNS:
            runs[name].append(launch(name, seed, arguments.steps, arguments.zoo))
            print(f"{name}, seed {seed}: {median(runs[name][-1]['steps'][1:]):.3f} s a step", flush=True)
    text = table(runs, arguments.steps)
    machine = f"{time.strftime('%Y-%m-%d')}; {platform.machine()}, {os.cpu_count()} cores, one thread a worker"
    note = f"Median (min–max) of {arguments.rounds} rounds of {arguments.steps} steps; step 1 left out. {machine}."
    (RESULTS / "rl_speed.md").write_text(f"{text}\n\n{note}\n")
    (RESULTS / "rl_speed.json").write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
