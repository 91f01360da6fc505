"""Settings that several rooms share: shots, how images are shown, how a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from glip_adapt.core.config import unknown_name

Shots = int | Literal["all"]
"""Images per class to learn from; ``"all"`` for a whole training split."""

Precision = Literal["float32", "bfloat16", "float16"]

Merging = Literal["best", "vote", "soft_vote"]

RecipeName = Literal["published", "strong", "ft-fsod"]
"""The training of the papers (of the nano trunks: in its style), what did better on synthetic sets, or that of FT-FSOD,
arXiv 2603.28182, on trunks of the family that it adapts."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How an image is shown to the network (configs/pretrain/*.yaml of the public code)."""

    short_side: int = 800
    "pixels"
    max_long_side: int = 1333
    "pixels"
    precision: Precision = "float32"
    "of large products; half precision pays on a GPU, and bfloat16 on CPUs that have instructions for it"

    def __post_init__(self) -> None:
        if not 32 <= self.short_side <= self.max_long_side:
            raise ValueError(
                f"An image is resized to short_side ≥ 32 and at most max_long_side; got {self.short_side} and "
                f"{self.max_long_side}."
            )
        if self.precision not in get_args(Precision):
            raise unknown_name("precision", self.precision, get_args(Precision))


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views of an image that are looked at one after the other, and how their boxes are merged, class by class.

    As ``im_detect_bbox_aug`` in maskrcnn_benchmark/data/datasets/evaluation/box_aug.py of the public code; tiles are
    an addition.
    """

    sizes: tuple[int, ...] = ()
    "short sides, pixels; none: that of ``ViewConfig``"
    flip: bool = False
    "whether each view comes mirrored as well"
    tile: int | None = None
    "side of square tiles, pixels of the image; each is shown like an image, beside the whole. None: no tiles"
    overlap: float = 0.2
    "least part of a tile that its neighbour shows too"
    areas: tuple[tuple[float, float], ...] = ()
    "for each size the smallest and the largest box to keep: square root of its area in pixels of the view; none: all"
    merging: Merging = "best"
    "of boxes that overlap: the best one; their mean, weighted by score; or that and the rest with less score"

    def __post_init__(self) -> None:
        if min((*self.sizes, 32 if self.tile is None else self.tile)) < 32:
            raise ValueError(f"Sizes and tiles of views have at least 32 pixels; got {self.sizes} and {self.tile}.")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"Tiles overlap by a part from 0 to 0.9 of their side; got {self.overlap}.")
        if self.areas and len(self.areas) != len(self.sizes):
            raise ValueError(f"Expected one range of areas for each of {len(self.sizes)} sizes; got {len(self.areas)}.")
        if any(low >= high for low, high in self.areas):
            raise ValueError(f"A range of areas goes from a smaller number to a larger one; got {self.areas}.")
        if self.merging not in get_args(Merging):
            raise unknown_name("merging", self.merging, get_args(Merging))


@dataclass(frozen=True, kw_only=True)
class Compositions:
    """Images that training makes of the labelled ones, see ``data/composing.py``: how many, and how likely each change.

    The changes of one image are drawn one by one, so that it may have all of them or none.
    """

    per_image: int = 8
    "for each labelled image; 0: none"
    blend: float = 0.0
    "probability that another image is laid over it, with its boxes (MixUp)"
    crop: float = 0.0
    "probability that a part of it is shown: each box is in it, but for three tenths at most, or out of it"
    paste: float = 0.0
    "probability that objects of other images are pasted where no box is"
    colour: float = 0.0
    "probability that hue, saturation and brightness are moved"

    def __post_init__(self) -> None:
        if self.per_image < 0:
            raise ValueError(f"per_image is {self.per_image}; expected a number of compositions, from 0 on.")
        for name in ("blend", "crop", "paste", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The recipe; defaults are those of full fine-tuning from 10 shots."""

    batch_size: int = 4
    "images per step (README.md: 4 GPUs, 4 images in total)"
    learning_rate: float = 1e-4
    "AdamW (configs/pretrain/*.yaml); 0.05 for prompt (README.md)"
    text_learning_rate: float = 1e-5
    "of the text encoder (configs/pretrain/*.yaml)"
    weight_decay: float = 0.05
    "README.md; 0.25 for prompt"
    bias_rate_factor: float = 2.0
    "learning rate of biases over that of other weights; no decay of biases (config/defaults.py, solver/build.py)"
    clip_norm: float = 1.0
    "limit of the L2 norm of all gradients together (configs/pretrain/*.yaml)"
    epochs: int = 200
    "ceiling; early stopping usually ends training before (README.md: custom_shot_and_epoch_and_general_copy)"
    copies: int = 1
    "how often an epoch repeats the images: 8, 4, 2, 1 for 1, 3, 5, 10 shots (the same option)"
    max_steps: int | None = None
    "ceiling in steps; None: in epochs"
    validate_every: int | None = None
    "steps between validations; None: an epoch, or with a cosine as many as take no less time than a validation"
    keep_start: bool = False
    "whether the state before training is a candidate too, as training on so few images may only hurt"
    schedule: Literal["plateau", "cosine"] = "plateau"
    "rates fall when validation AP no longer rises, or along half a cosine to 0 at the ceiling"
    plateau_patience: int = 3
    "evaluations without a new best before rates fall by plateau_factor; 2 for all data (README.md: STEP_PATIENCE)"
    plateau_factor: float = 0.1
    "solver/lr_scheduler.py"
    min_learning_rate: float = 1e-6
    "floor of the plateau rule (solver/lr_scheduler.py)"
    plateau_cooldown: int = 0
    "evaluations after a fall that do not count"
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    "module → factor on the learning rate of its weights"
    waiting: tuple[str, ...] = ()
    "modules that learn only once rates have fallen for the first time (FT-FSOD, arXiv 2603.28182)"
    later_patience: int = 8
    "plateau_patience from then on"
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
    "of large products; losses and weights stay in float32, float16 scales the loss; see ``ViewConfig``"
    weights: Literal["equal", "score"] = "equal"
    "what a box counts in the losses: 1, or how sure a detector was of it, for pseudo-labels among labels by hand"
    factors: tuple[float, ...] = ()
    """parts of the way from the start to the best and to the last trained state, which validation images try, below 1;
    without such images cross-validation tries its own"""
    module_factors: tuple[float, ...] = ()
    """multiples of the chosen factor, at most 1 in the end, which validation images then try for one module of the
    network after the other; without such images, nothing does"""
    compositions: Compositions | None = None
    "images made of the labelled ones to learn from as well; None: none"
    recompute: bool = False
    """whether blocks are computed again in the backward pass rather than kept: a third of the memory; on for full, but
    on the nano trunks"""
    seed: int = 10
    "of image order, views and dropout (README.md: SOLVER.SEED)"

    def __post_init__(self) -> None:
        positive = ("batch_size", "learning_rate", "clip_norm", "epochs", "copies", "stop_patience", "test_short_side")
        for name in (*positive, "max_steps", "validate_every"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        if self.schedule not in ("plateau", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; expected 'plateau' or 'cosine'.")
        if self.weights not in ("equal", "score"):
            raise ValueError(f"weights is {self.weights!r}; expected 'equal' or 'score'.")
        if self.waiting and self.schedule != "plateau":
            raise ValueError("Modules wait for the first fall of the plateau rule; schedule = 'cosine' has none.")
        if not all(0 < factor < 1 for factor in self.factors):
            raise ValueError(f"factors are {self.factors}; expected parts of a way, above 0 and below 1.")
        if not all(factor >= 0 for factor in self.module_factors):
            raise ValueError(f"module_factors are {self.module_factors}; expected multiples of a part, from 0 on.")
        _ = self.view  # checks the sizes

    @property
    def view(self) -> ViewConfig:
        """How images are shown while testing."""
        return ViewConfig(short_side=self.test_short_side, max_long_side=self.max_long_side, precision=self.precision)
