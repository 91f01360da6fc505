"""Compare the Grounding DINO family with transformers' own forward pass and losses, at random weights.

    python benchmarks/parity_transformers.py --small --seed 0
    python benchmarks/parity_transformers.py --trunk grounding-dino-t --seed 0 --sizes 480 640

Builds ``GroundingDinoForObjectDetection`` or ``MMGroundingDinoForObjectDetection`` from the seed, with every tensor
moved away from its start so that none is zero, and gives its weights to our network by the names of the Hub. Three
cases: one image with the first caption; two images of different sizes with this caption; the same two with a caption
each. ``--small`` takes small sizes of both classes, ``--trunk`` the sizes of one released trunk; without either, small.

One line per quantity: the largest error, ‖a − b‖ / ‖b‖, in float64 and in float32. Limits are 1e-9 and 1e-4. Exit code
1 if a line is above.

In float32, rounding may swap cells of nearly the same likeness in the ranking that makes them queries, and everything
after it with them. Such swaps are counted, and ours then goes on with transformers' ranking.

``--captions FILE`` has one caption a line, of which two are used. A full stop is put behind a caption, as by the
processor of the Hub. Words get made-up token ids.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
)
from transformers.loss import loss_grounding_dino

from glip_adapt.core.structures import ImageBatch, SizeHW, Target, Tokens
from glip_adapt.data.transforms import collate
from glip_adapt.trunks.backbones import normalised
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.dino.names import in_our_names
from glip_adapt.trunks.dino.network import Dino
from glip_adapt.trunks.dino.objective import DinoObjective, match, query_losses
from glip_adapt.trunks.dino.transformer import Decoder
from glip_adapt.trunks.dino.truth import truths_of
from glip_adapt.trunks.encoder_config import SwinConfig, TextConfig
from glip_adapt.trunks.released import TRUNKS

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
CAPTIONS = ("raccoon. traffic light. what is it? a dog in the snow", "cat. red umbrella")
MARKS = {".": 1012, "?": 1029, ",": 1010}
CLS, SEP, FIRST_WORD, WORDS = 101, 102, 2000, 28_000

SMALL = DinoConfig(
    backbone=SwinConfig(width=16, depths=(1, 2, 1, 1), heads=(1, 2, 2, 4), window=4),
    text=TextConfig(width=32, layers=2, heads=4, hidden_width=64, dropout=0.0, separators=(101, 102, 1012, 1029)),
    width=64,
    encoder_layers=2,
    decoder_layers=2,
    heads=4,
    hidden_width=128,
    queries=30,
)
SMALL_SIZES = ((160, 224), (128, 200))


def main() -> int:
    """Print a table, and return 1 if a line is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--trunk", choices=[name for name, spec in TRUNKS.items() if isinstance(spec.config, DinoConfig)])
    what.add_argument("--small", action="store_true", help="small sizes of both classes (default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captions", type=Path, help="file with one caption a line")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="PIXELS", help="height and width of each image")
    parser.add_argument("--json", action="store_true", help="print a list of results as JSON")
    options = parser.parse_args()
    captions = options.captions.read_text(encoding="utf-8").split("\n") if options.captions else CAPTIONS
    captions = [caption for caption in captions if caption.strip()]
    if options.trunk:
        networks = {options.trunk: TRUNKS[options.trunk].config}
        sizes = _pairs(options.sizes) or ((480, 640), (448, 600))
    else:
        mm = replace(SMALL, shared_boxes=False, scaled_scores=True)
        large = replace(mm, backbone=replace(SMALL.backbone, outputs=4))  # type: ignore[type-var]
        networks = {"small grounding-dino": SMALL, "small mm-grounding-dino": mm, "small, five maps": large}
        sizes = _pairs(options.sizes) or SMALL_SIZES
    if len(sizes) == 1:
        sizes = (*sizes, (sizes[0][0] - 40, sizes[0][1] - 8))
    results = [
        {"network": name, **line}
        for name, config in networks.items()
        for line in compare(config, options.seed, captions, sizes)
    ]
    for line in results:
        line["passed"] = line["error"] <= line["limit"]
    if options.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    else:
        for line in results:
            verdict = "ok  " if line["passed"] else "FAIL"
            sys.stdout.write(
                f"{verdict} {line['error']:9.2e} (limit {line['limit']:.0e})  {line['network']}  {line['precision']}  "
                f"{line['case']}  {line['quantity']}  {line['note']}\n"
            )
    failed = sum(not line["passed"] for line in results)
    sys.stderr.write(f"{len(results) - failed} passed, {failed} failed\n")
    return int(failed > 0)


def _pairs(numbers: Sequence[int] | None) -> tuple[SizeHW, ...]:
    if numbers and len(numbers) % 2:
        raise SystemExit(f"--sizes takes pairs of height and width, got {len(numbers)} numbers.")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True)) if numbers else ()


def compare(
    config: DinoConfig, seed: int, captions: Sequence[str], sizes: Sequence[SizeHW]
) -> Iterator[dict[str, Any]]:
    """Yield the error of each quantity of one network."""
    torch.manual_seed(seed)
    public = public_network(config)
    ours = our_network(config, public)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes[:2]]
    tokens = [tokenize(caption) for caption in captions]
    cases = {
        "one image": (images[:1], tokens[:1]),
        "two images": (images, tokens[:1]),
        "two images, two captions": (images, [tokens[0], tokens[-1]]),
    }
    for dtype, limit in LIMITS.items():
        for network in (public, ours):
            network.to(dtype)
        for case, (pictures, words) in cases.items():
            batch = collate(pictures)
            text = Tokens.stack(words)
            theirs = their_quantities(public, ours, batch, text, dtype)
            ranking = theirs.pop("selection")
            with selected_as(ranking if dtype is torch.float32 else None) as own:
                found = our_quantities(ours, batch, text)
                if len(words) == 1:
                    theirs |= their_losses(public, ours, batch, text, dtype)
                    found |= our_losses(ours, batch, text)
            swapped = int((own[0] != ranking).sum()) if dtype is torch.float32 else 0
            note = f"{swapped} ranks swapped by rounding" if swapped else ""
            for quantity, expected in theirs.items():
                error = ((found[quantity] - expected).norm() / expected.norm()).item()
                yield {
                    "precision": str(dtype).removeprefix("torch."),
                    "case": case,
                    "quantity": quantity,
                    "error": error,
                    "limit": limit,
                    "note": note,
                }


def public_network(config: DinoConfig) -> nn.Module:
    """Return transformers' network of the same sizes, with all tensors moved away from their start."""
    swin, text = config.backbone, config.text
    assert isinstance(swin, SwinConfig)
    settings: dict[str, Any] = {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": swin.width,
            "depths": list(swin.depths),
            "num_heads": list(swin.heads),
            "window_size": swin.window,
            "out_features": [f"stage{5 - i}" for i in range(swin.outputs, 0, -1)],
        },
        "text_config": BertConfig(
            vocab_size=text.vocabulary_size,
            hidden_size=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            intermediate_size=text.hidden_width,
        ),
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.hidden_width,
        "decoder_ffn_dim": config.hidden_width,
        "encoder_n_points": config.points,
        "decoder_n_points": config.points,
        "num_queries": config.queries,
        "num_feature_levels": len(config.strides),
        "auxiliary_loss": True,
        "decoder_bbox_embed_share": config.shared_boxes,
    }
    network: Any
    if config.scaled_scores:
        network = MMGroundingDinoForObjectDetection(MMGroundingDinoConfig(**settings, decoder_cls_embed_share=False))
    else:
        network = GroundingDinoForObjectDetection(GroundingDinoConfig(**settings))
    network.eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for layer in network.model.encoder.layers:  # so small at the start that fusion would hardly count
            layer.fusion_layer.vision_param.normal_(std=0.3)
            layer.fusion_layer.text_param.normal_(std=0.3)
    return network


def our_network(config: DinoConfig, public: nn.Module) -> Dino:
    """Return our network with the weights of transformers', by the names of a file."""
    network = DinoFamily().build(config)
    stored = in_our_names(public.state_dict(), len(config.strides) - 1)
    network.load_state_dict({name: stored[name] for name in network.state_dict()})
    return network


def tokenize(caption: str) -> Tokens:
    """Return tokens of a caption with made-up ids; a class is what stands between two full stops or question marks."""
    text = caption.strip()
    text = text if text.endswith((".", "?")) else f"{text}."
    ids = [CLS]
    for word in "".join(f" {c} " if c in MARKS else c for c in text.lower()).split():
        ids.append(MARKS.get(word) or FIRST_WORD + zlib.crc32(word.encode()) % WORDS)
    return _with_map(torch.tensor([[*ids, SEP]]))


def _with_map(ids: Tensor) -> Tokens:
    ends = torch.isin(ids, torch.tensor([CLS, SEP, MARKS["."], MARKS["?"]]))
    group = ends.cumsum(1) * ~ends
    token_map = torch.stack([group[0] == number for number in group[0].unique().tolist() if number > 0])
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), token_map[None])


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Have transformers make its tensors in ``dtype``: it pads logits with tensors of the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def inputs_of(ours: Dino, batch: ImageBatch, text: Tokens, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the arguments of transformers' forward pass."""
    encoder, count = ours.image_encoder, len(batch.image_sizes_hw)
    mask = torch.zeros(count, *batch.pixels.shape[2:], dtype=torch.long)
    for row, (height, width) in zip(mask, batch.image_sizes_hw, strict=True):
        row[:height, :width] = 1
    return {
        "pixel_values": normalised(batch, encoder.pixel_mean, encoder.pixel_std).to(dtype),
        "pixel_mask": mask,
        "input_ids": text.ids.expand(count, -1),
        "attention_mask": text.mask.long().expand(count, -1),
    }


@torch.no_grad()
def their_quantities(
    public: nn.Module, ours: Dino, batch: ImageBatch, text: Tokens, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return transformers' results by name, and the ranking of its cells."""
    with _default_dtype(dtype):
        found = public(**inputs_of(ours, batch, text, dtype))
    real, words = _real(ours, batch), text.mask.expand(len(batch.image_sizes_hw), -1)
    tokens = words.shape[1]
    likeness = found.enc_outputs_class.amax(-1)
    return {
        "fused image": found.encoder_last_hidden_state_vision[real],
        "fused text": found.encoder_last_hidden_state_text[words],
        "boxes of proposals": found.init_reference_points,
        "token logits": found.logits[..., :tokens][words.unsqueeze(1).expand(-1, found.logits.shape[1], -1)],
        "boxes": found.pred_boxes,
        "selection": likeness.topk(found.pred_boxes.shape[1]).indices,
    }


@contextlib.contextmanager
def selected_as(ranking: Tensor | None) -> Iterator[list[Tensor]]:
    """Have our decoder take cells by ``ranking`` if there is one, and yield what it would have taken itself."""
    own: list[Tensor] = []
    select = Decoder.select

    def select_and_note(decoder: Decoder, likeness: Tensor) -> Tensor:
        own.append(select(decoder, likeness))
        return own[-1] if ranking is None else ranking

    with mock.patch.object(Decoder, "select", select_and_note):
        yield own


@torch.no_grad()
def our_quantities(ours: Dino, batch: ImageBatch, text: Tokens) -> dict[str, Tensor]:
    """Return our results by the same names."""
    fused = ours.fuse(ours.encode_image(batch), ours.encode_text(text))
    output = ours.predict(fused)
    words = fused.text.mask
    last = output.layers[-1]
    return {
        "fused image": fused.pyramid.cells[_real(ours, batch)],
        "fused text": fused.text.features[words],
        "boxes of proposals": output.proposals.boxes,
        "token logits": last.logits[words.unsqueeze(1).expand(-1, last.logits.shape[1], -1)],
        "boxes": last.boxes,
    }


def _real(ours: Dino, batch: ImageBatch) -> Tensor:
    """Return (B, A) bool, True for cells that show the image."""
    pyramid = ours.encode_image(batch)
    real = ours._places(pyramid).real
    return torch.ones(pyramid.cells.shape[:2], dtype=torch.bool) if real is None else real


def targets_of(text: Tokens, images: Sequence[SizeHW]) -> list[Target]:
    """Return made-up boxes for each image: one of each class, of which the first image has two more."""
    classes, targets = text.token_map.shape[1], []
    for i, (height, width) in enumerate(images):
        labels = torch.arange(classes + 2 * (i == 0)) % classes
        share = (torch.arange(len(labels)) + 1) / (len(labels) + 2)
        x, y = share * width * 0.7, (1 - share) * height * 0.6
        corners = torch.stack((x, y, x + 0.2 * width + 3 * share, y + 0.3 * height), dim=-1)
        targets.append(Target(corners.round(), labels))
    return targets


STAGES = ("token", "box", "giou")


@torch.no_grad()
def their_losses(
    public: nn.Module, ours: Dino, batch: ImageBatch, text: Tokens, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return transformers' losses of all decoder layers; those of its proposals are wrong, and left out."""
    labels = []
    for target, (height, width) in zip(targets_of(text, batch.image_sizes_hw), batch.image_sizes_hw, strict=True):
        edges = (target.boxes_xyxy + torch.tensor((0, 0, 1, 1))).to(dtype)
        near, far = edges[:, :2], edges[:, 2:]
        boxes = torch.cat(((near + far) / 2, far - near), dim=-1) / torch.tensor((width, height) * 2, dtype=dtype)
        labels.append({"class_labels": target.labels, "boxes": boxes})
    focal_loss = loss_grounding_dino.sigmoid_focal_loss

    def in_one_dtype(inputs: Tensor, targets: Tensor, *rest: Any, **options: Any) -> Tensor:
        return focal_loss(inputs, targets.to(inputs), *rest, **options)  # targets in float32 round float64 losses

    with _default_dtype(dtype), mock.patch.object(loss_grounding_dino, "sigmoid_focal_loss", in_one_dtype):
        found = public(**inputs_of(ours, batch, text, dtype), labels=labels).loss_dict
    layers = ours.config.decoder_layers
    suffixes = [*(f"_{i}" for i in range(layers - 1)), ""]
    names = {"token": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
    return {f"{own} loss": torch.stack([found[name + end] for end in suffixes]) for own, name in names.items()}


def our_losses(ours: Dino, batch: ImageBatch, text: Tokens) -> dict[str, Tensor]:
    """Return our losses of all decoder layers, before they are weighed."""
    with torch.enable_grad():  # the earlier layers predict only then
        output = ours(batch, text)
    targets, objective = targets_of(text, batch.image_sizes_hw), DinoObjective()
    prepared = [objective.prepare(target, (1, 1)) for target in targets]
    truths = truths_of(prepared, output.image_sizes_hw, output.token_map, output.layers[-1].boxes)
    found = [
        torch.stack(query_losses(stage, truths, matches, output.token_mask)).detach() / objective.scale(prepared)
        for stage, matches in zip(output.layers, match(output.layers, truths), strict=True)
    ]
    return {f"{name} loss": column for name, column in zip(STAGES, torch.stack(found, dim=1), strict=True)}


if __name__ == "__main__":
    sys.exit(main())
