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
    from glip_adapt.bench.report.write import write_report
    from glip_adapt.core.captions import ClassPrompt
    from glip_adapt.data.dataset import load_dataset
    from glip_adapt.engine.cache import FeatureCache
    from glip_adapt.engine.evaluate import evaluate
    from glip_adapt.engine.predict import PredictConfig, predict
    from glip_adapt.engine.prompting import search_prompts
    from glip_adapt.engine.recipes import FitConfig, default_recipe, published_recipe
    from glip_adapt.engine.train import fit
    from glip_adapt.share.card import TrainingFacts
    from glip_adapt.share.hub import from_hub, push_to_hub
    from glip_adapt.share.interop import to_supervision
    from glip_adapt.share.tasks import TaskSet
    from glip_adapt.trunks.catalogue import load_trunk

__version__ = "0.1.0"

_HOMES = {
    "ClassPrompt": "glip_adapt.core.captions",
    "FeatureCache": "glip_adapt.engine.cache",
    "FitConfig": "glip_adapt.engine.recipes",
    "PredictConfig": "glip_adapt.engine.predict",
    "TaskSet": "glip_adapt.share.tasks",
    "TrainingFacts": "glip_adapt.share.card",
    "attach": "glip_adapt.adapters",
    "default_recipe": "glip_adapt.engine.recipes",
    "evaluate": "glip_adapt.engine.evaluate",
    "fit": "glip_adapt.engine.train",
    "from_hub": "glip_adapt.share.hub",
    "load_adapter": "glip_adapt.adapters",
    "load_baked": "glip_adapt.adapters.baked",
    "load_dataset": "glip_adapt.data.dataset",
    "load_trunk": "glip_adapt.trunks.catalogue",
    "predict": "glip_adapt.engine.predict",
    "published_recipe": "glip_adapt.engine.recipes",
    "push_to_hub": "glip_adapt.share.hub",
    "run_benchmark": "glip_adapt.bench.benchmark",
    "search_prompts": "glip_adapt.engine.prompting",
    "to_supervision": "glip_adapt.share.interop",
    "write_report": "glip_adapt.bench.report.write",
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
