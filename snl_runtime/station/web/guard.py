"""The door of the screen's server: every request is checked here before anything else sees it, and every answer gets its headers here."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from snl_runtime.station.web.access import SECURITY_HEADERS, Access

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_SAFE_METHODS = ("GET", "HEAD")


class Guard:
    """ASGI middleware that refuses before the application is asked.

    Args:
        app: What answers the requests that may pass.
        access: Who they are.
    """

    def __init__(self, app: AsgiApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        guarded = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, guarded)
            return
        await _answer(guarded, *refusal)

    def _refusal(self, scope: Message) -> tuple[int, str, dict[str, str]] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        host = headers.get("host")
        if not self._access.is_known_host(host):
            return 400, "this server does not go by the name in the Host header; add it to web.allowed_hosts", {}
        if method not in (*_SAFE_METHODS, "POST"):
            return 405, f"{method} is not answered here", {"Allow": "GET, HEAD, POST"}
        if method == "POST" and not self._access.is_same_origin(headers.get("origin"), host):
            return 403, "the Origin header names another site than the Host header", {}
        if self._access.is_public(path):
            return None
        if not self._access.is_signed_in(headers.get("authorization"), headers.get("cookie")):
            if path == "/" and method in _SAFE_METHODS:
                return 303, "sign in first", {"Location": "/login"}
            return 401, "send the token: Authorization: Bearer TOKEN, or sign in at /login", {"WWW-Authenticate": "Bearer"}
        if method == "POST" and not self._access.has_token:
            return 403, "commands need a token: set web.token_file", {}
        return None


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [(name, value) for name, value in message.get("headers", []) if name.decode("latin-1").title() not in _TITLED]
            ours = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
            message = {**message, "headers": [*given, *ours]}
        await send(message)

    return guarded


_TITLED = {name.title() for name in SECURITY_HEADERS}


async def _answer(send: Send, status: int, error: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": error}).encode() + b"\n"
    listed = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
