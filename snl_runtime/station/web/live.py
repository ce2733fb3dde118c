"""The state as every client gets it: built once for all of them, and streamed as it changes."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from snl_runtime.station.web.feed import ResultFeed
from snl_runtime.station.web.state import StateBuilder, reject_values, score_values

TICK_S = 0.2
"""How often the station is looked at; a verdict is on the page within this time and the network's."""
QUIET_S = 1.0
"""Longest silence towards a client: a page that hears nothing for longer knows that its verdict is old."""

logger = logging.getLogger(__name__)


class LiveState:
    """Looks at the station regularly on one event loop, also while nobody watches: what a fault has outdated must never come back.

    Args:
        builder: Builds the state.
        feed: Where the scores of the chart come from.
    """

    def __init__(self, builder: StateBuilder, feed: ResultFeed) -> None:
        self._builder = builder
        self._feed = feed
        self._state: dict[str, Any] | None = builder.build()
        self._text: str | None = None
        self._rejects_key: tuple[tuple[int, bool], ...] = ()
        self._rejects_text = ""
        self._changed = asyncio.Event()
        self._is_closing = False

    @property
    def state(self) -> dict[str, Any] | None:
        """The last look at the station; None if that failed: an old state is never given as a new one."""
        return self._state

    async def watch(self) -> None:
        """Look at the station until cancelled."""
        while True:
            try:
                self._state, self._text = self._builder.build(), None
            except Exception:  # the page hears nothing more and says that its data is old
                if self._state is not None:
                    logger.exception("the station cannot be looked at")
                self._state, self._text = None, None
            self._wake()
            await asyncio.sleep(TICK_S)

    def close(self) -> None:
        """End every stream."""
        self._is_closing = True
        self._wake()

    async def events(self) -> AsyncIterator[tuple[str, str]]:
        """Yield name and JSON of each event: ``scores`` with new points of the chart, ``rejects`` when they change, ``state`` with all else."""
        seen, sent_key, sent_s, is_first, sent_rejects = 0, "", 0.0, True, ""
        while not self._is_closing:
            points = self._feed.points_after(seen)
            newest = max((of_camera[-1].number for of_camera in points.values() if of_camera), default=seen)
            if newest > seen or is_first:
                yield "scores", to_strict_json({"first": is_first, "cameras": score_values(points)})
                seen, is_first = newest, False
            if self._as_rejects() != sent_rejects:
                sent_rejects = self._as_rejects()
                yield "rejects", sent_rejects
            state, now_s = self._state, time.monotonic()
            if state is not None and (_key(state) != sent_key or now_s - sent_s >= QUIET_S):
                yield "state", self._as_text(state)
                sent_key, sent_s = _key(state), now_s
            await self._changed.wait()

    @property
    def rejects(self) -> list[dict[str, Any]]:
        """The last parts that did not pass, newest first."""
        return [reject_values(shot) for shot in self._feed.rejects]

    def _as_rejects(self) -> str:
        key = tuple((shot.number, shot.frame.image is None) for shot in self._feed.rejects)
        if key != self._rejects_key or not self._rejects_text:
            self._rejects_key, self._rejects_text = key, to_strict_json(self.rejects)
        return self._rejects_text

    def _as_text(self, state: dict[str, Any]) -> str:
        if self._text is None:
            self._text = to_strict_json(state)
        return self._text

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def to_strict_json(value: object) -> str:
    """Return JSON without NaN in one line of ASCII."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _key(state: dict[str, Any]) -> str:
    """What of a state is worth an event at once: not the clocks."""
    cameras = [(each["shown"], each["picture"], each["line"], each["source_fault"]) for each in state["cameras"]]
    return repr((cameras, state["healthy"], [(each["connected"], each["fault"]) for each in state["consumers"]]))
