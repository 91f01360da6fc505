"""Read checkpoint files as data only: no code of a file ever runs.

The public code stores a dict with the entry ``model`` beside optimizer, scheduler and the like (microsoft/GLIP,
maskrcnn_benchmark/utils/checkpoint.py), and after a validation also numpy scalars (engine/trainer.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.plain_text import excerpt


class CheckpointError(GlipAdaptError, ValueError):
    """A file does not hold the weights of the requested trunk."""


class Unread:
    """Stand-in for an object beside the weights, whose content is dropped."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# Types that a defaultdict may make, and types that Python pickles by name.
_DATA = (bool, bytes, dict, float, frozenset, int, list, range, slice, str, tuple)
# Names that a file may use beyond those torch allows, and their stand-ins. Nobody reads these values, so no numpy
# object is made from the bytes of a stranger.
STAND_INS = {
    "numpy.core.multiarray.scalar": Unread,
    "numpy._core.multiarray.scalar": Unread,  # as numpy 2 writes it
    "numpy.core.multiarray._reconstruct": Unread,
    "numpy._core.multiarray._reconstruct": Unread,
    "numpy.ndarray": Unread,
    "numpy.dtype": Unread,
    "collections.defaultdict": lambda *_: {},
    **dict.fromkeys((f"builtins.{kind.__name__}" for kind in _DATA), Unread),
}

_REFUSED = re.compile(r"GLOBAL (\S+)")  # in the words of torch


def read_entries(path: Path) -> dict[str, Any]:
    """Read the entries of a checkpoint by name; not all need be tensors.

    It is safetensors, or a file of torch.save: a dict of tensors, or a dict that holds one under ``model``.

    Raises:
        CheckpointError: if the file is damaged, holds objects other than data, or holds no tensors.
        PermissionError: if the file may not be read.
        IsADirectoryError: if the path is a folder.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # damaged bytes lead the readers to any error
        raise _refusal(path, error) from error
    model = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(model, dict) or not any(isinstance(value, Tensor) for value in model.values()):
        raise CheckpointError(
            f"{path} holds no dict of tensors under 'model', as public checkpoints of GLIP do, and is none itself."
        )
    return {str(name): value for name, value in model.items()}


def _refusal(path: Path, error: Exception) -> CheckpointError:
    named = _REFUSED.search(str(error)) if isinstance(error, UnpicklingError) else None
    if named:
        return CheckpointError(
            f"{path} holds other objects, which are never loaded: {excerpt(named[1])}, and that may run code. If you "
            "trust the file, save its weights alone, where it was made: "
            "torch.save({'model': torch.load(path, weights_only=False)['model']}, 'weights.pth')"
        )
    said = str(error).rpartition("WeightsUnpickler error: ")[2]  # torch puts advice before it, which is not ours
    reason = excerpt(f"{type(error).__name__}: {said}".splitlines()[0])
    return CheckpointError(
        f"{path} could not be read as a checkpoint of tensors only ({reason}). "
        "It is damaged, or it holds other objects, which are never loaded."
    )


def _is_zip(path: Path) -> bool:
    """Return whether torch.save wrote its current format, which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
