"""The verb ``detect``: parse, call the library for each picture, print."""

from __future__ import annotations

import json
import re
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import (
    AdaptersTrunk,
    AsJson,
    Checkpoint,
    Classes,
    Device,
    ShortSide,
    Vocabulary,
    open_model,
    split_names,
    view_of,
)

detect_app = typer.Typer()


@detect_app.command()
def detect(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    classes: Classes = "",
    caption: Annotated[str, typer.Option(help='Instead of classes: names separated by ". ".')] = "",
    adapter: Annotated[Path | None, typer.Option(help="Folder saved by `adapt` or `bake`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for JSON and annotated pictures.")] = Path("runs/detect"),
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score that is drawn, or a label.")] = 0.3,
    as_coco: Annotated[
        Path | None, typer.Option(help="Also write the boxes above the threshold as labels of a COCO dataset.")
    ] = None,
    short_side: ShortSide = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find objects by name; write all boxes as JSON, and a picture with those above the threshold.

    A picture that cannot be read is named and left out; the exit code is then 1.

    Example: glip-adapt detect photo.jpg --classes "raccoon, dog" --trunk glip-t --checkpoint glip_tiny.pth
    """
    from glip_adapt.share.interop import write_pseudo_labels

    if classes and caption:
        raise typer.BadParameter("give --classes or --caption, not both", param_hint="--caption")
    paths = _pictures(images)
    names = _result_names(paths, out)
    model = open_model(trunk, checkpoint, vocabulary, device, adapter, split_names(classes) or _split_caption(caption))
    shown = view_of(model.view, short_side)
    results, kept, labels = [], [], []
    for path, name in zip(paths, names, strict=True):
        try:
            result, best = _detect_one(model, path, out / name, threshold, shown)
        except (ValueError, FileNotFoundError) as error:
            terminal.print_error(str(error))
            results.append({"image": str(path), "error": str(error)})
            continue
        results.append(result)
        kept.append(path)
        labels.append(best)
        if not as_json:
            terminal.say(
                f"{path.name}: {len(result['detections'])} boxes, {len(best)} drawn, {result['seconds']:.1f} s → "
                f"{out / name}.png"
            )
    if as_coco is not None:
        write_pseudo_labels(as_coco, kept, labels, model.class_names)
    if as_json:
        terminal.print_json(results)
    else:
        terminal.say(f"Peak memory {_peak_gigabytes():.1f} GB.")
    raise typer.Exit(1 if len(kept) < len(paths) else 0)


def _detect_one(model: Any, path: Path, target: Path, threshold: float, shown: Any) -> tuple[dict[str, Any], Any]:
    """Write what is in one picture as JSON and as a picture; return it, and the detections above the threshold."""
    from glip_adapt.core.files import written_whole
    from glip_adapt.data.images import load_rgb
    from glip_adapt.engine.draw import draw_detections

    picture = load_rgb(path)
    started = time.perf_counter()
    found = model.predict(picture, view=shown)
    seconds = time.perf_counter() - started
    boxes = [
        {"class": model.class_names[label], "score": score, "box_xyxy": box}
        for box, score, label in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]
    result = {"image": str(path), "seconds": round(seconds, 3), "detections": boxes}
    best = found.above(threshold)
    with written_whole(target.with_name(f"{target.name}.json")) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    with written_whole(target.with_name(f"{target.name}.png")) as temporary:
        draw_detections(picture, best).save(temporary)
    return result, best


def _pictures(paths: list[Path]) -> list[Path]:
    """Return the pictures that are named, and those in the folders that are named, once each.

    Raises:
        ValueError: if a folder holds no picture.
    """
    from glip_adapt.data.images import SUFFIXES

    found: list[Path] = []
    for path in paths:
        inside = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES] if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"There is no picture in {path}. Name a folder of JPEG or PNG files, for example.")
        found += inside
    return list(dict.fromkeys(found))


def _result_names(paths: list[Path], out: Path) -> list[str]:
    """Return the name of each result: the picture's without its suffix, or with it where two would have one name.

    Raises:
        ValueError: if results would overwrite each other or a picture.
    """
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in paths]
    written = {(out / f"{name}{suffix}").resolve() for name in names for suffix in (".json", ".png")}
    if len(written) < 2 * len(names) or {path.resolve() for path in paths} & written:
        raise ValueError(f"Results in {out} would overwrite each other or a picture. Name another --out folder.")
    return names


def _split_caption(caption: str) -> list[str]:
    """Return the names in a caption, without blanks and periods around them."""
    return [name for part in re.split(r"\.(?:\s|$)", caption) if (name := part.strip(" ."))]


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
