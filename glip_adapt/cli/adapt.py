"""The verb ``adapt``: parse, call one library function, print."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.data import FormatName
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    AsJson,
    CacheFolder,
    Checkpoint,
    DatasetName,
    Device,
    Prompts,
    Vocabulary,
    feature_cache,
    open_trunk,
    split_names,
    worded,
)
from glip_adapt.core.settings import RecipeName

adapt_app = typer.Typer()


@adapt_app.command()
def adapt(
    dataset: DatasetName,
    method: Annotated[
        str,
        typer.Option(
            help='How to adapt: a name from `glip-adapt ls methods`, or "auto" to try exemplars, prompt, lora and '
            "full as far as time and memory reach."
        ),
    ] = "auto",
    shots: Annotated[str, typer.Option(help='Labelled images per class to draw, or "all".')] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the adapter and its page.", show_default="adapters/NAME")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in the folder.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Time for trials and training.", show_default="auto: 10, for glip-nano 2"),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--continue", help="Folder of an adapter for the same classes to go on from.")
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images without labels: what the detector finds in them is learned from as well, if that "
            "helps on held-out images; takes about twice the time."
        ),
    ] = None,
    backgrounds: Annotated[int, typer.Option(min=0, help="Images without boxes to learn from as well.")] = 0,
    negatives: Annotated[
        str, typer.Option(help="Names of things that are no class but may be mistaken for one, separated by commas.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Fixes which images are drawn, and training.")] = 3,
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="How to train: as published; strong: on composed images as well, then mixed with the original; or "
            "ft-fsod: that of "
            "arXiv 2603.28182, for --method full of the trunks that it is written for, best with a split val."
        ),
    ] = "published",
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with fields of FitConfig; its table 'settings' holds those of the method."),
    ] = None,
    prompts: Prompts = "names",
    format: FormatName = None,
    cache: CacheFolder = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train a detector from a folder of labelled images, and write a page that shows what to expect of it.

    Nothing else is needed: the format is recognised, and images are held out to choose a method and its steps. With
    splits train, val and test, val selects and test is scored as well.

    Example: glip-adapt adapt photos/
    """
    from glip_adapt import load_dataset
    from glip_adapt.data.photographs import unlabelled_in

    if method == "zero_shot":
        raise typer.BadParameter(
            "zero_shot trains nothing; to detect by names alone: glip-adapt detect IMAGES --classes",
            param_hint="--method",
        )
    count: int | Literal["all"] = "all" if shots == "all" else _positive(shots)
    data = load_dataset(dataset, format=format)
    more = list(unlabelled_in(unlabelled)) if unlabelled else []
    with terminal.working(IMPORTING):
        from glip_adapt import load_adapter
        from glip_adapt.share.destination import check_free, free_folder
        from glip_adapt.share.workflow import AUTO, adapt_dataset
    out = free_folder(Path("adapters") / data.name) if out is None else out
    check_free(out, overwrite)  # before anything is loaded
    loaded = open_trunk(trunk, checkpoint, vocabulary, device, start, dataset=dataset)
    if config is not None and method == AUTO and start is None:
        raise typer.BadParameter("name a --method for the recipe in the file", param_hint="--config")
    changes, settings = _read_recipe(loaded.name, config)
    with _watched(data.name) as observer:
        done = adapt_dataset(
            loaded,
            data,
            method,
            out=out,
            shots=count,
            seed=seed,
            classes=worded(data, prompts),
            recipe=recipe,
            changes=changes,
            settings=settings,
            start=None if start is None else load_adapter(start, trunk=loaded),
            backgrounds=backgrounds,
            negatives=split_names(negatives),
            unlabelled=more,
            minutes=minutes,
            overwrite=overwrite,
            cache=feature_cache(cache),
            observer=observer,
        )
    if as_json:
        terminal.print_json(done.to_json())
        return
    rows = [
        {"method": t.method, "AP to expect": t.expected, "seconds": t.seconds, "remark": t.remark} for t in done.tried
    ]
    terminal.print_rows("methods", rows, False, shown={"AP to expect": terminal.percent}, decimals=0)
    percent = terminal.percent
    between = f" (likely {percent(done.interval[0])} to {percent(done.interval[1])})" if done.interval else ""
    terminal.say(f"AP to expect on new images: {percent(done.expected)}{between}; zero-shot {percent(done.zero_shot)}.")
    if done.before and done.after:
        terminal.say(f"Test AP {percent(done.before.ap)} → {percent(done.after.ap)}.")
    if done.kept_start:
        terminal.say("Training only lowered AP on images that it had not seen, so the start was kept.")
    terminal.say(f"{done.model.adapter.name}, {done.model.trained_parameters:,} parameters → {done.folder}")
    terminal.say(
        f"Look at {done.page}. Detect with: glip-adapt detect IMAGES --adapter {shlex.quote(str(done.folder))}"
    )


@contextmanager
def _watched(title: str) -> Iterator[Any]:
    """Yield an observer that shows images, trials, steps and validations with rate and remaining time."""
    from glip_adapt.core.plain_text import duration
    from glip_adapt.share.outcome import Observer

    with terminal.progress_bar() as bar:
        task = bar.add_task(title, total=None)
        shown = [title]

        def show_trial(method: str, seconds: float) -> None:
            shown[0] = f"{title}: {method}"
            bar.console.print(f"trying {method}, about {duration(seconds)}", highlight=False)

        yield Observer(
            on_image=lambda done, total: bar.update(
                task, completed=done, total=total, description=f"{title}: detecting zero-shot"
            ),
            on_trial=show_trial,
            on_step=lambda step, total: terminal.show_step(bar, task, shown[0], step, total),
            on_validation=lambda v: bar.console.print(
                f"{v.state}: val AP {terminal.percent(v.ap)}{' (best)' if v.is_best else ''}"
            ),
        )


def _read_recipe(trunk: str, file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a recipe in a TOML file, and the settings of the method in its table 'settings'."""
    from glip_adapt import default_recipe
    from glip_adapt.core.config import override, read_toml

    changes = {} if file is None else read_toml(file)
    settings = changes.pop("settings", {})
    override(default_recipe(trunk, "prompt", "all"), changes, str(file))  # an error names the file
    return changes, settings


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f'expected a whole number from 1 or "all", got {text!r}', param_hint="--shots")
    return int(text)
