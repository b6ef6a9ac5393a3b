"""The lab's models for the studies in this folder, made in one process without Ray and kept on disk by seed.

    .venv/bin/python benchmarks/lab_models.py --seeds 21 22 23 24 25

Settings are those of jobs/quickstart.yaml with one part: a source is asked all its 216 questions. Text training is TRL's, as
in the pipeline; reinforcement learning is a lean loop with the pipeline's settings (GRPO, token-level loss), about four times
as fast as TRL's trainer at this size. One directory a model: what is there is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, set_seed

from pastry.config import load_config
from pastry.domains import load_corpus, load_domain
from pastry.domains.lab.world import SUBJECTS
from pastry.training.data import packed_epochs
from pastry.training.trl_adapter import grpo_trainer, language_model_trainer

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "runs" / "lab-zoo"
BITS = range(1, 8)
State = dict[str, torch.Tensor]


def rounded(state: State, bits: int, seed: int | None = None) -> State:
    """Float32 tensors with so many explicit mantissa bits (bf16: 7): to nearest even, or stochastically with a seed."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return {name: _round(tensor, 23 - bits, generator) for name, tensor in state.items()}


def _round(tensor: torch.Tensor, drop: int, generator: torch.Generator | None) -> torch.Tensor:
    whole = tensor.contiguous().view(torch.int32)
    if generator is None:
        carry = (1 << (drop - 1)) - 1 + ((whole >> drop) & 1)
    else:
        carry = torch.randint(1 << drop, tensor.shape, generator=generator, dtype=torch.int32)
    return ((whole + carry) & -(1 << drop)).view(torch.float32)


class LabModel:
    """A model in memory whose weights are replaced at will; generates without padding, prompts of a length together."""

    def __init__(self, directory: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.eos = self.tokenizer.eos_token_id

    def load(self, state: State) -> LabModel:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[name])
        return self

    @torch.no_grad()
    def generate(self, prompts: list[str], new_tokens: int, temperature: float = 0.0) -> list[tuple[list[int], list[int]]]:
        """(prompt ids, new ids) of each prompt, in order; the end-of-sequence token is kept."""
        ids = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        done: list = [None] * len(ids)
        for length in sorted(set(map(len, ids))):
            which = [index for index, row in enumerate(ids) if len(row) == length]
            for index, new in zip(which, self._continue([ids[i] for i in which], new_tokens, temperature), strict=True):
                done[index] = (ids[index], new)
        return done

    def _continue(self, prompts: list[list[int]], new_tokens: int, temperature: float) -> list[list[int]]:
        alive, cache, tokens = torch.arange(len(prompts)), DynamicCache(), torch.tensor(prompts)
        rows: list[list[int]] = [[] for _ in prompts]
        for _ in range(new_tokens):
            logits = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            new = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0] if temperature else logits.argmax(-1)
            for row, token in zip(alive.tolist(), new.tolist(), strict=True):
                rows[row].append(token)
            going = new != self.eos
            if not going.all():
                cache.batch_select_indices(going.nonzero()[:, 0])
                alive, new = alive[going], new[going]
            if not len(alive):
                break
            tokens = new[:, None]
        return rows

    def verdicts(self, domain, questions, new_tokens: int, prompted: bool = False) -> list:
        """Greedy answers, verified."""
        asked = [domain.prompted(q) if prompted else (q.prompt, "") for q in questions]
        answers = self.generate([prompt for prompt, _ in asked], new_tokens)
        return [
            domain.verify(q, prefix + self.tokenizer.decode(new, skip_special_tokens=True), new[-1] == self.eos)
            for q, (_, prefix), (_, new) in zip(questions, asked, answers, strict=True)
        ]

    @torch.no_grad()
    def perplexity(self, texts: list[str]) -> float:
        """exp of the mean negative log-likelihood per token; the first token of each text is given."""
        total = tokens = 0.0
        for text in texts:
            ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
            total += float(self.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        return float(torch.tensor(total / tokens).exp())


class Zoo:
    """The models of one seed."""

    def __init__(self, directory: Path, seed: int):
        self.directory, self.seed = directory / str(seed), seed
        overrides = [f"seed={seed}", "domain.parts=1", "rounds=1", "compare=[prompted]"]
        self.config = load_config(ROOT / "jobs" / "quickstart.yaml", overrides)

    def domain(self, subject: str):
        return load_domain(subject, self.config.domain, self.seed)

    def base(self) -> Path:
        """Pre-trained until it passes the pipeline's gate, at most so often."""
        out = self.directory / "base"
        if out.exists():
            return out
        gate, tries, start = self.config.pretrain.gate, [], None
        for extension in range(gate.extensions + 1):
            steps = gate.extra_steps if extension else self.config.pretrain.steps
            current = self._text("pretraining", "pretrain", start, f"base-{extension}", steps, extension)
            probe = self._text(gate.probe, f"sft/{gate.probe}/probe", current, f"probe-{extension}", self.config.sft.steps)
            domain = self.domain(gate.probe)
            asked = self.corpus.pretraining_questions()[::4]
            new = self.config.generation.max_new_tokens
            found = {
                "prompted": _share(LabModel(probe).verdicts(domain, domain.questions(1), new, prompted=True)),
                "pretraining": _share(LabModel(current).verdicts(domain, asked, new)),
            }
            tries.append(found)
            passed = found["prompted"] >= gate.prompted_accuracy and found["pretraining"] >= gate.pretraining_accuracy
            if passed:
                break
            start = current
        (current / "lab.json").write_text(json.dumps({"passed": passed, "tries": tries}))
        shutil.copytree(current, out.with_name("base.new"))
        out.with_name("base.new").rename(out)
        return out

    def sft(self, subject: str) -> Path:
        """The base after reading a domain's documents."""
        return self._text(subject, f"sft/{subject}", self.base(), f"sft-{subject}", self.config.sft.steps)

    @cached_property
    def corpus(self):
        return load_corpus(self.config.domain, self.seed)

    def _seed(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:4]) >> 1

    def _text(self, subject: str, label: str, start: Path | None, name: str, steps: int, extension: int = 0) -> Path:
        out, seed = self.directory / name, self._seed(label) + extension
        if out.exists():
            return out
        began = time.monotonic()
        pretraining = subject == "pretraining"
        settings = (self.config.pretrain if pretraining else self.config.sft).model_copy(update={"steps": steps})
        with tempfile.TemporaryDirectory() as scratch:
            if start is None:
                self.corpus.save_tokenizer(Path(scratch))
            tokenizer = AutoTokenizer.from_pretrained(start or scratch)
            model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32) if start else self._new(tokenizer, seed)
            epoch = self.corpus.pretraining_epoch if pretraining else lambda rng: self.domain(subject).sft_epoch(1, rng)
            length, count = settings.row_tokens, steps * settings.batch_rows
            rows = packed_epochs(epoch, tokenizer, length=length, rows=count, epochs=None, seed=seed)
            make = language_model_trainer
            make(model, tokenizer, rows, settings, workers=1, seed=seed, out=scratch, callbacks=[]).train()
        return _keep(model, tokenizer, out, began)

    def _new(self, tokenizer, seed: int):
        set_seed(seed)
        shape = self.config.pretrain.model
        tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        settings = shape.model_dump(exclude={"model_type"}) | tokens
        config = AutoConfig.for_model(shape.model_type, vocab_size=len(tokenizer), **settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    def rl(self, subject: str, bits: int | None = None, trl: bool = False) -> Path:
        """RL in float32 from the domain's SFT model, or from that model rounded to so many mantissa bits.

        `trl`: by TRL's trainer, as the pipeline does it, and not by the lean loop.
        """
        out = self.directory / (f"rl-{subject}" + (f"-{bits}bits" if bits else "") + ("-trl" if trl else ""))
        if out.exists():
            return out
        start, seed, domain, rewards = self.sft(subject), self._seed(f"rl/{subject}"), self.domain(subject), []
        began, lab = time.monotonic(), LabModel(start)
        if bits:
            lab.load(rounded(load_file(start / "model.safetensors"), bits))
        if trl:
            settings, asked = self.config.rl, domain.questions(1, "train")
            with tempfile.TemporaryDirectory() as scratch:
                made = grpo_trainer(
                    lab.model, lab.tokenizer, domain, asked, settings, workers=1, seed=seed, out=scratch, callbacks=[]
                )
                made.train()
        else:
            rewards = grpo(lab, domain, self.config.rl, seed)
        return _keep(lab.model, lab.tokenizer, out, began, rewards=rewards)


def grpo(lab: LabModel, domain, settings, seed: int) -> list[float]:
    """GRPO with TRL's "dapo" loss (every token of the batch weighs the same), on policy, no KL; returns the mean rewards.

    Groups whose rewards are all equal have no gradient: their samples are not run through the model again.
    """
    torch.manual_seed(seed)
    rng, order, rewards = random.Random(seed), [], []
    questions, model = domain.questions(1, "train"), lab.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    for _ in range(settings.steps):
        if len(order) < settings.questions_per_step:
            order = rng.sample(questions, len(questions))
        asked, order = order[: settings.questions_per_step], order[settings.questions_per_step :]
        asked = [question for question in asked for _ in range(settings.group_size)]
        samples = lab.generate([q.prompt for q in asked], settings.max_new_tokens, settings.temperature)
        texts = [lab.tokenizer.decode(new, skip_special_tokens=True) for _, new in samples]
        verdicts = [domain.verify(q, text, s[1][-1] == lab.eos) for q, text, s in zip(asked, texts, samples, strict=True)]
        reward = torch.tensor([float(verdict.correct) for verdict in verdicts]).view(-1, settings.group_size)
        advantage = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).flatten().tolist()
        rewards.append(float(reward.mean()))
        tokens = sum(len(new) for _, new in samples)
        kept = [(prompt, new, a) for (prompt, new), a in zip(samples, advantage, strict=True) if a]
        kept.sort(key=lambda sample: len(sample[0]) + len(sample[1]))
        optimizer.zero_grad()
        for first in range(0, len(kept), 64):
            (_loss(model, kept[first : first + 64]) / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
    return rewards


def _loss(model, samples: list[tuple[list[int], list[int], float]]) -> torch.Tensor:
    """Sum over the new tokens of −advantage · log-probability; rows are padded on the right, where causality hides it."""
    width = max(len(prompt) + len(new) for prompt, new, _ in samples)
    ids, weights = torch.zeros(len(samples), width, dtype=torch.long), torch.zeros(len(samples), width)
    for row, (prompt, new, advantage) in enumerate(samples):
        ids[row, : len(prompt) + len(new)] = torch.tensor(prompt + new)
        weights[row, len(prompt) : len(prompt) + len(new)] = advantage
    scores = model(input_ids=ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(weights[:, 1:] * scores).sum()


def _share(verdicts: list) -> float:
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)


def _keep(model, tokenizer, out: Path, began: float, **facts) -> Path:
    """Write a model under a temporary name and rename it: a directory that exists is finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(out.name + f".{os.getpid()}")
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    facts["seconds"] = round(time.monotonic() - began, 1)
    (new / "lab.json").write_text(json.dumps(facts))
    new.rename(out)
    print(f"{time.strftime('%H:%M:%S')} {out} {facts['seconds']} s", *map(str, facts.get("rewards", [])[-1:]), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24, 25], help="source planet, for precision_study")
    parser.add_argument("--all-sources", type=int, nargs="*", default=[21, 22, 23, 24, 25], help="seeds of consensus_study")
    parser.add_argument("--trl", type=int, nargs="*", default=[21], help="seeds whose planet RL is also done by TRL's trainer")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # TRL asks for one
    for seed in arguments.seeds:
        zoo = Zoo(arguments.zoo, seed)
        zoo.sft("company")
        for bits in (None, *BITS):
            zoo.rl("planet", bits)
    for seed in arguments.all_sources:
        for subject in SUBJECTS:
            Zoo(arguments.zoo, seed).rl(subject)
    for seed in arguments.trl:
        Zoo(arguments.zoo, seed).rl("planet", trl=True)


if __name__ == "__main__":
    main()
