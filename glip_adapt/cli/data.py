"""The verbs below ``glip-adapt data``: parse, call one library function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import AsJson, DatasetName

data_app = typer.Typer(
    no_args_is_help=True, help="Download, check and convert datasets, draw few-shot subsets, write synthetic datasets."
)
FORMAT_NAMES = "coco, yolo, voc, labelme, label_studio, image_folder, boxes_csv"
FormatName = Annotated[
    str | None, typer.Option("--format", help=f"Format of the folder: {FORMAT_NAMES}; default: it is recognised.")
]


@data_app.command("fetch")
def fetch_data(
    names: Annotated[
        list[str], typer.Argument(help="Names from `glip-adapt ls datasets`, or odinw13, odinw35 for all.")
    ],
    root: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for datasets; default: $GLIP_ADAPT_DATA, then ./odinw.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download datasets of ODinW, verify and unpack them; a download that broke off goes on.

    Exit code 1 if one could not be fetched; the others are.

    Example: glip-adapt data fetch Raccoon NorthAmericaMushrooms --root odinw
    """
    from glip_adapt.data.fetch import FetchError, fetch_dataset, fetchable

    rows, failed = [], False
    for spec in fetchable(names):
        try:
            with terminal.bytes_bar(spec.official_name) as on_bytes:
                fetched = fetch_dataset(spec.official_name, root, on_bytes)
        except FetchError as error:
            terminal.print_error(str(error))
            failed = True
            continue
        state = "fetched" if fetched.is_new else "was there already"
        rows.append({"dataset": fetched.name, "state": state, "folder": str(fetched.folder)})
    if rows or as_json:
        terminal.print_rows("datasets", rows, as_json)
    raise typer.Exit(1 if failed else 0)


@data_app.command("check")
def check_data(
    path: Annotated[Path, typer.Argument(help="Dataset folder of any format, one COCO JSON file, or a known name.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images of a single file; default: the folder of the file.")
    ] = None,
    format: FormatName = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a dataset was taken for, count what is in it, list what is wrong, doubtful or left out.

    Exit code 1 if something is wrong or doubtful; images without labels are not.

    Example: glip-adapt data check odinw/Raccoon

    Example: glip-adapt data check coco
    """
    from glip_adapt.data.check import check_folder

    checked = check_folder(path, images, format)
    findings = [
        {"split": name, "defect": d.kind, "count": d.count, "consequence": d.consequence, "is_note": d.is_note}
        | {"examples": list(d.examples)}
        for name, split in checked.splits.items()
        for d in split.defects
    ]
    splits = [
        {"split": name, "images": s.images, "without_boxes": s.without_boxes, "boxes": sum(s.boxes.values())}
        for name, s in checked.splits.items()
    ]
    names = dict.fromkeys(name for split in checked.splits.values() for name in split.boxes)
    classes = [
        {"class": name} | {f"boxes_{key}": split.boxes.get(name, 0) for key, split in checked.splits.items()}
        for name in names
    ]
    if as_json:
        facts = {"format": checked.format, "known": checked.known, "unlabelled_images": checked.unlabelled}
        terminal.print_json(facts | {"splits": splits, "boxes_per_class": classes, "defects": findings})
    else:
        what = f", the dataset {checked.known}" if checked.known else ""
        terminal.say(f"{path} was read as {checked.format}{what}.")
        terminal.print_rows("splits", splits, False)
        terminal.print_rows("boxes per class", classes, False)
        if checked.unlabelled:
            terminal.say(f"{checked.unlabelled} images in the folder are in no split.")
        shown: dict[str, Any] = {"examples": ", ".join}
        for title, is_note in (("defects", False), ("left out, or to know", True)):
            rows = [{k: v for k, v in row.items() if k != "is_note"} for row in findings if row["is_note"] is is_note]
            if rows:
                terminal.print_rows(title, rows, False, shown=shown)
    is_sound = all(row["is_note"] for row in findings)
    if is_sound and not as_json:
        terminal.say(f"No defects in {', '.join(checked.splits)}.")
    raise typer.Exit(0 if is_sound else 1)


@data_app.command("convert")
def convert_data(
    source: DatasetName,
    to: Annotated[str, typer.Option(help=f"Format to write: {FORMAT_NAMES}.")],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    format: FormatName = None,
    integers: Annotated[bool, typer.Option("--integers", help="Round the boxes of voc to whole pixels.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a dataset in another format, with copies of its images.

    Example: glip-adapt data convert birds --to yolo --out birds-yolo
    """
    from glip_adapt.data.convert import convert_dataset

    with terminal.progress_bar() as bar:
        task = bar.add_task("writing", total=None)
        converted = convert_dataset(
            source,
            to,
            out,
            format=format,
            integers=integers,
            on_image=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        terminal.print_json({"folder": str(out), "format": to, **vars(converted)})
        return
    for sentence in converted.left_out:
        terminal.note(sentence)
    counts = ", ".join(f"{name} {converted.images[name]} images {n} boxes" for name, n in converted.boxes.items())
    terminal.say(f"{counts} → {out} ({to})")


@data_app.command("sample")
def sample_data(
    path: Annotated[str, typer.Argument(help="Dataset name or folder, or one COCO JSON file.")],
    shots: Annotated[int, typer.Option(min=1, help="Images per class, at least.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="COCO JSON file to write.")],
    seed: Annotated[
        int, typer.Option(min=0, help="Fixes which images are drawn; 0 takes them in the order of their ids.")
    ] = 3,
) -> None:
    """Write a few-shot subset of a training split as COCO JSON.

    Example: glip-adapt data sample odinw/Raccoon --shots 5 --seed 3 -o raccoon-5.json
    """
    from glip_adapt.core.files import written_whole
    from glip_adapt.data.dataset import load_dataset
    from glip_adapt.data.formats.coco import coco_ground_truth, load_split

    file = Path(path)
    if file.is_file():
        split = load_split(file, file.parent, f"{file.stem}/train", require_images=False)
    else:
        split = load_dataset(path).train
    subset = split.few_shot(shots, seed)
    with written_whole(output) as temporary:
        temporary.write_text(json.dumps(coco_ground_truth(subset)), encoding="utf-8")
    terminal.say(f"{len(subset)} images ({subset.source}) → {output}")


@data_app.command("export")
def export_data(
    name: Annotated[str, typer.Argument(help='A synthetic dataset, such as "glyphs13/Dice", or "glyphs13" for all.')],
    out: Annotated[Path, typer.Option(help="Folder to write into; a dataset that is there already is left alone.")],
) -> None:
    """Write synthetic datasets as COCO folders.

    Example: glip-adapt data export glyphs13/Dice --out datasets
    """
    from glip_adapt.core.config import unknown_name
    from glip_adapt.data.glyphs13 import rendered_datasets, write_glyph_set

    sets = {key: spec for key, spec in rendered_datasets().items() if name in (key, key.partition("/")[0])}
    if not sets:
        raise unknown_name("synthetic dataset", name, ["glyphs13", *rendered_datasets()])
    with terminal.progress_bar() as bar:
        for key, spec in bar.track(sets.items(), total=len(sets), description="rendering"):
            write_glyph_set(spec, out / key)
    terminal.say(f"{len(sets)} synthetic datasets → {out}")
