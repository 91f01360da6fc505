"""Save and load models: one JSON and one safetensors file, replaced together and read with checks.

The description holds the checksum of the tensors. A new pair is written into a staging folder. Moving its description
into place replaces the old model; the next call moves the tensors if the process was killed before.

A folder may come from anywhere. Neither format can hold code. Files are read only if their size fits. Tensors are
returned only if checksum, names, shapes and types are those expected, and all numbers are finite.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glip_adapt.core.captions import UNPRINTABLE, ClassPrompt
from glip_adapt.core.config import from_mapping, to_mapping
from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.files import clear_partials, file_sha256, flush_to_disk, locked, written_whole
from glip_adapt.trunks.weights import save_tensors

FORMAT_VERSIONS = (2, 3)  # that are read; 1 had no sha256, 2 no thresholds, the last one is written
DESCRIPTION_FILE = "adapter.json"
TENSORS_FILE = "adapter.safetensors"
BAKED_DESCRIPTION_FILE = "baked.json"
BAKED_TENSORS_FILE = "baked.safetensors"
PAIRS = {DESCRIPTION_FILE: TENSORS_FILE, BAKED_DESCRIPTION_FILE: BAKED_TENSORS_FILE}
STAGING = ".next"  # folder of a pair that is about to replace the one beside it
MAX_JSON_BYTES = 2**20  # thousands of classes; nested as deep as it may be, it cannot exhaust memory
MAX_HEADER_BYTES = 2**20  # of a safetensors file: names and shapes of thousands of tensors

T = TypeVar("T")


class AdapterMismatchError(GlipAdaptError, ValueError):
    """A saved adapter is damaged, or belongs to another trunk, caption or class list."""


@dataclass(frozen=True, kw_only=True)
class TrunkIdentity:
    """Name and checksum of a trunk."""

    name: str
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of ``adapter.json``."""

    format_version: int = FORMAT_VERSIONS[-1]
    method: str
    config: Mapping[str, Any]
    "the adapter's own settings"
    trunk: TrunkIdentity
    classes: tuple[ClassPrompt, ...]
    "in label order"
    trained_parameters: int
    sha256: str
    "of adapter.safetensors"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    "class name → lowest score of a box to show; empty if none were chosen"

    def __post_init__(self) -> None:
        check_thresholds(self.thresholds, self.classes)


def check_thresholds(thresholds: Mapping[str, float], classes: Sequence[ClassPrompt]) -> None:
    """Raise ValueError unless there is a threshold in [0, 1] for every class, or none at all."""
    names = {prompt.name for prompt in classes}
    if thresholds and (thresholds.keys() != names or not all(0 <= value <= 1 for value in thresholds.values())):
        raise ValueError(f"thresholds are {dict(thresholds)}; expected a score from 0 to 1 for each class, or none.")


def read_description(folder: str | Path) -> Description:
    """Return the content of ``adapter.json``.

    Raises:
        FileNotFoundError: if the folder holds no adapter.
        AdapterMismatchError: if the file is too large, or not one that this version reads.
    """
    return read_file_description(Description, Path(folder) / DESCRIPTION_FILE, FORMAT_VERSIONS, "adapter")


@contextlib.contextmanager
def replaced_pair(folder: Path, description_file: str, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty folder for the two files of a model, which replace those in ``folder`` together at the end.

    After an error, a kill or a power cut ``folder`` holds the old model or the new one. Several writers take turns.

    Args:
        folder: made if need be; other files in it stay.
        description_file: which of ``PAIRS`` is written.
        overwrite: whether a model of the same kind may be replaced.

    Raises:
        FileExistsError: if there is a model, and ``overwrite`` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        settle(folder)
        if not overwrite and (folder / description_file).exists():
            raise FileExistsError(f"{folder} holds a saved model already. Name another folder, or allow overwriting.")
        staging = folder / STAGING
        staging.mkdir()
        try:
            yield staging
            for name in (PAIRS[description_file], description_file):
                flush_to_disk(staging / name)
            os.replace(staging / description_file, folder / description_file)
        finally:
            settle(folder)


def settle(folder: Path) -> None:
    """Finish a replacement in ``folder`` that a killed process began, or remove its staged files."""
    staging = folder / STAGING
    for description_file, tensors_file in PAIRS.items():
        staged = staging / tensors_file
        if staged.is_file() and file_sha256(staged) == _stated_sha256(folder / description_file):
            os.replace(staged, folder / tensors_file)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(staging)
    clear_partials(folder)


@contextlib.contextmanager
def settled(folder: Path) -> Iterator[None]:
    """Lock ``folder``, if there is one, while both files of a model are read."""
    if not folder.is_dir():
        yield
        return
    with locked(folder):
        with contextlib.suppress(PermissionError):  # a folder of somebody else is read as it is
            settle(folder)
        yield


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], *, overwrite: bool = True, **facts: Any) -> None:
    """Write both files of an adapter into ``folder``, which is made if need be.

    Args:
        folder: where they replace those of an earlier adapter.
        tensors: state dict name → owned tensor.
        overwrite: whether an adapter that is there may be replaced.
        facts: fields of ``Description`` but for the checksum.

    Raises:
        FileExistsError: if ``folder`` holds a baked model, which commands would go on using; or an adapter, and
            ``overwrite`` is false.
    """
    if (folder / BAKED_DESCRIPTION_FILE).exists():
        raise FileExistsError(f"{folder} holds a baked model. Name another folder for the adapter.")
    with replaced_pair(folder, DESCRIPTION_FILE, overwrite=overwrite) as staging:
        sha256 = write_tensors(tensors, staging / TENSORS_FILE, facts["method"])
        write_description(Description(**facts, sha256=sha256), staging / DESCRIPTION_FILE)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, method: str) -> str:
    """Write a safetensors file, never a half-written one, and return its SHA-256 as hex."""
    save_tensors(tensors, path, {"method": method})
    return file_sha256(path)


def write_description(description: Any, path: Path) -> None:
    """Write a dataclass as JSON, never a half-written file; write the files that it describes first."""
    content = json.dumps(to_mapping(description), indent=2, ensure_ascii=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_file_description(kind: type[T], path: Path, versions: Sequence[int], what: str) -> T:
    """Return the content of a description file as ``kind``.

    The dataclass ``kind`` has the fields of the content, whose format has one of the ``versions``. ``what`` names it in
    messages: "adapter", "baked model" or "training".

    Raises:
        FileNotFoundError: if there is no such file.
        AdapterMismatchError: if the file is too large, not a description, or of another format version.
    """
    if not path.is_file():  # a link to one will do, as in the Hub's cache
        raise FileNotFoundError(f"No {what} in {path.parent}: {path.name} is missing.")
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise AdapterMismatchError(f"{path} describes no {what}: it has more than {MAX_JSON_BYTES:,} bytes.")
    try:
        mapping = json.loads(content)
        odd = next((text for text in _texts(mapping) if UNPRINTABLE.search(text)), None)
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8, or nested to no end
        raise AdapterMismatchError(f"{path} describes no {what}: {error}.") from error
    if odd is not None:  # not for terminals, tokenizers and file names
        raise AdapterMismatchError(f"{path} describes no {what}: it holds control characters, in {odd!a:.60}.")
    if not isinstance(mapping, dict) or "format_version" not in mapping:
        raise AdapterMismatchError(f"{path} describes no {what}: it has no format_version.")
    if mapping["format_version"] not in versions:
        raise AdapterMismatchError(
            f"{path} has format version {mapping['format_version']!r:.20}; this version reads "
            f"{' and '.join(map(str, versions))}. Save it again."
        )
    try:
        return from_mapping(kind, mapping, str(path))
    except ValueError as error:
        raise AdapterMismatchError(f"{error} Save it again.") from error


def read_tensors(
    path: Path, expected: Mapping[str, Tensor], sha256: str, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    ``expected`` has by name a tensor of the shape and type that must come; it may be without storage, on ``meta``. The
    SHA-256 is that of the file, as its description says.

    Raises:
        FileNotFoundError: if there is no such file.
        AdapterMismatchError: if the file is larger than expected, damaged, or holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Save or fetch it again, with the description beside it.")
    allowed = sum(tensor.nbytes for tensor in expected.values()) + MAX_HEADER_BYTES
    if path.stat().st_size > allowed:
        raise AdapterMismatchError(
            f"{path} has {path.stat().st_size:,} bytes, more than the {allowed:,} that its {len(expected)} tensors "
            f"{_shapes(expected)} may take. Save it again."
        )
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise AdapterMismatchError(f"{path} is damaged ({error}). Save it again.") from error
    check_tensors(tensors, expected, str(path))
    if file_sha256(path) != sha256:
        raise AdapterMismatchError(
            f"{path} is damaged, or belongs to another description: its SHA-256 is not {sha256[:12]}…, as written "
            "beside it. Save it again."
        )
    if broken := [name for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()]:
        raise AdapterMismatchError(
            f"{path} holds numbers that are not finite, in {broken[0]}. Train the adapter again."
        )
    # Each in memory of its own: in the middle of a buffer, at other addresses, some kernels add up in another order.
    return {name: tensors.pop(name).clone() for name in list(tensors)}


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise AdapterMismatchError, naming both sides, if names, shapes or types differ from those expected."""
    came, wanted = ({name: (x.shape, x.dtype) for name, x in given.items()} for given in (tensors, expected))
    if came != wanted:
        raise AdapterMismatchError(
            f"{what}: expected {len(expected)} tensors {_shapes(expected)}, but {len(tensors)} came: "
            f"{_shapes(tensors)}. Use the trunk, method and classes that it was saved with."
        )


def _stated_sha256(description: Path) -> str | None:
    """Return the checksum of the tensors that a description states, if it can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(description.read_bytes())
        return content.get("sha256") if isinstance(content, dict) else None
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield all keys and strings of parsed JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    first = ", ".join(f"{name} {tuple(x.shape)} {str(x.dtype)[6:]}" for name, x in list(tensors.items())[:3])
    return f"({first}{', …' if len(tensors) > 3 else ''})"
