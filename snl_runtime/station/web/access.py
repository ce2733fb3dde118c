"""Who may see the screen and give commands: host names, token, sessions, and the headers of every answer."""

import hmac
import ipaddress
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

COOKIE = "snl_session"
SESSION_S = 12 * 3600.0
"""How long a login lasts: one shift and its handover."""
MOST_SESSIONS = 256
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # with no-referrer a form is sent with Origin: null, which cannot be told from a stranger's
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PUBLIC_PATHS = ("/healthz", "/login")
_STATIC = "/static/"

logger = logging.getLogger(__name__)


class Access:
    """Decides about one request at a time; used by one event loop.

    Args:
        token: What a client must know; None for a server that only this machine reaches and that takes no commands.
        hosts: Names that a browser may have asked for, beside addresses in numbers, which no name server can point elsewhere.
        clock_s: Monotonic seconds.
    """

    def __init__(self, token: str | None, hosts: Collection[str], *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._hosts = {host.lower() for host in (*hosts, "localhost")}
        self._clock_s = clock_s
        self._sessions: OrderedDict[str, float] = OrderedDict()

    @property
    def has_token(self) -> bool:
        """Whether a token is set."""
        return self._token is not None

    def is_known_host(self, host: str | None) -> bool:
        """Return whether a Host header names this server; any other one may come from a page that had its own name point here (DNS rebinding)."""
        name = _host_name(host)
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True

    def is_same_origin(self, origin: str | None, host: str | None) -> bool:
        """Return whether a request that changes something comes from this server's own page, or from no page at all."""
        return origin is None or urlsplit(origin).netloc.lower() == (host or "").lower()

    def is_public(self, path: str) -> bool:
        """Return whether a path shows nothing about parts: health, login and the files of the page."""
        return path in _PUBLIC_PATHS or path.startswith(_STATIC)

    def is_signed_in(self, authorization: str | None, cookie: str | None) -> bool:
        """Return whether a request carries the token or a session; always, if no token is set."""
        if self._token is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            return self.is_token(given.strip())
        return self._is_session(_session_of(cookie))

    def is_token(self, given: str) -> bool:
        """Return whether this is the token; takes the same time wherever they differ."""
        return self._token is not None and hmac.compare_digest(self._token.encode(), given.encode("utf-8", "surrogatepass"))

    def sign_in(self) -> str:
        """Return a new session; it lasts ``SESSION_S``."""
        session = secrets.token_urlsafe(32)
        self._sessions[session] = self._clock_s() + SESSION_S
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def sign_out(self, cookie: str | None) -> None:
        """End the session that a request carries, if any."""
        self._sessions.pop(_session_of(cookie), None)

    def _is_session(self, session: str) -> bool:
        ends_s = self._sessions.get(session)
        return ends_s is not None and self._clock_s() < ends_s


def own_host_names(host: str) -> set[str]:
    """Return the names that this machine goes by for a server on ``host``."""
    return {host, socket.gethostname(), socket.gethostname().partition(".")[0]}


def _host_name(host: str | None) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return None


def _session_of(cookie: str | None) -> str:
    try:
        morsel = SimpleCookie(cookie or "").get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value
