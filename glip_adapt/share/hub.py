"""Push adapters to the Hub with a card, and fetch them from it.

Both formats, JSON and safetensors, hold data only: no fetched file can run code.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi

from glip_adapt.adapters import storage
from glip_adapt.adapters.storage import DESCRIPTION_FILE, TENSORS_FILE, AdapterMismatchError, Description
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.downloads import DownloadError, describe, download, hub_endpoint
from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.files import file_sha256
from glip_adapt.core.retries import advice, reason
from glip_adapt.data.images import load_rgb
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.load import load_adapter
from glip_adapt.share.card import PICTURE_FILE, TrainingFacts, build_card, read_facts
from glip_adapt.trunks.catalogue import Trunk

MAX_TENSORS_BYTES = 4 * 2**30  # twice the size of the largest trunk
_BYTES_PER_NUMBER = 8  # at most, of any type
_PICTURE_SIDE = 1280


class HubError(GlipAdaptError, RuntimeError):
    """An adapter could not be sent to the Hub, or fetched from it."""


def push_to_hub(
    model: AdaptedModel | str | Path,
    repository: str,
    *,
    facts: TrainingFacts | None = None,
    licence: str | None = None,
    picture: str | Path | None = None,
    private: bool = False,
) -> str:
    """Send an adapter to the Hub with a card that describes it; return the address of the repository.

    Makes the repository if there is none. Writes ``adapter.safetensors``, ``adapter.json``, ``README.md``, and
    ``picture.png`` if a picture is given.

    Args:
        model: an adapter, or the folder that one was saved in.
        repository: ``"owner/name"``.
        facts: how it was trained; by default those of ``training.json`` in the folder, if there is one.
        licence: of the adapter, in the Hub's short form, ``"mit"`` for example.
        picture: detections to show on the card; sent as PNG without the file's own metadata, at most 1280 pixels wide.
        private: whether a new repository is hidden.

    Raises:
        FileNotFoundError: if the folder holds no adapter, or there is no picture.
        AdapterMismatchError: if the files in the folder do not belong together.
        ValueError: if the picture cannot be read, or a metric has the name of another row of the card.
        HubError: if the Hub cannot be reached or refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(model, str | Path):
            folder = Path(model)
        else:
            folder = Path(scratch)
            model.save(folder)
        description = _check_saved(folder)
        facts = facts or read_facts(folder)
        card = build_card(repository, description, facts, licence=licence, has_picture=picture is not None)
        content: dict[str, str | bytes] = {
            TENSORS_FILE: str(folder / TENSORS_FILE),
            DESCRIPTION_FILE: str(folder / DESCRIPTION_FILE),
            "README.md": card.encode(),
        }
        if picture is not None:
            content[PICTURE_FILE] = _shown(Path(picture))
        try:
            api = HfApi(endpoint=hub_endpoint())
            api.create_repo(repository, exist_ok=True, private=private)
            api.create_commit(
                repository,
                [CommitOperationAdd(path, source) for path, source in content.items()],
                commit_message=f"{description.method} adapter for {description.trunk.name}",
            )
        except Exception as error:  # the client raises OS, HTTP, value and its own errors alike
            raise HubError(f"{repository} could not be written ({reason(error)}). {advice(error)}") from error
    return f"{hub_endpoint()}/{repository}"


def from_hub(
    repository: str,
    trunk: Trunk | None = None,
    *,
    revision: str = "main",
    classes: Sequence[str | ClassPrompt] | None = None,
    device: torch.device | str | None = None,
) -> AdaptedModel:
    """Return an adapter from the Hub on its trunk: ``from_hub("me/raccoons").predict("photo.jpg")``.

    Args:
        repository: ``"owner/name"``.
        trunk: the one that it was trained on; by default it is loaded by the name in the file.
        revision: branch, tag or commit.
        classes: if given, must be those that it was trained for.
        device: where a trunk goes that is loaded here; by default the GPU if there is one.

    Raises:
        HubError, AdapterMismatchError: as ``download_adapter``.
        AdapterMismatchError: also if the adapter belongs to another trunk, other weights or another class list.
    """
    if isinstance(repository, Trunk):
        raise TypeError("from_hub(trunk, repository) is now from_hub(repository, trunk=trunk); trunk may be left out.")
    return load_adapter(download_adapter(repository, revision), trunk=trunk, classes=classes, device=device)


def download_adapter(repository: str, revision: str = "main") -> Path:
    """Return the folder in the Hub's cache that holds ``adapter.json`` and ``adapter.safetensors`` of a repository.

    Sizes are known before anything is fetched: the tensors may be no larger than the description states.

    Raises:
        HubError: if the Hub cannot be reached or does not have them.
        AdapterMismatchError: if a file is too large, or the two do not belong together.
    """
    path, commit = _download(repository, DESCRIPTION_FILE, revision, storage.MAX_JSON_BYTES)
    allowed = storage.MAX_HEADER_BYTES + _BYTES_PER_NUMBER * storage.read_description(path.parent).trained_parameters
    _download(repository, TENSORS_FILE, commit, min(allowed, MAX_TENSORS_BYTES))
    _check_saved(path.parent)
    return path.parent


def pull(repository: str, folder: str | Path, revision: str = "main") -> Description:
    """Copy an adapter from the Hub into ``folder``; return its description.

    Raises:
        HubError, AdapterMismatchError: as ``download_adapter``.
        FileExistsError: if ``folder`` holds an adapter or a baked model already.
    """
    folder = Path(folder)
    for name, kind in ((DESCRIPTION_FILE, "an adapter"), (storage.BAKED_DESCRIPTION_FILE, "a baked model")):
        if (folder / name).exists():
            raise FileExistsError(f"{folder} holds {kind} already. Name another folder, or remove it.")
    source = download_adapter(repository, revision)
    with storage.replaced_pair(folder, DESCRIPTION_FILE, overwrite=False) as staging:
        for name in (TENSORS_FILE, DESCRIPTION_FILE):
            shutil.copyfile(source / name, staging / name)
    return storage.read_description(folder)


def _download(repository: str, name: str, revision: str, most_bytes: int) -> tuple[Path, str]:
    """Return the path of a file in the Hub's cache and its commit, after checking its size."""
    try:
        file = describe(repository, name, revision).pinned()
        if file.size_bytes > most_bytes:
            raise AdapterMismatchError(
                f"{name} of {repository} has {file.size_bytes:,} bytes, more than the {most_bytes:,} that it may take. "
                "It was not fetched."
            )
        return download(file), file.commit
    except DownloadError as error:
        raise HubError(str(error)) from error


def _check_saved(folder: Path) -> Description:
    """Return the description of a saved adapter, after checking its tensors."""
    description = storage.read_description(folder)
    path = folder / TENSORS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"No adapter in {folder}: {TENSORS_FILE} is missing. Save one with model.save(folder).")
    found = file_sha256(path)
    if found != description.sha256:
        raise AdapterMismatchError(
            f"{path} is damaged, or belongs to another description: its SHA-256 is {found[:12]}…, expected "
            f"{description.sha256[:12]}…. Train and save the adapter again."
        )
    return description


def _shown(path: Path) -> bytes:
    """Return a picture as PNG of at most 1280 pixels a side, without metadata such as camera and place."""
    picture = load_rgb(path)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    picture.info.clear()
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
