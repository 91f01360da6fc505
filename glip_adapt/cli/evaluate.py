"""The verb ``eval``: parse, call one library function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.data import FormatName
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    AsJson,
    Checkpoint,
    DatasetName,
    Device,
    Flip,
    InPrecision,
    Masks,
    Overlap,
    ShortSide,
    Sizes,
    Tile,
    Vocabulary,
    Wording,
    open_grounder,
    open_model,
    open_segmenter,
    several_views,
    view_of,
    worded,
)

evaluate_app = typer.Typer()


@evaluate_app.command("eval")
def evaluate_adapter(
    dataset: DatasetName,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder saved by `adapt` or `bake`; without it, zero-shot detection.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Images to score on.")] = "test",
    prompts: Annotated[
        Wording | None,
        typer.Option(
            help="Wording of the classes: their names, or the manual prompts of the paper; default: that of the "
            "adapter, without one the names."
        ),
    ] = None,
    format: FormatName = None,
    short_side: ShortSide = None,
    sizes: Sizes = "",
    flip: Flip = False,
    tile: Tile = None,
    overlap: Overlap = 0.2,
    precision: InPrecision = None,
    metric: Annotated[
        Literal["coco", "fixed_ap", "lvis_ap"] | None,
        typer.Option(
            help="coco: AP. fixed_ap, lvis_ap: AP of LVIS, as `score` has them, for its files; default: the published "
            "one of the dataset, coco for a folder."
        ),
    ] = None,
    names_per_caption: Annotated[
        int | None,
        typer.Option(min=1, help="Zero-shot: class names in a caption; default: 40 on LVIS, else as many as fit."),
    ] = None,
    masks: Masks = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="JSON file to write: predictions in COCO form; of phrases, as `score` reads them."),
    ] = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter, or zero-shot detection, on a dataset: AP, also per class; on flickr30k, recall of phrases.

    With --masks, AP of masks is added, where the COCO file of the dataset has the mask of each object.

    Example: glip-adapt eval odinw/Raccoon --adapter adapters/Raccoon

    Example: glip-adapt eval lvis/minival --trunk glip-t
    """
    from glip_adapt import load_dataset
    from glip_adapt.core.files import check_room
    from glip_adapt.data.odinw import find_suite

    views = several_views(sizes, flip, tile, overlap)
    if predictions is not None:
        check_room(predictions.parent, 1)
    if names_per_caption is not None and adapter is not None:
        raise typer.BadParameter("an adapter brings its captions; leave it out", param_hint="--names-per-caption")
    suite = find_suite(dataset)
    if suite is not None and suite.has_sentences:
        if any(option is not None for option in (views, metric, names_per_caption, masks)):
            raise typer.BadParameter(f"{dataset} is scored by recall of phrases, in one view", param_hint="DATASET")
        opened = (trunk, checkpoint, vocabulary, device, adapter)
        read_by, rows, grounded = _evaluate_phrases(suite, opened, short_side, precision)
        terminal.print_rows(suite.official_name, rows, as_json)
        _write_predictions(predictions, grounded)
        _tell_published(read_by, suite, adapter, as_json)
        return
    data = load_dataset(dataset, format=format)
    if split not in data.splits:
        have = ", ".join(data.splits)
        raise FileNotFoundError(f"{data.name} has no split {split}, only {have}. Score one of these with --split.")
    scored = data.splits[split]
    with terminal.working(IMPORTING):
        from glip_adapt import evaluate
    classes = None if adapter is not None and prompts is None else worded(data, prompts or "names")
    names_per_caption = names_per_caption or data.names_per_caption
    model = open_model(
        trunk, checkpoint, vocabulary, device, adapter, classes, dataset=dataset, names_per_caption=names_per_caption
    )
    view = view_of(model.view, short_side, precision)
    segmenter = open_segmenter(masks, device)
    with terminal.progress_bar() as bar:
        task = bar.add_task(f"{data.name}/{split}", total=None)
        found = evaluate(
            model,
            scored,
            view,
            views=views,
            on_image=lambda done, all_: bar.update(task, completed=done, total=all_),
            metric=metric or data.metric,
            boxes_per_caption=data.boxes_per_caption,
            segmenter=segmenter,
        )
    _print_metrics(f"{data.name}/{split}", found, as_json)
    _write_predictions(predictions, found.predictions)
    _tell_published(model.trunk_name, suite, adapter, as_json)


def _evaluate_phrases(
    suite: Any, opened: tuple[Any, ...], short_side: int | None, precision: str | None
) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return trunk, rows of recall, and boxes of phrases, on a dataset with sentences; ``opened`` names the model."""
    from glip_adapt.data.described import read_described

    data = read_described(suite)
    with terminal.working(IMPORTING):
        from glip_adapt.engine.metrics.recall import recall_rows
        from glip_adapt.engine.phrases import evaluate_phrases
    grounder = open_grounder(*opened)
    view = view_of(grounder.trunk.spec.view, short_side, precision)
    with terminal.progress_bar() as bar:
        task = bar.add_task(data.name, total=None)
        found = evaluate_phrases(
            grounder, data, view, on_image=lambda done, all_: bar.update(task, completed=done, total=all_)
        )
    return grounder.trunk.name, recall_rows(found.values), found.predictions


def _tell_published(trunk: str, suite: Any, adapter: Path | None, as_json: bool) -> None:
    """Print what is published of a trunk on a suite, below zero-shot values for people."""
    if suite is None or adapter is not None or as_json:
        return
    from glip_adapt.bench.report.published import published_sentence

    if said := published_sentence(trunk, suite.short_name):
        terminal.say(said)


def _write_predictions(file: Path | None, predictions: Any) -> None:
    from glip_adapt.core.files import written_whole
    from glip_adapt.engine.ranks import current

    if file is not None and current().rank == 0:
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(predictions), encoding="utf-8")


def _print_metrics(title: str, found: Any, as_json: bool) -> None:
    rows = [{"metric": name, "value": value} for name, value in found.values.items()]
    rows += [{"metric": f"ap of {name}", "value": value} for name, value in found.per_class.items()]
    terminal.print_rows(title, rows, as_json)
