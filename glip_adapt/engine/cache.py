"""Cache of frozen features: computed once per image and view, then read from memory or from disk.

Few-shot training draws from a fixed set of images × views, uniformly and for ever, so no entry is worth more than
another. Within a run all entries stay: the first in memory, the others in files of a folder. Entries of earlier runs
make room for them.

Every use of an entry gets the bits, strides and alignment of the first, so a cached run follows an uncached one.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from glip_adapt.core.config import unknown_name
from glip_adapt.core.files import file_sha256
from glip_adapt.core.structures import FrozenState, Tokens
from glip_adapt.engine.cache_files import CacheFolder, CacheKey, map_tensors, size_bytes

AnyState = TypeVar("AnyState", bound=FrozenState)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheStatistics:
    """Uses and size of a cache.

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


KeptPrecision = Literal["float32", "bfloat16"]


class FeatureCache:
    """Frozen results by key; threads may share one, processes its folder."""

    def __init__(
        self,
        *,
        memory_bytes: int = 2 * 2**30,
        folder: str | Path | None = None,
        disk_bytes: int = 20 * 2**30,
        precision: KeptPrecision = "float32",
    ) -> None:
        """Start with an empty memory, and with what ``folder`` holds.

        Args:
            memory_bytes: most bytes of tensors in memory.
            folder: where results go that memory has no room for; made when first needed.
            disk_bytes: most bytes of files in ``folder``, as far as this process has seen them.
            precision: in which results are kept. bfloat16 takes half the room and rounds them, from the first use on.

        Raises:
            ValueError: if there is no such precision.
        """
        if precision not in get_args(KeptPrecision):
            raise unknown_name("precision", precision, get_args(KeptPrecision))
        self.precision = precision
        self._memory_bytes = memory_bytes
        self._memory: dict[CacheKey, FrozenState] = {}  # used in this run
        self._earlier: dict[CacheKey, FrozenState] = {}  # used in earlier runs only, oldest first
        self._folder = None if folder is None else CacheFolder(Path(folder), disk_bytes)
        self._counts: Counter[str] = Counter()  # by field of CacheStatistics
        self._warned = memory_bytes == 0 and folder is None  # without any room, caching is switched off
        self._lock = threading.Lock()  # of the bookkeeping; never held while a result is computed, read or written

    @property
    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        with self._lock:
            return CacheStatistics(**self._counts, disk_bytes=self._folder.used_bytes if self._folder else 0)

    def begin_run(self) -> None:
        """Start a run: entries used before may be evicted when space is short."""
        with self._lock:
            self._earlier |= self._memory
            self._memory = {}
        if self._folder is not None:
            self._folder.begin_run()

    def get(self, key: CacheKey, compute: Callable[[], AnyState], *, spill: bool = True) -> AnyState:
        """Return the result kept under ``key``; if there is none, compute it and keep it if there is room.

        Args:
            key: everything that the result depends on.
            compute: the frozen stages; threads that miss one key at the same time each call it.
            spill: whether the folder may keep it; False where computing costs no more than reading a file.

        Returns:
            The result on the CPU, detached and shared: nobody may write into it.
        """
        found: Any = self.find(key, spill=spill)
        return self._keep(key, compute(), spill) if found is None else found

    def find(self, key: CacheKey, *, spill: bool = True) -> FrozenState | None:
        """Return the result kept under ``key``, or None; arguments and result as for ``get``."""
        with self._lock:
            kept = self._recall(key)
            self._counts["memory_hits"] += kept is not None
        if kept is not None:
            return self._widened(kept)
        read = self._folder.read(key) if self._folder and spill else None
        if read is None:
            return None
        with self._lock:
            self._counts["disk_hits"] += 1
            kept = self._remember(key, read)
        return self._widened(read if kept is None else kept)

    def _keep(self, key: CacheKey, computed: AnyState, spill: bool) -> AnyState:
        """Keep a new result where there is room, and return it as all later uses will get it."""
        folder, state = self._folder if spill else None, self._narrowed(_settled(computed))
        with self._lock:
            self._counts["misses"] += 1
            kept: Any = self._remember(key, state)
        if kept is None and not (folder and folder.write(key, state)):
            self._warn(size_bytes(state), folder)
        return self._widened(state if kept is None else kept)

    def _narrowed(self, state: AnyState) -> AnyState:
        """Return a result as it is kept."""
        if self.precision == "float32":
            return state
        return map_tensors(lambda tensor: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor, state)

    def _widened(self, state: AnyState) -> AnyState:
        """Return a kept result as it is used."""
        if self.precision == "float32":
            return state
        return map_tensors(lambda tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor, state)

    def _recall(self, key: CacheKey) -> FrozenState | None:
        """Return what memory holds, and keep it for this run; the lock is held."""
        if key in self._earlier:
            self._memory[key] = self._earlier.pop(key)
        return self._memory.get(key)

    def _remember(self, key: CacheKey, state: FrozenState) -> FrozenState | None:
        """Store ``state`` if it fits; return the stored entry, perhaps of another thread, or None. The lock is held."""
        size = size_bytes(state)
        if self._recall(key) is None:
            while self._counts["memory_bytes"] + size > self._memory_bytes >= size and self._earlier:
                oldest = next(iter(self._earlier))
                self._counts["memory_bytes"] -= size_bytes(self._earlier.pop(oldest))
            if self._counts["memory_bytes"] + size <= self._memory_bytes:
                self._counts["memory_bytes"] += size
                self._memory[key] = state
        return self._memory.get(key)

    def _warn(self, size: int, folder: CacheFolder | None) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "The feature cache has no room for a result of %.1f MiB: memory is full and %s. "
                "Such results are computed at every use; more room makes training faster.",
                size / 2**20,
                f"{folder.root} takes no more" if folder else "no folder is to take it",
            )


def to(state: AnyState, device: torch.device | str) -> AnyState:
    """Return a result on ``device``; it is the same object where nothing has to move.

    The host does not wait for copies of pinned memory.
    """
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()), state)


def image_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex, read again only when its size or time of change differs.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at {path}. `glip-adapt data check` lists every missing one.") from None
    return _file_digest(Path(path).resolve(), status.st_size, status.st_mtime_ns)


def text_digest(captions: Sequence[Tokens]) -> str:
    """Return a digest of the token ids of each caption, and of which tokens name which class."""
    digest = hashlib.sha256()
    for tokens in captions:
        for tensor in (tokens.ids, tokens.mask, tokens.token_map):
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


@torch.inference_mode(False)  # a tensor of that mode could not take part in training later
def _settled(state: AnyState) -> AnyState:
    """Return copies on the CPU that hold no memory but their own; dense tensors keep their strides."""
    return map_tensors(lambda tensor: tensor.detach().cpu().clone(), state)
