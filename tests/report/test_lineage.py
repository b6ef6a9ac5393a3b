"""The lineage and how it is laid out."""

from itertools import pairwise

from pastry.report.graph import Node, layout
from pastry.report.lineage import all_stages, chain
from tests.report.sample import full, minimal


def titles(graph) -> list[str]:
    return [box.node.lines[0] for box in graph.boxes]


def test_arrows_point_down_and_what_follows_is_left_out():
    def node(name: str, *inputs: str) -> Node:
        return Node(name, (name,), inputs)

    graph = layout([node("a"), node("b", "a"), node("c", "a", "b"), node("d", "a"), node("e", "c", "d", "elsewhere")])
    y = {box.node.name: box.y for box in graph.boxes}
    assert y["a"] < y["b"] == y["d"] < y["c"] < y["e"]
    assert len(graph.arrows) == 5  # a→b, b→c, a→d, c→e, d→e; a→c follows from a→b→c
    for one, other in pairwise(sorted(graph.boxes, key=lambda box: (box.y, box.x))):
        assert one.y < other.y or one.x + graph.box_width < other.x
    assert all(0 <= box.x <= graph.width - graph.box_width for box in graph.boxes)


def test_from_the_base_to_the_recipe():
    data = minimal()
    graph = chain(data)
    assert titles(graph)[:2] == ["base", "base, gated"] and titles(graph)[-2:] == ["recipe", "deployment"]
    names = {box.node.name for box in graph.boxes}
    assert {"rl/planet/1", "extract/planet/2", "sft/ship"} <= names
    assert not names & {"search", "evaluate", "rl/ship", "sft/planet/answers"}  # they weigh; nothing was made of them
    extract = next(box.node for box in graph.boxes if box.node.name == "extract/planet/2")
    node = next(node for node in data.lineage if node.stage == "extract/planet/2")
    assert node.run_id[:8] in extract.lines[2] and node.fingerprint.removeprefix("sha256:")[:12] in extract.lines[2]
    assert graph.boxes[-1].node.lines[1] == "none yet"
    assert len(all_stages(data).boxes) == len(data.lineage)


def test_deployed():
    graph = chain(full())
    assert graph.boxes[-1].node.lines == ("deployment", "http://127.0.0.1:8000", "since 2026-05-05")


def test_a_combination_is_made_of_all_its_vectors():
    data = full()
    data.search.best.source = "consensus(planet,person,models:/lab-drug/3)"
    data.search.best.of = ["planet", "person/1", "models:/lab-drug/3"]
    graph = chain(data)
    combined = next(box.node for box in graph.boxes if box.node.name == "combined")
    assert combined.inputs == ("extract/planet/2", "extract/person/1", "models:/lab-drug/3")
    assert combined.lines[1] == "consensus(planet,person,models:…"
    registered = next(box.node for box in graph.boxes if box.node.name == "models:/lab-drug/3")
    assert registered.lines[2] == "from the registry"
    assert "extract/person/2" not in {box.node.name for box in graph.boxes}
