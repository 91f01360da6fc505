"""Facts for the verbs ``ls``, ``audit`` and ``doctor``: typed rows, numbers in plain units."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from glip_adapt.adapters import ADAPTERS, build_adapter
from glip_adapt.core.captions import Caption
from glip_adapt.core.structures import SizeHW, Tokens
from glip_adapt.data.glyphs13 import rendered_datasets
from glip_adapt.data.odinw import known_datasets
from glip_adapt.engine.memory import MemoryEstimate, estimate_memory
from glip_adapt.trunks.catalogue import TRUNKS, random_trunk, trunk_spec
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.tokenizer import Tokenizer
from glip_adapt.trunks.weights import hub_cache

COUNTED_ON = "glip-t"  # the trunk on which the numbers of a method are counted
SPLITS = ("train", "val", "test")
PACKAGES = ("glip-adapt", "torch", "torchvision", "timm", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class TrunkRow:
    """A trunk: its parameters as a number, and whether it fuses image and text before the head."""

    name: str
    purpose: str
    parameters: int
    deep_fusion: bool
    data: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """A known dataset: how many classes it has, and how many images each split has, None if that is not known."""

    name: str
    short_name: str
    classes: int
    images: Mapping[str, int | None]
    licence: str


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A method: ``trained`` numbers on ``COUNTED_ON``, or None where ``counted`` says what they depend on."""

    name: str
    purpose: str
    cost: str
    trained: int | None
    counted: str


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class in a caption: characters of its name (start, end), and the tokens and word pieces that it owns."""

    label: int
    name: str
    span: tuple[int, int]
    tokens: tuple[int, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Estimates of a training step by a method, without and with ``recompute``."""

    method: str
    plain: MemoryEstimate
    recomputed: MemoryEstimate


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Software and hardware of this machine; GPUs are pairs of name and bytes."""

    python: str
    packages: Mapping[str, str]
    platform: str
    threads: int
    memory_bytes: int
    gpus: tuple[tuple[str, int], ...]
    has_mps: bool
    free_disk_bytes: int
    hub_cache: Path


def trunks() -> list[TrunkRow]:
    """Return one row per trunk."""
    rows = []
    for name, spec in TRUNKS.items():
        network = _without_weights(name)
        rows.append(
            TrunkRow(
                name=name,
                purpose=spec.purpose,
                parameters=sum(p.numel() for p in network.parameters()),
                deep_fusion=bool(network.seams.linear.get("fusion")),
                data=spec.data,
                licence=spec.licence,
            )
        )
    return rows


def datasets() -> list[DatasetRow]:
    """Return one row per known dataset, first the public ones, then the synthetic ones."""
    public = [
        DatasetRow(
            name=spec.official_name,
            short_name=spec.short_name,
            classes=len(spec.classes),
            images={name: split.images for name, split in spec.splits.items() if name in SPLITS},
            licence=spec.licence,
        )
        for spec in known_datasets()
    ]
    rendered = [
        DatasetRow(
            name=name,
            short_name="synthetic",
            classes=len(spec.classes),
            images=dict(zip(SPLITS, spec.images, strict=True)),
            licence="rendered from the DejaVu and STIX fonts",
        )
        for name, spec in rendered_datasets().items()
    ]
    return public + rendered


def methods() -> list[MethodRow]:
    """Return one row per method."""
    network = _without_weights(COUNTED_ON).requires_grad_(False)
    return [
        MethodRow(
            name=name,
            purpose=adapter.purpose,
            cost=adapter.cost,
            trained=None if adapter.counted else _owned_numbers(name, copy.deepcopy(network)),
            counted=adapter.counted,
        )
        for name, adapter in ADAPTERS.items()
    ]


def audit(caption: Caption, tokenizer: Tokenizer) -> list[ClassRow]:
    """Return one row per class: the place of its name in the caption, and the tokens that it owns."""
    tokens = tokenizer.encode(caption)
    words = tokenizer.words(tokens)
    owned = [row.nonzero().flatten().tolist() for row in tokens.token_map[0]]
    return [
        ClassRow(label=label, name=name, span=span, tokens=tuple(mine), words=tuple(words[i] for i in mine))
        for label, (name, span, mine) in enumerate(zip(caption.names, caption.spans, owned, strict=True))
    ]


def memory(trunk: str, size_hw: SizeHW) -> list[MemoryRow]:
    """Return one row per method: the memory of a training step on an image of ``size_hw`` pixels."""
    stand_in = random_trunk(trunk)  # memory does not depend on the weights
    return [
        MemoryRow(
            method=name,
            plain=estimate_memory(stand_in, name, size_hw),
            recomputed=estimate_memory(stand_in, name, size_hw, recompute=True),
        )
        for name in ADAPTERS
    ]


def machine() -> Machine:
    """Return the facts of this machine."""
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Machine(
        python=platform.python_version(),
        packages={package: importlib.metadata.version(package) for package in PACKAGES},
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=tuple((gpu.name, gpu.total_memory) for gpu in properties),
        has_mps=torch.backends.mps.is_available(),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        hub_cache=hub_cache(),
    )


def _without_weights(trunk: str) -> Network:
    """Return the network of a trunk on the meta device, which takes no memory."""
    spec = trunk_spec(trunk)
    with torch.device("meta"):
        return spec.family.build(spec.config)


def _owned_numbers(method: str, network: Network) -> int:
    """Return how many numbers a method owns, whatever the caption; ``network`` is changed."""
    adapter = build_adapter(method, trunk_spec(COUNTED_ON).settings.get(method, {}))
    nothing = torch.empty(1, 0)
    adapter.insert(network, Tokens(nothing, nothing.bool(), nothing[None].bool()))
    state = network.state_dict()
    return sum(state[key].numel() for key in adapter.owned(network))
