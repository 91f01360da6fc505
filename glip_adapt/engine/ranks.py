"""Several processes at one training: which images each takes, sums over all, and errors that end all alike.

``torchrun`` starts one process per GPU; each is a rank, and rank 0 speaks and writes for all. Every rank draws the same
batches and takes the same steps; only the images of a batch, and those that are scored, are divided. Large tensors go
from GPU to GPU (NCCL), everything else by the CPU (gloo). Outside of ``joined`` there is a single process.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from glip_adapt.core.errors import GlipAdaptError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SAME_KEY_PRESS = 2.0  # seconds in which Ctrl-C reaches all processes
_OTHERS_END = timedelta(seconds=3)  # time for rank 0 to say the same as this process

Item = TypeVar("Item")
Result = TypeVar("Result")


class RanksError(GlipAdaptError, RuntimeError):
    """Another process of this training failed or ended, or the processes do not belong together."""


class Ranks:
    """A single process, which takes everything and waits for nobody.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank = 0
    count = 1

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """Return the items of this rank: one after each ``count``."""
        return itertools.islice(items, self.rank, None, self.count)

    def gather(self, results: Sequence[Result]) -> list[Result]:
        """Return the results of all ranks for their shares, in the order of the whole."""
        return list(results)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on every rank what one of them raises within; all end before any goes on. Nothing within may wait."""
        yield

    def first(self, work: Callable[[], Result]) -> Result:
        """Return on every rank what rank 0 finds; the others do not work. Its error is raised on all."""
        return work()

    def agreed(self, value: Result) -> Result:
        """Return the value of rank 0, where clocks or processors may differ."""
        return value

    def check_alike(self, facts: Mapping[str, Any], device: torch.device) -> None:
        """Raise RanksError on every rank if some facts differ, or two processes use one GPU."""

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 into the tensors of the others."""

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their sums over all ranks; one that no rank has stays None."""

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors on the CPU by their sums over all ranks."""

    def sum_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Return the sums of losses over all ranks, by name."""
        return dict(losses)


class _Joined(Ranks):
    """One of several processes, after ``init_process_group``."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._has_begun = self._is_within = self._is_interrupted = False
        self._ignores_until = 0.0

    def gather(self, results: Sequence[Result]) -> list[Result]:
        parts = self._exchange(list(results))
        return [parts[i % self.count][i // self.count] for i in range(sum(map(len, parts)))]

    @contextmanager
    def together(self) -> Iterator[None]:
        error: BaseException | None = None
        try:
            self._has_begun = self._is_within = True
            try:
                if self._is_interrupted:
                    raise KeyboardInterrupt
                yield
            finally:
                self._is_within = False
        except BaseException as raised:
            error = raised
        failed = torch.tensor(error is not None, dtype=torch.int64)
        _wait(lambda: dist.all_reduce(failed))
        if failed:
            raise self._agree(error)

    def first(self, work: Callable[[], Result]) -> Result:
        found: Any = None
        with self.together():
            if self.rank == 0:
                with _as_current(Ranks()):  # work that divides images would wait for the others
                    found = work()
        return self.agreed(found)

    def agreed(self, value: Result) -> Result:
        sent = [value]
        _wait(lambda: dist.broadcast_object_list(sent))
        return sent[0]

    def check_alike(self, facts: Mapping[str, Any], device: torch.device) -> None:
        everyone = self._exchange((dict(facts), (socket.gethostname(), str(device))))
        for name in facts:
            others = [rank for rank, (stated, _) in enumerate(everyone) if stated[name] != everyone[0][0][name]]
            if others:
                raise _told(RanksError(f"Rank {others[0]} has other {name} than rank 0. Start all alike."))
        gpus = [place for _, place in everyone]
        if device.type == "cuda" and len(set(gpus)) < self.count:
            raise _told(
                RanksError(
                    f"{self.count} processes share {len(set(gpus))} GPUs. Start as many as there are GPUs "
                    "(torchrun --nproc-per-node), name --device cuda without a number, or --device cpu."
                )
            )

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            whole = tensor.contiguous()
            _wait(lambda sent=whole: dist.broadcast(sent, src=0))  # type: ignore[misc]
            if whole is not tensor:
                tensor.copy_(whole)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        has_one = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        _wait(lambda: dist.all_reduce(has_one))
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter, is_there in zip(parameters, has_one.tolist(), strict=True):
            if is_there:  # else the optimiser leaves it alone, as it does with one process
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for group in by_dtype.values():
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group])
            _wait(lambda sent=flat: dist.all_reduce(sent))  # type: ignore[misc]
            for parameter, total in zip(group, flat.split([p.numel() for p in group]), strict=True):
                if parameter.grad is None:
                    parameter.grad = total.view_as(parameter).clone()
                else:
                    parameter.grad.copy_(total.view_as(parameter))

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            _wait(lambda sent=tensor: dist.all_reduce(sent))  # type: ignore[misc]

    def sum_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        total: dict[str, float] = {}
        for part in self._exchange(dict(losses)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def interrupt(self, *_: Any) -> None:
        """Note Ctrl-C, which reaches the ranks at different places: the next ``together`` raises it on all at once."""
        if time.monotonic() < self._ignores_until:
            return
        if self._is_within or not self._has_begun:
            raise KeyboardInterrupt
        self._is_interrupted = True

    def _agree(self, error: BaseException | None) -> BaseException:
        """Return the error of the lowest rank that has one."""
        everyone = self._exchange(None if error is None else _packed(error))
        rank, packed = next((rank, packed) for rank, packed in enumerate(everyone) if packed is not None)
        chosen = error if error is not None and packed == _packed(error) else pickle.loads(packed)
        if isinstance(chosen, KeyboardInterrupt):
            self._is_interrupted, self._ignores_until = False, time.monotonic() + _SAME_KEY_PRESS
        elif rank != self.rank:
            chosen.add_note(f"raised on rank {rank}")
        return _told(chosen)

    def _exchange(self, mine: Item) -> list[Item]:
        everyone: list[Any] = [None] * self.count
        _wait(lambda: dist.all_gather_object(everyone, mine))
        return everyone


_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=Ranks())  # noqa: B039  # it has no state


def current() -> Ranks:
    """Return the ranks of the surrounding ``joined``; a single process outside of it, and in other threads."""
    return _CURRENT.get()


def is_launched() -> bool:
    """Tell whether ``torchrun`` started this process as one of several."""
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes of ``torchrun``; ``fit``, ``evaluate`` and ``adapt_dataset`` within divide their images.

    Every process makes the same calls in the same order. Each has the GPU of its ``LOCAL_RANK`` as the default one. An
    error that rank 0 raises as well is marked, see ``is_told``. A single process passes through.
    """
    if not is_launched():
        yield Ranks()
        return
    store, rank, count = next(iter(dist.rendezvous("env://")))
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("ranks", store), rank=rank, world_size=count)
    ranks, is_done = _Joined(), False
    try:
        with _as_current(ranks), _interrupts(ranks):
            yield ranks
        is_done = True
    except SystemExit as end:  # as a command line ends
        is_done = not end.code
        raise
    except Exception as error:
        if not is_told(error) and _rank_0_says(dist.PrefixStore("errors", store), rank, str(error)):
            _told(error)
        raise
    finally:
        if is_done:  # else others may wait for this process, and only its end ends them
            dist.destroy_process_group()


def is_told(error: BaseException) -> bool:
    """Tell whether rank 0 raises an error as well, so that the other ranks need not tell it."""
    return getattr(error, "is_told_by_rank_0", False)


def _told(error: BaseException) -> BaseException:
    error.is_told_by_rank_0 = True  # type: ignore[attr-defined]
    return error


def _packed(error: BaseException) -> bytes:
    """Return an error as bytes; one that cannot be sent whole becomes a RanksError with its text."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:
        packed = pickle.dumps(RanksError(f"{type(error).__name__}: {error}"))
    return packed


def _wait(operation: Callable[[], Any]) -> None:
    """Wait for the other ranks in an operation that all take part in."""
    try:
        operation()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RanksError(
            f"Another process of this training ended too early or cannot be reached; its message says why ({reason})."
        ) from error


def _rank_0_says(store: Any, rank: int, message: str) -> bool:
    """Leave a message on rank 0, and tell on the other ranks whether that one is the same."""
    try:
        if rank == 0:
            store.set("message", message)
            return True
        store.wait(["message"], _OTHERS_END)
        return store.get("message").decode() == message
    except RuntimeError:  # rank 0 has none, or is gone
        return False


@contextmanager
def _as_current(ranks: Ranks) -> Iterator[None]:
    token = _CURRENT.set(ranks)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def _interrupts(ranks: _Joined) -> Iterator[None]:
    """Let Ctrl-C wait for the place where all ranks stop; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, ranks.interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
