"""The frozen prefix of the pipeline, computed once per picture and view, then read from memory or from disk.

Few-shot training draws from a fixed set of pictures × views, uniformly and for ever. Under such draws no entry is worth
more than another, so within a run none is evicted: the first that fit into memory stay, the others go to files in a
folder. What earlier runs left, in memory or in the folder, makes room for the present one, oldest first.

Every use of an entry gets the bits, strides and alignment of the first, so a cached run follows an uncached one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import heapq
import json
import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from glip_adapt.core.files import file_sha256
from glip_adapt.core.structures import FrozenState, Fused, ImageBatch, Pyramid, TextFeatures

FORMAT_VERSION = 2  # raise it when the file format or the arithmetic of a stage changes; older entries then never match
ALIGNMENT = 64  # bytes, as torch allocates; a dot product rounds differently where its operand starts elsewhere
ENTRIES = f"{'[0-9a-f]' * 2}/{'[0-9a-f]' * 64}.safetensors"  # nothing else in the folder is counted or deleted
LEFTOVERS = f"{'[0-9a-f]' * 2}/.{'[0-9a-f]' * 64}-*.partial"
LEFTOVER_SECONDS = 3600  # no writer takes that long, so it was killed

AnyState = TypeVar("AnyState", bound=FrozenState)
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (ImageBatch, Pyramid, TextFeatures, Fused)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """What a frozen result depends on, and nothing else.

    Attributes:
        trunk: checksum of the trunk's weights.
        image: digest of the image file, see ``image_digest``.
        view: how the picture is shown, for example "480-1333-flip".
        stage: what the result is, for example "Pyramid".
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


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache has done, and how much it holds.

    Attributes:
        memory_hits: results taken from memory.
        disk_hits: results taken from the folder.
        misses: results computed.
        memory_bytes: of the tensors in memory.
        disk_bytes: of the folder's files, those of other processes included as far as they have been seen.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


class FeatureCache:
    """Frozen results by key; threads may share one, processes its folder."""

    def __init__(
        self, *, memory_bytes: int = 2 * 2**30, folder: str | Path | None = None, disk_bytes: int = 20 * 2**30
    ) -> None:
        """Start with an empty memory, and with what ``folder`` holds.

        Args:
            memory_bytes: most bytes of tensors in memory.
            folder: where results go that memory has no room for; made when first needed.
            disk_bytes: most bytes of files in ``folder``, as far as this process has seen them.
        """
        self._memory_bytes = memory_bytes
        self._memory: dict[CacheKey, FrozenState] = {}
        self._used: set[CacheKey] = set()  # in this run: forgetting them would be churn
        self._mapped: dict[CacheKey, FrozenState] = {}  # verified files
        self._folder = None if folder is None else _Folder(Path(folder), disk_bytes)
        self._counts: Counter[str] = Counter()  # by field of CacheStatistics
        self._warned = memory_bytes == 0 and folder is None  # who gives no room knows that nothing is kept
        self._lock = threading.Lock()  # of the bookkeeping; never held while a result is computed, read or written

    @property
    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        with self._lock:
            return CacheStatistics(**self._counts, disk_bytes=self._folder.used_bytes if self._folder else 0)

    def begin_run(self) -> None:
        """Let the entries used so far make room, where it runs short, for those used from now on."""
        with self._lock:
            self._used.clear()
            self._mapped.clear()
        if self._folder is not None:
            self._folder.begin_run()

    def get(self, key: CacheKey, compute: Callable[[], AnyState], *, spill: bool = True) -> AnyState:
        """Return what is kept under ``key``, else what ``compute`` returns, which is then kept if there is room.

        Args:
            key: everything that the result depends on.
            compute: the frozen stages; threads that miss one key at the same time each call it.
            spill: whether the folder may keep it; False where computing costs no more than reading a file.

        Returns:
            The result on the CPU, detached and shared: nobody may write into it.
        """
        folder = self._folder if spill else None
        state = self._recall(key, folder)
        if state is None:
            state = self._keep(key, _map_tensors(_settled, compute()), folder)
            self._count("misses")
        return state  # type: ignore[return-value]  # a key names the stage, hence the kind of its result

    @torch.inference_mode(False)  # see _settled
    def _recall(self, key: CacheKey, folder: _Folder | None) -> FrozenState | None:
        if (state := self._memory.get(key)) is not None:
            with self._lock:
                self._used.add(key)
            self._count("memory_hits")
            return state
        if folder is None:
            return None
        if (state := self._mapped.get(key)) is None:
            if (state := folder.read(key)) is None:
                return None
            remembered = self._remember(key, state, copy=True)
            if remembered is None:
                self._mapped[key] = state
            state = remembered or state
        folder.touch(key)
        self._count("disk_hits")
        return state

    def _keep(self, key: CacheKey, state: FrozenState, folder: _Folder | None) -> FrozenState:
        if (remembered := self._remember(key, state)) is not None:
            return remembered
        if not ((folder and folder.write(key, state)) or self._warned):
            self._warned = True
            logger.warning(
                "The feature cache has no room for a result of %s: memory (%s) is full and %s. "
                "Such results are computed at every use; more room makes training faster.",
                _mib(_size(state)),
                _mib(self._memory_bytes),
                f"{folder} takes no more" if folder else "no folder is to take it",
            )
        return state

    def _remember(self, key: CacheKey, state: FrozenState, *, copy: bool = False) -> FrozenState | None:
        """Return what memory now holds under ``key``, None without room; another thread may have been first."""
        with self._lock:
            if key not in self._memory and self._make_room(_size(state)):
                self._memory[key] = _map_tensors(Tensor.clone, state) if copy else state
                self._counts["memory_bytes"] += _size(state)
            self._used.add(key)
            return self._memory.get(key)

    def _make_room(self, size: int) -> bool:
        """Forget entries of earlier runs, oldest first, until ``size`` bytes fit; the lock is held."""
        free = self._memory_bytes - self._counts["memory_bytes"]
        earlier = [key for key in self._memory if key not in self._used] if size > free else []
        if size > free + sum(_size(self._memory[key]) for key in earlier):
            return False
        for key in earlier:
            if size > self._memory_bytes - self._counts["memory_bytes"]:
                self._counts["memory_bytes"] -= _size(self._memory.pop(key))
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


class _Folder:
    """Entries in files of one folder, one per key, within a budget."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self.used_bytes = 0
        self._root = root
        self._budget_bytes = budget_bytes
        self._sizes: dict[Path, int] = {}
        self._in_use: set[Path] = set()  # asked for by this process: deleting them would be churn
        self._by_age: list[tuple[int, Path]] = []  # heap of what was there at the start, by time of use
        self._writable = True
        self._lock = threading.RLock()  # of the bookkeeping
        for path in root.glob(LEFTOVERS):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                    path.unlink()
        for path in root.glob(ENTRIES):
            with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                self._by_age.append((path.stat().st_mtime_ns, path))
                self._record(path, path.stat().st_size)
        heapq.heapify(self._by_age)

    def begin_run(self) -> None:
        """Let the files used so far make room, least recently used first."""
        with self._lock:
            self._in_use.clear()
            self._by_age = []
            for path in self._sizes:
                with contextlib.suppress(OSError):
                    self._by_age.append((path.stat().st_mtime_ns, path))
            heapq.heapify(self._by_age)

    def __str__(self) -> str:
        return f"{self._root} ({_mib(self._budget_bytes)})"

    def read(self, key: CacheKey) -> FrozenState | None:
        """Return an entry, memory-mapped, or None; a file that cannot be read or is another's is deleted."""
        path = self._path(key)
        with self._lock:
            self._in_use.add(path)
        try:
            state = _read_entry(path, key)
            self._record(path, path.stat().st_size)
        except FileNotFoundError:
            return None
        except Exception as error:  # damage leads to any of them
            logger.warning("%s is not the entry it should be (%s): deleted, to be computed again.", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
                self._record(path, 0)
            return None
        return state

    def write(self, key: CacheKey, state: FrozenState) -> bool:
        """Write an entry and return True, unless there is no room or writing has failed before."""
        if not (self._writable and self._make_room(_size(state))):  # before anything is encoded in vain
            return False
        path, content = self._path(key), _encoded(key, state)
        with self._lock:
            if not self._make_room(len(content)):
                return False
            self._record(path, len(content))  # before writing: two threads may not count on the same room
        try:
            _write_atomically(path, content)
        except OSError as error:
            logger.warning("%s cannot be written (%s): this process stops writing entries.", path, error)
            self._record(path, 0)
            self._writable = False
        return self._writable

    def touch(self, key: CacheKey) -> None:
        """Note that an entry was used."""
        with contextlib.suppress(OSError):  # gone, or the folder is read-only
            os.utime(self._path(key))

    def _make_room(self, size: int) -> bool:
        """Delete what this process has no use for, least recently used first, until ``size`` bytes fit."""
        with self._lock:
            while self.used_bytes + size > self._budget_bytes >= size and self._by_age:
                used_ns, path = heapq.heappop(self._by_age)
                if path in self._in_use:
                    continue
                with contextlib.suppress(OSError):  # what cannot be deleted still counts
                    if path.exists() and path.stat().st_mtime_ns > used_ns:  # by another process since
                        heapq.heappush(self._by_age, (path.stat().st_mtime_ns, path))
                        continue
                    path.unlink(missing_ok=True)
                    self._record(path, 0)
            return self.used_bytes + size <= self._budget_bytes

    def _record(self, path: Path, size: int) -> None:
        with self._lock:
            self.used_bytes += size - self._sizes.get(path, 0)
            self._sizes[path] = size

    def _path(self, key: CacheKey) -> Path:
        return self._root / key.digest[:2] / f"{key.digest}.safetensors"


def to(state: AnyState, device: torch.device | str) -> AnyState:
    """Return a result on ``device``; it is the same object where nothing has to move."""
    return _map_tensors(lambda tensor: tensor.to(device), state)


def image_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex, read again only when its size or time of change differs.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"No picture at {path}. `glip-adapt data check` lists every missing one.") from None
    return _file_digest(Path(path).resolve(), status.st_size, status.st_mtime_ns)


@functools.cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return ``value`` with ``function`` applied to all tensors in it; what does not change keeps its identity."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = tuple(_map_tensors(function, item) for item in value)
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    new = {name: _map_tensors(function, item) for name, item in old.items()}
    return value if all(new[name] is old[name] for name in old) else dataclasses.replace(value, **new)


@torch.inference_mode(False)  # a tensor of that mode could not take part in training later
def _settled(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU that holds no memory but its own; dense ones keep their strides."""
    tensor = tensor.detach().cpu()
    is_dense = tensor.stride() == torch.empty_like(tensor, device="meta").stride()
    is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.data_ptr() % ALIGNMENT == 0
    return tensor if is_dense and is_whole and not tensor.is_inference() else tensor.clone()


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON, each of its tensors put into ``tensors`` as one run of memory."""
    if isinstance(value, Tensor):
        tensors[name] = value.as_strided((value.numel(),), (1,))
        return {"tensor": name, "shape": value.shape, "strides": value.stride()}
    if isinstance(value, tuple):
        return [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if not dataclasses.is_dataclass(value):
        return value
    fields = [field.name for field in dataclasses.fields(value)]
    packed = {field: _pack(getattr(value, field), f"{name}.{field}", tensors) for field in fields}
    return {"kind": type(value).__name__, "fields": packed}


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo ``_pack``."""
    if isinstance(packed, list):
        return tuple(_unpack(item, tensors) for item in packed)
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]].as_strided(packed["shape"], packed["strides"])
    kind = KINDS[packed["kind"]]
    values = {name: _unpack(item, tensors) for name, item in packed["fields"].items()}
    for field in dataclasses.fields(kind):
        expected = KINDS.get(str(field.type), Tensor if field.type == "Tensor" else tuple)
        if not isinstance(values[field.name], expected):
            raise ValueError(f"{packed['kind']}.{field.name} is a {type(values[field.name]).__name__}")
    return kind(**values)


def _size(state: FrozenState) -> int:
    tensors: dict[str, Tensor] = {}
    _pack(state, "", tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def _encoded(key: CacheKey, state: FrozenState) -> bytes:
    """Return a safetensors file in which every tensor starts at a multiple of ``ALIGNMENT``."""
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, type(state).__name__, tensors)
    tensors = {name: pad(run, (0, -len(run) % (ALIGNMENT // run.itemsize))) for name, run in tensors.items()}
    entry = json.dumps({"key": dataclasses.asdict(key), "state": packed})
    content = save(tensors, {"entry": entry, "digest": _digest(entry, tensors)})
    header_end = 8 + int.from_bytes(content[:8], "little")
    spaces = -header_end % ALIGNMENT  # the format lets a header end in them
    length = (header_end - 8 + spaces).to_bytes(8, "little")
    return b"".join((length, content[8:header_end], b" " * spaces, memoryview(content)[header_end:]))


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.partial")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_entry(path: Path, key: CacheKey) -> FrozenState:
    """Return the state in a file, its tensors memory-mapped; raise whatever damage leads to."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if metadata["digest"] != _digest(metadata["entry"], tensors):
        raise ValueError("the digest does not match")
    entry = json.loads(metadata["entry"])
    if entry["key"] != dataclasses.asdict(key):
        raise ValueError("it holds the result of another key")
    state = _unpack(entry["state"], tensors)
    if not isinstance(state, FrozenState):
        raise ValueError(f"it holds a {type(state).__name__}")
    return state


def _digest(entry: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(entry.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {len(tensor)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
