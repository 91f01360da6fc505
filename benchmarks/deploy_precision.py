"""A baked model in float32, bfloat16, ONNX and int8: time, memory, size, and how far boxes and scores move.

    python -m benchmarks.deploy_precision BAKED --photographs FOLDER --size 480 640 --json results.json

The four see the same photographs in turn: PyTorch in float32, which is the measure, and in bfloat16; ONNX Runtime with
the exported file, and with its matrix products in int8 (``onnxruntime.quantization``, dynamic). Time is CPU time, as
other work on the machine leaves it alone; memory is the peak of a fresh process that loads one of them and looks at one
photograph. Boxes are paired with those of the measure by class and place, at an IoU of at least 0.5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from glip_adapt import ViewConfig, load_baked
from glip_adapt.core.files import written_whole
from glip_adapt.core.memory import peak_bytes
from glip_adapt.core.settings import Precision
from glip_adapt.core.structures import Detections
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.engine.detector import detections
from glip_adapt.share.export import export_onnx

WAYS = ("PyTorch float32", "PyTorch bfloat16", "ONNX float32", "ONNX int8")
SAME_PLACE = 0.5  # IoU

Run = Callable[[Tensor], Detections]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baked", type=Path, help="folder of a baked model; ONNX files are written beside it")
    parser.add_argument("--photographs", type=Path, required=True, help="folder, searched in depth")
    parser.add_argument("--count", type=int, default=20, help="of photographs")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("SHORT", "LONG"), help="pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)  # what a fresh process loads
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    view = ViewConfig(short_side=given.size[0], max_long_side=given.size[1])
    pictures = open_photographs(given.photographs, given.count, view)
    if given.only:
        print(json.dumps(alone(given.only, given.baked, view, given.threads, pictures[0])))
        return
    export_seconds = write_files(given.baked)
    found: dict[str, Any] = {"size": list(given.size), "photographs": len(pictures), "threads": given.threads}
    found["export_cpu_seconds"] = export_seconds
    found["ways"] = compare(given.baked, view, given.threads, pictures)
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.deploy_precision", *(arguments or sys.argv[1:]), "--only", way]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found["ways"][way] |= json.loads(printed.splitlines()[-1])
        found["ways"][way]["file_mb"] = file_of(way, given.baked).stat().st_size / 1e6
    print(format_table(found))
    if given.json:
        with written_whole(given.json) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def file_of(way: str, baked: Path) -> Path:
    """Return the file that one of ``WAYS`` loads."""
    if way.startswith("PyTorch"):
        return baked / "baked.safetensors"
    return baked.with_suffix(".int8.onnx" if way.endswith("int8") else ".onnx")


def open_photographs(folder: Path, count: int, view: ViewConfig) -> list[Tensor]:
    """Return photographs as the network sees them, (3, h, w) uint8."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise FileNotFoundError(f"No .jpg or .png below {folder}. Name a folder of photographs.")
    shown = View(view.short_side, flip=False)
    chosen = files[:: max(1, len(files) // count)][:count]
    return [view_image(load_rgb(file), shown, view.max_long_side) for file in chosen]


def write_files(baked: Path) -> float | None:
    """Export to ONNX and to int8, where this has not been done; return the CPU seconds of the export."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact, small = file_of("ONNX float32", baked), file_of("ONNX int8", baked)
    seconds = None
    if not exact.exists():
        started = time.process_time()
        export_onnx(load_baked(baked, "cpu"), exact)
        seconds = time.process_time() - started
    if not small.exists():  # only products of matrices: convolutions in int8 are no faster
        quantize_dynamic(exact, small, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    return seconds


def open_way(way: str, baked: Path, view: ViewConfig, threads: int) -> Run:
    """Return a function from pixels (3, h, w) to detections."""
    if way.startswith("PyTorch"):
        precision: Precision = "bfloat16" if way.endswith("bfloat16") else "float32"
        model, own = load_baked(baked, "cpu"), replace(view, precision=precision)

        def by_torch(pixels: Tensor) -> Detections:
            from glip_adapt.core.precision import autocast

            with torch.no_grad(), autocast(model.device, precision):
                prefix = model.prefix(collate([pixels]))
            return detections(model, prefix, [(pixels.shape[1], pixels.shape[2])], own)[0]

        return by_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file_of(way, baked), options, providers=["CPUExecutionProvider"])

    def by_onnx(pixels: Tensor) -> Detections:
        arrays = session.run(None, {"pixels": pixels[None].numpy()})
        boxes_xyxy, scores, labels = map(torch.from_numpy, arrays)
        return Detections(boxes_xyxy, scores, labels)

    return by_onnx


def alone(way: str, baked: Path, view: ViewConfig, threads: int, pixels: Tensor) -> dict[str, float]:
    """Load one way in this fresh process and look at one photograph; return CPU seconds to load, and peak memory."""
    started = time.process_time()
    run = open_way(way, baked, view, threads)
    loaded = time.process_time() - started
    run(pixels)
    return {"load_cpu_seconds": loaded, "peak_gb": peak_bytes() / 1e9}


def compare(baked: Path, view: ViewConfig, threads: int, pictures: list[Tensor]) -> dict[str, dict[str, float]]:
    """Return CPU seconds an image of each way, and how far its boxes are from those of the first."""
    runs = {way: open_way(way, baked, view, threads) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    moved: dict[str, list[tuple[int, int, Tensor, Tensor]]] = {way: [] for way in WAYS}
    for run in runs.values():
        run(pictures[0])  # the first call allocates
    for number, pixels in enumerate(pictures):
        found = {}
        for way, run in runs.items():
            started = time.process_time()
            found[way] = run(pixels)
            seconds[way].append(time.process_time() - started)
            moved[way].append(changes(found[WAYS[0]], found[way]))
        print(f"photograph {number + 1}: " + ", ".join(f"{way} {seconds[way][-1]:.2f} s" for way in WAYS), flush=True)
    return {way: {"cpu_seconds": float(np.mean(seconds[way]))} | summary(moved[way]) for way in WAYS}


def changes(expected: Detections, found: Detections) -> tuple[int, int, Tensor, Tensor]:
    """Return how many boxes were expected and how many have a partner, and of these, pixels and scores they move."""
    alike = box_iou(expected.boxes_xyxy, found.boxes_xyxy)
    alike[expected.labels[:, None] != found.labels[None]] = 0
    pixels, scores = [], []
    for _ in range(min(alike.shape)):
        row, column = divmod(int(alike.argmax()), alike.shape[1])
        if alike[row, column] < SAME_PLACE:
            break
        pixels.append((expected.boxes_xyxy[row] - found.boxes_xyxy[column]).abs().max())
        scores.append((expected.scores[row] - found.scores[column]).abs())
        alike[row], alike[:, column] = 0, 0
    return len(expected), len(pixels), torch.tensor(pixels), torch.tensor(scores)


def summary(moved: list[tuple[int, int, Tensor, Tensor]]) -> dict[str, float]:
    """Return changes over all photographs."""
    expected, paired, pixels, scores = zip(*moved, strict=True)
    every_pixel, every_score = torch.cat(pixels), torch.cat(scores)
    return {
        "boxes": sum(expected),
        "paired": sum(paired) / max(1, sum(expected)),
        "largest_pixels": every_pixel.max().item(),
        "median_pixels": every_pixel.median().item(),
        "largest_score": every_score.max().item(),
        "median_score": every_score.median().item(),
    }


def format_table(found: dict[str, Any]) -> str:
    """Return a Markdown table over the ways."""
    lines = [
        "| | CPU s an image | to float32 | peak memory, GB | file, MB | boxes with a partner "
        "| box moves, px: median, largest | score moves: median, largest |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    first = found["ways"][WAYS[0]]["cpu_seconds"]
    for way in WAYS:
        row = found["ways"][way]
        lines.append(
            f"| {way} | {row['cpu_seconds']:.2f} | {row['cpu_seconds'] / first:.2f} × | {row['peak_gb']:.2f} | "
            f"{row['file_mb']:.0f} | {row['paired']:.1%} | {row['median_pixels']:.2g}, {row['largest_pixels']:.2g} | "
            f"{row['median_score']:.1g}, {row['largest_score']:.1g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
