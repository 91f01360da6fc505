"""Zip files that mean no good, each refused before anything is written."""

import contextlib
import io
import stat
import tracemalloc
import zipfile
from zipfile import ZipFile, ZipInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.data import archive
from glip_adapt.data.archive import UnsafeArchiveError, check_archive, unpack


def zipped(*entries, compression=zipfile.ZIP_DEFLATED):
    """Return a zip file of (name or ZipInfo, content) pairs, as a file."""
    file = io.BytesIO()
    with ZipFile(file, "w", compression) as target:
        for name, content in entries:
            target.writestr(name, content)
    return file


def entry(name, mode):
    info = ZipInfo(name)
    info.external_attr = mode << 16
    return info


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_archive_unpacks_to_what_went_in(tmp_path):
    content = {"a/b/c.jpg": b"picture" * 9, "a/d.json": b"{}", "a/empty": b""}
    file = zipped(("a/", b""), *content.items(), (entry("a/script", stat.S_IFREG | 0o755), b"#!"))
    done = []
    unpack(file, check_archive(file, "a"), tmp_path / "new", done.append)
    assert files_below(tmp_path / "new") == content | {"a/script": b"#!"}
    assert done == sorted(done)
    assert done[-1] == sum(map(len, content.values())) + 2


UNSAFE = {
    "a/../../evil": "outside the folder",
    "a/..": "outside the folder",
    "a/b/../../../evil": "outside the folder",
    "a/b\\..\\..\\..\\evil": "outside the folder",
    "a/" + "x" * 300: "a name of more than 255 bytes",
    "a/" + "ü" * 150: "a name of more than 255 bytes",
    "a/" * 2000 + "evil": "more than 32 folders deep",
}
IGNORED = (
    "../evil",
    "/etc/evil",
    "C:evil",
    "C:\\evil",
    "\\\\host\\share\\evil",
    "a\\..\\..\\evil",
    "__MACOSX/._b",
    "b/c",
    "a",
)


@pytest.mark.parametrize("name", UNSAFE)
def test_a_path_that_leads_out_or_cannot_be_written_is_refused(name):
    info = ZipInfo("x")
    info.filename = name  # past the constructor, which tidies names
    with pytest.raises(UnsafeArchiveError, match=UNSAFE[name]):
        check_archive(zipped(("a.jpg", b"x"), (info, b"x")), "a")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_lies_elsewhere_is_neither_judged_nor_unpacked(tmp_path):
    odd = [entry(name, stat.S_IFLNK | 0o777) for name in IGNORED]
    for info, name in zip(odd, IGNORED, strict=True):
        info.filename = name
    twice = [("__MACOSX/x", b"1"), ("__MACOSX/x", b"2"), ("zeros", bytes(20_000_000))]
    file = zipped(("a/x", b"x"), *((info, b"/etc/passwd") for info in odd), *twice)
    unpack(file, check_archive(file, "a"), tmp_path / "new", lambda _: None)
    assert files_below(tmp_path) == {"new/a/x": b"x"}


def test_names_that_only_windows_keeps_for_devices_are_names(tmp_path):
    content = {"a/con.jpg": b"1", "a/NUL": b"2", "a/aux/com1": b"3", "a/end.": b"4"}
    file = zipped(*content.items())
    unpack(file, check_archive(file, "a"), tmp_path, lambda _: None)
    assert files_below(tmp_path) == content


@pytest.mark.parametrize(
    ("kind", "word"),
    [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "device"), (stat.S_IFBLK, "device"), (stat.S_IFIFO, "device")],
)
def test_an_entry_that_is_neither_file_nor_folder_is_refused(kind, word):
    with pytest.raises(UnsafeArchiveError, match=rf"'a/x' is a {word}"):
        check_archive(zipped((entry("a/x", kind | 0o777), b"/etc/passwd")), "a")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["a/x", "a//x", "a/./x"])
def test_an_entry_that_comes_twice_is_refused(again):
    with pytest.raises(UnsafeArchiveError, match="comes twice"):
        check_archive(zipped(("a/x", b"1"), (again, b"2")), "a")


@pytest.mark.parametrize(
    "names", [("a/x", "a/x/y"), ("a/x/y/z", "a/x-", "a/x"), ("a/x", "a/x/y/"), ("a//x", "a/", "a/x.y", "a/./x/y")]
)
def test_an_entry_below_a_file_is_refused(names):
    with pytest.raises(UnsafeArchiveError, match=r"entry 'a/(\./)?x/y.*' lies below 'a/x', which is a file"):
        check_archive(zipped(*[(name, b"") for name in names]), "a")


def test_an_entry_below_a_folder_or_beside_a_file_of_like_name_is_not(tmp_path):
    content = {"a/x/y": b"1", "a/x.y": b"2", "a/x-/y": b"3", "a/X": b"4"}
    file = zipped(("a/x/", b""), *content.items())
    unpack(file, check_archive(file, "a"), tmp_path, lambda _: None)
    assert files_below(tmp_path) == content


def test_a_bomb_is_refused():
    with pytest.raises(UnsafeArchiveError, match="would unpack to 20000000, more than 100 times"):
        check_archive(zipped(("a/zeros", bytes(20_000_000))), "a")


def test_too_many_or_too_large_entries_are_refused(monkeypatch):
    file = zipped(("a/1", b"12"), ("a/2", b"34"))
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 4)
    monkeypatch.setattr(archive, "MAX_ENTRIES", 2)
    assert len(check_archive(file, "a")) == 2
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 3)
    with pytest.raises(UnsafeArchiveError, match="would unpack to 4"):
        check_archive(file, "a")
    monkeypatch.setattr(archive, "MAX_ENTRIES", 1)
    with pytest.raises(UnsafeArchiveError, match="2 entries, more than 1"):
        check_archive(file, "a")


def test_a_directory_of_millions_is_refused_before_it_is_read():
    """A million entries of nothing are 46 MB in the file, and 400 MB in memory."""
    whole = zipped(("a", b"")).getvalue()
    at, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    many = whole[at:end] * 1_000_000
    closing = bytearray(whole[end:])
    closing[12:16] = len(many).to_bytes(4, "little")
    file = io.BytesIO(whole[:at] + many + closing)
    tracemalloc.start()
    with pytest.raises(UnsafeArchiveError, match="its directory has 47000000 bytes, more than"):
        check_archive(file, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_what_cannot_be_read_is_refused_beforehand():
    with pytest.raises(UnsafeArchiveError, match="another method than deflate"):
        check_archive(zipped(("a/x", b"x"), compression=zipfile.ZIP_LZMA), "a")
    locked = bytearray(zipped(("a/x", b"x"), compression=zipfile.ZIP_STORED).getvalue())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1  # the flag for encryption, in the directory
    with pytest.raises(UnsafeArchiveError, match="encrypted"):
        check_archive(io.BytesIO(bytes(locked)), "a")


@given(content=st.binary(max_size=80))
def test_anything_else_is_no_zip_file_and_nothing_but_this_error(content):
    with pytest.raises(UnsafeArchiveError, match="not a zip file"):
        check_archive(io.BytesIO(content), "a")


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), data=st.data())
def test_a_changed_byte_is_either_refused_or_harmless(tmp_path_factory, at, value, data):
    compression = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    original = {"a/b": b"some text, " * 9, "a/c": b"more"}
    content = bytearray(zipped(*original.items(), compression=compression).getvalue())
    content[at % len(content)] = value
    root = tmp_path_factory.mktemp("changed")
    file = io.BytesIO(bytes(content))
    with contextlib.suppress(UnsafeArchiveError):
        unpack(file, check_archive(file, "a"), root / "in", lambda _: None)
        assert files_below(root / "in").items() <= original.items()
    assert [path.name for path in root.iterdir()] in ([], ["in"])
