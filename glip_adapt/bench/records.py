"""RunRecord: settings, outcome and environment of one run, and its file on disk.

One run is one folder ``OUT/<key.name>/`` with ``record.json`` and whatever files the run wrote beside it. A folder
appears under its name only when complete: it is filled as ``OUT/.partial-<key.name>/`` and renamed (claims.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import reprlib
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glip_adapt.bench.plan import ProtocolConfig, RunKey
from glip_adapt.core.config import from_mapping, to_mapping
from glip_adapt.core.files import written_whole

SCHEMA_VERSION = 1  # a new field with a default leaves it; raise it when a field goes or changes its meaning
RECORD_FILE = "record.json"
MAX_RECORD_BYTES = 16 * 2**20
MAX_DEPTH = 50  # of tables and lists in a record
MAX_SECONDS = 10**8  # three years
VERSIONED_PACKAGES = ("torch", "torchvision", "timm", "transformers", "peft")

PARTIAL = ".partial-"  # begins the name of a folder that is being filled
REPLACED = f"{PARTIAL}replaced-"  # of a failed run that is making room


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """Metrics of the scored split, fractions in [0, 1]; None where undefined (no box of that size or class).

    In a file the values lie flat beside the other fields: ``{"ap": 0.3, "ap50": 0.5, …, "per_class": {…}, …}``.

    Attributes:
        values: metric name → value on the whole split: ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, …
        per_class: class name → AP over IoU 0.50:0.95.
        val_ap: best AP on the validation split, which selected the scored state; None if nothing was selected.
        retention: name of another dataset → AP there after adapting to this one; empty where it was not asked for.
    """

    values: Mapping[str, float | None]
    per_class: Mapping[str, float | None]
    val_ap: float | None = None
    retention: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := {"per_class", "val_ap", "retention"} & self.values.keys():
            raise ValueError(f"metrics: {sorted(taken)[0]!r} is a field of its own; give the metric another name.")
        named = (*self.values.items(), ("val_ap", self.val_ap), *self.per_class.items(), *self.retention.items())
        for name, value in named:
            if value is not None and not 0 <= value <= 1:  # NaN and the -1 of pycocotools fail here as well
                raise ValueError(f"metrics: '{name}' is {value}; expected a fraction in [0, 1], or None if undefined.")

    @property
    def ap(self) -> float | None:
        """COCO AP over IoU 0.50:0.95, the primary metric; None if undefined or not measured."""
        return self.values.get("ap")


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Cost of a run.

    Attributes:
        trained_parameters: numbers that were trained.
        adapter_bytes: size of the saved adapter.
        peak_bytes: highest memory in use: of the device if it has its own, else of the process; None if unknown.
        seconds: wall time of fitting and scoring; trunk and dataset are loaded before.
        stages: stage → seconds, such as ``training``, ``validation``, ``scoring``, ``decoding`` and ``test``; empty in
            records from before this field. See ``core.timing``.
    """

    trained_parameters: int
    adapter_bytes: int
    peak_bytes: int | None
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in vars(self).items() if name != "stages"}
        for name, value in {**numbers, **self.stages}.items():
            limit = 2**63 if name in ("trained_parameters", "adapter_bytes", "peak_bytes") else MAX_SECONDS
            if value is not None and not 0 <= value < limit:
                raise ValueError(f"cost: '{name}' is {value:.3g}; expected a number from 0, below {limit:.3g}.")


@dataclass(frozen=True, kw_only=True)
class CrossValidated:
    """Choice and expectation of a cross-validation over the training images; see ``engine.selection``.

    Attributes:
        expected_ap: AP to expect, a fraction in [0, 1]; None if nothing could be held out.
        start_ap: AP of the untrained state on the same images.
        steps: of the chosen state.
        factor: part of the way from the start to the state after these steps.
        folds: how many there were.
    """

    expected_ap: float | None
    start_ap: float | None
    steps: int
    factor: float
    folds: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: its key, resolved settings, outcome and environment.

    Attributes:
        schema: version of this layout.
        key: which run.
        config: resolved settings, JSON-ready.
        status: a run that is done has metrics and cost, a failed one has an error.
        metrics: of the scored split.
        cost: of fitting and scoring.
        train_source: source of the training images: ``"full"``, ``"sampled"``, or ``"official FILE"`` for a prepared
            few-shot file; None if nothing was trained, and in records from before this field.
        selected_on: name of the split that selected the scored state, ``"Raccoon/val"`` for example; None if nothing
            was selected, and in records from before this field.
        cross_validated: what cross-validation chose, if it did.
        error: one line that says what went wrong, then the traceback.
        environment: as ``capture_environment`` returns it.
        created: ISO 8601 time of completion, UTC.
    """

    schema: int = SCHEMA_VERSION
    key: RunKey
    config: Mapping[str, Any]
    status: Literal["done", "failed"]
    metrics: RunMetrics | None = None
    cost: RunCost | None = None
    train_source: str | None = None
    selected_on: str | None = None
    cross_validated: CrossValidated | None = None
    error: str | None = None
    environment: Mapping[str, Any]
    created: str

    def __post_init__(self) -> None:
        done = self.metrics is not None and self.cost is not None and self.error is None
        failed = self.metrics is None and self.cost is None and self.error is not None
        if not (done if self.status == "done" else failed):
            raise ValueError("a record that is done holds metrics and cost, a failed one holds only an error.")


def to_json(record: RunRecord) -> dict[str, Any]:
    """Return a record in the form of its file: as ``to_mapping`` does, with the metrics flat."""
    content = to_mapping(record)
    if content["metrics"] is not None:
        content["metrics"] = {**content["metrics"].pop("values"), **content["metrics"]}
    return content


def _from_json(content: Mapping[str, Any], where: str) -> RunRecord:
    """Return the record in the content of a file; the inverse of ``to_json``."""
    metrics = content.get("metrics")
    if isinstance(metrics, dict):
        fields = {name: metrics[name] for name in ("per_class", "val_ap", "retention") if name in metrics}
        values = {name: value for name, value in metrics.items() if name not in fields}
        content = {**content, "metrics": {"values": values, **fields}}
    return from_mapping(RunRecord, content, where)


def write_record(out: Path, record: RunRecord, directory: Path) -> Path:
    """Complete ``directory`` with ``record``, give it its final name in ``out`` in one step, and return that folder.

    The directory is from ``claims.partial_run`` and holds the other files of the run. A failed record of the same key
    makes room first; if the process is killed in between, ``complete_replacement`` does the rest. A finished record is
    never replaced.

    Raises:
        FileExistsError: if the key has a finished record.
        ValueError: if the record holds NaN or infinity.
    """
    text = json.dumps(to_json(record), indent=2, allow_nan=False, ensure_ascii=False)
    # An error may name a file whose name is no text; JSON has the same escapes for it.
    with written_whole(directory / RECORD_FILE) as file:
        file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    final, replaced = out / record.key.name, out / f"{REPLACED}{record.key.name}"
    if final.exists():
        if read_record(final).status == "done":
            raise FileExistsError(f"{final}: holds a finished run. Remove it by hand to run it again.")
        os.replace(final, replaced)
    os.replace(directory, final)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def complete_replacement(out: Path, name: str) -> None:
    """Give a complete run its final name, if its process was killed between the renames of ``write_record``."""
    directory, final = out / f"{PARTIAL}{name}", out / name
    if (out / f"{REPLACED}{name}").exists() and not final.exists() and (directory / RECORD_FILE).exists():
        os.replace(directory, final)


def read_record(directory: Path) -> RunRecord:
    """Return the record of one run folder.

    Raises:
        ValueError: if the file is absent, broken, of another schema, or belongs to another key; names the file.
    """
    path = directory / RECORD_FILE
    advice = "Remove the folder to run it again."
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise ValueError("it is no file")
        if status.st_size > MAX_RECORD_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {MAX_RECORD_BYTES:,}")
        content = json.loads(path.read_text(encoding="utf-8"))
        if _depth(content) > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable record: {error}. {advice}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA_VERSION:
        raise ValueError(f"{path}: the record has schema {schema!r}, this version reads {SCHEMA_VERSION}. {advice}")
    try:
        record = _from_json(content, str(path))
        _check_free_parts(record, str(path))
    except ValueError as error:
        raise ValueError(f"{error} {advice}") from error
    if record.key.name != directory.name:
        raise ValueError(f"{path}: holds the record of {record.key.name}, not of its folder. {advice}")
    return record


def read_records(out: Path) -> list[RunRecord]:
    """Return the records of all complete runs in a folder, by name; ValueError names the file of a broken one."""
    folders = sorted(file.parent for file in out.glob(f"*/{RECORD_FILE}") if not file.parent.name.startswith("."))
    return [record for folder in folders if (record := find_record(folder)) is not None]


def find_record(directory: Path) -> RunRecord | None:
    """Return the record of one run folder, or None where there is no such folder; errors are those of ``read_record``.

    A failed run may make room for the next one at this instant; then the folder is read once more.
    """
    try:
        return read_record(directory)
    except ValueError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    return read_record(directory) if directory.exists() else None


def _check_free_parts(record: RunRecord, where: str) -> None:
    """Raise if a free part of a record, ``config`` or ``environment``, has a wrong type in an entry that is read."""
    tables = dict.fromkeys(("protocol", "fit", "settings", "predict"), Mapping)
    for place, part, kinds in (
        ("config", record.config, {**tables, "trunk_checksum": str}),
        ("environment", record.environment, {"device": str, "commit": str, "dirty": bool}),
    ):
        for name, kind in kinds.items():
            if not isinstance(part.get(name), kind | None):
                expected = {Mapping: "a table", str: "a string", bool: "true or false"}[kind]
                raise ValueError(f"{where}: {place}, {name}: expected {expected}, got {reprlib.repr(part[name])}.")
    protocol = record.config.get("protocol") or {}
    read = {name: protocol[name] for name in ("annotation_ids",) if name in protocol}
    from_mapping(ProtocolConfig, read, f"{where}, config, protocol")


def _depth(content: Any) -> int:
    """Return how deep tables and lists are nested."""
    depth, level = 0, [content]
    while level:
        depth += 1
        level = [i for v in level for i in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return depth


def capture_environment(device: str, threads: int) -> dict[str, Any]:
    """Return the environment of a run, JSON-ready: its device in words and CPU threads, and what this machine has.

    The keys are ``commit`` and ``dirty`` of the checkout that holds this package (None without one), ``python``,
    ``versions`` (package → version or None), ``platform``, ``device``, ``threads``.
    """
    package = Path(__file__).resolve().parent.parent
    tracked = _git(package, "ls-files", "--error-unmatch", __file__)  # not merely inside someone else's checkout
    commit = _git(package, "rev-parse", "HEAD") if tracked else None
    changes = _git(package, "status", "--porcelain", "--", str(package)) if commit else None
    return {
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONED_PACKAGES},
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where there is no git or no repository; the repository starts no program."""
    try:
        command = ["git", "-c", "core.fsmonitor=false", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
