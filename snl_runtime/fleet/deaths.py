"""Rows on which a worker's process dies: found by what it was at, and given up after a few times so that the rest is judged."""

import contextlib
import json
from pathlib import Path

from snl_runtime.errors import SinkError
from snl_runtime.fleet.results import DEATHS

MOST_DEATHS = 3
"""Processes that may die at one row. A machine that is switched off takes several workers with it, but each at a row of its own."""


class DeathWatch:
    """Remembers on the disk which row of a part is being judged, for the process that comes after this one.

    Args:
        out: Folder of the results.
        part: Number of the part.

    Raises:
        SinkError: If the folder cannot be written.
    """

    def __init__(self, out: Path, part: int) -> None:
        self._path = out / DEATHS / f"part-{part:06d}.json"
        self._deaths: dict[int, int] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        with contextlib.suppress(OSError, ValueError, KeyError):  # none, or half of one
            before = json.loads(self._path.read_text(encoding="ascii"))
            self._deaths = {int(row): int(count) for row, count in before["deaths"].items()}
            died_at = int(before["row"])
            self._deaths[died_at] = self._deaths.get(died_at, 0) + 1

    def fault_of(self, row_id: int, name: str) -> str | None:
        """Return why a row is not read any more; None if it may be."""
        if self._deaths.get(row_id, 0) < MOST_DEATHS:
            return None
        return f"{name} ended the process that read it {MOST_DEATHS} times; look at the file, it may be made to do harm"

    def begin(self, row_id: int) -> None:
        """Note which row is judged next.

        Raises:
            SinkError: If it cannot be written.
        """
        try:
            self._path.write_text(json.dumps({"row": row_id, "deaths": self._deaths}), encoding="ascii")
        except OSError as error:
            raise self._cannot_write(error) from error

    def end(self) -> None:
        """Forget the part: its results are written."""
        self._path.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write {self._path}: {error.strerror or error}; check the folder, its permissions and the free space")
