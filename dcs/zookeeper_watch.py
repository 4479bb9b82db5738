"""Changes of one cluster's keys from ZooKeeper.

Theory. A watch of ZooKeeper's fires once, so each reading sets new ones: on the lists of children and on
every key. When one fires, what it names is read again, and compared with what was known. A lost connection
loses watches: then everything is read again, and a `WatchGap` says so. A connection that is silent is noticed
by kazoo's pings within two thirds of the session's timeout; the agent's timer is there for the rest.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient, KazooState
from kazoo.handlers.threading import KazooTimeoutError

from dcs.api import KeyEvent, WatchEvent, WatchGap
from dcs.zookeeper_session import stop_in_background

logger = logging.getLogger(__name__)

FOLDERS = ("members", "optime")
ANSWER_S = 5.0
PAUSE_S = 0.5

#: Key -> (czxid, mzxid).
Versions = dict[str, tuple[int, int]]


class _Lost(Exception):
    """Watches may have been lost; the text says why."""


class ZooKeeperWatch:
    """One watch: a connection of its own and a thread that reads."""

    def __init__(self, client: KazooClient, base: str, on_event: Callable[[WatchEvent], None]) -> None:
        self._client, self._base, self._on_event = client, base, on_event
        self._closed = threading.Event()
        #: Paths that changed; None: the connection was lost.
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._known: Versions = {}
        client.add_listener(self._state_changed)
        client.start_async()
        threading.Thread(target=self._run, name="zookeeper-watch", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._news.put(None)
        stop_in_background(self._client)

    def _state_changed(self, state: str) -> None:
        if state != KazooState.CONNECTED:
            self._news.put(None)

    def _fired(self, event: Any) -> None:
        # Without a path it is about the connection, which the listener tells.
        if event.path:
            self._news.put(event.path)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        cause = "the watch begins"
        while not self._closed.is_set():
            try:
                self._forget_news()
                self._known = self._read_everything()
                self._tell(WatchGap(cause))
                self._follow()
            except _Lost as error:
                cause = str(error)
            except (zk.KazooException, KazooTimeoutError, OSError) as error:
                # Also what a connection that stands refuses (ACLs): not asked for again and again at once.
                cause = str(error) or type(error).__name__
                logger.debug("watch: %s", cause)
                self._closed.wait(PAUSE_S)

    def _forget_news(self) -> None:
        while not self._news.empty():
            self._news.get()

    def _follow(self) -> None:
        while not self._closed.is_set():
            path = self._news.get()
            if path is None:
                raise _Lost("the connection was lost")
            if path == self._base or path[len(self._base) + 1 :] in FOLDERS:
                self._read_folder(path)
            else:
                self._read_key(path[len(self._base) + 1 :])

    def _read_everything(self) -> Versions:
        known: Versions = {}
        for folder in (self._base, *(f"{self._base}/{name}" for name in FOLDERS)):
            for key in self._list(folder):
                versions = self._versions(key)
                if versions is not None:
                    known[key] = versions
        return known

    def _list(self, folder: str) -> list[str]:
        """Keys in a folder, with a watch on the list; on the folder's coming where it is not there."""
        inside = folder[len(self._base) + 1 :]
        try:
            names = self._client.get_children_async(folder, self._fired).get(timeout=ANSWER_S)
        except zk.NoNodeError:
            self._client.exists_async(folder, self._fired).get(timeout=ANSWER_S)
            return []
        return [f"{inside}/{name}" if inside else name for name in names if inside or name not in FOLDERS]

    def _read_folder(self, folder: str) -> None:
        for key in self._list(folder):
            if key not in self._known:
                self._read_key(key)
        if folder == self._base:
            for name in FOLDERS:
                self._read_folder(f"{self._base}/{name}")

    def _read_key(self, key: str) -> None:
        old, now = self._known.get(key), self._versions(key)
        if now is None:
            if self._known.pop(key, None) is not None:
                self._tell(KeyEvent(key, deleted=True))
            return
        self._known[key] = now
        anew = old is not None and old[0] != now[0]
        if anew:
            self._tell(KeyEvent(key, deleted=True))
        if old != now:
            self._tell(KeyEvent(key, created=old is None or anew))

    def _versions(self, key: str) -> tuple[int, int] | None:
        """With a watch on the key, which also tells when it comes again."""
        stat = self._client.exists_async(f"{self._base}/{key}", self._fired).get(timeout=ANSWER_S)
        return None if stat is None else (int(stat.czxid), int(stat.mzxid))

    def _tell(self, event: WatchEvent) -> None:
        if not self._closed.is_set():
            self._on_event(event)
