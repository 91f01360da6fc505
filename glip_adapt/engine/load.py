"""Saved adapters → adapted models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from glip_adapt.adapters import build_adapter, storage
from glip_adapt.adapters.storage import AdapterMismatchError
from glip_adapt.core.captions import ClassPrompt, as_prompts
from glip_adapt.engine.adapted import AdaptedModel, AdaptedTrunk
from glip_adapt.trunks.catalogue import Trunk, load_trunk


def load_adapter(
    folder: str | Path,
    trunk: Trunk | None = None,
    *,
    classes: Sequence[str | ClassPrompt] | None = None,
    device: torch.device | str | None = None,
) -> AdaptedModel:
    """Return the adapter saved in ``folder`` on its trunk: ``load_adapter("adapters/photos").predict("a.jpg")``.

    Args:
        folder: holds ``adapter.safetensors`` and ``adapter.json``.
        trunk: the one that it was trained on; by default it is loaded by the name in the file.
        classes: if given, must be those that it was trained for.
        device: where a trunk goes that is loaded here; by default the GPU if there is one.

    Raises:
        FileNotFoundError: if there is no adapter in ``folder``.
        AdapterMismatchError: if it belongs to another trunk, other weights or another class list, or its file is
            damaged, too large, or not what ``adapter.json`` says.
        ValueError: if its method or a setting is unknown, or a setting is out of range.
    """
    if isinstance(folder, Trunk):
        raise TypeError("load_adapter(trunk, folder) is now load_adapter(folder, trunk=trunk); trunk may be left out.")
    folder = Path(folder)
    with storage.settled(folder):
        saved = storage.read_description(folder)
        adapter = build_adapter(saved.method, saved.config)
        trunk = trunk or load_trunk(saved.trunk.name, device=device)
        if saved.trunk != storage.TrunkIdentity(name=trunk.name, checksum=trunk.checksum):
            raise AdapterMismatchError(
                f"The adapter in {folder} was trained on {saved.trunk.name} with weights {saved.trunk.checksum[:12]}…, "
                f"but this trunk is {trunk.name} with weights {trunk.checksum[:12]}…. "
                "Load the trunk that it was trained on."
            )
        asked = saved.classes if classes is None else adapter.word(as_prompts(classes))
        model = AdaptedTrunk(trunk, adapter).for_prompts(asked)
        if asked != saved.classes:
            raise AdapterMismatchError(
                f"The adapter in {folder} was trained for the classes {_wording(saved.classes)}, but "
                f"{_wording(asked)} was asked for. Use the classes, order and prompts that it was trained with."
            )
        model.load_owned(storage.read_tensors(folder / storage.TENSORS_FILE, model.owned_tensors(), saved.sha256))
        model.thresholds = saved.thresholds
    return model


def _wording(prompts: Sequence[ClassPrompt]) -> str:
    return repr([f"{p.prefix}{p.name}{p.suffix}" for p in prompts])
