"""The verbs ``ls``, ``audit`` and ``doctor``: parse, call one function of ``listing``, print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import IMPORTING, AsJson, Classes, TrunkName, Vocabulary, split_names, worded

ls_app = typer.Typer()

# Heading → how a table shows its values.
SHOWN: dict[str, Callable[[Any], str]] = {
    "parameters": lambda count: f"{count / 1e6:.1f} M",
    "trains on GLIP-T": lambda trained: trained if isinstance(trained, str) else f"{trained:,}",
}


@ls_app.command("ls")
def list_names(
    what: Annotated[Literal["trunks", "datasets", "methods"], typer.Argument(help="Table to print.")] = "trunks",
    as_json: AsJson = False,
) -> None:
    """List pretrained detectors (trunks), known datasets, or methods, and say which one to take when.

    Example: glip-adapt ls methods
    """
    from glip_adapt.cli import listing

    spare = ("deep fusion", "licence") if what == "trunks" else ("licence",)
    terminal.print_rows(what, getattr(listing, what)(), as_json, shown=SHOWN, whole=True, spare=spare)


@ls_app.command()
def audit(
    dataset: Annotated[str, typer.Argument(help="Dataset name or folder; or leave it out and name classes.")] = "",
    classes: Classes = "",
    official: Annotated[bool, typer.Option("--official", help="Use the manual prompts of the paper.")] = False,
    trunk: TrunkName = "glip-t",
    vocabulary: Vocabulary = None,
    as_json: AsJson = False,
) -> None:
    """Show how class names are read: the caption, its tokens, and the tokens of each class.

    Example: glip-adapt audit --classes "stop_sign, T-Rex" --vocabulary vocab.txt
    """
    from glip_adapt.cli import listing
    from glip_adapt.core.captions import MAX_TOKENS, build_caption
    from glip_adapt.data.dataset import load_dataset

    with terminal.working(IMPORTING):
        from glip_adapt.trunks.catalogue import load_tokenizer

    named: Any = worded(load_dataset(dataset), "official" if official else "names") if dataset else split_names(classes)
    caption, tokenizer = build_caption(named), load_tokenizer(trunk, vocabulary)
    rows = list(listing.audit(caption, tokenizer))
    if not as_json:
        terminal.say(f"caption: {caption.text} ({tokenizer.encode(caption).ids.shape[1]} tokens of {MAX_TOKENS})")
    terminal.print_rows("class → tokens", rows, as_json, whole=True)


@ls_app.command()
def doctor(
    trunk: Annotated[str, typer.Option(help="Estimate the memory of every method on this trunk instead.")] = "",
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of an image, pixels.")] = (800, 1333),
    as_json: AsJson = False,
) -> None:
    """Print versions, memory and GPUs of this machine; with --trunk, the memory that training will take.

    Example: glip-adapt doctor --trunk glip-t --size 800 1333
    """
    from glip_adapt.cli import listing

    if trunk:
        with terminal.working(f"measuring small training steps of {trunk}"):
            rows = list(listing.memory(trunk, size))
        terminal.print_rows(f"memory of {trunk}, GB", rows, as_json, decimals=2, whole=True)
        return
    facts = list(listing.machine())
    if not as_json:
        terminal.print_rows("this machine", facts, as_json)
    with terminal.working("asking torch for threads and GPUs"):
        devices = list(listing.devices())
    if as_json:
        terminal.print_json(facts + devices)
    else:
        terminal.print_rows("as torch sees it", devices, as_json)
