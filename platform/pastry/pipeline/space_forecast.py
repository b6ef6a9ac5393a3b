"""What a search will take, before anything is spent."""

from __future__ import annotations

from typing import Any

from pastry.domains import load_domain
from pastry.domains.retention import retention_questions
from pastry.pipeline.model_size import run_model
from pastry.pipeline.runner import Run
from pastry.pipeline.space import LINEAR, Space, candidates, lambdas, own_vectors
from pastry.pipeline.storage import storage
from pastry.registry.tracking import tracking_uri
from pastry.vectors.files import read_json


def space_forecast(run: Run) -> dict[str, Any]:
    """Vectors, trials, questions, answers, bytes that a worker holds; seconds where an earlier search of this run was timed.

    Asks the registry, if the search will. Raises PastryError for what cannot work.
    """
    config, wanted = run.config, run.config.search
    registered: list[str] = []
    if wanted.registry:
        from pastry.pipeline.selection import selected

        registered = list(selected(wanted.registry, tracking_uri(config.tracking, storage(config))))
    found = candidates(own_vectors(config), registered, wanted)
    space = Space(tuple(found), wanted)
    space.check()
    domain = load_domain(config.target, config.domain, config.seed)
    kept = retention_questions(config.domain, config.seed, wanted.retention_file)[: wanted.retention_questions]
    validation, test = (len(domain.questions(1, split)) for split in ("validation", "test"))
    answers = (space.trials + 1) * (validation + len(kept)) + test
    concurrency = next(stage for stage in run.stages if stage.name == "search").settings["concurrency"]
    pace, model = _seconds_per_answer(run), run_model(config, storage(config)).size
    held = len({name for each in found for name in (each.of if each.method == LINEAR else (each.name,))})
    return {
        "method": space.method,
        "vectors": [each.name for each in found if each.method == "single"],
        "combinations": [each.name for each in found if each.method != "single"],
        "lambdas": lambdas(wanted),
        "trials": space.trials,
        "concurrency": concurrency,
        "subsets": space.subsets(validation),
        "retention_questions": len(kept),
        "documents": min(wanted.perplexity_documents, len(domain.documents(1))),
        "answers": answers,
        "tokens": answers * config.generation.max_new_tokens,
        # Weights, θ_target and every vector in float32.
        "memory": model and 4 * model.parameters * (2 + held),
        "seconds": pace and pace * answers / concurrency,
    }


def _seconds_per_answer(run: Run) -> float | None:
    timed = (run.directory / "stages").glob("search-*/search.json")
    trials = [trial for file in timed for trial in read_json(file)["trials"]]
    answers = sum(trial["n"] + (trial["retention"]["n"] if trial["retention"] else 0) for trial in trials)
    return sum(trial["seconds"] for trial in trials) / answers if answers else None
