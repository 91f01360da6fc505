"""Who may talk to the page: only a browser that opened it by the address it listens on.

A program on this machine that listens on 127.0.0.1 is reached by every web page that the user visits. Such a page may
send requests (cross-site requests), or give its own name the address 127.0.0.1 and then read answers too (DNS
rebinding). Against the first helps ``Origin``, against the second ``Host``; both are set by the browser.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 2**20
"""Of a request."""

_SAFE = ("GET", "HEAD")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def hosts_of(host: str) -> frozenset[str]:
    """Return the names by which a page that listens on ``host`` may be asked for, without port.

    A page that listens on all addresses may be asked for by any of them (``"*"``), and by the name of this machine.
    """
    own = {host.strip("[]").lower()}
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return frozenset(own)
    if address.is_loopback:
        own |= {"localhost", "127.0.0.1", "::1"}
    if address.is_unspecified:
        own |= {"*", "localhost", socket.gethostname().lower()}
    return frozenset(own)


class Guard:
    """Refuses requests of other sites and by other names, and adds headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no other kind is spoken here
            return
        headers, method = Headers(scope=scope), scope["method"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
            await send(message)

        if reason := self._reason_against(headers, method, scope["path"]):
            await PlainTextResponse(reason, 403)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _reason_against(self, headers: Headers, method: str, path: str) -> str:
        """Return why a request is refused, or nothing."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_own(host):
            return "This page is not served under that name. Open it by the address that the terminal shows."
        if any(origin != f"http://{host}" for origin in headers.getlist("origin")):
            return "Another site may not use this page."
        is_page = method in _SAFE and path == "/"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_page:
            return "Another site may not use this page."
        if method not in _SAFE:
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return "Expected JSON."
            if not headers.get("content-length", "").isdecimal() or int(headers["content-length"]) > MOST_BYTES:
                return f"Expected at most {MOST_BYTES} bytes, and their number."
        return ""

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return "*" in self.hosts  # an address is no name that a stranger could point here
