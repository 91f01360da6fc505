"""The verb ``studio``: parse, serve the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.data import FormatName
from glip_adapt.cli.listening import address_of, listen
from glip_adapt.cli.options import AdaptersTrunk, Checkpoint, Device, Vocabulary, open_trunk

studio_app = typer.Typer()

PORT = 8420
"""Where the page is, if that port is free."""


@studio_app.command()
def studio(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, of which some may be labelled.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on. By 0.0.0.0 other machines reach the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default=f"{PORT}, or a free one")
    ] = None,
    format: FormatName = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
) -> None:
    """Open a page to label a few pictures, adapt to them, and see what has changed.

    Labels are saved in the folder with every change, in the format of its labels, without any as COCO. Adapters are
    saved in its folders adapter, adapter-2 and so on. The page is for this machine alone unless --host says otherwise,
    and opens only by the address that is printed, which holds a token. Ends with Ctrl-C. Needs the extra `studio`.

    Example: glip-adapt studio photos/
    """
    try:
        import uvicorn

        from glip_adapt.share.studio.adapters import adapters_in
        from glip_adapt.share.studio.guard import hosts_of, new_token
        from glip_adapt.share.studio.labels import LabelStore
        from glip_adapt.share.studio.routes import Studio, create_app
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise RuntimeError("The page needs packages: pip install 'glip-adapt[studio]'.") from error
    store = LabelStore(folder, format)
    listening = listen(host, port, PORT)
    served = Studio(store)
    newest = next((store.folder / name for name in adapters_in(store.folder)), None)
    served.load(lambda: open_trunk(trunk, checkpoint, vocabulary, device, newest if trunk is None else None))
    token = new_token()
    address = f"{address_of(host, listening)}?token={token}"
    labelled = sum(labels.is_labelled for *_, labels in store.overview())
    terminal.say(f"{len(store.pictures)} pictures, {labelled} labelled ({store.format}). Open {address}")
    if not any(name in ("localhost", "127.0.0.1") for name in hosts_of(host)) or "*" in hosts_of(host):
        terminal.note(
            "Other machines reach this page, and nothing is encrypted on the way: give the address to no one else."
        )
    terminal.note("Ctrl-C ends it; all labels are saved already.")
    config = uvicorn.Config(create_app(served, hosts_of(host), token), log_level="warning", lifespan="off", ws="none")
    uvicorn.Server(config).run(sockets=[listening])
