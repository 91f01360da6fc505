"""The adaptation methods, side by side: name → adapter, whose fields are its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glip_adapt.adapters.base import AdaptedGlip, Adapter, read_description, restore
from glip_adapt.adapters.context import Context
from glip_adapt.adapters.full import PUBLISHED_FROZEN, Full, TextEncoderTuning
from glip_adapt.adapters.linear_probe import LinearProbe
from glip_adapt.adapters.lora import Lora
from glip_adapt.adapters.prompt import Prompt
from glip_adapt.adapters.zero_shot import ZeroShot
from glip_adapt.core import config
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.trunks.catalogue import Trunk, trunk_spec
from glip_adapt.trunks.glip.build import SwinConfig

ADAPTERS: dict[str, type[Any]] = {
    "zero_shot": ZeroShot,
    "prompt": Prompt,
    "context": Context,
    "linear_probe": LinearProbe,
    "lora": Lora,
    "full": Full,
    "text_encoder": TextEncoderTuning,
}


def attach(
    trunk: Trunk, method: str, *, classes: Sequence[str | ClassPrompt], settings: Mapping[str, Any] | None = None
) -> AdaptedGlip:
    """Return a model that adapts ``trunk`` by ``method``.

    The trunk stays untouched, and until the model is trained its outputs are those of the trunk for ``model.classes``,
    bit for bit.

    Args:
        trunk: from ``load_trunk``.
        method: one of ``ADAPTERS``.
        classes: what to detect, in label order; a name, or a prompt around a name. ``context`` puts its free tokens
            before each, so that ``model.classes`` are prompts.
        settings: fields of the adapter that differ from its defaults, and from ``default_settings``.

    Raises:
        ValueError: if the method or a setting is unknown, a class name is empty or maps to no token, the caption is too
            long, or the trunk lacks a tensor that the method asks for.
    """
    adapter = build_adapter(method, default_settings(trunk.name, method) | dict(settings or {}))
    return AdaptedGlip(trunk, adapter, _worded(adapter, classes))


def load_adapter(
    trunk: Trunk, folder: str | Path, *, classes: Sequence[str | ClassPrompt] | None = None
) -> AdaptedGlip:
    """Return the adapter saved in ``folder`` on its trunk.

    Args:
        trunk: the one that it was trained on.
        folder: holds ``adapter.safetensors`` and ``adapter.json``.
        classes: if given, must be those that it was trained for.

    Raises:
        FileNotFoundError: if there is no adapter in ``folder``.
        AdapterMismatchError: if it belongs to another trunk, other weights or another class list; names both.
        ValueError: if its method or a setting is unknown, or a setting is out of range.
    """
    description = read_description(folder)
    adapter = build_adapter(description.method, description.config)
    return restore(trunk, adapter, folder, None if classes is None else _worded(adapter, classes))


def default_settings(trunk: str, method: str) -> dict[str, Any]:
    """Return the settings of a method that the published recipe of a trunk changes: what ``full`` leaves frozen.

    Raises:
        ValueError: if there is no such trunk.
    """
    is_swin = isinstance(trunk_spec(trunk).config.backbone, SwinConfig)
    return {"frozen": PUBLISHED_FROZEN} if is_swin and method == Full.name else {}


def build_adapter(method: str, settings: Mapping[str, Any]) -> Adapter:
    """Return the adapter ``method`` with ``settings`` over its defaults."""
    if method not in ADAPTERS:
        raise config.unknown_name("method", method, ADAPTERS)
    return config.from_mapping(ADAPTERS[method], settings, f"settings of {method}")


def _worded(adapter: Adapter, classes: Sequence[str | ClassPrompt]) -> Sequence[str | ClassPrompt]:
    """Return the classes as ``adapter`` words them in the caption."""
    return adapter.worded(classes) if isinstance(adapter, Context) else classes
