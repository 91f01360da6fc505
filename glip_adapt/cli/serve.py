"""The verb ``serve``: parse, load, serve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.listening import address_of, listen
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    Checkpoint,
    Device,
    InPrecision,
    ShortSide,
    Vocabulary,
    open_trunk,
    view_of,
)

serve_app = typer.Typer()

PORT = 9090
"""Where the service is, if that port is free; Label Studio expects its backend there."""


@serve_app.command()
def serve(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Folders saved by `adapt`, all on one trunk, or by `bake`. A task has the name of its folder; "
            "NAME=FOLDER gives it another.",
            metavar="ADAPTER...",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond this machine, requests need a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default=f"{PORT}, or a free one")
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="GLIP_ADAPT_TOKEN",
            help="That requests need. Other users of this machine see options: set the variable instead.",
            show_default="none on this machine, else a new one",
        ),
    ] = "",
    most_megabytes: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 20,
    most_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest image, in millions of pixels.")] = 50,
    most_waiting: Annotated[
        int, typer.Option(min=1, help="Requests at a time; more are told to come again: status 503.")
    ] = 32,
    label_studio: Annotated[
        str, typer.Option(help="Address of the only Label Studio whose images are fetched; key: LABEL_STUDIO_API_KEY.")
    ] = "",
    local_files: Annotated[
        Path | None, typer.Option(help="Root of the local files of Label Studio, read in place.", file_okay=False)
    ] = None,
    short_side: ShortSide = None,
    precision: InPrecision = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
) -> None:
    """Detect in images that programs send: one detector, many tasks.

    POST /detect takes an image, as the body or in a form, and answers with its boxes; GET /tasks lists the tasks,
    GET /metrics numbers for Prometheus, GET /health that it is there. The same address is an ML backend for Label
    Studio. For this machine alone unless --host says otherwise. Ends with Ctrl-C. Needs the extra `serve`.

    Example: glip-adapt serve adapters/tools adapters/signs
    """
    folders = _folders(adapters)
    try:
        import python_multipart  # noqa: F401  # of which starlette says nothing before the first form
        import uvicorn

        from glip_adapt.share.serving.metrics import Metrics  # noqa: F401
        from glip_adapt.share.studio.guard import hosts_of, new_token
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette", "python_multipart", "prometheus_client"):
            raise
        raise RuntimeError("The service needs packages: pip install 'glip-adapt[serve]'.") from error
    listening = listen(host, port, PORT)
    with terminal.working(IMPORTING):
        from glip_adapt.share.serving.guard import is_loopback
        from glip_adapt.share.serving.references import References
        from glip_adapt.share.serving.routes import create_app
        from glip_adapt.share.serving.service import Service, load_tasks
        from glip_adapt.share.serving.uploads import Limits
    limits = Limits(
        most_bytes=int(1e6 * most_megabytes), most_pixels=int(1e6 * most_megapixels), most_waiting=most_waiting
    )
    key = os.environ.get("LABEL_STUDIO_API_KEY", "")
    references = References(label_studio=label_studio, key=key, local_files=local_files, most_bytes=limits.most_bytes)
    tasks = load_tasks(
        folders,
        lambda adapter: open_trunk(trunk, checkpoint, vocabulary, device, adapter),
        lambda view: view_of(view, short_side, precision),
        device,
    )
    if not token and not is_loopback(host):
        token = new_token()
        terminal.note(f"Requests need the header Authorization: Bearer {token}")
    for task in tasks.values():
        terminal.say(f"{task.name}: {', '.join(task.model.class_names)} ({task.model.trunk_name})")
    terminal.say(f"Listening on {address_of(host, listening)}")
    terminal.note("Ctrl-C ends it.")
    service = Service(tasks, limits)
    app = create_app(service, hosts_of(host), token, references)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        service.close()


def _folders(stated: Sequence[str]) -> dict[str, Path]:
    """Return task → folder; a mistake is told before torch is imported.

    Raises:
        FileNotFoundError: if a folder holds no model.
        ValueError: if two tasks have one name.
    """
    folders: dict[str, Path] = {}
    for text in stated:
        name, sign, place = text.partition("=")
        if not sign or Path(text).exists():
            name, place = Path(os.path.abspath(text)).name, text
        folder = Path(place)
        if not any((folder / file).is_file() for file in ("adapter.json", "baked.json")):
            raise FileNotFoundError(f"There is no model in {folder}. Name a folder saved by `adapt` or `bake`.")
        if name in folders:
            raise ValueError(f"Two tasks are called {name!r}. Give one another name: NAME={folder}")
        folders[name] = folder
    return folders
