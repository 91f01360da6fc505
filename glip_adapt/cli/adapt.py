"""The verbs ``adapt``, ``eval`` and ``score``: parse, call one library function, print."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import (
    AdaptersTrunk,
    AsJson,
    CacheFolder,
    Checkpoint,
    DatasetName,
    Device,
    Prompts,
    ShortSide,
    TrunkName,
    Vocabulary,
    Wording,
    feature_cache,
    open_model,
    open_trunk,
    view_of,
    worded,
)

adapt_app = typer.Typer()


@adapt_app.command()
def adapt(
    dataset: DatasetName,
    method: Annotated[str, typer.Option(help="How to adapt: a name from `glip-adapt ls methods`.")],
    shots: Annotated[str, typer.Option(help='Labelled images per class to learn from, or "all".')],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in the folder.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes which images are drawn, and training.")] = 3,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with fields of FitConfig; its table 'settings' holds those of the method."),
    ] = None,
    prompts: Prompts = "names",
    cache: CacheFolder = None,
    trunk: TrunkName = "glip-nano",
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
) -> None:
    """Train a detector for the classes of a dataset, and print its AP on the test split before and after.

    The dataset needs the splits train, val and test. The state that is saved is the best one on val.

    Example: glip-adapt adapt odinw/Raccoon --trunk glip-t --method prompt --shots 5 --seed 3 --out adapters/raccoon
    """
    from glip_adapt import load_dataset
    from glip_adapt.share.workflow import adapt_dataset, check_free

    count: int | Literal["all"] = "all" if shots == "all" else _positive(shots)
    check_free(out, overwrite)  # before anything is loaded
    recipe, settings = _read_recipe(trunk, method, count, seed, config)
    data = load_dataset(dataset)
    with terminal.training_bar(f"{method}, {data.name}") as (on_step, on_validation):
        done = adapt_dataset(
            open_trunk(trunk, checkpoint, vocabulary, device),
            data,
            method,
            shots=count,
            out=out,
            seed=seed,
            classes=worded(data, prompts),
            recipe=recipe,
            settings=settings,
            overwrite=overwrite,
            cache=feature_cache(cache),
            on_step=on_step,
            on_validation=on_validation,
        )
    terminal.say(
        f"{done.model.trained_parameters:,} parameters, {len(done.history.steps)} steps "
        f"(ended by {done.history.stopped_by}); "
        f"test AP {terminal.percent(done.before.ap)} → {terminal.percent(done.after.ap)} → {done.folder}"
        + (". Training only lowered AP on the validation images, so the start was kept." if done.kept_start else "")
    )


@adapt_app.command("eval")
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
    short_side: ShortSide = None,
    predictions: Annotated[Path | None, typer.Option(help="JSON file to write: predictions in COCO form.")] = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter, or zero-shot detection, on a dataset: COCO AP, also per class.

    Example: glip-adapt eval odinw/Raccoon --adapter adapters/raccoon
    """
    from glip_adapt import evaluate, load_dataset
    from glip_adapt.core.files import check_room, written_whole

    if predictions is not None:
        check_room(predictions.parent, 1)
    data = load_dataset(dataset)
    scored = getattr(data, split)
    classes = None if adapter is not None and prompts is None else worded(data, prompts or "names")
    model = open_model(trunk, checkpoint, vocabulary, device, adapter, classes)
    view = view_of(model.view, short_side)
    with terminal.progress_bar() as bar:
        task = bar.add_task(f"{data.name}/{split}", total=None)
        found = evaluate(model, scored, view, on_image=lambda done, all_: bar.update(task, completed=done, total=all_))
    _print_metrics(f"{data.name}/{split}", found, as_json)
    if predictions is not None:
        with written_whole(predictions) as temporary:
            temporary.write_text(json.dumps(found.predictions), encoding="utf-8")


@adapt_app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(help="JSON file in COCO result form, from `eval --predictions` or any other detector.")
    ],
    truth: Annotated[Path, typer.Argument(help="COCO JSON file with the true boxes; its images are not needed.")],
    annotation_ids: Annotated[
        Literal["renumbered", "as_in_file"],
        typer.Option(help="as_in_file: as the public evaluator, which never finds a box whose id is 0."),
    ] = "renumbered",
    as_json: AsJson = False,
) -> None:
    """Score a file of predictions: COCO AP, also per class.

    Example: glip-adapt score predictions.json test/_annotations.coco.json --annotation-ids as_in_file
    """
    from glip_adapt.engine.evaluate import score_files

    _print_metrics(str(truth), score_files(predictions, truth, annotation_ids), as_json)


def _print_metrics(title: str, found: Any, as_json: bool) -> None:
    rows = [{"metric": name, "value": value} for name, value in found.values.items()]
    rows += [{"metric": f"ap of {name}", "value": value} for name, value in found.per_class.items()]
    terminal.print_rows(title, rows, as_json)


def _read_recipe(
    trunk: str, method: str, shots: int | Literal["all"], seed: int, file: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Return the recipe with the changes of a TOML file, and the settings of the method in its table 'settings'."""
    from glip_adapt import default_recipe
    from glip_adapt.core.config import override, read_toml

    changes = {} if file is None else read_toml(file)
    settings = changes.pop("settings", {})
    return override(replace(default_recipe(trunk, method, shots), seed=seed), changes, str(file)), settings


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f'expected a whole number from 1 or "all", got {text!r}', param_hint="--shots")
    return int(text)
