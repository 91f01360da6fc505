"""BenchPlan: trunks × datasets × methods × shots × seeds → RunKeys, and the settings of each run.

The defaults are the full protocol of GLIP, arXiv 2112.03857, sections 5.2 and E.3: the 13 ODinW sets, 0, 1, 3, 5, 10
shots and all data, three seeds. Which methods, trunks and suites exist is handed in as data.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Literal

from glip_adapt.core.config import describe_unknown, to_mapping
from glip_adapt.core.errors import UnknownNameError
from glip_adapt.core.settings import FitConfig, RecipeName, Shots, Views

ZERO_SHOT = "zero_shot"
MAX_RUNS = 20_000
_TABLES = ("compositions", "rate_factors")  # settings of ``FitConfig`` that are tables themselves

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]|--|^[.\s]|[.\s]$|^$')


@dataclass(frozen=True)
class RunKey:
    """Key of one run: its five coordinates in a plan.

    Attributes:
        trunk: name of the frozen model.
        dataset: the dataset entry as the plan gives it, a known name or a path.
        method: name of the adapter.
        shots: images wanted per class in training, or ``"all"``.
        seed: draw of the few-shot subset, and seed of the training.
    """

    trunk: str
    dataset: str
    method: str
    shots: Shots
    seed: int

    def __post_init__(self) -> None:
        if self.shots != "all" and self.shots < 0:
            raise ValueError(f"shots: {self.shots} is negative; expected 0, a positive number or 'all'.")
        if self.seed < 0:
            raise ValueError(f"seeds: {self.seed} is negative; expected 0 or a positive number.")
        if max(self.seed, 0 if self.shots == "all" else self.shots) >= 2**63:
            raise ValueError("shots, seeds: expected numbers that fit 64 bits.")
        for part, value in (("trunk", self.trunk), ("dataset", self.dataset_name), ("method", self.method)):
            if match := _UNSAFE.search(value):
                raise ValueError(
                    f"The {part} {value!r} cannot name a run: {match.group() or 'an empty name'!r} is not safe in a "
                    "folder name there. Rename it, or reach it through a link with a plain name."
                )

    @property
    def dataset_name(self) -> str:
        """The dataset entry without the folders above it."""
        return PurePath(self.dataset).name

    @property
    def name(self) -> str:
        """The folder name of the run: ``<trunk>--<dataset>--<method>--<shots>--<seed>``."""
        return f"{self.trunk}--{self.dataset_name}--{self.method}--{self.shots}--{self.seed}"


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """The choices that papers leave unclear, stored in every record."""

    test_split: Literal["test", "val"] = "test"
    """Split scored once, after fitting."""
    prompts: Literal["names", "official"] = "names"
    """Wording of the caption: bare class names, or the official prefix and suffix of a class where one exists."""
    few_shot_source: Literal["official", "sampled"] = "official"
    """``official``: the official few-shot file where present, else the sampler; ``sampled``: always the sampler."""
    selection: Literal["best_on_val", "best_on_few_val", "cross_validation", "last"] = "best_on_val"
    """State of a fit that is scored. ``best_on_val``: the one with the highest validation AP. ``best_on_few_val``: that
    on as many validation images per class as there are shots, from the official file where there is one.
    ``cross_validation``: the one that the training images choose among themselves, see engine/selection.py. ``last``:
    the one after the last step. The latter two use no validation image, so that nothing ends training before its
    ceiling."""

    folds: int = 3
    """Parts of the training images for ``cross_validation``."""

    backgrounds: int = 0
    """Images without boxes to learn from as well."""

    negatives: tuple[str, ...] = ()
    """Names in the caption that no image shows, learned as wrong."""
    kept_features: Literal["float32", "bfloat16"] = "float32"
    """Precision in which features of the frozen stages are kept between uses. ``bfloat16`` takes half the room."""
    annotation_ids: Literal["renumbered", "as_in_file"] = "renumbered"
    """Numbers of boxes while they are scored, in validation as well. ``as_in_file``: as the public evaluator does it,
    where a box with id 0 can never be found; for comparison with published numbers. ``renumbered``: from 1."""
    views: Views | None = None
    """Sizes, mirror images and tiles in which a test image is looked at, see ``Views``; absent: one view. Validation
    has one view."""
    retention: tuple[str, ...] = ()
    """Datasets of the plan, or suites, on which an adapted model is scored as well, to see what it forgets."""

    def __post_init__(self) -> None:
        if self.folds < 2 or self.backgrounds < 0:
            raise ValueError(
                f"folds and backgrounds are {self.folds} and {self.backgrounds}; expected at least 2 and 0."
            )


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """A grid of runs and their settings. Relative paths start at the folder in which the benchmark is started."""

    trunks: tuple[str, ...] = ("glip-t",)
    """Names of frozen models."""
    datasets: tuple[str, ...] = ("odinw13",)
    """Known names, suites or paths; in a checked plan suites are spelled out."""
    methods: tuple[str, ...] = (ZERO_SHOT, "prompt", "linear_probe", "full")
    """Names of adapters."""
    shots: tuple[Shots, ...] = (0, 1, 3, 5, 10, "all")
    """Images per class, 0 or more, or ``"all"``; 0 is zero-shot, whatever the method."""
    seeds: tuple[int, ...] = (3, 30, 300)
    """0 or more; 3, 30 and 300 have official few-shot files."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Trunk name → file or folder with its weights; a trunk without an entry is found by its name."""
    recipe: RecipeName = "published"
    """Where the defaults of training, and of the methods' adapters, come from; see ``default_recipe``."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Training settings that differ from the defaults; a table named by a method holds for that method only."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a method's adapter that differ from its defaults; a table per method."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    """The choices that papers leave unclear."""
    threads: int | None = None
    """CPU threads of a run, which move the last bits of its numbers. None: one for the nano trunks, for others the
    cores of the machine over the number of workers."""

    def __post_init__(self) -> None:
        for name in ("trunks", "datasets", "methods", "shots", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name}: the list is empty; give at least one entry or leave the key out.")
        axes = (self.trunks, self.datasets, self.methods, self.shots, self.seeds)
        if (runs := math.prod(map(len, axes))) > MAX_RUNS:
            raise ValueError(f"the plan has {runs:,} runs, more than {MAX_RUNS:,}; split it.")
        for name in ("trunks", "methods", "shots", "seeds"):
            _check_distinct(name, getattr(self, name))
        _check_distinct("datasets", [PurePath(entry).name for entry in self.datasets])
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: {self.threads} is no number of threads; expected at least 1.")
        self.keys()  # every key checks its own parts

    @property
    def fit_tables(self) -> list[str]:
        """Names of the tables of ``fit`` that hold for one method; some settings are tables themselves."""
        settings = {field.name for field in dataclasses.fields(FitConfig)}
        return [name for name, value in self.fit.items() if isinstance(value, Mapping) and name not in settings]

    def keys(self) -> tuple[RunKey, ...]:
        """Return the runs of the plan, trunk by trunk and dataset by dataset, so that caches are reused.

        Zero-shot does not depend on method, shots or seed. It is one run per trunk and dataset, under the first seed,
        planned when the shots hold 0 or the methods hold ``zero_shot``.
        """
        methods = [method for method in self.methods if method != ZERO_SHOT]
        shots = [value for value in self.shots if value != 0]
        runs = [(method, value, seed) for seed in self.seeds for value in shots for method in methods]
        if 0 in self.shots or ZERO_SHOT in self.methods:
            runs.insert(0, (ZERO_SHOT, 0, self.seeds[0]))
        places = itertools.product(self.trunks, self.datasets)
        return tuple(RunKey(*place, method, value, seed) for place in places for method, value, seed in runs)

    def config_of(self, key: RunKey) -> dict[str, Any]:
        """Return the settings of one run as the plan gives them, JSON-ready.

        Returns:
            ``checkpoint`` (path or None), ``recipe`` (its name), ``fit`` (shared settings with those of the method on
            top), ``protocol``, and ``settings`` of the adapter.
        """
        shared = {name: value for name, value in self.fit.items() if name not in self.fit_tables}
        # Zero-shot keeps everything by definition.
        protocol = dataclasses.replace(self.protocol, retention=()) if key.method == ZERO_SHOT else self.protocol
        return {
            "checkpoint": self.checkpoints.get(key.trunk),
            "recipe": self.recipe,
            "fit": {**shared, **self.fit.get(key.method, {})},
            "protocol": to_mapping(protocol),
            "settings": {**self.settings.get(key.method, {})},
        }


def check_plan(
    plan: BenchPlan,
    where: str,
    *,
    methods: Collection[str],
    trunks: Collection[str],
    suites: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> BenchPlan:
    """Return ``plan`` with suites spelled out, after checking it against the methods, trunks and suites that exist.

    ``where`` is what errors call the plan, for example its file; ``suites`` maps a name to those of its datasets.

    Raises:
        ValueError: if the plan asks for something that does not exist or makes no sense; names place, key and entry.
    """
    for place, entries, choices in (
        ("trunks", plan.trunks, trunks),
        ("methods", plan.methods, methods),
        ("fit", plan.fit_tables, (*methods, *_TABLES)),
        ("settings", plan.settings, methods),
        ("checkpoints", plan.checkpoints, plan.trunks),
    ):
        for entry in entries:
            if entry not in choices:
                raise UnknownNameError(f"{where}, {place}: unknown {describe_unknown(entry, choices)}.")
    for name, value in plan.fit.items():
        if name in methods and not isinstance(value, Mapping):
            raise ValueError(f"{where}, fit: '{name}' is a method; write its settings as a table [fit.{name}].")
    for trunk, file in plan.checkpoints.items():
        if not Path(file).exists():
            raise ValueError(f"{where}, checkpoints, {trunk}: there is no file or folder {file!r}.")
    datasets = _spell_out(plan.datasets, suites)
    retention = _spell_out(plan.protocol.retention, suites)
    for entry in retention:
        if entry not in datasets:
            raise UnknownNameError(f"{where}, protocol, retention: unknown {describe_unknown(entry, datasets)}.")
    try:
        protocol = dataclasses.replace(plan.protocol, retention=retention)
        return dataclasses.replace(plan, datasets=datasets, protocol=protocol)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _spell_out(entries: Sequence[str], suites: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return dataset entries with the members of a suite in its place."""
    return tuple(name for entry in entries for name in suites.get(entry, (entry,)))


def _check_distinct(name: str, entries: Sequence[Hashable]) -> None:
    """Raise if an entry is listed twice."""
    if repeated := [entry for entry, count in Counter(entries).items() if count > 1]:
        raise ValueError(f"{name}: {repeated[0]!r} is listed twice; each run has one folder, so keep one of them.")
