"""The verb ``track``: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    AsJson,
    Checkpoint,
    Classes,
    Device,
    InPrecision,
    ShortSide,
    Vocabulary,
    open_model,
    split_names,
    view_of,
)

track_app = typer.Typer()


@track_app.command()
def track(
    video: Annotated[Path, typer.Argument(help="Video file, or a folder of images of one size in the order of names.")],
    classes: Classes = "",
    adapter: Annotated[Path | None, typer.Option(help="Folder saved by `adapt` or `bake`.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for video, MOT file and table.", show_default="runs/track/NAME of the video"),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Start a track by a box that scores at least this much; default: the thresholds of the adapter for "
            "each class, without any 0.3.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Look at one of so many frames.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Frames per second of the source.", show_default="that of the video; of a folder 25"
        ),
    ] = None,
    short_side: ShortSide = None,
    precision: InPrecision = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Follow objects through a video; write an annotated video, a MOT file and a table of boxes.

    Each frame is looked at as `detect` does, and ByteTrack joins the boxes: an object keeps its number. Frames count
    from 1 in the source, boxes are in pixels. The folder stands there when all is done. Needs the extra `track`.

    Example: glip-adapt track street.mp4 --adapter adapters/raccoon --every 2
    """
    names = split_names(classes)
    if adapter is None and not names:
        raise typer.BadParameter("name an adapter, or --classes for a detector without one", param_hint="--adapter")
    with terminal.working(IMPORTING, hidden=as_json):
        from glip_adapt.share.track_files import check_new, track_footage
        from glip_adapt.share.tracking import require_trackers
        from glip_adapt.share.videos import open_footage
    place = out or Path("runs/track") / (video.resolve().name if video.is_dir() else video.stem)
    check_new(place)
    require_trackers()
    footage = open_footage(video, every=every, rate=rate)
    model = open_model(trunk, checkpoint, vocabulary, device, adapter, names)
    with terminal.files_bar("track", footage.taken, what="frame", hidden=as_json) as advance:
        view = view_of(model.view, short_side, precision)
        done = track_footage(model, footage, place, threshold=threshold, view=view, on_frame=advance)
    if as_json:
        terminal.print_json(done.to_json())
        return
    terminal.print_rows("tracks", [{"class": name, "tracks": n} for name, n in done.tracks.items()], as_json=False)
    terminal.say(f"{done.frames} frames in {done.seconds:.1f} s, {done.frames_per_second:.1f} a second → {done.folder}")
