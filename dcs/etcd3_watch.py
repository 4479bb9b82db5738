"""The stream of changes of one cluster's keys from etcd.

Theory. One POST /v3/watch is answered for as long as both sides live. Silence is normal on it, so silence
cannot tell a quiet cluster from a frozen server or one cut off from the others. A second thread therefore
asks the same server for something linearizable whenever the stream has been silent for a while, which only
a member in touch with the majority can answer; if it does not, the stream is torn down and the next server
is tried. Each new stream begins at "now" and says so with a `WatchGap`: what happened in between is read,
not replayed, so compaction never matters.
"""

from __future__ import annotations

import base64
import binascii
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dcs.api import KeyEvent, WatchEvent, WatchGap, boottime
from dcs.errors import DcsError
from dcs.etcd3_connect import NotSent, Server
from dcs.etcd3_http import Gateway, Limits, NoAnswer, Rejected, Stream, parse_answer

logger = logging.getLogger(__name__)

#: Together the longest time a dead stream goes unnoticed, seconds.
SILENCE_S = 4.0
PING_S = 1.0
OPEN_S = 2.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0


def b64(text: str | bytes) -> str:
    """How the gateway writes keys and values."""
    return base64.b64encode(text.encode("utf-8", "replace") if isinstance(text, str) else text).decode()


def unb64(text: object) -> bytes:
    """NoAnswer for what is no base64: then the server speaks another language."""
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise NoAnswer("an answer without base64") from None


def key_text(raw: bytes) -> str:
    """A key as text; bytes that are not UTF-8 stay visible and do not collide."""
    return raw.decode("utf-8", "backslashreplace")


class Etcd3Watch:
    """One watch: a thread that reads and a thread that looks after it."""

    def __init__(
        self, gateway: Gateway, prefix: str, range_end: str, on_event: Callable[[WatchEvent], None]
    ) -> None:
        self._gateway = gateway
        self._prefix = prefix.encode()
        self._request = {"create_request": {"key": b64(prefix), "range_end": b64(range_end)}}
        self._ping = {"key": b64(prefix), "range_end": b64(range_end), "count_only": True}
        self._on_event = on_event
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: tuple[Stream, Server] | None = None
        self._heard_at = boottime()
        self._turn = 0
        for target, name in ((self._read_for_ever, "etcd3-watch"), (self._look_after, "etcd3-ping")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._abort()

    def _abort(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream[0].abort()

    # --- the reading thread -----------------------------------------------------------------------

    def _read_for_ever(self) -> None:
        pause_s, cause = FIRST_PAUSE_S, "watching from now"
        while not self._closed.is_set():
            started, server = False, None
            try:
                servers = self._gateway.connections.servers(OPEN_S)
                server = servers[self._turn % len(servers)]
                for event in self._events(server, cause):
                    started = True
                    self._report(event)
                cause = f"{server} ended the watch"
            except (NotSent, NoAnswer, Rejected, DcsError) as error:
                cause = f"{server or 'etcd'}: {error}"
            except Exception as error:
                # Whatever a server may say, the watch goes on.
                logger.exception("watch of etcd")
                cause = f"{server or 'etcd'}: {type(error).__name__}"
            self._turn += 1
            pause_s = FIRST_PAUSE_S if started else min(pause_s * 2, LONGEST_PAUSE_S)
            self._closed.wait(pause_s)

    def _events(self, server: Server, cause: str) -> Iterator[WatchEvent]:
        """Yields the gap, then the changes, until the stream ends or fails."""
        stream = self._gateway.open_stream(server, "/v3/watch", self._request, Limits.within(OPEN_S))
        try:
            self._heard_at = boottime()
            with self._lock:
                self._stream = (stream, server)
            if self._closed.is_set():
                return
            if stream.status != 200:
                parse_answer(stream.status, stream.read_all())
            for line in stream.lines():
                self._heard_at = boottime()
                answer = parse_answer(200, line)
                self._gateway.check_term(answer)
                yield from self._decoded(answer.get("result") or {}, cause)
        finally:
            with self._lock:
                self._stream = None
            stream.close()

    def _decoded(self, result: dict[str, Any], cause: str) -> list[WatchEvent]:
        if result.get("canceled"):
            raise NoAnswer(f"watch cancelled: {result.get('cancel_reason') or 'no reason given'}")
        if result.get("created"):
            return [WatchGap(cause)]
        return [self._event(item) for item in result.get("events") or ()]

    def _event(self, item: dict[str, Any]) -> KeyEvent:
        held = item.get("kv") or {}
        key = key_text(unb64(held.get("key")).removeprefix(self._prefix))
        deleted = item.get("type") == "DELETE"
        created = not deleted and held.get("create_revision") == held.get("mod_revision")
        return KeyEvent(key, created=created, deleted=deleted)

    def _report(self, event: WatchEvent) -> None:
        if self._closed.is_set():
            return
        try:
            self._on_event(event)
        except Exception:  # a fault of the listener must not end the watch
            logger.exception("a listener for changes failed")

    # --- the thread that looks after it -----------------------------------------------------------

    def _look_after(self) -> None:
        wait_s = SILENCE_S
        while not self._closed.wait(wait_s):
            silent_s = boottime() - self._heard_at
            with self._lock:
                current = self._stream
            if current is None or silent_s < SILENCE_S:
                wait_s = max(SILENCE_S - silent_s, 0.1)
                continue
            if not self._answers(current[1]):
                current[0].abort()
            wait_s = SILENCE_S

    def _answers(self, server: Server) -> bool:
        try:
            self._gateway.exchange(server, "/v3/kv/range", self._ping, Limits.within(PING_S))
        except Rejected:
            return True  # it answered; the stream says for itself what is wrong
        except (NotSent, NoAnswer, DcsError):
            return False
        return True
