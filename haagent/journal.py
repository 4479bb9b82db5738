"""The journal: every decision that acted, as one structured event.

An event goes three ways: to the log (a line for people in type plain, its fields in logfmt and json), into
memory for REST (`recent`), and into `events.jsonl` of the state directory, so that other programs can
follow. Disk writes happen in a thread of their own, so that a hung disk cannot hold up a decision.

Heartbeats (a decision that says nothing new) are lines, not events; one that repeats the line before is
marked, and the log leaves it out where its type says so.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from haagent.log import RotatingFile, Secrets, Spool

FILE_NAME = "events.jsonl"
#: Events kept in memory.
RECENT = 200
#: One file of events, bytes; the one before it is kept as `.1`.
_FILE_SIZE_BYTES = 1024 * 1024
#: Events that may wait for a slow disk.
_QUEUE = 1000

_EMPTY: Mapping[str, Any] = MappingProxyType({})

logger = logging.getLogger("haagent.journal")


@dataclass(frozen=True)
class Event:
    """Something that was decided or happened. `at` is wall-clock UTC, for people; never decided upon."""

    #: Counts from 1 within one life of the agent.
    seq: int
    at: str
    kind: str
    #: Stable id of the rule; "" for events that no rule decided.
    rule: str
    reason: str
    #: Epoch, timeline, lsn, took_ms and whatever else the caller knew; None values are left out.
    fields: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    def as_dict(self) -> dict[str, Any]:
        """JSON shape of `events.jsonl` and REST."""
        head = {"seq": self.seq, "at": self.at, "kind": self.kind, "rule": self.rule, "reason": self.reason}
        return head | {name: value for name, value in self.fields.items() if name not in head}


class Journal:
    """Thread safe. `state_dir`: where events.jsonl goes; None keeps events in memory only.

    `on_event` is called with each event, in the caller's thread; what it raises is logged.
    """

    def __init__(
        self,
        state_dir: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._on_event = on_event
        self._secrets = Secrets(secrets)
        self._lock = threading.Lock()
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._seq = 0
        self._last_line: str | None = None
        self._file: RotatingFile | None = None
        self._path = os.path.join(state_dir, FILE_NAME) if state_dir else None
        self._spool: Spool[Event] | None = Spool(self._append, _QUEUE, "journal") if state_dir else None

    def decision(
        self,
        rule: str,
        reason: str,
        *,
        line: str | None = None,
        heartbeat: bool = False,
        epoch: int | None = None,
        timeline: int | None = None,
        lsn: object = None,
        took_ms: float | None = None,
        level: int = logging.INFO,
        **fields: Any,
    ) -> Event | None:
        """Record a decision; `line` is its text for people (contract 7.3), `reason` when it has none.

        Of several lines all but the last stand before it in the log, once until something else is said.
        `lsn` may be an Lsn or text. Returns the event, None for a heartbeat.
        """
        known = {"epoch": epoch, "timeline": timeline, "lsn": lsn, "took_ms": _rounded(took_ms)}
        clean = self._clean(known | fields)
        text = line if line is not None else reason
        repeated = heartbeat and text == self._last_line
        *before, last = line.split("\n") if line is not None else [reason]
        for said in before if not repeated else ():
            self._log(level, said, {"rule": rule}, repeated=False)
        if heartbeat:
            self._log(level, last, {"rule": rule, **clean}, repeated)
            self._last_line = text
            return None
        text = last
        return self._record(level, text, "decision", rule, reason, clean)

    def event(self, kind: str, reason: str, *, level: int = logging.INFO, **fields: Any) -> Event:
        """Record something that no rule decided: the fence fired, a job ended, a peer vanished."""
        return self._record(level, reason, kind, "", reason, self._clean(fields))

    def recent(self, after_seq: int = 0) -> tuple[Event, ...]:
        """The last events, oldest first, of those after `after_seq`."""
        with self._lock:
            return tuple(event for event in self._recent if event.seq > after_seq)

    def close(self, deadline_s: float) -> bool:
        """Write what is queued; False when that took longer than `deadline_s`."""
        return self._spool.close(deadline_s) if self._spool else True

    def _record(
        self, level: int, text: str, kind: str, rule: str, reason: str, fields: Mapping[str, Any]
    ) -> Event:
        with self._lock:
            self._seq += 1
            event = Event(self._seq, _now(), kind, rule, self._secrets.masked(reason), fields)
            self._recent.append(event)
            if self._spool:
                self._spool.put(event)
        self._last_line = text
        shown = _shown(event, with_reason=reason != text)
        self._log(level, text, shown, repeated=False)
        self._call_back(event)
        return event

    def _clean(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields that are known, as JSON values without secrets: an Lsn becomes its text."""
        return MappingProxyType({k: self._json(value) for k, value in fields.items() if value is not None})

    def _json(self, value: Any) -> Any:
        if isinstance(value, (int, float, bool)):
            return value
        if isinstance(value, (list, tuple)):
            return [self._json(item) for item in value]
        if isinstance(value, Mapping):
            return {str(k): self._json(item) for k, item in value.items()}
        return self._secrets.masked(str(value))

    def _log(self, level: int, text: str, fields: Mapping[str, Any], repeated: bool) -> None:
        logger.log(level, "%s", text, extra={"event": fields, "repeated": repeated})

    def _call_back(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            logger.exception("a listener of the journal failed")

    def _append(self, event: Event, lost: int) -> None:
        """In the spool's thread: one line in events.jsonl."""
        if self._file is None:
            assert self._path is not None
            self._file = RotatingFile(self._path, _FILE_SIZE_BYTES, 1, 0o600)
        lines = [event.as_dict()]
        if lost:
            lines.insert(0, {"at": event.at, "kind": "lost", "events": lost})
        text = "".join(json.dumps(line, default=str, ensure_ascii=False) + "\n" for line in lines)
        self._file.write(self._secrets.masked(text).encode("utf-8", "replace"))


def _shown(event: Event, with_reason: bool) -> dict[str, Any]:
    """Fields of the event's log line; the reason only where the line does not say it already."""
    fields: dict[str, Any] = {"kind": event.kind, "rule": event.rule or None, "seq": event.seq}
    if with_reason:
        fields["reason"] = event.reason
    return fields | dict(event.fields)


def _rounded(took_ms: float | None) -> float | None:
    return None if took_ms is None else round(took_ms, 1)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
