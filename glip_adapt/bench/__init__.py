"""``run_benchmark``: wires the real fit and evaluate into the runner."""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from glip_adapt.adapters import ADAPTERS, attach
from glip_adapt.adapters.base import AdaptedGlip
from glip_adapt.bench.plan import ZERO_SHOT, BenchPlan, ProtocolConfig, RunKey, check_plan, load_plan
from glip_adapt.bench.records import RunCost, RunMetrics, RunRecord, capture_environment
from glip_adapt.bench.runner import RunOutcome, RunSummary, run_plan
from glip_adapt.cache import FeatureCache
from glip_adapt.config import from_mapping, override, to_mapping
from glip_adapt.data.coco import Split
from glip_adapt.data.fewshot import few_shot_split, sample_few_shot
from glip_adapt.data.odinw import Dataset, known_datasets, load_dataset, rendered_datasets
from glip_adapt.evaluation import Evaluation, evaluate
from glip_adapt.model.weights import TRUNKS, Trunk, load_trunk
from glip_adapt.prediction import PredictConfig
from glip_adapt.train import FitConfig, History, Step, default_recipe, fit


def read_plan(path: Path | str) -> BenchPlan:
    """Return the plan of a TOML file, checked against the methods, trunks and suites that exist."""
    return load_plan(path, methods=ADAPTERS, trunks=TRUNKS, suites=_suites())


def _suites() -> dict[str, tuple[str, ...]]:
    return {
        "odinw13": tuple(spec.official_name for spec in known_datasets()),
        "glyphs13": tuple(rendered_datasets()),
    }


def run_benchmark(
    plan: BenchPlan,
    out: Path | str,
    *,
    device: str = "cpu",
    vocabulary: Path | str | None = None,
    cache: FeatureCache | None = None,
    on_start: Callable[[RunKey, int, int], None] | None = None,
    on_step: Callable[[Step, int], None] | None = None,
    on_finish: Callable[[RunRecord], None] | None = None,
) -> RunSummary:
    """Do every run of ``plan`` that ``out`` does not hold yet; see ``runner.run_plan``.

    Args:
        plan: from ``read_plan``, or made by hand; suites are spelled out.
        out: the results folder.
        device: where the networks go.
        vocabulary: ``vocab.txt`` of bert-base-uncased, for trunks that read it and machines without a network.
        cache: keeps what the frozen stages make of pictures, over all runs; by default one of 2 GiB in memory.
        on_start: called before a run with its key, its position from 1, and the number of runs.
        on_step: called after each training step with it and the number of steps.
        on_finish: called with the record of a run, done or failed.
    """
    plan = check_plan(plan, "plan", methods=ADAPTERS, trunks=TRUNKS, suites=_suites())
    bench = _Bench(plan, device, vocabulary, cache or FeatureCache(), on_step)
    return run_plan(
        plan,
        Path(out),
        bench.execute,
        capture_environment(_describe(device), torch.get_num_threads()),
        resolve=bench.resolve,
        on_start=on_start,
        on_finish=on_finish,
    )


class _Bench:
    """What runs share: the trunk and the dataset in use, which the order of a plan's keys keeps adjacent."""

    def __init__(
        self,
        plan: BenchPlan,
        device: str,
        vocabulary: Path | str | None,
        cache: FeatureCache,
        on_step: Callable[[Step, int], None] | None,
    ) -> None:
        self.plan, self.device, self.vocabulary, self.cache, self.on_step = plan, device, vocabulary, cache, on_step
        self.load_dataset = functools.cache(load_dataset)
        self.checksum = functools.cache(lambda trunk: self.trunk(trunk).checksum)
        self._trunk: Trunk | None = None

    def trunk(self, name: str) -> Trunk:
        """Return a trunk; only the last one is kept."""
        if self._trunk is None or self._trunk.name != name:
            self._trunk = None  # frees the memory before the next one is loaded
            checkpoint = self.plan.checkpoints.get(name)
            self._trunk = load_trunk(name, checkpoint=checkpoint, vocabulary=self.vocabulary, device=self.device)
        return self._trunk

    def resolve(self, key: RunKey, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return all settings of a run, defaults included; the key's seed also drives training."""
        self.load_dataset(key.dataset)  # fails before the first run if it is not there
        where = f"[fit] for {key.name}"
        recipe = override(
            default_recipe(key.trunk, key.method, key.shots or 1), {"seed": key.seed, **given["fit"]}, where
        )
        return {
            **given,
            "trunk_checksum": self.checksum(key.trunk),
            "fit": None if key.method == ZERO_SHOT else to_mapping(recipe),
            "predict": to_mapping(recipe.predict_config),
        }

    def execute(self, key: RunKey, config: Mapping[str, Any], directory: Path) -> RunOutcome:
        """Fit, score once, and leave predictions, history and adapter in ``directory``."""
        started = time.perf_counter()
        _reset_peak(self.device)
        data = self.load_dataset(key.dataset)
        protocol = from_mapping(ProtocolConfig, config["protocol"], key.name)
        classes = (protocol.prompts == "official" and data.prompts) or data.classes
        model = attach(self.trunk(key.trunk), key.method, classes=classes)
        val_ap, adapter_bytes = None, 0
        if config["fit"] is not None:
            history = self._fit(model, data, key, protocol, from_mapping(FitConfig, config["fit"], key.name))
            val_ap = history.best_ap
            _write_json(directory / "history.json", asdict(history))
            model.save(directory / "adapter")
            adapter_bytes = sum(file.stat().st_size for file in (directory / "adapter").iterdir())
        scored = data.test if protocol.test_split == "test" else data.val
        found = evaluate(model, scored, from_mapping(PredictConfig, config["predict"], key.name), cache=self.cache)
        _write_json(directory / "predictions.json", found.predictions)
        cost = RunCost(
            trained_parameters=model.trained_parameters,
            adapter_bytes=adapter_bytes,
            peak_bytes=_peak_bytes(self.device),
            seconds=time.perf_counter() - started,
        )
        return RunOutcome(metrics=_metrics(found, val_ap), cost=cost)

    def _fit(
        self, model: AdaptedGlip, data: Dataset, key: RunKey, protocol: ProtocolConfig, config: FitConfig
    ) -> History:
        train = training_split(data, key, protocol)
        history = fit(model, train, data.val, config, cache=self.cache, on_step=self.on_step)
        if history.stopped_by == "interrupt":
            raise KeyboardInterrupt  # half a run is no record
        return history


def training_split(data: Dataset, key: RunKey, protocol: ProtocolConfig) -> Split:
    """Return the pictures that a run learns from."""
    if key.shots == "all":
        return data.train.with_boxes()
    pick = few_shot_split if protocol.few_shot_source == "official" else sample_few_shot
    return pick(data.train, key.shots, key.seed)


def _metrics(found: Evaluation, val_ap: float | None) -> RunMetrics:
    values = {name: value for name, value in vars(found).items() if name != "predictions"}
    return RunMetrics(**values, val_ap=val_ap)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _reset_peak(device: str) -> None:
    """Forget the highest memory in use so far, where the system allows it, so that a run reports its own."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux


def _peak_bytes(device: str) -> int:
    """Return the highest memory in use since ``_reset_peak``: of the GPU, or of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes, of the whole process


def _describe(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
