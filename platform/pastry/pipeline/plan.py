"""A PaST run as a list of stages: the paper's algorithm, top to bottom (PaST, arXiv 2601.11258)."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from pastry.config import PastConfig
from pastry.domains import load_corpus, load_domain
from pastry.domains.base import PretrainingCorpus
from pastry.domains.retention import retention_questions
from pastry.errors import PastryError
from pastry.pipeline.space import own_vectors
from pastry.pipeline.stage import Stage
from pastry.pipeline.storage import storage
from pastry.registry.resolve import REGISTERED, registered


def plan(config: PastConfig, workers: int) -> list[Stage]:
    """Every stage of a run, each after its inputs. `workers`: Ray Train workers of a training stage.

    Raises PastryError if the domain's files or kinds of text are not what a stage needs.
    """
    stages: dict[str, Stage] = {}

    def add(name: str, kind: str, settings: dict | None = None, **inputs: str) -> str:
        stages[name] = Stage(name, kind, settings or {}, inputs)
        return name

    def training(name: str, **settings) -> dict:
        own = int.from_bytes(hashlib.sha256(f"{config.seed}/{name}".encode()).digest()[:4]) >> 1
        shared = {"domain": config.domain, "world_seed": config.seed, "seed": own, "workers": workers}
        if "subject" in settings:
            shared["data"] = data(settings["subject"], settings["part"], settings.get("texts") == "derived")
        return shared | settings

    def data(subject: str, part: int, derived: bool = False) -> str:
        # What the files hold, not what they are called, makes a stage another one.
        return load_domain(subject, config.domain, config.seed).data_digest(part, derived)

    def sft(name: str, subject: str, part: int, start: str) -> str:
        settings = training(name, train=reading, texts="documents", subject=subject, part=part)
        trained = add(name, "sft", settings, start=start)
        if config.sft.second:
            name = f"{name}/second"
            settings = training(name, train=config.sft.second, texts="derived", subject=subject, part=part)
            trained = add(name, "sft", settings, start=trained)
        return trained

    def rl(name: str, subject: str, part: int, start: str) -> str:
        return add(name, "rl", training(name, train=config.rl, subject=subject, part=part), start=start, base=base)

    corpus = load_corpus(config.domain, config.seed)
    reading = config.sft.model_copy(update={"second": None})
    if config.pretrain:
        if not isinstance(corpus, PretrainingCorpus):
            raise PastryError(f"pretrain: domain.kind '{config.domain.kind}' has no corpus to make a base from; give base")
        settings = training("pretrain", train=config.pretrain)
        base = add("pretrain", "pretrain", settings)
        probe = {"sft": config.sft, "generation": config.generation}
        base = add("gate", "gate", training("gate", train=config.pretrain, **probe), start=base)
    else:
        base = add("base", "base", {"path": config.base, "holds": _holds(config)})
    if config.midtrain:
        mixed = corpus.data_digest(config.midtrain.mixture)
        base = add("midtrain", "midtrain", training("midtrain", train=config.midtrain, data=mixed), start=base)

    # Stage I of the paper: the source. Round k starts RL from its own SFT plus the vector so far, and the new vector
    # is taken from that round's SFT: it contains the old one and replaces it.
    rounds: dict[str, list[str]] = {}
    read: dict[str, str] = {}
    for source in config.sources:
        rounds[source] = []
        for k in range(1, config.rounds + 1):
            at = f"{source}/{k}"
            trained = read[at] = sft(f"sft/{at}", source, k, base)
            start = trained
            if k > 1:
                start = add(f"inject/{at}", "inject", {"lambda": 1.0}, target=trained, skill=rounds[source][-1])
            end = rl(f"rl/{at}", source, k, start)
            facts = {"name": f"{config.domain.kind}-{source}", "subject": source, "part": k, "world_seed": config.seed}
            facts |= {"domain": config.domain, "lambda_advice": 1.0}
            rounds[source].append(add(f"extract/{at}", "extract", facts, end=end, start=trained, base=base))
    first = config.sources[0]
    skills = {source: made[-1] for source, made in rounds.items()}

    # Stage II: the target only reads.
    concurrency = workers if config.search.concurrency == "auto" else config.search.concurrency
    target = sft(f"sft/{config.target}", config.target, 1, base)
    asking = {"domain": config.domain, "world_seed": config.seed, "subject": config.target, "generation": config.generation}
    asking["data"] = data(config.target, 1)
    tried = {name: rounds[source][k - 1] for name, (source, k) in own_vectors(config).items()}
    seed = config.seed if config.search.seed is None else config.search.seed
    sweep = {"search": config.search, "concurrency": concurrency, "seed": seed}
    if config.search.retention_file:
        sweep["retention"] = [asdict(q) for q in retention_questions(config.domain, config.seed, config.search.retention_file)]
    search = add("search", "search", asking | sweep, target=target, **_roles("skill", tried))
    if config.ablation:
        add("ablation", "ablation", asking | {"ablation": config.ablation}, target=target, search=search)

    # Which source for which target? Predicted from what has only read (no RL stage is an input of `signals`), then measured.
    if config.matrix:
        has_read = {source: read[f"{source}/1"] for source in config.sources} | {config.target: target}
        for name in config.matrix.targets:
            has_read[name] = has_read.get(name) or sft(f"sft/{name}", name, 1, base)
        domains = {"domain": config.domain, "world_seed": config.seed, "data": {name: data(name, 1) for name in has_read}}
        targets = _roles("target", {name: has_read[name] for name in config.matrix.targets})
        sampling = config.rl.model_dump(include={"temperature", "top_p", "max_new_tokens"})
        sampling |= config.matrix.model_dump(include={"samples", "k"}) | {"batch": config.generation.batch, "seed": config.seed}
        predicting = domains | {"signals": config.matrix.signals, "sampling": sampling}
        candidates = _roles("source", {source: has_read[source] for source in config.sources})
        predicted = add("signals", "signals", predicting, base=base, **candidates, **targets)
        measuring = domains | {"lambda": config.matrix.lambda_, "generation": config.generation}
        add("matrix", "matrix", measuring, signals=predicted, **targets, **_roles("skill", skills))

    compared: dict[str, str] = {}
    if "past_1_round" in config.compare:
        compared["one_round"] = rounds[first][0]
    if "pre_injection" in config.compare:
        injected = add("inject/base", "inject", {"lambda": 1.0}, target=base, skill=skills[first])
        compared["pre_injection"] = sft(f"sft/{config.target}/pre_injection", config.target, 1, injected)
    if "rl_on_target" in config.compare:
        compared["rl_on_target"] = rl(f"rl/{config.target}", config.target, 1, target)
    if "control_sft_on_qa" in config.compare:
        start, name = read[f"{first}/1"], f"sft/{first}/answers"
        steps = reading.model_copy(update={"steps": config.control_sft_steps, "epochs": None})
        answers = training(name, train=steps, texts="answers", subject=first, part=1)
        add(name, "sft", answers, start=start)
        facts = {"name": "control-sft-on-qa", "subject": first, "part": 1, "world_seed": config.seed}
        facts |= {"domain": config.domain, "lambda_advice": None}
        compared["sft_on_qa"] = add(f"extract/{first}/answers", "extract", facts, end=name, start=start, base=base)

    evaluated = add(
        "evaluate",
        "evaluate",
        asking | {"compare": list(config.compare), "seed": config.seed},
        base=base,
        target=target,
        source=read[f"{first}/1"],
        search=search,
        **compared,
        **_roles("skill", skills),
    )
    final = add("inject", "inject", {"lambda": "search"}, target=target, search=search, **_roles("skill", skills))
    registered = add(
        "register",
        "register",
        {"subject": config.target, "kind": config.domain.kind},
        target=target,
        search=search,
        evaluate=evaluated,
        **_roles("skill", skills),
    )
    add("report", "report", {}, registered=registered, injected=final, **{f"stage:{name}": name for name in stages})
    return list(stages.values())


def _holds(config: PastConfig) -> str | list[tuple[str, int, int]]:
    """What a base is now: the fingerprint that a registry's alias names, or name, size and time of a local checkpoint's files,
    for reading gigabytes at every start would cost too much."""
    if config.base.startswith(REGISTERED):
        from pastry.registry.tracking import tracking_uri  # MLflow takes seconds to import

        return registered(config.base, tracking_uri(config.tracking, storage(config))).fingerprint
    files = sorted(Path(config.base).glob("*.safetensors")) if Path(config.base).is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _roles(prefix: str, stages: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}:{key}": name for key, name in stages.items()}
