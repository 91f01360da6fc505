"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

import glip_adapt
from glip_adapt.cli import terminal
from glip_adapt.cli.adapt import adapt_app
from glip_adapt.cli.bench import bench_app
from glip_adapt.cli.convert import convert_app
from glip_adapt.cli.data import data_app
from glip_adapt.cli.deploy import deploy_app
from glip_adapt.cli.detect import detect_app
from glip_adapt.cli.options import AsJson, Classes, TrunkName, Vocabulary, split_names
from glip_adapt.cli.prompt import prompt_app
from glip_adapt.cli.share import share_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=glip_adapt.__doc__)
for verbs in (detect_app, adapt_app, bench_app, convert_app, deploy_app, share_app):
    app.add_typer(verbs)
app.add_typer(data_app, name="data")
app.add_typer(prompt_app, name="prompt")


def main() -> None:
    """Run the command line; an expected error is one message and exit code 1, wrong usage is 2."""
    terminal.prepare()
    try:
        app()
    except KeyboardInterrupt:
        terminal.note("Interrupted; what was finished is kept.")
        sys.exit(130)
    except Exception as error:
        if (message := terminal.explain(error)) is None:
            raise
        terminal.print_error(message)
        sys.exit(1)


@app.command("ls")
def list_names(
    what: Annotated[Literal["trunks", "datasets", "methods"], typer.Argument()] = "trunks", as_json: AsJson = False
) -> None:
    """List what exists.

    Example: glip-adapt ls methods
    """
    from glip_adapt.cli import listing as catalogue

    rows = {"trunks": catalogue.trunks, "datasets": catalogue.datasets, "methods": catalogue.methods}[what]()
    terminal.print_rows(what, rows, as_json)


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
    from glip_adapt.cli import listing as catalogue
    from glip_adapt.core.captions import build_caption
    from glip_adapt.data.dataset import load_dataset
    from glip_adapt.trunks.catalogue import load_tokenizer

    entries: Any = split_names(classes)
    if dataset:
        data = load_dataset(dataset)
        entries = (official and data.prompts) or data.classes
    caption = build_caption(entries)
    rows, count = catalogue.audit(caption, load_tokenizer(trunk, vocabulary))
    if not as_json:
        terminal.say(f"caption: {caption.text} ({count} tokens of 256)")
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
    from glip_adapt.cli import listing as catalogue

    if trunk:
        terminal.print_rows(f"memory of {trunk}, GB", catalogue.memory(trunk, size), as_json)
    else:
        terminal.print_rows("this machine", catalogue.machine(), as_json)
