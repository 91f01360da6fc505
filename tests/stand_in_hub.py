"""A stand-in of the Hub on the loopback: metadata, redirects to another host, ranges, uploads, faults on request."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from glip_adapt.core import retries

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html>Please log in to the network</html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
OPEN_END = {"Content-Length": None, "Connection": "close"}  # the body lasts as long as the connection


@dataclass(frozen=True)
class Answer:
    """What is sent: of the body, ``stop`` bytes before the connection is cut; a header of None is left out."""

    status: int
    body: bytes = b""
    headers: dict[str, str | None] = field(default_factory=dict)
    stop: int | None = None


def part(content: bytes, start: int, length: int | None = None, *, total: int | None = None) -> Answer:
    """Return the bytes from ``start`` on as they were asked for, cut after ``length``."""
    span = f"bytes {start}-{len(content) - 1}/{total or len(content)}"
    return Answer(206, content[start:], {"Content-Range": span}, stop=length)


def cut(content: bytes) -> Answer:
    return Answer(200, content, stop=len(content) // 2)


def piece(content: bytes, start: int, length: int) -> Answer:
    """Return the next ``length`` bytes, then cut, whether a part was asked for or not."""
    return part(content, start, length) if start else Answer(200, content, stop=length)


# Faults of the answer with the file, from its content and the byte that was asked for.
FAULTS: dict[str, Callable[[bytes, int], Answer]] = {
    "page instead of file": lambda c, s: Answer(200, PAGE, dict(HTML)),
    "page as a part": lambda c, s: Answer(206, PAGE, dict(HTML)) if s else cut(c),
    "page as the part": lambda c, s: Answer(206, PAGE, HTML | part(c, s).headers) if s else cut(c),
    "page as bytes": lambda c, s: Answer(200, PAGE, dict(OPEN_END)),
    "other first byte": lambda c, s: part(c, s + 1) if s else cut(c),
    "other total": lambda c, s: part(c, s, total=len(c) + 1) if s else cut(c),
    "unknown part": lambda c, s: Answer(206, c[s:]) if s else cut(c),
    "parts of several": lambda c, s: Answer(206, c[s:], {"Content-Range": "bytes 0-1,5-9/*"}) if s else cut(c),
    "longer": lambda c, s: Answer(200, c + b"more"),
    "shorter": lambda c, s: Answer(200, c[:-9]),
    "shorter, not stated": lambda c, s: Answer(200, c[:-9], dict(OPEN_END)),
    "one byte each": lambda c, s: piece(c, s, 1),
    "a hundredth each": lambda c, s: piece(c, s, len(c) // 100),
    "damaged": lambda c, s: Answer(200, c[:4] + c[4:][::-1]),
    "closed": lambda c, s: Answer(200, c, stop=0),
    "no content": lambda c, s: Answer(204),
    "accepted": lambda c, s: Answer(202, c),
    "to a file": lambda c, s: Answer(302, b"", {"Location": "file:///etc/hostname"}),
    "to ftp": lambda c, s: Answer(302, b"", {"Location": "ftp://127.0.0.1/file"}),
    "to itself": lambda c, s: Answer(302, b"", {"Location": "."}),
    "gone": lambda c, s: Answer(410),
    "refused range": lambda c, s: Answer(416) if s else cut(c),
    "refused": lambda c, s: Answer(403, b"no" * 10**6),
    "unavailable": lambda c, s: Answer(503),
    "cut, then unavailable": lambda c, s: Answer(503) if s else cut(c),
    "too many": lambda c, s: Answer(429, b"", {"Retry-After": "7"}),
    "too many for a day": lambda c, s: Answer(429, b"", {"Retry-After": "86400"}),
    "too many by the client's rules": lambda c, s: Answer(429, b"", {"RateLimit": '"resolvers";r=0;t=86400'}),
    # What a download can live with:
    "half each": lambda c, s: piece(c, s, (len(c) - s + 1) // 2),
    "no ranges": lambda c, s: Answer(200, c),
    "longer, not stated": lambda c, s: Answer(200, c + b"more", dict(OPEN_END)),
    "length not stated": lambda c, s: Answer(200, c, dict(OPEN_END)),
}
# Faults of the facts, as headers of that answer.
FACT_FAULTS: dict[str, dict[str, str | None]] = {
    "no commit": {"X-Repo-Commit": None},
    "odd commit": {"X-Repo-Commit": "../../../evil"},
    "no checksum": {"X-Linked-Etag": None},
    "odd checksum": {"X-Linked-Etag": '"../../../evil"'},
    "long checksum": {"X-Linked-Etag": "z" * 64},
    "no size": {"X-Linked-Size": None},
    "odd size": {"X-Linked-Size": "-5"},
}


class StandInHub:
    """What the stand-in holds, how it misbehaves, and what it was asked.

    Attributes:
        files: content by repository, then by path.
        fault: None; "page": every answer is HTML; one of ``FAULTS``; one of ``FACT_FAULTS``.
        first: answers to the next requests, before all others.
        requests: (method, path, Range header) in order of arrival.
        authorised: (host, path) of those that came with a token.
        slept: seconds that the project wanted to wait.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.fault: str | None = None
        self.first: list[Answer | None] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.authorised: list[tuple[str, str]] = []
        self.slept: list[float] = []
        self.port = 0
        self._blobs: dict[str, bytes] = {}

    def put(self, repository: str, path: str, content: bytes) -> None:
        self.files.setdefault(repository, {})[path] = content

    def asked(self, method: str, part: str = "") -> list[str | None]:
        """Return the Range headers of the requests by ``method`` whose path holds ``part``."""
        return [asked for verb, path, asked in self.requests if verb == method and part in path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        method, path = request.command, request.path.partition("?")[0]
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests.append((method, path, request.headers.get("Range")))
        if request.headers.get("Authorization"):
            self.authorised.append((request.headers["Host"].partition(":")[0], path))
        answer = self.first.pop(0) if self.first else None
        if answer is not None:
            self._send(request, answer)
        elif self.fault == "page":
            self._send(request, Answer(200, PAGE, dict(HTML)))
        elif path.startswith("/blob/"):
            self._send(request, self._blob(path.removeprefix("/blob/"), request.headers.get("Range")))
        elif "/resolve/" in path:
            self._send(request, self._resolve(path))
        else:
            self._upload(request, method, path, body)

    def _resolve(self, path: str) -> Answer:
        """Return the facts of a file, and where it lies: on another host, as large files of the Hub do."""
        repository, _, rest = path.strip("/").partition("/resolve/")
        content = self.files.get(repository, {}).get(rest.partition("/")[2])
        if content is None:
            code = "EntryNotFound" if repository in self.files else "RepoNotFound"
            return Answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
        sha256 = hashlib.sha256(content).hexdigest()
        self._blobs[sha256] = content
        facts = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        where = {"Location": f"http://localhost:{self.port}/blob/{sha256}"}
        return Answer(302, b"", facts | where | FACT_FAULTS.get(self.fault or "", {}))

    def _blob(self, sha256: str, asked: str | None) -> Answer:
        content = self._blobs.get(sha256, b"")
        start = int((asked or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.fault in FAULTS:
            return FAULTS[self.fault](content, start)
        return part(content, start) if asked else Answer(200, content)

    def _upload(self, request: BaseHTTPRequestHandler, method: str, path: str, body: bytes) -> None:
        """Take part in what ``HfApi.create_repo`` and ``HfApi.create_commit`` do."""
        address = f"http://127.0.0.1:{self.port}"
        reply: dict[str, object] = {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.files.setdefault(name, {})
            reply = {"url": f"{address}/{name}", "id": name}
        elif path == "/api/validate-yaml":
            reply = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".png")) else "regular" for name in names}
            reply = {"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]}
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [
                {**entry, "actions": {"upload": {"href": f"{address}/put/{entry['oid']}", "header": {}}}}
                for entry in objects
            ]
            reply = {"transfer": "basic", "objects": upload}
        elif method == "PUT":
            self._blobs[path.removeprefix("/put/")] = body
        elif "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(repository, body)
            reply = {"commitUrl": f"{address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        else:
            self._send(request, Answer(404))
            return
        self._send(request, Answer(200, json.dumps(reply).encode(), {"Content-Type": "application/json"}))

    def _commit(self, repository: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.put(repository, value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                self.put(repository, value["path"], self._blobs[value["oid"]])

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer) -> None:
        request.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(answer.body[: answer.stop])
        request.close_connection |= answer.stop is not None or answer.headers.get("Connection") == "close"


@contextmanager
def serving(hub: StandInHub) -> Iterator[str]:
    """Serve ``hub`` on a free port of the loopback; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is none
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


tls_context = functools.cache(ssl.create_default_context)  # a client reads all certificates of the machine, in vain


@contextmanager
def hub_within_reach(monkeypatch: pytest.MonkeyPatch, cache: object) -> Iterator[StandInHub]:
    """Yield a stand-in that the Hub client talks to, with a cache of its own and no other Hub within reach."""
    for name, value in {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: tls_context())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    hub = StandInHub()
    monkeypatch.setattr(retries, "sleep", hub.slept.append)
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        close_session()
        yield hub
        close_session()
