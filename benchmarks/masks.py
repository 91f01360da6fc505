"""Do masks of a segmenter beat filled boxes? AP of masks of glip-nano's detections on rendered pictograms.

    python benchmarks/masks.py train     # a small SAM 2 from random weights, in runs/masks/sam2; minutes on one core
    python benchmarks/masks.py score     # masks.json and masks.png in benchmarks/results

No released SAM has to be fetched for it, and none is meant: the network has 0.6 M parameters and has only seen
pictograms whose names pre-training shows. Scenes have 96 × 96 pixels; the true mask of a pictogram is where it makes up
most of a pixel. The boxes that are cut out are those of zero-shot detection, so AP of masks is limited by AP of boxes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

from glip_adapt import Mask, attach, evaluate, load_segmenter, load_trunk
from glip_adapt.core.files import written_whole
from glip_adapt.data.formats.coco import load_split
from glip_adapt.data.glyphs import seen_glyphs
from glip_adapt.data.glyphs13 import find_glyph_set, scenes
from glip_adapt.data.scenes import TRAINING_STYLE, Scene, render_scene
from glip_adapt.data.split import Split

RESULTS = Path(__file__).resolve().parent / "results"
SIDE, ENLARGED = 96, 2  # pixels of a scene, and how much larger the network sees it
WIDTH = 64
SETS = ("Tools", "Dice", "Faces")
IMAGES, OBJECTS = 60, (1, 4)  # of a set; least and most objects of an image
BATCH, BOXES = 6, 4  # images of a step, boxes of an image
RATE, JITTER = 1e-3, 0.05  # largest learning rate; deviation of the edges of a box, in its sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "score"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--folder", type=Path, default=Path("runs/masks"), help="for the network and the scenes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.action == "train":
        train(arguments.steps, arguments.folder / "sam2")
    else:
        score(arguments.folder)


def build() -> Sam2Model:
    """Return a SAM 2 with random weights that sees images of 192 × 192 pixels."""
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 24, "image_size": [SIDE * ENLARGED] * 2,
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [24, 48, 96, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 4], "window_size_per_stage": [8, 4, 6, 3],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [5, 5],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [128, 96, 48, 24],
        "backbone_feature_sizes": [[48, 48], [24, 24], [12, 12]], "fpn_hidden_size": WIDTH,
    }  # fmt: skip
    prompts = {"hidden_size": WIDTH, "image_size": SIDE * ENLARGED, "patch_size": 16, "scale": 2}
    decoder = {
        "hidden_size": WIDTH, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 32,
        "dynamic_multimask_via_stability": False,  # of several masks only the first is trained
    }  # fmt: skip
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def train(steps: int, folder: Path) -> None:
    """Train the network on scenes of seen pictograms; write it as transformers does, with the seconds it took."""
    torch.manual_seed(0)
    dice, started = np.random.default_rng(1), time.process_time()
    side = SIDE * ENLARGED
    network, processor = build(), Sam2Processor(Sam2ImageProcessor(size={"height": side, "width": side}))
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
    losses: list[float] = []
    for step in range(1, steps + 1):
        drawn = [_scene(dice) for _ in range(BATCH)]
        boxes, masks = (
            torch.from_numpy(np.stack(part)) for part in zip(*(_prompts(s, dice) for s in drawn), strict=True)
        )
        pixels = processor(images=[scene.image for scene in drawn], return_tensors="pt")["pixel_values"]
        found = network(pixel_values=pixels, input_boxes=boxes * ENLARGED, multimask_output=False).pred_masks[:, :, 0]
        loss = _loss(found, masks, boxes)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(
                f"{step} of {steps}: loss {np.mean(losses[-50:]):.3f}, {time.process_time() - started:.0f} s",
                flush=True,
            )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = {"steps": steps, "cpu_seconds": round(time.process_time() - started)}
    facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    (folder / "training.json").write_text(json.dumps(facts), encoding="utf-8")


def _scene(dice: np.random.Generator) -> Scene:
    glyphs = [
        seen_glyphs()[place] for place in dice.integers(len(seen_glyphs()), size=dice.integers(*OBJECTS, endpoint=True))
    ]
    scene = render_scene(glyphs, None, TRAINING_STYLE, dice, (SIDE, SIDE))
    return scene if len(scene.names) else _scene(dice)


def _prompts(scene: Scene, dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (K, 4) as a detector may find them, edges in pixels, and masks (K, H, W) of objects of a scene."""
    chosen = dice.permutation(np.resize(dice.permutation(len(scene.names)), BOXES))
    edges = scene.boxes_xyxy[chosen] + np.array((0, 0, 1, 1), np.float32)
    sides = np.tile(edges[:, 2:] - edges[:, :2], 2)
    return (edges + dice.normal(0, JITTER, edges.shape) * sides).astype(np.float32), scene.masks()[chosen]


def _loss(found: Tensor, masks: Tensor, boxes: Tensor) -> Tensor:
    """Return dice loss plus cross entropy, to which the pixels in a box, and half as much those outside, add up."""
    side = found.shape[-1]
    truth = F.adaptive_avg_pool2d(masks.float(), side)
    middles = (torch.arange(side) + 0.5) * SIDE / side
    left, top, right, bottom = boxes[..., None].unbind(2)  # (B, K, 1)
    across, down = (middles > left - 2) & (middles < right + 2), (middles > top - 2) & (middles < bottom + 2)
    inside = (down[..., :, None] & across[..., None, :]).float()  # (B, K, h, w)
    shares = inside / inside.sum((-1, -2), keepdim=True) + 0.5 * (1 - inside) / (1 - inside).sum((-1, -2), keepdim=True)
    entropy = (shares * F.binary_cross_entropy_with_logits(found, truth, reduction="none")).sum((-1, -2))
    likely = found.sigmoid()
    both, all_ = (likely * truth).sum((-1, -2)), likely.sum((-1, -2)) + truth.sum((-1, -2))
    return (entropy + 1 - (2 * both + 1) / (all_ + 1)).mean()


@dataclass(frozen=True)
class FilledBoxes:
    """The segmenter to beat: each mask is its box."""

    def masks(self, image: Image.Image, boxes_xyxy: Tensor, boxes_at_once: int) -> list[Mask]:
        filled = np.zeros((len(boxes_xyxy), image.height, image.width), dtype=bool)
        for pixels, (left, top, right, bottom) in zip(filled, boxes_xyxy.round().int().tolist(), strict=True):
            pixels[max(0, top) : bottom, max(0, left) : right] = True
        return [Mask.of(pixels) for pixels in filled]


def score(folder: Path) -> None:
    """Score filled boxes and masks on the test scenes of each set; write values and figure."""
    ways: dict[str, Any] = {"filled boxes": FilledBoxes(), "small SAM 2": load_segmenter(folder / "sam2", "cpu")}
    rows, pictures = [], []
    for name in SETS:
        split, drawn = _test_split(name, folder / name)
        model = attach(load_trunk("glip-nano", device="cpu"), "zero_shot", classes=split.classes)
        view = replace(model.view, short_side=SIDE)
        for way, segmenter in ways.items():
            values = evaluate(model, split, view, segmenter=segmenter).values
            exact = _overlap_in_true_boxes(drawn, segmenter)
            rows.append({"set": name, "way": way, "iou_in_true_boxes": exact} | {k: values[k] for k in _SHOWN_VALUES})
            print(rows[-1], flush=True)
        shown = [(scene, labelled) for scene, labelled in drawn if labelled][:2]
        pictures += [_picture(scene, labelled, ways["small SAM 2"]) for scene, labelled in shown]
    training = json.loads((folder / "sam2" / "training.json").read_text(encoding="utf-8"))
    with written_whole(RESULTS / "masks.json") as temporary:
        temporary.write_text(json.dumps({"training": training, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    with written_whole(RESULTS / "masks.png") as temporary:
        Image.fromarray(np.concatenate(pictures, axis=1)).save(temporary, "png")


_SHOWN_VALUES = ("ap", "mask_ap", "mask_ap50", "mask_ap75")


def _test_split(name: str, folder: Path) -> tuple[Split, list[tuple[Scene, list[int]]]]:
    """Write small test scenes of a synthetic set with their masks as a COCO file; return the split and the scenes."""
    spec = find_glyph_set(f"glyphs13/{name}")
    assert spec is not None
    small = replace(spec, size_hw=(SIDE, SIDE), objects=OBJECTS, distractors=(0, 0), images=(0, 0, IMAGES))
    drawn = list(scenes(small, "test"))
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (scene, labelled) in enumerate(drawn, start=1):
        scene.image.save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": SIDE, "width": SIDE})
        masks = scene.masks()
        for place in labelled:
            left, top, right, bottom = scene.boxes_xyxy[place].tolist()
            mask = Mask.of(masks[place])
            entry = {"bbox": [left, top, right - left + 1, bottom - top + 1], "area": mask.area, "iscrowd": 0}
            entry |= {"id": len(annotations) + 1, "image_id": image_id, "segmentation": mask.to_rle()}
            annotations.append(entry | {"category_id": spec.classes.index(scene.names[place]) + 1})
    categories = [{"id": number, "name": text} for number, text in enumerate(spec.classes, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
    return load_split(folder / "annotations.json", folder, f"{name}/test"), drawn


def _overlap_in_true_boxes(drawn: Sequence[tuple[Scene, list[int]]], segmenter: Any) -> float:
    """Return the mean intersection over union of masks with the true ones, cut out of the true boxes."""
    shares = []
    for scene, labelled in drawn:
        if labelled:
            edges = torch.from_numpy(scene.boxes_xyxy[labelled] + np.array((0, 0, 1, 1), np.float32))
            found = np.stack([mask.to_array() for mask in segmenter.masks(scene.image, edges, 16)])
            truth = scene.masks()[labelled]
            shares += ((found & truth).sum((1, 2)) / np.maximum(1, (found | truth).sum((1, 2)))).tolist()
    return float(np.mean(shares))


def _picture(scene: Scene, labelled: list[int], segmenter: Any) -> np.ndarray:
    """Return an image, its true masks, and those cut out of the true boxes, one below the other, twice as large."""
    edges = torch.from_numpy(scene.boxes_xyxy[labelled] + np.array((0, 0, 1, 1), np.float32))
    found = np.stack([mask.to_array() for mask in segmenter.masks(scene.image, edges, 16)])
    masks = (
        Image.fromarray(np.uint8(255) * some.any(axis=0)).convert("RGB") for some in (scene.masks()[labelled], found)
    )
    return np.concatenate(
        [np.asarray(row.resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)) for row in (scene.image, *masks)]
    )


if __name__ == "__main__":
    main()
