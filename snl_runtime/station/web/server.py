"""Serves the screen on a thread of its own, beside the line."""

import asyncio
import contextlib
import logging
import socket
import threading
from types import TracebackType
from typing import Any, Protocol

from snl_runtime.errors import SinkError
from snl_runtime.station.delivery import StationEvents
from snl_runtime.station.line_state import LineCommands
from snl_runtime.station.outputs.addresses import is_loopback
from snl_runtime.station.outputs.packages import import_for
from snl_runtime.station.snapshot import StationSnapshot
from snl_runtime.station.web.access import Access, own_host_names
from snl_runtime.station.web.app import ScreenParts, make_app
from snl_runtime.station.web.config import WebConfig, read_token
from snl_runtime.station.web.feed import ResultFeed
from snl_runtime.station.web.live import LiveState
from snl_runtime.station.web.panels import WebPanels
from snl_runtime.station.web.pictures import PictureMaker
from snl_runtime.station.web.state import StateBuilder

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
MOST_CONNECTIONS = 64
"""Requests under way at once; a page holds one of them for as long as it is open. Further ones are answered 503."""

logger = logging.getLogger(__name__)


class WatchedStation(Protocol):
    """What the screen needs of a ``Station``."""

    @property
    def commands(self) -> dict[str, LineCommands]:
        """What may be asked of each camera, by its name."""
        ...

    def subscribe(self, events: StationEvents) -> None:
        """Call ``events`` with each final result from now on."""
        ...

    def snapshot(self) -> StationSnapshot:
        """Return counters, states, latencies and last verdicts."""
        ...


class WebServer:
    """Serves the screen of one station; entered after the station is made, left after it has stopped.

    The line never waits for it: results come through the station's observers, everything else from snapshots, pictures are drawn on another thread
    when somebody looks.

    Args:
        config: Where, and for whom.
        station: What is shown.
        panels: What the station does not know itself.

    Raises:
        ConfigError: If a package is missing or the token cannot be used.

    Example:
        >>> station = Station(cameras, detector, store)  # doctest: +SKIP
        >>> with WebServer(WebConfig(port=8080), station) as screen, station:  # doctest: +SKIP
        ...     print(screen.url)
        ...     station.wait()
    """

    def __init__(self, config: WebConfig, station: WatchedStation, panels: WebPanels | None = None) -> None:
        self._uvicorn = import_for("web", "uvicorn", extra="web")
        import_for("web", "fastapi.sse", extra="web")
        self._config = config
        self._station = station
        self._panels = WebPanels() if panels is None else panels
        token = read_token(config)
        self._access = Access(token, {*own_host_names(config.host), *config.allowed_hosts})
        self._feed = ResultFeed(tuple(station.commands), max_rejects=config.max_rejects, max_reject_bytes=config.max_reject_mb << 20)
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._server: Any = None
        self._live: LiveState | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._port = config.port

    @property
    def url(self) -> str:
        """Address of the page; the port is the real one once it is entered."""
        host = self._config.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/"

    def __enter__(self) -> "WebServer":
        """Listen.

        Raises:
            SinkError: If the address cannot be listened on.
        """
        listening = self._listen()
        self._port = listening.getsockname()[1]
        self._server = self._uvicorn.Server(self._uvicorn_config())
        self._thread = threading.Thread(target=self._run, args=(listening,), name="snl-web", daemon=True)
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S) or self._failure is not None:
            raise SinkError(f"the screen did not start on {self.url}: {self._failure or 'it took too long'}") from self._failure
        self._station.subscribe(self._feed)
        if not is_loopback(self._config.host):
            logger.info("the screen on %s is not encrypted; beyond your own network put a reverse proxy with TLS before it", self.url)
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """End every connection and the thread."""
        if self._thread is None or self._server is None:
            return
        self._server.should_exit = True
        if self._live is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._live.close)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("the screen did not stop within %.0f s", STOP_TIMEOUT_S)

    def _listen(self) -> socket.socket:
        host, port = self._config.host, self._config.port
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            return socket.create_server(address[:2], family=family, backlog=MOST_CONNECTIONS)
        except OSError as error:
            raise SinkError(f"cannot serve the screen on {host}:{port}: {error.strerror or error}") from error

    def _uvicorn_config(self) -> Any:
        parts = ScreenParts(
            access=self._access,
            feed=self._feed,
            make_live=self._make_live,
            make_pictures=self._make_pictures,
            commands=self._station.commands,
            line_state=lambda camera: self._station.snapshot().cameras[camera].line,
            on_start=self._on_start,
        )
        return self._uvicorn.Config(
            make_app(parts),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=2,
        )

    def _make_live(self) -> LiveState:
        builder = StateBuilder(
            self._station, self._feed, self._panels, stale_after_s=self._config.stale_after_s, takes_commands=self._access.has_token
        )
        return LiveState(builder, self._feed)

    def _make_pictures(self) -> PictureMaker:
        return PictureMaker(self._feed.latest, width_px=self._config.picture_width_px, per_second=self._config.pictures_per_second)

    def _on_start(self, live: LiveState) -> None:
        self._live, self._loop = live, asyncio.get_running_loop()
        self._started.set()

    def _run(self, listening: socket.socket) -> None:
        try:
            self._server.run(sockets=[listening])
        except BaseException as failure:  # reaches __enter__, or the log
            self._failure = failure
            if self._started.is_set():
                logger.exception("the screen ended; the line goes on")
        finally:
            listening.close()
            self._started.set()
