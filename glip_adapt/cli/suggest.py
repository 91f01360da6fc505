"""The verb ``suggest``: parse, call the library, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.data import FormatName
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    AsJson,
    CacheFolder,
    Checkpoint,
    Classes,
    Device,
    ShortSide,
    Vocabulary,
    feature_cache,
    open_model,
    split_names,
    view_of,
)

suggest_app = typer.Typer()


@suggest_app.command()
def suggest(
    photographs: Annotated[
        Path, typer.Argument(help="Folder of images, of which some may be labelled in any known format.")
    ],
    adapter: Annotated[Path | None, typer.Option(help="Folder saved by `adapt` or `bake`.")] = None,
    classes: Classes = "",
    count: Annotated[int, typer.Option(min=1, help="Images to suggest.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder for copies with pre-labels, in the format of the labels, without any COCO; "
            "default: PHOTOGRAPHS-suggested.",
            show_default=False,
        ),
    ] = None,
    format: FormatName = None,
    short_side: ShortSide = None,
    cache: CacheFolder = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Suggest which unlabelled images to label next, and write them with pre-labels to correct.

    Images come first that the detector is in doubt about and that look unlike the labelled ones; on synthetic sets this
    taught no more than random images did. The pre-labels are
    boxes above the thresholds of the adapter, without any 0.3; one class for each place. A picture of all lies beside
    the folder.

    Example: glip-adapt suggest photos --adapter adapters/raccoon --count 10
    """
    names = split_names(classes)
    if adapter is None and not names:
        raise typer.BadParameter("name an adapter, or --classes for a detector without one", param_hint="--adapter")
    with terminal.working(IMPORTING, hidden=as_json):
        from glip_adapt.data.photographs import read_photographs
        from glip_adapt.share import suggesting
        from glip_adapt.share.prelabels import (
            check_place,
            prelabels,
            sheet_of,
            to_json,
            write_prelabels,
        )
    folder = Path(os.path.abspath(photographs))
    place = out or folder.with_name(f"{folder.name}-suggested")
    check_place(place, photographs)
    found = read_photographs(photographs, format)
    model = open_model(trunk, checkpoint, vocabulary, device, adapter, names)
    total = len(found.unlabelled) + sum(map(len, found.labelled))
    with terminal.files_bar("suggest", total, hidden=as_json) as advance:
        suggestions = suggesting.suggest(
            model,
            found.unlabelled,
            count,
            labelled=found.labelled,
            view=view_of(model.view, short_side),
            cache=feature_cache(cache),
            on_image=lambda done, total: advance(),
        )
    thresholds = suggesting.show_above(model)
    like = next(iter(found.data.splits.values())) if found.data else None
    write_prelabels(suggestions, place, thresholds, format=found.format, like=like)
    if as_json:
        rows = [to_json(suggestion, thresholds) for suggestion in suggestions]
        terminal.print_json(
            {"suggestions": rows, "format": found.format, "folder": str(place), "sheet": str(sheet_of(place))}
        )
        return
    rows = [
        {
            "rank": rank,
            "image": os.path.relpath(s.path, folder),
            "pre-labels": int(prelabels(s.detections, thresholds).sum()),
            "why": s.reason,
        }
        for rank, s in enumerate(suggestions, start=1)
    ]
    terminal.print_rows(f"{len(rows)} of {len(found.unlabelled)} unlabelled images", rows, as_json=False)
    terminal.say(f"pre-labels ({found.format}) → {place}")
    terminal.say(f"picture of all → {sheet_of(place)}")
