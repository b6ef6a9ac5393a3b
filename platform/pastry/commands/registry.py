"""`pastry vector register`, `list`, `show`, `promote`, `revoke` and `pull`, and `pastry lineage`: the registry."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pastry.commands.options import AsJson, say
from pastry.errors import PastryError

app = typer.Typer()
Uri = Annotated[str, typer.Argument(metavar="URI", help="models:/name@alias or models:/name/3.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="May be given several times.")]


class Order(StrEnum):
    """What a listing is sorted by."""

    name = "name"
    gain = "gain"
    cosine = "cosine"
    created = "created"


@app.command()
def register(
    directory: Annotated[Path, typer.Argument(help="A skill vector, or a checkpoint to serve as base or target.")],
    name: Annotated[str | None, typer.Option(help="Registered name; default: the skill's own.")] = None,
    alias: Annotated[str | None, typer.Option(help="For instance champion.")] = None,
    tag: Tags = None,
    description: Annotated[str, typer.Option(help="In words; the model card says the rest by itself.")] = "",
    store: Annotated[
        str | None,
        typer.Option(help="Directory or s3://bucket/prefix of weights; default: PASTRY_STORE, or beside the registry."),
    ] = None,
    parent_run: Annotated[str | None, typer.Option(help="MLflow run to hang the registration under.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a skill vector into the registry; its weights go into the store, not through MLflow's server.

    The registry is MLFLOW_TRACKING_URI, else runs/mlflow.db. Weights are verified, and
    linked rather than copied where the store is on the same file system. The same
    weights are the same version, from wherever they are registered.

    \b
    pastry vector register runs/quickstart/skill --alias champion --tag team=search
    """
    from pastry.registry.catalogue import Catalogue

    said = {"name": name, "alias": alias, "tags": _tags(tag), "description": description, "parent_run": parent_run}
    version = Catalogue(store=store).register(directory, **said)
    at = "".join(f" @{alias}" for alias in version.aliases)
    say(
        as_json,
        version.document(),
        f"{version.uri}{at}: {version.facts.kind} {version.fingerprint}\nweights in {version.location}"
        f"\nnext: pastry vector show {version.uri}",
    )


@app.command("list")
def list_versions(
    tag: Tags = None,
    name: Annotated[str | None, typer.Option(help="Only the versions of this name.")] = None,
    sort: Annotated[Order, typer.Option(help="gain: the best first; cosine: the nearest to orthogonal first.")] = Order.name,
    as_json: AsJson = False,
) -> None:
    """Every registered version: what it is, how good, how near orthogonal.

    \b
    pastry vector list --tag team=search --sort gain
    """
    from pastry.commands.registry_tables import show_versions
    from pastry.registry.catalogue import Catalogue

    versions = Catalogue().list(name=name, tags=_tags(tag))
    if sort is Order.gain:
        versions.sort(key=lambda version: -version.facts.gain.mean if version.facts.gain else float("inf"))
    elif sort is Order.cosine:
        versions.sort(key=lambda each: float("inf") if each.facts.cosine_to_sft is None else abs(each.facts.cosine_to_sft))
    elif sort is Order.created:
        versions.sort(key=lambda version: version.created, reverse=True)
    if as_json:
        say(True, {"versions": [version.document() for version in versions]}, "")
    elif versions:
        show_versions(versions)
    else:
        typer.echo(
            "nothing registered"
            + (" with this name and these tags" if name or tag else "")
            + "; next: pastry vector register DIR"
        )


@app.command()
def show(uri: Uri, as_json: AsJson = False) -> None:
    """One version: its card, where it lies, whether it is served or revoked."""
    from pastry.registry.catalogue import Catalogue

    version = Catalogue().show(uri)
    lines = [f"{version.uri}{''.join(f' @{alias}' for alias in version.aliases)}, {version.facts.kind}, {version.created}"]
    if version.revoked:
        lines.append(f"REVOKED on {version.revoked['at'][:10]}: {version.revoked['reason']}")
    lines += [f"fingerprint {version.fingerprint}"] + [f"weights in {version.location}"] * (not version.recipe)
    lines += [f"served at {place['endpoint']} as '{place['as']}' since {place['since']}" for place in version.served]
    if version.tags:
        lines.append("tags " + ", ".join(f"{key}={value}" for key, value in sorted(version.tags.items())))
    lines += ["", version.description, "", f"next: pastry lineage {version.uri}"]
    say(as_json, version.document(), "\n".join(lines))


@app.command()
def promote(uri: Uri, alias: Annotated[str, typer.Argument(help="For instance champion.")], as_json: AsJson = False) -> None:
    """Have an alias name this version.

    \b
    pastry vector promote models:/lab-planet/4 champion
    """
    from pastry.registry.catalogue import Catalogue

    moved = Catalogue().promote(uri, alias)
    version = moved.version
    before = f"{alias} was not given" if moved.before is None else f"{alias} was {moved.before}"
    if moved.before == version.number:
        before = "as it was"
    say(
        as_json,
        {"uri": version.uri, "alias": alias, "before": moved.before},
        f"models:/{version.name}@{alias} is now version {version.number} ({before})"
        + (
            f"\nback: pastry vector promote models:/{version.name}/{moved.before} {alias}"
            if moved.before not in (None, version.number)
            else ""
        ),
    )


@app.command()
def revoke(
    uri: Uri,
    reason: Annotated[str, typer.Option(help="Shown to whoever uses the version from now on.")],
    as_json: AsJson = False,
) -> None:
    """Have a version refused everywhere: by commands, servers, and recipes that contain it. Nothing is deleted.

    \b
    pastry vector revoke models:/lab-planet/3 --reason "trained on the test questions"
    """
    from pastry.registry.catalogue import Catalogue

    done = Catalogue().revoke(uri, reason)
    version = done.version
    lines = [f"{version.uri} is revoked since {version.revoked['at']}: {version.revoked['reason']}"]
    lines += [
        f"still named @{alias}; next: pastry vector promote models:/{version.name}/OTHER {alias}" for alias in done.aliases
    ]
    lines += [f"the same weights are {uri}, which is not revoked" for uri in done.same]
    lines += [f"{uri} was made with it" for uri in done.used_in]
    lines += [f"still in memory of {place['endpoint']}: restart it" for place in version.served]
    links = {"aliases": done.aliases, "same": done.same, "used_in": done.used_in, "served": version.served}
    say(as_json, {"uri": version.uri} | version.revoked | links, "\n".join(lines))


@app.command()
def pull(uri: Uri, out: Annotated[Path, typer.Option(help="New directory for the weights.")], as_json: AsJson = False) -> None:
    """A copy of a version's weights, every tensor verified."""
    from pastry.registry.catalogue import Catalogue

    version = Catalogue().pull(uri, out)
    following = f"pastry vector inspect {out}" if version.facts.kind == "skill" else f"pastry vector inject --target {out} …"
    say(
        as_json,
        {"uri": version.uri, "out": str(out), "fingerprint": version.fingerprint},
        f"{out}: {version.uri}, {version.fingerprint}\nnext: {following}",
    )


def lineage(
    what: Annotated[str, typer.Argument(help="models:/ URI, directory, fingerprint, data digest, or id of a stage's run.")],
    as_json: AsJson = False,
) -> None:
    """What something was made from, what was made of it, and where that is served.

    \b
    pastry lineage models:/lab-planet@champion
    pastry lineage sha256:3f2a…      what was built from this dataset?
    """
    from pastry.commands.registry_tables import show_lineage
    from pastry.registry.catalogue import Catalogue
    from pastry.registry.lineage import Lineage, tree

    graph = Lineage(Catalogue())
    node = graph.find(what)
    document = {"what": node.document(), "made_from": tree(graph, node, graph.made_from)["next"]}
    document["made_of_it"] = tree(graph, node, graph.made_of)["next"]
    if as_json:
        say(True, document, "")
    else:
        show_lineage(document)


def _tags(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or []]
    for key, equals, value in pairs:
        if not key or not equals:
            raise PastryError(f"--tag {key}{equals}{value}: wanted KEY=VALUE")
    return {key: value for key, _, value in pairs}
