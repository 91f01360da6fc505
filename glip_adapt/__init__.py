"""Adapt a frozen GLIP detector to a new task from 0, 1, 3, 5 or 10 examples per class.

Public names load on first use, so that ``import glip_adapt`` and the command line start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glip_adapt.adapters import attach, load_adapter
    from glip_adapt.adapters.baked import load_baked
    from glip_adapt.bench.benchmark import run_benchmark
    from glip_adapt.bench.report import write_report
    from glip_adapt.cache import FeatureCache
    from glip_adapt.captions import ClassPrompt
    from glip_adapt.card import TrainingFacts
    from glip_adapt.data.odinw import load_dataset
    from glip_adapt.evaluation import evaluate
    from glip_adapt.hub import from_hub, push_to_hub
    from glip_adapt.interop import to_supervision
    from glip_adapt.model.weights import load_trunk
    from glip_adapt.prediction import PredictConfig, predict
    from glip_adapt.prompting import search_prompts
    from glip_adapt.recipes import FitConfig, default_recipe, published_recipe
    from glip_adapt.tasks import TaskSet
    from glip_adapt.train import fit

__version__ = "0.1.0"

_HOMES = {
    "ClassPrompt": "glip_adapt.captions",
    "FeatureCache": "glip_adapt.cache",
    "FitConfig": "glip_adapt.recipes",
    "PredictConfig": "glip_adapt.prediction",
    "TaskSet": "glip_adapt.tasks",
    "TrainingFacts": "glip_adapt.card",
    "attach": "glip_adapt.adapters",
    "default_recipe": "glip_adapt.recipes",
    "evaluate": "glip_adapt.evaluation",
    "fit": "glip_adapt.train",
    "from_hub": "glip_adapt.hub",
    "load_adapter": "glip_adapt.adapters",
    "load_baked": "glip_adapt.adapters.baked",
    "load_dataset": "glip_adapt.data.odinw",
    "load_trunk": "glip_adapt.model.weights",
    "predict": "glip_adapt.prediction",
    "published_recipe": "glip_adapt.recipes",
    "push_to_hub": "glip_adapt.hub",
    "run_benchmark": "glip_adapt.bench.benchmark",
    "search_prompts": "glip_adapt.prompting",
    "to_supervision": "glip_adapt.interop",
    "write_report": "glip_adapt.bench.report",
}

__all__ = [
    "ClassPrompt",
    "FeatureCache",
    "FitConfig",
    "PredictConfig",
    "TaskSet",
    "TrainingFacts",
    "__version__",
    "attach",
    "default_recipe",
    "evaluate",
    "fit",
    "from_hub",
    "load_adapter",
    "load_baked",
    "load_dataset",
    "load_trunk",
    "predict",
    "published_recipe",
    "push_to_hub",
    "run_benchmark",
    "search_prompts",
    "to_supervision",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
