"""Writes of the loop to a disk that may hang: the loop waits for them no longer than a deadline.

Theory. No signal and no deadline ends a write to storage that does not answer: the thread that made it sleeps
until it does. So a thread of its own makes each one, and the loop waits a little: on a healthy disk that is
as good as writing. One that takes longer goes on alone. Until it has ended no other write begins, and no job
touches the data directory: what wakes up late must not find it wiped, cloned or started meanwhile. The rules
see it as `Instance.storage_hangs`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from haagent.runtime import Runtime
from postgres_ctl.errors import PostgresError

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The loop waits for a write so long, seconds: files of some kilobytes, synced.
WRITE_S = 1.0


class StorageHangs(PostgresError):
    """A write was not done in time; it may be done later."""


class _Write(Generic[T]):
    """One write and what came of it."""

    def __init__(self, body: Callable[[], T]) -> None:
        self.body = body
        self.done = False
        self.results: list[T] = []
        self.fault: Exception | None = None


class Storage:
    """One write at a time. `write` is the loop's; `hangs` may be asked by any thread."""

    def __init__(self, runtime: Runtime, on_change: Callable[[], None]) -> None:
        self._rt, self._on_change = runtime, on_change
        self._cond = runtime.condition()
        self._under_way: str | None = None
        self._overdue = False

    @property
    def hangs(self) -> str | None:
        """What is being written and overdue; None when nothing is."""
        return self._under_way if self._overdue else None

    def write(self, what: str, body: Callable[[], T], deadline_s: float = WRITE_S) -> T:
        """What `body` returns or raises. Raises StorageHangs when it, or an earlier one, is not done."""
        write = _Write(body)
        with self._cond:
            if self._under_way is not None:
                raise StorageHangs(f"{self._under_way}: the storage has not answered yet")
            self._under_way = what
        self._rt.thread(partial(self._run, write), "storage").start()
        with self._cond:
            self._overdue = not self._cond.wait_for(lambda: write.done, deadline_s)
            if self._overdue:
                log.error("%s: the storage does not answer", what)
                raise StorageHangs(f"{what}: the storage does not answer")
        if write.fault is not None:
            raise write.fault
        return write.results[0]

    def _run(self, write: _Write[T]) -> None:
        try:
            write.results.append(write.body())
        except Exception as fault:  # whoever waits gets it
            write.fault = fault
        with self._cond:
            late, self._overdue = self._overdue, False
            what, self._under_way = self._under_way, None
            write.done = True
            self._cond.notify_all()
        if late:
            log.warning("%s: the storage has answered: %s", what, write.fault or "done")
            self._on_change()
