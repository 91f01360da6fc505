"""How much faster, and in how much less memory, than the arithmetic of the public code.

    python benchmarks/speed.py --size 480 640            # a table; --json prints one object
    python benchmarks/speed.py --growth growth.png       # time over tokens, picture size and classes
    python benchmarks/speed.py --device cuda --trunk glip-l --precision bfloat16 --size 800 1333 --batch 1

Both sides run in one process, step by step in turn, on the same network with random weights (no checkpoint is needed:
time does not depend on their values). *Reference arithmetic* projects every position to the joint channels (the dense
order), attends over 256 padded tokens, uses torchvision's deformable convolution and keeps nothing between steps; all
else is shared, so these ratios understate the distance to the public code. Ours keeps what is frozen: inference and
prompt tuning start from kept text or picture features, linear probing from kept fused features. Peak memory is
measured for each side and task in a process of its own, over what it holds once the network is loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from glip_adapt.adapters.modules import TextOffset
from glip_adapt.core import memory
from glip_adapt.core.captions import MAX_TOKENS
from glip_adapt.core.precision import Precision, autocast
from glip_adapt.core.structures import ImageBatch, Target, TextFeatures, Tokens, split_levels
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.optimise import Stepper
from glip_adapt.engine.rates import parameter_groups
from glip_adapt.trunks.catalogue import Trunk, random_trunk
from glip_adapt.trunks.cross_attention import CrossAttention, FusionLayer
from glip_adapt.trunks.glip import dyhead
from glip_adapt.trunks.glip.head import HeadOutput
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.released import TRUNKS, published_recipe

METHODS = ("prompt", "linear_probe", "lora", "full")
METHOD_OF = {"inference": "zero_shot", **{method: method for method in METHODS}}
SIDES = ("ours", "reference")
ORDERS: dict[str, Callable[..., object]] = {
    "auto": CrossAttention.forward,
    "reassociated": CrossAttention.reassociated,
    "dense": CrossAttention.dense,
}
GROWTH_TOKENS = (15, 31, 63, 127, 191, 253)  # two per class and one more
GROWTH_SIZES_HW = ((256, 320), (320, 448), (480, 640), (640, 832), (800, 1088))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", choices=TRUNKS, default="glip-t")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="pixels")
    parser.add_argument("--classes", type=int, default=9, help="2 tokens each and one more: 19 by default")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each side; the first is not counted")
    parser.add_argument("--tasks", nargs="+", choices=METHOD_OF, default=list(METHOD_OF))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--growth", type=Path, metavar="PNG", help="draw how time grows instead")
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)  # one side, own process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_bytes(arguments, *arguments.peak))
    elif arguments.growth:
        draw_growth(measure_growth(arguments), arguments)
    else:
        report(compare(arguments), arguments)


# Two sides -----------------------------------------------------------------------------------------------------------


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, have ``owner`` use another function."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def reference_arithmetic() -> Iterator[None]:
    """While open, networks compute as the public code does."""
    dense = replaced(CrossAttention, "forward", CrossAttention.dense)
    with dense, replaced(dyhead, "deformable_conv", map_by_map):
        yield


def map_by_map(
    cells: Tensor,
    shapes_hw: list[tuple[int, int]],
    offsets: list[Tensor],
    masks: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
) -> tuple[Tensor, ...]:
    """Torchvision's operator on one map after the other, in place of ``model.deform.deformable_conv``."""
    return tuple(
        deform_conv2d(x.contiguous(), offset, weight, bias, stride=stride, padding=1, mask=mask)
        for x, offset, mask in zip(split_levels(cells, shapes_hw), offsets, masks, strict=True)
    )


def padded(tokens: Tokens) -> Tokens:
    """Return the tokens padded to 256, as the public tokenizer does."""
    right = (0, MAX_TOKENS - tokens.ids.shape[1])
    return Tokens(F.pad(tokens.ids, right), F.pad(tokens.mask, right), F.pad(tokens.token_map, right))


@dataclass
class Workload:
    """One task on one kind of picture, as either side would do it."""

    model: AdaptedModel
    images: ImageBatch
    targets: list[Target]
    precision: Precision

    def __post_init__(self) -> None:
        self.trains = bool(self.model.owned)
        recipe = published_recipe(self.model.adapter.name, 10)
        self.model.train(self.trains)
        self.recompute = recipe.recompute
        self.stepper: Stepper | None = None
        if self.trains:
            groups, clip_norm = parameter_groups(self.model, recipe), math.inf  # both sides leave gradients as they are
            self.stepper = Stepper(groups, device=self.model.device, precision=self.precision, clip_norm=clip_norm)
        objective, padded_hw = self.model.network.objective, (self.images.pixels.shape[2], self.images.pixels.shape[3])
        self.prepared = [objective.prepare(target, padded_hw) for target in self.targets]
        with torch.no_grad(), autocast(self.model.device, self.precision):
            # What ours has at hand in a warm run; for inference that is the text alone, as the picture is new.
            self.prefix = self.model.prefix(self.images) if self.trains else self.images
            self.model.texts()

    def ours(self) -> HeadOutput:
        """One step from what is kept."""
        self.model.network.set_recompute(self.recompute)
        outputs: list[HeadOutput] = []

        def parts() -> Iterator[tuple[str, dict[str, Tensor]]]:
            outputs.append(self._predict())
            yield "the batch", self._losses(outputs[0])

        if self.stepper is None:
            return self._predict()
        self.stepper.take(1, "noise", parts())
        return outputs[0]

    def reference(self) -> HeadOutput:
        """One step from pixels and token ids."""
        glip = self.model.network
        assert isinstance(glip, Glip)
        glip.set_recompute(False)
        with (
            reference_arithmetic(),
            autocast(self.model.device, self.precision),
            torch.set_grad_enabled(self.trains),
        ):
            text = glip.encode_text(padded(self.model.captions[0]))
            if isinstance(glip.text_prompt, TextOffset):  # the public table has a row for each of the 256 positions
                offset = F.pad(glip.text_prompt.offset, (0, 0, 0, MAX_TOKENS - self.tokens))
                text = replace(text, features=text.features + offset)
            output = glip.predict(glip.tower(glip.encode_image(self.images), text))
        if self.stepper is not None:
            self.stepper.optimiser.zero_grad()  # after the forward pass, as the public trainer does
            torch.stack(list(self._losses(output).values())).sum().backward()
            self.stepper.optimiser.step()
        return output

    @property
    def tokens(self) -> int:
        return self.model.captions[0].ids.shape[1]

    def _predict(self) -> HeadOutput:
        with autocast(self.model.device, self.precision), torch.set_grad_enabled(self.trains):
            prefix = self.prefix if self.trains else self.model.prefix(self.images)
            (output,) = self.model.finish(prefix)
        return output

    def _losses(self, output: HeadOutput) -> dict[str, Tensor]:
        objective = self.model.network.objective
        return objective.losses(output, self.prepared, objective.scale(self.prepared))


def build_workload(
    trunk: Trunk, task: str, arguments: argparse.Namespace, size_hw: tuple[int, int], classes: int
) -> Workload:
    """Return a task on noise pictures with three boxes each."""
    settings = {"frozen": ()} if task == "full" else {}  # the reference trains everything as well
    model = attach(trunk, METHOD_OF[task], classes=[f"w{i}" for i in range(classes)], settings=settings)
    generator = torch.Generator().manual_seed(0)
    h, w = size_hw
    padded_hw = (-(-h // 32) * 32, -(-w // 32) * 32)
    pixels = torch.zeros(arguments.batch, 3, *padded_hw, dtype=torch.uint8)
    pixels[:, :, :h, :w] = torch.randint(0, 256, (arguments.batch, 3, h, w), dtype=torch.uint8, generator=generator)
    boxes_norm = torch.tensor([[0.1, 0.2, 0.3, 0.5], [0.4, 0.1, 0.9, 0.8], [0.6, 0.6, 0.7, 0.9]])
    target = Target(boxes_norm * torch.tensor([w, h, w, h]), torch.arange(3) % classes)
    images = ImageBatch(pixels, (size_hw,) * arguments.batch).to(model.device)
    return Workload(model, images, [target] * arguments.batch, arguments.precision)


# Measurements --------------------------------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return medians of both sides, their ratios, peak memory and the largest difference of their outputs."""
    size_hw = tuple(arguments.size)
    peaks = {task: {side: peak_in_own_process(side, task) for side in SIDES} for task in arguments.tasks}
    trunk = random_trunk(arguments.trunk, arguments.device)
    seconds: dict[str, dict[str, float]] = {}
    difference = None
    for task in arguments.tasks:
        work = build_workload(trunk, task, arguments, size_hw, arguments.classes)
        if not work.trains:
            difference = largest_difference(work.ours(), work.reference(), work.tokens)
        seconds[task] = interleaved({"ours": work.ours, "reference": work.reference}, arguments.repeats)
        progress(f"{task}: {seconds[task]}")
    return {
        "trunk": arguments.trunk,
        "size_hw": size_hw,
        "tokens": 2 * arguments.classes + 1,
        "batch": arguments.batch,
        "precision": arguments.precision,
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else f"cpu, {arguments.threads} threads",
        "torch": torch.__version__,
        "ratios": {task: found["reference"] / found["ours"] for task, found in seconds.items()},
        "seconds": seconds,
        "peak_bytes": peaks,
        "memory_ratios": {task: found["ours"] / found["reference"] for task, found in peaks.items()},
        "largest_relative_difference": difference,
    }


def interleaved(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side; they take turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, step in sides.items():
            times[name].append(timed(step))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def timed(step: Callable[[], object]) -> float:
    """Return the seconds that a step takes, until a GPU has done its part."""
    started = time.perf_counter()
    step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def largest_difference(ours: HeadOutput, reference: HeadOutput, tokens: int) -> float:
    """Return the largest ‖a − b‖ / ‖b‖ over token logits, box deltas and centerness."""
    pairs = (
        (ours.token_logits, reference.token_logits[..., :tokens]),
        (ours.box_deltas, reference.box_deltas),
        (ours.centerness, reference.centerness),
    )
    return max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs)


def peak_in_own_process(side: str, task: str) -> int:
    """Run this script again for one side of one task; return the bytes it needed beyond the loaded network."""
    progress(f"memory of {task}, {side}")
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", side, task]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def peak_bytes(arguments: argparse.Namespace, side: str, task: str) -> int:
    """Return the peak of a step beyond what the process holds when the network is loaded and has run once."""
    trunk = random_trunk(arguments.trunk, arguments.device)
    warm_up = build_workload(trunk, "inference", arguments, (64, 64), arguments.classes)
    getattr(warm_up, side)()  # loads the libraries' kernels
    memory.reset_peak(arguments.device)
    before = memory.used_bytes(arguments.device)
    work = build_workload(trunk, task, arguments, tuple(arguments.size), arguments.classes)
    for _ in range(1 + (task == "full")):  # the optimiser's moments exist from the end of the first step
        getattr(work, side)()
    return memory.peak_bytes(arguments.device) - before


def measure_growth(arguments: argparse.Namespace) -> dict[str, dict[float, dict[str, float]]]:
    """Return seconds over tokens (fusion alone, three ways), picture size (inference) and classes (inference)."""
    trunk = random_trunk(arguments.trunk, arguments.device)
    size_hw = tuple(arguments.size)
    growth: dict[str, dict[float, dict[str, float]]] = {"tokens": {}, "megapixels": {}, "classes": {}}
    for tokens in GROWTH_TOKENS:
        work = build_workload(trunk, "inference", arguments, size_hw, tokens // 2)
        with torch.no_grad():
            image = work.model.network.encode_image(work.images).cells
            (text,) = work.model.texts()
        sides: dict[str, Callable[[], object]] = {
            name: partial(fuse, trunk, order, image, text) for name, order in ORDERS.items()
        }
        growth["tokens"][tokens] = interleaved(sides, arguments.repeats)
        progress(f"{tokens} tokens: {growth['tokens'][tokens]}")
    for size in GROWTH_SIZES_HW:
        work = build_workload(trunk, "inference", arguments, size, arguments.classes)
        growth["megapixels"][size[0] * size[1] / 1e6] = interleaved({"ours": work.ours}, arguments.repeats)
        progress(f"{size}: {growth['megapixels'][size[0] * size[1] / 1e6]}")
    for classes in (1, 10, 20, 40, 80, 126):
        work = build_workload(trunk, "inference", arguments, size_hw, classes)
        growth["classes"][classes] = interleaved({"ours": work.ours}, arguments.repeats)
        progress(f"{classes} classes: {growth['classes'][classes]}")
    return growth


@torch.no_grad()
def fuse(trunk: Trunk, order: Callable[..., object], image: Tensor, text: TextFeatures) -> None:
    """Run the first fusion layer in one order of its products."""
    layer = next(module for module in trunk.network.modules() if isinstance(module, FusionLayer))
    with replaced(CrossAttention, "forward", order):
        layer(image, text.features.expand(len(image), -1, -1), text.mask.expand(len(image), -1))


# What people see -----------------------------------------------------------------------------------------------------


def progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def report(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the comparison as a table, or as one JSON object."""
    if arguments.json:
        print(json.dumps(found))
        return
    h, w = found["size_hw"]
    print(f"{found['trunk']}, {h} × {w} pixels, {found['tokens']} tokens, batch {found['batch']}, {found['precision']}")
    print(f"{found['device']}, torch {found['torch']}\n")
    print("| step | reference, s | ours, s | ratio | pictures/s | reference, GB | ours, GB | ratio |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: |")
    for task, seconds in found["seconds"].items():
        peak = found["peak_bytes"][task]
        print(
            f"| {task} | {seconds['reference']:.3g} | {seconds['ours']:.3g} | {found['ratios'][task]:.1f} × | "
            f"{arguments.batch / seconds['ours']:.3g} | {peak['reference'] / 1e9:.2f} | {peak['ours'] / 1e9:.2f} | "
            f"{found['memory_ratios'][task]:.2f} |"
        )
    if found["largest_relative_difference"] is not None:
        print(f"\nLargest relative difference of the outputs: {found['largest_relative_difference']:.1e}")


def draw_growth(growth: dict[str, dict[float, dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Draw the three curves, and write their numbers beside the picture."""
    from matplotlib import pyplot as plt

    labels = {"tokens": "tokens of the caption", "megapixels": "picture, megapixels", "classes": "classes"}
    titles = {"tokens": "one fusion layer", "megapixels": "inference", "classes": "inference"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (quantity, points) in zip(axes, growth.items(), strict=True):
        for side in next(iter(points.values())):
            style = {"marker": "o"} if side in ("ours", "auto") else {"linestyle": "--"}
            axis.plot(list(points), [seconds[side] for seconds in points.values()], label=side, **style)
        axis.set(xlabel=labels[quantity], ylabel="seconds", title=titles[quantity])
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    h, w = arguments.size
    figure.suptitle(f"{arguments.trunk}, {h} × {w} where not stated, {arguments.device}, {arguments.threads} threads")
    figure.savefig(arguments.growth, dpi=150)
    arguments.growth.with_suffix(".json").write_text(json.dumps(growth, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
