"""Tiny random detectors and a generated COCO folder: all that the default tests need."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import settings
from PIL import Image
from public_files import SMALL, VOCABULARY, add_trunk, public_state, save_public

from glip_adapt import cli
from glip_adapt.cli import terminal
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.encoder_config import SwinConfig
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_NANO, TextConfig
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.weights import weights_checksum

TINY = replace(
    GLIP_NANO,
    backbone="test_convnext",
    text=TextConfig(vocabulary_size=950, width=32, layers=1, heads=2, hidden_width=64, dropout=0.1),
    image_width=32,
    joint_width=64,
    joint_heads=2,
    fusion_dropout=0.1,
)
DINO = DinoConfig(
    backbone=SwinConfig(width=8, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=4, drop_path=0.1),
    # [CLS], [SEP] and the full stop of the vocabulary of glip-nano
    text=TextConfig(
        vocabulary_size=950, width=16, layers=2, heads=2, hidden_width=32, dropout=0.1, separators=(2, 3, 5)
    ),
    width=64,  # two channels a group, so that a map may be one cell
    encoder_layers=2,
    decoder_layers=2,
    heads=4,
    hidden_width=48,
    points=2,
    queries=15,
)
# Continuous integration draws the same examples each time and keeps none; elsewhere each run may find new ones.
settings.register_profile("ci", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if "CI" in os.environ else "local")

# Tiny tensors gain nothing from a second thread, and wait for it on a busy machine; here for fixtures of modules.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_collection_finish() -> None:
    """Leave all that was imported out of later searches for garbage, which take a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the real Hub and its cache out of reach, so that the choice of a trunk is the same on every machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.getbasetemp() / "no-hub"))


@pytest.fixture(scope="session")
def tiny_trunk() -> Trunk:
    """A deep-fusion trunk of random weights with the tokenizer of glip-nano; shared, so never train it."""
    torch.manual_seed(0)
    glip = build_glip(TINY).requires_grad_(False)
    with torch.no_grad():  # random heads score everything near the prior; spread them so that decoding has work
        glip.head.bias0.fill_(0.0)
    return Trunk("glip-nano", glip, load_tokenizer("glip-nano"), weights_checksum(glip))


@pytest.fixture(scope="session")
def dino_trunk() -> Trunk:
    """A trunk of the Grounding DINO family, with noise on every tensor: what starts at zero hides whether it is used.

    It has the vocabulary of glip-nano, and the row of grounding-dino-t; shared, so never train it.
    """
    torch.manual_seed(0)
    family = DinoFamily()
    network = family.build(DINO).requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return Trunk("grounding-dino-t", network, family.tokenizer(DINO, VOCABULARY), weights_checksum(network))


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Two classes of rectangles, category ids 0 and 7: 6 pictures to train, 3 to validate, 3 to test."""
    return write_shapes(tmp_path / "shapes")


def write_shapes(root: Path) -> Path:
    """Write the dataset of ``coco_folder``; return its folder."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        write_split(root / split, count, generator)
    return root


def write_split(folder: Path, count: int, generator: np.random.Generator) -> None:
    """Write ``count`` pictures of 64 × 80 pixels with one rectangle of each class, and their annotations."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        canvas = np.full((64, 80, 3), 200, dtype=np.uint8)
        for category_id, colour in ((0, (220, 30, 30)), (7, (30, 30, 220))):
            w, h = generator.integers(14, 28, size=2).tolist()
            x, y = int(generator.integers(0, 80 - w)), int(generator.integers(0, 64 - h))
            canvas[y : y + h, x : x + w] = colour
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": category_id, "bbox": [x, y, w, h],
                 "area": w * h, "iscrowd": 0}
            )  # fmt: skip
        name = f"{i}.png"
        Image.fromarray(canvas).save(folder / name)
        images.append({"id": i + 1, "file_name": name, "width": 80, "height": 64})
    categories = [{"id": 7, "name": "blue box"}, {"id": 0, "name": "red box"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations_without_background.json").write_text(json.dumps(document))


@pytest.fixture
def glip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line as a user types it; return exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["glip-adapt", *map(str, arguments)])
        monkeypatch.setattr(terminal, "console", terminal.Console(width=300))
        monkeypatch.setattr(terminal, "stderr", terminal.Console(stderr=True, width=500))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def load_benchmark(name: str) -> Iterator[ModuleType]:
    """Yield a script of ``benchmarks/`` as a module, for as long as a fixture lives."""
    spec = importlib.util.spec_from_file_location(
        name, Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trunk "small" in the catalogue, described as released ones are."""
    add_trunk(monkeypatch, "small")


@pytest.fixture
def small_glip() -> Glip:
    """The network of that trunk."""
    torch.manual_seed(5)
    return build_glip(SMALL)


@pytest.fixture
def public(small_glip: Glip) -> dict[str, torch.Tensor]:
    """The ``model`` entry of a public file that holds the weights of ``small_glip``."""
    return public_state(small_glip)


@pytest.fixture
def public_file(public: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A public file with these weights."""
    return save_public(public, tmp_path / "small.pth")
