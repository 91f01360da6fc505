"""Memory in use by this process."""

import ctypes
import mmap
from pathlib import Path

import pytest

from glip_adapt.core import memory

LARGE = 64 * 2**20  # bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_a_peak_lasts_until_it_is_reset():
    memory.reset_peak()
    before = memory.used_bytes()
    with mmap.mmap(-1, LARGE) as held:  # new pages; an allocator might take ones that it freed before
        for position in range(0, LARGE, mmap.PAGESIZE):
            held[position] = 1
        assert memory.used_bytes() > before + 0.9 * LARGE
    assert memory.peak_bytes() > before + 0.9 * LARGE
    memory.reset_peak()
    assert memory.peak_bytes() < before + 0.5 * LARGE


def test_without_the_process_status_of_linux_the_peak_is_in_bytes_too(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    assert memory.peak_bytes() > 50 * 2**20  # torch alone takes more


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this allocator cannot give memory back")
def test_holes_in_the_heap_are_given_back():
    piece = 2**16  # less than what glibc maps by itself
    kept = [bytearray(piece) for _ in range(2 * LARGE // piece)]
    for block in kept:
        block[:: mmap.PAGESIZE] = b"x" * len(range(0, piece, mmap.PAGESIZE))
    del kept[::2]
    before = memory.used_bytes()
    memory.give_back()
    assert memory.used_bytes() < before - 0.5 * LARGE


def test_where_the_allocator_cannot_give_memory_back_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back()
