"""Datasets from a stand-in of the Hub: what arrives, what is refused, and how a second try goes on."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest
from conftest import SHARED
from stand_in_hub import COMMIT, FACT_FAULTS, FAULTS, hub_within_reach

from glip_adapt.core import downloads
from glip_adapt.core.files import locked
from glip_adapt.data import fetch
from glip_adapt.data.check import check_split
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.fetch import ARCHIVE_REPOSITORY, FetchError, fetch_dataset, fetchable
from glip_adapt.data.odinw import find_spec, known_datasets


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with hub_within_reach(monkeypatch, tmp_path / "cache") as stand_in:
        yield stand_in


@pytest.fixture
def made(tmp_path, coco_folder):
    """Return a function: a known dataset in the official layout, made of generated images."""

    def make(name="Raccoon"):
        spec = find_spec(name)
        folder = tmp_path / "made"
        for split in ("train", "val", "test"):
            source = coco_folder / Path(spec.splits[split].img_dir).name
            target = folder / spec.splits[split].img_dir
            shutil.copytree(source, target)
            file = folder / spec.splits[split].ann_file
            content = json.loads(file.read_text())
            content["annotations"] = [{**entry, "category_id": 1} for entry in content["annotations"]]
            file.write_text(json.dumps(content))
        return folder / "odinw" / spec.folder

    return make


def zipped(folder, path, *more):
    """Zip a dataset folder under its own name; ``more`` are (name or ZipInfo, content) pairs that come first."""
    with ZipFile(path, "w") as archive:
        for name, content in more:
            archive.writestr(name, content)
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path.read_bytes()


@pytest.fixture
def raccoon(hub, made, tmp_path):
    """Serve a Raccoon of a few images; the folder that datasets go into."""
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", zipped(made(), tmp_path / "raccoon.zip"))
    return tmp_path / "data"


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_fetched_dataset_is_whole_recorded_and_loads_by_name(hub, raccoon, tmp_path):
    fetched = fetch_dataset("raccoon", raccoon)
    assert (fetched.name, fetched.folder, fetched.is_new) == ("Raccoon", raccoon / "Raccoon", True)
    found = content_of(fetched.folder)
    record = json.loads(found.pop("fetched.json"))
    assert found == content_of(tmp_path / "made" / "odinw" / "Raccoon")
    archive = hub.files[ARCHIVE_REPOSITORY]["odinw_35/Raccoon.zip"]
    assert record["size_bytes"] == len(archive)
    assert record["files"] == len(found)
    assert record["unpacked_bytes"] == sum(map(len, found.values()))
    assert f"/{ARCHIVE_REPOSITORY}/resolve/{COMMIT}/odinw_35/Raccoon.zip" in record["url"]
    assert names_in(raccoon) == ["Raccoon"]
    assert len(load_dataset("Raccoon", raccoon).train) == len(load_dataset(fetched.folder).train) == 6


def test_a_dataset_that_is_there_is_left_alone_without_a_word_to_the_hub(hub, raccoon):
    fetch_dataset("Raccoon", raccoon)
    before, asked = content_of(raccoon), len(hub.requests)
    again = fetch_dataset("Raccoon", raccoon)
    assert (again.folder, again.is_new) == (raccoon / "Raccoon", False)
    assert content_of(raccoon) == before
    assert len(hub.requests) == asked


def test_a_root_that_holds_a_folder_called_odinw_gets_it_there(raccoon):
    (raccoon / "odinw").mkdir(parents=True)
    assert fetch_dataset("Raccoon", raccoon).folder == raccoon / "odinw" / "Raccoon"
    assert fetch_dataset("Raccoon", raccoon).folder == raccoon / "odinw" / "Raccoon"
    assert len(load_dataset("Raccoon", raccoon).test) == 3


def test_without_a_root_it_goes_where_load_dataset_looks(raccoon, tmp_path, monkeypatch):
    assert fetch_dataset("Raccoon").folder.resolve() == tmp_path / "elsewhere" / "odinw" / "Raccoon"
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(raccoon))
    monkeypatch.chdir(tmp_path)
    assert fetch_dataset("Raccoon").folder == raccoon / "Raccoon"
    assert load_dataset("odinw/Raccoon").name == "Raccoon"


def test_names_are_known_before_anything_is_fetched():
    assert fetchable(["odinw13", "raccoon"]) == list(known_datasets())
    assert [spec.official_name for spec in fetchable(["Vehicles", "odinw/pothole"])] == [
        "VehiclesOpenImages",
        "pothole",
    ]
    with pytest.raises(ValueError, match="mean 'Raccoon'"):
        fetchable(["Racoon"])
    for name in ("glyphs13", "glyphs13/Dice"):
        with pytest.raises(ValueError, match="rendered on first use"):
            fetchable([name])


def test_the_callback_counts_bytes_up_to_all_of_them(hub, raccoon):
    seen = []
    fetch_dataset("Raccoon", raccoon, lambda *step: seen.append(step))
    for what in ("download", "unpack"):
        done, total = zip(*[step[1:] for step in seen if step[0] == what], strict=True)
        assert list(done) == sorted(done)
        assert done[-1] == total[-1] == max(total)
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)


def test_an_interrupted_download_goes_on_where_it_stopped(hub, raccoon):
    size = len(hub.files[ARCHIVE_REPOSITORY]["odinw_35/Raccoon.zip"])
    hub.fault = "cut, then unavailable"
    with pytest.raises(
        FetchError, match=rf"broke off after {size // 2} of {size} bytes.*Call again: it goes on from there"
    ):
        fetch_dataset("Raccoon", raccoon)
    (scratch,) = raccoon.iterdir()  # no dataset
    assert sorted(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) == [0, size // 2]
    hub.fault = None
    hub.requests.clear()
    assert fetch_dataset("Raccoon", raccoon).is_new
    assert hub.asked("GET", "/blob/") == [f"bytes={size // 2}-"]
    assert names_in(raccoon) == ["Raccoon"]
    assert len(load_dataset("Raccoon", raccoon).train) == 6


@pytest.mark.parametrize("fault", [*FAULTS, *FACT_FAULTS, "page"])
def test_a_fault_is_one_error_of_the_verb_and_the_next_call_leaves_the_dataset_alone(hub, raccoon, glip, fault):
    harmless = fault in ("half each", "no ranges", "longer, not stated", "length not stated")
    hub.fault = fault
    code, _, err = glip("data", "fetch", "Raccoon", "--root", raccoon)
    assert (code, "Traceback" in err) == (0 if harmless else 1, False)
    if not harmless:
        assert err.count("error:") == 1
        assert "By hand: fetch https://huggingface.co/" in " ".join(err.split())
        assert not (raccoon / "Raccoon").exists()
        assert len(hub.requests) < 24
    hub.fault = None
    assert fetch_dataset("Raccoon", raccoon).is_new is not harmless
    assert names_in(raccoon) == ["Raccoon"]
    assert len(load_dataset("Raccoon", raccoon).train) == 6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("page", "not answered by a Hub: commit, size or checksum"),
        ("page instead of file", "was answered by a page"),
        ("damaged", "arrived damaged: SHA-256"),
        ("longer", "expected status 200 and"),
        ("closed", "could not be fetched .RemoteProtocolError"),
    ],
)
def test_an_answer_that_brings_nothing_of_the_archive_leaves_nothing(hub, raccoon, fault, message):
    hub.fault = fault
    with pytest.raises(FetchError, match=message):
        fetch_dataset("Raccoon", raccoon)
    assert names_in(raccoon) == []


def test_an_archive_needs_a_checksum_that_nobody_can_forge(hub, raccoon, monkeypatch):
    monkeypatch.setitem(FACT_FAULTS, "of git", {"X-Linked-Etag": '"' + "0" * 40 + '"'})
    hub.fault = "of git"
    with pytest.raises(FetchError, match="the SHA-256 of the file is missing"):
        fetch_dataset("Raccoon", raccoon)


def test_a_damaged_part_of_an_earlier_try_is_found_and_dropped(hub, raccoon):
    hub.fault = "cut, then unavailable"
    with pytest.raises(FetchError):
        fetch_dataset("Raccoon", raccoon)
    hub.fault = None
    (part,) = raccoon.rglob("*.incomplete")
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(FetchError, match="arrived damaged"):
        fetch_dataset("Raccoon", raccoon)
    assert names_in(raccoon) == []


def test_the_part_of_an_archive_since_replaced_is_removed_once_the_new_one_is_there(hub, raccoon, tmp_path):
    hub.fault = "cut, then unavailable"
    with pytest.raises(FetchError, match="broke off"):
        fetch_dataset("Raccoon", raccoon)
    (raccoon / ".Aquarium.zip-0123456789ab").mkdir()
    (raccoon / ".Raccoon.zip-0123456789ab.part").touch()  # of an earlier release
    replaced = zipped(tmp_path / "made" / "odinw" / "Raccoon", tmp_path / "new.zip", ("Raccoon/more.txt", b"more"))
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", replaced)
    hub.fault = None
    fetch_dataset("Raccoon", raccoon)
    assert (raccoon / "Raccoon" / "more.txt").exists()
    assert names_in(raccoon) == [".Aquarium.zip-0123456789ab", "Raccoon"]


def test_what_the_hub_does_not_have_or_no_hub_at_all_is_one_error(hub, raccoon, monkeypatch):
    with pytest.raises(FetchError, match=r"odinw_35/Aquarium\.zip of GLIPModel/GLIP could not be fetched.*404"):
        fetch_dataset("Aquarium", raccoon)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(FetchError, match=r"could not be fetched.*set HF_ENDPOINT to a mirror.*By hand"):
        fetch_dataset("Raccoon", raccoon)
    assert names_in(raccoon) == []


def test_the_official_address_is_the_one_that_answers_files():
    for spec in known_datasets():
        assert "/resolve/" in spec.archive_url
        assert spec.archive == f"{spec.folder}.zip"


def link(name):
    info = ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Raccoon/" + "x" * 300, "a name of more than 255 bytes"),
        ("Raccoon/" + "x/" * 2000 + "evil", "more than 32 folders deep"),
        ("Raccoon/../../evil", "outside the folder"),
        (link("Raccoon/evil"), "is a link"),
        ("Raccoon/Raccoon.v2-raw.coco/test/annotations_without_background.json/evil", "lies below .*, which is a file"),
    ],
)
def test_an_archive_that_reaches_out_is_refused_and_kept(hub, raccoon, tmp_path, entry, message):
    sound = hub.files[ARCHIVE_REPOSITORY]["odinw_35/Raccoon.zip"]
    unsafe = zipped(tmp_path / "made" / "odinw" / "Raccoon", tmp_path / "unsafe.zip", (entry, b"/etc/passwd"))
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", unsafe)
    with pytest.raises(FetchError, match=rf"is as the Hub states, but is not used: entry .*{message}") as failure:
        fetch_dataset("Raccoon", raccoon)
    kept = Path(re.search(r"The archive is kept as (.*): unpack", str(failure.value))[1])
    assert kept.read_bytes() == unsafe
    assert [path.name[:13] for path in raccoon.iterdir()] == [".Raccoon.zip-"]
    assert not list(tmp_path.rglob("*evil*"))
    hub.requests.clear()
    with pytest.raises(FetchError, match="is kept as"):
        fetch_dataset("Raccoon", raccoon)
    assert hub.asked("GET") == []
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", sound)
    assert fetch_dataset("Raccoon", raccoon).is_new
    assert names_in(raccoon) == ["Raccoon"]


def test_an_archive_without_the_annotations_is_refused(hub, raccoon, tmp_path):
    folder = tmp_path / "made" / "odinw" / "Raccoon"
    next(folder.rglob("test/*.json")).unlink()
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", zipped(folder, tmp_path / "short.zip"))
    with pytest.raises(FetchError, match=r"test/annotations_without_background\.json is missing in it.*is kept as"):
        fetch_dataset("Raccoon", raccoon)
    assert not (raccoon / "Raccoon").exists()


def test_a_dataset_without_a_split_that_nothing_needs_is_used_with_a_note(hub, made, tmp_path, caplog):
    archive = zipped(made("VehiclesOpenImages"), tmp_path / "vehicles.zip")
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/VehiclesOpenImages.zip", archive)
    assert fetch_dataset("VehiclesOpenImages", tmp_path / "data").is_new
    (note,) = caplog.messages
    assert note.startswith("VehiclesOpenImages comes without VehiclesOpenImages/416x416/mini_val/annotations")
    assert fetch_dataset("VehiclesOpenImages", tmp_path / "data").is_new is False
    data = load_dataset("VehiclesOpenImages", tmp_path / "data")
    assert data.selection is data.val


def test_only_the_folder_of_the_dataset_is_unpacked(hub, raccoon, tmp_path):
    folder = tmp_path / "made" / "odinw" / "Raccoon"
    more = zipped(
        folder, tmp_path / "more.zip", ("__MACOSX/._Raccoon", b"x"), ("../evil", b"x"), (link("link"), b"/etc/passwd")
    )
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", more)
    fetch_dataset("Raccoon", raccoon)
    assert names_in(raccoon) == ["Raccoon"]
    assert not (tmp_path / "evil").exists()
    record = json.loads((raccoon / "Raccoon" / "fetched.json").read_text())
    assert record["files"] == len(content_of(folder))


# Full disks, other processes, and what lies in the way


def test_a_disk_without_room_is_found_before_the_download(hub, raccoon, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FetchError, match=r"0\.00 GB free, and .* GB are needed"):
        fetch_dataset("Raccoon", raccoon)
    assert hub.asked("GET") == []
    assert names_in(raccoon) == []


def test_a_disk_that_fills_up_while_downloading_keeps_what_came(hub, raccoon):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FetchError, match="Free some space, then call again"):
        fetch_dataset("Raccoon", raccoon, fill)
    assert not (raccoon / "Raccoon").exists()
    hub.requests.clear()
    assert fetch_dataset("Raccoon", raccoon).is_new
    assert hub.asked("GET", "/blob/") != [None]


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_a_file_is_an_error_of_that_dataset(hub, raccoon, glip, made, tmp_path, monkeypatch, error):
    hub.put(ARCHIVE_REPOSITORY, "odinw_35/Aquarium.zip", zipped(made("Aquarium"), tmp_path / "aquarium.zip"))
    unpack = fetch.unpack

    def refuse(file, entries, folder, on_bytes):
        unpack(file, entries, folder, on_bytes)
        if entries[0].filename.startswith("Raccoon/"):
            raise OSError(error, "Refused", str(folder))

    monkeypatch.setattr(fetch, "unpack", refuse)
    code, out, err = glip("data", "fetch", "Raccoon", "Aquarium", "--root", raccoon)
    assert (code, "fetched" in out, "Traceback" in err) == (1, True, False)
    assert "Raccoon could not be written" in " ".join(err.split())
    assert (raccoon / "Aquarium").exists()
    assert not (raccoon / "Raccoon").exists()


def test_a_root_that_cannot_be_written_is_one_error(hub, raccoon):
    raccoon.write_text("a file")
    with pytest.raises(FetchError, match="Raccoon could not be written"):
        fetch_dataset("Raccoon", raccoon)


def test_a_disk_that_fills_up_while_unpacking_leaves_no_part_of_a_dataset(hub, raccoon, monkeypatch):
    unpack = fetch.unpack

    def fill(file, entries, folder, on_bytes):
        unpack(file, entries[:2], folder, on_bytes)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(fetch, "unpack", fill)
        with pytest.raises(FetchError, match="is full"):
            fetch_dataset("Raccoon", raccoon)
    assert [name.rpartition("-")[0] for name in names_in(raccoon)] == [".Raccoon.zip"]
    hub.requests.clear()
    assert fetch_dataset("Raccoon", raccoon).is_new
    assert hub.asked("GET") == []  # all of it was there
    assert names_in(raccoon) == ["Raccoon"]


def forked(work):
    """Start ``work`` in a process of its own; return what waits for it and returns its exit code."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies(work, at):
    """Run ``work`` in a process killed before its ``at``-th operation on files; return whether it came to that."""

    def watched():
        counter = itertools.count(1)

        def watch(event, _):
            if event in FILE_EVENTS and next(counter) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()

    return forked(watched)() == -signal.SIGKILL


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.truncate")


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_a_kill_at_any_operation_is_continued_by_the_next_call_with_nothing_left_over(hub, raccoon, tmp_path, stride):
    expected, at = content_of(tmp_path / "made" / "odinw" / "Raccoon"), 1
    while dies(lambda: fetch_dataset("Raccoon", raccoon), at):
        whole = (raccoon / "Raccoon").exists()
        assert fetch_dataset("Raccoon", raccoon).is_new is not whole
        assert names_in(raccoon) == ["Raccoon"], at
        found = content_of(raccoon / "Raccoon")
        assert found.pop("fetched.json")
        assert found == expected, at
        shutil.rmtree(raccoon)
        at += stride
    assert at > 50


def test_several_processes_at_once_make_one_dataset_of_one_download(hub, raccoon):
    others = [forked(lambda: fetch_dataset("Raccoon", raccoon)) for _ in range(3)]
    fetch_dataset("Raccoon", raccoon)
    assert [wait() for wait in others] == [0, 0, 0]
    assert len(hub.asked("GET", "/blob/")) == 1
    assert names_in(raccoon) == ["Raccoon"]


def test_a_folder_in_use_is_waited_for(hub, raccoon):
    hub.fault = "cut, then unavailable"
    with suppress(FetchError):
        fetch_dataset("Raccoon", raccoon)
    hub.fault = None
    (scratch,) = raccoon.iterdir()
    reading, writing = os.pipe()  # the other is started before there is a lock, which it would share
    wait = forked(lambda: os.read(reading, 1) and fetch_dataset("Raccoon", raccoon))
    with locked(scratch):
        os.write(writing, b"!")
        time.sleep(0.3)
        assert not (raccoon / "Raccoon").exists()
    assert wait() == 0
    assert names_in(raccoon) == ["Raccoon"]


@pytest.mark.parametrize("begun_anew", [False, True])
def test_a_lock_on_a_folder_that_was_removed_meanwhile_does_not_count(hub, raccoon, monkeypatch, begun_anew):
    late = []

    @contextmanager
    def locked_late(folder, *, wait=True):
        with locked(folder, wait=wait) as is_held:
            if wait and not late:
                late.append(folder)
                os.rename(folder, raccoon.parent / "removed")
                if begun_anew:
                    folder.mkdir()
            yield is_held

    monkeypatch.setattr(fetch, "locked", locked_late)
    assert fetch_dataset("Raccoon", raccoon).is_new
    assert late
    assert names_in(raccoon) == ["Raccoon"]
    assert list((raccoon.parent / "removed").iterdir()) == []


def test_a_folder_that_is_in_the_way_or_incomplete_is_not_touched(hub, raccoon):
    (raccoon / "Raccoon").mkdir(parents=True)
    (raccoon / "Raccoon" / "mine.txt").write_text("mine")
    with pytest.raises(FetchError, match=r"Raccoon is in the way: it holds no Raccoon\. Move it"):
        fetch_dataset("Raccoon", raccoon)
    shutil.copytree(raccoon.parent / "made" / "odinw" / "Raccoon", raccoon / "Raccoon", dirs_exist_ok=True)
    next(raccoon.rglob("test/*.json")).unlink()
    with pytest.raises(FetchError, match=r"incomplete: .*test/annotations_without_background\.json is missing"):
        fetch_dataset("Raccoon", raccoon)
    assert (raccoon / "Raccoon" / "mine.txt").read_text() == "mine"
    assert hub.requests == []


# The verb, and real sets


def test_the_verb_fetches_says_what_was_there_and_goes_on_after_a_failure(glip, raccoon):
    code, out, err = glip("data", "fetch", "Aquarium", "Raccoon", "--root", raccoon)
    assert (code, "fetched" in out, "Aquarium.zip of GLIPModel/GLIP could not be fetched" in " ".join(err.split())) == (
        1,
        True,
        True,
    )
    assert "Traceback" not in err
    code, out, _ = glip("data", "fetch", "Raccoon", "--root", raccoon, "--json")
    assert code == 0
    assert json.loads(out) == [{"dataset": "Raccoon", "state": "was there already", "folder": str(raccoon / "Raccoon")}]
    assert "Example: glip-adapt data fetch" in " ".join(glip("data", "fetch", "--help")[1].split())
    code, _, err = glip("data", "fetch", "Raccoon", "Racoon", "--root", raccoon)
    assert code == 1
    assert "mean 'Raccoon'" in err


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the development data is not beside this checkout")
@pytest.mark.parametrize(("name", "sizes"), [("Raccoon", (150, 29, 17)), ("NorthAmericaMushrooms", (41, 5, 5))])
def test_real_sets_arrive_as_they_were_sent(hub, tmp_path, name, sizes):
    source = SHARED / "data" / "odinw" / name
    hub.put(ARCHIVE_REPOSITORY, f"odinw_35/{name}.zip", zipped(source, tmp_path / "real.zip"))
    hub.fault = "cut, then unavailable"
    with pytest.raises(FetchError, match="broke off"):
        fetch_dataset(name, tmp_path / "data")
    hub.fault = None
    folder = fetch_dataset(name, tmp_path / "data").folder
    found = content_of(folder)
    assert found.pop("fetched.json")
    assert found == content_of(source)
    data = load_dataset(name, tmp_path / "data")
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert check_split(data.test.annotation_file, data.test.image_dir) == []
