"""Files of the feature cache: safetensors in one folder, verified when first read, within a budget.

The metadata of a file hold its key, the structure of its tensors as JSON, and a digest of all content.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from glip_adapt.core.files import clear_partials, scratch_folder
from glip_adapt.core.structures import FrozenState, Fused, ImageBatch, Pyramid, TextFeatures

FORMAT_VERSION = 2  # raise it when the file format or the arithmetic of a stage changes; older entries then never match
ENTRIES = f"{'[0-9a-f]' * 2}/{'[0-9a-f]' * 64}.safetensors"  # nothing else in the folder is counted or deleted
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (ImageBatch, Pyramid, TextFeatures, Fused)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """All that a frozen result depends on.

    Attributes:
        trunk: checksum of the trunk's weights.
        image: digest of the image file, see ``image_digest``.
        view: how the image is shown, for example "480-1333-flip".
        stage: type of the result, for example "Pyramid".
        text: digest of the caption's token ids where the result depends on them, else "".
        numerics: what moves the last bits: device type, precision, versions of libraries.
    """

    trunk: str
    image: str
    view: str
    stage: str
    text: str
    numerics: str

    @property
    def digest(self) -> str:
        """64 hex digits that stand for all fields, the same in every process."""
        fields = json.dumps([FORMAT_VERSION, *dataclasses.astuple(self)])
        return hashlib.sha256(fields.encode()).hexdigest()


class CacheFolder:
    """Entries in files of one folder, within a budget; threads and processes may share it.

    A file stays if any process has used it in the present run. Others make room, least recently used first.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self.root, self.used_bytes = root, 0
        self._budget_bytes = budget_bytes
        self._sizes: dict[Path, int] = {}
        self._earlier: list[tuple[int, Path]] = []  # time of use and file, least recently used last
        self._verified: set[Path] = set()
        self._lock = threading.RLock()  # of the bookkeeping; never held while an entry is read or written
        for folder in root.glob("[0-9a-f][0-9a-f]"):
            clear_partials(folder)
        self.begin_run()

    def begin_run(self) -> None:
        """Look through the folder; what is there makes room unless it is used from now on."""
        with self._lock:
            self.used_bytes = 0
            self._sizes, self._earlier, self._verified = {}, [], set()
            for path in self.root.glob(ENTRIES):
                with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                    status = path.stat()
                    self._record(path, status.st_size)
                    self._earlier.append((status.st_mtime_ns, path))
            self._earlier.sort(reverse=True)

    def read(self, key: CacheKey) -> FrozenState | None:
        """Return an entry, or None if there is none; a damaged file is deleted."""
        path = self._path(key)
        try:
            state = _read_entry(path, key, verify=path not in self._verified)
            self._record(path, path.stat().st_size)
        except FileNotFoundError:
            return None
        except Exception as error:  # damage leads to any of them
            logger.warning("%s is not the entry it should be (%s): deleted, to be computed again.", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
                self._record(path, 0)
            return None
        self._verified.add(path)
        with contextlib.suppress(OSError):  # gone, or the folder is read-only
            os.utime(path)
        return state

    def write(self, key: CacheKey, state: FrozenState) -> bool:
        """Write an entry and return True, unless there is no room or writing has failed before."""
        if not self._make_room(size_bytes(state)):  # before anything is encoded in vain
            return False
        path, content = self._path(key), _encoded(key, state)
        with self._lock:
            if not self._make_room(len(content)):
                return False
            self._record(path, len(content))  # before writing: two threads may not count on the same room
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(path) as folder:  # no wait for the disk: a digest tells what a power cut has damaged
                (folder / path.name).write_bytes(content)
                os.replace(folder / path.name, path)
        except OSError as error:
            logger.warning("%s cannot be written (%s): this process stops writing entries.", path, error)
            self._record(path, 0)
            self._budget_bytes = 0
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Delete files until ``size`` bytes fit, and return whether they do."""
        with self._lock:
            while self.used_bytes + size > self._budget_bytes >= size and self._earlier:
                used_ns, path = self._earlier.pop()
                with contextlib.suppress(OSError):  # what cannot be deleted still counts
                    if path.exists() and path.stat().st_mtime_ns > used_ns:  # used in this run
                        continue
                    path.unlink(missing_ok=True)
                    self._record(path, 0)
            return self.used_bytes + size <= self._budget_bytes

    def _record(self, path: Path, size: int) -> None:
        with self._lock:
            self.used_bytes += size - self._sizes.get(path, 0)
            self._sizes[path] = size

    def _path(self, key: CacheKey) -> Path:
        return self.root / key.digest[:2] / f"{key.digest}.safetensors"


def map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Return a result with ``function`` applied to each tensor; it is the same object if no tensor changes."""
    if isinstance(state, Tensor):
        return function(state)
    if not isinstance(state, FrozenState | TextFeatures):
        return state
    old = vars(state)
    new = {name: map_tensors(function, value) for name, value in old.items()}
    return state if all(new[name] is old[name] for name in old) else type(state)(**new)


def size_bytes(state: Any) -> int:
    """Return how many bytes the tensors of a result take."""
    if isinstance(state, Tensor):
        return state.nbytes
    return sum(map(size_bytes, vars(state).values())) if isinstance(state, FrozenState | TextFeatures) else 0


def _encoded(key: CacheKey, state: FrozenState) -> bytes:
    """Return the content of a file; the tensors of ``state`` must be dense."""
    tensors: dict[str, Tensor] = {}

    def pack(value: Any) -> dict[str, Any]:
        if not isinstance(value, Tensor):
            return {"kind": type(value).__name__, "fields": vars(value)}
        name = f"tensor{len(tensors)}"
        tensors[name] = value.as_strided((value.numel(),), (1,))  # one run of memory
        return {"tensor": name, "shape": value.shape, "strides": value.stride()}

    entry = json.dumps({"key": vars(key), "state": state}, default=pack)
    return save(tensors, {"entry": entry, "digest": _digest(entry, tensors)})


@torch.inference_mode(False)  # a tensor of that mode could not take part in training later
def _read_entry(path: Path, key: CacheKey, *, verify: bool) -> FrozenState:
    """Return the state in a file; raise whatever damage leads to."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if verify and metadata["digest"] != _digest(metadata["entry"], tensors):
        raise ValueError("the digest does not match")

    def unpack(packed: dict[str, Any]) -> Any:
        if "tensor" in packed:  # a copy starts where torch places tensors, and needs the file no longer
            return tensors[packed["tensor"]].as_strided(packed["shape"], packed["strides"]).clone()
        if "kind" not in packed:
            return packed
        kind, values = KINDS[packed["kind"]], {name: _as_tuples(value) for name, value in packed["fields"].items()}
        for field in dataclasses.fields(kind):
            if field.default is None and values.get(field.name) is None:
                continue
            expected = KINDS.get(str(field.type), Tensor if str(field.type).startswith("Tensor") else tuple)
            if not isinstance(values[field.name], expected):
                raise ValueError(f"{packed['kind']}.{field.name} is a {type(values[field.name]).__name__}")
        return kind(**values)

    entry = json.loads(metadata["entry"], object_hook=unpack)
    if entry["key"] != vars(key):
        raise ValueError("it holds the result of another key")
    if not isinstance(entry["state"], FrozenState):
        raise ValueError(f"it holds a {type(entry['state']).__name__}")
    return entry["state"]


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _digest(entry: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(entry.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {len(tensor)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()
