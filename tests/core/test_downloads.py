"""Downloads from a stand-in of the Hub with faults: one clear error in few requests, and the next call succeeds."""

import errno
import hashlib
import io
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from huggingface_hub import constants
from processes import exit_codes
from stand_in_hub import COMMIT, FACT_FAULTS, FAULTS, PAGE, Answer, hub_within_reach

from glip_adapt.core import downloads, retries
from glip_adapt.core.downloads import DamagedDownloadError, DownloadError, cached, describe, download
from glip_adapt.trunks.catalogue import load_trunk
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.released import HUB_REPOSITORY
from glip_adapt.trunks.tokenizer import HUB_VOCABULARY
from glip_adapt.trunks.weights import fetch

REPOSITORY, NAME = "someone/things", "folder/thing.bin"
CONTENT = random.Random(0).randbytes(300_000)
HARMLESS = ("half each", "no ranges", "longer, not stated", "length not stated")
HARMFUL = [fault for fault in (*FAULTS, *FACT_FAULTS, "page") if fault not in HARMLESS]
MOST_REQUESTS = 24  # the HTTP client follows 20 redirects; all other faults end in fewer than 10


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_within_reach(monkeypatch, tmp_path / "cache") as stand_in:
        stand_in.put(REPOSITORY, NAME, CONTENT)
        yield stand_in


def get(**options):
    return download(describe(REPOSITORY, NAME), **options)


def leave_half(hub):
    """Let a call break off in the middle."""
    hub.fault = "cut, then unavailable"
    with pytest.raises(DownloadError, match=r"broke off after 150000 of 300000 bytes .* it goes on from there"):
        get()
    hub.fault = None
    hub.requests.clear()
    hub.slept.clear()


def test_a_file_lands_in_the_cache_of_the_hub_client_and_is_found_there_again(hub, tmp_path):
    path = get()
    assert path.read_bytes() == CONTENT
    blobs = tmp_path / "cache" / "models--someone--things" / "blobs"
    assert path == blobs.parent / "snapshots" / COMMIT / NAME
    assert [blob.name for blob in blobs.iterdir()] == [hashlib.sha256(CONTENT).hexdigest()]
    hub.requests.clear()
    assert cached(REPOSITORY, NAME) == path
    assert hub.requests == []
    assert get() == path
    assert hub.asked("GET") == []
    assert cached(REPOSITORY, "absent") is None


def test_a_small_file_is_compared_with_the_checksum_of_git(hub):
    git = hashlib.sha1(b"blob 300000\0" + CONTENT).hexdigest()
    hub.first = [None, None]
    file = downloads.replace(describe(REPOSITORY, NAME), checksum=git)
    target = io.BytesIO()
    downloads._receive(file, target, lambda *_: None)
    assert target.getvalue() == CONTENT
    blob = Path(constants.HF_HUB_CACHE) / "blob"
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(CONTENT)
    downloads._check(blob, file)
    blob.write_bytes(CONTENT[::-1])
    with pytest.raises(DamagedDownloadError, match=f"SHA-1 .*, expected {git}"):
        downloads._check(blob, file)
    assert not blob.exists()


@pytest.mark.parametrize("has_half", [False, True], ids=["from the start", "after a cut"])
@pytest.mark.parametrize("fault", HARMFUL)
def test_a_fault_is_one_error_in_few_requests_and_the_next_call_succeeds(hub, fault, has_half):
    if has_half:
        leave_half(hub)
    hub.fault = fault
    with pytest.raises(DownloadError) as failure:
        get()
    assert "\n" not in str(failure.value)
    assert str(failure.value).endswith((".", "bytes"))
    assert len(hub.requests) < MOST_REQUESTS
    assert sum(hub.slept) <= retries.MOST_WAIT_S
    hub.fault = None
    assert get().read_bytes() == CONTENT


@pytest.mark.parametrize("has_half", [False, True], ids=["from the start", "after a cut"])
@pytest.mark.parametrize("fault", HARMLESS)
def test_what_a_server_may_do_is_no_fault(hub, fault, has_half):
    if has_half:
        leave_half(hub)
    hub.fault = fault
    assert get().read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [f for f in HARMFUL if f not in ("damaged", "shorter, not stated")])
def test_no_fault_costs_what_has_arrived(hub, fault):
    leave_half(hub)
    hub.fault = fault
    with pytest.raises(DownloadError):
        get()
    hub.fault = None
    hub.requests.clear()
    assert get().read_bytes() == CONTENT
    (asked,) = hub.asked("GET", "/blob/")
    assert int(asked.removeprefix("bytes=").removesuffix("-")) >= 150_000


MESSAGES = {
    "page": "was not answered by a Hub: commit, size or checksum",
    "odd checksum": "was not answered by a Hub: commit, size or checksum",
    "page instead of file": "was answered by a page, of a login perhaps",
    "page as bytes": "was answered by a page, of a login perhaps",
    "page as a part": "was answered by a page, of a login perhaps",
    "other first byte": r"expected the bytes from 150000 of 300000, got bytes 150001-299999/300000",
    "other total": r"expected the bytes from 150000 of 300000, got bytes 150000-299999/300001",
    "unknown part": r"expected the bytes from 150000 of 300000, got no Content-Range",
    "longer": "expected status 200 and 300000 bytes, got 200 and 300004",
    "shorter": "expected status 200 and 300000 bytes, got 200 and 299991",
    "one byte each": r"broke off after \d of 300000 bytes",
    "cut, then unavailable": r"broke off after 150000 of 300000 bytes .*Call again: it goes on from there\.$",
    "shorter, not stated": r"broke off after 299991 of 300000 bytes \(the answer ended early\)",
    "damaged": "thing.bin arrived damaged: SHA-256",
    "refused": r"403 Forbidden\)\. Log in with `hf auth login`, or set HF_TOKEN",
    "gone": r"410 Gone\)",
    "unavailable": r"503 Service Unavailable\)\. The server is busy",
    "too many for a day": r"429 Too Many Requests\)\. The server is busy: wait 86400 s\.$",
    "to a file": "UnsupportedProtocol",
    "to ftp": "UnsupportedProtocol",
    "to itself": "TooManyRedirects",
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_the_message_says_what_came(hub, fault):
    hub.fault = fault
    with pytest.raises(DownloadError, match=MESSAGES[fault]):
        get()


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "hf auth login"), (403, "hf auth login"), (404, "Check the name"), (400, "Check the network")],
)
def test_a_refusal_by_the_hub_is_an_error_at_once_that_names_the_file(hub, status, advice):
    hub.first = [Answer(status)]
    with pytest.raises(DownloadError, match=rf"folder/thing\.bin of someone/things could not be fetched .*{advice}"):
        get()
    assert len(hub.requests) == 1
    with pytest.raises(DownloadError, match=r"folder/absent of someone/things .*404.*Check the name"):
        describe(REPOSITORY, "folder/absent")


# Busy servers


def in_a_while(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["describing", "receiving", "linking"])
@pytest.mark.parametrize(
    ("told", "waits"),
    [
        ({"Retry-After": "7"}, [7, 7]),
        ({"Retry-After": "0"}, [0, 0]),
        ({}, [1, 2]),
        ({"Retry-After": "soon"}, [1, 2]),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}, [0, 0]),
        ({"Retry-After": "Mon, 01 Jan 2001 00:00:00 -0000"}, [0, 0]),
        ({"Retry-After": "3600"}, None),
    ],
    ids=str,
)
def test_a_busy_server_is_asked_again_when_it_says(hub, status, place, told, waits):
    busy = Answer(status, b"", told)
    before = [None, None, None]  # the facts, where the file lies, the file
    hub.first = [*before[: (0, 1, 3)[place]], busy, busy]
    if waits is None:
        with pytest.raises(DownloadError, match=rf"{status} .*The server is busy"):
            get()
        assert hub.slept == []
        hub.first = []
    assert get().read_bytes() == CONTENT
    assert hub.slept == (waits or [])


def test_a_date_says_when_to_ask_again(hub):
    hub.first = [Answer(503, b"", {"Retry-After": in_a_while(30)})]
    get()
    assert hub.slept == [pytest.approx(29, abs=2)]


def test_the_limit_of_the_hub_is_waited_for(hub):
    hub.first = [Answer(429, b"", {"RateLimit": '"resolvers";r=0;t=12'})]
    get()
    assert hub.slept == [12]


def test_waiting_has_a_bound_in_tries_and_in_all(hub):
    hub.fault = "unavailable"
    with pytest.raises(DownloadError):
        get()
    assert (hub.slept, len(hub.asked("GET", "/blob/"))) == ([1, 2, 4], 4)
    hub.slept.clear()
    hub.first = [Answer(503, b"", {"Retry-After": "20"})] * 4
    with pytest.raises(DownloadError, match="The server is busy"):
        get()
    assert hub.slept == [20, 20]


# Slow servers, long files, no network


def test_a_connection_without_pace_is_given_up(hub, monkeypatch):
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(downloads, "monotonic", lambda: next(clock))
    monkeypatch.setattr(downloads, "SLOW_BYTES", 10**9)
    with pytest.raises(DownloadError, match=r"comes too slowly: \d+ bytes in 20 s\. .* goes on from \d+ of 300000"):
        get()
    monkeypatch.setattr(downloads, "SLOW_BYTES", 1)
    assert get().read_bytes() == CONTENT


def test_a_silent_server_is_given_up_after_the_timeout_of_the_hub_client(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    began = time.monotonic()
    answer = hub._send
    monkeypatch.setattr(hub, "_send", lambda r, a: (time.sleep(1 if "/blob/" in r.path else 0), answer(r, a)))
    with pytest.raises(DownloadError, match=r"could not be fetched \(ReadTimeout"):
        get()
    assert time.monotonic() - began < 5


def test_a_line_that_breaks_every_mebibyte_does_not_stop_a_long_file(hub, monkeypatch):
    monkeypatch.setattr(downloads, "ENOUGH_BYTES", 3000)
    hub.fault = "a hundredth each"
    assert get().read_bytes() == CONTENT
    assert len(hub.asked("GET", "/blob/")) == 100
    assert hub.slept == []


def test_no_network_or_none_wanted_is_one_error_at_once(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(DownloadError, match=r"ConnectError.*Check the network, or set HF_ENDPOINT to a mirror"):
        get()
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    with pytest.raises(DownloadError, match=r"ConnectError.*Check the network"):
        get()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"OfflineModeIsEnabled.*Unset HF_HUB_OFFLINE"):
        get()
    assert hub.requests == []


def test_the_token_goes_to_the_hub_only(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get()
    assert {host for host, _ in hub.authorised} == {"127.0.0.1"}
    assert all("/resolve/" in path for _, path in hub.authorised)
    assert len(hub.asked("GET", "/blob/")) == 1


def test_what_a_server_says_cannot_steer_the_terminal(hub):
    hub.first = [None, None, Answer(206, CONTENT, {"Content-Range": "\x9b2Jfine" + "x" * 5000})]
    with pytest.raises(DownloadError, match=r"got \\x9b2Jfinexxx") as failure:
        get()
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 1000


# Disks and other processes


def test_a_disk_without_room_is_found_before_the_download(hub, monkeypatch):
    usage = downloads.shutil.disk_usage("/")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"0\.00 GB free, and .* GB are needed"):
        get()
    assert hub.asked("GET") == []


def test_a_disk_that_fills_up_keeps_what_came(hub, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DownloadError, match=r"No space left on device\)\. Free some space, then call again"):
        get(on_bytes=fill)
    hub.requests.clear()
    assert get().read_bytes() == CONTENT
    assert hub.asked("GET", "/blob/") != [None]


def test_a_part_that_is_too_long_or_foreign_is_not_kept_for_ever(hub, tmp_path):
    leave_half(hub)
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(CONTENT + b"more")
    assert get().read_bytes() == CONTENT
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    leave_half(hub)
    part.write_bytes(b"!" * 150_000)
    with pytest.raises(DamagedDownloadError):
        get()
    assert get().read_bytes() == CONTENT


def test_a_damaged_file_of_another_tool_is_replaced(hub, tmp_path):
    blob = tmp_path / "cache/models--someone--things/blobs" / hashlib.sha256(CONTENT).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(PAGE)
    assert get().read_bytes() == CONTENT


def get_and_compare(path):
    assert get() == path
    assert path.read_bytes() == CONTENT


def test_two_processes_at_once_transfer_a_file_once(hub, tmp_path):
    path = tmp_path / "cache" / "models--someone--things" / "snapshots" / COMMIT / NAME
    assert exit_codes(get_and_compare, path, count=2) == [0, 0]
    assert len(hub.asked("GET", "/blob/")) == 1


# The callers


@pytest.mark.parametrize("fault", HARMFUL)
def test_a_trunk_is_one_error_that_says_how_to_get_the_file_by_hand(hub, fault):
    hub.put(HUB_REPOSITORY, "glip_tiny_model_o365.pth", CONTENT)
    hub.put(HUB_VOCABULARY[0], "vocab.txt", CONTENT)
    hub.fault = fault
    with pytest.raises((FileNotFoundError, CheckpointError)) as failure:
        load_trunk("glip-t-b")
    if fault != "damaged":
        assert "By hand: fetch http" in str(failure.value)
        assert "name the file with --vocabulary" in str(failure.value)
    with pytest.raises((FileNotFoundError, CheckpointError)) as failure:
        fetch(HUB_REPOSITORY, "glip_tiny_model_o365.pth", option="--checkpoint")
    if fault != "damaged":
        assert "/GLIPModel/GLIP/resolve/main/glip_tiny_model_o365.pth" in str(failure.value)
        assert "name the file with --checkpoint" in str(failure.value)
    hub.fault = None
    path = fetch(HUB_REPOSITORY, "glip_tiny_model_o365.pth", option="--checkpoint")
    assert Path(path).read_bytes() == CONTENT
