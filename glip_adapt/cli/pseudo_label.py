"""The verb ``pseudo-label``: parse, call the library, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.data import FORMAT_NAMES
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    AsJson,
    Checkpoint,
    Classes,
    Device,
    ShortSide,
    Vocabulary,
    open_model,
    open_trunk,
    split_names,
    view_of,
)

pseudo_label_app = typer.Typer()


@pseudo_label_app.command("pseudo-label")
def pseudo_label(
    photographs: Annotated[
        Path, typer.Argument(help="Folder of images; some may be labelled by hand, and are kept as they are.")
    ],
    adapter: Annotated[Path | None, typer.Option(help="Folder saved by `adapt`: labels are of its classes.")] = None,
    classes: Classes = "",
    captions: Annotated[
        Path | None,
        typer.Option(
            help="Sentences about the images: JSON lines or CSV with file_name and caption, or COCO captions. Without "
            "it, NAME.txt beside each image, if no classes are named. Phrases are in brackets, "
            "'\\[a man] with \\[a hat]', or the noun phrases (extra `phrases`)."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Lowest score of a label; default: the thresholds of the adapter for each class, without any 0.5.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the dataset.", show_default="PHOTOGRAPHS-labelled")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help=f"Format to write: {FORMAT_NAMES}, or odvg for sentences; default: that of the labels, odvg for "
            "sentences, else coco."
        ),
    ] = None,
    short_side: ShortSide = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label images by a detector, to train another one or the same one further: a dataset with scores, and a page.

    A killed call goes on where it was. Look at the page before you train: nobody has corrected the labels.

    Example: glip-adapt pseudo-label photos --classes "raccoon, dog"
    """
    names = split_names(classes)
    if captions is not None and (names or adapter is not None):
        raise typer.BadParameter("give sentences, or classes by --classes or --adapter", param_hint="--captions")
    folder = Path(os.path.abspath(photographs))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give a folder of images.")
    place = out or folder.with_name(f"{folder.name}-labelled")
    if folder in (inside := Path(os.path.abspath(place)), *inside.parents):
        raise ValueError(f"{place} lies inside {photographs}. Name a folder outside of it (--out).")
    from glip_adapt.data.plain_captions import LAYOUT, captions_beside, read_captions

    by_sentences = not names and adapter is None
    sentences = (read_captions(captions, folder) if captions else captions_beside(folder)) if by_sentences else []
    if by_sentences and not sentences:
        raise ValueError(
            f"Nothing tells what to look for in {photographs}. Name --classes, an --adapter, or sentences: {LAYOUT}."
        )
    with terminal.working(IMPORTING, hidden=as_json):
        from glip_adapt import adapt
        from glip_adapt.data.photographs import read_photographs
        from glip_adapt.share.pseudo_labelling import pseudo_label as label
    labelled: Any = None
    if by_sentences:
        images: Any = sentences
        model: Any = adapt(open_trunk(trunk, checkpoint, vocabulary, device), "zero_shot")
        view = view_of(model.trunk.spec.view, short_side)
    else:
        found = read_photographs(folder)
        images = found.unlabelled
        labelled, format = next(iter(found.labelled), None), format or found.format
        model = open_model(trunk, checkpoint, vocabulary, device, adapter, names)
        view = view_of(model.view, short_side)
    with terminal.files_bar("pseudo-label", len(images), hidden=as_json) as advance:
        done = label(
            model,
            images,
            place,
            threshold=threshold,
            format=format,
            labelled=labelled,
            view=view,
            on_picture=lambda count, total: advance(),
        )
    if as_json:
        terminal.print_json(
            {
                "folder": str(done.folder),
                "format": done.format,
                "pictures": done.pictures,
                "labelled": done.labelled,
                "boxes": done.boxes,
                "left_out": done.left_out,
                "page": str(done.page),
            }
        )
        return
    terminal.print_rows("labels", [{"name": name, "labels": n} for name, n in done.boxes.items()], as_json=False)
    for sentence in done.left_out:
        terminal.note(sentence)
    terminal.say(f"{done.labelled} images ({done.format}) → {done.folder}")
    terminal.say(f"Look at a sample: {done.page}")
