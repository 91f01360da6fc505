"""The verbs below ``glip-adapt prompt``: parse, call one library function, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import options, terminal

prompt_app = typer.Typer(no_args_is_help=True, help="Choose the wording of class names; inspect learned prompts.")


@prompt_app.command("search")
def search(
    dataset: options.DatasetName,
    candidates: Annotated[
        str,
        typer.Option(help='Wordings with {} for the name, "a {}; {} seen from above", or a file with one per line.'),
    ] = "",
    knowledge: Annotated[
        str,
        typer.Option(help="Descriptions to put behind the names: a YAML or JSON file by class name, or `wordnet`."),
    ] = "",
    cache: options.CacheFolder = None,
    trunk: options.BestTrunk = None,
    checkpoint: options.Checkpoint = None,
    vocabulary: options.Vocabulary = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Try wordings of the class names on the split val, or without it on train, and score the best one on test.

    Example: glip-adapt prompt search glyphs13/Tools --candidates "a {}; the {} sign"
    """
    from glip_adapt.core.knowledge import load_knowledge
    from glip_adapt.data.dataset import load_dataset

    if not candidates.strip() and not knowledge:
        raise typer.BadParameter("name wordings, or descriptions by --knowledge", param_hint="--candidates")
    is_file = os.path.isfile(candidates)  # unlike Path, whatever the length
    given = _read_lines(Path(candidates)) if is_file else candidates.split(";")
    data = load_dataset(dataset)
    described = load_knowledge(knowledge, data.classes) if knowledge else ()
    with terminal.working(options.IMPORTING):
        from glip_adapt.engine.prompting import search_prompts
    found = search_prompts(
        options.open_trunk(trunk, checkpoint, vocabulary, device, dataset=dataset),
        data,
        [*(entry.strip() for entry in given if entry.strip()), *described],
        cache=options.feature_cache(cache),
        on_wording=lambda w: terminal.note(f"{w.candidate}  val AP {terminal.percent(w.val_ap)}"),
    )
    by = "val" if "val" in data.splits else "train"
    scores = [(wording, by, wording.val_ap) for wording in found.wordings]
    if by == "train":
        scores.append((found.chosen, "train, held out", found.expected))
    if "test" in data.splits:
        scores.append((found.chosen, "test", found.test_ap))
    rows = [
        {
            "wording": wording.candidate,
            "split": split,
            "ap": ap,
            "caption": ". ".join(f"{p.prefix}{p.name}{p.suffix}" for p in wording.prompts),
        }
        for wording, split, ap in scores
    ]
    terminal.print_rows(
        f"{data.name}: chosen on {by}" + ", scored once on test" * ("test" in data.splits), rows, as_json
    )


@prompt_app.command("show")
def show(
    adapter: Annotated[Path, typer.Argument(help="Folder saved by `adapt`.")],
    words: Annotated[int, typer.Option(min=1, help="Number of nearest words per token.")] = 3,
    trunk: options.AdaptersTrunk = None,
    checkpoint: options.Checkpoint = None,
    vocabulary: options.Vocabulary = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Print how much training changed each token and class name, and the words that are nearest now.

    Example: glip-adapt prompt show adapters/tools-5-shot
    """
    with terminal.working(options.IMPORTING):
        from glip_adapt import load_adapter
        from glip_adapt.engine.prompting import class_changes, token_changes
    model = load_adapter(adapter, trunk=options.open_trunk(trunk, checkpoint, vocabulary, device, adapter))
    tokens = [
        {
            "token": change.token,
            "names": change.class_name,
            "change": change.change,
            "nearest words": ", ".join(f"{word} {cosine:.2f}" for word, cosine in change.nearest),
        }
        for change in token_changes(model, words)
    ]
    classes = [{"class": name, "change": change} for name, change in class_changes(model).items()]
    if as_json:
        terminal.print_json({"classes": classes, "tokens": tokens})
    else:
        terminal.print_rows("change per class, over the length of its features", classes, as_json)
        terminal.print_rows("change per token", tokens, as_json)


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file."""
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error
