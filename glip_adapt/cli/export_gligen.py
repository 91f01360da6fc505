"""The verb ``export-gligen``: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import AsJson

export_gligen_app = typer.Typer()


@export_gligen_app.command("export-gligen")
def export_gligen(
    results: Annotated[Path, typer.Argument(help="NAME.json that `detect` wrote; its image must still be there.")],
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write; default: NAME.gligen.json beside it.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the shown detections as phrases and boxes for GLIGEN, which draws a new image in the same layout.

    The pipeline of diffusers takes them: StableDiffusionGLIGENPipeline (extra `gligen`). The best 30 are written.

    Example: glip-adapt export-gligen runs/detect/photo.json
    """
    from glip_adapt.share import gligen

    target = out or results.with_name(f"{results.stem}.gligen.json")
    layout = gligen.export_gligen(results, target)
    if as_json:
        terminal.print_json(layout)
    else:
        terminal.say(f"{len(layout['gligen_phrases'])} objects → {target}")
