"""Compare this implementation with golden numbers of the public one.

    python benchmarks/parity.py --fixtures tests/parity

Every golden file of the folder and of its subfolders ``float64`` and ``extra`` is reproduced with stand-in weights that
go through a public-style checkpoint file, as a user's would. The start of a file's name says what it holds. ``eval``,
``train``, ``train_prompt``, ``steps``, ``chunked``, ``phrases``, ``tta``, ``flickr_recall`` and ``lvis_ap`` are
compared; other known kinds and unknown files are listed.

One line per quantity: the error of a float64 network, its limit, then those of a float32 network. An error is
‖a − b‖ / ‖b‖. Against arrays recorded in float64 the limits are 1e-5, and for float32 5e-3, or 5e-2 where gradients
enter. Against arrays recorded in float32 those of float32 hold for both. Boxes are compared at 0.1 pixels, those of
``phrases`` and ``tta`` at 0.01; labels and tokens must be equal. Recall and AP are those of given predictions, without
a network: their difference is in both columns, and its limit is 1e-9. A dash instead of a limit: rounding decides the
quantity in float32, so that its error is shown but not judged. Exit code 1 if a line fails, or if a kind that
``--require`` names was not compared. tests/parity/README.md describes the files.

Evaluation and prompt tuning run two ways in each precision: with the cheaper order of the fusion's products, directly;
and with the dense order, from frozen features that were written to a file and read back. The others run the first way.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from unittest import mock
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # that of this file, also where it is started as a script

from benchmarks import parity_scores, parity_views
from benchmarks.goldens import (
    EQUAL,
    FLOAT64_ONLY,
    FORWARD,
    GRADIENT,
    HUNDREDTH,
    NOT_AT_ALL,
    PIXELS,
    SCORES,
    Golden,
    Limits,
    Measured,
    Recorded,
    detections_of,
    measure_detections,
    pictures,
    relative,
    some_of,
)
from glip_adapt.core.captions import build_caption
from glip_adapt.core.structures import FrozenState, Target, merge
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.cache_files import CacheKey
from glip_adapt.engine.optimise import Stepper
from glip_adapt.engine.rates import parameter_groups
from glip_adapt.trunks.catalogue import Trunk, load_trunk
from glip_adapt.trunks.cross_attention import CrossAttention
from glip_adapt.trunks.glip.decode import decode
from glip_adapt.trunks.glip.head import HeadOutput
from glip_adapt.trunks.glip.names import PROMPT_TABLE, public_name, public_names
from glip_adapt.trunks.glip.objective import detection_loss
from glip_adapt.trunks.released import TRUNKS, published_recipe

OWN = ROOT / "tests" / "parity"
SUBFOLDERS = ("", "float64", "extra")
TRUNK_OF = {"glip_tiny": "glip-t", "glip_a_tiny": "glip-t-a", "glip_large": "glip-l"}
METHOD_OF = {"full": "full", "language_prompt_v2": "prompt", "linear_prob": "linear_probe"}
LOSS_NAMES = {"token": "loss_dot_product_token", "box": "loss_reg", "centerness": "loss_centerness"}
# Kinds that the tests of the package read, or that have no counterpart here yet.
NOT_COMPARED = ("training_captions",)
ELSEWHERE = ("preprocess", "text", "tuning_modes", "fewshot")
INPUTS = ("phrases*.json", "*.state_dict.json", "weights.py", "vocab.txt", "README.md")
# What vanishes analytically, such as the gradient of a key's bias, is rounding noise in both implementations.
NOISE_FLOOR = 1e-6  # of the largest gradient norm, or of the largest change that a step can make


@dataclass(frozen=True)
class Line:
    """One compared quantity: errors of the float64 and the float32 network."""

    file: str
    quantity: str
    float64: float
    float32: float
    limits: Limits

    @property
    def columns(self) -> tuple[tuple[float, float | None], tuple[float, float | None]]:
        """Error and limit, for float64 and for float32."""
        return (self.float64, self.limits.float64), (self.float32, self.limits.float32)

    @property
    def passed(self) -> bool:
        """Whether both errors are within their limits; not if one is NaN."""
        return all(limit is None or error <= limit for error, limit in self.columns)

    def __str__(self) -> str:
        shown = [
            f"{error:8.2e} ≤ {'–':^5}" if limit is None else f"{error:8.2e} ≤ {limit:.0e}"
            for error, limit in self.columns
        ]
        return "  ".join(["pass" if self.passed else "FAIL", *shown, self.file, self.quantity])


@dataclass(frozen=True)
class Folder:
    """What lies in a folder of fixtures.

    Attributes:
        goldens: files that are compared.
        scored: predictions and their scores by path; they need no network.
        others: what is not compared and why, by path.
    """

    goldens: list[Golden]
    scored: dict[Path, Any]
    others: dict[Path, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of golden files")
    parser.add_argument("--weights", type=Path, default=OWN / "weights.py", help="module with tensor() and image()")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt of bert-base-uncased; default: beside the fixtures")
    parser.add_argument("--require", default="", metavar="KIND,…", help="kinds of files that must have been compared")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    required = [kind for kind in arguments.require.split(",") if kind]
    unknown = sorted(set(required) - set(KINDS))
    if unknown:
        parser.error(f"--require {', '.join(unknown)}: expected kinds among {', '.join(KINDS)}")
    folder = read_folder(arguments.fixtures)
    if not folder.goldens and not folder.scored and not folder.others:
        parser.error(f"no golden files in {arguments.fixtures}")
    torch.set_num_threads(2)
    weights, lines = import_file(arguments.weights), []
    compared = compare_all(folder.goldens, weights, arguments.vocabulary, arguments.fixtures)
    for line in itertools.chain(compare_scores(folder.scored, arguments.fixtures), compared):
        lines.append(line)
        if not arguments.json:
            print(line, flush=True)
    missing = sorted(set(required) - {kind_of(Path(line.file).name) for line in lines})
    others = {path.relative_to(arguments.fixtures).as_posix(): why for path, why in folder.others.items()}
    failed = sum(not line.passed for line in lines)
    if arguments.json:
        rows = [{**asdict(line), "passed": line.passed} for line in lines]
        print(json.dumps({"lines": rows, "failed": failed, "not_compared": others, "missing": missing}))
    else:
        listed = [f"{path}: {why}" for path, why in others.items()]
        print(*listed, *summary(lines), *(f"FAIL  required, but not compared: {kind}" for kind in missing), sep="\n")
    return 1 if failed or missing else 0


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the counts, and the largest error under each limit that is not for pixels or equality."""
    passed = sum(line.passed for line in lines)
    yield f"{passed} passed, {len(lines) - passed} failed"
    for column, precision in enumerate(("float64", "float32")):
        limited = [(line.columns[column], line) for line in lines if line.limits not in (PIXELS, HUNDREDTH, EQUAL)]
        for limit in sorted({limit for (_, limit), _ in limited if limit is not None}):
            error, worst = max(((e, line) for (e, its), line in limited if its == limit), key=lambda pair: pair[0])
            yield f"largest error of {precision} under {limit:.0e}: {error:.2e} ({worst.file} {worst.quantity})"


def read_folder(folder: Path) -> Folder:
    """Return the golden files of a folder and its known subfolders.

    Raises:
        SystemExit: if a file that should be compared cannot be read.
    """
    goldens, scored, others = [], {}, {}
    files = [path for below in SUBFOLDERS for path in sorted((folder / below).glob("*")) if path.is_file()]
    for path in files:
        kind = kind_of(path.name)
        if any(path.match(pattern) for pattern in INPUTS):
            continue
        if kind in parity_scores.MEASURES and path.suffix == ".json":
            scored[path] = read_json(path)
        elif kind in MEASURES and path.suffix == ".npz":
            goldens.append(Golden(path, kind, read_arrays(path)))
        else:
            others[path] = "not compared" if kind in (*NOT_COMPARED, *ELSEWHERE) else "unknown, not compared"
    batches = [golden.arrays for golden in goldens] + [read_arrays(path) for path in sorted(OWN.glob("train*.npz"))]
    whole = [replace(golden, partner=partner_of(golden, goldens, batches)) for golden in goldens if has_inputs(golden)]
    names = {golden.path.name for golden in whole}
    alone = [golden.path for golden in goldens if not has_inputs(golden) and golden.path.name not in names]
    others |= dict.fromkeys(alone, "not compared, since no file of this name says what it was made with")
    others |= {golden.path: f"not compared, since {why}" for golden in whole if (why := obstacle(golden))}
    return Folder([golden for golden in whole if golden.path not in others], scored, others)


def obstacle(golden: Golden) -> str | None:
    """Return why a file cannot be reproduced, if so."""
    if golden.kind == "phrases" and golden.partner is None:
        return "no phrases*.json beside it has its sentences"
    if golden.kind != "steps":
        return None
    if golden.partner is None:
        return "no train file holds the boxes of its pictures"
    mode = str(golden.arrays["mode"])
    return None if mode in METHOD_OF else f"its mode {mode} is unknown"


def kind_of(name: str) -> str | None:
    """Return the longest known kind that a file's name starts with."""
    fitting = [kind for kind in KINDS if re.match(rf"{kind}(?![a-z])", name)]
    return max(fitting, key=len, default=None)


def read_arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise SystemExit(f"{path} is no npz file of plain arrays: {error}") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON file: {error}") from error


def has_inputs(golden: Golden) -> bool:
    """Whether the file says what it was made with; float64 arrays of an evaluation leave that to their partner."""
    return "salt" in golden.arrays


def partner_of(golden: Golden, goldens: Sequence[Golden], batches: Sequence[Mapping[str, Any]]) -> Any:
    """Return what else a file needs, see ``Golden``, or None."""
    if golden.kind == "eval":
        named = (g for g in goldens if g.path.name == golden.path.name and not has_inputs(g))
        return next((other.arrays for other in named), None)
    if golden.kind == "steps":
        keys = ("seeds", "sizes", "caption")
        same = (b for b in batches if "gt_boxes_0" in b and all(np.array_equal(b[k], golden.arrays[k]) for k in keys))
        return next(same, None)
    return parity_views.sentences_of(golden) if golden.kind == "phrases" else None


def compare_all(goldens: Sequence[Golden], weights: ModuleType, vocabulary: Path, fixtures: Path) -> Iterator[Line]:
    """Yield the lines of all files; those of one trunk share its network."""

    def trunk_of(golden: Golden) -> tuple[str, int]:
        return variant_of(golden, fixtures), int(golden.arrays["salt"])

    for (variant, salt), group in itertools.groupby(sorted(goldens, key=trunk_of), trunk_of):
        trunk = stand_in_trunk(variant, salt, weights, vocabulary, fixtures)
        for golden in group:
            yield from compare(golden, trunk, weights, fixtures)
        del trunk  # before the next one is built


def compare_scores(scored: Mapping[Path, Any], fixtures: Path) -> Iterator[Line]:
    """Yield the lines of files whose scores need no network."""
    for path, content in scored.items():
        measure = parity_scores.MEASURES[str(kind_of(path.name))]
        for quantity, difference in measure(content):
            yield Line(path.relative_to(fixtures).as_posix(), quantity, difference, difference, SCORES)


def compare(golden: Golden, trunk: Trunk, weights: ModuleType, fixtures: Path) -> Iterator[Line]:
    """Yield the lines of one file; afterwards the trunk is as before."""
    measured = []
    for dtype in (torch.float32, torch.float64):
        try:
            measured.append(list(MEASURES[golden.kind](golden, trunk, weights, dtype)))
        finally:
            trunk.network.float()  # weights that were widened come back as they were
    name = golden.path.relative_to(fixtures).as_posix()
    for (quantity, float32, limits), (_, float64, _) in zip(*measured, strict=True):
        if limits != NOT_AT_ALL:
            yield Line(name, quantity, float64, float32, limits)


@dataclass(frozen=True)
class Way:
    """One way to compute the same: order of the fusion's products, and whether frozen features come from a file."""

    order: Literal["forward", "dense"]
    cached: bool

    def __str__(self) -> str:
        return " (dense, cached)" if self.cached else ""


WAYS = (Way("forward", False), Way("dense", True))


def measure_eval(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of features, raw predictions and detections."""
    arrays, images = golden.arrays, pictures(golden.arrays, weights)
    model = network(trunk, "linear_probe", golden.labels, dtype)  # what it freezes reaches up to the head
    yield same_tokens(golden, model)
    yield "batch_shape", float(tuple(images.pixels.shape) != tuple(arrays["batch_shape"])), EQUAL
    references = [("", arrays, FORWARD.against("float32"))]
    if golden.partner is not None:
        references.append((" in float64", golden.partner, FORWARD))
    with torch.no_grad():
        pyramid, (text,) = model.network.encode_image(images), model.texts()
    for suffix, reference, limits in references:
        for i, level in enumerate(pyramid.levels):
            expected = reference[f"fpn_{i}"]
            every = level[:, :: level.shape[1] // expected.shape[1]].flatten(2)
            yield f"fpn_{i}{suffix}", relative(every[..., :: stride_of(reference)], expected), limits
        yield f"text_embedded{suffix}", relative(text.features[:, :, ::8], reference["text_embedded"]), limits
    for way in WAYS:
        output = forward(model, lambda: model.network.fuse(pyramid, text), way)
        for suffix, reference, limits in references:
            for name, level in raw_predictions(output, stride_of(reference)):
                yield f"{name}{suffix}{way}", relative(level, reference[name]), limits
        for i, found in enumerate(decode(output)):
            for name, error, limits in measure_detections(found, detections_of(arrays, "{}_" + str(i))):
                yield f"detections_{i} {name}{way}", error, limits


def stride_of(reference: Mapping[str, Any]) -> int:
    """Return how many anchors apart those are that an evaluation holds."""
    return int(reference.get("anchor_stride", 1))


def raw_predictions(output: HeadOutput, stride: int) -> Iterator[tuple[str, Tensor]]:
    """Yield public name and numbers of each level, at every ``stride``-th anchor, in the order of the goldens."""
    sizes = [h * w for h, w in output.level_shapes_hw]
    per_level = {
        "token_logits": output.token_logits.split(sizes, 1),
        "bbox_reg": output.box_deltas.split(sizes, 1),
        "centerness": output.centerness.split(sizes, 1),
    }
    for name, levels in per_level.items():
        for i, level in enumerate(levels):
            some = level[:, ::stride]
            yield f"{name}_{i}", some.transpose(1, 2) if name == "bbox_reg" else some


def measure_train(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of the losses and of the gradient norm of every tensor, all of them trained."""
    model = network(trunk, "full", golden.labels, dtype, frozen=())
    yield same_tokens(golden, model)
    yield from measure_losses(golden, model, forward(model, lambda: pictures(golden.arrays, weights), WAYS[0]))
    norms, against = recorded(golden.arrays, "grad_norms")
    expected = dict(zip(golden.arrays["grad_names"].tolist(), norms.tolist(), strict=True))
    ours = dict.fromkeys(expected, 0.0)  # a tensor that is missing here has no gradient
    for name, tensor in in_public_names(model).items():
        if tensor.grad is not None:
            ours[name] = tensor.grad.norm().item()
    yield "gradients that the file does not know", sum(ours[name] > 0 for name in ours.keys() - expected.keys()), EQUAL
    floor = NOISE_FLOOR * max(expected.values())
    for name, norm in expected.items():
        yield f"gradient norm {name}", abs(ours[name] - norm) / max(norm, floor), GRADIENT.against(against)


def measure_train_prompt(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of the losses and of the gradient of the offset table, which is trained alone."""
    model = network(trunk, "prompt", golden.labels, dtype)
    yield same_tokens(golden, model)
    (offset,) = model.owned_tensors().values()
    table = weights.tensor(PROMPT_TABLE, (1000, offset.shape[1]), int(golden.arrays["salt"]))
    model.load_owned({name: torch.from_numpy(table[: len(offset)]).to(dtype) for name in model.owned})
    pyramid = model.prefix(pictures(golden.arrays, weights))
    for way in WAYS:
        for name, error, limits in measure_losses(golden, model, forward(model, lambda: pyramid, way)):
            yield f"{name}{way}", error, limits
        assert offset.grad is not None
        (norm,), against = recorded(golden.arrays, "grad_norms")
        yield f"gradient norm of the offset table{way}", relative(offset.grad.norm(), norm), GRADIENT.against(against)
        # Single entries jump where rounding moves a unit across a kink (ReLU, maxima): in float32 by up to a twentieth.
        gradient, against = recorded(golden.arrays, f"grad/{PROMPT_TABLE}")
        limits = FLOAT64_ONLY if against == "float64" else GRADIENT.against(against)
        yield f"gradient of the offset table{way}", relative(offset.grad, gradient), limits


def measure_losses(golden: Golden, model: AdaptedModel, output: HeadOutput) -> Iterator[Measured]:
    """Yield the errors of the losses; their sum is back-propagated."""
    losses = detection_loss(output, targets(golden.arrays))
    for tensor in model.owned_tensors().values():
        tensor.grad = None
    for ours, public in LOSS_NAMES.items():
        expected, against = recorded(golden.arrays, f"loss/{public}")
        yield f"loss/{public}", relative(losses[ours], expected), FORWARD.against(against)
    torch.stack(list(losses.values())).sum().backward()


def recorded(arrays: Mapping[str, Any], name: str) -> tuple[Any, Recorded]:
    """Return an array as recorded in float64, or else in float32, and which of them."""
    first, slash, rest = name.partition("/")
    wide = f"{first}64{slash}{rest}"
    return (arrays[wide], "float64") if wide in arrays else (arrays[name], "float32")


def measure_steps(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of optimiser steps of the published recipe.

    Of full training one step is compared: three diverge with these weights. The first steps of Adam change every number
    by the whole rate, whatever the size of its gradient, so that rounding decides some signs. What stands before the
    tower is therefore compared in float64 only after a step; that each tensor has moved as far, in both.
    """
    arrays, mode = golden.arrays, str(golden.arrays["mode"])
    against: Recorded = "float64" if str(arrays["precision"]) == "f64" else "float32"
    method = METHOD_OF[mode]
    model = network(trunk, method, golden.labels, dtype)
    config = published_recipe(method, 10)
    groups = parameter_groups(model, config)
    yield from measure_groups(arrays, model, groups)
    stepper = Stepper(groups, device=model.device, precision=config.precision, clip_norm=config.clip_norm)
    prefix, truth = model.prefix(pictures(arrays, weights)), targets(golden.partner or {})
    steps = 1 if "change_norms_after_1_step" in arrays else len(arrays["losses"]) - 1
    later = GRADIENT if mode == "linear_prob" else FLOAT64_ONLY
    for step in range(1, steps + 1):
        (output,) = model.finish(prefix)
        done = stepper.take(step, golden.path.name, [("the batch", detection_loss(output, truth))])
        yield from measure_step_losses(
            arrays, step - 1, done.losses, (FORWARD if step == 1 else later).against(against)
        )
        norm, limits = arrays["gradient_norms_before_clipping"][step - 1], GRADIENT if step == 1 else later
        yield f"step {step}: gradient norm", relative(done.gradient_norm, norm), limits.against(against)
    with torch.no_grad():
        (output,) = model.finish(prefix)
    losses = {name: loss.item() for name, loss in detection_loss(output, truth).items()}
    yield from measure_step_losses(arrays, steps, losses, later.against(against))
    exact = dtype == torch.float64 and against == "float64"
    yield from measure_changes(arrays, model, trunk, steps, NOISE_FLOOR if exact else 1.0, against)


def measure_groups(
    arrays: Mapping[str, Any], model: AdaptedModel, groups: Sequence[Mapping[str, Any]]
) -> Iterator[Measured]:
    """Yield how many trained tensors differ in name, and how many in learning rate or weight decay."""
    settings = {id(tensor): (group["lr"], group["weight_decay"]) for group in groups for tensor in group["params"]}
    ours = {name: settings[id(tensor)] for name, tensor in in_public_names(model).items()}
    numbers = zip(arrays["learning_rates"].tolist(), arrays["weight_decays"].tolist(), strict=True)
    public = dict(zip(arrays["names"].tolist(), numbers, strict=True))
    yield "trained tensors", len(ours.keys() ^ public.keys()), EQUAL
    differing = [
        name for name in ours.keys() & public.keys() if not np.allclose(ours[name], public[name], rtol=1e-9, atol=0)
    ]
    yield "learning rates and weight decays", len(differing), EQUAL


def measure_step_losses(
    arrays: Mapping[str, Any], step: int, losses: Mapping[str, float], limits: Limits
) -> Iterator[Measured]:
    """Yield the errors of the losses after so many steps."""
    expected = dict(zip(arrays["loss_names"].tolist(), arrays["losses"][step], strict=True))
    for ours, public in LOSS_NAMES.items():
        yield f"after step {step}: loss/{public}", relative(losses[ours], expected[public]), limits


def measure_changes(
    arrays: Mapping[str, Any],
    model: AdaptedModel,
    trunk: Trunk,
    steps: int,
    floor: float,
    against: Recorded,
) -> Iterator[Measured]:
    """Yield the errors of the norm by which each tensor has changed, and of those values that were recorded.

    Args:
        arrays: of the golden file.
        model: after the steps.
        trunk: holds what the tensors were before; an offset was zero.
        steps: how many there were.
        floor: an error is relative to the change, or to this part of the largest change possible if that is more.
        against: what the file was recorded in.
    """
    norms = arrays["change_norms_after_1_step" if "change_norms_after_1_step" in arrays else "change_norms"]
    expected = dict(zip(arrays["names"].tolist(), norms.tolist(), strict=True))
    rates = dict(zip(arrays["names"].tolist(), arrays["learning_rates"].tolist(), strict=True))
    before = trunk.network.state_dict()
    for (ours, tensor), name in zip(model.owned_tensors().items(), in_public_names(model), strict=True):
        if name not in expected:
            continue  # reported as a tensor that should not be trained
        change = tensor.detach().double() - before[ours].double() if ours in before else tensor.detach()
        largest = steps * rates[name] * tensor.numel() ** 0.5
        error = abs(change.norm().item() - expected[name]) / max(expected[name], floor * largest)
        yield f"after step {steps}: change of {name}", error, GRADIENT.against(against)
        if f"value/{name}" in arrays:
            error = relative(tensor, arrays[f"value/{name}"])
            yield f"after step {steps}: {name}", error, FORWARD.against(against)
        if "table_after_3_steps" in arrays:
            yield (
                f"after step {steps}: {name}",
                relative(tensor, arrays["table_after_3_steps"]),
                FLOAT64_ONLY.against(against),
            )


def measure_chunked(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of detections whose classes are spread over several captions, by caption and merged."""
    arrays, glip = golden.arrays, trunk.network.to(dtype)
    with torch.no_grad():
        pyramid = glip.encode_image(pictures(arrays, weights))
    for name in [key.removesuffix("/captions") for key in arrays if key.endswith("/captions")]:
        limit = json.loads(str(arrays[f"{name}/settings"]))["MODEL.ATSS.DETECTIONS_PER_IMG"]
        counts, first, parts = arrays[f"{name}/counts"].tolist(), 0, []
        expected = detections_of(arrays, name + "/{}")
        for i, public_caption in enumerate(arrays[f"{name}/captions"].tolist()):
            positive_map = {int(k) - 1: v for k, v in json.loads(str(arrays[f"{name}/positive_maps"][i])).items()}
            caption = build_caption([str(arrays["names"][label]) for label in positive_map])
            tokens = trunk.tokenizer.encode(caption)
            ours = {first + k: row.nonzero().flatten().tolist() for k, row in enumerate(tokens.token_map[0])}
            yield f"{name}: caption {i}", float(caption.text != public_caption), EQUAL
            yield f"{name}: tokens of caption {i}", float(ours != positive_map), EQUAL
            with torch.no_grad():
                (found,) = decode(glip.predict(glip.fuse(pyramid, glip.encode_text(tokens))), limit)
            parts.append(replace(found, labels=found.labels + first))
            first += len(positive_map)
            start = sum(counts[:i])
            for quantity, error, limits in measure_detections(
                parts[-1], some_of(expected, slice(start, start + counts[i]))
            ):
                yield f"{name}: caption {i} {quantity}", error, limits
        for quantity, error, limits in measure_detections(merge(parts), expected):
            yield f"{name}: merged {quantity}", error, limits


def network(trunk: Trunk, method: str, classes: Sequence[str], dtype: torch.dtype, **settings: Any) -> AdaptedModel:
    """Return a method on a trunk, computing in ``dtype``, without dropout and stochastic depth.

    What it shares with the trunk is converted there too.
    """
    model = attach(trunk, method, classes=classes, settings=settings)
    model.network.to(dtype)
    model.network.set_recompute(method == "full")  # the same numbers in a third of the memory
    model.train(False)
    return model


def same_tokens(golden: Golden, model: AdaptedModel) -> Measured:
    return "input_ids", float(model.captions[0].ids[0].tolist() != golden.arrays["input_ids"].tolist()), EQUAL


def in_public_names(model: AdaptedModel) -> dict[str, Tensor]:
    """Return the owned tensors by their names in public checkpoints."""
    if model.adapter.name == "prompt":
        return dict(zip([PROMPT_TABLE], model.owned_tensors().values(), strict=True))
    table = public_names(TRUNKS[model.trunk.name].config)
    return {public_name(name, table): tensor for name, tensor in model.owned_tensors().items()}


def forward(model: AdaptedModel, prefix: Callable[[], FrozenState], way: Way) -> HeadOutput:
    """Return what follows from frozen features, of the whole batch at once, as the goldens were made."""
    with mock.patch.object(CrossAttention, "forward", getattr(CrossAttention, way.order)):
        with torch.no_grad():
            features = from_file(model, prefix) if way.cached else prefix()
        (output,) = model.finish(features)
    return output


def from_file(model: AdaptedModel, prefix: Callable[[], FrozenState]) -> FrozenState:
    """Return frozen features after they were written to a file and read back."""
    key = CacheKey(model.trunk.checksum, "goldens", "as they are", model.frozen_state.__name__, "", "")
    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(memory_bytes=0, folder=folder).get(key, prefix)
        return FeatureCache(memory_bytes=0, folder=folder).get(key, unexpected_miss)


def unexpected_miss() -> FrozenState:
    raise SystemExit("A feature that has just been written is not found in its cache.")


def targets(arrays: Mapping[str, Any]) -> list[Target]:
    """Return the boxes of each picture of a training batch."""
    return [
        Target(torch.from_numpy(arrays[f"gt_boxes_{i}"]), torch.from_numpy(arrays[f"gt_labels_{i}"]).long() - 1)
        for i in range(len(arrays["seeds"]))
    ]


def stand_in_trunk(variant: str, salt: int, weights: ModuleType, vocabulary: Path | None, fixtures: Path) -> Trunk:
    """Write a public-style checkpoint with stand-in weights and load it as a user would."""
    vocabulary = vocabulary or first_existing("vocab.txt", fixtures)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{variant}.pth"
        write_checkpoint(path, entries_of(variant, fixtures), weights, salt)
        return load_trunk(TRUNK_OF[variant], checkpoint=path, vocabulary=vocabulary)


def write_checkpoint(path: Path, entries: Mapping[str, Any], weights: ModuleType, salt: int) -> None:
    state = {}
    for name, (shape, dtype) in entries.items():
        derived = dtype != "float32" or "cell_anchors" in name or name == PROMPT_TABLE
        value = np.zeros(shape, dtype) if derived else weights.tensor(name, tuple(shape), salt)
        state[f"module.{name}"] = torch.from_numpy(np.ascontiguousarray(value))
    torch.save({"model": state}, path)


def entries_of(variant: str, fixtures: Path) -> dict[str, Any]:
    """Return shape and type of the checkpoint entries of a variant."""
    return json.loads(first_existing(f"{variant}.state_dict.json", fixtures).read_text())


def variant_of(golden: Golden, fixtures: Path) -> str:
    """Return the variant that a file is named after, or else the first that has the tensors it names."""
    for variant in TRUNK_OF:
        if variant in golden.path.name:
            return variant
    if "sizes_of" not in golden.arrays:
        return next(iter(TRUNK_OF))
    named = dict(zip(golden.arrays["names"].tolist(), golden.arrays["sizes_of"].tolist(), strict=True))
    for variant in TRUNK_OF:
        sizes = {name: int(np.prod(shape)) for name, (shape, _) in entries_of(variant, fixtures).items()}
        if named.items() <= sizes.items():
            return variant
    return next(iter(TRUNK_OF))


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


MEASURES: dict[str, Callable[[Golden, Trunk, ModuleType, torch.dtype], Iterator[Measured]]] = {
    "eval": measure_eval,
    "train": measure_train,
    "train_prompt": measure_train_prompt,
    "steps": measure_steps,
    "chunked": measure_chunked,
    "phrases": parity_views.measure_phrases,
    "tta": parity_views.measure_tta,
}
KINDS = (*MEASURES, *parity_scores.MEASURES, *NOT_COMPARED, *ELSEWHERE)

if __name__ == "__main__":
    sys.exit(main())
