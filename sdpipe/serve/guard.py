"""What no request gets by: the host, the key, where it comes from, the size and pace of its body.

An ASGI middleware around everything that the server answers.
"""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sdpipe.serve.answers import RequestError, failure, local_path

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 2**25
"""Bytes of a request: an image of 24 MB as Base64."""

BODY_SECONDS = 60.0
"""How long a request may take to arrive."""

OPEN_PATHS = ("/health", "/ready")
OPEN_FOLDER = "/v1/images/"
"""What is answered without a key: signs of life, and images under names that nobody guesses."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class Guard:
    """Answers what may not pass, and hands on the rest to `app`.

    hosts: names by which the server may be called; the address that a request came to and
        localhost are always among them. A page of another name that leads here, as in DNS
        rebinding, is refused.
    key: what every request has to bring, as a Bearer token or as the password of Basic; None asks
        for none.
    origins: of pages elsewhere whose scripts may ask; "*" is any.
    """

    def __init__(
        self,
        app: "ASGIApp",
        *,
        hosts: Collection[str] = (),
        key: str | None = None,
        origins: Collection[str] = (),
        max_body: int = MAX_BODY,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app, self._key, self._origins = app, key, origins
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._max_body, self._body_seconds = max_body, body_seconds

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Checks a request; what is no HTTP passes, but for WebSockets, of which there are none."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        added = {**HEADERS, **self._cors(headers)}
        body = _Body(receive, self._max_body, self._body_seconds)
        has_begun = False

        async def answer(message: "Message") -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                present = {key.lower() for key, _ in message["headers"]}
                message = {**message, "headers": list(message["headers"])}
                message["headers"] += [
                    (key.encode(), value.encode())
                    for key, value in added.items()
                    if key.encode() not in present
                ]
            await send(message)

        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                await answer({"type": "http.response.start", "status": 204, "headers": []})
                await answer({"type": "http.response.body", "body": b""})
                return
            await self._app(scope, body, answer)
        except RequestError as error:
            if has_begun:
                raise
            await failure(local_path(scope), error)(scope, receive, answer)

    def _check(self, scope: "Scope", headers: Mapping[str, str]) -> None:
        """Raises RequestError for a request that may not pass."""
        host = _name(headers.get("host", ""))
        server = scope.get("server")
        if host not in self._hosts and not (server and host == str(server[0]).lower()):
            remedy = "call it by its address, or start it with --allowed-host NAME"
            raise RequestError(421, f"Host {host[:80]!r}", "is not a name of this server", remedy)
        method, path = scope["method"], local_path(scope)
        if method == "OPTIONS":
            return
        if self._key is not None and not _is_open(path):
            self._check_key(headers.get("authorization", ""))
        if method in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, headers):
            remedy = "start the server with --cors ORIGIN to allow it"
            raise RequestError(403, f"Origin {origin[:80]!r}", "may not ask this server", remedy)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body:
            raise _too_large(self._max_body)

    def _check_key(self, given: str) -> None:
        kind, _, value = given.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                value = ""
        is_key = hmac.compare_digest(value.strip().encode(), str(self._key).encode())
        if kind.lower() not in ("bearer", "basic") or not is_key:
            remedy = "send it as a Bearer token, or as the password of Basic"
            raise RequestError(
                401, "the API key", "is missing or wrong", remedy, code="invalid_api_key"
            )

    def _is_allowed(self, origin: str, headers: Mapping[str, str]) -> bool:
        """Whether a page of an origin may ask: the server's own, or one that was named."""
        if "*" in self._origins or origin in self._origins:
            return True
        return urlsplit(origin).netloc == headers.get("host") and origin != "null"

    def _cors(self, headers: Mapping[str, str]) -> dict[str, str]:
        origin = headers.get("origin")
        if origin is None or not ("*" in self._origins or origin in self._origins):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-headers": "authorization, content-type",
            "access-control-allow-methods": "GET, POST",
            "access-control-max-age": "600",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "Origin",
        }


class _Body:
    """`receive` with bounds on how much comes, and how slowly."""

    def __init__(self, receive: "Receive", most: int, seconds: float) -> None:
        self._receive, self._most, self._deadline = receive, most, time.monotonic() + seconds
        self._size, self._is_whole = 0, False

    async def __call__(self) -> "MutableMapping[str, Any]":
        if self._is_whole:
            return await self._receive()
        left = self._deadline - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            raise RequestError(408, "the body", "took too long to arrive") from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._size > self._most:
                raise _too_large(self._most)
        return message


def _too_large(most: int) -> RequestError:
    return RequestError(413, "the body", f"has more than {most} bytes", "send a smaller image")


def _name(host: str) -> str:
    """The name in a Host header, without the port: of [::1]:7860 ::1."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_open(path: str) -> bool:
    rest = path.removeprefix(OPEN_FOLDER)
    return path in OPEN_PATHS or (
        path.startswith(OPEN_FOLDER) and rest not in ("generations", "edits", "variations")
    )
