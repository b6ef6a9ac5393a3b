"""What cannot work is refused before compute is spent: by a dry run and by a start alike.

`check_settings` looks at the settings and the domain's files, `check_resources` at the model and at the machines. Each
names the key, what was found, what is wanted and what helps, and all that is wrong at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pastry.config import PastConfig, RLSettings, TextSettings, TrainingSettings
from pastry.domains import load_domain
from pastry.domains.retention import retention_questions
from pastry.errors import PastryError
from pastry.evaluation.signals import SIGNALS
from pastry.pipeline.forecast import Forecast
from pastry.pipeline.memory import VLLM_SHARE
from pastry.pipeline.space import Space, candidates, own_vectors
from pastry.pipeline.stage import Stage
from pastry.vectors.checkpoint import Checkpoint


def training_settings(config: PastConfig) -> dict[str, TextSettings | RLSettings]:
    """Key → every group of settings that is trained by."""
    groups = {
        "pretrain": config.pretrain,
        "midtrain": config.midtrain,
        "sft": config.sft,
        "sft.second": config.sft.second,
        "rl": config.rl,
    }
    return {key: train for key, train in groups.items() if train}


def shared_batches(config: PastConfig) -> dict[str, int]:
    """Key → what every step's workers share out equally; a question's completions stay together on one of them."""
    return dict(_shared(key, train) for key, train in training_settings(config).items())


def check_settings(config: PastConfig, workers: int) -> None:
    """Raise PastryError for settings that contradict each other, a base that is no checkpoint, and missing questions."""
    _refuse(
        problem
        for key, train in training_settings(config).items()
        for check in (_batch, _micro_batch, _precision, _adapter, _rollouts)
        for problem in check(key, train, config, workers)
    )
    if config.base and (Path(config.base).is_absolute() or config.base.startswith(".")):
        Checkpoint(Path(config.base))  # a path, not a name: it must be there, and be a checkpoint
    for name in [*config.sources, config.target]:
        domain = load_domain(name, config.domain, config.seed)
        for part in range(1, (config.rounds if name in config.sources else 1) + 1):
            for split in ("validation", "test") if name == config.target else ("train",):
                if not domain.questions(part, split):
                    raise PastryError(f"domain '{name}', part {part}: no {split} questions{_about(name, split, config)}")
    _refuse(_search(config))
    if config.matrix:
        _refuse(_matrix(config))


def _about(name: str, split: str, config: PastConfig) -> str:
    if config.domain.kind != "files":
        return ""
    way_out = "ask about others too" + (", or change domain.validation_share" if split != "train" else "")
    return f": {config.domain.subjects[name].questions} asks about none of the documents that fall to them; {way_out}"


def check_resources(forecast: Forecast, stages: list[Stage], starting: bool) -> list[str]:
    """Raise PastryError for what the model, the texts, the machines, the disk or RL's judge cannot do.

    Returns what could not be checked and why. `starting`: what a dry run may leave open, such as a GPU that is not here, is
    refused as well.
    """
    notes = [f"memory, disk and lengths: {forecast.model.unknown}"] if forecast.model.unknown else []
    place = forecast.place
    if place is None:
        notes.append("GPUs, their memory and software, free disk: there is no GPU here, and RAY_ADDRESS names no cluster")
    elif place.machine is None:
        notes.append(f"a worker's memory and software: no worker of {place.name} is free or started yet")
    if starting and place is None:
        raise PastryError("resources.use_gpu is true, but there is no GPU here; set RAY_ADDRESS to a cluster that has some")
    problems = [*_room(forecast), *_disk(forecast)]
    for stage in stages:
        if stage.name in forecast.stages and isinstance(stage.settings.get("train"), TrainingSettings):
            problems += [*_lengths(stage, forecast), *_amount(stage, forecast), *_memory(stage, forecast)]
    for key, train in training_settings(forecast.config).items():
        problems += _software(key, train, forecast)
    _refuse(dict.fromkeys(problems))
    judge = forecast.config.rl.rewards.judge
    if judge and any(stage.kind == "rl" for stage in stages):
        if starting:
            from pastry.training.judge import check_judge  # the client takes a second to import

            check_judge(judge)
        else:
            notes.append(f"rl.rewards.judge: {judge.url} was not asked")
    return notes


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise PastryError("\n       ".join(found))


def _shared(key: str, train: TextSettings | RLSettings) -> tuple[str, int]:
    if isinstance(train, RLSettings):
        return f"{key}.questions_per_step", train.questions_per_step
    return f"{key}.batch_rows", train.batch_rows


def _search(config: PastConfig) -> Iterator[str]:
    wanted = config.search
    Space(tuple(candidates(own_vectors(config), [], wanted)), wanted).check()
    if wanted.penalties.retention and not retention_questions(config.domain, config.seed, wanted.retention_file):
        yield (
            f"search.penalties.retention = {wanted.penalties.retention:g}, but a domain of kind {config.domain.kind} has no "
            "questions about what the base knew: set search.retention_file"
        )


def _matrix(config: PastConfig) -> Iterator[str]:
    for name in config.matrix.signals:
        if name not in SIGNALS:
            yield f"matrix.signals: no signal '{name}'; there are: {', '.join(SIGNALS)}"
    for name in config.matrix.targets:
        if not load_domain(name, config.domain, config.seed).questions(1, "test"):
            yield f"matrix.targets: domain '{name}', part 1: no test questions{_about(name, 'test', config)}"


def _batch(key: str, train: TextSettings | RLSettings, config: PastConfig, workers: int) -> Iterator[str]:
    name, size = _shared(key, train)
    if size % workers:
        yield f"{name} = {size} cannot be shared by {workers} workers: change it, or resources.workers"


def _micro_batch(key: str, train: TextSettings | RLSettings, config: PastConfig, workers: int) -> Iterator[str]:
    if isinstance(train, RLSettings):
        name, micro, own = "micro_completions", train.micro_completions, train.questions_per_step * train.group_size // workers
    else:
        name, micro, own = "micro_rows", train.micro_rows, train.batch_rows // workers
    if micro and own and own % micro:
        fits = max(n for n in range(1, min(micro, own) + 1) if own % n == 0)
        yield f"{key}.{name} = {micro} does not divide the {own} that each of {workers} workers has in a step: set it to {fits}"


def _precision(key: str, train: TextSettings | RLSettings, config: PastConfig, workers: int) -> Iterator[str]:
    if train.precision == "fp16" and not config.resources.use_gpu:
        yield f"{key}.precision = fp16 needs GPUs (resources.use_gpu: true); without them use bf16 or fp32"


def _adapter(key: str, train: TextSettings | RLSettings, config: PastConfig, workers: int) -> Iterator[str]:
    if key == "pretrain" and train.lora:
        yield "pretrain.lora is set, but a model made from scratch has no weights to keep: remove it"


def _rollouts(key: str, train: TextSettings | RLSettings, config: PastConfig, workers: int) -> Iterator[str]:
    if isinstance(train, RLSettings) and train.rollouts == "vllm_colocate" and not config.resources.use_gpu:
        yield f"{key}.rollouts = vllm_colocate needs GPUs (resources.use_gpu: true); without them use transformers"


def _lengths(stage: Stage, forecast: Forecast) -> Iterator[str]:
    train, size = stage.settings["train"], forecast.model.size
    if size is None or size.positions is None:
        return
    if isinstance(train, RLSettings):
        found = forecast.stages[stage.name].prompt + train.max_new_tokens
        what = f"{stage.kind}.max_new_tokens = {train.max_new_tokens} after a prompt of {found - train.max_new_tokens}"
    else:
        found, what = train.row_tokens, f"{stage.kind}.row_tokens = {train.row_tokens}"
    if found > size.positions:
        yield f"{what} is longer than the {size.positions} tokens the model was made for: lower it"


def _amount(stage: Stage, forecast: Forecast) -> Iterator[str]:
    train, work = stage.settings["train"], forecast.stages[stage.name].work
    if work is None or isinstance(train, RLSettings) or train.steps:
        return
    # A step that is not full is left out. An estimate may be out by half.
    if work.tokens * (2 if work.known else 1) < train.batch_rows * train.row_tokens:
        yield (
            f"{stage.name}: the texts of {train.epochs} epochs are {work}, less than one step of batch_rows × row_tokens = "
            f"{train.batch_rows} × {train.row_tokens}: lower one of them, give more text, or set steps instead of epochs"
        )


def _room(forecast: Forecast) -> Iterator[str]:
    place = forecast.place
    if place and forecast.workers > place.workers:
        each = "GPU" if forecast.config.resources.use_gpu else f"{forecast.config.resources.cpus_per_worker} CPU"
        yield f"resources.workers = {forecast.workers}, but {place.name} has room for {place.workers} with {each} each"


def _memory(stage: Stage, forecast: Forecast) -> Iterator[str]:
    memory, place, train = forecast.stages[stage.name].memory, forecast.place, stage.settings["train"]
    if memory is None or place is None or place.machine is None:
        return
    machine, resources = place.machine, forecast.config.resources
    if resources.use_gpu:
        beside = VLLM_SHARE if isinstance(train, RLSettings) and train.rollouts == "vllm_colocate" else 0
        given, what = int(machine.memory * (1 - beside)), f"a GPU ({machine.gpu}) has"
    else:
        # As many as there are CPUs for share a machine.
        sharing = max(1, min(forecast.workers, machine.cpus // resources.cpus_per_worker))
        given, what = machine.memory // sharing, f"each of {sharing} workers of a machine has"
    if memory.total > given:
        yield (
            f"{stage.name}: a worker needs about {memory.total / 1e9:.1f} GB, but {what} {given / 1e9:.1f} GB: a higher ZeRO "
            f"stage (parallelism), smaller micro batches, gradient_checkpointing or lora need less"
        )


def _software(key: str, train: TextSettings | RLSettings, forecast: Forecast) -> Iterator[str]:
    machine = forecast.place and forecast.place.machine
    if not machine:
        return
    where = f"the workers of {forecast.place.name}"
    if train.parallelism.endswith("offload") and not machine.compiler:
        yield f"{key}.parallelism = {train.parallelism} builds DeepSpeed's CPU optimizer, which needs g++ and ninja on {where}"
    if isinstance(train, RLSettings) and train.rollouts.startswith("vllm") and not machine.vllm:
        yield f"{key}.rollouts = {train.rollouts} needs vLLM on {where}: pip install 'pastry[gpu]', or use transformers"
    if train.precision == "bf16" and not machine.bf16:
        yield f"{key}.precision = bf16, but {machine.gpu} on {where} has no bfloat16: use fp16 or fp32"


def _disk(forecast: Forecast) -> Iterator[str]:
    # Without a place to run this is not the machine whose disk counts.
    if forecast.place and forecast.needed is not None and forecast.needed > forecast.free:
        yield (
            f"storage = {forecast.config.storage}: the run writes up to {forecast.needed / 1e9:.1f} GB, "
            f"{forecast.free / 1e9:.1f} GB are free: clear some, or lower checkpoints.keep"
        )
