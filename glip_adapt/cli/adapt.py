"""The verbs ``adapt``, ``eval`` and ``score``: parse, call the library, print."""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
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
    Device,
    ShortSide,
    TrunkName,
    Vocabulary,
    feature_cache,
    open_model,
    open_trunk,
    view_of,
)

adapt_app = typer.Typer()
logger = logging.getLogger(__name__)

DatasetName = Annotated[str, typer.Argument(help="Dataset name or folder.")]


@adapt_app.command()
def adapt(
    dataset: DatasetName,
    method: Annotated[str, typer.Option(help="Name from `glip-adapt ls methods`.")],
    shots: Annotated[str, typer.Option(help='Pictures per class, or "all".')],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in the folder.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the few-shot draw and of training.")] = 3,
    config: Annotated[
        Path | None, typer.Option(help="TOML file: fields of FitConfig, and a table 'settings' of the method's own.")
    ] = None,
    prompts: Annotated[
        Literal["names", "official"], typer.Option(help="Word classes by their names, or as the paper does.")
    ] = "names",
    cache: CacheFolder = None,
    trunk: TrunkName = "glip-nano",
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = "cpu",
) -> None:
    """Train one adapter and print test AP before and after.

    Example: glip-adapt adapt odinw/Raccoon --trunk glip-t --method prompt --shots 5 --seed 3 --out adapters/raccoon
    """
    from glip_adapt import TrainingFacts, attach, default_recipe, evaluate, fit, load_dataset
    from glip_adapt.core.config import override, read_toml
    from glip_adapt.share.card import write_facts

    count: int | Literal["all"] = "all" if shots == "all" else _positive(shots)
    _check_free(out, overwrite)
    changes = {} if config is None else read_toml(config)
    settings = changes.pop("settings", {})
    recipe = override(replace(default_recipe(trunk, method, count), seed=seed), changes, str(config))
    data = load_dataset(dataset)
    train = data.train.with_boxes() if count == "all" else data.train.few_shot(count, seed)
    classes, selection, test = _worded(data, prompts), data.selection, data.test
    loaded = open_trunk(trunk, checkpoint, vocabulary, device)
    model = attach(loaded, method, classes=classes, settings=settings)
    _check_room(model, out)
    features = feature_cache(cache)
    before = evaluate(attach(loaded, "zero_shot", classes=classes), test, recipe.view, cache=features)
    with terminal.training_bar(f"{method}, {len(train)} pictures") as (on_step, on_validation):
        history = fit(model, train, selection, recipe, cache=features, on_step=on_step, on_validation=on_validation)
    saved = _save(model, out, overwrite)
    after = evaluate(model, test, recipe.view, cache=features)
    scores = {"test AP, zero-shot": before.ap, "test AP": after.ap}
    metrics = {name: ap for name, ap in scores.items() if ap is not None}
    write_facts(TrainingFacts(data=train.name, shots=count, seed=seed, metrics=metrics), saved)
    is_start = history.validations and [v.step for v in history.validations if v.is_best][-1] == 0
    terminal.say(
        f"{model.trained_parameters:,} parameters, {len(history.steps)} steps (ended by {history.stopped_by}); "
        f"test AP {terminal.percent(before.ap)} → {terminal.percent(after.ap)} → {saved}"
        + (". Training only lowered AP on the validation pictures, so the start was kept." if is_start else "")
    )


@adapt_app.command("eval")
def evaluate_adapter(
    dataset: DatasetName,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder saved by `adapt` or `bake`; without it, zero-shot.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="What to score.")] = "test",
    prompts: Annotated[
        Literal["names", "official"] | None,
        typer.Option(help="Word classes by their names, or as the paper does; default: as the adapter, or by names."),
    ] = None,
    short_side: ShortSide = None,
    predictions: Annotated[Path | None, typer.Option(help="Write predictions in COCO result form.")] = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Print COCO metrics, also per class.

    Example: glip-adapt eval odinw/Raccoon --adapter adapters/raccoon
    """
    from glip_adapt import evaluate, load_dataset
    from glip_adapt.core.files import check_room, written_whole

    if predictions is not None:
        check_room(predictions.parent, 1)
    data = load_dataset(dataset)
    scored = getattr(data, split)
    classes = None if adapter is not None and prompts is None else _worded(data, prompts or "names")
    model = open_model(trunk, checkpoint, vocabulary, device, adapter, classes)
    shown = view_of(model.view, short_side)
    with terminal.progress_bar() as bar:
        task = bar.add_task(f"{data.name}/{split}", total=None)
        found = evaluate(model, scored, shown, on_image=lambda done, all_: bar.update(task, completed=done, total=all_))
    _print_metrics(f"{data.name}/{split}", found, as_json)
    if predictions is not None:
        with written_whole(predictions) as temporary:
            temporary.write_text(json.dumps(found.predictions), encoding="utf-8")


@adapt_app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="JSON in COCO result form, from `eval --predictions` or others.")],
    truth: Annotated[Path, typer.Argument(help="COCO JSON file; its pictures are not needed.")],
    annotation_ids: Annotated[
        Literal["renumbered", "as_in_file"],
        typer.Option(help="as_in_file: as the public evaluator, where a box with id 0 can never be found."),
    ] = "renumbered",
    as_json: AsJson = False,
) -> None:
    """Print COCO metrics of predictions in a file, also per class.

    Example: glip-adapt score predictions.json test/_annotations.coco.json --annotation-ids as_in_file
    """
    from glip_adapt.engine.evaluate import score_files

    _print_metrics(str(truth), score_files(predictions, truth, annotation_ids), as_json)


def _print_metrics(title: str, found: Any, as_json: bool) -> None:
    rows = [{"metric": name, "value": value} for name, value in found.values.items()]
    rows += [{"metric": f"ap of {name}", "value": value} for name, value in found.per_class.items()]
    terminal.print_rows(title, rows, as_json)


def _worded(data: Any, prompts: str) -> Any:
    """Return the classes of a dataset, in the official wording where that is asked for and differs from the names."""
    return (data.prompts if prompts == "official" else None) or data.classes


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise FileExistsError if ``out`` holds what may not be replaced."""
    if (out / "baked.json").exists():  # what detect and eval would go on using
        raise FileExistsError(f"{out} holds a baked model. Name another folder for the adapter.")
    if (out / "adapter.json").exists() and not overwrite:
        raise FileExistsError(f"{out} holds an adapter already. Replace it with --overwrite, or name another folder.")


def _check_room(model: Any, out: Path) -> None:
    """Raise OSError if the adapter could not be written into ``out``: better now than after training."""
    from glip_adapt.core.files import check_room

    check_room(out, sum(tensor.nbytes for tensor in model.owned_tensors().values()) + 2**16)


def _save(model: Any, out: Path, overwrite: bool) -> Path:
    """Save the adapter in ``out``, or where that fails in another folder, so that no training is lost."""
    try:
        model.save(out, overwrite=overwrite)
        return out
    except FileExistsError:  # made by another process meanwhile
        number = next(n for n in itertools.count(2) if not out.with_name(f"{out.name}-{n}").exists())
        other = out.with_name(f"{out.name}-{number}")
        logger.warning(f"Another adapter was saved in {out} during this training, so this one goes into {other}.")
        model.save(other, overwrite=False)
        return other
    except OSError as error:
        rescued = Path(tempfile.mkdtemp(prefix="glip-adapt-"))
        model.save(rescued)
        raise OSError(f"{error} The trained adapter is in {rescued} instead: move it to a safe place.") from error


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f'expected a whole number from 1 or "all", got {text!r}', param_hint="--shots")
    return int(text)
