"""The verbs below ``glip-adapt data``: parse, call one library function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import AsJson

data_app = typer.Typer(
    no_args_is_help=True, help="Download and check datasets, draw few-shot subsets, write synthetic datasets."
)


@data_app.command("fetch")
def fetch_data(
    names: Annotated[list[str], typer.Argument(help="Names from `glip-adapt ls datasets`, or odinw13 for all 13.")],
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
    path: Annotated[Path, typer.Argument(help="Dataset folder, or one COCO JSON file.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images of a single file; default: the folder of the file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what is wrong or doubtful in a dataset, with counts and examples; exit code 1 if something is.

    Example: glip-adapt data check odinw/Raccoon
    """
    from glip_adapt.data.check import check_split
    from glip_adapt.data.dataset import find_splits

    files = {path.stem: (path, images or path.parent)} if path.is_file() else find_splits(path)
    defects = {name: check_split(*pair) for name, pair in files.items()}
    rows = [
        {"split": name, "defect": d.kind, "count": d.count, "examples": ", ".join(d.examples)}
        for name, found in defects.items()
        for d in found
    ]
    if rows or as_json:
        terminal.print_rows("defects", rows, as_json)
    else:
        terminal.say(f"No defects in {', '.join(files)}.")
    raise typer.Exit(1 if rows else 0)


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
