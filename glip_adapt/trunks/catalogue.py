"""Trunks by name: one row per released detector, and loading with checks down to the last tensor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glip_adapt.core.config import unknown_name
from glip_adapt.core.downloads import cached
from glip_adapt.core.memory import total_bytes
from glip_adapt.core.renamed import renamed
from glip_adapt.core.settings import FitConfig, Shots, ViewConfig
from glip_adapt.trunks.glip.build import GLIP_L, GLIP_NANO, GLIP_NANO_A, GLIP_T, GLIP_T_A, GlipConfig
from glip_adapt.trunks.glip.family import GlipFamily
from glip_adapt.trunks.glip.network import PUBLISHED_FROZEN
from glip_adapt.trunks.protocol import Family, Network, Weights
from glip_adapt.trunks.recipes import NANO, PUBLISHED, Recipes
from glip_adapt.trunks.tokenizer import Tokenizer
from glip_adapt.trunks.weights import fetch, hub_is_offline, save_tensors, weights_checksum

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # weights and vocabulary of the nano trunks
HUB_REPOSITORY = "GLIPModel/GLIP"
_GLIP = GlipFamily()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """Facts of one released detector.

    Attributes:
        purpose: when to take it.
        family: builds the network and reads its files.
        config: sizes, as the family takes them.
        public_file: file name in ``repository``; None where weights and vocabulary come with the package.
        data: pre-training data, as the public model zoo names it.
        repository: on the Hub.
        licence: of the weights.
        view: how images are shown while testing.
        recipes: of training.
        settings: method → settings of its adapter that the published recipe of this trunk changes.
        threads: CPU threads of a benchmark run; None takes all of the machine.
        memory_gb: that loading it and detection in one image take, in 10⁹ bytes.
        download_gb: size of the public file in 10⁹ bytes, as far as it is known.
        minutes: that adapting it by trying methods may take, unless the caller says.
    """

    purpose: str
    family: Family
    config: Any
    public_file: str | None
    data: str
    repository: str = HUB_REPOSITORY
    licence: str = "MIT"
    view: ViewConfig = field(default_factory=ViewConfig)
    recipes: Recipes = PUBLISHED
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int | None = None
    memory_gb: float = 1
    download_gb: float | None = None
    minutes: float = 10


def _released(config: GlipConfig, public_file: str, data: str, purpose: str, **facts: float) -> TrunkSpec:
    """Return the row of a trunk that the authors of GLIP released; all have a Swin backbone."""
    row: dict[str, Any] = {"settings": {"full": {"frozen": PUBLISHED_FROZEN}}, "memory_gb": 3, **facts}
    return TrunkSpec(family=_GLIP, config=config, public_file=public_file, data=data, purpose=purpose, **row)


def _rendered(config: GlipConfig, purpose: str) -> TrunkSpec:
    """Return the row of a nano trunk, whose weights come with the package."""
    return TrunkSpec(
        family=_GLIP,
        config=config,
        public_file=None,
        data="rendered scenes (synthetic)",
        purpose=purpose,
        view=ViewConfig(short_side=160, max_long_side=320),
        recipes=NANO,
        minutes=2,
        threads=1,  # a second thread makes them slower; with one, their numbers are the same on any machine
    )


TRUNKS: dict[str, TrunkSpec] = {  # from the least to the most accurate
    "glip-nano": _rendered(GLIP_NANO, "to try things out; knows pictograms only"),
    "glip-nano-a": _rendered(GLIP_NANO_A, "to compare with glip-nano"),
    "glip-t-a": _released(GLIP_T_A, "glip_a_tiny_o365.pth", "O365", "to compare with glip-t-b"),
    "glip-t-b": _released(GLIP_T, "glip_tiny_model_o365.pth", "O365", "to compare pre-training data"),
    "glip-t-c": _released(GLIP_T, "glip_tiny_model_o365_goldg.pth", "O365, GoldG", "to compare pre-training data"),
    "glip-t": _released(
        *(GLIP_T, "glip_tiny_model_o365_goldg_cc_sbu.pth", "O365, GoldG, CC3M, SBU", "for photographs"), download_gb=3.7
    ),
    "glip-l": _released(
        *(GLIP_L, "glip_large_model.pth", "FourODs, GoldG, CC3M+12M, SBU", "for photographs: more accurate, slower"),
        memory_gb=5,
    ),
}
DEFAULT, PACKAGED = "glip-t", "glip-nano"  # without a choice: to download, and without a network


@dataclass(frozen=True)
class Trunk:
    """A pretrained detector with everything that belongs to it.

    Attributes:
        name: one of ``TRUNKS``.
        network: frozen and in eval mode; adapters work on copies that share its tensors.
        tokenizer: of its text encoder.
        checksum: SHA-256 over all weights, the same for every file with these weights.
    """

    name: str
    network: Network
    tokenizer: Tokenizer
    checksum: str

    if not TYPE_CHECKING:
        __getattr__ = renamed(glip="trunk.network")

    @property
    def spec(self) -> TrunkSpec:
        """The row of the catalogue."""
        return trunk_spec(self.name)


def trunk_spec(name: str) -> TrunkSpec:
    """Return the row of a trunk.

    Raises:
        ValueError: if the name is unknown; names the choices and the nearest.
    """
    if name not in TRUNKS:
        raise unknown_name("trunk", name, TRUNKS)
    return TRUNKS[name]


def best_trunk(device: torch.device | str | None = None) -> tuple[str, str]:
    """Return the trunk to take where the user names none, and one sentence why; downloads nothing.

    It is the most accurate one that fits into memory with its weights in the Hub's cache, else glip-t, else glip-nano.
    """
    room_gb = min(total_bytes(), total_bytes(choose_device(device))) / 1e9
    for name, spec in reversed(TRUNKS.items()):
        if spec.public_file and spec.memory_gb <= room_gb and cached(spec.repository, spec.public_file):
            return name, f"{name} is the most accurate detector whose weights are on this machine."
    if TRUNKS[DEFAULT].memory_gb > room_gb:
        return PACKAGED, f"{DEFAULT} does not fit into the {room_gb:.1f} GB of memory."
    if hub_is_offline():
        return PACKAGED, "No other weights are on this machine, and HF_HUB_OFFLINE is set."
    return DEFAULT, f"{DEFAULT} is for photographs; its weights are downloaded once."


def default_recipe(trunk: str, method: str, shots: Shots) -> FitConfig:
    """Return the recipe of a trunk for a method, both by name, and a number of shots per class.

    It is the published one, or for the nano trunks their own.

    Raises:
        ValueError: if there is no such trunk.
    """
    spec = trunk_spec(trunk)
    return spec.recipes.of(method, shots, spec.view)


def published_recipe(method: str, shots: Shots) -> FitConfig:
    """Return the recipe of the GLIP paper for a method and a number of shots per class."""
    return PUBLISHED.of(method, shots, ViewConfig())


def load_trunk(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: torch.device | str | None = None,
) -> Trunk:
    """Return a trunk with its weights and tokenizer, ``load_trunk("glip-t")``.

    A prompt that a public file holds beside the weights is left out, with a warning that says how to import it.

    Args:
        name: one of ``TRUNKS``.
        checkpoint: public ``.pth`` or safetensors file; without it the public file is fetched from the Hub and kept
            in its cache. The weights of the nano trunks come with the package.
        vocabulary: ``vocab.txt`` of bert-base-uncased; without it, fetched from the Hub.
        device: where the network goes; by default the GPU if there is one.

    Raises:
        ValueError: if the name is unknown, or there is no such device.
        FileNotFoundError: if a file is missing and the Hub cannot be reached.
        CheckpointError: if the file is not a checkpoint of this trunk.
    """
    trunk, prompt = load_trunk_and_prompt(name, checkpoint=checkpoint, vocabulary=vocabulary, device=device)
    if prompt is not None:
        _warn_of_prompt(checkpoint or trunk.spec.public_file, name)
    return trunk


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
    if checkpoint is not None:
        _check_exists(Path(checkpoint), name)  # before anything is fetched
    tokenizer = load_tokenizer(name, vocabulary)
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.family.build(spec.config).requires_grad_(False).to(device)
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
    _check_exists(path, name)
    family = trunk_spec(name).family
    configs = {other: spec.config for other, spec in TRUNKS.items() if spec.family is family}
    return family.read(path, network, name, configs, _how_to_get(name))


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


def _check_exists(path: Path, name: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}. {_how_to_get(name)}")


def _warn_of_prompt(checkpoint: str | Path | None, name: str) -> None:
    logger.warning(
        "%s holds a tuned prompt, which is no part of the trunk and was left out. Import it as an adapter, for the "
        'classes that it was trained for: glip-adapt convert %s FOLDER --trunk %s --classes "NAME, NAME"',
        *(checkpoint, checkpoint, name),
    )


def _how_to_get(name: str) -> str:
    spec = trunk_spec(name)
    if spec.public_file is None:
        return f"The weights of {name} come with the package; leave the checkpoint out."
    return f"The public file of {name} is {spec.public_file} in the Hub repository {spec.repository}."
