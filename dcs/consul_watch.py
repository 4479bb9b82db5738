"""Changes of one cluster's keys from Consul: a blocking query that is asked again and again.

Theory. A query with the last index is answered when a key under the prefix changes, or after `WAIT_S` with
what there is; so silence beyond that is a dead connection. The keys of two answers are compared, which tells
created, changed and deleted apart. After a fault, and when the index goes back (Consul forgot what was
deleted, or was restored), a `WatchGap` says that everything is to be read again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dcs.api import KeyEvent, WatchEvent, WatchGap
from dcs.consul_http import ConsulHttp
from dcs.errors import DcsError, DcsUnavailable

logger = logging.getLogger(__name__)

#: Consul answers after this, and up to a sixteenth more, when nothing changes, seconds.
WAIT_S = 4
#: How long such an answer may take, seconds.
ANSWER_S = WAIT_S * 17 / 16 + 2.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0

#: Key -> (CreateIndex, ModifyIndex).
Versions = dict[str, tuple[int, int]]


class ConsulWatch:
    """One watch: a thread that asks."""

    def __init__(
        self, http: ConsulHttp, prefix: str, consistency: str, on_event: Callable[[WatchEvent], None]
    ) -> None:
        self._http, self._prefix, self._on_event = http, prefix, on_event
        self._mode = {} if consistency == "default" else {consistency: "1"}
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="consul-watch", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        pause_s, cause = FIRST_PAUSE_S, "the watch begins"
        while not self._closed.is_set():
            try:
                known, index = self._ask(0)
                self._tell(WatchGap(cause))
                pause_s = FIRST_PAUSE_S
                cause = self._follow(known, index)
            except DcsError as error:
                cause = str(error)
                logger.debug("watch: %s", cause)
                self._closed.wait(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _follow(self, known: Versions, index: int) -> str:
        """Tell what changes until the watch is closed, or the index went back: then why it ended."""
        while not self._closed.is_set():
            now, newer = self._ask(index)
            if newer < index:
                return "the index of the store went back"
            for event in changes(known, now):
                self._tell(event)
            known, index = now, newer
        return "closed"

    def _ask(self, index: int) -> tuple[Versions, int]:
        waiting = {"index": str(index), "wait": f"{WAIT_S}s"} if index > 0 else {}
        path, params = f"/v1/kv/{self._prefix}", {"recurse": "1", **self._mode, **waiting}
        answer = self._http.get(path, params, ANSWER_S)
        if answer.code == 404:
            return {}, max(1, answer.index)
        try:
            found = {str(k["Key"]): (int(k["CreateIndex"]), int(k["ModifyIndex"])) for k in answer.data}
        except (KeyError, TypeError, ValueError):
            raise DcsUnavailable("consul: keys of unknown shape") from None
        cut = len(self._prefix)
        return {key[cut:]: versions for key, versions in found.items()}, max(1, answer.index)

    def _tell(self, event: WatchEvent) -> None:
        if not self._closed.is_set():
            self._on_event(event)


def changes(before: Versions, now: Versions) -> list[WatchEvent]:
    """What happened to each key between two reads; one that went and came again is created anew."""
    events: list[WatchEvent] = [KeyEvent(key, deleted=True) for key in before if key not in now]
    for key, versions in now.items():
        old = before.get(key)
        if old is not None and old[0] != versions[0]:
            events.append(KeyEvent(key, deleted=True))
        if old != versions:
            events.append(KeyEvent(key, created=old is None or old[0] != versions[0]))
    return events
