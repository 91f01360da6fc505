"""Check a plan against the methods, trunks and datasets that exist; then run or preview it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.adapters import ADAPTERS, build_adapter, check_taken
from glip_adapt.bench.events import Work
from glip_adapt.bench.forecast import Forecast, Sizes, forecast_runs
from glip_adapt.bench.plan import ZERO_SHOT, BenchPlan, ProtocolConfig, RunKey, check_plan
from glip_adapt.bench.records import RunRecord, read_records
from glip_adapt.bench.runner import RunSummary, in_process, list_runs, run_plan
from glip_adapt.bench.workers import ProcessPool, in_workers
from glip_adapt.core.config import from_mapping, override, read_toml, to_mapping
from glip_adapt.core.settings import FitConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.glyphs13 import rendered_datasets
from glip_adapt.data.odinw import find_spec, find_suite, groups, suites
from glip_adapt.trunks.released import TRUNKS, default_recipe, method_settings, packaged_checksum

if TYPE_CHECKING:
    from glip_adapt.bench.executor import BuildFitExecutor
    from glip_adapt.engine.cache import FeatureCache
    from glip_adapt.engine.optimise import Step


def read_plan(path: Path | str) -> BenchPlan:
    """Return the plan of a TOML file, checked against the methods, trunks and suites that exist."""
    return _check_plan(from_mapping(BenchPlan, read_toml(path), str(path)), str(path))


def run_benchmark(
    plan: BenchPlan,
    out: Path | str,
    *,
    where: str = "plan",
    device: str = "cpu",
    vocabulary: Path | str | None = None,
    cache: FeatureCache | Path | None = None,
    workers: int = 1,
    ray: str | None = None,
    on_start: Callable[[RunKey, int, int], None] | None = None,
    on_step: Callable[[RunKey, Step, int], None] | None = None,
    on_finish: Callable[[RunRecord], None] | None = None,
) -> RunSummary:
    """Do every run of ``plan`` that ``out`` does not hold yet; see ``runner.run_plan``.

    Several calls may work on one folder at the same time. A script that asks for workers must do its own work below
    ``if __name__ == "__main__"``, as workers import it.

    Args:
        plan: from ``read_plan``, or made by hand.
        out: the results folder.
        where: what errors call the plan, for example its file.
        device: where the networks go; with several workers ``cuda`` means all GPUs, dealt in turn.
        vocabulary: ``vocab.txt`` of bert-base-uncased, for trunks that read it and machines without a network.
        cache: keeps features of the frozen stages over all runs: a cache of this process, or a folder that workers
            share; by default 2 GiB in memory, of all workers together.
        workers: processes that share the runs; 1 is this process.
        ray: address of a Ray cluster that the workers are put on, see ``ray_pool``.
        on_start: called when a run begins with its key, how many runs of the plan are over, and how many there are.
        on_step: called after each training step with the key of its run, the step and the number of steps.
        on_finish: called with the record of a run, done or failed.

    Raises:
        ValueError: before the first run, if an entry of the plan makes no sense here, or a finished run has other
            settings.
        FileNotFoundError: before the first run, if a dataset or checkpoint is not on this machine.
    """
    plan = _check_plan(plan, where)
    _check_datasets(plan, where)
    from glip_adapt.bench.executor import BuildFitExecutor
    from glip_adapt.engine.cache import FeatureCache

    if isinstance(cache, FeatureCache) and (workers > 1 or ray):
        raise ValueError("cache: workers share no memory; give a folder that they can share, or leave it out.")
    build = BuildFitExecutor(plan=plan, device=device, vocabulary=vocabulary, cache=cache, workers=workers)
    checksum = functools.cache(functools.partial(_load_checksum, plan, where, vocabulary))
    return run_plan(
        plan,
        Path(out),
        _choose_work(build, ray),
        resolve=lambda key, given: _resolve(key, given, where, checksum(key.trunk)),
        update=update_config,
        on_start=on_start,
        on_step=on_step,
        on_finish=on_finish,
    )


def preview_benchmark(
    plan: BenchPlan, out: Path | str, *, where: str = "plan", vocabulary: Path | str | None = None
) -> tuple[list[Forecast], dict[str, str]]:
    """Return a forecast of every run of ``run_benchmark``, and the datasets that it would miss; no run begins.

    The arguments and errors are those of ``run_benchmark``; ``out`` may be absent.

    Returns:
        The forecasts, and dataset → why it cannot be read yet, with the command that fetches it.
    """
    plan = _check_plan(plan, where)
    missing = _missing_datasets(plan, where)
    records = read_records(Path(out))
    recorded = {record.key.trunk: record.config.get("trunk_checksum") for record in records}

    @functools.cache
    def checksum(trunk: str) -> str | None:
        if trunk in plan.checkpoints:
            return _load_checksum(plan, where, vocabulary, trunk)
        spec = TRUNKS[trunk]
        packaged = spec.public_file is None and not spec.starts_random
        return packaged_checksum(trunk) if packaged else recorded.get(trunk)

    runs = list_runs(
        plan, Path(out), lambda key, given: _resolve(key, given, where, checksum(key.trunk)), update_config
    )
    sizes = {entry: _sizes_of(entry, is_here=entry not in missing) for entry in plan.datasets}
    return forecast_runs(runs, records, sizes), missing


def update_config(method: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a record by their present names; a setting that came later had its default."""
    kind = ADAPTERS[method]
    adapter = to_mapping(build_adapter(method, {}))
    updated = {**config, "settings": {kind.renamed.get(name, name): v for name, v in config["settings"].items()}}
    tables = {"protocol": to_mapping(ProtocolConfig()), "fit": to_mapping(FitConfig()), "settings": adapter}
    return updated | {name: {**tables[name], **updated[name]} for name in tables if updated.get(name) is not None}


def _choose_work(build: BuildFitExecutor, ray: str | None) -> Work:
    """Return the ``Work`` of this process, of worker processes, or of a Ray cluster."""
    if ray is None:
        return in_process(build(0)) if build.workers == 1 else in_workers(ProcessPool(build, build.workers))
    from glip_adapt.bench.executor import threads_of
    from glip_adapt.bench.ray_pool import RayPool

    threads = max(threads_of(build.plan, trunk, build.workers) for trunk in build.plan.trunks)
    gpus = 1 if build.device.startswith("cuda") else 0
    return in_workers(RayPool(build, build.workers, ray, threads=threads, gpus=gpus))


def _resolve(key: RunKey, given: Mapping[str, Any], where: str, checksum: str | None) -> Mapping[str, Any]:
    """Return all settings of a run, defaults included; the key's seed also drives training."""
    given, fit = dict(given), {"seed": key.seed, **given["fit"]}
    name = given.pop("recipe")  # all that it stands for is in the settings
    recipe = default_recipe(key.trunk, key.method, key.shots or 1, name)
    recipe = override(recipe, fit, f"{where}, fit, for {key.name}")
    settings = {**method_settings(key.trunk, key.method, name), **given["settings"]}
    if key.method == ZERO_SHOT and (suite := find_suite(key.dataset)) is not None:
        settings = {"names_per_caption": suite.names_per_caption, **settings}
    return {
        **given,
        "trunk_checksum": checksum,
        "settings": to_mapping(build_adapter(key.method, settings)),
        "fit": None if key.method == ZERO_SHOT else to_mapping(recipe),
        "predict": to_mapping(recipe.view),
    }


def _check_plan(plan: BenchPlan, where: str) -> BenchPlan:
    """Return ``plan`` with suites spelled out, after a check of its entries and of the settings of its methods."""
    members = {name: tuple(spec.official_name for spec in specs) for name, specs in groups().items()}
    members["glyphs13"] = tuple(rendered_datasets())
    members |= {spec.official_name: (spec.short_name,) for spec in suites()}  # which can name a run
    plan = check_plan(plan, where, methods=ADAPTERS, trunks=TRUNKS, suites=members)
    with _placing(where):
        for method, settings in plan.settings.items():
            build_adapter(method, settings)
    for key in plan.keys():  # noqa: SIM118  # a plan is no dict
        try:
            check_taken(key.trunk, ADAPTERS[key.method])
        except ValueError as error:
            hint = f"Give {key.trunk} a plan of its own; two plans may share one results folder."
            raise ValueError(f"{where}, methods: {error} {hint}") from error
    return plan


def _load_checksum(plan: BenchPlan, where: str, vocabulary: Path | str | None, trunk: str) -> str:
    """Return the checksum of a trunk's weights. The weights are not kept: every worker loads its own."""
    from glip_adapt.trunks.catalogue import load_trunk

    with _placing(f"{where}, trunks, {trunk}"):
        loaded = load_trunk(trunk, checkpoint=plan.checkpoints.get(trunk), vocabulary=vocabulary)
    return loaded.checksum


def _check_datasets(plan: BenchPlan, where: str) -> None:
    """Raise if a dataset of the plan, or a split that its runs need, is not on this machine."""
    keys, needed = plan.keys(), {str(plan.protocol.test_split)}
    if any(key.method != ZERO_SHOT for key in keys):
        needed |= {"train", "val"} if plan.protocol.selection.endswith("_val") else {"train"}
    for entry in plan.datasets:
        with _placing(f"{where}, datasets, {entry}"):
            data = load_dataset(entry)
            for split in sorted(needed):
                getattr(data, split)


def _missing_datasets(plan: BenchPlan, where: str) -> dict[str, str]:
    """Return the datasets of a plan that are not on this machine, and why; raise for those that exist nowhere."""
    missing = {}
    for entry in plan.datasets:
        with _placing(f"{where}, datasets, {entry}"):
            try:
                if entry not in rendered_datasets():  # those are rendered on first use
                    load_dataset(entry)
            except FileNotFoundError as error:
                missing[entry] = str(error)
    return missing


def _sizes_of(entry: str, is_here: bool) -> Sizes:
    """Return the sizes of a dataset: those of its files, else those that the paper states."""
    if is_here:
        data = load_dataset(entry)
        counts = {name: len(split) for name, split in data.splits.items()}
        return Sizes(
            train=counts.get("train"), val=len(data.selection), test=counts.get("test"), classes=len(data.classes)
        )
    facts = find_spec(entry)
    images = {name: split.images for name, split in facts.splits.items()}
    val = images.get(facts.early_stopping)
    return Sizes(
        train=images.get("train"),
        val=val,
        test=images.get("test"),
        classes=len(facts.classes) or facts.class_count or 0,
    )


@contextlib.contextmanager
def _placing(place: str) -> Iterator[None]:
    """Let the message of an error inside begin with a place in the plan."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
        raise kind(f"{place}: {error}") from error
