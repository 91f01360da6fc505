"""The verbs ``push`` and ``pull``: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import IMPORTING, AsJson

share_app = typer.Typer()

Repository = Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub, owner/name.")]


@share_app.command()
def push(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder saved by `adapt`.")],
    repository: Repository,
    licence: Annotated[
        str | None, typer.Option(help='Licence of the adapter, in the short form of the Hub, such as "mit".')
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Image to show on the card, such as one that `detect` drew.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter to the Hugging Face Hub, with a generated model card.

    Example: glip-adapt push adapters/raccoon me/raccoon-5-shot --licence mit
    """
    with terminal.working(IMPORTING):
        from glip_adapt.share.hub import push_to_hub
    address = push_to_hub(folder, repository, licence=licence, picture=picture, private=private)
    if as_json:
        terminal.print_json({"folder": str(folder), "address": str(address)})
    else:
        terminal.say(f"{folder} → {address}")


@share_app.command()
def pull(
    repository: Repository,
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    as_json: AsJson = False,
) -> None:
    """Download an adapter from the Hugging Face Hub, and check it; its files hold data only.

    Example: glip-adapt pull me/raccoon-5-shot --out adapters/raccoon
    """
    with terminal.working(IMPORTING):
        from glip_adapt.share import hub
    found = hub.pull(repository, out, revision)
    classes = [prompt.name for prompt in found.classes]
    if as_json:
        facts = {"folder": str(out), "method": found.method, "trunk": found.trunk.name, "classes": classes}
        terminal.print_json(facts)
    else:
        terminal.say(f"{found.method} on {found.trunk.name}, for {', '.join(classes)} → {out}")
