"""The verb ``convert``: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import IMPORTING, AsJson, TrunkName, Vocabulary, Wording, split_names, worded

convert_app = typer.Typer()


@convert_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the public code, .pth, or our .safetensors.")],
    target: Annotated[Path, typer.Argument(help="File to write, .safetensors; or for a tuned prompt, a folder.")],
    trunk: TrunkName = "glip-t",
    classes: Annotated[
        str,
        typer.Option(help="Import the tuned prompt of the file instead: the classes of its training, in their order."),
    ] = "",
    dataset: Annotated[
        str, typer.Option(help="Instead of --classes: the dataset that the prompt was trained on.")
    ] = "",
    prompts: Annotated[
        Wording,
        typer.Option(help="Wording of the classes in that training: names, or the manual prompts of the paper."),
    ] = "names",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in the folder.")] = False,
    vocabulary: Vocabulary = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint of the public code to safetensors, or its tuned prompt to an adapter.

    Example: glip-adapt convert glip_tiny_model_o365_goldg_cc_sbu.pth glip-t.safetensors --trunk glip-t

    Example: glip-adapt convert model_best.pth adapters/raccoon --trunk glip-t --classes raccoon
    """
    names = split_names(classes)
    _check_usage(target, names, dataset, prompts)
    with terminal.working(IMPORTING):
        from glip_adapt import load_dataset
        from glip_adapt.core.captions import build_caption
        from glip_adapt.share.public_prompt import import_prompt
        from glip_adapt.trunks import catalogue as weights
    if not names and not dataset:
        checksum = weights.convert(source, target, trunk)
        if as_json:
            terminal.print_json({"file": str(target), "trunk": trunk, "checksum": checksum})
        else:
            terminal.say(f"{target}: SHA-256 of the weights {checksum}")
        return
    model = import_prompt(source, trunk, names or worded(load_dataset(dataset), prompts), vocabulary=vocabulary)
    model.save(target, overwrite=overwrite)
    if as_json:
        facts = {"folder": str(target), "trunk": trunk, "classes": model.class_names}
        terminal.print_json(facts | {"trained_parameters": model.trained_parameters})
        return
    terminal.say(
        f"prompt of {model.trained_parameters:,} parameters for the caption {build_caption(model.prompts).text!r} → "
        f"{target}. Use it with --adapter {target} --checkpoint {source}"
    )


def _check_usage(target: Path, names: list[str], dataset: str, prompts: str) -> None:
    """Raise for options that do not belong together."""
    is_file = target.suffix == ".safetensors"
    if names and dataset:
        raise typer.BadParameter("name classes or a dataset, not both", param_hint="--dataset")
    if prompts == "official" and not dataset:
        raise typer.BadParameter("official prompts belong to a dataset; name it with --dataset", param_hint="--prompts")
    if (names or dataset) and is_file:
        raise typer.BadParameter(
            "classes belong to a tuned prompt, which becomes a folder; name one, or leave the classes out to convert "
            "the weights",
            param_hint="TARGET",
        )
    if not names and not dataset and not is_file:
        raise typer.BadParameter(
            f"got {str(target)!r}. Name a file that ends in .safetensors for the weights; or, for the tuned prompt of "
            "a file, the classes of its training with --classes or --dataset",
            param_hint="TARGET",
        )
