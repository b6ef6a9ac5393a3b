"""The lineage as a graph: what the served model was made of, and every stage of the run."""

from __future__ import annotations

from pastry.report.data import ReportData
from pastry.report.formatting import lam, short
from pastry.report.graph import Graph, Node, layout

PARTS = {
    "base": "base",
    "pretrain": "base",
    "gate": "base, gated",
    "midtrain": "base, mid-trained",
    "sft": "SFT",
    "rl": "RL",
    "extract": "skill vector",
    "inject": "SFT + vector",
}
"""What a kind of stage adds to the served model, in the words of the paper; other kinds weigh and choose."""
LONGEST = 32
"""Characters in a line of a box."""


def all_stages(data: ReportData) -> Graph:
    """Every stage of the run with the fingerprint of what it made."""
    nodes = []
    for node in data.lineage:
        lines = (node.stage, short(node.fingerprint)) if node.fingerprint else (node.stage,)
        nodes.append(Node(node.stage, lines, tuple(node.inputs), "skill" if node.kind == "extract" else ""))
    return layout(nodes)


def chain(data: ReportData) -> Graph:
    """From the base to where it is served: what the winning recipe was made of, with fingerprints and MLflow runs."""
    stages, best = {node.stage: node for node in data.lineage}, data.search.best
    # A source's name is its last round's vector; "planet/1" is that of round 1; anything else comes from the registry.
    named = {name: (f"extract/{name}/{data.rounds}", f"extract/{name}") for name in best.of or [best.source]}
    vectors = [next((stage for stage in made if stage in stages), name) for name, made in named.items()]
    target = next(name for name in (f"sft/{data.target}/second", f"sft/{data.target}") if name in stages)
    parts: set[str] = set()
    wanted = [*vectors, target]
    while wanted:
        node = stages.get(wanted.pop())
        if node and node.kind in PARTS and node.stage not in parts:
            parts.add(node.stage)
            wanted += node.inputs
    nodes = []
    for node in data.lineage:
        if node.stage in parts:
            lines = (PARTS[node.kind], node.stage, f"{short(node.fingerprint)} · run {node.run_id[:8]}")
            look = "skill" if node.kind == "extract" else ""
            nodes.append(Node(node.stage, lines, tuple(name for name in node.inputs if name in parts), look))
    for vector in vectors:
        if vector not in stages:
            nodes.append(Node(vector, ("skill vector", _clipped(vector), "from the registry"), (), "skill"))
    if len(vectors) > 1:
        nodes.append(Node("combined", ("combined vector", _clipped(best.source)), tuple(vectors), "skill"))
        vectors = ["combined"]
    uri = data.registered.get("recipe", "not registered").removeprefix("models:/")
    lines = ("recipe", _clipped(uri), _clipped(f"λ = {lam(best.lambda_)}"))
    nodes.append(Node("recipe", lines, (target, *vectors), "skill"))
    for i, deployment in enumerate(data.deployments):
        lines = ("deployment", _clipped(deployment.where), f"since {deployment.since[:10]}")
        nodes.append(Node(f"deployment {i}", lines, ("recipe",)))
    if not data.deployments:
        nodes.append(Node("deployment", ("deployment", "none yet"), ("recipe",), "absent"))
    return layout(nodes)


def _clipped(text: str) -> str:
    """Short enough for a box; the page has the whole of it elsewhere."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
