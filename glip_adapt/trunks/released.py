"""Released detectors: one row each. Facts only, read without torch; ``trunks/catalogue.py`` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open

from glip_adapt.core.config import unknown_name
from glip_adapt.core.settings import FitConfig, RecipeName, Shots, ViewConfig
from glip_adapt.trunks.dino.config import (
    DINO_NANO,
    GROUNDING_DINO_B,
    GROUNDING_DINO_T,
    MM_GROUNDING_DINO_B,
    MM_GROUNDING_DINO_L,
    MM_GROUNDING_DINO_T,
    SMALL_DATA_FROZEN,
    DinoConfig,
)
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.dyhead.config import DYHEAD_NANO, DYHEAD_T, DyHeadConfig
from glip_adapt.trunks.dyhead.family import DyHeadFamily
from glip_adapt.trunks.family import Family
from glip_adapt.trunks.glip.config import GLIP_L, GLIP_NANO, GLIP_NANO_A, GLIP_T, GLIP_T_A, PUBLISHED_FROZEN, GlipConfig
from glip_adapt.trunks.glip.family import GlipFamily
from glip_adapt.trunks.recipes import (
    FT_FSOD,
    GROUNDING_DINO,
    GROUNDING_DINO_STRONG,
    NANO,
    NANO_STRONG,
    NANO_WITH_QUERIES,
    NANO_WITH_QUERIES_STRONG,
    PUBLISHED,
    PUBLISHED_STRONG,
    Recipes,
)

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # weights and vocabulary of the nano trunks
HUB_REPOSITORY = "GLIPModel/GLIP"
_GLIP, _DINO, _DYHEAD = GlipFamily(), DinoFamily(), DyHeadFamily()
_PARAMETERS = {  # building a network to count them takes seconds
    DYHEAD_NANO: 2_198_026,
    DYHEAD_T: 42_386_476,
    GLIP_NANO: 3_341_292,
    GLIP_NANO_A: 2_769_900,
    GLIP_T_A: 151_409_966,
    GLIP_T: 231_759_662,
    GLIP_L: 430_401_824,
    DINO_NANO: 3_207_340,
    GROUNDING_DINO_T: 172_249_090,
    GROUNDING_DINO_B: 232_313_216,
    MM_GROUNDING_DINO_T: 172_912_157,
    MM_GROUNDING_DINO_B: 232_976_283,
    MM_GROUNDING_DINO_L: 343_052_631,
}


_NANO_FACTS: dict[str, Any] = {
    "view": ViewConfig(short_side=160, max_long_side=320),
    "recipes": NANO,
    "strong": NANO_STRONG,
    "minutes": 2,
    "threads": 1,  # a second thread makes them slower; with one, their numbers are the same on any machine
}


@dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """Facts of one released detector.

    Attributes:
        purpose: when to take it.
        family: builds the network and reads its files.
        config: sizes, as the family takes them.
        public_file: file name in ``repository``; None where weights and vocabulary come with the package.
        parameters: how many numbers the network has.
        deep_fusion: whether image and text are fused before the head.
        data: pre-training data, as the public model zoo names it.
        repository: on the Hub.
        licence: of the weights.
        view: how images are shown while testing.
        recipes: of training in the published style.
        strong: recipes that did better on synthetic sets.
        ft_fsod: those of FT-FSOD, for the family that it adapts.
        settings: method → settings of its adapter that the published recipe of this trunk changes.
        threads: CPU threads of a benchmark run; None takes all of the machine.
        memory_gb: that loading it and detection in one image take, in 10⁹ bytes.
        download_gb: size of the public file in 10⁹ bytes, as far as it is known.
        minutes: that adapting it by trying methods may take, unless the caller says.
        closed_set: whether it reads no text and knows only the classes that it is trained on; methods that work by text
            refuse it, and what it learns belongs to its classes.
        starts_random: whether its weights are random where no file is named, always alike.
    """

    purpose: str
    family: Family
    config: Any
    public_file: str | None
    parameters: int
    deep_fusion: bool
    data: str
    repository: str = HUB_REPOSITORY
    licence: str = "MIT"
    view: ViewConfig = field(default_factory=ViewConfig)
    recipes: Recipes = PUBLISHED
    strong: Recipes = PUBLISHED_STRONG
    ft_fsod: Recipes | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int | None = None
    memory_gb: float = 1
    download_gb: float | None = None
    minutes: float = 10
    closed_set: bool = False
    starts_random: bool = False


def _released(config: GlipConfig, public_file: str, data: str, purpose: str, **facts: float) -> TrunkSpec:
    """Return the row of a trunk that the authors of GLIP released; all have a Swin backbone."""
    row: dict[str, Any] = {"settings": {"full": {"frozen": PUBLISHED_FROZEN}}, "memory_gb": 3, **facts}
    return TrunkSpec(
        family=_GLIP,
        config=config,
        public_file=public_file,
        parameters=_PARAMETERS[config],
        deep_fusion=config.deep_fusion,
        data=data,
        purpose=purpose,
        **row,
    )


def _on_transformers(config: DinoConfig, repository: str, data: str, purpose: str, **facts: float) -> TrunkSpec:
    """Return the row of a trunk of the Grounding DINO family, from its conversion for transformers on the Hub."""
    row: dict[str, Any] = {"settings": {"full": {"frozen": SMALL_DATA_FROZEN}}, "memory_gb": 3, **facts}
    return TrunkSpec(
        family=_DINO,
        config=config,
        public_file="model.safetensors",
        parameters=_PARAMETERS[config],
        deep_fusion=True,
        data=data,
        repository=repository,
        licence="Apache-2.0",
        recipes=GROUNDING_DINO,
        strong=GROUNDING_DINO_STRONG,
        ft_fsod=FT_FSOD,
        purpose=purpose,
        **row,
    )


def _rendered(
    family: Family, config: GlipConfig | DinoConfig, deep_fusion: bool, purpose: str, **facts: Any
) -> TrunkSpec:
    """Return the row of a nano trunk, whose weights come with the package."""
    return TrunkSpec(
        family=family,
        config=config,
        public_file=None,
        parameters=_PARAMETERS[config],
        deep_fusion=deep_fusion,
        data="rendered scenes (synthetic)",
        purpose=purpose,
        **{**_NANO_FACTS, **facts},
    )


def _supervised(config: DyHeadConfig, public_file: str | None, data: str, purpose: str, **facts: Any) -> TrunkSpec:
    """Return the row of a detector without language; all but its backbone starts from random weights."""
    return TrunkSpec(
        family=_DYHEAD,
        config=config,
        public_file=public_file,
        parameters=_PARAMETERS[config],
        deep_fusion=False,
        data=data,
        purpose=purpose,
        closed_set=True,
        **facts,
    )


TRUNKS: dict[str, TrunkSpec] = {  # from the least to the most accurate
    "glip-nano": _rendered(_GLIP, GLIP_NANO, True, "to try things out; knows pictograms only"),
    "glip-nano-a": _rendered(_GLIP, GLIP_NANO_A, False, "to compare with glip-nano"),
    "dino-nano": _rendered(
        *(_DINO, DINO_NANO, True, "to try the Grounding DINO family; knows pictograms only"),
        recipes=NANO_WITH_QUERIES,
        strong=NANO_WITH_QUERIES_STRONG,
    ),
    "dyhead-nano": _supervised(
        *(DYHEAD_NANO, None, "nothing", "to see what glip-nano gains by pre-training; knows no class before training"),
        **_NANO_FACTS,
        starts_random=True,
    ),
    "dyhead-t": _supervised(
        *(DYHEAD_T, "model.safetensors", "ImageNet-1k (backbone)"),
        "to see what glip-t gains by language; knows no class before training",
        repository="timm/swin_tiny_patch4_window7_224.ms_in1k",
        settings={"full": {"frozen": PUBLISHED_FROZEN}},
        download_gb=0.11,
    ),
    "glip-t-a": _released(GLIP_T_A, "glip_a_tiny_o365.pth", "O365", "to compare with glip-t-b"),
    "glip-t-b": _released(GLIP_T, "glip_tiny_model_o365.pth", "O365", "to compare pre-training data"),
    "glip-t-c": _released(GLIP_T, "glip_tiny_model_o365_goldg.pth", "O365, GoldG", "to compare pre-training data"),
    "glip-t": _released(
        *(GLIP_T, "glip_tiny_model_o365_goldg_cc_sbu.pth", "O365, GoldG, CC3M, SBU", "for photographs"), download_gb=3.7
    ),
    "grounding-dino-t": _on_transformers(
        *(GROUNDING_DINO_T, "IDEA-Research/grounding-dino-tiny", "O365, GoldG, Cap4M", "to compare families"),
        download_gb=0.69,
    ),
    "glip-l": _released(
        *(GLIP_L, "glip_large_model.pth", "FourODs, GoldG, CC3M+12M, SBU", "for photographs: more accurate, slower"),
        memory_gb=5,
    ),
    "mm-grounding-dino-t": _on_transformers(
        *(MM_GROUNDING_DINO_T, "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit_v3det"),
        *("O365, GoldG, GRIT, V3Det", "for photographs: accurate and small"),
        download_gb=0.69,
    ),
    "llmdet-t": _on_transformers(
        *(MM_GROUNDING_DINO_T, "iSEE-Laboratory/llmdet_tiny", "O365, GoldG, GRIT, V3Det, GroundingCap"),
        "for photographs with rare classes",
        download_gb=0.69,
    ),
    "grounding-dino-b": _on_transformers(
        *(
            GROUNDING_DINO_B,
            "IDEA-Research/grounding-dino-base",
            "COCO, O365, GoldG, Cap4M, OpenImages, ODinW-35, RefCOCO",
        ),
        "has seen ODinW and COCO in training: not for tests on these",
        download_gb=0.93,
    ),
    "mm-grounding-dino-b": _on_transformers(
        *(MM_GROUNDING_DINO_B, "openmmlab-community/mm_grounding_dino_base_o365v1_goldg_v3det", "O365, GoldG, V3Det"),
        "for photographs: more accurate, slower",
        download_gb=0.93,
    ),
    "llmdet-b": _on_transformers(
        *(MM_GROUNDING_DINO_B, "iSEE-Laboratory/llmdet_base", "O365, GoldG, V3Det, GroundingCap"),
        "for photographs with rare classes: more accurate, slower",
        download_gb=0.93,
    ),
    "mm-grounding-dino-l": _on_transformers(
        *(
            MM_GROUNDING_DINO_L,
            "openmmlab-community/mm_grounding_dino_large_o365v2_oiv6_goldg",
            "O365 v2, OpenImages, GoldG",
        ),
        "for photographs: the most accurate, slowest",
        memory_gb=6,
        download_gb=1.37,
    ),
    "llmdet-l": _on_transformers(
        *(MM_GROUNDING_DINO_L, "iSEE-Laboratory/llmdet_large", "O365 v2, OpenImages, GoldG, GroundingCap"),
        "for photographs with rare classes: the most accurate, slowest",
        memory_gb=6,
        download_gb=1.37,
    ),
}
DEFAULT, PACKAGED = "glip-t", "glip-nano"  # without a choice: to download, and without a network


def trunk_spec(name: str) -> TrunkSpec:
    """Return the row of a trunk.

    Raises:
        ValueError: if the name is unknown; names the choices and the nearest.
    """
    if name not in TRUNKS:
        raise unknown_name("trunk", name, TRUNKS)
    return TRUNKS[name]


def packaged_checksum(name: str) -> str:
    """Return the checksum of the weights of a trunk that comes with the package, as their file states it."""
    with safe_open(ASSETS / f"{name}.safetensors", "numpy") as file:
        return str(file.metadata()["checksum"])


class Named(Protocol):
    """A method with its settings, of which only the name counts here."""

    @property
    def name(self) -> str: ...  # noqa: D102


def default_recipe(trunk: str, method: str | Named, shots: Shots, recipe: RecipeName = "published") -> FitConfig:
    """Return the recipe of a trunk, by name, for a method and a number of shots per class.

    The published one is that of its family, or for the nano trunks their own in that style. The strong one did better
    on synthetic sets, for more time; on released trunks nobody has measured it yet. That of FT-FSOD is for ``full`` on
    the Grounding DINO family. Numbers of shots without a recipe of their own take that of the next smaller one.

    Raises:
        ValueError: if there is no such trunk or recipe, or the recipe is not for this method.
    """
    spec = trunk_spec(trunk)
    return _recipes_of(spec, recipe).of(method if isinstance(method, str) else method.name, shots, spec.view)


def method_settings(trunk: str, method: str, recipe: RecipeName = "published") -> dict[str, Any]:
    """Return the fields of a method's adapter that a trunk and a recipe change, for ``attach(…, settings=…)``.

    Raises:
        ValueError: if there is no such trunk or recipe.
    """
    spec = trunk_spec(trunk)
    return {**spec.settings.get(method, {}), **_recipes_of(spec, recipe).settings.get(method, {})}


def _recipes_of(spec: TrunkSpec, recipe: RecipeName) -> Recipes:
    known = {"published": spec.recipes, "strong": spec.strong, "ft-fsod": spec.ft_fsod}
    taken = {name: recipes for name, recipes in known.items() if recipes is not None}
    if recipe not in taken:
        raise unknown_name("recipe", recipe, taken)
    return taken[recipe]


def published_recipe(method: str, shots: Shots) -> FitConfig:
    """Return the recipe of the GLIP paper for a method and a number of shots per class."""
    return PUBLISHED.of(method, shots, ViewConfig())
