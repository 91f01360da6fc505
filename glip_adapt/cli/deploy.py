"""The verbs ``bake`` and ``export``: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import IMPORTING, AdaptersTrunk, AsJson, Checkpoint, Vocabulary, open_trunk

deploy_app = typer.Typer()


@deploy_app.command()
def bake(
    adapter: Annotated[Path, typer.Argument(help="Folder saved by `adapt`.")],
    out: Annotated[Path, typer.Option(help="Folder for the baked model.")],
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter and its trunk into one detector, without text encoder and tokenizer, for fast starts.

    Example: glip-adapt bake adapters/raccoon --out baked/raccoon
    """
    with terminal.working(IMPORTING):
        import glip_adapt
        from glip_adapt import load_adapter
        from glip_adapt.adapters.storage import BAKED_DESCRIPTION_FILE, BAKED_TENSORS_FILE
    model = load_adapter(adapter, trunk=open_trunk(trunk, checkpoint, vocabulary, "cpu", adapter))
    glip_adapt.bake(model).save(out)
    size = sum((out / name).stat().st_size for name in (BAKED_DESCRIPTION_FILE, BAKED_TENSORS_FILE))
    method, classes = model.adapter.name, model.class_names
    if as_json:
        terminal.print_json({"folder": str(out), "method": method, "classes": classes, "bytes": size})
    else:
        terminal.say(f"{method} for {', '.join(classes)} → {out} ({size / 1e6:.1f} MB)")


@deploy_app.command()
def export(
    baked: Annotated[Path, typer.Argument(help="Folder saved by `bake`.")],
    out: Annotated[Path, typer.Option(help="File to write, .onnx.", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Write a baked model as ONNX: one image in; boxes, scores and labels out.

    The metadata of the file say how to resize an image. Both sides of the result must lie between least_side and 4096
    pixels.

    Example: glip-adapt export baked/raccoon --out raccoon.onnx
    """
    with terminal.working(IMPORTING):
        from glip_adapt import load_baked
        from glip_adapt.share.export import export_onnx
    model = load_baked(baked)
    with terminal.working(f"writing {out}"):
        export_onnx(model, out)
    size = out.stat().st_size
    if as_json:
        terminal.print_json({"file": str(out), "classes": model.class_names, "bytes": size})
    else:
        terminal.say(f"{out} ({size / 1e6:.1f} MB)")
