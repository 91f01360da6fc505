"""Files as the public code writes them, of a size for tests."""

import random
from collections import OrderedDict, defaultdict
from dataclasses import replace

import numpy as np
import torch

from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GlipConfig, SwinConfig, TextConfig
from glip_adapt.trunks.glip.names import PROMPT_TABLE, public_name, public_names
from glip_adapt.trunks.released import ASSETS, TRUNKS

VOCABULARY = ASSETS / "glip-nano-vocab.txt"
SMALL = GlipConfig(
    backbone=SwinConfig(width=8, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=4),
    text=TextConfig(vocabulary_size=950, width=16, layers=1, heads=2, hidden_width=32),
    image_width=32,
    blocks=2,
    joint_width=32,
    joint_heads=2,
)
# What public files hold beside the network, as far as it is known.
EXTRAS = {
    "rpn.anchor_generator.cell_anchors.0": torch.zeros(1, 4),
    "rpn.head.cls_logits.weight": torch.zeros(80, 32, 1, 1),
    "rpn.head.cls_logits.bias": torch.zeros(80),
    "rpn.head.mlm_head.dense.weight": torch.zeros(16, 16),
    "rpn.resizer.fc.weight": torch.zeros(8, 16),
    PROMPT_TABLE: torch.zeros(1000, 16),
    "language_backbone.body.model.pooler.dense.weight": torch.zeros(16, 16),
    "language_backbone.body.model.embeddings.position_ids": torch.arange(512)[None],
    "backbone.body.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
}
# What files of other versions of the public code may hold.
RARE_EXTRAS = {
    "rpn.loss_evaluator.shallow_contrastive_projection.weight": torch.zeros(2, 2),
    "rpn.head.token_logits.weight": torch.zeros(2, 2),
    "rpn.head.contrastive_align_projection_image.weight": torch.zeros(2, 2),
    "rpn.head.resizer.fc.weight": torch.zeros(2, 2),
    "language_backbone.body.model.embeddings.token_type_ids": torch.zeros(1, 512, dtype=torch.int64),
    "backbone.body.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    "rpn.head.dyhead_tower.0.b_attn.shrink_lang.fc.weight": torch.zeros(2, 2),
}


def add_trunk(monkeypatch, name, **changes):
    """Add a trunk to the catalogue: described as GLIP-T is, of a size for tests, with changed settings."""
    file, config = f"{name.replace('-', '_')}.pth", replace(SMALL, **changes)
    monkeypatch.setitem(TRUNKS, name, replace(TRUNKS["glip-t"], config=config, public_file=file, data="none"))


def same(found, expected):
    """Tell whether two state dicts hold the same tensors."""
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def small_state():
    """Return the ``model`` entry of a public file with random weights."""
    torch.manual_seed(5)
    return public_state(build_glip(SMALL))


def public_state(glip, config=SMALL):
    """Return the ``model`` entry of a public file that holds the weights of ``glip``."""
    table = public_names(config)
    state = {public_name(key, table): value.clone() for key, value in glip.state_dict().items()}
    return {f"module.{key}": value for key, value in (state | EXTRAS).items()}


def tuned(state, seed=0, rows=1000):
    """Return a ``model`` entry in which prompt tuning moved the first rows of the table."""
    table = torch.zeros(1000, 16)
    table[:rows] = 0.1 * torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
    return state | {f"module.{PROMPT_TABLE}": table}


def save_public(model, path, **options):
    torch.save({"model": model, "optimizer": {"state": {}, "lr": 1e-4}, "iteration": 7}, path, **options)
    return path


def public_run(model):
    """Return all that a long public run may leave in one file, its weights wrapped twice."""
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    counts = defaultdict(dict)
    counts["raccoon"][3] = 4
    kinds = "f2 f4 f8 f16 i1 i2 i4 i8 u1 u2 u4 u8 ? c8 c16 U3 S3 M8[s] m8[s]"
    return {
        "model": OrderedDict((f"module.{key}", value) for key, value in (model | RARE_EXTRAS).items()),
        "model_ema": OrderedDict((key, torch.full_like(value, 3)) for key, value in model.items()),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer).state_dict(),
        "grad_scaler": {"scale": 65536.0, "growth_tracker": 12, "_init_scale": 2.0**16},
        "iteration": 1234,
        "epoch": 3,
        "eval_result": np.float64(0.613),
        "results": {kind: np.zeros((), kind)[()] for kind in kinds.split()},
        "precision": np.linspace(0, 1, 101),
        "counts": counts,
        "best": None,
        "is_best": True,
        "sizes": [torch.Size([2, 3]), (480, 800), {1, 2}],
        "types": [torch.float16, torch.device("cuda:0"), torch.tensor(5)],
        "words": ["raccoon", b"bytes", 10**20, float("inf")],
        "random_state": random.Random(0).getstate(),
        "numpy_state": np.random.default_rng(0).bit_generator.state,
        "cuda_state": torch.zeros(8, dtype=torch.uint8),
    }
