"""Files of a trunk with stand-in weights: random ones, whose scores are spread as those of a trained detector.

    python -m benchmarks.stand_in glip-t FOLDER --photograph FILE

Size, time, memory and start-up are those of the trunk, since they do not depend on the weights. What is found means
nothing. Of the scores on the photograph, one in five hundred is above a half, so that hundreds of boxes come out, as
different from each other as those of a trained detector.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glip_adapt import attach
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.trunks.catalogue import Trunk, random_trunk
from glip_adapt.trunks.tokenizer import SPECIAL_TOKENS, Tokenizer
from glip_adapt.trunks.weights import save_tensors

SPREAD = 1.5  # standard deviation of a class logit over the anchors of an image
SHARE = 0.002  # of the anchors whose score is above a half
SHORT, LONG = 320, 448  # sides of the photograph that the scores are spread on, at most, pixels
SPECIAL_IDS = (0, 100, 101, 102, 103)  # of SPECIAL_TOKENS in the vocabulary of BERT


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and name them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunk")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photograph", type=Path, required=True)
    parser.add_argument("--classes", default="raccoon, dog, mushroom")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    classes = [name.strip() for name in given.classes.split(",")]
    for path in write_stand_in(given.trunk, given.folder, given.photograph, classes):
        print(path)


def write_stand_in(name: str, folder: Path, photograph: Path, classes: Sequence[str]) -> tuple[Path, Path]:
    """Write weights and vocabulary of a trunk of the GLIP family into a folder; return both files.

    Args:
        name: of the trunk.
        folder: that exists.
        photograph: whose scores are spread.
        classes: names that the vocabulary holds; each is one word.
    """
    drawn = random_trunk(name)
    words = _vocabulary(drawn.spec.config.text.vocabulary_size, classes)
    trunk = Trunk(name, drawn.network, Tokenizer(words), drawn.checksum)
    _spread_scores(trunk, photograph, classes)
    checkpoint, vocabulary = folder / f"{name}.safetensors", folder / "vocab.txt"
    save_tensors(trunk.network.state_dict(), checkpoint, {})
    vocabulary.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return checkpoint, vocabulary


def _vocabulary(size: int, classes: Sequence[str]) -> list[str]:
    """Return WordPiece entries: special tokens where BERT has them, the classes, and made-up words."""
    words = [f"w{number}" for number in range(size)]
    for number, token in zip(SPECIAL_IDS, SPECIAL_TOKENS, strict=True):
        words[number] = token
    words[-len(classes) - 1 :] = [".", *classes]
    return words


@torch.no_grad()
def _spread_scores(trunk: Trunk, photograph: Path, classes: Sequence[str]) -> None:
    """Set scale and bias of the alignment so that the scores on a photograph are spread."""
    batch = collate([view_image(load_rgb(photograph), View(SHORT, flip=False), LONG)])
    model = attach(trunk, "zero_shot", classes=classes)
    model.train(False)
    head: Any = trunk.network.get_submodule("head")

    def logits() -> torch.Tensor:
        (output,) = model.outputs(batch)
        return output.token_logits[0][:, output.token_map[0].any(0)]  # (A, T) of the tokens of classes

    head.log_scale += math.log(logits().std().item() / SPREAD)
    head.bias0 -= logits().flatten().kthvalue(int((1 - SHARE) * logits().numel())).values


if __name__ == "__main__":
    main()
