"""The verbs ``ls``, ``audit`` and ``doctor``: parse, call one function of ``listing``, print."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import AsJson, Classes, TrunkName, Vocabulary, split_names, worded
from glip_adapt.cli.terminal import Column

ls_app = typer.Typer()

TRUNKS = (
    Column("trunk", lambda row: row.name),
    Column("take it", lambda row: row.purpose),
    Column("parameters", lambda row: row.parameters, lambda count: f"{count / 1e6:.1f} M"),
    Column("deep fusion", lambda row: row.deep_fusion),
    Column("pre-trained on", lambda row: row.data),
    Column("licence", lambda row: row.licence),
)
DATASETS = (
    Column("dataset", lambda row: row.name),
    Column("short name", lambda row: row.short_name),
    Column("classes", lambda row: row.classes),
    Column("train", lambda row: row.images.get("train")),
    Column("val", lambda row: row.images.get("val")),
    Column("test", lambda row: row.images.get("test")),
    Column("licence", lambda row: row.licence),
)
METHODS = (
    Column("method", lambda row: row.name),
    Column("what it is for", lambda row: row.purpose),
    Column("cost", lambda row: row.cost),
    Column("trains on GLIP-T", lambda row: row.counted or row.trained, lambda n: n if isinstance(n, str) else f"{n:,}"),
)
AUDIT = (
    Column("label", lambda row: row.label),
    Column("class", lambda row: row.name),
    Column("characters", lambda row: f"{row.span[0]}–{row.span[1]}"),
    Column("tokens", lambda row: ", ".join(map(str, row.tokens))),
    Column("words", lambda row: " ".join(row.words)),
)
MEMORY = (
    Column("method", lambda row: row.method),
    Column("weights", lambda row: row.plain.weights / 1e9, "{:.2f}".format),
    Column("gradients, optimiser, best state", lambda row: row.plain.trained / 1e9, "{:.2f}".format),
    Column("activations", lambda row: row.plain.activations / 1e9, "{:.2f}".format),
    Column("total", lambda row: row.plain.total / 1e9, "{:.2f}".format),
    Column("total, recompute = true", lambda row: row.recomputed.total / 1e9, "{:.2f}".format),
)


@ls_app.command("ls")
def list_names(
    what: Annotated[Literal["trunks", "datasets", "methods"], typer.Argument(help="Table to print.")] = "trunks",
    as_json: AsJson = False,
) -> None:
    """List pretrained detectors (trunks), known datasets, or methods, and say which one to take when.

    Example: glip-adapt ls methods
    """
    from glip_adapt.cli import listing

    columns = {"trunks": TRUNKS, "datasets": DATASETS, "methods": METHODS}[what]
    terminal.print_table(what, getattr(listing, what)(), columns, as_json)


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
    from glip_adapt.core.captions import build_caption
    from glip_adapt.data.dataset import load_dataset
    from glip_adapt.trunks.catalogue import load_tokenizer
    from glip_adapt.trunks.tokenizer import MAX_TOKENS

    named: Any = worded(load_dataset(dataset), "official" if official else "names") if dataset else split_names(classes)
    caption, tokenizer = build_caption(named), load_tokenizer(trunk, vocabulary)
    rows = listing.audit(caption, tokenizer)
    if not as_json:
        terminal.say(f"caption: {caption.text} ({tokenizer.encode(caption).ids.shape[1]} tokens of {MAX_TOKENS})")
    terminal.print_table("class → tokens", rows, AUDIT, as_json)


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
        terminal.print_table(f"memory of {trunk}, GB", listing.memory(trunk, size), MEMORY, as_json)
        return
    found = listing.machine()
    gpus = [f"{name} ({size_bytes / 1e9:.0f} GB)" for name, size_bytes in found.gpus] + ["mps"] * found.has_mps
    facts = {
        "python": found.python,
        **found.packages,
        "platform": found.platform,
        "threads": found.threads,
        "memory": f"{found.memory_bytes / 1e9:.0f} GB",
        "GPUs": ", ".join(gpus) or "none",
        "free disk": f"{found.free_disk_bytes / 1e9:.0f} GB",
        "Hub cache": str(found.hub_cache),
    }
    terminal.print_rows("this machine", [{"what": name, "value": value} for name, value in facts.items()], as_json)
