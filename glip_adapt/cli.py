"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

import glip_adapt
from glip_adapt import terminal
from glip_adapt.cli_bench import bench_app
from glip_adapt.cli_convert import convert_app
from glip_adapt.cli_data import data_app
from glip_adapt.cli_deploy import deploy_app
from glip_adapt.cli_options import (
    AdaptersTrunk,
    AsJson,
    CacheFolder,
    Checkpoint,
    Device,
    TrunkName,
    Vocabulary,
    feature_cache,
    open_trunk,
)
from glip_adapt.cli_prompt import prompt_app
from glip_adapt.cli_share import share_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=glip_adapt.__doc__)
app.add_typer(bench_app)
app.add_typer(convert_app)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app)
app.add_typer(prompt_app, name="prompt")
app.add_typer(share_app)

Classes = Annotated[str, typer.Option(help='Comma-separated class names, such as "raccoon, dog".')]
ShortSide = Annotated[
    int | None,
    typer.Option(min=32, help="Shorter side as the network sees it, pixels; by default as the trunk is used to."),
]


def main() -> None:
    """Run the command line; an expected error is one message and exit code 1, wrong usage is 2."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        terminal.print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        terminal.stderr.print("Interrupted; what was finished is kept.")
        sys.exit(130)


@app.command("ls")
def list_names(
    what: Annotated[Literal["trunks", "datasets", "methods"], typer.Argument()] = "trunks", as_json: AsJson = False
) -> None:
    """List what exists.

    Example: glip-adapt ls methods
    """
    from glip_adapt import catalogue

    rows = {"trunks": catalogue.trunks, "datasets": catalogue.datasets, "methods": catalogue.methods}[what]()
    terminal.print_rows(what, rows, as_json)


@app.command()
def detect(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
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

    Example: glip-adapt detect photo.jpg --classes "raccoon, dog" --trunk glip-t --checkpoint glip_tiny.pth
    """
    from glip_adapt.data.images import load_rgb
    from glip_adapt.draw import draw_detections
    from glip_adapt.interop import write_pseudo_labels
    from glip_adapt.prediction import predict

    written = [(out / f"{path.stem}{suffix}").resolve() for path in images for suffix in (".json", ".png")]
    if len(set(written)) < len(written) or {path.resolve() for path in images} & set(written):
        raise ValueError(f"Results in {out} would overwrite each other or a picture. Name another --out folder.")
    model = _model(trunk, checkpoint, vocabulary, device, adapter, _split_names(classes, ",") or caption.split(". "))
    shown = _view(model.trunk.name, short_side)
    out.mkdir(parents=True, exist_ok=True)
    results, labels = [], []
    for path in images:
        picture = load_rgb(path)
        started = time.perf_counter()
        found = predict(model, picture, shown)
        seconds = time.perf_counter() - started
        boxes = [
            {"class": model.class_names[label], "score": score, "box_xyxy": box}
            for box, score, label in zip(
                found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ]
        result = {"image": str(path), "seconds": round(seconds, 3), "detections": boxes}
        (out / f"{path.stem}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        best = found.above(threshold)
        draw_detections(picture, best, model.class_names).save(out / f"{path.stem}.png")
        results.append(result)
        labels.append(best)
        if not as_json:
            terminal.console.print(
                f"{path.name}: {len(boxes)} boxes, {len(best)} drawn, {seconds:.1f} s → {out / path.stem}.png",
                markup=False,
            )
    if as_coco is not None:
        write_pseudo_labels(as_coco, images, labels, model.class_names)
    if as_json:
        terminal.console.print_json(json.dumps(results))
    else:
        terminal.console.print(f"Peak memory {_peak_gigabytes():.1f} GB.")


@app.command()
def adapt(
    dataset: Annotated[str, typer.Argument(help="Dataset name or folder.")],
    method: Annotated[str, typer.Option(help="Name from `glip-adapt ls methods`.")],
    shots: Annotated[str, typer.Option(help='Pictures per class, or "all".')],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the few-shot draw and of training.")] = 3,
    config: Annotated[
        Path | None, typer.Option(help="TOML file: fields of FitConfig, and a table 'settings' of the method's own.")
    ] = None,
    cache: CacheFolder = None,
    trunk: TrunkName = "glip-nano",
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = "cpu",
) -> None:
    """Train one adapter and print test AP before and after.

    Example: glip-adapt adapt odinw/Raccoon --method prompt --shots 5 --seed 3 --out adapters/raccoon
    """
    from glip_adapt import TrainingFacts, attach, default_recipe, evaluate, fit, load_dataset
    from glip_adapt.card import write_facts
    from glip_adapt.config import override, read_toml

    if (out / "baked.json").exists():  # what detect and eval would go on using
        raise FileExistsError(f"{out} holds a baked model. Name another folder for the adapter.")
    count: int | Literal["all"] = "all" if shots == "all" else _positive(shots)
    changes = {} if config is None else read_toml(config)
    settings = changes.pop("settings", {})
    recipe = override(replace(default_recipe(trunk, method, count), seed=seed), changes, str(config))
    data = load_dataset(dataset)
    train = data.train.with_boxes() if count == "all" else data.train.few_shot(count, seed)
    loaded = open_trunk(trunk, checkpoint, vocabulary, device)
    model = attach(loaded, method, classes=data.classes, settings=settings)
    features = feature_cache(cache)
    zero_shot = attach(loaded, "zero_shot", classes=data.classes)
    before = evaluate(zero_shot, data.test, recipe.predict_config, cache=features)
    with terminal.training_bar(f"{method}, {len(train)} pictures") as (on_step, on_validation):
        history = fit(model, train, data.val, recipe, cache=features, on_step=on_step, on_validation=on_validation)
    model.save(out)
    after = evaluate(model, data.test, recipe.predict_config, cache=features)
    scores = {"test AP, zero-shot": before.ap, "test AP": after.ap}
    metrics = {name: ap for name, ap in scores.items() if ap is not None}
    write_facts(TrainingFacts(data=train.name, shots=count, seed=seed, metrics=metrics), out)
    terminal.console.print(
        f"{model.trained_parameters:,} parameters, {len(history.steps)} steps (ended by {history.stopped_by}); "
        f"test AP {terminal.percent(before.ap)} → {terminal.percent(after.ap)} → {out}"
    )


@app.command("eval")
def evaluate_adapter(
    dataset: Annotated[str, typer.Argument(help="Dataset name or folder.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder saved by `adapt` or `bake`; without it, zero-shot.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="What to score.")] = "test",
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

    data = load_dataset(dataset)
    model = _model(trunk, checkpoint, vocabulary, device, adapter, list(data.classes))
    shown = _view(model.trunk.name, short_side)
    with terminal.progress_bar() as bar:
        task = bar.add_task(f"{data.name}/{split}", total=None)
        found = evaluate(
            model, getattr(data, split), shown, on_image=lambda done, all_: bar.update(task, completed=done, total=all_)
        )
    if predictions is not None:
        predictions.parent.mkdir(parents=True, exist_ok=True)
        predictions.write_text(json.dumps(found.predictions), encoding="utf-8")
    metrics = {name: value for name, value in asdict(found).items() if name not in ("per_class", "predictions")}
    rows = [{"metric": name, "value": value} for name, value in metrics.items()]
    rows += [{"metric": f"ap of {name}", "value": value} for name, value in found.per_class.items()]
    terminal.print_rows(f"{data.name}/{split}", rows, as_json)


@app.command()
def audit(
    dataset: Annotated[str, typer.Argument(help="Dataset name or folder; or leave it out and name classes.")] = "",
    classes: Classes = "",
    official: Annotated[bool, typer.Option("--official", help="Use the dataset's official prompts.")] = False,
    trunk: TrunkName = "glip-t",
    vocabulary: Vocabulary = None,
    as_json: AsJson = False,
) -> None:
    """Print caption → tokens → classes, to check that labels land on the right words.

    Example: glip-adapt audit --classes "stop_sign, T-Rex" --vocabulary vocab.txt
    """
    from glip_adapt import catalogue
    from glip_adapt.captions import build_caption
    from glip_adapt.data.odinw import load_dataset
    from glip_adapt.model.weights import load_tokenizer

    entries: Any = _split_names(classes, ",")
    if dataset:
        data = load_dataset(dataset)
        entries = (official and data.prompts) or data.classes
    caption = build_caption(entries)
    rows, count = catalogue.audit(caption, load_tokenizer(trunk, vocabulary))
    if not as_json:
        terminal.console.print(Text.assemble("caption: ", (caption.text, "bold"), f" ({count} tokens of 256)"))
    terminal.print_rows("class → tokens", rows, as_json)


@app.command()
def doctor(
    trunk: Annotated[str, typer.Option(help="Also estimate the memory of every method on this trunk.")] = "",
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of a picture, pixels.")] = (800, 1333),
    as_json: AsJson = False,
) -> None:
    """Print what this machine has to offer, and with a trunk what each method will need of it.

    Example: glip-adapt doctor --trunk glip-t --size 800 1333
    """
    from glip_adapt import catalogue

    if trunk:
        terminal.print_rows(f"memory of {trunk}, GB", catalogue.memory(trunk, size), as_json)
    else:
        terminal.print_rows("this machine", catalogue.machine(), as_json)


def _model(
    trunk: str | None,
    checkpoint: Path | None,
    vocabulary: Path | None,
    device: str,
    adapter: Path | None,
    names: list[str],
) -> Any:
    """Return an adapter or a baked model from disk, which ``names``, if any, must agree with; or zero-shot for them."""
    from glip_adapt import attach, load_adapter, load_baked

    classes = [name for name in names if name.strip()]
    if adapter is not None and (adapter / "baked.json").is_file():
        baked = load_baked(adapter, device)
        if classes and tuple(classes) != baked.class_names:
            raise ValueError(
                f"The baked model in {adapter} detects {', '.join(baked.class_names)}, but {', '.join(classes)} was "
                "asked for. Use the classes that it was trained for, in their order."
            )
        return baked
    loaded = open_trunk(trunk, checkpoint, vocabulary, device, adapter)
    if adapter is not None:
        return load_adapter(loaded, adapter, classes=classes or None)
    return attach(loaded, "zero_shot", classes=classes)


def _view(trunk: str, short_side: int | None) -> Any:
    """Return how pictures are shown to a trunk, with another short side if one is given."""
    from glip_adapt import PredictConfig

    shown = PredictConfig.of(trunk)
    if short_side is None:
        return shown
    return replace(shown, short_side=short_side, max_long_side=max(shown.max_long_side, short_side))


def _split_names(text: str, separator: str) -> list[str]:
    return [name.strip() for name in text.split(separator) if name.strip()]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f'expected a whole number from 1 or "all", got {text!r}', param_hint="--shots")
    return int(text)


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
