"""Who may talk to a server of this machine: only who knows its token, by the address that it listens on.

A program on this machine that listens on 127.0.0.1 is reached by every web page that the user visits. Such a page may
send requests (cross-site requests), or give its own name the address 127.0.0.1 and then read answers too (DNS
rebinding). Against the first helps ``Origin``, against the second ``Host``; both are set by the browser.

Other users of this machine reach the port too. Against them helps a token that is drawn at the start. A browser brings
it in the address of the page (``?token=``), and from then on as a cookie; a program in the header ``Authorization``.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
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


def new_token() -> str:
    """Return a random token that may stand in an address."""
    return secrets.token_urlsafe(24)


class Guard:
    """Refuses requests of other sites, by other names and without the token; adds headers that keep a page to itself.

    Args:
        app: what answers the others.
        hosts: names by which the server may be asked for, see ``hosts_of``.
        token: that requests must bring; None lets all in who reach the port.
        kinds: content types of what may be sent. A form of another site can send neither JSON nor an image.
        most_bytes: of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        token: str | None,
        kinds: Sequence[str] = ("application/json",),
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.app, self.hosts, self.token = app, frozenset(hosts), token
        self.kinds, self.most_bytes = kinds, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no other kind is spoken here
            return
        headers, method = Headers(scope=scope), scope["method"]
        cookie = self._new_cookie(HTTPConnection(scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
                if cookie and message["status"] < 400:
                    own.append("Set-Cookie", cookie)
            await send(message)

        if reason := self._reason_against(headers, method, scope["path"]) or self._lack(HTTPConnection(scope)):
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
            if headers.get("content-type", "").partition(";")[0].strip() not in self.kinds:
                return f"Expected {' or '.join(self.kinds)} as content type."
            if not headers.get("content-length", "").isdecimal() or int(headers["content-length"]) > self.most_bytes:
                return f"Expected at most {self.most_bytes} bytes, and their number."
        return ""

    def _lack(self, request: HTTPConnection) -> str:
        """Return what to do about a missing or wrong token, or nothing."""
        kind, _, stated = request.headers.get("authorization", "").partition(" ")
        brought = (
            request.query_params.get("token"),
            request.cookies.get(_cookie_name(request)),
            stated.strip() if kind.lower() == "bearer" else None,
        )
        if self.token is None or any(self._is_token(one) for one in brought):
            return ""
        return (
            "The token is missing, or of an earlier start. Open the whole address that the terminal shows, or send the "
            "header Authorization: Bearer TOKEN."
        )

    def _new_cookie(self, request: HTTPConnection) -> str:
        """Return the cookie for a browser that brings the token in the address, or nothing."""
        if self.token is None or not self._is_token(request.query_params.get("token")):
            return ""
        return f"{_cookie_name(request)}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def _is_token(self, stated: str | None) -> bool:
        return bool(self.token and stated) and secrets.compare_digest(str(stated).encode(), str(self.token).encode())

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


def _cookie_name(request: HTTPConnection) -> str:
    """Return a name with the port, as a browser sends cookies to all ports of a host: two servers would share one."""
    _, port = request.scope.get("server") or ("", 0)
    return f"glip-adapt-{port}"
