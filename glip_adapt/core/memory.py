"""Measure the memory of this process, or of its GPU, in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def reset_peak(device: torch.device | str = "cpu") -> None:
    """Forget the highest use of memory so far, where the system allows it: on Linux, and on a GPU."""
    if _is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """Return the highest use of memory since ``reset_peak``, or since the start, in bytes.

    It is that of ``device`` if this is a CUDA device, else that of this process.
    """
    return torch.cuda.max_memory_allocated(device) if _is_gpu(device) else _of_process("VmHWM")


def used_bytes(device: torch.device | str = "cpu") -> int:
    """Return the present use of memory in bytes; on macOS the peak of the process."""
    return torch.cuda.memory_allocated(device) if _is_gpu(device) else _of_process("VmRSS")


def total_bytes(device: torch.device | str = "cpu") -> int:
    """Return the memory of a CUDA device, else that of this machine, or of its container if that may use less."""
    if _is_gpu(device):
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no limit is the word max
            limits.append(int(Path(file).read_text()))
    return min(limits)


def give_back() -> None:
    """Return free pages of the heap to the system, as glibc can; with other allocators nothing happens.

    What lives long among much that does not leaves holes in the heap which later requests do not fit, so that a process
    that runs for days grows although it keeps no more.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such function, or on Windows no such handle
        ctypes.CDLL(None).malloc_trim(0)


def _of_process(field: str) -> int:
    """Return a field of Linux's process status; elsewhere the peak of the process."""
    with contextlib.suppress(OSError):  # getrusage starts at the peak of the parent process, so it comes second
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts in bytes


def _is_gpu(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"
