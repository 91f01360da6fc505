"""Training recipes with their sources: published ones of GLIP and of Grounding DINO, and that of the nano trunks.

GLIP, arXiv 2112.03857, sections E.3 and E.4; ``FitConfig`` names the file of the public code beneath each number.

The Grounding DINO family: the fine-tuning configurations of open-mmlab/mmdetection, in its folders
configs/mm_grounding_dino and configs/grounding_dino. They are for whole datasets on 8 to 64 GPUs. ``FitConfig`` cannot
express all of them: that the backbone learns at a tenth of the rate (``backbone`` lr_mult 0.1), that rates fall at
fixed epochs (MultiStepLR), that half of the views are cropped, and that biases decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from glip_adapt.core.settings import Compositions, FitConfig, Shots, ViewConfig

PUBLISHED_SHOTS = (1, 3, 5, 10)
"""Numbers of images per class in tables 14 to 16 of GLIP."""


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """The recipes of a trunk, as changes to the defaults of ``FitConfig``; later tables win.

    Attributes:
        base: for every method.
        methods: by name of the method.
        shots: by number of shots.
        cases: by both.
        factors: by number of shots, on the learning rates and on the steps.
        settings: by name of the method, of its adapter.
        only: the methods that they are for; empty: all.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shots: Mapping[Shots, Mapping[str, Any]] = field(default_factory=dict)
    cases: Mapping[tuple[str, Shots], Mapping[str, Any]] = field(default_factory=dict)
    factors: Mapping[Shots, tuple[float, float]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    def of(self, method: str, shots: Shots, view: ViewConfig) -> FitConfig:
        """Return the recipe for a method and a number of shots per class, on a trunk that is tested with ``view``.

        Numbers without a published recipe take that of the next smaller one.

        Raises:
            ValueError: if they are not for this method.
        """
        if self.only and method not in self.only:
            raise ValueError(f"This recipe is for {', '.join(self.only)}, not for {method}. Name such a method.")
        if shots != "all":
            shots = max(number for number in PUBLISHED_SHOTS if number <= max(shots, PUBLISHED_SHOTS[0]))
        start = FitConfig(test_short_side=view.short_side, max_long_side=view.max_long_side)
        changes = {**self.base, **self.methods.get(method, {}), **self.shots.get(shots, {})}
        recipe = replace(start, **{**changes, **self.cases.get((method, shots), {})})
        if shots not in self.factors:
            return recipe
        rate, steps = self.factors[shots]
        return replace(
            recipe,
            max_steps=None if recipe.max_steps is None else round(steps * recipe.max_steps),
            learning_rate=rate * recipe.learning_rate,
            text_learning_rate=rate * recipe.text_learning_rate,
        )


_WAYS_BACK = (0.3, 0.5, 0.7, 0.85)
# Of our own, as no paper has the method: as many looks at each image as ``copies`` says, and validation images say how
# far to go.
_EXEMPLARS: Mapping[str, Any] = {
    "batch_size": 1,
    "epochs": 1,
    "max_steps": None,
    "schedule": "cosine",  # nothing falls; but the recipe needs no validation images to end
    "validate_every": None,
    "keep_start": True,
    "factors": _WAYS_BACK,
}

PUBLISHED = Recipes(
    methods={
        "exemplars": _EXEMPLARS,
        "prompt": {"learning_rate": 0.05, "weight_decay": 0.25},
        "context": {"text_learning_rate": 2e-3},  # of CoOp, arXiv 2109.01134, section 4.1, there by SGD
        "lora": {"learning_rate": 2e-4, "text_learning_rate": 2e-4},  # arXiv 2106.09685, tables 11 and 12
        "full": {"recompute": True},  # changes no number; full needs the most memory of all methods
    },
    shots={1: {"copies": 8}, 3: {"copies": 4}, 5: {"copies": 2}, "all": {"plateau_patience": 2, "stop_patience": 4}},
)

# Lengths, plateau and copies are those of GLIP for a number of shots, as the configurations know no few-shot protocol;
# the rate falls by the same factor, 0.1 (MultiStepLR gamma 0.1).
#
# The default rates are those of the configurations too. 1e-4: optimizer lr 0.0001 in
# mm_grounding_dino/grounding_dino_swin-t_finetune_8xb4_20e_cat.py and in those for brain_tumor, people_in_painting,
# ruod and cityscapes, with 32 images a step; it is 0.0002 for the 64 images of mm_grounding_dino/coco, and 0.00005 for
# the 16 of grounding_dino/grounding_dino_swin-t_finetune_8xb2_20e_cat.py. FT-FSOD, arXiv 2603.28182, keeps 0.0001 for
# two images a step and few shots (configs_cdfsod/final_configs). 1e-5 of the text encoder: ``language_model`` lr_mult
# 0.1 in mm_grounding_dino/coco/grounding_dino_swin-t_finetune_16xb4_1x_coco.py, there of 0.0002.
#
# Rates of ``prompt``, ``linear_probe``, ``context`` and ``lora`` are not published for this family: they are those of
# GLIP, and of the papers named above.
GROUNDING_DINO = Recipes(
    base={
        "weight_decay": 1e-4,  # mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365.py: weight_decay 0.0001
        "clip_norm": 0.1,  # the same file: clip_grad max_norm 0.1
        "bias_rate_factor": 1.0,  # no configuration has another rate for biases
        "short_sides": tuple(range(480, 801, 32)),  # the same file: RandomChoiceResize (480, 1333) to (800, 1333)
    },
    methods={
        **PUBLISHED.methods,
        # The layer behind BERT, which ``TrunkSpec.settings`` freezes, learns at the rate of the detector: no custom key
        # of mm_grounding_dino/grounding_dino_swin-t_finetune_8xb4_20e_cat.py names it.
        "full": {"text_learning_rate": 1e-4, "recompute": True},
    },
    shots=PUBLISHED.shots,
)

_NANO_SIDES = (112, 128, 144, 160, 176, 192, 208)

# The nano trunks are small, see 160 pixels, and know left arrows from right ones. Their numbers were found on the
# validation images of glyphs13; the published rates hardly move a network of 3 million parameters.
NANO = Recipes(
    base={"short_sides": (160,), "flip": False, "schedule": "cosine", "max_steps": 80, "validate_every": 40},
    methods={
        # Seven looks, at drawn sizes: 0.8 to 1.3 points over one look at 160 pixels, on four sets with 5 shots.
        "exemplars": {**_EXEMPLARS, "short_sides": _NANO_SIDES, "copies": len(_NANO_SIDES)},
        "prompt": {"learning_rate": 0.1, "max_steps": 60, "validate_every": 30},
        "linear_probe": {"learning_rate": 1e-2, "max_steps": 160},
        "lora": {"learning_rate": 6e-3, "text_learning_rate": 6e-3},
        "context": {"text_learning_rate": 1e-2, "max_steps": 60, "validate_every": 30},
        "text_encoder": {"text_learning_rate": 5e-4, "max_steps": 60, "validate_every": 30},
        # Several sizes, as a network that trains as a whole otherwise learns a few images by heart.
        "full": {
            "learning_rate": 5e-4,
            "text_learning_rate": 5e-4,
            "short_sides": _NANO_SIDES,
            "max_steps": 160,
            "validate_every": 80,
        },
    },
    # One image per class overfits quickly: validate every 10 steps, and keep the untrained state if it scores best.
    shots={1: {"validate_every": 10, "keep_start": True}},
    # LoRA changes all but the image encoder, and overfits quickly to three images per class.
    cases={("lora", 3): {"learning_rate": 2e-3, "text_learning_rate": 2e-3, "validate_every": 20, "keep_start": True}},
    factors={1: (1 / 3, 1 / 2)},
)

# A detector with queries wants smaller rates: found on the validation images of Dice and Tools (glyphs13, seed 7, 5
# shots) among a third and three times of them. Of the default rates of NANO, all methods fell below zero-shot on Dice.
NANO_WITH_QUERIES = replace(
    NANO,
    methods={
        **NANO.methods,
        "prompt": {**NANO.methods["prompt"], "learning_rate": 1e-2},
        "linear_probe": {**NANO.methods["linear_probe"], "learning_rate": 3e-4},
        "lora": {**NANO.methods["lora"], "learning_rate": 4e-4, "text_learning_rate": 4e-4},
        "full": {**NANO.methods["full"], "learning_rate": 5e-5, "text_learning_rate": 5e-5},
        "text_encoder": {**NANO.methods["text_encoder"], "text_learning_rate": 5e-5},
        "context": {**NANO.methods["context"], "text_learning_rate": 1e-3},
    },
    cases={},
)

# What did better than the published style of training on synthetic sets (benchmarks/README.md, "Strong recipes";
# chosen on six sets of glyphs13 with seeds 7 and 70, for the nano trunks). A state is moved back towards the trunk as
# far as validation images want it (WiSE-FT, arXiv 2109.01903), images are composed of the few, and LoRA also changes
# the image encoder. On released trunks it has not been measured; there are fewer compositions, for kept features.
_EVERYWHERE = {"lora": {"part": "all+image", "rank": 4, "alpha": 8}}


def _strengthened(
    recipes: Recipes,
    per_image: int,
    methods: Mapping[str, Mapping[str, Any]],
    cases: Mapping[tuple[str, Shots], Mapping[str, Any]],
) -> Recipes:
    """Return recipes with states on the way back, compositions, and changes to some methods."""
    return replace(
        recipes,
        base={**recipes.base, "keep_start": True, "factors": _WAYS_BACK, "compositions": _composed(per_image)},
        methods={**recipes.methods, **{name: {**recipes.methods[name], **new} for name, new in methods.items()}},
        cases=cases,
        settings=_EVERYWHERE,
    )


def _composed(per_image: int) -> Compositions:
    return Compositions(per_image=per_image, crop=0.7, paste=0.7)


# A method that looks at images instead of training on them wants those that were labelled.
_LOOKS = {"exemplars": {"compositions": None}}
PUBLISHED_STRONG = _strengthened(PUBLISHED, 3, _LOOKS, {})
GROUNDING_DINO_STRONG = _strengthened(GROUNDING_DINO, 3, _LOOKS, {})
_NANO_METHODS: Mapping[str, Mapping[str, Any]] = {
    **_LOOKS,
    "full": {"max_steps": 320, "validate_every": 160},
    "lora": {"short_sides": _NANO_SIDES, "max_steps": 160, "validate_every": 80},
}
# One image per class: more compositions of each, and many looks up to the end, as some sets want ten steps and others
# all. Together 1.3 points of test AP, seeds 7 and 70 on the sets of the choices. Other colours, and modules that move
# one after the other: 1.7 points more on five of these sets, each of the two alone 1.1.
_NANO_CASES: Mapping[tuple[str, Shots], Mapping[str, Any]] = {
    ("full", 1): {
        "compositions": replace(_composed(32), colour=1.0),
        "module_factors": (0.0, 0.5, 1.5),
        "stop_patience": 100,
    },
}
NANO_STRONG = _strengthened(NANO, 8, _NANO_METHODS, _NANO_CASES)
NANO_WITH_QUERIES_STRONG = _strengthened(NANO_WITH_QUERIES, 8, _NANO_METHODS, _NANO_CASES)

# FT-FSOD, arXiv 2603.28182: configs_cdfsod/final_configs and mmdet/engine/hooks/stage_lr_hook.py of its code. Backbone
# and BERT learn at a fifth of the rate. The encoder, which fuses image and text, waits until rates have fallen once, so
# that what follows it comes to the new classes first. It selects on few validation images: ``best_on_few_val`` in a
# plan. Not taken over: the ensemble of parallel decoder layers, and denoising queries drawn anew.
FT_FSOD = Recipes(
    base={
        "batch_size": 2,
        "weight_decay": 0.05,
        "clip_norm": 0.1,
        "bias_rate_factor": 1.0,
        "epochs": 100,
        "plateau_factor": 0.5,
        "plateau_patience": 3,
        "plateau_cooldown": 1,
        "later_patience": 8,
        "stop_patience": 100,  # no configuration ends early
        "short_sides": (768, 800, 960),
        "compositions": Compositions(per_image=8, blend=0.3, crop=0.5, colour=1.0),
    },
    methods={
        "full": {
            "text_learning_rate": 1e-4,
            "rate_factors": {"image_encoder.backbone": 0.2, "text_encoder.bert": 0.2},
            "waiting": ("encoder",),
            "recompute": True,
        },
    },
    settings={"full": {"frozen": ()}},
    only=("full", "zero_shot"),
)
