import dataclasses
import errno
import functools
import json
import logging
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import exit_codes
from safetensors import safe_open
from safetensors.torch import save_file

from glip_adapt.core.files import locked
from glip_adapt.core.structures import Fused, ImageBatch, Pyramid, TextFeatures
from glip_adapt.engine import cache_files
from glip_adapt.engine.cache import CacheStatistics, FeatureCache, image_digest, to
from glip_adapt.engine.cache_files import CacheKey

KEY = CacheKey("trunk", "picture", "480-1333-flip", "ENCODE_IMAGE", "", "cpu-float32")
SIZES, SHAPES = ((60, 80), (64, 50)), ((2, 3), (1, 1))


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pyramid(seed=0):
    return Pyramid(numbers(2, 7, 8, seed=seed), SHAPES, SIZES)


def text():
    return TextFeatures(numbers(1, 5, 4).bfloat16(), torch.ones(1, 5, dtype=torch.bool), numbers(1, 3, 5) > 0)


STATES = {
    "images": ImageBatch(torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).to(torch.uint8), SIZES),
    "channels last images": ImageBatch(numbers(2, 3, 4, 5).to(memory_format=torch.channels_last), SIZES),
    "pyramid": pyramid(),
    "fused": Fused(pyramid(), text()),
    "transposed and not finite": Fused(Pyramid(numbers(2, 5, 7).log().transpose(1, 2), SHAPES, SIZES), text()),
}


def key(i):
    return dataclasses.replace(KEY, view=str(i))


def outline(value):
    """All that makes two states one: bits, layout, and what is not a tensor."""
    if isinstance(value, torch.Tensor):
        bits = value.contiguous().flatten().view(torch.uint8).tolist()
        return value.dtype, value.shape, value.stride(), value.requires_grad, bits
    if dataclasses.is_dataclass(value):
        return type(value), {f.name: outline(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def fail():
    raise AssertionError("computed although it was kept")


def entries(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def fill(folder, count, **budget):
    """Return the files of ``count`` pyramids that another run left behind, the first used longest ago."""
    files = []
    for i in range(count):
        FeatureCache(memory_bytes=0, folder=folder, **budget).get(key(i), lambda i=i: pyramid(i))
        (path,) = set(entries(folder)) - set(files)
        os.utime(path, (1000 + i, 1000 + i))
        files.append(path)
    return files


@pytest.mark.parametrize("name", STATES)
def test_every_kind_of_result_comes_back_bit_for_bit_from_memory_file_and_promotion(tmp_path, name):
    expected = outline(STATES[name])
    first = FeatureCache(memory_bytes=0, folder=tmp_path)
    assert outline(first.get(KEY, lambda: STATES[name])) == expected
    assert outline(first.get(KEY, fail)) == expected
    promoting = FeatureCache(folder=tmp_path)
    assert [outline(promoting.get(KEY, fail)) for _ in range(2)] == [expected] * 2
    memory = FeatureCache()
    assert memory.get(KEY, lambda: STATES[name]) is memory.get(KEY, fail)
    assert outline(memory.get(KEY, fail)) == expected


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_dense_layout_of_any_type_survives_a_file(data):
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]))
    tensor = (numbers(*shape) * 3).to(dtype).permute(order)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(memory_bytes=0, folder=folder)
        first = cache.get(KEY, lambda: ImageBatch(tensor, ()))
        again = cache.get(KEY, fail)
    assert outline(first) == outline(again) == outline(ImageBatch(tensor, ()))


@pytest.mark.parametrize(
    "view",
    [
        numbers(6, 8)[:, 2:5],
        numbers(6, 8)[3:],
        numbers(6, 32)[:, 16:17].expand(6, 32),  # as many bytes as the buffer behind it
        numbers(1, 14, 8).split([6, 8], dim=1)[1].unflatten(1, (2, 4)).permute(0, 3, 1, 2),
    ],
    ids=["columns", "rows", "a broadcast", "a level"],
)
def test_a_view_is_kept_without_the_buffer_behind_it(tmp_path, view):
    cache = FeatureCache()
    kept = cache.get(KEY, lambda: ImageBatch(view, ())).pixels
    assert torch.equal(kept, view)
    assert kept.untyped_storage().nbytes() == view.nbytes == cache.statistics.memory_bytes
    on_disk, promoting = FeatureCache(memory_bytes=0, folder=tmp_path), FeatureCache(folder=tmp_path)
    layouts = [outline(c.get(KEY, lambda: ImageBatch(view, ()))) for c in (on_disk, on_disk, promoting, promoting)]
    assert layouts == [outline(ImageBatch(kept, ()))] * 4


def test_tensors_read_from_a_file_start_where_torch_would_place_them(tmp_path):
    cache = FeatureCache(memory_bytes=0, folder=tmp_path)
    cache.get(KEY, lambda: STATES["fused"])
    read = cache.get(KEY, fail)
    tensors = (read.pyramid.cells, read.text.features, read.text.mask, read.text.token_map)
    assert [tensor.data_ptr() % 64 for tensor in tensors] == [0] * 4  # else a dot product rounds differently


def test_a_kept_result_is_detached_and_may_take_part_in_training(tmp_path):
    weight = torch.ones(8, requires_grad=True)
    attached = dataclasses.replace(pyramid(), cells=pyramid().cells * weight)
    assert not FeatureCache().get(KEY, lambda: attached).cells.requires_grad
    fill(tmp_path, 1)
    with torch.inference_mode():
        results = [
            FeatureCache().get(key(0), pyramid),
            FeatureCache(folder=tmp_path).get(key(0), fail),
            FeatureCache(memory_bytes=0, folder=tmp_path).get(key(0), fail),
        ]
    for result in results:
        (result.cells * weight).sum().backward()


def test_each_image_view_is_computed_once(tmp_path):
    calls = []
    cache = FeatureCache(memory_bytes=3 * 448, folder=tmp_path)  # three of six fit into memory
    for _ in range(3):
        for i in range(6):
            assert outline(cache.get(key(i), lambda i=i: calls.append(i) or pyramid(i))) == outline(pyramid(i))
    assert calls == [0, 1, 2, 3, 4, 5]
    found = cache.statistics
    disk_bytes = sum(path.stat().st_size for path in entries(tmp_path))
    assert found == CacheStatistics(memory_hits=6, disk_hits=6, misses=6, memory_bytes=1344, disk_bytes=disk_bytes)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheKey)])
def test_each_field_of_the_key_tells_results_apart(tmp_path, field):
    other = dataclasses.replace(KEY, **{field: "other"})
    assert other.digest != KEY.digest
    for cache in (FeatureCache(), FeatureCache(memory_bytes=0, folder=tmp_path)):
        for _ in range(2):
            assert outline(cache.get(KEY, lambda: pyramid(1))) == outline(pyramid(1))
            assert outline(cache.get(other, lambda: pyramid(2))) == outline(pyramid(2))


def test_the_digest_of_a_key_is_the_same_in_every_process():
    assert KEY.digest == "edf7ad465c04370bdaad8cc98b63174bbb3a5b9b947ce7c65d044875c6b5cdb0"


def test_what_fits_nowhere_is_computed_each_time_and_said_once(caplog):
    cache = FeatureCache(memory_bytes=447)
    for seed in range(3):
        assert outline(cache.get(KEY, lambda seed=seed: pyramid(seed))) == outline(pyramid(seed))
    assert cache.statistics == CacheStatistics(misses=3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "memory" in caplog.text
    assert "no folder" in caplog.text


def test_a_cache_without_any_room_is_silent(caplog):
    cache = FeatureCache(memory_bytes=0)
    assert outline(cache.get(KEY, pyramid)) == outline(pyramid())
    assert cache.statistics == CacheStatistics(misses=1)
    assert not caplog.records


def test_a_result_that_may_not_spill_is_kept_in_memory_only(tmp_path):
    cache = FeatureCache(memory_bytes=448, folder=tmp_path)
    for _ in range(2):
        for i in range(2):
            assert outline(cache.get(key(i), lambda i=i: pyramid(i), spill=False)) == outline(pyramid(i))
    assert cache.statistics == CacheStatistics(memory_hits=1, misses=3, memory_bytes=448)
    assert entries(tmp_path) == []


def test_a_failed_computation_is_not_kept():
    cache = FeatureCache()
    with pytest.raises(ZeroDivisionError):
        cache.get(KEY, lambda: 1 / 0)
    assert outline(cache.get(KEY, pyramid)) == outline(pyramid())


def test_whoever_is_first_among_threads_that_compute_one_key_is_kept(tmp_path):
    def overtaken():
        first.append(cache.get(KEY, pyramid))  # as another thread would
        return pyramid()

    first = []
    cache = FeatureCache()
    assert cache.get(KEY, overtaken) is first[0]
    assert cache.get(KEY, fail) is first[0]
    assert cache.statistics == CacheStatistics(memory_hits=1, misses=2, memory_bytes=448)
    cache = FeatureCache(memory_bytes=0, folder=tmp_path)
    cache.get(KEY, overtaken)
    assert cache.statistics == CacheStatistics(misses=2, disk_bytes=entries(tmp_path)[0].stat().st_size)


def test_a_file_is_verified_once_in_a_run(tmp_path, monkeypatch):
    fill(tmp_path, 1)
    cache, verified, digest = FeatureCache(memory_bytes=0, folder=tmp_path), [], cache_files._digest
    monkeypatch.setattr(cache_files, "_digest", lambda *given: verified.append(1) or digest(*given))
    for uses in (2, 3):
        cache.begin_run()
        for _ in range(uses):
            assert outline(cache.get(key(0), fail)) == outline(pyramid(0))
    assert len(verified) == 2


def test_a_promoted_entry_no_longer_needs_its_file(tmp_path):
    (file,) = fill(tmp_path, 1)
    cache = FeatureCache(memory_bytes=448, folder=tmp_path)
    promoted = cache.get(key(0), fail)
    with file.open("r+b") as content:  # in place, where a mapping would see it
        content.write(bytes(file.stat().st_size))
    assert cache.get(key(0), fail) is promoted
    assert outline(promoted) == outline(pyramid(0))
    assert cache.statistics == CacheStatistics(
        memory_hits=1, disk_hits=1, memory_bytes=448, disk_bytes=cache.statistics.disk_bytes
    )


def test_a_full_folder_makes_room_from_what_other_runs_used_longest_ago(tmp_path):
    files = fill(tmp_path, 4)
    size = files[0].stat().st_size
    cache = FeatureCache(memory_bytes=0, folder=tmp_path, disk_bytes=4 * size)
    assert cache.statistics.disk_bytes == 4 * size
    cache.get(key(0), fail)  # the oldest, now in use here
    os.utime(files[1])  # and the next, in use by another process
    cache.get(key(4), lambda: pyramid(4))
    assert [file.exists() for file in files] == [True, True, False, True]
    cache.get(key(5), lambda: pyramid(5))
    assert [file.exists() for file in files] == [True, True, False, False]
    before = entries(tmp_path)
    cache.get(key(6), lambda: pyramid(6))  # all the rest is in use
    assert entries(tmp_path) == before
    assert cache.statistics.disk_bytes == sum(file.stat().st_size for file in before) == 4 * size
    for i in (0, 4, 5):
        cache.get(key(i), fail)


def test_a_hit_on_disk_renews_the_time_of_use(tmp_path):
    (file,) = fill(tmp_path, 1)
    FeatureCache(folder=tmp_path).get(key(0), fail)
    assert time.time() - file.stat().st_mtime < 60


def test_a_result_larger_than_the_disk_budget_deletes_nothing(tmp_path):
    (file,) = fill(tmp_path, 1)
    cache = FeatureCache(memory_bytes=0, folder=tmp_path, disk_bytes=file.stat().st_size)
    cache.get(KEY, lambda: STATES["images"])
    assert entries(tmp_path) == [file]


def test_files_of_strangers_are_neither_counted_nor_deleted(tmp_path):
    stranger = tmp_path / "my" / "model.safetensors"
    stranger.parent.mkdir()
    stranger.write_bytes(bytes(4096))
    cache = FeatureCache(memory_bytes=0, folder=tmp_path, disk_bytes=2000)
    assert cache.statistics.disk_bytes == 0
    for i in range(3):
        cache.get(key(i), pyramid)
    assert stranger.exists()


def flip(position):
    return lambda content: content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "a truncated header": lambda content: content[:50],
    "a truncated tensor": lambda content: content[:-1],
    "a flipped bit of a tensor": flip(-100),
    "other bytes": lambda content: b"junk" * 300,
    "another kind": lambda content: content.replace(b"Pyramid", b"Diamond"),
    "another shape": lambda content: content.replace(b"[2, 7, 8]", b"[2, 8, 7]"),
    "another type": lambda content: content.replace(b"F32", b"I32"),
    "other sizes": lambda content: content.replace(b"60, 80", b"61, 80"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_named_and_healed(tmp_path, caplog, what):
    (file,) = fill(tmp_path, 1)
    sound = file.read_bytes()
    assert DAMAGE[what](sound) != sound
    file.write_bytes(DAMAGE[what](sound))
    cache = FeatureCache(memory_bytes=0, folder=tmp_path)
    assert outline(cache.get(key(0), pyramid)) == outline(pyramid())
    assert [file.name in record.message for record in caplog.records] == [True]
    assert cache.statistics.disk_bytes == file.stat().st_size == len(sound)
    assert outline(FeatureCache(folder=tmp_path).get(key(0), fail)) == outline(pyramid())


def test_no_flipped_bit_leads_to_another_result(tmp_path):
    (file,) = fill(tmp_path, 1)
    sound = file.read_bytes()
    for position in range(0, len(sound), 5):
        file.write_bytes(flip(position)(sound))
        cache = FeatureCache(memory_bytes=0, folder=tmp_path)
        assert outline(cache.get(key(0), pyramid)) == outline(pyramid())


def test_a_file_under_the_name_of_another_is_noticed(tmp_path, caplog):
    first, second = fill(tmp_path, 2)
    shutil.copy(second, first)
    assert outline(FeatureCache(folder=tmp_path).get(key(0), pyramid)) == outline(pyramid())
    assert "another key" in caplog.text
    assert not first.exists()  # its result is in memory now


def test_a_full_disk_costs_neither_the_result_nor_the_run(tmp_path, caplog, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(tmp_path, 1)
    cache = FeatureCache(memory_bytes=0, folder=tmp_path)
    before = cache.statistics.disk_bytes, entries(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)  # the temporary file is there by then
        assert outline(cache.get(key(1), pyramid)) == outline(pyramid())
    assert "No space left" in caplog.text
    said = len(caplog.records)
    assert outline(cache.get(key(1), pyramid)) == outline(pyramid())  # nothing is written any more
    assert (cache.statistics.disk_bytes, entries(tmp_path)) == before
    assert len(caplog.records) == said
    cache.get(key(0), fail)


def test_a_folder_that_cannot_be_made_costs_neither_the_result_nor_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(memory_bytes=448, folder=tmp_path / "file")
    for i in range(3):
        assert outline(cache.get(key(i), lambda i=i: pyramid(i))) == outline(pyramid(i))
    assert sum("cannot be written" in record.message for record in caplog.records) == 1
    cache.get(key(0), fail)


def test_what_a_killed_writer_left_is_no_entry_and_goes(tmp_path):
    (file,) = fill(tmp_path, 1)
    size = file.stat().st_size
    left, living = (file.with_name(f".{file.name}-{name}.partial") for name in ("deaddead", "livelive"))
    for folder in (left, living):
        folder.mkdir()
        (folder / file.name).write_bytes(file.read_bytes()[:100])
    file.unlink()
    with locked(living):  # as its writer does
        cache = FeatureCache(memory_bytes=0, folder=tmp_path)
        assert entries(tmp_path) == [living / file.name]
        assert cache.statistics.disk_bytes == 0
        cache.get(key(0), pyramid)
    assert cache.statistics == CacheStatistics(misses=1, disk_bytes=size)


@pytest.mark.parametrize("memory_bytes", [0, 5 * 448, 10**6])
def test_threads_share_a_cache(tmp_path, memory_bytes):
    cache = FeatureCache(memory_bytes=memory_bytes, folder=tmp_path)
    wanted = [i % 10 for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: cache.get(key(i), lambda: pyramid(i)), wanted))
    assert all(torch.equal(result.cells, pyramid(i).cells) for i, result in zip(wanted, results, strict=True))
    found = cache.statistics
    assert found.memory_hits + found.disk_hits + found.misses == 200
    assert found.memory_bytes == min(10 * 448, memory_bytes)
    assert found.disk_bytes == sum(path.stat().st_size for path in entries(tmp_path))


def use_three_times(folder):
    for _ in range(3):
        cache = FeatureCache(memory_bytes=0, folder=folder)
        for i in [*range(20), *range(20)]:
            expected = ImageBatch(torch.full((1, 3, 32, 32), i, dtype=torch.uint8), ((i, i),))
            found = cache.get(key(i), lambda expected=expected: expected)
            assert torch.equal(found.pixels, expected.pixels)
            assert found.image_sizes_hw == expected.image_sizes_hw


def test_two_processes_share_a_folder(tmp_path):
    assert exit_codes(use_three_times, tmp_path, count=2) == [0, 0]
    assert len(entries(tmp_path)) == 20


@pytest.mark.parametrize("name", STATES)
def test_a_result_moves_to_a_device_and_stays_the_same_where_nothing_moves(name):
    state = STATES[name]
    assert to(state, "cpu") is state
    moved = to(state, torch.device("meta"))
    tensors = [moved.pyramid.cells, moved.text.mask] if isinstance(moved, Fused) else list(vars(moved).values())
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}
    assert getattr(moved, "image_sizes_hw", None) == getattr(state, "image_sizes_hw", None)


def test_an_image_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(b"one")
    first = image_digest(path)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        assert image_digest(str(path)) == first
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert image_digest(path) != first


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        image_digest(tmp_path / "nowhere.png")


def test_what_an_earlier_run_left_in_memory_makes_room_oldest_first():
    size = pyramid().cells.nbytes
    cache = FeatureCache(memory_bytes=2 * size)
    for i in range(2):
        cache.get(key(i), lambda i=i: pyramid(i))
    cache.begin_run()
    cache.get(key(1), fail)
    cache.get(key(2), lambda: pyramid(2))  # in place of 0
    assert cache.statistics.memory_bytes == 2 * size
    for i in (1, 2):
        cache.get(key(i), fail)
    cache.get(key(0), pyramid)  # no room: this run uses both others
    assert cache.statistics.misses == 4
    for i in (1, 2):
        cache.get(key(i), fail)


def test_files_that_this_process_used_in_an_earlier_run_make_room_too(tmp_path):
    (file,) = fill(tmp_path, 1)
    cache = FeatureCache(memory_bytes=0, folder=tmp_path, disk_bytes=file.stat().st_size + 100)
    cache.get(key(0), fail)
    cache.get(key(1), lambda: pyramid(1))
    assert file.exists()
    cache.begin_run()
    cache.get(key(1), lambda: pyramid(1))
    assert not file.exists()


STRUCTURES = {
    "a list": lambda state: [state],
    "a number": lambda state: 3,
    "a name": lambda state: "Pyramid",
    "a bare tensor": lambda state: state["fields"]["cells"],
    "no fields": lambda state: state | {"fields": {}},
    "a list of fields": lambda state: state | {"fields": [1, 2]},
    "numbers for a tensor": lambda state: state | {"fields": state["fields"] | {"cells": [1, 2]}},
    "a tensor for numbers": lambda state: (
        state | {"fields": state["fields"] | {"level_shapes_hw": state["fields"]["cells"]}}
    ),
    "a deep nest": lambda state: functools.reduce(lambda inner, _: [inner], range(900), state),
    "strides out of bounds": lambda state: (
        state | {"fields": state["fields"] | {"cells": state["fields"]["cells"] | {"strides": [10**9, 1, 1]}}}
    ),
}


@pytest.mark.parametrize("what", STRUCTURES)
def test_another_structure_under_a_fitting_digest_is_damage_too(tmp_path, caplog, what):
    (file,) = fill(tmp_path, 1)
    with safe_open(file, "pt") as opened:
        entry = json.loads(opened.metadata()["entry"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    text = json.dumps(entry | {"state": STRUCTURES[what](entry["state"])})
    save_file(tensors, file, {"entry": text, "digest": cache_files._digest(text, tensors)})
    cache = FeatureCache(memory_bytes=0, folder=tmp_path)
    assert outline(cache.get(key(0), pyramid)) == outline(pyramid())
    assert [file.name in record.message for record in caplog.records] == [True]


def test_a_precision_that_nothing_is_kept_in_is_refused():
    with pytest.raises(ValueError, match=r"Unknown precision 'float16'.*valid are"):
        FeatureCache(precision="float16")


# Half the room --------------------------------------------------------------------------------------------------------


def test_results_kept_as_bfloat16_are_rounded_from_the_first_use_on_and_take_half_the_room(tmp_path):
    state, narrow = pyramid(), {"precision": "bfloat16"}
    rounded = outline(dataclasses.replace(state, cells=state.cells.bfloat16().float()))
    assert rounded != outline(state)
    memory, disk = FeatureCache(**narrow), {"folder": tmp_path, "memory_bytes": 0, **narrow}
    for cache in (memory, FeatureCache(**disk), FeatureCache(**disk)):
        assert [outline(cache.get(KEY, lambda: state)) for _ in range(2)] == [rounded] * 2
    assert memory.statistics.memory_bytes == state.cells.nbytes // 2
    pixels = STATES["images"]
    assert outline(FeatureCache(**narrow).get(KEY, lambda: pixels)) == outline(pixels)
