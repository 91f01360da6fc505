"""Match the entries of a checkpoint file with the weights of a network, and say what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glip_adapt.trunks.checkpoint_files import CheckpointError

Shape = tuple[int, ...]
MOST_LISTED = 20  # entries that one message names
LINE = "\n  "


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """Return the shape of each tensor of the state dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def is_float_tensor(value: Any) -> bool:
    """Return whether a value is a dense tensor of floats in memory."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_nested
        and not value.is_meta
    )


def misfit(key: str, value: Any, shape: Shape) -> str | None:
    """Return why a value cannot be the weights ``key``."""
    if value is None:
        return f"missing: {key} {shape}"
    if not is_float_tensor(value):
        return f"wrong type: {key} {kind(value)}, expected a tensor of floats"
    if tuple(value.shape) != shape:
        return f"wrong shape: {key} {tuple(value.shape)}, expected {shape}"
    if not all(extreme.isfinite() for extreme in value.float().aminmax()):
        return f"not finite: {key} holds NaN or infinity"
    return None


def kind(value: Any) -> str:
    """Return the shape of a tensor of floats, or the type of anything else, as text."""
    if is_float_tensor(value):
        return str(tuple(value.shape))
    return f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__


def fits(entries: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
    """Return whether entries hold a tensor of floats of every shape, by name."""
    return shapes.items() <= {key: tuple(x.shape) for key, x in entries.items() if is_float_tensor(x)}.items()


def refusal(path: Path, name: str, problems: Sequence[str], alike: Sequence[str], how_to_get: str) -> CheckpointError:
    """Return the error for a file that is not a checkpoint of the trunk ``name``.

    Args:
        path: of the file.
        name: of the trunk.
        problems: one line for each entry that does not fit.
        alike: trunks whose weights the file holds.
        how_to_get: sentence for the user.
    """
    hint = f"Its entries are those of {' or '.join(alike)}: ask for that.\n" if alike and name not in alike else ""
    return CheckpointError(
        f"{path} is not a checkpoint of {name}: {len(problems)} entries do not fit."
        f"{LINE}{listed(problems, LINE)}\n{hint}{how_to_get}"
    )


def listed(parts: Sequence[str], separator: str) -> str:
    """Return the first parts in a row, and how many more there are."""
    more = len(parts) - MOST_LISTED
    return separator.join([*parts[:MOST_LISTED], *([f"… and {more} more"] if more > 0 else [])])
