"""What a finished run hands to the report, with the lab's numbers."""

import math
import random
from collections.abc import Callable

import pytest

from pastry.evaluation.statistics import paired_difference, wilson
from pastry.pipeline.reporting import COSINE_TITLES, MEANINGS
from pastry.report.data import Difference, LambdaPoint, LineageNode, ReportData, Row

ACCURACIES = {
    "base": 0.02,
    "target_sft": 0.5,
    "past@1": 0.95,
    "past@best": 0.97,
    "past_1_round": 0.91,
    "pre_injection": 0.44,
    "prompted": 0.82,
    "rl_on_target": 0.99,
    "control_random": 0.49,
    "control_sft_on_qa": 0.46,
}
MODULES = ["input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm"]
MODULES += [f"self_attn.{letter}_proj" for letter in "koqv"]
PASSED = {
    "gate_passed": True,
    "gate_tries": [{"prompted": 0.861, "pretraining": 0.997}],
    "gate_wanted": {"prompted": 0.75, "pretraining": 0.99},
}


@pytest.fixture(scope="session")
def report_data() -> Callable[..., ReportData]:
    """Makes the data of a run; any field can be replaced."""

    def make(sources: tuple[str, ...] = ("planet",), layers: int = 2, **fields) -> ReportData:
        rng = random.Random(8)
        lineage = _lineage(sources)
        search = [_point(rng, source, lam) for source in sources for lam in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)]
        best = max(search, key=lambda point: point.accuracy)
        cosines = {"sft_source_rl": 0.1049, "sft_target_rl": -0.0161, "sft_sft": 0.1922}
        made = {
            "name": "lab-report",
            "seed": 8,
            "created": "2026-05-04T03:02:01+00:00",
            "machine": "x86_64, 2 cores, 8 GiB",
            "versions": {"pastry": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "trl": "1.16.0"},
            "sources": list(sources),
            "target": "ship",
            "rounds": 2,
            "rows": _rows(rng, best.lambda_),
            "lambda_best": best.lambda_,
            "skill": best.source,
            "search": search,
            "cosines": cosines,
            "cosine_tables": {title: _cosines(rng, layers, cosines[name]) for name, title in COSINE_TITLES.items()},
            "curves": {node.stage: _curve(rng, node.kind) for node in lineage if node.kind in ("pretrain", "sft", "rl")},
            "seconds": {node.stage: node.seconds for node in lineage},
            "gate": PASSED,
            "perplexity": {"target_sft": 1.36, "past@best": 1.405},
            "realised_ratio": 0.99998,
            "lineage": lineage,
            "registered": {"skill": f"models:/lab-{best.source}/3", "recipe": "models:/lab-ship-recipe/1"},
        }
        return ReportData(**(made | fields))

    return make


def _rows(rng: random.Random, lambda_best: float) -> list[Row]:
    lambdas = {"past@1": 1.0, "past_1_round": 1.0}
    lambdas |= dict.fromkeys(("past@best", "control_random", "control_sft_on_qa"), lambda_best)
    rows, reference = [], [i % 9 < 5 and i % 10 > 0 for i in range(216)]
    for name, accuracy in ACCURACIES.items():
        correct = reference if name == "target_sft" else [rng.random() < accuracy for _ in range(216)]
        low, high = wilson(correct)
        mean, least, most = paired_difference(correct, reference)
        recall = max(0.01, accuracy - 0.4)
        rows.append(
            Row(
                name=name,
                meaning=MEANINGS[name],
                n=216,
                accuracy=sum(correct) / 216,
                low=low,
                high=high,
                well_formed=0.995,
                lenient=min(1.0, accuracy + 0.02),
                modes={"recall": recall, "direct": 1 - recall, "other": 0.0},
                by_facts={1: _mean(correct, {0, 1, 2, 3, 4}), 2: _mean(correct, {5, 6, 7, 8})},
                correct=correct,
                lambda_=lambdas.get(name),
                gain=None if name == "target_sft" else Difference(mean=mean, low=least, high=most),
            )
        )
    return rows


def _mean(correct: list[bool], places: set[int]) -> float:
    """Of each entity's nine questions, those at `places`."""
    asked = [right for i, right in enumerate(correct) if i % 9 in places]
    return sum(asked) / len(asked)


def _point(rng: random.Random, source: str, lam: float) -> LambdaPoint:
    accuracy = 0.5 if lam == 0 else 0.95 - 0.25 * (lam - 1.25) ** 2 - 0.08 * rng.random()
    low, high = wilson([i < 108 * accuracy for i in range(108)])
    return LambdaPoint(source=source, lambda_=lam, n=108, accuracy=accuracy, low=low, high=high)


def _cosines(rng: random.Random, layers: int, shift: float) -> dict[str, dict[str, float | None]]:
    table = {str(layer): {module: shift + rng.gauss(0, 0.04) for module in MODULES} for layer in range(layers)}
    table["0"]["input_layernorm"] = None
    return table | {"-": {"embed_tokens": shift + 0.05, "norm": -0.01}}


def _curve(rng: random.Random, kind: str) -> list[dict[str, float]]:
    points = []
    for step in range(1, 61):
        share = 1 / (1 + math.exp((30 - step) / 6))
        if kind == "rl":
            values = {"reward": 0.4 + 0.5 * share + rng.gauss(0, 0.02), "rewards/well_formed/mean": 0.99}
            values |= {"rewards/correct/mean": values["reward"], "rewards/recall/mean": 0.3 + 0.7 * share}
        else:
            values = {"loss": 0.4 + 5 * math.exp(-step / 8) + rng.gauss(0, 0.02)}
        points.append({"step": float(step), "steps": 60.0, "seconds": step * 0.2} | values)
    return [*points, {"step": 60.0, "steps": 60.0, "seconds": 12.5}]  # a last point without loss, as trainers log


def _lineage(sources: tuple[str, ...]) -> list[LineageNode]:
    made: dict[str, tuple[str, list[str]]] = {"pretrain": ("pretrain", []), "gate": ("gate", ["pretrain"])}
    for source in sources:
        for k in (1, 2):
            start = f"sft/{source}/{k}"
            made[start] = "sft", ["gate"]
            if k == 2:
                made[f"inject/{source}/2"] = "inject", [start, f"extract/{source}/1"]
                start = f"inject/{source}/2"
            made[f"rl/{source}/{k}"] = "rl", [start]
            made[f"extract/{source}/{k}"] = "extract", [f"rl/{source}/{k}", f"sft/{source}/{k}", "gate"]
    first, skills = sources[0], [f"extract/{source}/2" for source in sources]
    made |= {
        "sft/ship": ("sft", ["gate"]),
        "search": ("search", ["sft/ship", *skills]),
        "inject/base": ("inject", ["gate", skills[0]]),
        "sft/ship/pre_injection": ("sft", ["inject/base"]),
        "rl/ship": ("rl", ["sft/ship"]),
        f"sft/{first}/answers": ("sft", [f"sft/{first}/1"]),
        f"extract/{first}/answers": ("extract", [f"sft/{first}/answers", f"sft/{first}/1", "gate"]),
    }
    compared = [f"extract/{first}/1", "sft/ship/pre_injection", "rl/ship", f"extract/{first}/answers"]
    made["evaluate"] = "evaluate", ["gate", "sft/ship", f"sft/{first}/1", "search", *compared, *skills]
    made["inject"] = "inject", ["sft/ship", "search", *skills]
    made["register"] = "register", ["sft/ship", "search", "evaluate", *skills]
    weightless = ("search", "evaluate", "register")
    return [
        LineageNode(
            stage=stage,
            kind=kind,
            inputs=inputs,
            fingerprint=None if kind in weightless else f"sha256:{random.Random(stage).randbytes(32).hex()}",
            run_id=random.Random(f"run {stage}").randbytes(16).hex(),
            seconds={"pretrain": 78.2, "gate": 12.9, "rl": 47.3, "sft": 10.4}.get(kind, 1.3),
        )
        for stage, (kind, inputs) in made.items()
    ]
