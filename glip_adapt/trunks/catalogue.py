"""Trunks by name: official checkpoint → our keys, from a file or the Hub, checked down to the last entry.

Public files (Hub repository GLIPModel/GLIP) are pickles of a dict with a ``model`` entry, read as data only
(``checkpoint_files.py``). Our own files are safetensors with our names.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from glip_adapt.core.config import describe_unknown
from glip_adapt.core.downloads import DamagedDownloadError, DownloadError, cached, describe, download, hub_endpoint
from glip_adapt.core.files import written_whole
from glip_adapt.core.plain_text import excerpt
from glip_adapt.trunks.checkpoint_files import CheckpointError, read_entries
from glip_adapt.trunks.glip.build import GLIP_L, GLIP_NANO, GLIP_NANO_A, GLIP_T, GLIP_T_A, GlipConfig, build_glip
from glip_adapt.trunks.glip.checkpoint_entries import match_entries, resembled
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.glip.text import SPECIAL_TOKENS, Tokenizer

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # what comes with the package
HUB_REPOSITORY = "GLIPModel/GLIP"
HUB_VOCABULARY = ("google-bert/bert-base-uncased", "vocab.txt")
MOST_LISTED = 20  # entries that one message names
LINE = "\n  "

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """Facts of one released detector.

    Attributes:
        config: sizes.
        public_file: file name in the Hub repository, or None where weights and vocabulary come with the package.
        data: pre-training data, as the public model zoo names it.
        short_side: of a picture while testing, in pixels.
        max_long_side: limit of the longer one.
        licence: of the weights.
    """

    config: GlipConfig
    public_file: str | None
    data: str
    short_side: int = 800
    max_long_side: int = 1333
    licence: str = "MIT"


TRUNKS: dict[str, TrunkSpec] = {
    "glip-nano": TrunkSpec(
        config=GLIP_NANO, public_file=None, data="rendered scenes (synthetic)", short_side=160, max_long_side=320
    ),
    "glip-nano-a": TrunkSpec(
        config=GLIP_NANO_A, public_file=None, data="rendered scenes (synthetic)", short_side=160, max_long_side=320
    ),
    "glip-t-a": TrunkSpec(config=GLIP_T_A, public_file="glip_a_tiny_o365.pth", data="O365"),
    "glip-t-b": TrunkSpec(config=GLIP_T, public_file="glip_tiny_model_o365.pth", data="O365"),
    "glip-t-c": TrunkSpec(config=GLIP_T, public_file="glip_tiny_model_o365_goldg.pth", data="O365, GoldG"),
    "glip-t": TrunkSpec(
        config=GLIP_T, public_file="glip_tiny_model_o365_goldg_cc_sbu.pth", data="O365, GoldG, CC3M, SBU"
    ),
    "glip-l": TrunkSpec(config=GLIP_L, public_file="glip_large_model.pth", data="FourODs, GoldG, CC3M+12M, SBU"),
}


@dataclass(frozen=True)
class Trunk:
    """A pretrained detector with what belongs to it.

    Attributes:
        name: one of ``TRUNKS``.
        glip: the network, frozen and in eval mode; adapters work on copies that share its tensors.
        tokenizer: of its text encoder.
        checksum: SHA-256 over all weights, whatever file they came from.
    """

    name: str
    glip: Glip
    tokenizer: Tokenizer
    checksum: str


def trunk_spec(name: str) -> TrunkSpec:
    """Return the facts of a trunk.

    Raises:
        ValueError: if the name is unknown; names the choices and the nearest.
    """
    if name not in TRUNKS:
        raise ValueError(f"Unknown trunk {describe_unknown(name, TRUNKS)}.")
    return TRUNKS[name]


def load_trunk(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Trunk:
    """Return a trunk with its weights and tokenizer.

    A prompt that a public file holds beside the weights is left out, with a warning that says how to import it.

    Args:
        name: one of ``TRUNKS``.
        checkpoint: public ``.pth`` or safetensors file; without it the public file is fetched from the Hub and kept
            in its cache. The weights of the nano trunks come with the package.
        vocabulary: ``vocab.txt`` of bert-base-uncased; without it, fetched from the Hub.
        device: where the network goes.

    Raises:
        ValueError: if the name is unknown, or there is no such device.
        FileNotFoundError: if a file is missing and the Hub cannot be reached.
        CheckpointError: if the file is not a checkpoint of this trunk.
    """
    trunk, table = load_trunk_and_table(name, checkpoint=checkpoint, vocabulary=vocabulary, device=device)
    if table is not None:
        _warn_of_prompt(checkpoint or trunk_spec(name).public_file, name)
    return trunk


def load_trunk_and_table(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Trunk, Tensor | None]:
    """Return a trunk as ``load_trunk`` does, and the prompt table of its file, (positions, D), if one was tuned."""
    spec = trunk_spec(name)
    check_device(device)
    tokenizer = load_tokenizer(name, vocabulary)
    if checkpoint is None and spec.public_file is not None:
        checkpoint = fetch(HUB_REPOSITORY, spec.public_file, option="--checkpoint")
    checkpoint = checkpoint or ASSETS / f"{name}.safetensors"
    _check_exists(Path(checkpoint), name)  # before the network is built, which takes seconds
    with torch.random.fork_rng(devices=[]):
        glip = build_glip(spec.config)
    weights, table = _read(Path(checkpoint), glip, name)
    glip.load_state_dict(weights)
    return Trunk(name, glip.requires_grad_(False).to(device), tokenizer, weights_checksum(glip)), table


def check_device(device: torch.device | str) -> None:
    """Raise ValueError if torch knows no such device, or there is no GPU here."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"Unknown device {device!r}. Use cpu, cuda, or one GPU of several, such as cuda:1.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"No GPU for device {str(device)!r}: torch {torch.__version__} sees none here. Use cpu.")


def random_trunk(name: str, device: torch.device | str = "cpu", seed: int = 0) -> Trunk:
    """Return a trunk of random weights and a made-up vocabulary: for measuring time and memory, which it shares.

    Raises:
        ValueError: if the name is unknown.
    """
    config = trunk_spec(name).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        glip = build_glip(config)
    words = [*SPECIAL_TOKENS, ".", *(f"w{i}" for i in range(config.text.vocabulary_size - len(SPECIAL_TOKENS) - 1))]
    return Trunk(name, glip.requires_grad_(False).to(device), Tokenizer(words), checksum=f"random {name} {seed}")


def load_tokenizer(name: str, vocabulary: str | Path | None = None) -> Tokenizer:
    """Return the tokenizer of a trunk: from a file, from the package (the nano trunks), or from the Hub.

    Raises:
        FileNotFoundError: if the file is missing, or the Hub cannot be reached.
        ValueError: if the vocabulary has another size than the text encoder.
    """
    spec = trunk_spec(name)
    if vocabulary is None and spec.public_file is None:
        vocabulary = ASSETS / "glip-nano-vocab.txt"
    tokenizer = Tokenizer.from_file(vocabulary or fetch(*HUB_VOCABULARY, option="--vocabulary"))
    if tokenizer.size != spec.config.text.vocabulary_size:
        raise ValueError(
            f"The vocabulary has {tokenizer.size} entries, the text encoder {spec.config.text.vocabulary_size}. "
            "Name the vocab.txt that the trunk was trained with."
        )
    return tokenizer


def read_checkpoint(path: Path, glip: Glip, name: str) -> dict[str, Tensor]:
    """Return the state dict of ``glip``, in float32, from a public or one of our own files.

    Entries that the network does not know are left out, with one warning that names them.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is unreadable, holds more than data, or lacks what ``glip`` needs: one error lists every
            entry that is missing, of the wrong shape or type, not finite, or needed by another trunk only.
    """
    weights, _ = _read(path, glip, name)
    return weights


def _read(path: Path, glip: Glip, name: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the state dict of ``glip``, and the prompt table if one was tuned."""
    trunk_spec(name)
    _check_exists(path, name)
    configs = {other: spec.config for other, spec in TRUNKS.items()}
    entries = read_entries(path)
    match = match_entries(entries, glip, configs[name], configs.values())
    if match.problems:
        alike = resembled(entries, configs)
        hint = f"Its entries are those of {' or '.join(alike)}: ask for that.\n" if alike and name not in alike else ""
        raise CheckpointError(
            f"{path} is not a checkpoint of {name}: {len(match.problems)} entries do not fit."
            f"{LINE}{_listed(match.problems, LINE)}\n{hint}{_how_to_get(name)}"
        )
    if match.unknown:
        names = _listed([excerpt(key) for key in match.unknown], ", ")
        logger.warning("%s: left out %d entries that %s does not have: %s.", path, len(match.unknown), name, names)
    return match.weights, match.table


def _listed(parts: Sequence[str], separator: str) -> str:
    """Return the first parts in a row, and how many more there are."""
    more = len(parts) - MOST_LISTED
    return separator.join([*parts[:MOST_LISTED], *([f"… and {more} more"] if more > 0 else [])])


def convert(source: str | Path, target: str | Path, name: str) -> str:
    """Write the checkpoint ``source`` of trunk ``name`` as safetensors with our names; return its checksum.

    A prompt that it holds beside the weights is left out, with a warning that says how to import it.

    Raises:
        FileNotFoundError, CheckpointError: as ``read_checkpoint``.
        ValueError: if ``target`` does not end in .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"The converted file should end in .safetensors, got {target.name}.")
    glip = build_glip(trunk_spec(name).config)
    weights, table = _read(Path(source), glip, name)
    if table is not None:
        _warn_of_prompt(source, name)
    glip.load_state_dict(weights)
    checksum = weights_checksum(glip)
    save_tensors(glip.state_dict(), target, {"trunk": name, "checksum": checksum})
    return checksum


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, never a half-written one.

    Raises:
        OSError: if it cannot be written, such as on a full disk; what was there before is kept.
    """
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with written_whole(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, dict(metadata))
        except SafetensorError as error:  # for whatever the system said
            number = re.search(r"os error (\d+)", str(error))
            reason = os.strerror(int(number[1])) if number else str(error)
            raise OSError(f"{path} could not be written ({reason}). Make room, or name another place.") from error
        temporary.chmod(mode)  # safetensors makes a file of its own, which nobody else may read


def weights_checksum(glip: Glip) -> str:
    """Return the SHA-256 over names and float32 values of the state dict, in name order, as hex."""
    digest = hashlib.sha256()
    for key, value in sorted(glip.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def fetch(repository: str, filename: str, *, option: str) -> str:
    """Return the local path of a Hub file, downloading it with progress into the Hub's cache if need be.

    Args:
        repository: Hub repository.
        filename: file in it.
        option: the command-line option that names a local file instead, for the error message.

    Raises:
        FileNotFoundError: if the file is neither cached nor reachable.
        CheckpointError: if its SHA-256 differs from the Hub's.
    """
    if (path := cached(repository, filename)) is not None:
        return str(path)
    try:
        return str(download(describe(repository, filename)))
    except DamagedDownloadError as error:
        raise CheckpointError(str(error)) from error
    except DownloadError as error:
        url = f"{hub_endpoint()}/{repository}/resolve/main/{filename}"
        raise FileNotFoundError(
            f"{filename} is not in the cache and could not be fetched: {error} By hand: fetch {url} on a machine with "
            f"a network, then name the file with {option}."
        ) from error


def _check_exists(path: Path, name: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}. {_how_to_get(name)}")


def hub_cache() -> Path:
    """Return the folder in which fetched files are kept."""
    return Path(constants.HF_HUB_CACHE)


def _warn_of_prompt(checkpoint: str | Path | None, name: str) -> None:
    logger.warning(
        "%s holds a tuned prompt, which is no part of the trunk and was left out. Import it as an adapter, for the "
        'classes that it was trained for: glip-adapt convert %s FOLDER --trunk %s --classes "NAME, NAME"',
        *(checkpoint, checkpoint, name),
    )


def _how_to_get(name: str) -> str:
    public_file = TRUNKS[name].public_file
    if public_file is None:
        return f"The weights of {name} come with the package; leave the checkpoint out."
    return f"The public file of {name} is {public_file} in the Hub repository {HUB_REPOSITORY}."
