"""Adaptation methods by name; the fields of a method are its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glip_adapt.adapters.context import Context
from glip_adapt.adapters.exemplars import Exemplars
from glip_adapt.adapters.full import Full, TextEncoderTuning
from glip_adapt.adapters.linear_probe import LinearProbe
from glip_adapt.adapters.lora import Lora
from glip_adapt.adapters.prompt import Prompt
from glip_adapt.adapters.protocol import Adapter
from glip_adapt.adapters.zero_shot import ZeroShot
from glip_adapt.core.config import from_mapping, unknown_name
from glip_adapt.trunks.released import trunk_spec

ADAPTERS: dict[str, type[Adapter]] = {
    method.name: method for method in (ZeroShot, Exemplars, Prompt, Context, LinearProbe, Lora, Full, TextEncoderTuning)
}


def build_adapter(method: str, settings: Mapping[str, Any]) -> Adapter:
    """Return the adapter ``method`` with ``settings`` over its defaults; settings may have their old names.

    Raises:
        ValueError: if the method or a setting is unknown, or a setting is out of range.
    """
    if method not in ADAPTERS:
        raise unknown_name("method", method, ADAPTERS)
    kind = ADAPTERS[method]
    if isinstance(settings, Mapping):  # else from_mapping raises
        settings = {kind.renamed.get(name, name): value for name, value in settings.items()}
    return from_mapping(kind, settings, f"settings of {method}")


def takes(trunk: str, method: type[Adapter]) -> bool:
    """Say whether a trunk, by name, takes a method: one of a closed set takes none that works by text."""
    return not (trunk_spec(trunk).closed_set and method.needs_text)


def check_taken(trunk: str, method: type[Adapter]) -> None:
    """Check that a trunk, by name, takes a method.

    Raises:
        ValueError: if the method works by text, and the trunk reads none; names the methods that it takes.
    """
    if not takes(trunk, method):
        others = [name for name, kind in ADAPTERS.items() if takes(trunk, kind) and name != ZeroShot.name]
        raise ValueError(
            f"{trunk} reads no text and knows only the classes that it is trained on, so {method.name} has nothing to "
            f"work with. Use {' or '.join(others)}, or another trunk."
        )
