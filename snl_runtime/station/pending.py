"""Triggers that wait for their answer: their numbers, when they came, and their frames as far as they are known."""

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from snl_runtime.types import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTrigger:
    """One trigger.

    Attributes:
        began_ns: Monotonic time when it came.
        frame: Its frame with its number; without an image and a fault before the frame came.
    """

    began_ns: int
    frame: Frame


class PendingTriggers:
    """Numbers the triggers of one camera from 1 and remembers each until its record is written; any thread.

    Args:
        camera: Stands for the source of a frame that never came.
        clock_ns: Monotonic time.
    """

    def __init__(self, camera: str, *, clock_ns: Callable[[], int]) -> None:
        self._camera = camera
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._pending: dict[int, PendingTrigger] = {}
        self._newest = 0

    def number(self, frame: Frame, began_ns: int) -> Frame:
        """Return the frame with the next number."""
        with self._lock:
            self._newest += 1
            numbered = dataclasses.replace(frame, trigger_id=self._newest)
            self._pending[self._newest] = PendingTrigger(began_ns=began_ns, frame=numbered)
            return numbered

    def note(self, frame: Frame) -> None:
        """Keep the frame that came for a trigger, so that an ERROR at its deadline names it."""
        with self._lock:
            pending = self._pending.get(frame.trigger_id or 0)
            if pending is not None:
                self._pending[frame.trigger_id or 0] = PendingTrigger(began_ns=pending.began_ns, frame=frame)

    def get(self, trigger_id: int) -> PendingTrigger:
        """Return what is known of a trigger; of one that has just ended only its number."""
        with self._lock:
            pending = self._pending.get(trigger_id)
        if pending is not None:
            return pending
        frame = dataclasses.replace(self.frame_to_come(product=None, part_id=None), trigger_id=trigger_id)
        return PendingTrigger(began_ns=frame.captured_ns, frame=frame)

    def end(self, trigger_id: int) -> None:
        """Forget a trigger."""
        with self._lock:
            self._pending.pop(trigger_id, None)

    def frame_to_come(self, *, product: str | None, part_id: str | None) -> Frame:
        """Return what is known of a frame before it came."""
        return Frame(
            image=None,
            color="bgr",
            index=self._newest,
            captured_ns=self._clock_ns(),
            captured_at=time.time(),
            source_id=self._camera,
            product=product,
            part_id=part_id,
        )
