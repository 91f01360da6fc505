"""The command line: all verbs, and how an error ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from glip_adapt import __version__
from glip_adapt.cli import terminal
from glip_adapt.cli.adapt import adapt_app
from glip_adapt.cli.bench import bench_app
from glip_adapt.cli.convert import convert_app
from glip_adapt.cli.data import data_app
from glip_adapt.cli.deploy import deploy_app
from glip_adapt.cli.detect import detect_app
from glip_adapt.cli.evaluate import evaluate_app
from glip_adapt.cli.export_gligen import export_gligen_app
from glip_adapt.cli.ls import ls_app
from glip_adapt.cli.prompt import prompt_app
from glip_adapt.cli.pseudo_label import pseudo_label_app
from glip_adapt.cli.score import score_app
from glip_adapt.cli.serve import serve_app
from glip_adapt.cli.share import share_app
from glip_adapt.cli.studio import studio_app
from glip_adapt.cli.suggest import suggest_app
from glip_adapt.cli.track import track_app

HELP = (
    "Find objects by name, and teach a pretrained detector your own classes from a few labelled images.\n\n"
    "Start with `glip-adapt quickstart`: synthetic images, no download. For photographs, `detect` finds what you name, "
    "`adapt` trains on your dataset, and `eval` scores the result. `ls` lists detectors, datasets and methods.\n\n"
    "For programs: with `--json`, a verb prints one JSON value on standard output and nothing else; progress, warnings "
    "and errors go to standard error. Exit codes: 0 done, 1 failed, also in part, 2 wrong usage."
)

DIVIDED = ("adapt", "eval")
"""Verbs that several processes of ``torchrun`` run together."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verbs in (
    *(
        detect_app,
        track_app,
        adapt_app,
        evaluate_app,
        studio_app,
        suggest_app,
        pseudo_label_app,
        bench_app,
        ls_app,
        convert_app,
        deploy_app,
        serve_app,
    ),
    *(score_app, share_app, export_gligen_app),
):
    app.add_typer(verbs)
app.add_typer(data_app, name="data")
app.add_typer(prompt_app, name="prompt")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        terminal.say(__version__)
        raise typer.Exit


@app.callback(help=HELP)
def _before_the_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


@contextmanager
def _ranks() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it did; only the first one prints.

    Raises:
        ValueError: if the verb does not divide its work.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":  # without the seconds that torch takes
        yield
        return
    from glip_adapt.engine.ranks import is_told, joined

    verb, is_silent = next(iter(sys.argv[1:]), ""), False
    try:
        with joined() as ranks:
            is_silent = ranks.rank > 0
            with terminal.muted(is_silent):
                if ranks.count > 1 and verb not in DIVIDED:
                    raise ValueError(
                        f"torchrun is for {' and '.join(DIVIDED)}, whose images several processes divide. Start "
                        f"`glip-adapt {verb}` without it; `bench` shares its runs by --workers and --ray."
                    )
                yield
    except (Exception, KeyboardInterrupt) as error:
        if is_silent and (is_told(error) or isinstance(error, KeyboardInterrupt)):
            sys.exit(1)
        raise


def main() -> None:
    """Run the command line; an expected error is one message and exit code 1, wrong usage is 2."""
    terminal.prepare()
    try:
        with _ranks():
            app()
    except KeyboardInterrupt:
        terminal.note("Interrupted; what was finished is kept.")
        sys.exit(130)
    except Exception as error:
        if (message := terminal.explain(error)) is None:
            raise
        terminal.print_error(message)
        sys.exit(1)
