"""Steps of each task on a GPU: images per second, memory, share of the card's peak, waits of the host.

    python -m benchmarks.gpu --trunk glip-t --batch 1 4 16 --out FILE.jsonl   # one line per measurement
    python -m benchmarks.gpu --few-shot --trunk glip-t                        # learns and is scored
    python -m benchmarks.gpu --table FILE.jsonl                               # Markdown

Weights are random. What FILE.jsonl holds is not measured again. ``benchmarks/gpu.sh`` runs everything that is measured
on a GPU. On a CPU the same runs, without waits and shares, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import METHOD_OF, build_workload, timed
from glip_adapt.core import memory
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.catalogue import ASSETS, TRUNKS, Trunk, random_trunk
from glip_adapt.trunks.released import default_recipe
from glip_adapt.trunks.tokenizer import Tokenizer

# Dense peaks in 10¹² operations per second, without sparsity, as the data sheets of NVIDIA state them for the SXM cards
# ("NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor Core GPU", "NVIDIA A100 Tensor Core GPU"). float32 runs outside of
# the tensor cores, as torch computes float32 products in full precision unless it is told otherwise.
PEAKS = {
    "H200": {"float32": 67.0, "bfloat16": 989.5, "float16": 989.5},
    "H100": {"float32": 67.0, "bfloat16": 989.5, "float16": 989.5},
    "A100": {"float32": 19.5, "bfloat16": 312.0, "float16": 312.0},
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
KEY = ("device", "trunk", "task", "batch", "precision", "size_hw", "compiled")
FEW_SHOT_SET = "ChessHollow"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", choices=TRUNKS, default="glip-t")
    parser.add_argument("--tasks", nargs="+", choices=METHOD_OF, default=list(METHOD_OF))
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16", "float16"), default=["bfloat16"])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"), help="pixels")
    parser.add_argument("--classes", type=int, default=9, help="2 tokens each and one more: 19 by default")
    parser.add_argument("--repeats", type=int, default=10, help="steps; two before them are not counted")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument("--out", type=Path, metavar="JSONL", help="add the measurements to this file")
    parser.add_argument("--few-shot", action="store_true", help="learn from 5 shots of a rendered set instead")
    parser.add_argument("--steps", type=int, default=20, help="of --few-shot")
    parser.add_argument("--table", type=Path, metavar="JSONL", help="print a table of these measurements instead")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read(arguments.table)))
    elif arguments.few_shot:
        print(json.dumps(few_shot(arguments)))
    else:
        measure_all(arguments)


def measure_all(arguments: argparse.Namespace) -> None:
    """Print one JSON object per measurement, and add it to the file."""
    known = [[row[name] for name in KEY] for row in read(arguments.out)]
    trunk = replace(random_trunk(arguments.trunk, arguments.device), compiled=arguments.compile)
    for batch in arguments.batch:
        for task in arguments.tasks:
            for precision in arguments.precision:
                row: dict[str, Any] = {
                    "device": device_name(arguments.device),
                    "trunk": arguments.trunk,
                    "task": task,
                    "batch": batch,
                    "precision": precision,
                    "size_hw": list(arguments.size),
                    "compiled": arguments.compile,
                }
                if list(row.values()) in known:
                    continue
                settings = argparse.Namespace(batch=batch, precision=precision)
                try:
                    row |= measure(trunk, task, settings, arguments)
                except torch.cuda.OutOfMemoryError:
                    row["error"] = "out of memory"
                row["torch"] = torch.__version__
                print(json.dumps(row), flush=True)
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


def measure(trunk: Trunk, task: str, settings: argparse.Namespace, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what one step of a task takes; an inference ends with its detections."""
    device, sizes_hw = trunk.network.device, [tuple(arguments.size)] * settings.batch
    if device.type == "cuda":
        torch.cuda.empty_cache()
    work = build_workload(trunk, task, settings, tuple(arguments.size), arguments.classes)

    def step() -> None:
        output = work.ours()
        if not work.trains:
            work.model.network.decode(output, sizes_hw)

    first = timed(step)  # with compilation, if any
    timed(step)  # the optimiser's moments exist from here on
    memory.reset_peak(device)
    seconds = statistics.median(timed(step) for _ in range(arguments.repeats))
    peak_bytes = memory.peak_bytes(device)
    operations = None if arguments.compile else count_operations(step)  # the counter does not look into compiled graphs
    peak = card_peak(device_name(arguments.device), settings.precision)
    return {
        "seconds": seconds,
        "first_seconds": first,
        "images_per_second": settings.batch / seconds,
        "peak_bytes": peak_bytes,
        "operations": operations,
        "share_of_peak": operations / seconds / peak if operations and peak else None,
        "waits": count_waits(step) if device.type == "cuda" else None,
    }


def count_operations(step: Callable[[], object]) -> int:
    """Return the operations of a step's products, two per multiplication; those computed again count again."""
    with FlopCounterMode(display=False, custom_mapping=DEFORMABLE) as counter:
        step()
    return counter.get_total_flops()


def _deformable(_: Any, weight: torch.Size, offset: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * offset[0] * offset[2] * offset[3] * weight.numel()


def _deformable_backward(_: Any, __: Any, weight: torch.Size, offset: torch.Size, *___: Any, **____: Any) -> int:
    return 2 * _deformable(None, weight, offset)


DEFORMABLE = {
    torch.ops.torchvision.deform_conv2d: _deformable,
    torch.ops.torchvision._deform_conv2d_backward: _deformable_backward,
}


def count_waits(step: Callable[[], object]) -> dict[str, int]:
    """Return how often the host waits for the GPU in one step; the profiler adds a wait for the device at its end."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    events = profiler.events() or []
    return {name: sum(event.name.startswith(name) for event in events) for name in WAITS}


def card_peak(name: str, precision: str) -> float | None:
    """Return the peak of a card in operations per second, None if it is not in the table."""
    return next((1e12 * peaks[precision] for card, peaks in PEAKS.items() if card in name), None)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def few_shot(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a prompt on 5 shots of a rendered set and score it, from random weights: what matters is that it runs."""
    data = load_dataset(f"glyphs13/{FEW_SHOT_SET}")
    trunk = random_trunk(arguments.trunk, arguments.device)
    words = (ASSETS / "glip-nano-vocab.txt").read_text(encoding="utf-8").split()  # which hold the names of the set
    words += [f"w{i}" for i in range(trunk.tokenizer.size - len(words))]
    trunk = replace(trunk, tokenizer=Tokenizer(words), compiled=arguments.compile)
    model = attach(trunk, "prompt", classes=data.classes)
    recipe = replace(
        default_recipe(arguments.trunk, "prompt", 5), max_steps=arguments.steps, precision=arguments.precision[0]
    )
    started = time.perf_counter()
    history = train_model(model, data.train.few_shot(5, seed=3), None, recipe)
    trained = time.perf_counter()
    val = replace(data.val, records=data.val.records[:20])
    ap = evaluate(model, val).ap
    return {
        "device": device_name(arguments.device),
        "trunk": arguments.trunk,
        "losses": [step.loss for step in history.steps],
        "training_seconds": trained - started,
        "steps_seconds": sum(step.seconds for step in history.steps),
        "scoring_seconds": time.perf_counter() - trained,
        "ap": ap,
    }


def read(file: Path | None) -> list[dict[str, Any]]:
    """Return the measurements of a file, none if there is no file."""
    if file is None or not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Return measurements as Markdown."""
    lines = [
        "| device | trunk | image | precision | step | batch | ms | images/s | memory, GB | TFLOP | of peak | waits |",
        "| :-- | :-- | :-- | :-- | :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in sorted(rows, key=lambda row: (row["trunk"], row["precision"], row["compiled"], row["batch"])):
        what = [row["device"], row["trunk"], " × ".join(map(str, row["size_hw"]))]
        what += [row["precision"] + ", compiled" * row["compiled"], row["task"], str(row["batch"])]
        if "error" in row:
            found = [row["error"], *"–––––"]
        else:
            operations, share, waits = row["operations"], row["share_of_peak"], row["waits"]
            found = [
                f"{1e3 * row['seconds']:.1f}",
                f"{row['images_per_second']:.3g}",
                f"{row['peak_bytes'] / 1e9:.2f}",
                "–" if operations is None else f"{operations / 1e12:.3g}",
                "–" if share is None else f"{100 * share:.0f} %",
                "–" if waits is None else str(waits["cudaStreamSynchronize"]),
            ]
        lines.append(f"| {' | '.join([*what, *found])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
