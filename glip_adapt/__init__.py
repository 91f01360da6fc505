"""Adapt a frozen grounded detector to a new task from 0, 1, 3, 5 or 10 labelled images per class.

Public names load on first use, so that ``import glip_adapt`` and the command line start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glip_adapt.adapters.context import Context
    from glip_adapt.adapters.exemplars import Exemplars
    from glip_adapt.adapters.full import Full, TextEncoderTuning
    from glip_adapt.adapters.linear_probe import LinearProbe
    from glip_adapt.adapters.lora import Lora
    from glip_adapt.adapters.prompt import Prompt
    from glip_adapt.adapters.zero_shot import ZeroShot
    from glip_adapt.bench.benchmark import read_plan, run_benchmark
    from glip_adapt.bench.plan import BenchPlan
    from glip_adapt.bench.report.write import write_report
    from glip_adapt.core.captions import ClassPrompt
    from glip_adapt.core.errors import GlipAdaptError
    from glip_adapt.core.knowledge import Knowledge, load_knowledge
    from glip_adapt.core.masks import Mask
    from glip_adapt.core.sentences import sentence_caption
    from glip_adapt.core.settings import Compositions, FitConfig, ViewConfig, Views
    from glip_adapt.core.structures import Detections
    from glip_adapt.data.captioned import CaptionedSplit
    from glip_adapt.data.captions import load_captions
    from glip_adapt.data.dataset import Dataset, load_dataset
    from glip_adapt.data.split import Split
    from glip_adapt.engine.adapted import AdaptedModel, adapt, attach
    from glip_adapt.engine.cache import FeatureCache
    from glip_adapt.engine.draw import draw_detections
    from glip_adapt.engine.evaluate import Evaluation, evaluate
    from glip_adapt.engine.history import History
    from glip_adapt.engine.load import load_adapter
    from glip_adapt.engine.prompting import search_prompts
    from glip_adapt.engine.segment import segment
    from glip_adapt.engine.selection import cross_validate, fit
    from glip_adapt.engine.self_training import self_train
    from glip_adapt.share.baked import BakedModel, bake, load_baked
    from glip_adapt.share.card import TrainingFacts
    from glip_adapt.share.export import export_onnx
    from glip_adapt.share.gligen import to_gligen
    from glip_adapt.share.hub import from_hub, push_to_hub
    from glip_adapt.share.interop import to_supervision
    from glip_adapt.share.peft import merge, save_for_peft
    from glip_adapt.share.pseudo_labelling import pseudo_label
    from glip_adapt.share.tasks import TaskSet
    from glip_adapt.share.tracking import Tracks, track
    from glip_adapt.share.viewers import to_fiftyone, to_fiftyone_samples, to_supervision_dataset
    from glip_adapt.trunks.catalogue import Trunk, load_trunk
    from glip_adapt.trunks.released import default_recipe, method_settings, published_recipe
    from glip_adapt.trunks.segmenter import Segmenter, load_segmenter

__version__ = "0.3.0"

_HOMES = {
    "glip_adapt.adapters.context": ("Context",),
    "glip_adapt.adapters.exemplars": ("Exemplars",),
    "glip_adapt.adapters.full": ("Full", "TextEncoderTuning"),
    "glip_adapt.adapters.linear_probe": ("LinearProbe",),
    "glip_adapt.adapters.lora": ("Lora",),
    "glip_adapt.adapters.prompt": ("Prompt",),
    "glip_adapt.adapters.zero_shot": ("ZeroShot",),
    "glip_adapt.bench.benchmark": ("read_plan", "run_benchmark"),
    "glip_adapt.bench.plan": ("BenchPlan",),
    "glip_adapt.bench.report.write": ("write_report",),
    "glip_adapt.core.captions": ("ClassPrompt",),
    "glip_adapt.core.errors": ("GlipAdaptError",),
    "glip_adapt.core.knowledge": ("Knowledge", "load_knowledge"),
    "glip_adapt.core.sentences": ("sentence_caption",),
    "glip_adapt.core.masks": ("Mask",),
    "glip_adapt.core.settings": ("Compositions", "FitConfig", "ViewConfig", "Views"),
    "glip_adapt.core.structures": ("Detections",),
    "glip_adapt.data.captioned": ("CaptionedSplit",),
    "glip_adapt.data.captions": ("load_captions",),
    "glip_adapt.data.dataset": ("Dataset", "load_dataset"),
    "glip_adapt.data.split": ("Split",),
    "glip_adapt.engine.adapted": ("AdaptedModel", "adapt", "attach"),
    "glip_adapt.engine.cache": ("FeatureCache",),
    "glip_adapt.engine.draw": ("draw_detections",),
    "glip_adapt.engine.evaluate": ("Evaluation", "evaluate"),
    "glip_adapt.engine.history": ("History",),
    "glip_adapt.engine.load": ("load_adapter",),
    "glip_adapt.engine.prompting": ("search_prompts",),
    "glip_adapt.engine.segment": ("segment",),
    "glip_adapt.engine.selection": ("cross_validate", "fit"),
    "glip_adapt.engine.self_training": ("self_train",),
    "glip_adapt.share.baked": ("BakedModel", "bake", "load_baked"),
    "glip_adapt.share.card": ("TrainingFacts",),
    "glip_adapt.share.export": ("export_onnx",),
    "glip_adapt.share.gligen": ("to_gligen",),
    "glip_adapt.share.hub": ("from_hub", "push_to_hub"),
    "glip_adapt.share.interop": ("to_supervision",),
    "glip_adapt.share.peft": ("merge", "save_for_peft"),
    "glip_adapt.share.pseudo_labelling": ("pseudo_label",),
    "glip_adapt.share.tasks": ("TaskSet",),
    "glip_adapt.share.tracking": ("Tracks", "track"),
    "glip_adapt.share.viewers": ("to_fiftyone", "to_fiftyone_samples", "to_supervision_dataset"),
    "glip_adapt.trunks.catalogue": ("Trunk", "load_trunk"),
    "glip_adapt.trunks.released": ("default_recipe", "method_settings", "published_recipe"),
    "glip_adapt.trunks.segmenter": ("Segmenter", "load_segmenter"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_INSTEAD = {"PredictConfig": "ViewConfig", "predict": "model.predict(image)"}

__all__ = [
    "AdaptedModel", "BakedModel", "BenchPlan", "CaptionedSplit", "ClassPrompt", "Compositions", "Context", "Dataset",
    "Detections", "Evaluation", "Exemplars", "FeatureCache", "FitConfig", "Full", "GlipAdaptError", "History",
    "Knowledge", "LinearProbe", "Lora", "Mask", "Prompt", "Segmenter", "Split", "TaskSet", "TextEncoderTuning",
    "Tracks", "TrainingFacts", "Trunk", "ViewConfig", "Views", "ZeroShot", "__version__", "adapt", "attach", "bake",
    "cross_validate", "default_recipe", "draw_detections", "evaluate", "export_onnx", "fit", "from_hub", "load_adapter",
    "load_baked", "load_captions", "load_dataset", "load_knowledge", "load_segmenter", "load_trunk", "merge",
    "method_settings", "pseudo_label", "published_recipe", "push_to_hub", "read_plan", "run_benchmark", "save_for_peft",
    "search_prompts", "segment", "self_train", "sentence_caption", "to_fiftyone", "to_fiftyone_samples", "to_gligen",
    "to_supervision", "to_supervision_dataset", "track", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    hint = f"; write {_INSTEAD[name]} instead" if name in _INSTEAD else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
