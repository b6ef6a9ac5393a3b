"""What `pastry vector list` and `pastry lineage` show."""

from __future__ import annotations

from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from pastry.registry.versions import Version

_WIDEST = 1000


def show_versions(versions: list[Version]) -> None:
    """A row for each version."""
    grid = Table("version", "aliases", "kind", "gain in points [95 %]", "cosine to SFT", "λ", "tags", box=box.SIMPLE)
    for version in versions:
        facts = version.facts
        state = f"REVOKED: {version.revoked['reason']}" if version.revoked else ""
        state = state or (f"served at {', '.join(place['endpoint'] for place in version.served)}" if version.served else "")
        lam = facts.gain.lam if facts.gain else facts.lambda_advice
        grid.add_row(
            escape(f"{version.name}/{version.number}"),
            escape(", ".join(version.aliases)),
            facts.kind,
            escape(str(facts.gain)) if facts.gain else "",
            "" if facts.cosine_to_sft is None else f"{facts.cosine_to_sft:+.4f}",
            "" if lam is None else str(lam),
            escape(", ".join(filter(None, [state, *(f"{key}={value}" for key, value in sorted(version.tags.items()))]))),
        )
    console = Console(highlight=False, emoji=False, width=_WIDEST)
    console.print(grid, width=console.measure(grid).maximum)
    first = versions[0]
    typer.echo(f"{len(versions)} versions; next: pastry vector show {first.uri}")


def show_lineage(document: dict[str, Any]) -> None:
    """Two trees: what it was made from, and what was made of it."""
    console = Console(highlight=False, emoji=False, markup=False, width=_WIDEST)
    what = document["what"]
    console.print(_line(what))
    for title, key in (("made from", "made_from"), ("made of it", "made_of_it")):
        branch = Tree(title if document[key] else f"{title}: nothing that the registry knows")
        _grow(branch, document[key])
        console.print(branch)
    if what["versions"]:
        typer.echo(f"next: pastry vector show {what['versions'][0]}")
    else:
        typer.echo("next: pastry vector list")


def _grow(branch: Tree, nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        _grow(branch.add(f"{node['role']}: {_line(node)}"), node["next"])


def _line(node: dict[str, Any]) -> str:
    scheme, _, digits = node["fingerprint"].partition(":")
    parts = [node["label"], f"{scheme}:{digits[:12]}"]
    stages = [f"{made['stage']} (run {made['run'][:8]})" for made in node["made_by"]]
    parts += [f"from {', '.join(stages)}"] if stages and not node.get("above") else []
    if node.get("above"):
        parts.append("see above")
    else:
        parts += [f"REVOKED {uri}: {reason}" for uri, reason in node["revoked"].items()]
        parts += [f"served at {place['endpoint']} as '{place['as']}' since {place['since']}" for place in node["served"]]
    return "  ".join(parts)
