"""Who may ask a service: with a token whoever has it; without one, this machine by its own names."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from glip_adapt.share.studio.guard import Guard, hosts_of

OPEN = ("/health",)
"""Paths that answer without a token, so that a load balancer may ask them; they tell nothing."""


def is_loopback(host: str) -> bool:
    """Tell whether what listens on an address is reached from this machine alone."""
    names = hosts_of(host)
    return "*" not in names and not names.isdisjoint(("localhost", "127.0.0.1"))


class ServiceGuard(Guard):
    """Refuses requests without the token, or, if there is no token, of other sites and by other names.

    A service that listens on 127.0.0.1 is reached by every web page that its user visits; see ``studio/guard.py``. A
    token is something that such a page does not have, and then the service may have any name, of a container for
    example.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str = "") -> None:
        super().__init__(app, hosts, token or None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        if self.token and scope["path"] not in OPEN and not self._has_token(headers):
            sentence = "This service needs its token. Send the header Authorization: Bearer TOKEN."
            answer = JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": "Bearer", "Connection": "close"})
            await answer(scope, receive, send)
        elif not self.token and (reason := self._reason_without_token(headers)):
            await JSONResponse({"error": reason}, 403, {"Connection": "close"})(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _has_token(self, headers: Headers) -> bool:
        """Tell whether a request has the token; also as a password, since Label Studio sends user and password."""
        kind, _, stated = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                stated = base64.b64decode(stated, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return self._is_token(stated.strip())

    def _reason_without_token(self, headers: Headers) -> str:
        """Return why a request is refused, or nothing."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_own(host):
            return "This service is not served under that name. Ask it by the address that the terminal shows."
        is_foreign = any(origin != f"http://{host}" for origin in headers.getlist("origin"))
        if is_foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "Another site may not use this service. Start it with a token for programs of other sites."
        return ""
