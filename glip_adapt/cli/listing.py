"""What exists: trunks, datasets and methods as rows for a table, and what this machine offers."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from glip_adapt.adapters import ADAPTERS, build_adapter
from glip_adapt.adapters.protocol import Adapter
from glip_adapt.core.captions import Caption
from glip_adapt.core.structures import SizeHW, Tokens
from glip_adapt.data.glyphs13 import rendered_datasets
from glip_adapt.data.odinw import known_datasets
from glip_adapt.engine.memory import estimate_memory
from glip_adapt.trunks.catalogue import TRUNKS, random_trunk, trunk_spec
from glip_adapt.trunks.glip.build import GLIP_T, build_glip
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.tokenizer import Tokenizer
from glip_adapt.trunks.weights import hub_cache

# What depends on the caption and the settings.
PER_TOKEN = {"prompt": "tokens × 768", "context": "classes × free tokens × 768"}
PACKAGES = ("glip-adapt", "torch", "torchvision", "timm", "transformers", "peft")


def trunks() -> list[dict[str, Any]]:
    """Return one row per trunk: size, fusion, data, public file, licence."""
    rows = []
    for name, spec in TRUNKS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_glip(spec.config).parameters())
        rows.append(
            {
                "trunk": name,
                "parameters": f"{parameters / 1e6:.1f} M",
                "deep fusion": "yes" if spec.config.deep_fusion else "no",
                "pre-trained on": spec.data,
                "public file": spec.public_file or "–",
                "licence": spec.licence,
            }
        )
    return rows


def datasets() -> list[dict[str, Any]]:
    """Return one row per known dataset: names, classes, pictures per split, licence."""
    real = [
        {
            "dataset": spec.official_name,
            "short name": spec.short_name,
            "classes": len(spec.classes),
            **{name: split.images for name, split in spec.splits.items() if name in ("train", "val", "test")},
            "licence": spec.licence,
        }
        for spec in known_datasets()
    ]
    rendered = [
        {
            "dataset": name,
            "short name": "synthetic",
            "classes": len(spec.classes),
            **dict(zip(("train", "val", "test"), spec.images, strict=True)),
            "licence": "rendered from the DejaVu and STIX fonts",
        }
        for name, spec in rendered_datasets().items()
    ]
    return real + rendered


def methods() -> list[dict[str, Any]]:
    """Return one row per method: how many numbers it trains on GLIP-T, and how."""
    with torch.device("meta"):
        glip = build_glip(GLIP_T).requires_grad_(False)
    rows = []
    for name, adapter in ADAPTERS.items():
        attached = build_adapter(name, trunk_spec("glip-t").settings.get(name, {}))
        trained = PER_TOKEN.get(name) or f"{_owned_numbers(attached, copy.deepcopy(glip)):,}"
        rows.append({"method": name, "trains on GLIP-T": trained, "how": (adapter.__doc__ or "").splitlines()[0]})
    return rows


def _owned_numbers(adapter: Adapter, glip: Glip) -> int:
    """Return how many numbers ``adapter`` owns, whatever the caption; ``glip`` is changed."""
    nothing = torch.empty(1, 0)
    adapter.insert(glip, Tokens(nothing, nothing.bool(), nothing[None].bool()))
    state = glip.state_dict()
    return sum(state[key].numel() for key in adapter.owned(glip))


def audit(caption: Caption, tokenizer: Tokenizer) -> tuple[list[dict[str, Any]], int]:
    """Return one row per class, where its name stands and which tokens it owns, and the number of tokens."""
    tokens = tokenizer.encode(caption)
    words = tokenizer.words(tokens)
    rows = []
    for label, (name, span) in enumerate(zip(caption.names, caption.spans, strict=True)):
        owned = tokens.token_map[0, label].nonzero().flatten().tolist()
        rows.append(
            {
                "label": label,
                "class": name,
                "characters": f"{span[0]}–{span[1]}",
                "tokens": ", ".join(map(str, owned)),
                "words": " ".join(words[i] for i in owned),
            }
        )
    return rows, len(words)


def memory(trunk: str, size_hw: SizeHW) -> list[dict[str, Any]]:
    """Return one row per method: what a step will need at its peak for a picture of ``size_hw``, in gigabytes."""
    stand_in = random_trunk(trunk)  # memory does not depend on the weights
    rows = []
    for name in ADAPTERS:
        estimate, less = (estimate_memory(stand_in, name, size_hw, recompute) for recompute in (False, True))
        parts = {"weights": estimate.weights, "gradients, optimiser, best state": estimate.trained}
        parts |= {"activations": estimate.activations, "total": estimate.total, "total, recompute = true": less.total}
        rows.append({"method": name, **{part: f"{size / 1e9:.2f}" for part, size in parts.items()}})
    return rows


def machine() -> list[dict[str, Any]]:
    """Return one row per fact of this machine."""
    gpus = [
        f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB)"
        for i in range(torch.cuda.device_count())
    ]
    facts = {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "GPUs": ", ".join(gpus) or "none",
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
        "Hub cache": str(hub_cache()),
    }
    return [{"what": name, "value": value} for name, value in facts.items()]
