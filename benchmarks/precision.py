"""How much faster inference is in bfloat16 than in float32, and by how much boxes, scores and AP change.

    python benchmarks/precision.py --photographs FOLDER       # GLIP-T, 800 × 1066; --device cuda for a GPU

*Time*: inferences of one network with random weights in both precisions, in turn, from kept text features. *Change*:
in each image the 100 anchors that score best in float32 are compared with the same anchors in bfloat16, by the score of
a detection and by their boxes, in pixels of the image as the network sees it. GLIP-T has random weights, glip-nano
those of the package. *AP*: of glip-nano, zero-shot, on test splits of the synthetic benchmark.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glip_adapt import attach, evaluate, load_dataset, load_trunk
from glip_adapt.core.precision import Precision, autocast
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.trunks.catalogue import TRUNKS, Trunk, random_trunk
from glip_adapt.trunks.glip import anchors
from glip_adapt.trunks.glip.decode import class_probabilities

PRECISIONS: tuple[Precision, Precision] = ("float32", "bfloat16")
BEST = 100  # anchors of an image that are compared: as many boxes as are kept
CLASSES = ("raccoon", "dog", "person", "package", "mushroom")


@dataclass(frozen=True)
class Change:
    """What bfloat16 changes in some images: median, 99 % quantile and largest value over anchors."""

    boxes_px: tuple[float, ...]
    scores: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", choices=TRUNKS, default="glip-t", help="with random weights")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1066), metavar=("H", "W"), help="pixels, for the time"
    )
    parser.add_argument("--repeats", type=int, default=5, help="inferences of each precision; the first is not counted")
    parser.add_argument("--photographs", type=Path, help="folder with images, taken evenly from all below it")
    parser.add_argument("--count", type=int, default=20, help="photographs, and images of each synthetic set")
    parser.add_argument(
        "--sets", nargs="*", default=("CardSuits", "Dice", "Tools", "Faces"), help="synthetic, for the AP"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trunk, nano = random_trunk(arguments.trunk, arguments.device), load_trunk("glip-nano", device=arguments.device)
    if arguments.repeats:
        report_time(trunk, arguments)
    print("| network | images | box, px: median, 99 %, largest | score: median, 99 %, largest |")
    print("| :-- | :-- | --: | --: |")
    if arguments.photographs:
        paths = spread(sorted(arguments.photographs.rglob("*.jpg")), arguments.count)
        for each, what in ((trunk, f"{arguments.trunk}, random"), (nano, "glip-nano")):
            report_change(what, f"{len(paths)} photographs", attach(each, "zero_shot", classes=CLASSES), paths)
    report_ap(nano, arguments)


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Return ``count`` of the paths, evenly spaced."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


@torch.no_grad()
def report_time(trunk: Trunk, arguments: argparse.Namespace) -> None:
    """Print the median seconds of an inference in both precisions, and their ratio."""
    model = attach(trunk, "zero_shot", classes=[f"w{i}" for i in range(9)])
    pixels = torch.randn(3, *arguments.size, generator=torch.Generator().manual_seed(0)).mul(40).add(128)
    images = collate([pixels.clamp(0, 255).to(torch.uint8)]).to(model.device)
    seconds: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(arguments.repeats + 1):
        for precision, times in seconds.items():
            started = time.perf_counter()
            with autocast(model.device, precision):
                model.outputs(images)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    float32, bfloat16 = (statistics.median(times[1:]) for times in seconds.values())
    h, w = arguments.size
    tokens = model.captions[0].ids.shape[1]
    print(f"{trunk.name}, {h} × {w}, {tokens} tokens, {arguments.device}, {arguments.threads} threads:")
    print(f"{float32:.3g} s in float32, {bfloat16:.3g} s in bfloat16, {float32 / bfloat16:.2f} ×\n")


def report_change(network: str, images: str, model: AdaptedModel, paths: Sequence[Path]) -> None:
    """Print a row of the table."""
    change = measure_change(model, paths)
    cells = (" / ".join(f"{value:.2g}" for value in values) for values in (change.boxes_px, change.scores))
    print(f"| {network} | {images} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def measure_change(model: AdaptedModel, paths: Sequence[Path]) -> Change:
    """Return how far the best anchors of each image move, and by how much their scores change."""
    model.train(False)
    boxes_px, scores = [], []
    for path in paths:
        print(f"{model.trunk_name}: {path.name}", file=sys.stderr)
        image = view_image(load_rgb(path), View(model.view.short_side, flip=False), model.view.max_long_side)
        (exact, exact_scores), (coarse, coarse_scores) = (predict(model, image, precision) for precision in PRECISIONS)
        best = exact_scores.amax(1).topk(min(BEST, len(exact))).indices
        boxes_px.append((coarse - exact)[best].abs().amax(1))
        scores.append((coarse_scores - exact_scores)[best].abs().amax(1))
    return Change(*(summary(torch.cat(values)) for values in (boxes_px, scores)))


def predict(model: AdaptedModel, image: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return boxes (A, 4), pixels as the network sees the image, and scores (A, K) of all anchors."""
    with autocast(model.device, precision):
        (output,) = model.outputs(collate([image]).to(model.device))
    scores = (class_probabilities(output)[0] * output.centerness[0].float().sigmoid()[:, None]).sqrt()
    return anchors.decode(output.box_deltas[0].float(), output.anchors_xyxy), scores


def summary(values: Tensor) -> tuple[float, ...]:
    """Return median, 99 % quantile and largest value."""
    return values.median().item(), values.kthvalue(round(0.99 * len(values))).values.item(), values.max().item()


def report_ap(nano: Trunk, arguments: argparse.Namespace) -> None:
    """Print the change on images of each synthetic set, and then the AP of all of them in both precisions."""
    rows = []
    for name in arguments.sets:
        test = load_dataset(f"glyphs13/{name}").test
        model = attach(nano, "zero_shot", classes=test.classes)
        report_change("glip-nano", f"{name} (synthetic)", model, [r.path for r in test.records][: arguments.count])
        view = model.view
        aps = []
        for precision in PRECISIONS:
            shown = ViewConfig(short_side=view.short_side, max_long_side=view.max_long_side, precision=precision)
            aps.append(100 * (evaluate(model, test, shown).ap or 0.0))
        rows.append(f"| {name} | {len(test)} | {aps[0]:.2f} | {aps[1]:.2f} | {aps[1] - aps[0]:+.2f} |")
    print("\n| set, test split | images | AP in float32 | in bfloat16 | change |\n| :-- | --: | --: | --: | --: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
