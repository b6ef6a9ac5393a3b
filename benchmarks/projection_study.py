"""Does it help to take out of a skill vector what lies along the target's SFT update?

    .venv/bin/python benchmarks/lab_models.py && .venv/bin/python benchmarks/projection_study.py

Lab models of several seeds, planet → company, combined and injected by Pastry itself. Writes
benchmarks/results/projection.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from lab_models import ROOT, ZOO, LabModel, Zoo
from safetensors.torch import load_file
from scipy import stats

from pastry.vectors.algebra.combine import combine
from pastry.vectors.extract import extract
from pastry.vectors.geometry.updates import CheckpointUpdate, SkillUpdate, cosine
from pastry.vectors.inject import inject

SOURCE, TARGET = "planet", "company"
LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0)
RESULTS = ROOT / "benchmarks" / "results"
ROWS = {
    "plain": "v as it is",
    "per_tensor": "v orthogonal to the target's SFT update, tensor by tensor",
    "whole": "v orthogonal to it as a whole",
    "control": "control: v orthogonal to the source's SFT update, tensor by tensor",
}


def vectors(zoo: Zoo, folder: Path) -> dict[str, Path]:
    """Each row's skill vector."""
    extract(zoo.rl(SOURCE), zoo.sft(SOURCE), folder / "plain", name="plain")
    own, other = (partial(CheckpointUpdate, zoo.sft(subject), zoo.base()) for subject in (TARGET, SOURCE))
    for name, update, per in (("per_tensor", own, "tensor"), ("whole", own, "whole"), ("control", other, "tensor")):
        settings = {"orthogonal_to": update, "orthogonal_per": per}
        combine([(folder / "plain", 1.0)], folder / name, name=name, method="sum", **settings)
    return {name: folder / name for name in ROWS}


def measure(zoo: Zoo) -> dict:
    """One seed: accuracy and document perplexity on the target by row and λ."""
    lab, domain = LabModel(zoo.sft(TARGET)), zoo.domain(TARGET)
    questions, documents = domain.questions(1), domain.documents(1)

    def score(directory: Path) -> dict[str, float]:
        lab.load(load_file(directory / "model.safetensors"))
        verdicts = lab.verdicts(domain, questions, zoo.config.generation.max_new_tokens)
        return {"accuracy": sum(v.correct for v in verdicts) / len(verdicts), "perplexity": lab.perplexity(documents)}

    with tempfile.TemporaryDirectory() as scratch:
        found = {"n": len(questions), "target": score(zoo.sft(TARGET)), "rows": {}}
        sft = CheckpointUpdate(zoo.sft(TARGET), zoo.base())
        for name, path in vectors(zoo, Path(scratch)).items():
            row = {"cosine_to_sft": cosine(SkillUpdate(path), sft), "scores": {}}
            for lam in LAMBDAS:
                out = Path(scratch, f"{name}-{lam}")
                inject(zoo.sft(TARGET), [(path, lam)], out)
                row["scores"][f"{lam:g}"] = score(out)
            found["rows"][name] = row
    return found


def interval(values: list[float], sign: str = "") -> str:
    """Mean and the half width of its 95 % t interval over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{sum(values) / len(values):{sign}.3f} ± {half:.3f}"


def tables(results: dict[str, dict]) -> str:
    """Markdown: both scores, and the paired differences to v as it is."""
    seeds, text = list(results.values()), ""

    def line(label: str, name: str, what: str, minus: str | None = None) -> str:
        cells = []
        for lam in map("{:g}".format, LAMBDAS):
            values = [seed["rows"][name]["scores"][lam][what] for seed in seeds]
            if minus:
                values = [x - seed["rows"][minus]["scores"][lam][what] for x, seed in zip(values, seeds, strict=True)]
            cells.append(interval(values, "+" if minus else ""))
        cosines = [seed["rows"][name]["cosine_to_sft"] for seed in seeds]
        return f"| {label} | " + " | ".join([*cells, "" if minus else interval(cosines, "+")]) + " |\n"

    for what in ("accuracy", "perplexity"):
        alone = interval([seed["target"][what] for seed in seeds])
        text += f"### {what.capitalize()} on {TARGET}\n\nTarget SFT alone: {alone}.\n\n"
        text += "| | " + " | ".join(f"λ {lam:g}" for lam in LAMBDAS) + " | cosine to the SFT update |\n"
        text += "|---" * (len(LAMBDAS) + 2) + "|\n"
        for name, label in ROWS.items():
            text += line(label, name, what)
            if name != "plain":
                text += line("… minus v as it is, paired", name, what, "plain")
        text += "\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24, 25])
    parser.add_argument("--zoo", type=Path, default=ZOO)
    arguments = parser.parse_args()
    results = {}
    for seed in arguments.seeds:
        results[str(seed)] = measure(Zoo(arguments.zoo, seed))
        print(f"seed {seed} measured", flush=True)
    (RESULTS / "projection.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "projection.md").write_text(tables(results))
    print(tables(results))


if __name__ == "__main__":
    main()
