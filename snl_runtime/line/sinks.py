"""What takes verdicts: records (``records``, ``jsonl``), folders of images (``image_folders``), and what plug-ins bring."""

from contextlib import AbstractContextManager
from typing import Protocol

from snl_runtime.types import AnomalyResult, Frame


class Sink(AbstractContextManager["Sink"], Protocol):
    """Takes verdicts somewhere: a file, a PLC, a screen. Entered, used and left on one thread.

    Whatever a sink raises stops the line after the verdicts under way are delivered, because a verdict that reaches nobody is no verdict. A sink
    that can be done without, as the image folders can, counts what it lost instead and raises nothing once it is entered.
    """

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Deliver one verdict; may block, which holds the detector back.

        Raises:
            SinkError: If the verdict could not be delivered and the line must stop; the sink then gets no further one.
        """
        ...
