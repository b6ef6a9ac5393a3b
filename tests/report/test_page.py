"""The HTML report."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pastry.report.data import Difference, LineageNode
from pastry.report.page import cosine, duration, interval, lineage_graph, percent, points, render, verdict
from pastry.report.plots import figures

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
def html(report_data) -> str:
    return render(report_data())


@pytest.fixture(scope="module")
def html_of_three(report_data) -> str:
    return render(report_data(sources=("planet", "person", "drug")))


@pytest.mark.parametrize("page", ["html", "html_of_three"])
def test_the_page_needs_nothing_else(request, page):
    html = request.getfixturevalue(page)
    assert html.startswith("<!DOCTYPE html>")
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", html)
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
    for point in data.search:
        assert f"{percent(point.low)} to {percent(point.high)}" in text
    for value in data.cosines.values():
        assert cosine(value) in text
    for node in data.lineage:
        assert node.run_id in text
        assert node.fingerprint is None or node.fingerprint.removeprefix("sha256:")[:12] in text
    measured = ("1.360", "1.405", "+3.3", "1.0000", "4 min 57 s")
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
    assert len(re.findall("<svg", html)) == len(re.findall("</svg>", html)) == 6


def test_accessible(html_of_three):
    page = Page(html_of_three)
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert tags.count("figure") == tags.count("figcaption") == tags.count("svg") == 6
    assert all(attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") in ("img", "region"))
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes and tag in ("h2", "g", "section", "marker")]
    assert len(ids) == len(set(ids))


def test_what_a_run_may_lack(report_data):
    """No comparisons, nothing measured beside, a base that is given: the page says so instead of failing."""
    data = report_data(
        gate=None,
        curves={},
        perplexity={},
        realised_ratio=None,
        registered={},
        cosines={"sft_source_rl": None},
        cosine_tables={"of tensors outside any layer": {"-": {"x": None}}},
    )
    data.rows = [row for row in data.rows if row.name in ("target_sft", "past@best")]
    text = Page(render(data)).text
    assert "not measured" in text
    assert "rl_on_target" not in text
    assert "control" not in text
    assert list(figures(data)) == ["accuracies", "lambda"]


def test_figures_for_mlflow(report_data, tmp_path):
    drawn = figures(report_data(layers=28))
    assert list(drawn) == ["accuracies", "lambda", "cosines", "losses", "rewards"]
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png")
    shown = {text.get_text() for text in drawn["cosines"].axes[0].texts}
    assert {"–", "0.00"} <= shown
    assert "-" not in "".join(shown)


def test_lineage_points_down_and_leaves_out_what_follows():
    def node(stage: str, *inputs: str) -> LineageNode:
        return LineageNode(stage=stage, kind="sft", inputs=list(inputs), fingerprint=None, run_id="", seconds=0)

    graph = lineage_graph([node("a"), node("b", "a"), node("c", "a", "b"), node("d", "a"), node("e", "c", "d", "elsewhere")])
    y = {box.node.stage: box.y for box in graph.boxes}
    assert y["a"] < y["b"] == y["d"] < y["c"] < y["e"]
    assert len(graph.arrows) == 5  # a→b, b→c, a→d, c→e, d→e; a→c follows from a→b→c
    for one, other in pairwise(sorted(graph.boxes, key=lambda box: (box.y, box.x))):
        assert one.y < other.y or one.x + graph.box_width < other.x
    assert all(0 <= box.x <= graph.width - graph.box_width for box in graph.boxes)


def test_numbers():
    assert [percent(0.9491), points(0.4494), points(-0.0801), points(-0.0001)] == ["94.9", "+44.9", "−8.0", "+0.0"]
    assert [cosine(-0.0161), cosine(-0.0001), cosine(None)] == ["−0.016", "0.000", "–"]
    assert [duration(s) for s in (7.34, 59.97, 135, 7500)] == ["7.3 s", "1 min 0 s", "2 min 15 s", "2 h 5 min"]


def test_verdict():
    assert "helps" in verdict(Difference(mean=0.1, low=0.01, high=0.2))
    assert "hurts" in verdict(Difference(mean=-0.1, low=-0.2, high=-0.01))
    assert "includes zero" in verdict(Difference(mean=0.0, low=-0.1, high=0.1))
