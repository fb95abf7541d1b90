"""Who may talk to the page's server, and how much: token, host, origin, size; nothing else gets past.

The server shows medical images and writes to the disk, and every web site that is open in the same browser can send it
requests. So a request must name this server as its host (a foreign name that was pointed at this machine does not),
bring the token that the terminal printed, and, where it changes something, come from our own page.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vesalius.errors import ConfigError

LIMIT = 64 * 2**20
"""Bytes of a request. A mask of 512 x 512 x 1000 voxels is some MB when it is compressed."""
HEADER = "x-vesalius"
"""Only our own page's script can add it: a form, a picture or a script of another site cannot."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self' data: blob:",  # NiiVue's font is a data URL
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # a shared browser keeps no patient's pixels
}


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, token: str | None) -> None:
    """Refuse to be reachable from other machines without a token.

    Raises:
        ConfigError: it would be.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(f"--no_token would show images to everybody who reaches {host}", remedy="leave the token on")


@dataclass(frozen=True)
class Guard:
    """ASGI middleware before everything else.

    Args:
        app: what it protects.
        token: of the link; None asks for none.
        host: that the server listens on; on loopback, requests for other host names are refused.
        port: it listens on, which also names the cookie: browsers do not tell the ports of a host apart.
        limit: bytes of a request's body.
    """

    app: ASGIApp
    token: str | None
    host: str
    port: int
    limit: int = LIMIT

    @property
    def cookie(self) -> str:
        """Where the browser keeps the token."""
        return f"vesalius-{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return  # no web sockets here
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        body = b""
        if refused is None and scope["method"] not in ("GET", "HEAD"):
            taken = await self._body(headers, receive)
            refused, body = (taken, b"") if isinstance(taken, Response) else (None, taken)
        fresh = refused is None and self.token is not None and self._token_in_link(scope) is not None

        async def decorate(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = {**HEADERS}
                if fresh:
                    added["Set-Cookie"] = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in added.items()),
                ]
            await send(message)

        whole = iter([body])

        async def replay() -> Message:
            for part in whole:
                return {"type": "http.request", "body": part, "more_body": False}
            return await receive()

        if refused is not None:
            return await refused(scope, receive, decorate)
        await self.app(scope, replay, decorate)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that may not pass."""
        host = headers.get("host", "")
        if is_loopback(self.host) and not is_loopback(_name(host)):
            return _no(421, "this server answers to its own address only")
        if self.token is not None and not self._knows_token(scope, headers):
            if scope["path"] == "/":
                return PlainTextResponse("Open the link that `vesalius review` printed: it carries a token.\n", 401)
            return _no(401, "no token, or an old one; open the link that vesalius review printed")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if headers.get(HEADER) is None or (origin is not None and origin.partition("://")[2] != host):
                return _no(403, "changes are taken from the review page only")
        return None

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        given = (cookie_parser(headers.get("cookie", "")).get(self.cookie), self._token_in_link(scope))
        return any(one is not None and hmac.compare_digest(one.encode(), str(self.token).encode()) for one in given)

    def _token_in_link(self, scope: Scope) -> str | None:
        """Of ``/?token=...``, which opens the page; no other address takes a token."""
        if scope["path"] != "/":
            return None
        return parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]

    async def _body(self, headers: Headers, receive: Receive) -> bytes | Response:
        """The body, read no further than the limit, whatever its length is said to be."""
        too_large = _no(413, f"more than {self.limit // 2**20} MB; compress the mask (.nii.gz)")
        said = headers.get("content-length", "0")
        if said.isdigit() and int(said) > self.limit:
            return too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return _no(400, "the connection broke")
            part = message.get("body", b"")
            size += len(part)
            if size > self.limit:
                return too_large
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _name(host: str) -> str:
    """The host without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _no(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)
