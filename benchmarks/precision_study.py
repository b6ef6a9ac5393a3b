"""What rounding does to a skill vector: how much is left, where its λ lies, and what restores it.

    .venv/bin/python benchmarks/lab_models.py && .venv/bin/python benchmarks/precision_study.py

Lab models of several seeds, planet → company, weights rounded to 1 to 7 explicit mantissa bits (bf16: 7). Answers are counted
once a seed and kept beside the models; writes benchmarks/results/precision.{json,md} and docs/precision.png.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import torch
from lab_models import BITS, ROOT, ZOO, LabModel, State, Zoo, rounded
from safetensors.torch import load_file
from scipy import optimize, special, stats

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SOURCE, TARGET = "planet", "company"
LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0)
WIDE = (0.125, 0.25, *LAMBDAS, 4.5, 6.0, 9.0)
WIDE_BITS = (1, 2, 3, 7)
LIGHT = 2.5
SHAPES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
THUMB = (2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)


# --- the formula -----------------------------------------------------------------------------------------------------


def kept(x: np.ndarray, shape: float = 2.0) -> np.ndarray:
    """R: the part of an update that rounding to nearest keeps, x = RMS of the update / step of the grid.

    The update is generalised normal: shape 2 is Gaussian, 1 Laplace, above 2 has lighter tails.
    For shape 2: R = (2/x) · Σ_k φ((k − ½)/x).
    """
    x = np.asarray(x, float)
    h = 1 / np.clip(x, 1e-9, 4.0)  # beyond that nothing is lost
    k = np.arange(1, 60).reshape(-1, *[1] * x.ndim) - 0.5
    width = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    tail = special.gammaincc(2 / shape, (k * h / width) ** shape) * special.gamma(2 / shape) / special.gamma(1 / shape)
    return (h * width * tail).sum(0)


def unchanged(x: np.ndarray, shape: float = 2.0) -> np.ndarray:
    """Share of weights lying on the grid that an update of RMS x steps leaves as they are; for shape 2 erf(1/(2√2 x))."""
    width = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    return special.gammainc(1 / shape, (0.5 / np.clip(x, 1e-9, None) / width) ** shape)


def unchanged_light(x: np.ndarray) -> np.ndarray:
    return unchanged(x, LIGHT)


def unchanged_dither(x: np.ndarray) -> np.ndarray:
    """The same where the weights lay anywhere before both ends were rounded: 1 − E min(1, |update| / step)."""
    x = np.clip(x, 1e-9, None)
    within = x * np.sqrt(2 / np.pi) * -np.expm1(-1 / (2 * x**2))
    return special.erf(1 / (np.sqrt(2) * x)) - within


def grid(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grid of a tensor: each kind of place on it (step away from zero, step towards zero: half as far from a power of
    two) and which kind every weight is. Zeros count as the smallest kind."""
    mantissa, exponent = np.frexp(np.abs(weights))
    exponent[weights == 0] = exponent.min()
    kinds, which = np.unique(2 * exponent + (mantissa == 0.5), return_inverse=True)
    up = np.ldexp(1.0, kinds // 2 - 1 - bits)
    return up, np.where(kinds % 2, up / 2, up), which


def over(grid_of: tuple[np.ndarray, np.ndarray, np.ndarray], law, sigma: float) -> np.ndarray:
    """A law of x (kept, unchanged) for each kind of place: the mean over the two directions."""
    up, down, _ = grid_of
    return (law(sigma / up) + law(sigma / down)) / 2


def mean_over(grid_of, law, sigma: float) -> float:
    counts = np.bincount(grid_of[2], minlength=len(grid_of[0]))
    return float(counts @ over(grid_of, law, sigma) / counts.sum())


def sigma_from_unchanged(grid_of, observed: float, law=unchanged) -> float:
    """The update's RMS that would leave that share of a tensor's weights unchanged; 0 where every weight is."""
    if observed >= 1:
        return 0.0
    observed = max(observed, 0.5 / grid_of[2].size)
    low, high = np.log(grid_of[1].min()) - 5, np.log(grid_of[0].max()) + 15
    return float(np.exp(optimize.brentq(lambda log: mean_over(grid_of, law, np.exp(log)) - observed, low, high)))


def advice(start: State, end: State, bits: int) -> dict[str, float]:
    """From two rounded files alone: what to expect of their difference, and which way it was born.

    `ratio`, `cosine`: to the true update, if RL started from the rounded file; `light`: the ratio for lighter tails than
    Gaussian. `cosine_dither`: if both ends were rounded afterwards (the ratio is then 1). `evidence`: log-likelihood per weight
    of the former over the latter, from how the share of unchanged weights falls with the step.
    """
    total = dict.fromkeys(("energy", "arrived", "light_energy", "light_arrived", "dither", "evidence", "squares", "count"), 0.0)
    for name in start:
        a, b = (state[name].double().numpy().ravel() for state in (start, end))
        places, same = grid(a, bits), a == b
        sigmas = [sigma_from_unchanged(places, same.mean(), law) for law in (unchanged, unchanged_light, unchanged_dither)]
        energy, light, dither = (a.size * sigma**2 for sigma in sigmas)
        n, stayed = np.bincount(places[2]), np.bincount(places[2], same)
        p, q = over(places, unchanged, sigmas[0]), over(places, unchanged_dither, sigmas[2])
        p, q = np.clip([p, q], 1e-6, 1 - 1e-6)
        total["energy"] += energy
        total["arrived"] += energy * mean_over(places, kept, sigmas[0])
        total["light_energy"] += light
        total["light_arrived"] += light * mean_over(places, lambda x: kept(x, LIGHT), sigmas[1])
        total["dither"] += dither
        total["evidence"] += float(stayed @ np.log(p / q) + (n - stayed) @ np.log((1 - p) / (1 - q)))
        total["squares"] += float(((b - a) ** 2).sum())
        total["count"] += a.size
    return {
        "ratio": total["arrived"] / total["energy"],
        "light": total["light_arrived"] / total["light_energy"],
        "rms": float(np.sqrt(total["energy"] / total["count"])),
        "cosine": min(1.0, total["arrived"] / float(np.sqrt(total["energy"] * total["squares"]))),
        "cosine_dither": min(1.0, float(np.sqrt(total["dither"] / total["squares"]))),
        "evidence": total["evidence"] / total["count"],
    }


# --- the measurement -------------------------------------------------------------------------------------------------


def dot(a: State, b: State) -> float:
    return sum(float(a[name].double().flatten() @ b[name].double().flatten()) for name in a)


def flat(state: State) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def minus(a: State, b: State) -> State:
    return {name: a[name] - b[name] for name in a}


def births(zoo: Zoo, bits: int) -> tuple[State, dict[str, tuple[State, State]]]:
    """The file RL starts from, and each way of birth: (the vector one gets, the true vector of that run)."""
    sft, end = (load_file(path / "model.safetensors") for path in (zoo.sft(SOURCE), zoo.rl(SOURCE)))
    start, end_of_start = rounded(sft, bits), load_file(zoo.rl(SOURCE, bits) / "model.safetensors")
    true, exact = minus(end_of_start, start), minus(end, sft)
    return start, {
        "files": (minus(rounded(end_of_start, bits), start), true),
        "capture": (true, true),
        "dither": (minus(rounded(end, bits), start), exact),
    }


def formula(start: State, vector: State, true: State, bits: int) -> dict:
    """Realised ratio by formula from the true RMS of each tensor, for several shapes and with an RMS a row; what was measured
    by σ/step (bins of a quarter octave: ⟨vector, true⟩, ⟨true, true⟩, log2(σ/step) times that, weights); kurtosis."""
    energy, shapes, rows, bins, kurtosis = 0.0, dict.fromkeys(SHAPES, 0.0), 0.0, {}, 0.0
    for name in start:
        a, v, t = (state[name].double().numpy() for state in (start, vector, true))
        places, own, sigma = grid(a.ravel(), bits), float((t**2).sum()), float(np.sqrt((t**2).mean()))
        energy += own
        kurtosis += own * stats.kurtosis(t.ravel())
        for shape in SHAPES:
            shapes[shape] += own * mean_over(places, lambda x, shape=shape: kept(x, shape), sigma)
        each = np.sqrt((t**2).mean(-1, keepdims=True)) + 0 * t if t.ndim > 1 else np.full_like(t, sigma)
        by_row = (kept(each.ravel() / places[0][places[2]]) + kept(each.ravel() / places[1][places[2]])) / 2
        rows += float((t.ravel() ** 2) @ by_row)
        for kind, (up, down) in enumerate(zip(places[0], places[1], strict=True)):
            if up == down:  # a place with one step size
                at, key = places[2] == kind, round(4 * np.log2(sigma / up))
                moved, own_there = float((v * t).ravel()[at].sum()), float((t**2).ravel()[at].sum())
                bins[key] = bins.get(key, 0) + np.array([moved, own_there, own_there * np.log2(sigma / up), at.sum()])
    predicted = {f"{shape:g}": value / energy for shape, value in shapes.items()}
    bins = {key: part.tolist() for key, part in bins.items()}
    return {"shapes": predicted, "rows": rows / energy, "kurtosis": kurtosis / energy, "bins": bins}


def injection(target: State, true: State, lam: float, bits: int) -> float:
    """By formula: the realised ratio when λ times the true vector is added to a file and rounded to nearest."""
    arrived = energy = 0.0
    for name in true:
        own, sigma = float((true[name].double() ** 2).sum()), float(true[name].double().pow(2).mean().sqrt())
        energy += own
        arrived += own * mean_over(grid(target[name].double().numpy().ravel(), bits), kept, lam * sigma)
    return arrived / energy


def thumb(start: State, true: State) -> dict[str, tuple[float, float]]:
    """Rule of thumb at 7 bits (bf16): u = update RMS · 2^7 / weight RMS, by formula for Gaussian weights → what a real update
    scaled to that u keeps, over the model's matrices."""
    found = {}
    weights = rounded({"w": torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))}, 7)["w"].double().numpy()
    places = grid(weights, 7)
    for u in THUMB:
        arrived = energy = 0.0
        for name in (name for name in start if start[name].ndim > 1):
            a, t = start[name], true[name].double()
            t = t * (u / 2**7 * float(a.double().pow(2).mean().sqrt()) / float(t.pow(2).mean().sqrt()))
            moved = rounded({"w": (a.double() + t).float()}, 7)["w"].double() - a.double()
            arrived, energy = arrived + float((moved * t).sum()), energy + float((t * t).sum())
        found[f"{u:g}"] = (mean_over(places, kept, u / 2**7), arrived / energy)
    return found


def measure(zoo: Zoo) -> dict:
    """Accuracies of one seed: every way of birth, number of bits, way of rounding and λ; 216 questions each."""
    kept_at = zoo.directory / "precision.json"
    found = json.loads(kept_at.read_text()) if kept_at.exists() else {}
    lab, domain, new = LabModel(zoo.sft(TARGET)), zoo.domain(TARGET), zoo.config.generation.max_new_tokens
    target = load_file(zoo.sft(TARGET) / "model.safetensors")
    questions = domain.questions(1)

    def accuracy(key: str, state: State) -> float:
        if key not in found:
            verdicts = lab.load(state).verdicts(domain, questions, new)
            found[key] = sum(verdict.correct for verdict in verdicts) / len(verdicts)
        return found[key]

    def added(start: State, lam: float, vector: State) -> State:
        return {name: start[name] + lam * vector[name] for name in start}

    result: dict = {"n": len(questions), "bits": {}}
    exact = births(zoo, 7)[1]["dither"][1]
    result["target"] = accuracy("target", target)
    result["fp32"] = {f"{lam:g}": accuracy(f"fp32/{lam:g}", added(target, lam, exact)) for lam in WIDE}
    trl = zoo.directory / f"rl-{SOURCE}-trl"
    if trl.exists():
        other = minus(load_file(trl / "model.safetensors"), load_file(zoo.sft(SOURCE) / "model.safetensors"))
        result["trl"] = {f"{lam:g}": accuracy(f"trl/{lam:g}", added(target, lam, other)) for lam in LAMBDAS}
        result["trl"]["cosine"] = dot(other, exact) / np.sqrt(dot(other, other) * dot(exact, exact))
    for bits in BITS:
        began = time.monotonic()
        file, (start, made) = rounded(target, bits), births(zoo, bits)
        end = {name: start[name] + made["files"][0][name] for name in start}
        dithered = tuple(rounded(load_file(path / "model.safetensors"), bits) for path in (zoo.sft(SOURCE), zoo.rl(SOURCE)))
        entry: dict = {
            "target": accuracy(f"{bits}/target", file),
            "advice": advice(start, end, bits),
            "advice_dither": advice(*dithered, bits),
            "formula": formula(start, *made["files"], bits),
            "injection": {f"{lam:g}": injection(file, made["capture"][1], lam, bits) for lam in LAMBDAS},
            "thumb": thumb(start, made["capture"][1]) if bits == 7 else None,
        }
        for birth, (vector, true) in made.items():
            norm = dot(true, true)
            row: dict = {
                "unchanged": float((flat(vector) == 0).double().mean()),
                "cosine": dot(vector, true) / np.sqrt(dot(vector, vector) * norm),
                "ratio": dot(vector, true) / norm,
                "rms": float(flat(true).pow(2).mean().sqrt()),
                "injected": [],
            }
            wide = bits in WIDE_BITS and birth != "dither"
            lambdas = [(f"{lam:g}", lam) for lam in (WIDE if wide else LAMBDAS)]
            if birth == "files":
                lambdas.append(("advice", 1 / entry["advice"]["ratio"]))
            roundings = product(lambdas, ("nearest", "stochastic"))
            for (label, lam), rounding in [*roundings, (("1", 1.0), "fp32")]:
                out = added(file, lam, vector)
                if rounding != "fp32":
                    out = rounded(out, bits, None if rounding == "nearest" else 1000 * zoo.seed + bits)
                at = {"lambda": lam, "label": label, "rounding": rounding}
                at["realised"] = dot(minus(out, file), true) / (lam * norm)
                row["injected"].append(at | {"accuracy": accuracy(f"{bits}/{birth}/{rounding}/{lam:.6g}", out)})
            entry[birth] = row
        result["bits"][str(bits)] = entry
        kept_at.write_text(json.dumps(found))
        print(f"seed {zoo.seed}, {bits} bits: {time.monotonic() - began:.0f} s", flush=True)
    return result


# --- what is reported ------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 3, signed: bool = False) -> str:
    """Mean over seeds and the half width of its 95 % t interval."""
    mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return f"{mean:{'+' if signed else ''}.{digits}f} ± {half:.{digits}f}"


def pick(seed: dict, bits: int, birth: str, rounding: str, label: str, what: str = "accuracy") -> float:
    """One number of one seed, from its injections."""
    rows = seed["bits"][str(bits)][birth]["injected"]
    return next(row[what] for row in rows if row["rounding"] == rounding and row["label"] == label)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def tables(results: dict[str, dict]) -> str:
    """All tables, as Markdown."""
    seeds = list(results.values())
    names = [f"λ {lam:g}" for lam in LAMBDAS]

    def each(bits: int | None, *keys: str, digits: int = 3, signed: bool = False) -> str:
        found = [read(seed if bits is None else seed["bits"][str(bits)], keys) for seed in seeds]
        return spread(found, digits, signed)

    def at(bits: int, birth: str, rounding: str, label: str = "1", what: str = "accuracy") -> list[float]:
        return [pick(seed, bits, birth, rounding, label, what) for seed in seeds]

    exact = [seed["fp32"]["1"] for seed in seeds]
    columns = [("unchanged",), ("cosine",), ("ratio",)]
    text = "### The vector that two files give, RL started from the first\n\n"
    header = ["bits", "weights unchanged", "cosine to the true v", "ratio, measured"]
    rows = []
    for b in BITS:
        predicted = [each(b, "formula", "shapes", "2"), each(b, "advice", "ratio"), each(b, "advice", "cosine")]
        rows.append([b, *(each(b, "files", *c) for c in columns), *predicted])
    text += markdown([*header, "formula, true RMS", "rule, from the files alone", "cosine by the rule"], rows)
    text += "\n### Both ends rounded afterwards\n\n"
    rows = []
    for b in BITS:
        evidence = [each(b, way, "evidence", digits=4, signed=True) for way in ("advice_dither", "advice")]
        predicted = [each(b, "advice_dither", "cosine_dither"), each(b, "advice_dither", "ratio")]
        rows.append([b, *(each(b, "dither", *c) for c in columns), *predicted, *evidence])
    header += ["cosine by the rule", "ratio of the rule above, wrong here"]
    text += markdown([*header, "evidence, these files", "evidence, the files above"], rows)

    ways = [*product(("files", "capture"), ("nearest", "stochastic", "fp32"))]
    ways += [("dither", "nearest"), ("dither", "stochastic")]
    titles = ("Accuracy on the target at λ = 1", "The same minus the exact vector in fp32, paired")
    for title, minuend in zip(titles, (False, True), strict=True):
        rows = []
        for b in BITS:
            values = [[seed["bits"][str(b)]["target"] for seed in seeds], *(at(b, *way) for way in ways)]
            rows.append([b, *(spread(list(np.subtract(v, exact)) if minuend else v, signed=minuend) for v in values)])
        text += f"\n### {title}\n\n" + markdown(["bits", "λ = 0", *map(", ".join, ways)], rows)
    text += f"\nTarget in fp32 {each(None, 'target')}; exact v in fp32, λ "
    text += "; ".join(f"{lam:g}: {each(None, 'fp32', f'{lam:g}')}" for lam in LAMBDAS) + ".\n"
    for name, seed in ((name, seed) for name, seed in results.items() if "trl" in seed):
        both = [(f"{lam:g}", seed["fp32"][f"{lam:g}"], seed["trl"][f"{lam:g}"]) for lam in LAMBDAS]
        text += f"\nSeed {name}, the lean loop's vector against TRL's (cosine {seed['trl']['cosine']:.3f}): "
        text += "; ".join(f"λ {lam}: {lean:.3f}, {trl:.3f}" for lam, lean, trl in both) + ".\n"

    shown = [("files", "nearest"), ("capture", "nearest"), ("capture", "stochastic"), ("dither", "nearest")]
    rows = [[b, ", ".join(way), *(spread(at(b, *way, f"{lam:g}")) for lam in LAMBDAS)] for b in BITS for way in shown]
    text += "\n### Accuracy over λ\n\n" + markdown(["bits", "vector, rounding", *names], rows)
    text += stretch(results)
    rows = []
    for b in BITS:
        rows.append([b, "measured", *(spread(at(b, "capture", "nearest", f"{lam:g}", "realised")) for lam in LAMBDAS)])
        rows.append([b, "formula", *(each(b, "injection", f"{lam:g}") for lam in LAMBDAS)])
        rows.append([b, "stochastic", *(spread(at(b, "capture", "stochastic", f"{lam:g}", "realised")) for lam in LAMBDAS)])
    text += "\n### Realised ratio of the true vector over λ: to nearest, measured and by formula; stochastic\n\n"
    text += markdown(["bits", "", *names], rows)

    rows = []
    for b in BITS:
        over_grid = np.array([at(b, "files", "nearest", f"{lam:g}") for lam in LAMBDAS])
        advised, best = at(b, "files", "nearest", "advice"), over_grid.max(0)
        row = [b, spread(at(b, "files", "nearest", "advice", "lambda"), 2), spread(advised), spread(list(over_grid[1]))]
        row += [spread(list(np.subtract(advised, over_grid[1])), signed=True)]
        row += [", ".join(f"{LAMBDAS[i]:g}" for i in over_grid.argmax(0)), spread(list(best))]
        rows.append([*row, spread(list(np.subtract(advised, best)), signed=True)])
    header = ["bits", "λ = 1/R", "accuracy there", "at λ = 1", "difference", "best λ of the grid, a seed each"]
    text += "\n### The rule's λ for the vector of two files, rounded to nearest\n\n"
    text += markdown([*header, "accuracy there, chosen on the same questions", "rule minus best"], rows)

    laws = {f"{shape:g}": ("formula", "shapes", f"{shape:g}") for shape in SHAPES}
    laws |= {"2, an RMS a row": ("formula", "rows"), "rule, from the files": ("advice", "ratio")}
    laws[f"rule with shape {LIGHT:g}"] = ("advice", "light")
    rows = []
    for name, keys in laws.items():
        error = np.array([[read(s["bits"][str(b)], keys) - s["bits"][str(b)]["files"]["ratio"] for b in BITS] for s in seeds])
        rms = [np.sqrt((part**2).mean()) for part in (error[:1], error[1:])]
        rows.append([name, *(f"{mean:+.3f}" for mean in error.mean(0)), *(f"{value:.4f}" for value in rms)])
    header = ["shape (2 Gaussian, 1 Laplace)", *(f"{b} bits" for b in BITS)]
    header += [f"RMS, seed {next(iter(results))}", "RMS, the others"]
    text += "\n### Formula minus measured ratio, by the update's shape\n\n" + markdown(header, rows)
    kurtosis = "; ".join(each(b, "formula", "kurtosis", digits=2, signed=True) for b in BITS)
    text += f"\nExcess kurtosis within a tensor, energy-weighted, 1 to 7 bits: {kurtosis}.\n"

    text += "\n### Rule of thumb (bf16: u = 2^7 · update RMS / weight RMS)\n\n"
    thumbs = {f"{u:g}": [seed["bits"]["7"]["thumb"][f"{u:g}"] for seed in seeds] for u in THUMB}
    rows = [[u, f"{pairs[0][0]:.3f}", spread([real for _, real in pairs])] for u, pairs in thumbs.items()]
    return text + markdown(["u", "ratio by formula, Gaussian weights", "real updates scaled to u"], rows)


def crossings(lambdas: tuple[float, ...], accuracy: list[float], level: float) -> tuple[float, float]:
    """The λ at which accuracy first rises above a level and at which it last falls below it (linear in log λ between)."""
    fine = np.geomspace(lambdas[0], lambdas[-1], 1000)
    above = fine[np.interp(np.log(fine), np.log(lambdas), accuracy) >= level]
    return (float(above[0]), float(above[-1])) if len(above) else (np.nan, np.nan)


def stretch(results: dict[str, dict]) -> str:
    """Where accuracy passes half of the exact vector's gain, upwards and downwards, also as a multiple of the unrounded."""
    rows = []
    for b in WIDE_BITS:
        for birth, rounding in product(("files", "capture"), ("nearest", "stochastic")):
            found = []
            for seed in results.values():
                level = (seed["target"] + seed["fp32"]["1"]) / 2
                exact = crossings(WIDE, [seed["fp32"][f"{lam:g}"] for lam in WIDE], level)
                own = crossings(WIDE, [pick(seed, b, birth, rounding, f"{lam:g}") for lam in WIDE], level)
                found.append([*own, *np.divide(own, exact), 1 / seed["bits"][str(b)]["files"]["ratio"]])
            rows.append([b, f"{birth}, {rounding}", *(spread(list(column), 2) for column in np.transpose(found))])
    header = ["bits", "vector, rounding", "λ on", "λ off", "λ on, multiple", "λ off, multiple", "1/R of the files"]
    return "\n### Where the skill switches on and off\n\n" + markdown(header, rows)


def read(tree: dict, keys: tuple[str, ...]) -> float:
    for key in keys:
        tree = tree[key]
    return tree


def plot(results: dict[int, dict], path: Path) -> None:
    """Realised ratio against RMS/step; accuracy over λ for the two files and for fp32 capture with stochastic rounding."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.9), gridspec_kw={"width_ratios": [1.15, 1, 1]})
    x = np.geomspace(0.05, 4, 300)
    left.plot(x, kept(x), color="black", lw=1.2, label="formula, Gaussian update")
    colors = dict(zip(BITS, ("C3", "C1", "C2", "C4", "C9", "C8", "C0"), strict=True))
    for bits in (1, 2, 3, 4, 5):
        points: dict[str, list] = {}
        for seed in results.values():
            for key, (moved, energy, log, n) in seed["bits"][str(bits)]["formula"]["bins"].items():
                if n >= 2000:
                    points.setdefault(key, []).append((2 ** (log / energy), moved / energy))
        whole = [np.mean(found, axis=0) for found in points.values() if len(found) == len(results)]
        places, ratios = np.array(whole).T
        left.scatter(places, ratios, s=16, color=colors[bits], label=f"{bits} bit{'s' * (bits > 1)}", zorder=3)
    left.set(xscale="log", xlabel="RMS of the update / step of the weight's grid", ylabel="realised ratio")
    left.set_xticks([0.0625, 0.125, 0.25, 0.5, 1, 2, 4], ["1/16", "1/8", "1/4", "1/2", "1", "2", "4"])
    left.minorticks_off()
    left.set_xlim(0.05, 4)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    left.set_title("What rounding to nearest keeps", fontsize=10)
    panels = [(middle, "files", "nearest", "Difference of two rounded files,\nrounded to nearest")]
    panels += [(right, "capture", "stochastic", "fp32 capture,\nstochastic rounding")]
    for axes, birth, rounding, title in panels:
        none = np.mean([seed["target"] for seed in results.values()])
        axes.axhline(none, color="gray", lw=1, ls=":", label="no injection")
        for bits in reversed(WIDE_BITS):
            rows = np.array([[pick(seed, bits, birth, rounding, f"{lam:g}") for lam in WIDE] for seed in results.values()])
            mean, label = rows.mean(0), f"{bits} bit{'s' * (bits > 1)}"
            axes.plot(WIDE, mean, color=colors[bits], marker="o", ms=3.5, lw=1.4, label=label)
            if bits == 1:
                half = stats.t.ppf(0.975, len(rows) - 1) * stats.sem(rows)
                low, high = np.clip([mean - half, mean + half], 0, 1)
                axes.fill_between(WIDE, low, high, color=colors[bits], alpha=0.12, lw=0)
        exact = [[seed["fp32"][f"{lam:g}"] for lam in WIDE] for seed in results.values()]
        axes.plot(WIDE, np.mean(exact, axis=0), color="black", lw=1.2, ls="--", label="no rounding")
        axes.set(xscale="log", ylim=(0, 1.04), xlabel="λ")
        axes.set_xticks(WIDE, ["1/8", "1/4", *(f"{lam:g}" for lam in WIDE[2:])])
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
    middle.set_ylabel("accuracy on the target")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24, 25])
    parser.add_argument("--zoo", type=Path, default=ZOO, help="where lab_models.py keeps the models")
    parser.add_argument("--redraw", action="store_true", help="tables and plot from the numbers already in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = ROOT / "benchmarks" / "results" / "precision.json"
    if not arguments.redraw:
        measured = {str(seed): measure(Zoo(arguments.zoo, seed)) for seed in arguments.seeds}
        rough = json.loads(json.dumps(measured, default=float), parse_float=lambda text: round(float(text), 6))
        numbers.write_text(json.dumps(rough) + "\n")
    results = json.loads(numbers.read_text())
    text = tables(results)
    numbers.with_suffix(".md").write_text(text)
    plot(results, ROOT / "docs" / "precision.png")
    print(text)


if __name__ == "__main__":
    main()
