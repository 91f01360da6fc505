"""Trunks by name: loading, with checks down to the last tensor. ``trunks/released.py`` holds the rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glip_adapt.core.downloads import cached, hub_is_offline
from glip_adapt.core.memory import total_bytes
from glip_adapt.core.plain_text import excerpt
from glip_adapt.core.renamed import renamed
from glip_adapt.trunks.family import Weights
from glip_adapt.trunks.matching import listed
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.released import ASSETS, DEFAULT, PACKAGED, TRUNKS, TrunkSpec, trunk_spec
from glip_adapt.trunks.tokenizer import HUB_VOCABULARY, Tokenizer
from glip_adapt.trunks.weights import fetch, save_tensors, weights_checksum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trunk:
    """A pretrained detector with everything that belongs to it.

    Attributes:
        name: one of ``TRUNKS``.
        network: frozen and in eval mode; adapters work on copies that share its tensors.
        tokenizer: of its text encoder.
        checksum: SHA-256 over all weights, the same for every file with these weights.
        compiled: whether the networks of adapted models are compiled by ``torch.compile``.
    """

    name: str
    network: Network
    tokenizer: Tokenizer
    checksum: str
    compiled: bool = False

    if not TYPE_CHECKING:
        __getattr__ = renamed(glip="trunk.network")

    @property
    def spec(self) -> TrunkSpec:
        """The row of the catalogue."""
        return trunk_spec(self.name)


def best_trunk(device: torch.device | str | None = None) -> tuple[str, str]:
    """Return the trunk to take where the user names none, and one sentence why; downloads nothing.

    It is the most accurate one that fits into memory with its weights in the Hub's cache, else glip-t, else glip-nano.
    """
    room_gb = min(total_bytes(), total_bytes(choose_device(device))) / 1e9
    for name, spec in reversed(TRUNKS.items()):
        usable = spec.public_file and not spec.closed_set and spec.memory_gb <= room_gb
        if usable and cached(spec.repository, str(spec.public_file)):
            return name, f"{name} is the most accurate detector whose weights are on this machine."
    if TRUNKS[DEFAULT].memory_gb > room_gb:
        return PACKAGED, f"{DEFAULT} does not fit into the {room_gb:.1f} GB of memory."
    if hub_is_offline():
        return PACKAGED, "No other weights are on this machine, and HF_HUB_OFFLINE is set."
    return DEFAULT, f"{DEFAULT} is for photographs; its weights are downloaded once."


def load_trunk(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
) -> Trunk:
    """Return a trunk with its weights and tokenizer, ``load_trunk("glip-t")``.

    A prompt that a public file holds beside the weights is left out, with a warning that says how to import it.

    Args:
        name: one of ``TRUNKS``.
        checkpoint: public ``.pth`` or safetensors file, or the folder that ``hf download`` makes; without it the public
            file is fetched from the Hub and kept in its cache. Weights of the nano trunks come with the package;
            those of dyhead-nano are random, and always alike.
        vocabulary: ``vocab.txt`` of bert-base-uncased; without it the one in the folder ``checkpoint``, else fetched
            from the Hub.
        device: where the network goes; by default the GPU if there is one.
        compile: whether adapted models run compiled: faster on a GPU, after minutes of compilation at the first step
            and again at a second size of images; the last bits of results differ.

    Raises:
        ValueError: if the name is unknown, or there is no such device.
        FileNotFoundError: if a file is missing and the Hub cannot be reached.
        CheckpointError: if the file is not a checkpoint of this trunk.
    """
    trunk, prompt = load_trunk_and_prompt(name, checkpoint=checkpoint, vocabulary=vocabulary, device=device)
    if prompt is not None:
        _warn_of_prompt(checkpoint or trunk.spec.public_file, name)
    return replace(trunk, compiled=compile)


def load_trunk_and_prompt(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: torch.device | str | None = None,
) -> tuple[Trunk, Tensor | None]:
    """Return a trunk as ``load_trunk`` does, and the prompt table of its file, (positions, D), if one was tuned."""
    spec = trunk_spec(name)
    device = choose_device(device)
    if checkpoint is not None:  # looked at before anything is fetched
        vocabulary = vocabulary or _vocabulary_in(Path(checkpoint))
        checkpoint = checkpoint_file(Path(checkpoint), name)
    tokenizer = load_tokenizer(name, vocabulary)
    if checkpoint is None and spec.starts_random:
        network = spec.family.drawn(spec.config).requires_grad_(False).to(device)
        return Trunk(name, network, tokenizer, weights_checksum(network)), None
    if checkpoint is None and spec.public_file is not None:
        checkpoint = fetch(spec.repository, spec.public_file, option="--checkpoint")
    checkpoint = Path(checkpoint or ASSETS / f"{name}.safetensors")
    from accelerate import init_empty_weights

    # To draw weights that the file replaces takes seconds.
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        network = spec.family.build(spec.config)
    weights = read_checkpoint(checkpoint, network, name)
    # A copy has the alignment of any new tensor, on which the last bits of products may depend; a mapped file has not.
    network.load_state_dict({key: tensor.clone() for key, tensor in weights.state.items()}, assign=True)
    return Trunk(name, network.requires_grad_(False).to(device), tokenizer, weights_checksum(network)), weights.prompt


def choose_device(device: torch.device | str | None) -> torch.device:
    """Return a device: the one that is asked for, or the GPU if there is one, else the CPU.

    Raises:
        ValueError: if torch knows no such device, or there is no GPU here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"Unknown device {device!r}. Use cpu, cuda, mps, or one GPU of several, such as cuda:1."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"No GPU for device {str(device)!r}: torch {torch.__version__} sees none here. Use cpu.")
    return chosen


def random_trunk(name: str, device: torch.device | str = "cpu", seed: int = 0) -> Trunk:
    """Return a trunk of random weights and a made-up vocabulary, to measure time and memory without files.

    Raises:
        ValueError: if the name is unknown.
    """
    spec = trunk_spec(name)
    network = spec.family.drawn(spec.config, seed).requires_grad_(False).to(device)
    return Trunk(name, network, spec.family.made_up_tokenizer(spec.config), checksum=f"random {name} {seed}")


def load_tokenizer(name: str, vocabulary: str | Path | None = None) -> Tokenizer:
    """Return the tokenizer of a trunk: from a file, from the package (the nano trunks), or from the Hub.

    Raises:
        FileNotFoundError: if the file is missing, or the Hub cannot be reached.
        ValueError: if the vocabulary has another size than the text encoder.
    """
    spec = trunk_spec(name)
    if vocabulary is None and spec.public_file is None:
        vocabulary = ASSETS / "glip-nano-vocab.txt"
    return spec.family.tokenizer(spec.config, None if vocabulary is None else Path(vocabulary))


def read_checkpoint(path: Path, network: Network, name: str) -> Weights:
    """Return the weights of a trunk, in float32, from a public or one of our own files.

    Entries that the network does not know are left out, with one warning that names them.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is unreadable, holds more than data, or lacks weights of ``network``: one error lists
            every entry that is missing, of the wrong shape or type, not finite, or needed by another trunk only.
    """
    family = trunk_spec(name).family
    configs = {other: spec.config for other, spec in TRUNKS.items() if spec.family is family}
    return family.read(checkpoint_file(path, name), network, name, configs, _how_to_get(name))


def checkpoint_file(path: Path, name: str) -> Path:
    """Return the file with the weights of a trunk: ``path`` itself, or its public file in the folder ``path``.

    Raises:
        FileNotFoundError: if there is no such file; names what lies in the folder.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"No checkpoint at {path}. {_how_to_get(name)}")
    public_file = trunk_spec(name).public_file or f"{name}.safetensors"
    if not (path / public_file).is_file():
        here = listed(sorted(excerpt(entry.name) for entry in path.iterdir()), ", ") or "nothing"
        raise FileNotFoundError(f"Expected {public_file} in {path}, found {here}. {_how_to_get(name)}")
    return path / public_file


def _vocabulary_in(checkpoint: Path) -> Path | None:
    """Return the vocabulary beside the weights, if ``checkpoint`` is a folder that has one."""
    vocabulary = checkpoint / HUB_VOCABULARY[1]
    return vocabulary if vocabulary.is_file() else None


def convert(source: str | Path, target: str | Path, name: str) -> str:
    """Write the checkpoint ``source`` of trunk ``name`` as safetensors with our names; return its checksum.

    A prompt that it holds beside the weights is left out, with a warning that says how to import it.

    Raises:
        FileNotFoundError, CheckpointError: as ``read_checkpoint``.
        ValueError: if ``target`` does not end in .safetensors.
    """
    target, spec = Path(target), trunk_spec(name)
    if target.suffix != ".safetensors":
        raise ValueError(f"The converted file should end in .safetensors, got {target.name}.")
    network = spec.family.build(spec.config)
    weights = read_checkpoint(Path(source), network, name)
    if weights.prompt is not None:
        _warn_of_prompt(source, name)
    network.load_state_dict(weights.state)
    checksum = weights_checksum(network)
    save_tensors(network.state_dict(), target, {"trunk": name, "checksum": checksum})
    return checksum


def _warn_of_prompt(checkpoint: str | Path | None, name: str) -> None:
    logger.warning(
        "%s holds a tuned prompt, which is no part of the trunk and was left out. Import it as an adapter, for the "
        'classes that it was trained for: glip-adapt convert %s FOLDER --trunk %s --classes "NAME, NAME"',
        *(checkpoint, checkpoint, name),
    )


def _how_to_get(name: str) -> str:
    spec = trunk_spec(name)
    if spec.starts_random:
        return f"{name} starts from random weights; leave the checkpoint out."
    if spec.public_file is None:
        return f"The weights of {name} come with the package; leave the checkpoint out."
    return f"The public file of {name} is {spec.public_file} in the Hub repository {spec.repository}."
