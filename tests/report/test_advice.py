"""What to do next: every rule speaks where its number says so, and only there."""

import pytest
from typer.testing import CliRunner

from pastry.cli import app
from pastry.config import FilesSettings
from pastry.report.advice import RULES, advise
from pastry.report.measured import Difference, Search
from tests.report.sample import PASSED, full, minimal


def said(rule: str, data):
    """The advice of one rule."""
    return next(each for each in RULES if each.__name__ == rule)(data)


def with_gain(data, mean: float, low: float, high: float):
    data.best.gain = Difference(mean=mean, low=low, high=high)
    return data


def test_the_full_sample_in_order():
    advice = advise(full())
    assert [each.kind for each in advice] == sorted((each.kind for each in advice), key=["mend", "do", "measure"].index)
    panels = [each.panel for each in advice]
    assert panels == ["confirmation", "precision", "results", "lineage", "precision", "ablation", "sources", None]


def test_the_minimal_sample_says_what_is_missing():
    missing = [each.command for each in advise(minimal()) if each.kind == "measure"]
    assert missing == [
        "pastry run CONFIG seed=9",
        "pastry search CONFIG",
        "pastry run CONFIG search.retention_file=QUESTIONS.jsonl",
        "pastry run CONFIG 'ablation={}'",
        "pastry run CONFIG 'matrix.targets=[DOMAIN, DOMAIN]'",
    ]


def test_gate_missed():
    assert said("gate_missed", minimal()) is None
    assert said("gate_missed", minimal(gate=None)) is None
    advice = said("gate_missed", minimal(gate=PASSED | {"gate_passed": False}))
    assert (advice.kind, advice.command) == ("mend", "pastry run CONFIG pretrain.steps=90")
    assert said("gate_missed", minimal(gate=PASSED | {"gate_passed": False}, curves={})).command.endswith("steps=MORE")


def test_promote_only_above_zero():
    data = with_gain(minimal(), 0.2, 0.01, 0.3)
    assert said("promote", data).command == "pastry vector promote models:/lab-planet/3 champion"
    assert "+20.0 points" in said("promote", data).text and said("do_not_promote", data) is None
    data.aliases = ["champion"]
    assert said("promote", data).command == "pastry vector show models:/lab-planet/3"
    data.registered = {}
    assert "nothing of this run is registered" in said("promote", data).text
    assert said("serve", data) is None and said("use_elsewhere", data) is None


@pytest.mark.parametrize(("low", "high", "words"), [(-0.1, 0.1, "includes 0"), (-0.3, -0.1, "hurts")])
def test_do_not_promote(low, high, words):
    data = with_gain(minimal(), 0.0, low, high)
    for rule in ("promote", "serve", "use_elsewhere"):
        assert said(rule, data) is None
    advice = said("do_not_promote", data)
    assert advice.kind == "mend" and words in advice.text and "sources=" in advice.command
    data.aliases = ["champion"]
    assert said("do_not_promote", data).command.startswith("pastry vector revoke models:/lab-planet/3 --reason '+0.0 points on")


def test_over_fitted():
    data = full()
    assert said("over_fitted", data).command == "pastry run CONFIG domain.entities=48"
    data.domain = FilesSettings(kind="files", subjects={}, validation_share=0.4)
    assert said("over_fitted", data).command == "pastry run CONFIG domain.validation_share=0.6"
    data.search.confirmation.overfit = False
    assert said("over_fitted", data) is None
    assert said("over_fitted", minimal()) is None


def test_control_moved():
    data = minimal()
    control = next(row for row in data.rows if row.name == "control_random")
    control.gain = Difference(mean=0.1, low=-0.01, high=0.2)
    assert said("control_moved", data) is None
    control.gain = Difference(mean=0.1, low=0.01, high=0.2)
    assert "control_random (+10.0 points)" in said("control_moved", data).text


def test_not_all_arrived():
    data = full()
    command = said("not_all_arrived", data).command
    assert command == (
        "pastry vector inject --target runs/lab-report/target --skill runs/lab-report/skill:1 --out DIR --rounding stochastic"
    )
    data.injected.dtype = "float16"
    assert said("not_all_arrived", data).command.endswith("--dtype float32")
    for ratio in (0.99, None):
        data.injected.realised_ratio = ratio
        assert said("not_all_arrived", data) is None


def test_documents_forgotten():
    assert said("documents_forgotten", minimal()) is None
    assert said("documents_forgotten", minimal(perplexity={})) is None
    advice = said("documents_forgotten", minimal(perplexity={"target_sft": 2.0, "past@best": 2.2}))
    assert "10.0 %" in advice.text and "penalties.perplexity" in advice.command


@pytest.mark.parametrize(
    ("tried", "best", "wider"),
    [
        ([0.0, 0.5, 1.0, 2.0], 2.0, "[0.5, 1, 2, 3, 4]"),
        ([0.0, 0.5, 1.0, 2.0], 0.5, "[0.125, 0.25, 0.5, 1, 2]"),
        ([-1.0, 0.0, 1.0], -1.0, "[-2, -1.5, -1, 1]"),
        ([0.0, 0.5, 1.0, 2.0], 1.0, None),
        ([0.0, 1.0], 1.0, None),
        ([0.0, 0.5, 1.0], {"attention": 1.0, "all": 0.5}, None),
    ],
)
def test_edge_of_the_range(tried, best, wider):
    measured = {"n": 10, "accuracy": 0.5, "low": 0.4, "high": 0.6, "source": "planet"}
    found = {"points": [measured | {"lambda": lam} for lam in tried], "best": measured | {"lambda": best}}
    advice = said("edge_of_the_range", minimal(search=Search.model_validate(found)))
    assert (advice and advice.command) == (wider and f"pastry run CONFIG 'search.lambdas={wider}'")


def test_one_group_is_enough():
    data = full()
    command = said("one_group_is_enough", data).command
    assert command == "pastry vector inject --target T --skill models:/lab-planet/3:attention=1,all=0 --out DIR"
    data.ablation.groups[0].only.gain.mean = 0.4  # of 0.45: less than nine tenths
    assert said("one_group_is_enough", data) is None
    data.ablation.groups[4].only.gain.mean = 0.45  # early layers: no module group that a recipe can name
    assert said("one_group_is_enough", data) is None
    assert said("one_group_is_enough", minimal()) is None


def test_rank_before_paying():
    data = full()
    assert "headroom" in said("rank_before_paying", data).text and "ρ = 0.81" in said("rank_before_paying", data).text
    data.matrix.signals[0].agreement.verdict = "no signal here"
    assert said("rank_before_paying", data) is None
    assert said("rank_before_paying", minimal()) is None


def test_retention_that_was_measured_is_not_asked_for():
    data = full()
    assert said("no_retention", data) is None
    for trial in data.search.trials:
        trial.retention = None
    assert said("no_retention", data).kind == "measure"


def test_the_commands_exist():
    """Every command that may be named is one, with the options that are named."""
    poor = with_gain(minimal(aliases=["champion"]), 0.0, -0.1, 0.1)
    advice = [*advise(full()), *advise(minimal()), *advise(poor)]
    for command in {each.command for each in advice if each.command}:
        words = command.split()[1:]
        named = words[: 2 if words[0] == "vector" else 1]
        shown = CliRunner().invoke(app, [*named, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, command
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, command
