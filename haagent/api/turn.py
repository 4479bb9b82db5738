"""One request computes at a time, so that the agent's own threads never stand in a long line.

Theory. The interpreter runs one thread at a time. Hundreds of busy clients whose threads all ask for it would
put the lease keeper behind each of them, at every step of a renewal: with 1000 clients renewals took half a
second, and a quarter of them did not come through in time. So a connection's thread parses, computes and
renders only while it has the turn, and gives it back whenever it waits: for its client, the store,
PostgreSQL, the end of an operation. Threads that wait for the turn do not ask for the interpreter.

A turn takes milliseconds. Who holds it for `longest_s` hangs, and the others go on without him: a new turn is
made, and what he gives back later is nobody's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from flask import request

log = logging.getLogger("haagent.api")


class Turns:
    """Whose turn it is among the connections of one server."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._lock = threading.Lock()
        self._since = 0.0
        self._replacing = threading.Lock()

    def take(self) -> threading.Lock:
        """Wait for the turn; what is returned is to be released."""
        while True:
            lock = self._lock
            if not lock.acquire(timeout=self._longest_s):
                self._go_on_without(lock)
            elif lock is self._lock:
                self._since = time.monotonic()
                return lock
            else:
                lock.release()

    def _go_on_without(self, lock: threading.Lock) -> None:
        with self._replacing:
            now = time.monotonic()
            held_s = now - self._since
            if held_s < self._longest_s or lock is not self._lock:
                return
            self._lock, self._since = threading.Lock(), now
        log.warning("a request computes for %.1f s: the others go on without it", held_s)


class Turn:
    """The turns of one thread."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held: threading.Lock | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, it is our turn."""
        self._held = self._turns.take()
        try:
            yield
        finally:
            self._give()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, it is not our turn, however long it takes; afterwards it is again if it was before."""
        had_it = self._held is not None
        self._give()
        try:
            yield
        finally:
            if had_it:
                self._held = self._turns.take()

    def _give(self) -> None:
        lock, self._held = self._held, None
        if lock is not None:
            lock.release()


def aside() -> contextlib.AbstractContextManager[None]:
    """For handlers: inside, the request that is being handled waits for something."""
    turn: Turn = request.environ["haagent.turn"]
    return turn.aside()
