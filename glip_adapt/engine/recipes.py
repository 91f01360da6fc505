"""The numbers of training, each with its source: the published recipe of GLIP, and that of the nano trunks.

GLIP, arXiv 2112.03857, sections E.3 and E.4; the files named beneath the fields are those of the public code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from glip_adapt.adapters.base import Precision
from glip_adapt.engine.predict import PredictConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The recipe; defaults are those of full fine-tuning from 10 shots."""

    batch_size: int = 4
    "pictures per step (README.md: 4 GPUs, 4 pictures in total)"
    learning_rate: float = 1e-4
    "AdamW (configs/pretrain/*.yaml); 0.05 for prompt (README.md)"
    text_learning_rate: float = 1e-5
    "of the text encoder (configs/pretrain/*.yaml)"
    weight_decay: float = 0.05
    "README.md; 0.25 for prompt"
    bias_rate_factor: float = 2.0
    "learning rate of biases over the others'; they have no weight decay (config/defaults.py, solver/build.py)"
    clip_norm: float = 1.0
    "limit of the L2 norm of all gradients together (configs/pretrain/*.yaml)"
    epochs: int = 200
    "ceiling; early stopping usually ends training before (README.md: custom_shot_and_epoch_and_general_copy)"
    copies: int = 1
    "how often an epoch repeats the pictures: 8, 4, 2, 1 for 1, 3, 5, 10 shots (the same option)"
    max_steps: int | None = None
    "ceiling in steps; None: in epochs"
    validate_every: int | None = None
    "steps between validations; None: an epoch"
    keep_start: bool = False
    "whether the state before training is a candidate too, for pictures so few that training can only hurt"
    schedule: Literal["plateau", "cosine"] = "plateau"
    "rates fall when validation AP no longer rises, or along half a cosine to 0 at the ceiling"
    plateau_patience: int = 3
    "evaluations without a new best before rates fall by plateau_factor; 2 for all data (README.md: STEP_PATIENCE)"
    plateau_factor: float = 0.1
    "solver/lr_scheduler.py"
    min_learning_rate: float = 1e-6
    "floor of the plateau rule (solver/lr_scheduler.py)"
    stop_patience: int = 8
    "evaluations below the best before training ends; 4 for all data (README.md: AUTO_TERMINATE_PATIENCE)"
    short_sides: tuple[int, ...] = (480, 560, 640, 720, 800)
    "drawn from while training, pixels (configs/pretrain/*.yaml)"
    max_long_side: int = 1333
    "pixels, in training and testing"
    flip: bool = True
    "whether half of the training views are mirrored (configs/odinw_13/*.yaml)"
    test_short_side: int = 800
    "pixels (configs/odinw_13/*.yaml)"
    precision: Precision = "float32"
    "of large products; losses and weights stay in float32, and float16 scales the loss; both halves pay on a GPU"
    recompute: bool = False
    "whether blocks are computed again in the backward pass rather than kept; on for full: a third of the memory"
    seed: int = 10
    "of picture order, views and dropout (README.md: SOLVER.SEED)"

    def __post_init__(self) -> None:
        positive = ("batch_size", "learning_rate", "clip_norm", "epochs", "copies", "stop_patience", "test_short_side")
        for name in (*positive, "max_steps", "validate_every"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        if self.schedule not in ("plateau", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; expected 'plateau' or 'cosine'.")
        _ = self.predict_config  # checks the sizes

    @property
    def predict_config(self) -> PredictConfig:
        """How pictures are shown while testing."""
        return PredictConfig(
            short_side=self.test_short_side, max_long_side=self.max_long_side, precision=self.precision
        )


# What the published recipe changes per method and per number of shots.
METHOD_RECIPES: dict[str, dict[str, Any]] = {
    "prompt": {"learning_rate": 0.05, "weight_decay": 0.25},
    "context": {"text_learning_rate": 2e-3},  # of CoOp, arXiv 2109.01134, section 4.1, there by SGD
    "lora": {"learning_rate": 2e-4, "text_learning_rate": 2e-4},  # arXiv 2106.09685, tables 11 and 12
    "full": {"recompute": True},  # changes no number; of all methods, the one whose memory keeps people from it
}
SHOT_RECIPES: dict[int | Literal["all"], dict[str, Any]] = {
    1: {"copies": 8},
    3: {"copies": 4},
    5: {"copies": 2},
    "all": {"plateau_patience": 2, "stop_patience": 4},
}


# What the nano trunks need instead: they are small, see 160 pixels, and know left arrows from right ones. Found on the
# validation pictures of glyphs13; the published rates hardly move a network of 3 million parameters.
NANO_RECIPE: dict[str, Any] = {
    "short_sides": (160,),
    "test_short_side": 160,  # as TRUNKS says
    "max_long_side": 320,
    "flip": False,
    "schedule": "cosine",
    "max_steps": 80,
    "validate_every": 40,
}
NANO_METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"learning_rate": 0.1, "max_steps": 60, "validate_every": 30},
    "linear_probe": {"learning_rate": 1e-2, "max_steps": 160},
    "lora": {"learning_rate": 6e-3, "text_learning_rate": 6e-3},
    "context": {"text_learning_rate": 1e-2, "max_steps": 60, "validate_every": 30},
    "text_encoder": {"text_learning_rate": 5e-4, "max_steps": 60, "validate_every": 30},
    # What trains all of the network learns a few pictures by heart unless their objects change size.
    "full": {
        "learning_rate": 5e-4,
        "text_learning_rate": 5e-4,
        "short_sides": (112, 128, 144, 160, 176, 192, 208),
        "max_steps": 160,
        "validate_every": 80,
    },
}
# LoRA reaches all of the network but the image encoder, and soon forgets what three pictures per class do not show.
NANO_SHOTS: dict[tuple[str, int | Literal["all"]], dict[str, Any]] = {
    ("lora", 3): {"learning_rate": 2e-3, "text_learning_rate": 2e-3, "validate_every": 20, "keep_start": True},
}
NANO_TRUNKS = ("glip-nano", "glip-nano-a")


def published_recipe(method: str, shots: int | Literal["all"]) -> FitConfig:
    """Return the recipe of the paper for a method and a number of shots per class."""
    return replace(FitConfig(), **METHOD_RECIPES.get(method, {}), **SHOT_RECIPES.get(shots, {}))


def default_recipe(trunk: str, method: str, shots: int | Literal["all"]) -> FitConfig:
    """Return the recipe that suits a trunk: the published one, or for the nano trunks their own.

    Args:
        trunk: name of the trunk.
        method: name of the adapter.
        shots: pictures per class.
    """
    if trunk not in NANO_TRUNKS:
        return published_recipe(method, shots)
    own = NANO_RECIPE | NANO_METHODS.get(method, {}) | NANO_SHOTS.get((method, shots), {})
    recipe = replace(FitConfig(), **own)
    if shots != 1:
        return recipe
    # One picture per class is learnt by heart at these rates, and soon; where that only hurts, nothing is changed.
    third, half = 1 / 3, 1 / 2
    assert recipe.max_steps is not None
    return replace(
        recipe,
        max_steps=round(half * recipe.max_steps),
        validate_every=10,
        keep_start=True,
        learning_rate=third * recipe.learning_rate,
        text_learning_rate=third * recipe.text_learning_rate,
    )
