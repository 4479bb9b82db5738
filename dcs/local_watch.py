"""Hearing of changes that other processes make to the SQLite store.

Theory. Whoever commits a change writes one byte to the *bell*, a file beside the database, and inotify
wakes every watcher. A watcher does not trust the bell to say what changed: it reads the revisions of all
keys and compares them with those it saw last, so nothing is lost when rings merge or when a writer dies
between commit and ring (its session's end then wakes us). Expiry needs no ring: the watcher sleeps at most
until the earliest session ends and then removes it like any other reader would.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Mapping

from inotify_simple import INotify, flags

from dcs.api import KeyEvent, WatchEvent, WatchGap, boottime
from dcs.errors import DcsError

logger = logging.getLogger(__name__)

#: (create revision, last revision) of each key, by key relative to the cluster
Revisions = Mapping[str, tuple[int, int]]

#: While the database cannot be read (a frozen process holds its lock) look again this often.
RETRY_S = 0.5
#: Wakes a little after the deadline rather than a hair before it.
_SLACK_S = 0.002
_BELL_GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED


def ring(bell: str) -> None:
    """Wake all watchers. A bell that cannot be rung delays them, but must not fail the write."""
    try:
        fd = os.open(bell, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return
    try:
        os.pwrite(fd, b"\a", 0)
    except OSError:
        pass
    finally:
        os.close(fd)


def differences(before: Revisions, after: Revisions) -> list[KeyEvent]:
    """What changed between two readings; a key deleted and created again in between is both."""
    events = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if old is not None and (new is None or new[0] != old[0]):
            events.append(KeyEvent(key, deleted=True))
        if new is not None:
            events.append(KeyEvent(key, created=old is None or new[0] != old[0]))
    return events


class LocalWatch:
    """One watcher thread. `read` gives all revisions and the time of the earliest session's end."""

    def __init__(
        self,
        bell: str,
        read: Callable[[], tuple[Revisions, float | None]],
        on_event: Callable[[WatchEvent], None],
    ) -> None:
        self._bell = bell
        self._read = read
        self._on_event = on_event
        self._closed = threading.Event()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fd_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="local-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._fd_lock:
            if not self._closed.is_set():
                self._closed.set()
                os.eventfd_write(self._wake_fd, 1)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                try:
                    self._watch_bell()
                except OSError as error:
                    logger.warning("cannot watch %s: %s", self._bell, error)
                    self._closed.wait(RETRY_S)
        finally:
            with self._fd_lock:
                self._closed.set()
                os.close(self._wake_fd)

    def _watch_bell(self) -> None:
        """Until closed, or until the bell file was replaced: then start over with a gap."""
        ring(self._bell)  # creates it
        with INotify() as inotify:
            inotify.add_watch(self._bell, flags.MODIFY | flags.DELETE_SELF | flags.MOVE_SELF)
            poller = select.poll()
            poller.register(inotify.fileno(), select.POLLIN)
            poller.register(self._wake_fd, select.POLLIN)
            seen: Revisions | None = None
            bell_there = True
            while bell_there and not self._closed.is_set():
                # Read after the watch stands: what changes from here on rings.
                wait_s, seen = self._look(seen)
                ready = dict(poller.poll(None if wait_s is None else max(wait_s, 0.0) * 1000))
                if inotify.fileno() in ready:
                    bell_there = not any(e.mask & _BELL_GONE for e in inotify.read(timeout=0))

    def _look(self, seen: Revisions | None) -> tuple[float | None, Revisions | None]:
        """Compare, report; then how long to sleep, None for ever, and what is known now."""
        try:
            revisions, next_expiry = self._read()
        except DcsError:
            return RETRY_S, seen
        if seen is None:
            self._report(WatchGap("watching from now"))
        else:
            for event in differences(seen, revisions):
                self._report(event)
        return (None if next_expiry is None else next_expiry - boottime() + _SLACK_S), revisions

    def _report(self, event: WatchEvent) -> None:
        if self._closed.is_set():
            return
        try:
            self._on_event(event)
        except Exception:  # a fault of the listener must not end the watch
            logger.exception("a listener for changes failed")
