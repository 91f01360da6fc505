"""Time the Grounding DINO family against transformers' own forward pass, side by side in one run.

    python -m benchmarks.speed_transformers [--trunk grounding-dino-t] [--size 480 640] [--repeat 5] [--profile]

Both have the same random weights (``parity_transformers.py``), the same image and the same caption of four names.
Inference is all of it, from pixels to logits and boxes. The prompt step learns an offset on the projected text. Theirs
is a forward pass with losses of all layers and plain autograd; ours starts from the cached features of image and text,
as training does after the first look. The two take turns; the table has medians, their ratio, and the most bytes of
tensors that live at once beyond weights and inputs.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile

from benchmarks.parity_transformers import inputs_of, our_network, public_network, targets_of, tokenize
from glip_adapt.data.transforms import collate
from glip_adapt.engine.memory import LiveBytes
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.released import TRUNKS

CAPTION = "raccoon. traffic light. dog. red umbrella"


def main() -> None:
    """Print one line for inference and one for the prompt step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [name for name, spec in TRUNKS.items() if isinstance(spec.config, DinoConfig)]
    parser.add_argument("--trunk", choices=names, default="grounding-dino-t")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print the operators of one step of ours")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    works = build(TRUNKS[options.trunk].config, tuple(options.size))
    out = sys.stdout.write
    out(f"{options.trunk}, {options.size[0]} × {options.size[1]}, {options.threads} threads\n")
    out(f"{'':14}{'transformers':>14}{'ours':>10}{'ratio':>8}{'GB theirs':>12}{'GB ours':>10}\n")
    for name, (theirs, ours) in works.items():
        times = measure((theirs, ours), options.repeat)
        first, second = (statistics.median(column) for column in times)
        live = [peak_bytes(work) / 1e9 for work in (theirs, ours)]
        out(f"{name:14}{first:12.2f} s{second:8.2f} s{first / second:7.2f}x{live[0]:12.2f}{live[1]:10.2f}\n")
    if options.profile:
        with profile() as found:
            works["prompt step"][1]()
        out(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))


def build(config: DinoConfig, size_hw: tuple[int, int]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return the works by name, each as transformers' and ours."""
    public: Any = public_network(config).requires_grad_(False)
    ours = our_network(config, public).requires_grad_(False)
    images = collate([torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)])
    tokens = tokenize(CAPTION)
    inputs = inputs_of(ours, images, tokens, torch.float32)
    targets = targets_of(tokens, images.image_sizes_hw)
    labels = [{"class_labels": target.labels, "boxes": torch.rand(len(target), 4) * 0.3 + 0.2} for target in targets]
    prepared = [ours.objective.prepare(target, size_hw) for target in targets]
    scale = ours.objective.scale(prepared)
    offset = torch.zeros(tokens.ids.shape[1], config.width, requires_grad=True)
    with torch.no_grad():
        pyramid, text = ours.encode_image(images), ours.encode_text(tokens)

    def their_step() -> None:
        offset.grad = None
        handle = public.model.text_projection.register_forward_hook(lambda module, args, found: found + offset)
        public(**inputs, labels=labels).loss.backward()
        handle.remove()

    def our_step() -> None:
        offset.grad = None
        output = ours.predict(ours.fuse(pyramid, replace(text, features=text.features + offset)))
        losses: dict[str, Tensor] = ours.objective.losses(output, prepared, scale)
        torch.stack(list(losses.values())).sum().backward()

    return {
        "inference": (torch.no_grad()(lambda: public(**inputs)), torch.no_grad()(lambda: ours(images, tokens))),
        "prompt step": (their_step, our_step),
    }


def measure(works: tuple[Callable[[], Any], ...], repeat: int) -> list[list[float]]:
    """Return the seconds of each work, run in turn after one run that does not count."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeat + 1):
        for work, column in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            column += [time.perf_counter() - start] * (turn > 0)
    return times


@functools.cache
def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes of tensors that a work makes and that live at once."""
    with LiveBytes() as live:
        work()
    return live.peak


if __name__ == "__main__":
    main()
