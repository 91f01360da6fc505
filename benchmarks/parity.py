"""Compare this implementation with golden numbers of the public one.

    python benchmarks/parity.py --fixtures tests/parity

Every ``eval_*.npz`` and ``train_*.npz`` of the folder is reproduced with stand-in weights that go through a
public-style checkpoint file, as a user's would. Predictions and prompt tuning are compared four times: with the
cheaper order of the fusion's products and the dense one, each directly and from frozen features read back from a file.
One line per quantity: relative error ‖a − b‖ / ‖b‖, pass or fail at 1e-3; boxes at 0.1 pixels, labels equal. Exit code
1 if any line fails. tests/parity/README.md describes the files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from glip_adapt.adapters import attach
from glip_adapt.adapters.base import AdaptedGlip, Prefix
from glip_adapt.cache import CacheKey, FeatureCache
from glip_adapt.data.transforms import collate
from glip_adapt.model.decode import decode
from glip_adapt.model.fusion import CrossAttention
from glip_adapt.model.loss import detection_loss
from glip_adapt.model.public_names import public_name, public_names
from glip_adapt.model.weights import TRUNKS, Trunk, load_trunk
from glip_adapt.structures import Detections, HeadOutput, ImageBatch, Target

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "tests" / "parity"
TRUNK_OF = {"glip_a_tiny": "glip-t-a", "glip_tiny": "glip-t", "glip_large": "glip-l"}
LOSS_NAMES = {"token": "loss_dot_product_token", "box": "loss_reg", "centerness": "loss_centerness"}
MAX_ERROR = 1e-3
MAX_PIXELS = 0.1
# Gradients that vanish analytically, such as those of key biases, are rounding noise in both implementations.
NOISE_FLOOR = 1e-6  # of the largest gradient norm


@dataclass(frozen=True)
class Way:
    """One way to compute the same: order of the fusion's products, and whether frozen features come from a file."""

    order: Literal["auto", "dense"]
    cached: bool

    def __str__(self) -> str:
        words = [self.order] * (self.order != "auto") + ["cached"] * self.cached
        return f" ({', '.join(words)})" if words else ""


WAYS = tuple(Way(order, cached) for order in ("auto", "dense") for cached in (False, True))


@dataclass(frozen=True)
class Line:
    """One compared quantity."""

    file: str
    quantity: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of eval_*.npz and train_*.npz")
    parser.add_argument("--weights", type=Path, default=OWN / "weights.py", help="module with tensor() and image()")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt of bert-base-uncased; default: beside the fixtures")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    files = sorted([*arguments.fixtures.glob("eval_*.npz"), *arguments.fixtures.glob("train_*.npz")])
    if not files:
        parser.error(f"no eval_*.npz or train_*.npz in {arguments.fixtures}")
    torch.set_num_threads(2)
    weights = import_file(arguments.weights)
    vocabulary = arguments.vocabulary or first_existing("vocab.txt", arguments.fixtures)
    lines = []
    for file in sorted(files, key=lambda f: (variant_of(f), f.name)):
        for line in compare(file, weights, vocabulary):
            lines.append(line)
            if not arguments.json:
                verdict = "pass" if line.passed else "FAIL"
                print(f"{verdict}  {line.error:9.2e}  ≤ {line.limit:.0e}  {line.file}  {line.quantity}", flush=True)
    failed = [line for line in lines if not line.passed]
    worst = max((line for line in lines if line.limit == MAX_ERROR), key=lambda line: line.error)
    if arguments.json:
        print(json.dumps({"lines": [{**asdict(x), "passed": x.passed} for x in lines], "failed": len(failed)}))
    else:
        print(
            f"{len(lines) - len(failed)} passed, {len(failed)} failed; largest relative error {worst.error:.2e} ",
            end="",
        )
        print(f"({worst.file} {worst.quantity})")
    return 1 if failed else 0


def compare(file: Path, weights: ModuleType, vocabulary: Path) -> Iterator[Line]:
    """Yield the lines of one golden file."""
    golden = np.load(file)
    trunk = stand_in_trunk(variant_of(file), int(golden["salt"]), weights, vocabulary, file.parent)
    method = "prompt" if file.name.startswith("train_prompt_") else "full"
    model = attach(trunk, method, classes=[str(label) for label in golden["labels"]])
    if method == "prompt":
        table = weights.tensor("rpn.tunable_linear.weight", (1000, len(model.glip.head.bias_lang)), int(golden["salt"]))
        (name,) = model.owned
        model.load_owned({name: torch.from_numpy(table[: int(golden["num_tokens"])])})
    same_tokens = model.captions[0].ids[0].tolist() == golden["input_ids"].tolist()
    yield Line(file.name, "input_ids", float(not same_tokens), 0)
    images = pictures(golden, weights)
    if method == "full" and file.name.startswith("eval_"):
        for quantity, error, limit in compare_encoders(golden, model, images):
            yield Line(file.name, quantity, error, limit)
        model = attach(trunk, "linear_probe", classes=model.class_names)  # what it freezes reaches up to the head
    for way in WAYS if method == "prompt" or file.name.startswith("eval_") else WAYS[:1]:
        for module in model.glip.modules():
            if isinstance(module, CrossAttention):
                module.order = way.order
        compare_kind = compare_eval if file.name.startswith("eval_") else compare_train
        for quantity, error, limit in compare_kind(golden, model, forward(model, images, way.cached)):
            yield Line(file.name, f"{quantity}{way}", error, limit)


def compare_encoders(golden: Any, model: AdaptedGlip, images: ImageBatch) -> Iterator[tuple[str, float, float]]:
    """Yield name, error and limit of what enters the tower."""
    with torch.no_grad():
        pyramid = model.glip.encode_image(images)
        (text,) = model.texts()
    for i, level in enumerate(pyramid.levels):
        yield f"fpn_{i}", relative(level[:, ::16], golden[f"fpn_{i}"]), MAX_ERROR
    yield "text_embedded", relative(text.features[:, :, ::8], golden["text_embedded"]), MAX_ERROR


def compare_eval(golden: Any, model: AdaptedGlip, output: HeadOutput) -> Iterator[tuple[str, float, float]]:
    """Yield name, error and limit of the raw predictions and of the detections."""
    sizes = [h * w for h, w in output.level_shapes_hw]
    per_level = {
        "token_logits": output.token_logits.split(sizes, 1),
        "bbox_reg": [d.transpose(1, 2) for d in output.box_deltas.split(sizes, 1)],
        "centerness": output.centerness.split(sizes, 1),
    }
    for name, levels in per_level.items():
        for i, level in enumerate(levels):
            expected = golden[f"{name}_{i}"]
            yield f"{name}_{i}", relative(level.reshape(expected.shape), expected), MAX_ERROR
    for i, found in enumerate(decode(output)):
        boxes, scores, labels = (torch.from_numpy(golden[f"{k}_{i}"]) for k in ("boxes", "scores", "labels"))
        expected = Detections(boxes, scores, labels - 1)  # golden labels start at 1
        partner, pixels = match(found, expected)
        yield f"detections_{i} count", abs(len(found) - len(expected)), 0
        yield f"detections_{i} boxes (pixels)", pixels, MAX_PIXELS
        yield f"detections_{i} scores", relative(found.scores[partner], expected.scores), MAX_ERROR
        yield f"detections_{i} labels", (found.labels[partner] != expected.labels).sum().item(), 0


def compare_train(golden: Any, model: AdaptedGlip, output: HeadOutput) -> Iterator[tuple[str, float, float]]:
    """Yield name, error and limit of the losses and gradients."""
    losses = detection_loss(output, targets(golden, len(output.sizes_hw)))
    for tensor in model.owned_tensors().values():
        tensor.grad = None
    for ours, public in LOSS_NAMES.items():
        yield f"loss/{public}", relative(losses[ours], golden[f"loss/{public}"]), MAX_ERROR
    torch.stack(list(losses.values())).sum().backward()
    if model.adapter.name == "prompt":
        (gradient,) = (tensor.grad for tensor in model.owned_tensors().values())
        assert gradient is not None
        yield "gradient norm of the offset table", relative(gradient.norm(), golden["grad_norms"][0]), MAX_ERROR
        yield "gradient of the offset table", relative(gradient, golden["grad/rpn.tunable_linear.weight"]), MAX_ERROR
        return
    table_of_names = public_names(TRUNKS[model.trunk.name].config)
    expected = dict(zip(golden["grad_names"].tolist(), golden["grad_norms"].tolist(), strict=True))
    floor = NOISE_FLOOR * max(expected.values())
    for name, tensor in model.owned_tensors().items():
        public = public_name(name, table_of_names)
        norm = tensor.grad.norm().item() if tensor.grad is not None else 0.0
        yield f"gradient norm {public}", abs(norm - expected[public]) / max(expected[public], floor), MAX_ERROR


def forward(model: AdaptedGlip, images: ImageBatch, cached: bool) -> HeadOutput:
    """Run the whole batch at once, as the goldens were made, without dropout or stochastic depth."""
    model.train(False)
    if not cached:
        (output,) = model.finish(model.frozen_prefix(images))
        return output
    key = CacheKey(model.trunk.checksum, "goldens", "as they are", model.frozen_result.__name__, "", "")
    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(memory_bytes=0, folder=folder).get(key, lambda: model.frozen_prefix(images))
        prefix = FeatureCache(memory_bytes=0, folder=folder).get(key, unexpected_miss)
        (output,) = model.finish(prefix)
    return output


def unexpected_miss() -> Prefix:
    raise SystemExit("A feature that has just been written is not found in its cache.")


def targets(golden: Any, count: int) -> list[Target]:
    return [
        Target(torch.from_numpy(golden[f"gt_boxes_{i}"]), torch.from_numpy(golden[f"gt_labels_{i}"]).long() - 1)
        for i in range(count)
    ]


def pictures(golden: Any, weights: ModuleType) -> ImageBatch:
    """Return the pictures of a golden file, padded together."""
    rgb = [
        torch.from_numpy(weights.image(int(seed), int(h), int(w))).permute(2, 0, 1)
        for seed, (h, w) in zip(golden["seeds"], golden["sizes"], strict=True)
    ]
    return collate(rgb)


def match(found: Detections, expected: Detections) -> tuple[Tensor, float]:
    """Return for each expected box the nearest one found of its label, used once, and the largest distance in pixels.

    Boxes are paired rather than compared in order, since scores that differ in the last bit may swap places.
    """
    distance = (found.boxes_xyxy[None] - expected.boxes_xyxy[:, None]).abs().amax(-1)
    distance[found.labels[None] != expected.labels[:, None]] = float("inf")
    partner = torch.zeros(len(expected), dtype=torch.int64)
    worst = 0.0
    for i in range(len(expected)):
        partner[i] = distance[i].argmin()
        worst = max(worst, distance[i, partner[i]].item())
        distance[:, partner[i]] = float("inf")
    return partner, worst


def stand_in_trunk(variant: str, salt: int, weights: ModuleType, vocabulary: Path, fixtures: Path) -> Trunk:
    """Write a public-style checkpoint with stand-in weights and load it as a user would."""
    entries = json.loads(first_existing(f"{variant}.state_dict.json", fixtures).read_text())
    state = {}
    for name, (shape, dtype) in entries.items():
        derived = dtype != "float32" or "cell_anchors" in name
        value = np.zeros(shape, dtype) if derived else weights.tensor(name, tuple(shape), salt)
        state[f"module.{name}"] = torch.from_numpy(np.ascontiguousarray(value))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{variant}.pth"
        torch.save({"model": state}, path)
        return load_trunk(TRUNK_OF[variant], checkpoint=path, vocabulary=vocabulary)


def variant_of(file: Path) -> str:
    name = file.name.removeprefix("eval_").removeprefix("train_").removeprefix("prompt_")
    for variant in TRUNK_OF:
        if name.startswith(variant):
            return variant
    raise SystemExit(f"{file.name}: expected eval_VARIANT*.npz or train_VARIANT*.npz, VARIANT one of {list(TRUNK_OF)}")


def first_existing(name: str, fixtures: Path) -> Path:
    for folder in (fixtures, OWN, ROOT.parent / "shared" / "parity"):
        if (folder / name).is_file():
            return folder / name
    raise SystemExit(f"{name} is neither in {fixtures} nor in {OWN}.")


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is not a Python module with tensor() and image().")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(ours: Any, golden: Any) -> float:
    """Return ‖a − b‖ / ‖b‖ in float64."""
    a = ours.detach().double() if isinstance(ours, Tensor) else torch.as_tensor(ours).double()
    b = torch.as_tensor(np.asarray(golden)).double()
    return ((a - b).norm() / b.norm()).item()


if __name__ == "__main__":
    sys.exit(main())
