"""Weights on disk and on the Hub: fetch, save, and tell apart by checksum."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from glip_adapt.core.downloads import DamagedDownloadError, DownloadError, cached, describe, download, hub_endpoint
from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.files import written_whole
from glip_adapt.trunks.checkpoint_files import CheckpointError


class HubUnreachableError(GlipAdaptError, FileNotFoundError):
    """A file is not in the cache, and the Hub does not say anything about it: there is no network, for example."""


def fetch(repository: str, filename: str, *, option: str) -> str:
    """Return the local path of a Hub file, downloading it with progress into the Hub's cache if need be.

    The error names ``option``, the command-line option that names a local file instead.

    Raises:
        HubUnreachableError: if the file is not cached, and the Hub cannot be reached.
        FileNotFoundError: if its download breaks off; the received part is kept.
        CheckpointError: if its SHA-256 differs from the Hub's.
    """
    if (path := cached(repository, filename)) is not None:
        return str(path)
    file = None
    try:
        file = describe(repository, filename)
        return str(download(file))
    except DamagedDownloadError as error:
        raise CheckpointError(str(error)) from error
    except DownloadError as error:
        url = f"{hub_endpoint()}/{repository}/resolve/main/{filename}"
        kind = HubUnreachableError if file is None else FileNotFoundError
        raise kind(
            f"{repository}/{filename} is not in the cache and could not be fetched: {error} By hand: fetch {url} on a "
            f"machine with a network, then name the file with {option}."
        ) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, never a half-written one.

    Raises:
        OSError: if it cannot be written, on a full disk for example; an existing file is kept.
    """
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with written_whole(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, dict(metadata))
        except SafetensorError as error:  # of the system, in words only
            number = re.search(r"os error (\d+)", str(error))
            reason = os.strerror(int(number[1])) if number else str(error)
            raise OSError(f"{path} could not be written ({reason}). Make room, or name another place.") from error
        temporary.chmod(mode)  # safetensors makes a file of its own, which nobody else may read


def weights_checksum(network: nn.Module) -> str:
    """Return the SHA-256 over names and float32 values of the state dict, in name order, as hex."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
