"""Facts for the verbs ``ls``, ``audit`` and ``doctor``: rows of heading → value, as ``--json`` prints them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.adapters import ADAPTERS
from glip_adapt.core.captions import Caption
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.glyphs13 import rendered_datasets
from glip_adapt.data.odinw import every_dataset
from glip_adapt.trunks.released import TRUNKS

if TYPE_CHECKING:
    from glip_adapt.trunks.tokenizer import Tokenizer

SPLITS = ("train", "val", "test")
PACKAGES = ("glip-adapt", "torch", "torchvision", "timm", "transformers", "peft")

Rows = Iterator[dict[str, Any]]


def trunks() -> Rows:
    """Yield one row per trunk: its parameters as a number, and whether it fuses image and text before the head."""
    for name, spec in TRUNKS.items():
        yield {
            "trunk": name,
            "take it": spec.purpose,
            "parameters": spec.parameters,
            "deep fusion": spec.deep_fusion,
            "pre-trained on": spec.data,
            "licence": spec.licence,
        }


def datasets() -> Rows:
    """Yield one row per known dataset, first the public ones, then the synthetic ones.

    Splits are counted in images, None if that is not known.
    """
    for spec in every_dataset():
        yield {
            "dataset": spec.official_name,
            "short name": spec.short_name,
            "classes": len(spec.classes) or spec.class_count,
            **{split: spec.splits[split].images if split in spec.splits else None for split in SPLITS},
            "licence": spec.licence,
        }
    for name, rendered in rendered_datasets().items():
        yield {
            "dataset": name,
            "short name": "synthetic",
            "classes": len(rendered.classes),
            **dict(zip(SPLITS, rendered.images, strict=True)),
            "licence": "rendered from the DejaVu and STIX fonts",
        }


def methods() -> Rows:
    """Yield one row per method: how many numbers it trains on GLIP-T, or a text on what that depends."""
    for name, adapter in ADAPTERS.items():
        yield {
            "method": name,
            "what it is for": adapter.purpose,
            "cost": adapter.cost,
            "trains on GLIP-T": adapter.counted,
        }


def audit(caption: Caption, tokenizer: Tokenizer) -> Rows:
    """Yield one row per class: the place of its name in the caption, and the tokens and word pieces that it owns."""
    tokens = tokenizer.encode(caption)
    words = tokenizer.words(tokens)
    owned = [row.nonzero().flatten().tolist() for row in tokens.token_map[0]]
    for label, (name, (start, end), mine) in enumerate(zip(caption.names, caption.spans, owned, strict=True)):
        yield {
            "label": label,
            "class": name,
            "characters": f"{start}–{end}",
            "tokens": ", ".join(map(str, mine)),
            "words": " ".join(words[i] for i in mine),
        }


def memory(trunk: str, size_hw: SizeHW) -> Rows:
    """Yield one row per method: gigabytes that a training step takes on an image of ``size_hw`` pixels."""
    from glip_adapt.engine.memory import estimate_memory
    from glip_adapt.trunks.catalogue import random_trunk

    stand_in = random_trunk(trunk)  # memory does not depend on the weights
    for name in ADAPTERS:
        plain = estimate_memory(stand_in, name, size_hw)
        yield {
            "method": name,
            "weights": plain.weights / 1e9,
            "gradients, optimiser, best state": plain.trained / 1e9,
            "activations": plain.activations / 1e9,
            "total": plain.total / 1e9,
            "total, recompute = true": estimate_memory(stand_in, name, size_hw, recompute=True).total / 1e9,
        }


def machine() -> Rows:
    """Yield one row per fact about software and hardware of this machine; see ``devices``."""
    from glip_adapt.core.downloads import hub_cache

    facts = {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
        "Hub cache": str(hub_cache()),
    }
    yield from ({"what": name, "value": value} for name, value in facts.items())


def devices() -> Rows:
    """Yield what torch alone knows: CPU threads that it uses, whether bfloat16 pays, and the GPUs that it can reach."""
    import torch

    from glip_adapt.core.precision import cpu_gains_from_bfloat16

    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in properties]
    yield {"what": "threads", "value": torch.get_num_threads()}
    gain = "faster than float32" if cpu_gains_from_bfloat16() else "slower than float32"
    yield {"what": "bfloat16 on the CPU", "value": gain}
    yield {"what": "GPUs", "value": ", ".join(gpus + ["mps"] * torch.backends.mps.is_available()) or "none"}
