"""The HTML report."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pastry.report.formatting import decimals, duration, interval, lam, percent, points
from pastry.report.measured import Difference
from pastry.report.page import PANELS, render, verdict
from tests.report.sample import full

VOID = {"meta", "br", "link", "img", "input", "hr"}
FAILED = {
    "gate_passed": False,
    "gate_tries": [{"prompted": 0.63, "pretraining": 0.95}, {"prompted": 0.702, "pretraining": 0.983}],
    "gate_wanted": {"prompted": 0.75, "pretraining": 0.99},
}


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def html(pages) -> str:
    return pages["minimal"]


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_the_page_needs_nothing_else(pages, name):
    html = pages[name]
    assert html.startswith("<!DOCTYPE html>")
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", html.replace(full().deployments[0].where, ""))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<link|<img|<iframe", without_namespaces)
    page = Page(html)
    assert not page.open
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name in ("src", "srcset") or name.startswith("on")], tag
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)


def test_every_row_and_number_is_shown(report_data, html):
    data = report_data()
    text = Page(html).text
    for row in data.rows:
        assert row.name in text
        assert row.meaning in text
        assert f"{percent(row.accuracy)}{percent(row.low)} to {percent(row.high)}" in text
        if row.gain:
            assert f"{points(row.gain.mean)}{interval(row.gain)}" in text
        for share in (row.well_formed, row.lenient, *row.by_facts.values(), *row.modes.values()):
            assert percent(share) in text
    for point in data.search.points:
        assert f"{percent(point.low)} to {percent(point.high)}" in text
    for value in data.cosines.values():
        assert decimals(value) in text
    for node in data.lineage:
        assert node.run_id in text
        assert node.fingerprint is None or node.fingerprint.removeprefix("sha256:")[:12] in text
    measured = ("1.360", "1.405", "+3.3", "1.0000 of the whole vector", "4 min 57 s")
    for shown in (*measured, data.machine, *data.registered.values(), *data.versions.values()):
        assert shown in text


def test_the_headline_is_the_paired_gain(report_data, html):
    data = report_data()
    best = next(row for row in data.rows if row.name == "past@best")
    text = Page(html).text
    assert f"{points(best.gain.mean)} points (95 % interval {interval(best.gain)})" in text
    assert f"λ = {data.lambda_best:g}" in text
    assert "seed 8" in text
    assert text.index("past@best − target_sft") < text.index("Results")


def test_same_data_same_bytes(report_data, html):
    assert render(report_data()) == html


def test_the_gate(report_data, html):
    assert "passed its gate at the first try: 86.1 %" in Page(html).text
    failed = render(report_data(gate=FAILED))
    assert '<p class="warning"><strong>Warning: the base failed its gate.' in failed
    assert "70.2 %" in Page(failed).text
    given = render(report_data(gate=None))
    assert 'class="warning"' not in given
    assert "base was given" in given


def test_hostile_names_are_text(report_data):
    evil = '<script>alert("1")</script>&$x$ </svg>\' --> {{ 7*7 }}'
    data = report_data(sources=(evil,), name=evil, target=evil, machine=evil, versions={evil: evil}, registered={evil: evil})
    data.rows[0].name = data.rows[0].meaning = evil
    data.rows[0].modes = {evil: 1.0}
    data.cosine_tables = {evil: {"0": {evil: 0.1}, "-": {evil: 0.2}}}
    html = render(data)
    page = Page(html)
    assert not page.open
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.text
    assert len(re.findall("<svg", html)) == len(re.findall("</svg>", html)) == 9  # six figures, two graphs, their arrow head


def test_accessible(pages):
    page = Page(pages["full"])
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert tags.count("figure") == tags.count("figcaption") == tags.count("svg") - 1 == 11
    assert all(attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") in ("img", "region"))
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_a_run_may_lack(report_data):
    """No comparisons, nothing measured beside, a base that is given: the page says so instead of failing."""
    data = report_data(
        gate=None,
        curves={},
        perplexity={},
        registered={},
        cosines={"sft_source_rl": None},
        cosine_tables={"of tensors outside any layer": {"-": {"x": None}}},
    )
    for part in (data.injected, *data.injected.tensors.values()):
        part.realised_ratio = part.relative_error = None
    data.rows = [row for row in data.rows if row.name in ("target_sft", "past@best")]
    html = render(data)
    text = Page(html).text
    assert "– of the whole vector" in text
    assert "rl_on_target" not in text
    assert "control" not in text
    assert html.count("<figure>") == 4  # rows, λ curves, two graphs


def test_sections_are_there_where_there_is_something(pages):
    optional = {"confirmation", "pareto", "sources", "ablation"}
    for name, absent in (("full", set()), ("minimal", optional)):
        tags = Page(pages[name]).tags
        linked = [attributes["href"][1:] for tag, attributes in tags if tag == "a"]
        there = [attributes["id"] for tag, attributes in tags if tag == "h2"]
        assert there == [panel for panel in PANELS if panel not in absent]
        assert set(linked) == set(there)


def test_what_the_search_found(pages):
    data, text = full(), Page(pages["full"]).text
    fresh, validation = data.search.confirmation.fresh, data.search.confirmation.validation
    for found in (fresh, validation):
        assert f"{found.n}{percent(found.accuracy)}{percent(found.low)} to {percent(found.high)}" in text
    assert "The difference suggests over-fitting: fresh − validation is −17.0 points" in text
    for trial in data.search.trials:
        row = f"{lam(trial.lambda_)}{trial.n}{percent(trial.accuracy)}{percent(trial.low)} to {percent(trial.high)}"
        assert (f"{row}{decimals(trial.perplexity)}" in text) == trial.complete
    stopped = sum(not trial.complete for trial in data.search.trials)
    assert stopped and f"{stopped} more were stopped early" in text


def test_no_over_fitting():
    data = full()
    data.search.confirmation.overfit = False
    text = Page(render(data)).text
    assert "no sign that the choice over-fitted" in text and "suggests over-fitting" not in text


def test_sources_and_modules(pages):
    data, text = full(), Page(pages["full"]).text
    for row in data.matrix.gains.values():
        for gain in row.values():
            assert f"{percent(gain.before)}{percent(gain.after)}{points(gain.mean)}{interval(gain)}" in text
    for signal in data.matrix.signals:
        assert f"{signal.name}{signal.meaning}" in text
        assert f"{signal.agreement.n}{signal.agreement.verdict}{signal.agreement.reason}" in text
    assert "Agreed with the measured gains: headroom. The sources do not differ measurably in castle (p = 0.31)" in text
    for group in data.ablation.groups:
        shown = [f"{points(found.gain.mean)}{interval(found.gain)}" for found in (group.only, group.without)]
        assert f"{group.group}{group.tensors}{percent(group.norm_share)}{''.join(shown)}" in text


def test_no_signal_is_a_result():
    data = full()
    for signal in data.matrix.signals:
        signal.agreement.verdict = "no signal here"
    assert "No signal was useful here" in Page(render(data)).text


def test_the_worst_tensors_are_named(pages):
    tensors = full().injected.tensors
    worst = sorted(tensors, key=lambda name: tensors[name].realised_ratio)
    text = Page(pages["full"]).text
    assert all(name in text for name in worst[:10]) and worst[-1] not in text
    assert "bfloat16; the vector in bfloat16, computed in float32 from float32" in text


def test_a_lambda_a_module_group(report_data):
    data = report_data()
    data.search.best.lambda_ = {"attention": 1.0, "all": 0.5}
    text = Page(render(data)).text
    assert "at λ = attention=1,all=0.5" in text and "lies on none of these curves" in text


def test_numbers():
    assert [percent(0.9491), points(0.4494), points(-0.0801), points(-0.0001)] == ["94.9", "+44.9", "−8.0", "+0.0"]
    assert [decimals(-0.0161), decimals(-0.0001), decimals(None), decimals(1, 1)] == ["−0.016", "0.000", "–", "1.0"]
    assert [lam(1.0), lam(0.25), lam({"attention": 1, "all": 0.5}), lam(None)] == ["1", "0.25", "attention=1,all=0.5", "–"]
    assert [duration(s) for s in (7.34, 59.97, 135, 7500)] == ["7.3 s", "1 min 0 s", "2 min 15 s", "2 h 5 min"]


def test_verdict():
    assert "helps" in verdict(Difference(mean=0.1, low=0.01, high=0.2))
    assert "hurts" in verdict(Difference(mean=-0.1, low=-0.2, high=-0.01))
    assert "includes zero" in verdict(Difference(mean=0.0, low=-0.1, high=0.1))
