"""A thread with an event loop of its own, on which a library's server runs while the line goes on."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from snl_runtime.errors import SinkError

START_TIMEOUT_S = 120.0
"""asyncua makes its standard nodes in seconds; on a small and busy computer in many."""
STOP_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


class LoopServer(Protocol):
    """A server of an asyncio library; every method is called on the loop."""

    async def start(self) -> None:
        """Listen; an error ends the thread and reaches whoever opened it."""
        ...

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        ...


class ServerThread:
    """Runs one server on a thread and a loop of its own.

    Args:
        name: Name of the thread, and of the server in messages.
        server: What runs there.
    """

    def __init__(self, name: str, server: LoopServer) -> None:
        self._name = name
        self._server = server
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._error: BaseException | None = None

    def open(self) -> None:
        """Start the thread and return when the server listens.

        Raises:
            SinkError: If it cannot listen or does not in time.
        """
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise SinkError(f"{self._name} did not start within {START_TIMEOUT_S:.0f} s")
        if self._error is not None:
            self._thread.join(STOP_TIMEOUT_S)
            raise SinkError(f"cannot start {self._name}: {self._error}") from self._error

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have ``function`` called on the loop, after everything that was asked for before; returns at once.

        Raises:
            SinkError: If the loop has ended.
        """
        loop = self.check()
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:  # closed between the check and the call
            raise SinkError(f"{self._name} is not running: {self._error or error}") from error

    def check(self) -> asyncio.AbstractEventLoop:
        """Return the loop.

        Raises:
            SinkError: If it has ended.
        """
        if self._loop is None or not self._thread.is_alive():
            raise SinkError(f"{self._name} is not running: {self._error or 'it was stopped'}")
        return self._loop

    def close(self) -> None:
        """Stop the server and end the thread; a second call does nothing."""
        if self._loop is None or self._leave is None or not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):  # the loop closed by itself meanwhile
            self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("%s did not stop within %.0f s", self._name, STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # raised by open() or by the next call()
            self._error = error
            if self._started.is_set():
                logger.exception("%s ended", self._name)
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        await self._server.start()
        self._started.set()
        await self._leave.wait()
        await self._server.stop()
