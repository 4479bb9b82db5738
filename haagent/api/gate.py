"""How many requests may do the same slow thing at a time.

Theory. A running call is never given up for a newcomer, so what strangers can keep running has to be little:
else a crowd that waits for a store that hangs would fill every connection, and no health check got in.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from haagent.api.turn import aside


class Refused(Exception):
    """The call ends here with this answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Gate:
    """`inside` at a time, and `waiting` more who wait up to `patience_s` seconds. Thread safe."""

    def __init__(self, what: str, inside: int, waiting: int = 0, patience_s: float = 0.0) -> None:
        self._what = what
        self._inside = threading.BoundedSemaphore(inside)
        self._all = threading.BoundedSemaphore(inside + waiting)
        self._patience_s = patience_s

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        """Inside, others compute meanwhile. Raises Refused."""
        with aside(), self._place(self._all, 0.0), self._place(self._inside, self._patience_s):
            yield

    @contextlib.contextmanager
    def _place(self, places: threading.BoundedSemaphore, patience_s: float) -> Iterator[None]:
        if not places.acquire(timeout=patience_s):
            raise Refused(503, f"too many {self._what} at the same time")
        try:
            yield
        finally:
            places.release()
