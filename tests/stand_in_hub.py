"""A stand-in of the Hub on the loopback: metadata, redirects to another host, ranges, uploads, faults on request."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html>Please log in to the network</html>"


class StandInHub:
    """What the stand-in holds, how it misbehaves, and what it was asked.

    Attributes:
        files: content by repository, then by path.
        fault: None; "page": every answer is HTML; "page instead of file"; "cut": half a file, then errors; "damaged";
            "endless": more than stated; "stutter": half of what is asked for, each time; "no ranges".
        requests: (method, path, Range header) in order of arrival.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.fault: str | None = None
        self.requests: list[tuple[str, str, str | None]] = []
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
        if self.fault == "page":
            self._send(request, 200, PAGE, {"Content-Type": "text/html"})
        elif path.startswith("/blob/"):
            self._send_blob(request, path.removeprefix("/blob/"))
        elif "/resolve/" in path:
            self._resolve(request, path)
        else:
            self._upload(request, method, path, body)

    def _resolve(self, request: BaseHTTPRequestHandler, path: str) -> None:
        """Send the facts of a file, and where it lies: on another host, as large files of the Hub do."""
        repository, _, rest = path.strip("/").partition("/resolve/")
        content = self.files.get(repository, {}).get(rest.partition("/")[2])
        if content is None:
            code = "EntryNotFound" if repository in self.files else "RepoNotFound"
            self._send(request, 404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            return
        sha256 = hashlib.sha256(content).hexdigest()
        self._blobs[sha256] = content
        facts = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        self._send(request, 302, b"", facts | {"Location": f"http://localhost:{self.port}/blob/{sha256}"})

    def _send_blob(self, request: BaseHTTPRequestHandler, sha256: str) -> None:
        content, start = self._blobs[sha256], 0
        asked = request.headers.get("Range")
        if self.fault == "page instead of file":
            self._send(request, 200, PAGE, {"Content-Type": "text/html"})
        elif self.fault == "cut" and len(self.asked("GET", "/blob/")) > 1:
            self._send(request, 503, b"")
        elif self.fault == "cut":
            self._send(request, 200, content, stop=len(content) // 2)
        elif self.fault == "damaged":
            self._send(request, 200, content[:4] + content[4:][::-1])
        elif self.fault == "endless":
            self._send(request, 200, content + b"more")
        elif self.fault == "stutter":
            start = int((asked or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self._send(request, 206 if asked else 200, content[start:], stop=(len(content) - start + 1) // 2)
        elif asked and self.fault != "no ranges":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(request, 206, content[start:], {"Content-Range": whole})
        else:
            self._send(request, 200, content)

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
            self._send(request, 404, b"")
            return
        self._send(request, 200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def _commit(self, repository: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.put(repository, value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                self.put(repository, value["path"], self._blobs[value["oid"]])

    def _send(self, request, status, body, headers=None, stop=None) -> None:  # type: ignore[no-untyped-def]
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[:stop])
        if stop is not None:
            request.close_connection = True


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
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_within_reach(monkeypatch: pytest.MonkeyPatch, cache: object) -> Iterator[StandInHub]:
    """Yield a stand-in that the Hub client talks to, with a cache of its own and no other Hub within reach."""
    for name, value in {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    hub = StandInHub()
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        close_session()
        yield hub
        close_session()
