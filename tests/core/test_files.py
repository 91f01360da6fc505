"""Files that appear whole or not at all, and folders that are held."""

import errno
import os
import resource
import sys
import time

import pytest
from processes import FORK, exit_codes, start

from glip_adapt.core.files import check_room, clear_partials, file_sha256, locked, scratch_folder, written_whole


def killed_while_writing(path):
    with written_whole(path) as temporary:
        temporary.write_text("half")
        os._exit(9)


def test_a_file_appears_with_its_content(tmp_path):
    with written_whole(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("all")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert {file.name: file.read_text() for file in (tmp_path / "new").iterdir()} == {"a.txt": "all"}


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail():
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "old"}


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    assert exit_codes(killed_while_writing, tmp_path / "a.txt") == [9]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with written_whole(tmp_path / "b.txt") as temporary:
        temporary.write_text("new")
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", "b.txt"}


def test_what_a_living_writer_writes_stays(tmp_path):
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("mine")
        with written_whole(tmp_path / "a.txt") as other:
            other.write_text("theirs")
        clear_partials(tmp_path)
        assert temporary.read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_a_folder_of_the_user_that_looks_alike_stays(tmp_path):
    (tmp_path / ".a.txt-notes.partial").mkdir()
    clear_partials(tmp_path)
    assert (tmp_path / ".a.txt-notes.partial").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such devices")
def test_a_device_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with written_whole(tmp_path / "pipe") as temporary:
        assert temporary == tmp_path / "pipe"
    assert not (tmp_path / "pipe").is_file()


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    with locked(tmp_path) as mine, locked(tmp_path, wait=False) as theirs:
        assert (mine, theirs) == (True, False)
    with locked(tmp_path, wait=False) as free:
        assert free


def test_room_is_tried_where_the_folder_will_be_and_nothing_is_left(tmp_path):
    check_room(tmp_path / "a" / "b", 3_000_000)
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_one_clear_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot take the 3\.0 MB .*name another folder"):
            check_room(tmp_path, 3_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_read_only_place_is_found_before_anything_is_saved(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot take"):
        check_room(tmp_path / "file" / "below", 10)


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_bytes(bytes(10_000))

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"a\.txt could not be written \(File too large\)\. Make room") as failure:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure.value.errno == errno.EFBIG
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "old"}


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_scratch_folder_is_empty_lies_beside_its_path_and_goes_even_after_an_error(tmp_path):
    def fail():
        with scratch_folder(tmp_path / "a.txt") as folder:
            assert folder.parent == tmp_path
            assert list(folder.iterdir()) == []
            (folder / "half").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert list(tmp_path.iterdir()) == []


def hold(folder, held):
    with locked(folder):
        held.set()
        time.sleep(0.3)
        (folder / "done").touch()


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path):
    held = FORK.Event()
    (child,) = start(hold, tmp_path, held)
    assert held.wait(60)
    with locked(tmp_path, wait=False) as mine:
        assert not mine
    with locked(tmp_path) as mine:
        assert mine
        assert (tmp_path / "done").exists()
    child.join()
