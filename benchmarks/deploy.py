"""What it takes to deploy an adapted model, and what baking, sharing and ONNX save of it.

    python benchmarks/deploy.py                                   # glip-nano
    python benchmarks/deploy.py --trunk glip-t --checkpoint glip-t.safetensors --vocabulary vocab.txt --size 480 640

Start-up and memory are those of fresh processes, one after the other, from the command to the model: the trunk with a
prompt adapter, and the same model baked. Swaps are measured with ten prompt adapters on one trunk. ONNX and PyTorch
take turns on the same photographs with the same number of threads. Each line is printed once it is known; --json ends
with all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from glip_adapt import TaskSet, ViewConfig, attach, load_adapter, load_baked, load_trunk
from glip_adapt.core.memory import peak_bytes, used_bytes
from glip_adapt.core.structures import Detections
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import collate, resize_shape
from glip_adapt.engine.detector import detections
from glip_adapt.share.baked import BakedModel, bake
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.weights import weights_checksum

CLASSES = ("raccoon", "dog", "mushroom")
PROCESSES = 3  # fresh ones of each kind, of which the fastest counts
TASKS = 10
MAX_PIXELS, MAX_SCORE = 0.5, 1e-3  # by which ONNX may differ

Numbers = dict[str, float]
T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="glip-nano")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"), help="of a picture, at most, pixels")
    parser.add_argument("--photographs", type=Path, help="folder, searched in depth; without it, no ONNX")
    parser.add_argument("--count", type=int, default=20, help="of photographs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)  # what a fresh process loads
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.start:
        print(json.dumps(start(arguments)))
        return 0
    trunk = load_trunk(arguments.trunk, checkpoint=arguments.checkpoint, vocabulary=arguments.vocabulary)
    config = ViewConfig(short_side=arguments.size[0], max_long_side=arguments.size[1]) if arguments.size else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = attach(trunk, "prompt", classes=CLASSES)
        model.save(folder / "adapter")
        bake(model).save(folder / "baked")
        found = {"start": show("start-up", compare_starts(arguments, folder))}
        found["tasks"] = show(f"{TASKS} tasks on one trunk", measure_tasks(trunk, folder))
        passed = True
        if arguments.photographs:
            baked = load_baked(folder / "baked")
            found["onnx"] = show("onnx", compare_onnx(arguments, baked, config or trunk.spec.view, folder))
            passed = found["onnx"]["pixels"] <= MAX_PIXELS and found["onnx"]["score"] <= MAX_SCORE
    if arguments.json:
        print(json.dumps(found))
    return 0 if passed else 1


def show(title: str, numbers: Numbers) -> Numbers:
    print(f"{title}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()), flush=True)
    return numbers


def start(arguments: argparse.Namespace) -> Numbers:
    """Load a model in this fresh process; return its CPU seconds and the most memory that it held."""
    if (arguments.start / "baked.json").is_file():
        load_baked(arguments.start)
    else:
        trunk = load_trunk(arguments.trunk, checkpoint=arguments.checkpoint, vocabulary=arguments.vocabulary)
        model = load_adapter(arguments.start, trunk=trunk)
        model.texts()
    return {"cpu_seconds": time.process_time(), "peak_gb": peak_bytes() / 1e9}


def run_fresh(command: list[str]) -> Numbers:
    """Return what a process prints as its last line."""
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(printed.splitlines()[-1])


def compare_starts(arguments: argparse.Namespace, folder: Path) -> Numbers:
    """Return the best of several fresh processes of each kind, in turn, and adapter over baked."""
    found: dict[str, list[Numbers]] = {"adapter": [], "baked": []}
    for _ in range(PROCESSES):
        for kind, runs in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--start", str(folder / kind)]
            seconds, ended = clock(run_fresh, command)
            runs.append({"seconds": seconds} | ended)
    numbers: Numbers = {}
    for name in ("seconds", "cpu_seconds", "peak_gb"):
        best = {kind: min(run[name] for run in runs) for kind, runs in found.items()}
        numbers |= {f"{kind}_{name}": value for kind, value in best.items()}
        numbers[f"{name}_ratio"] = best["adapter"] / best["baked"]
    return numbers


def measure_tasks(trunk: Trunk, folder: Path) -> Numbers:
    """Return milliseconds and megabytes of ten adapters on one trunk, and whether it is the same afterwards."""
    checksum, before = weights_checksum(trunk.network), used_bytes()
    tasks, seconds = TaskSet(trunk), []
    for i in range(TASKS):
        seconds.append(clock(tasks.add, f"task {i}", folder / "adapter")[0])
    held = used_bytes() - before
    names = list(tasks)
    swap = min(clock(tasks.__getitem__, name)[0] for name in names)
    picture = Image.effect_noise((320, 240), 90).convert("RGB")
    expected = attach(trunk, "zero_shot", classes=CLASSES).predict(picture)
    together, _ = clock(tasks.predict, [picture] * TASKS, names)
    apart = sum(clock(tasks[name].predict, picture)[0] for name in names)
    leave = max(clock(tasks.remove, name)[0] for name in names)
    same = weights_checksum(trunk.network) == checksum and equal(
        attach(trunk, "zero_shot", classes=CLASSES).predict(picture), expected
    )
    return {
        "attach_ms": 1e3 * min(seconds),
        "swap_ms": 1e3 * swap,
        "detach_ms": 1e3 * leave,
        "mb_per_task": held / 1e6 / TASKS,
        "one_picture_apart_over_together": apart / together,
        "bit_exact": float(same),
    }


def compare_onnx(arguments: argparse.Namespace, model: BakedModel, config: ViewConfig, folder: Path) -> Numbers:
    """Return how far ONNX is from PyTorch on photographs, and the seconds of both, taken in turn."""
    import onnxruntime

    from glip_adapt.share.export import export_onnx

    files = sorted(p for p in arguments.photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise FileNotFoundError(f"No .jpg or .png below {arguments.photographs}. Name a folder of photographs.")
    chosen = files[:: max(1, len(files) // arguments.count)][: arguments.count]
    seconds, _ = clock(export_onnx, model, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    boxes, pixels, score, times = 0, 0.0, 0.0, {"torch": 0.0, "onnx": 0.0}
    for file in chosen:
        picture = load_rgb(file)
        height, width = resize_shape((picture.height, picture.width), config.short_side, config.max_long_side)
        seen = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels_chw = np.asarray(seen).transpose(2, 0, 1).copy()
        onnx_seconds, arrays = clock(session.run, None, {"pixels": pixels_chw[None]})
        torch_seconds, expected = clock(detect, model, torch.from_numpy(pixels_chw), config)
        times = {"torch": times["torch"] + torch_seconds, "onnx": times["onnx"] + onnx_seconds}
        boxes_xyxy, scores, labels = map(torch.from_numpy, arrays)
        distance, difference = largest_difference(Detections(boxes_xyxy, scores, labels), expected)
        boxes, pixels, score = boxes + len(expected), max(pixels, distance), max(score, difference)
    return {
        "photographs": len(chosen),
        "boxes": boxes,
        "pixels": pixels,
        "score": score,
        "export_seconds": seconds,
        "torch_seconds": times["torch"] / len(chosen),
        "onnx_seconds": times["onnx"] / len(chosen),
        "torch_over_onnx": times["torch"] / times["onnx"],
    }


@torch.no_grad()
def detect(model: BakedModel, pixels_chw: torch.Tensor, config: ViewConfig) -> Detections:
    """Return what PyTorch finds in a picture as it is; ``predict`` might resize it once more."""
    _, height, width = pixels_chw.shape
    (found,) = detections(model, model.prefix(collate([pixels_chw])), [(height, width)], config)
    return found


def largest_difference(found: Detections, expected: Detections) -> tuple[float, float]:
    """Return pixels and score between boxes paired by label and place; infinite where one has no partner."""
    if len(found) != len(expected):
        return float("inf"), float("inf")
    pixels, score, free = 0.0, 0.0, torch.ones(len(found), dtype=torch.bool)
    for box, value, label in zip(expected.boxes_xyxy, expected.scores, expected.labels, strict=True):
        distance = (found.boxes_xyxy - box).abs().amax(-1)
        distance[(found.labels != label) | ~free] = float("inf")
        nearest = int(distance.argmin())
        free[nearest] = False
        pixels = max(pixels, distance[nearest].item())
        score = max(score, abs(found.scores[nearest] - value).item())
    return pixels, score


def equal(a: Detections, b: Detections) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("boxes_xyxy", "scores", "labels"))


def clock(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """Return the seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


if __name__ == "__main__":
    sys.exit(main())
