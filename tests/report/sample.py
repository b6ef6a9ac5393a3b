"""What a finished run hands to the report, with the lab's numbers: as little as there may be, and everything."""

import math
import random

from pastry.evaluation.statistics import paired_difference, wilson
from pastry.pipeline.reporting import COSINE_TITLES, MEANINGS
from pastry.report.data import Deployment, LineageNode, ReportData, Row, Stored
from pastry.report.measured import Ablation, Difference, LambdaPoint, Matrix, Search
from pastry.vectors.inject import InjectedSkill, InjectedTensor, InjectReport

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


def minimal(sources: tuple[str, ...] = ("planet",), target: str = "ship", layers: int = 2, **fields) -> ReportData:
    """A run without the stages that may be left out; any field can be replaced."""
    rng = random.Random(8)
    lineage = _lineage(sources, target)
    points = [_point(rng, source, lam) for source in sources for lam in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)]
    best = max(points, key=lambda point: point.accuracy)
    cosines = {"sft_source_rl": 0.1049, "sft_target_rl": -0.0161, "sft_sft": 0.1922}
    made = {
        "name": "lab-report",
        "seed": 8,
        "created": "2026-05-04T03:02:01+00:00",
        "machine": "x86_64, 2 cores, 8 GiB",
        "versions": {"pastry": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "trl": "1.16.0"},
        "domain": {"kind": "lab"},
        "sources": list(sources),
        "target": target,
        "rounds": 2,
        "rows": rows(rng, best.lambda_),
        "search": Search(points=points, best=best.model_dump()),
        "cosines": cosines,
        "cosine_tables": {title: _cosines(rng, layers, cosines[name]) for name, title in COSINE_TITLES.items()},
        "curves": {node.stage: _curve(rng, node.kind) for node in lineage if node.kind in ("pretrain", "sft", "rl")},
        "seconds": {node.stage: node.seconds for node in lineage},
        "gate": PASSED,
        "perplexity": {"target_sft": 1.36, "past@best": 1.405},
        "injected": injected(rng, best.lambda_, layers, lost=0.0),
        "lineage": lineage,
        "registered": {"skill": f"models:/lab-{best.source}/3", "recipe": "models:/lab-ship-recipe/1"},
    }
    return ReportData(**(made | fields))


def full(**fields) -> ReportData:
    """Three sources and their combinations, all stages, a bfloat16 model, a search that over-fitted, a deployment."""
    rng, sources = random.Random(8), ("planet", "person", "drug")
    search = searched(rng, sources)
    made = {
        "search": search,
        "ablation": ablated(),
        "matrix": crossed(rng, sources, ("planet", "person", "ship", "castle")),
        "injected": injected(rng, search.best.lambda_, 6, lost=0.013),
        "stored": Stored(computed_dtype="float32", stored_dtype="bfloat16", source_dtypes=["float32"]),
        "rows": rows(rng, search.best.lambda_, {"past@1": 0.76, "past@best": 0.76, "past_1_round": 0.7, "prompted": 0.72}),
        "deployments": [Deployment(where="http://127.0.0.1:8000", since="2026-05-05T06:07:08+00:00")],
    }
    return minimal(sources, layers=6, **(made | fields))


def rows(rng: random.Random, lambda_best: float, other: dict[str, float] | None = None) -> list[Row]:
    lambdas = {"past@1": 1.0, "past_1_round": 1.0}
    lambdas |= dict.fromkeys(("past@best", "control_random", "control_sft_on_qa"), lambda_best)
    made, reference = [], [i % 9 < 5 and i % 10 > 0 for i in range(216)]
    for name, accuracy in (ACCURACIES | (other or {})).items():
        correct = reference if name == "target_sft" else [rng.random() < accuracy for _ in range(216)]
        low, high = wilson(correct)
        mean, least, most = paired_difference(correct, reference)
        recall = max(0.01, accuracy - 0.4)
        made.append(
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
    return made


def _mean(correct: list[bool], places: set[int]) -> float:
    """Of each entity's nine questions, those at `places`."""
    asked = [right for i, right in enumerate(correct) if i % 9 in places]
    return sum(asked) / len(asked)


def _point(rng: random.Random, source: str, lam: float) -> LambdaPoint:
    accuracy = 0.5 if lam == 0 else 0.95 - 0.25 * (lam - 1.25) ** 2 - 0.08 * rng.random()
    low, high = wilson([i < 108 * accuracy for i in range(108)])
    return LambdaPoint(source=source, lambda_=lam, n=108, accuracy=accuracy, low=low, high=high)


def searched(rng: random.Random, sources: tuple[str, ...]) -> Search:
    """Every source and two combinations at every λ, with what injection costs; the winner had luck."""
    combinations = {f"{method}({','.join(sources)})": sources for method in ("consensus", "ties")}
    points, trials = [], []
    for i, (source, of) in enumerate(({source: (source,) for source in sources} | combinations).items()):
        for lam in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0):
            peak = 0.93 - 0.08 * i
            accuracy = 0.5 if lam == 0 else max(0.2, peak - 0.2 * (lam - 1.2) ** 2 - 0.05 * rng.random())
            measured = _accuracy(accuracy, 72)
            points.append({"source": source, "lambda": lam} | measured)
            if lam == 0:
                continue
            perplexity, retained = 1.36 + (0.05 - 0.008 * i) * lam**2, _accuracy(0.97 - (0.06 - 0.01 * i) * lam**2, 48)
            trial = {"id": f"{i}-{lam}", "method": source.partition("(")[0] if len(of) > 1 else "single", "round": None}
            trial |= {"perplexity": perplexity, "retention": retained, "objective": accuracy - 0.1 * (perplexity / 1.36 - 1)}
            stopped = lam == 2.0 and i > 2
            trials.append(points[-1] | trial | {"complete": not stopped, "n": 24 if stopped else 72, "of": list(of)})
    for trial in trials:
        trial["pareto"] = trial["complete"] and not any(_beats(other, trial) for other in trials)
    best = max((trial for trial in trials if trial["complete"]), key=lambda trial: trial["objective"])
    reference = _accuracy(0.5, 72) | {"well_formed": 1.0, "perplexity": 1.36, "retention": _accuracy(0.97, 48)}
    confirmation = {"validation": _accuracy(best["accuracy"], 72), "fresh": _accuracy(0.75, 216), "overfit": True}
    confirmation |= {"difference": {"mean": -0.17, "low": -0.26, "high": -0.07}}
    found = {"reference": reference, "trials": trials, "points": points, "best": best, "confirmation": confirmation}
    return Search.model_validate(found)


def _accuracy(share: float, n: int) -> dict[str, float]:
    right = round(share * n)
    low, high = wilson([i < right for i in range(n)])
    return {"n": n, "accuracy": right / n, "low": low, "high": high}


def _beats(one: dict, other: dict) -> bool:
    """Whether a trial is at least as good in everything, and better in something."""
    merits = [(trial["accuracy"], -trial["perplexity"], trial["retention"]["accuracy"]) for trial in (one, other)]
    return one["complete"] and merits[0] != merits[1] and all(a >= b for a, b in zip(*merits, strict=True))


def ablated() -> Ablation:
    """The skill lives in attention."""
    shares = {"attention": 0.31, "mlp": 0.58, "embeddings": 0.1, "norms": 0.01, "early": 0.42, "middle": 0.33, "late": 0.15}
    alone = (0.42, 0.12, 0.01, 0.0, 0.3, 0.15, -0.03)

    def scored(gain: float) -> dict:
        return _accuracy(0.5 + gain, 216) | {"gain": {"mean": gain, "low": gain - 0.07, "high": gain + 0.07}}

    groups = [
        {"group": group, "tensors": 14, "norm_share": share, "only": scored(gain), "without": scored(0.45 - gain)}
        for (group, share), gain in zip(shares.items(), alone, strict=True)
    ]
    return Ablation.model_validate({"lambda": 1.0, "source": "planet", "n": 216, "full": scored(0.45), "groups": groups})


def crossed(rng: random.Random, sources: tuple[str, ...], targets: tuple[str, ...]) -> Matrix:
    """Planet helps everywhere, drug hurts; one signal saw it coming."""
    worth = dict(zip(sources, (0.4, 0.1, -0.12), strict=True))
    gains = {
        source: {
            target: {"n": 216, "before": 0.5, "after": 0.5 + mean, "mean": mean, "low": mean - 0.09, "high": mean + 0.09}
            for target in targets
            for mean in [worth[source] + 0.08 * rng.random() + 0.05 * (source == target)]
        }
        for source in sources
    }
    signals = [
        {
            "name": "headroom",
            "meaning": "pass@8 − pass@1 of the source’s SFT model on its own questions",
            "values": {source: {target: worth[source] + 0.5 for target in targets if target != source} for source in sources},
            "agreement": {"rho": 0.81, "low": 0.35, "high": 0.96, "n": 10, "verdict": "agreed", "reason": "p = 0.02"},
        },
        {
            "name": "documents",
            "meaning": "similarity of the source’s documents to the target’s",
            "values": {sources[0]: {target: rng.random() for target in targets}},
            "agreement": {
                "rho": None,
                "n": 0,
                "verdict": "no signal here",
                "reason": "one source: there is nothing to rank",
            },
        },
    ]
    ranking = [
        {"source": source, "predicted_rank": i, "measured_rank": i, "mean_gain": worth[source] + 0.04}
        for i, source in enumerate(sources, 1)
    ]
    found = {"lambda": 1.0, "sources": sources, "targets": targets, "gains": gains, "signals": signals, "ranking": ranking}
    return Matrix.model_validate(found | {"sources_differ_p": {"ship": 0.0001, "castle": 0.31}})


def injected(rng: random.Random, lam: float, layers: int, lost: float) -> InjectReport:
    """inject.json of a model of which rounding kept 1 − `lost`."""
    dtype, rounding = ("bfloat16", "nearest") if lost else ("float32", "nearest")
    named = [f"model.layers.{layer}.{module}.weight" for layer in range(layers) for module in MODULES]

    def arrived() -> dict[str, float]:
        return {"realised_ratio": 1 - 2 * lost * rng.random() + rng.gauss(0, 1e-5), "relative_error": 0.2 * lost + 1e-7}

    return InjectReport(
        realised_ratio=1 - lost,
        relative_error=0.2 * lost + 1e-7,
        target="runs/lab-report/target",
        target_fingerprint="blake3:23a50c55d45b8cf6",
        fingerprint="blake3:f2e58d9016c63f65cac4",
        skills=[InjectedSkill(name="lab-planet", path="runs/lab-report/skill", fingerprint="blake3:9b024a81516b2bd7", lam=lam)],
        dtype=dtype,
        rounding=rounding,
        nearest_realised_ratio=1 - lost if lost else None,
        seed=0,
        tensors={name: InjectedTensor(**arrived(), digest="", dtype=dtype, rounding=rounding) for name in named},
    )


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


def _lineage(sources: tuple[str, ...], target: str) -> list[LineageNode]:
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
        f"sft/{target}": ("sft", ["gate"]),
        "search": ("search", [f"sft/{target}", *skills]),
        "inject/base": ("inject", ["gate", skills[0]]),
        f"sft/{target}/pre_injection": ("sft", ["inject/base"]),
        f"rl/{target}": ("rl", [f"sft/{target}"]),
        f"sft/{first}/answers": ("sft", [f"sft/{first}/1"]),
        f"extract/{first}/answers": ("extract", [f"sft/{first}/answers", f"sft/{first}/1", "gate"]),
    }
    compared = [f"extract/{first}/1", f"sft/{target}/pre_injection", f"rl/{target}", f"extract/{first}/answers"]
    made["evaluate"] = "evaluate", ["gate", f"sft/{target}", f"sft/{first}/1", "search", *compared, *skills]
    made["inject"] = "inject", [f"sft/{target}", "search", *skills]
    made["register"] = "register", [f"sft/{target}", "search", "evaluate", *skills]
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
