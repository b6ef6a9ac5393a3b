"""Several skill vectors, one skill: is what transfers what the vectors share?

    .venv/bin/python benchmarks/lab_models.py && .venv/bin/python benchmarks/consensus_study.py

Lab models of several seeds. The skills of the five other domains are merged and injected into each target. Answers are counted
once a seed and target and kept beside the models; writes benchmarks/results/consensus.{json,md} and docs/consensus.png.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import torch
from lab_models import ROOT, ZOO, LabModel, State, Zoo
from safetensors.torch import load_file
from scipy import stats

from pastry.domains.lab.world import SUBJECTS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TARGETS = ("company", "ship", "drug")
LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0)
LOW, LOW_ROWS = (0.125, 0.25), ("single", "mean5", "consensus4", "consensus5")
PERPLEXITY_AT = (1.0, 2.0)
PLATEAU = 0.03
ROWS = {
    "single": "one vector (mean over the five)",
    "single_worst": "the worst of the five at each λ",
    "single_best": "the best of the five at each λ",
    "mean2": "mean of two (mean over five pairs)",
    "mean5": "mean of all five",
    "consensus5": "consensus 5 of 5",
    "consensus4": "consensus 4 of 5",
    "random_subset": "control: the mean at as many weights as 5 of 5 keeps, drawn at random",
    "random_scaled": "control: the same, scaled to the norm of 5 of 5",
    "largest_subset": "control: the mean at as many weights, its largest",
    "complement": "the mean without its 5-of-5 weights",
    "single_without": "one vector without the 5-of-5 weights (mean over the five)",
    "random_vector": "control: a random vector of the mean's norm",
}


def consensus(vectors: torch.Tensor, k: int) -> torch.Tensor:
    """The mean of all n vectors (rows) at the weights where at least k signs agree and are not zero, else 0."""
    agree = torch.maximum((vectors > 0).sum(0), (vectors < 0).sum(0)) >= k
    return vectors.mean(0) * agree


def merged(vectors: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Every injected vector by row name; `name/i` where there is one for each source i."""
    generator = torch.Generator().manual_seed(seed)
    mean, unanimous = vectors.mean(0), consensus(vectors, len(vectors))
    kept = unanimous != 0
    count = int(kept.sum())
    at_random, largest = torch.zeros_like(kept), torch.zeros_like(kept)
    at_random[torch.randperm(mean.numel(), generator=generator)[:count]] = True
    largest[mean.abs().topk(count).indices] = True
    noise = torch.randn(mean.shape, generator=generator)
    made = {
        "mean5": mean,
        "consensus5": unanimous,
        "consensus4": consensus(vectors, len(vectors) - 1),
        "random_subset": mean * at_random,
        "random_scaled": mean * at_random * (unanimous.norm() / (mean * at_random).norm()),
        "largest_subset": mean * largest,
        "complement": mean - unanimous,
        "random_vector": noise * (mean.norm() / noise.norm()),
    }
    for i, vector in enumerate(vectors):
        made |= {f"single/{i}": vector, f"single_without/{i}": vector * ~kept}
        made[f"mean2/{i}"] = (vector + vectors[i - 1]) / 2
    return made


def flat(state: State) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)])


def unflat(vector: torch.Tensor, like: State) -> State:
    names = sorted(like)
    pieces = vector.split([like[name].numel() for name in names])
    return {name: piece.view_as(like[name]) for name, piece in zip(names, pieces, strict=True)}


def measure(zoo: Zoo, target: str) -> dict:
    """One seed and target: accuracy of every row over λ (216 questions), perplexity of the target's documents."""
    kept_at = zoo.directory / f"consensus-{target}.json"
    kept = json.loads(kept_at.read_text())["rows"] if kept_at.exists() else {}
    began, sources = time.monotonic(), [subject for subject in SUBJECTS if subject != target]
    vectors = []
    for source in sources:
        end, start = (flat(load_file(path / "model.safetensors")) for path in (zoo.rl(source), zoo.sft(source)))
        vectors.append(end - start)
    vectors = torch.stack(vectors)
    like = load_file(zoo.sft(target) / "model.safetensors")
    start, domain = flat(like), zoo.domain(target)
    lab, new, questions = LabModel(zoo.sft(target)), zoo.config.generation.max_new_tokens, domain.questions(1)
    documents = domain.documents(1)

    def ask() -> float:
        return sum(verdict.correct for verdict in lab.verdicts(domain, questions, new)) / len(questions)

    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = [float(unit[a] @ unit[b]) for a, b in combinations(range(len(sources)), 2)]
    found: dict = {"n": len(questions), "sources": sources, "cosines": cosines, "target": ask(), "rows": {}}
    found["target_perplexity"] = lab.perplexity(documents)
    for name, vector in merged(vectors, zoo.seed).items():
        row = kept.get(name, {"accuracy": {}, "perplexity": {}})
        row |= {"share": float((vector != 0).double().mean()), "norm": float(vector.norm())}
        row["cosine_to_mean"] = float(torch.nn.functional.cosine_similarity(vector, vectors.mean(0), dim=0))
        for lam in (*LOW, *LAMBDAS) if name.split("/")[0] in LOW_ROWS else LAMBDAS:
            if f"{lam:g}" in row["accuracy"]:
                continue
            lab.load(unflat(start + lam * vector, like))
            row["accuracy"][f"{lam:g}"] = ask()
            if lam in PERPLEXITY_AT:
                row["perplexity"][f"{lam:g}"] = lab.perplexity(documents)
        found["rows"][name] = row
    kept_at.write_text(json.dumps(found))
    print(f"seed {zoo.seed} → {target}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def own_rows(pair: dict, name: str) -> list[dict]:
    """The injected vectors behind a row of one (seed, target): one, or one a source."""
    return [row for key, row in pair["rows"].items() if key.split("/")[0] == name.removesuffix("_worst").removesuffix("_best")]


def curve(pair: dict, name: str, what: str = "accuracy", at: tuple[float, ...] = LAMBDAS) -> np.ndarray:
    """A row of one (seed, target) over λ."""
    values = np.array([[row[what][f"{lam:g}"] for lam in at] for row in own_rows(pair, name)])
    if name.endswith("_worst"):
        return values.min(0)
    return values.max(0) if name.endswith("_best") else values.mean(0)


def width(values: np.ndarray) -> float:
    """Range of λ, between the least and the largest tried, with an accuracy within PLATEAU of the best (linear between)."""
    fine = np.linspace(LAMBDAS[0], LAMBDAS[-1], 501)
    inside = np.interp(fine, LAMBDAS, values) >= max(values) - PLATEAU
    return float(inside.mean() * (LAMBDAS[-1] - LAMBDAS[0]))


def mean_width(pair: dict, name: str) -> float:
    accuracies = [[row["accuracy"][f"{lam:g}"] for lam in LAMBDAS] for row in own_rows(pair, name)]
    return float(np.mean([width(np.array(values)) for values in accuracies]))


def at_equal_norm(pair: dict, name: str, lam: float) -> float:
    """Accuracy of one vector (mean over the sources) at the λ that gives it the norm of λ times another row."""
    norm, every = own_rows(pair, name)[0]["norm"] * lam, (*LOW, *LAMBDAS)
    singles = own_rows(pair, "single")
    return float(np.mean([np.interp(norm / row["norm"], every, [row["accuracy"][f"{x:g}"] for x in every]) for row in singles]))


def projection(pair: dict, name: str) -> float:
    """How much of the mean of five a row holds at λ = 1: ⟨row, mean⟩ / ⟨mean, mean⟩."""
    norm = pair["rows"]["mean5"]["norm"]
    return float(np.mean([row["cosine_to_mean"] * row["norm"] / norm for row in own_rows(pair, name)]))


def clustered(values: dict[str, list], signed: bool = False, digits: int = 3) -> str:
    """Mean over all pairs, with the 95 % t interval of the mean over seeds (each seed: the mean over its targets)."""
    seeds = [float(np.mean(of_seed)) for of_seed in values.values()]
    half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(seeds)
    return f"{np.mean(seeds):{'+' if signed else ''}.{digits}f} ± {half:.{digits}f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def tables(results: dict[str, dict[str, dict]]) -> str:
    """Accuracy over λ, paired differences to the mean of five and to one vector, and what the vectors are like."""
    pairs = [pair for of_seed in results.values() for pair in of_seed.values()]

    def each(read) -> dict[str, list]:
        return {seed: [read(pair) for pair in of_seed.values()] for seed, of_seed in results.items()}

    text, names = "### Accuracy\n\n", [f"λ {lam:g}" for lam in LAMBDAS]
    rows = []
    for name, label in ROWS.items():
        values = [clustered(each(lambda pair, i=i, name=name: curve(pair, name)[i])) for i in range(len(LAMBDAS))]
        one = name not in ("single_worst", "single_best")
        rows.append([label, *values, clustered(each(lambda p, name=name: mean_width(p, name)), digits=2) if one else ""])
    text += markdown(["", *names, f"λ range within {PLATEAU:g} of its best (0.5 to 3)"], rows)
    text += f"\nTarget SFT alone: {clustered(each(lambda pair: pair['target']))}.\n"
    for other, label in (("mean5", "the mean of five"), ("single", "one vector (mean over the five)")):
        rows = []
        for name in [name for name in ROWS if name != other]:
            row = [ROWS[name]]
            for i in range(len(LAMBDAS)):
                gain = each(lambda pair, i=i, name=name, other=other: curve(pair, name)[i] - curve(pair, other)[i])
                above = sum(value > 0 for of_seed in gain.values() for value in of_seed)
                row.append(f"{clustered(gain, signed=True)} ({above}/{len(pairs)})")
            rows.append(row)
        text += f"\n### Accuracy minus that of {label}, paired (in how many pairs it is higher)\n\n"
        text += markdown(["", *names], rows)
    rows = []
    for name, label in ROWS.items():
        if name in ("single_worst", "single_best"):
            continue
        row = [label]
        for key in ("share", "norm"):
            row.append(clustered(each(lambda p, key=key, name=name: np.mean([r[key] for r in own_rows(p, name)]))))
        row.append(clustered(each(lambda p, name=name: projection(p, name))))
        for i in range(len(PERPLEXITY_AT)):
            grown = each(lambda p, i=i, name=name: curve(p, name, "perplexity", PERPLEXITY_AT)[i] / p["target_perplexity"] - 1)
            row.append(clustered({seed: [100 * value for value in of] for seed, of in grown.items()}, signed=True, digits=1))
        rows.append(row)
    header = ["", "share of weights", "norm", "part of the mean of five", "perplexity of the target's documents at λ 1, %"]
    text += "\n### The vectors\n\n" + markdown([*header, "at λ 2, %"], rows)
    rows = []
    for name in LOW_ROWS:
        row = [ROWS[name], *(clustered(each(lambda p, i=i, name=name: curve(p, name, at=LOW)[i])) for i in range(len(LOW)))]
        for lam in (0.25, 0.5, 2.0, 3.0):
            at = (*LOW, *LAMBDAS).index(lam)
            own = each(lambda p, at=at, name=name: curve(p, name, at=(*LOW, *LAMBDAS))[at])
            single = each(lambda p, name=name, lam=lam: at_equal_norm(p, name, lam))
            gain = {seed: list(np.subtract(own[seed], single[seed])) for seed in own}
            row.append(clustered(gain, signed=True) if name != "single" else "")
        rows.append(row)
    text += "\n### Small λ; and at λ, accuracy minus that of one vector scaled to the same norm, paired\n\n"
    text += markdown(["", "λ 0.125", "λ 0.25", *(f"same norm, λ {lam}" for lam in ("0.25", "0.5", "2", "3"))], rows)
    cosines = [cosine for pair in pairs for cosine in pair["cosines"]]
    text += f"\nPairwise cosines of the single vectors: mean {np.mean(cosines):.3f}, {min(cosines):.3f} to {max(cosines):.3f}."
    rows = [[f"{seed} → {target}", *(f"{curve(p, n)[i]:.3f}" for n in SHOWN for i in (1, 3))]
            for seed, of_seed in results.items() for target, p in of_seed.items()]  # fmt: skip
    text += "\n\n### Each pair, λ 1 and 2\n\n"
    return text + markdown(["", *(f"{n}, λ {lam}" for n in SHOWN for lam in (1, 2))], rows)


SHOWN = ("single", "mean5", "consensus4", "consensus5", "single_without")


def plot(results: dict[str, dict[str, dict]], path: Path) -> None:
    """Accuracy over λ: merges on the left, what the small unanimous part carries on the right."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    pairs = [pair for of_seed in results.values() for pair in of_seed.values()]
    share = np.mean([pair["rows"]["consensus5"]["share"] for pair in pairs])
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.9), sharey=True)
    panels = [
        {"single": "one vector (mean, range of five)", "mean2": "mean of two", "mean5": "mean of five",
         "consensus4": "consensus 4 of 5", "consensus5": "consensus 5 of 5"},
        {"consensus5": f"consensus 5 of 5 ({share:.0%} of the weights)", "largest_subset": "the mean's largest, as many",
         "complement": "the mean without the 5-of-5 weights", "single_without": "one vector without the 5-of-5 weights",
         "random_subset": "the mean at random weights, as many", "random_scaled": "the same, with the norm of 5 of 5",
         "random_vector": "a random vector"},
    ]  # fmt: skip
    colors = {"single": "C7", "mean2": "C9", "mean5": "C0", "consensus4": "C2", "consensus5": "C3", "largest_subset": "C1"}
    colors |= {"complement": "C4", "single_without": "C5", "random_subset": "C8", "random_scaled": "C9"}
    colors["random_vector"] = "C6"
    for panel, rows, title in zip(axes, panels, ("Merging several skills", "Which weights carry the skill"), strict=True):
        for name, label in rows.items():
            values = np.mean([curve(pair, name) for pair in pairs], axis=0)
            panel.plot(LAMBDAS, values, color=colors[name], marker="o", ms=4, label=label)
            if name == "single":
                low, high = (np.mean([curve(pair, f"single_{end}") for pair in pairs], axis=0) for end in ("worst", "best"))
                panel.fill_between(LAMBDAS, low, high, color=colors[name], alpha=0.15, lw=0)
        panel.axhline(np.mean([pair["target"] for pair in pairs]), color="gray", lw=1, ls=":", label="no injection")
        panel.set(xlabel="λ", xticks=LAMBDAS, ylim=(0, 1.02))
        panel.set_title(title, fontsize=10)
        panel.legend(frameon=False, fontsize=8, loc="lower left")
    axes[0].set_ylabel("accuracy on the target")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24, 25])
    parser.add_argument("--zoo", type=Path, default=ZOO, help="where lab_models.py keeps the models")
    parser.add_argument("--redraw", action="store_true", help="tables and plot from the numbers already in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = ROOT / "benchmarks" / "results" / "consensus.json"
    if not arguments.redraw:
        zoos = {str(seed): Zoo(arguments.zoo, seed) for seed in arguments.seeds}
        measured = {seed: {target: measure(zoo, target) for target in TARGETS} for seed, zoo in zoos.items()}
        rough = json.loads(json.dumps(measured), parse_float=lambda text: round(float(text), 6))
        numbers.write_text(json.dumps(rough) + "\n")
    results = json.loads(numbers.read_text())
    text = tables(results)
    numbers.with_suffix(".md").write_text(text)
    plot(results, ROOT / "docs" / "consensus.png")
    print(text)


if __name__ == "__main__":
    main()
