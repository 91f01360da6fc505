"""A second trunk family, as unlike GLIP as can be: queries, set matching, normalised boxes, no anchors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from public_files import VOCABULARY
from safetensors.torch import load_file
from torch import nn

from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections, Fused, Pyramid, TextFeatures
from glip_adapt.trunks.family import Family, Weights
from glip_adapt.trunks.linear import matrix
from glip_adapt.trunks.protocol import Network, Seams
from glip_adapt.trunks.recipes import Recipes
from glip_adapt.trunks.released import TrunkSpec
from glip_adapt.trunks.tokenizer import Tokenizer

WIDTH, QUERIES, STRIDE = 16, 12, 16


@dataclass(frozen=True)
class QueryOutput:
    """Token logits (B, Q, T), boxes (B, Q, 4) as (centre x, centre y, width, height) in [0, 1] of the padded image."""

    logits: torch.Tensor
    boxes_norm: torch.Tensor
    token_map: torch.Tensor
    padded_hw: tuple[int, int]
    image_sizes_hw: tuple[tuple[int, int], ...]


class SetMatching:
    """Match queries and boxes one to one, after the forward pass."""

    def prepare(self, target, padded_hw):
        size = target.boxes_xyxy.new_tensor((padded_hw[1], padded_hw[0]))
        near, far = target.boxes_xyxy[:, :2], target.boxes_xyxy[:, 2:] + 1
        return torch.cat(((near + far) / 2 / size, (far - near) / size), dim=-1), target.labels

    def scale(self, prepared):
        return max(1, sum(len(labels) for _, labels in prepared))

    def losses(self, output, prepared, scale):
        wanted, box = torch.zeros_like(output.logits), output.boxes_norm.sum() * 0
        for i, (boxes, labels) in enumerate(prepared):
            distance = torch.cdist(boxes, output.boxes_norm[i], p=1)  # (N, Q)
            for row, label in zip(distance.argsort(dim=0)[:, 0].unique(), labels, strict=False):
                query = int(distance[row].argmin())
                wanted[i, query] = output.token_map[0, label].float()
                box = box + (output.boxes_norm[i, query] - boxes[row]).abs().sum()
        token = F.binary_cross_entropy_with_logits(output.logits, wanted, reduction="sum")
        return {"token": token / scale, "box": box / scale}


class TextReader(nn.Module):
    """Word embeddings and one linear layer."""

    def __init__(self, vocabulary_size):
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        return TextFeatures(self.mix(self.words(tokens.ids)).tanh(), tokens.mask, tokens.token_map)


class QueryDetector(Network):
    """Learned queries read the image, and are compared with the tokens."""

    text_width = WIDTH

    def __init__(self, text_encoder):
        super().__init__()
        self.backbone = nn.Conv2d(3, WIDTH, STRIDE, STRIDE)
        self.text_encoder = text_encoder
        self.text_prompt = nn.Identity()
        self.mixer = nn.Linear(WIDTH, WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.box_layer = nn.Linear(WIDTH, 4)
        self.name_layer = nn.Linear(WIDTH, WIDTH)
        self.objective = SetMatching()

    @property
    def seams(self):
        return Seams(
            prediction_layers=("box_layer.weight", "box_layer.bias", "name_layer.weight", "name_layer.bias"),
            text_encoder="text_encoder",
            word_embeddings="text_encoder.words",
            linear={"fusion": ("mixer",), "text": ("text_encoder.mix",), "head": ("box_layer", "name_layer")},
            biases=frozenset({"bias"}),
        )

    def encode_image(self, images):
        maps = self.backbone(images.pixels.float() / 255 - 0.5)
        return Pyramid.from_levels([maps], images.image_sizes_hw)

    def encode_text(self, tokens):
        return self.text_encoder(tokens)

    def fuse(self, pyramid, text):
        text = self.text_prompt(text)
        mixed = F.linear(pyramid.cells, *matrix(self.mixer)).tanh()
        return Fused(
            Pyramid(mixed + text.features.mean(1, keepdim=True), pyramid.level_shapes_hw, pyramid.image_sizes_hw), text
        )

    def predict(self, fused, prepared=()):
        cells = fused.pyramid.cells
        attention = (self.queries @ cells.transpose(-1, -2)).softmax(-1)  # (B, Q, A)
        seen = attention @ cells + self.queries
        logits = self.name_layer(seen) @ fused.text.features.transpose(-1, -2)
        ((h, w),) = fused.pyramid.level_shapes_hw
        boxes_norm = self.box_layer(seen).sigmoid()
        return QueryOutput(logits, boxes_norm, fused.text.token_map, (h * STRIDE, w * STRIDE), fused.image_sizes_hw)

    def decode(self, output, sizes_hw):
        weights = output.token_map.float() / output.token_map.sum(-1, keepdim=True)
        scores, labels = (output.logits.sigmoid() @ weights.transpose(-1, -2)).max(-1)
        centre, size = output.boxes_norm.chunk(2, dim=-1)
        edges = torch.cat((centre - size / 2, centre + size / 2), dim=-1)
        found = []
        for i, (seen_hw, size_hw) in enumerate(zip(output.image_sizes_hw, sizes_hw, strict=True)):
            factor = [p / s * o for p, s, o in zip(output.padded_hw, seen_hw, size_hw, strict=True)]
            boxes_xyxy = edges[i] * edges.new_tensor([factor[1], factor[0]] * 2)
            found.append(Detections(boxes_xyxy, scores[i], labels[i]).select(scores[i].argsort(descending=True)))
        return found

    def without_text(self):
        rest = QueryDetector(nn.Identity())
        for name, module in self.named_children():
            if name not in ("text_encoder", "text_prompt"):
                setattr(rest, name, module)
        rest.queries = self.queries
        return rest


class QueryFamily(Family):
    """Its config is the size of the vocabulary."""

    def build(self, config, *, with_text=True):
        return QueryDetector(TextReader(config) if with_text else nn.Identity()).eval()

    def tokenizer(self, config, vocabulary):
        return Tokenizer.from_file(vocabulary or VOCABULARY)

    def made_up_tokenizer(self, config):
        return Tokenizer.from_file(VOCABULARY)

    def read(self, path, network, name, configs, how_to_get):
        return Weights(load_file(path))


SPEC = TrunkSpec(
    purpose="for tests",
    family=QueryFamily(),
    config=950,
    public_file="queries.safetensors",
    parameters=1,
    deep_fusion=True,
    data="none",
    view=ViewConfig(short_side=64, max_long_side=96),
    recipes=Recipes(
        base={"short_sides": (64,), "flip": False, "max_steps": 3, "validate_every": 3, "schedule": "cosine"}
    ),
    threads=1,
)
