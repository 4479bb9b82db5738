"""The background look: members, lag, events and the writer's notes, some times a second.

Theory. What people see must go on while the story waits, so one thread gathers a `View` after the other and
wakes whoever waits for one. The lag comes from PostgreSQL itself (pg_stat_replication of the primary), for
positions that members publish are as old as their last step. Nothing here decides anything: the story asks
for conditions over the newest view.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dcs.api import boottime
from haagent.demo.bill import Load
from haagent.demo.cluster import Cluster
from haagent.demo.errors import Failed, Stopped
from haagent.demo.evidence import Notes, between
from haagent.demo.node import Node, is_streaming_on, says_primary
from haagent.demo.screen import MemberRow, Screen, ShownEvent, Writing
from postgres_ctl.errors import PostgresUnavailable, QueryFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.libpq import Connection

T = TypeVar("T")

#: Between two looks, seconds.
LOOK_EVERY_S = 0.2
_SQL_S = 1.0
#: The rate of WAL is taken over this time, seconds.
_RATE_WINDOW_S = 2.0

_LAGS = """
select application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn)::bigint, pg_current_wal_lsn()
from pg_stat_replication right join (select) as one on true
"""


@dataclass(frozen=True)
class View:
    """One look at everything."""

    at: float
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Member -> bytes its flushed WAL is behind the primary's end.
    lags: dict[str, int] = field(default_factory=dict)

    def primaries(self) -> list[str]:
        return [name for name, status in self.statuses.items() if says_primary(status)]

    def is_settled(self, standbys: int) -> bool:
        """One primary, and that many standbys that stream from it on its timeline."""
        names = self.primaries()
        if len(names) != 1:
            return False
        timeline = self.statuses[names[0]].get("timeline")
        streaming = [n for n, s in self.statuses.items() if is_streaming_on(s, timeline)]
        return len(streaming) >= standbys


class Interrupt:
    """Set by a signal handler; looked at wherever the demo waits."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def check(self) -> None:
        if self.signum is not None:
            raise Stopped(self.signum)


class Watch:
    """`with` starts and stops the thread. Views and notes are for all threads, under the lock."""

    def __init__(self, cluster: Cluster, screen: Screen, interrupt: Interrupt) -> None:
        self._cluster, self._screen, self._interrupt = cluster, screen, interrupt
        self._cond = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._notes = Notes(cluster.notes_file)
        self._events = [_EventFile(node) for node in cluster.nodes]
        self._session: Connection | None = None
        self._wal_ends: list[tuple[float, Lsn]] = []
        self.view = View(boottime())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)
        self._drop_session()
        self._show_events()

    # --- for the story ----------------------------------------------------------------------------

    def wait_for(self, condition: Callable[[], T], deadline_s: float, what: str) -> T:
        """Look after each view until `condition` is true. Raises Failed at the deadline, Stopped."""
        end = boottime() + deadline_s
        with self._cond:
            while not (value := condition()):
                self._interrupt.check()
                for node in self._cluster.nodes:
                    node.check_agent()
                if boottime() > end:
                    raise Failed(f"not within {deadline_s:g} s: {what}")
                self._cond.wait(LOOK_EVERY_S)
            self._interrupt.check()
            return value

    def notes(self) -> Notes:
        """The writer's notes up to now; hold no reference while others read them."""
        with self._cond:
            self._notes.read()
            return self._notes

    def load(self) -> Load:
        """Of the last seconds under one primary."""
        with self._cond:
            if not self._wal_ends:
                return Load()
            (first_at, first), (last_at, last) = self._wal_ends[0], self._wal_ends[-1]
            rows = len(between(self._notes.acks, first_at, last_at))
        return Load(last_at - first_at, last.minus(first), rows, last)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        statuses = {node.name: node.status() for node in self._cluster.nodes}
        lags, wal_end = self._ask_primary()
        view = View(boottime(), statuses, lags)
        with self._cond:
            self.view = view
            self._note_wal(view.at, wal_end)
            self._notes.read()
            writing = self._writing(view.at)
            self._cond.notify_all()
        self._show_events()
        self._screen.update([_row(node, view) for node in self._cluster.nodes], writing)

    def _writing(self, now: float) -> Writing | None:
        acks = self._notes.acks
        if not acks:
            return None
        return Writing(len(acks), self._notes.rate(now), now - acks[-1].acked_at, self._notes.last_refusal)

    def _note_wal(self, at: float, wal_end: Lsn | None) -> None:
        if wal_end is None or (self._wal_ends and wal_end < self._wal_ends[-1][1]):
            self._wal_ends = []
        if wal_end is not None:
            self._wal_ends.append((at, wal_end))
            self._wal_ends = [entry for entry in self._wal_ends if entry[0] > at - _RATE_WINDOW_S]

    def _ask_primary(self) -> tuple[dict[str, int], Lsn | None]:
        try:
            if self._session is None:
                self._session = Connection.open(
                    self._cluster.target, _SQL_S, application_name="demo watch", **self._cluster.read_write
                )
            rows = self._session.query(_LAGS, _SQL_S)
        except (PostgresUnavailable, QueryFailed):
            self._drop_session()
            return {}, None
        lags = {str(name): max(0, int(lag)) for name, lag, _ in rows if name and lag is not None}
        return lags, Lsn.parse(str(rows[0][2]))

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _show_events(self) -> None:
        events = [event for file in self._events for event in file.new()]
        for event in sorted(events, key=lambda event: event.at):
            self._screen.event(event)


def _row(node: Node, view: View) -> MemberRow:
    status = view.statuses.get(node.name) or {}
    leads = says_primary(status)
    note = (status.get("haagent") or {}).get("note")
    return MemberRow(
        name=node.name,
        role=str(status.get("role") or "-"),
        state=str(status.get("replication_state") or status.get("state") or "down"),
        timeline=status.get("timeline"),
        lag_bytes=None if leads else view.lags.get(node.name),
        leads=leads,
        port=node.sql_port,
        note=str(note) if note else "",
    )


class _EventFile:
    """One member's events.jsonl, read as it grows. For one thread."""

    def __init__(self, node: Node) -> None:
        self._name = node.name
        self._path: Path = node.state_dir / "events.jsonl"
        self._offset = 0
        self._rest = b""

    def new(self) -> list[ShownEvent]:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            os.lseek(fd, self._offset, os.SEEK_SET)
            data = os.read(fd, 1 << 20)
        finally:
            os.close(fd)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := self._event(line)) is not None]

    def _event(self, line: bytes) -> ShownEvent | None:
        try:
            raw = json.loads(line)
            return ShownEvent(
                at=str(raw["at"]),
                member=self._name,
                rule=str(raw.get("rule") or raw["kind"]),
                reason=str(raw.get("reason", "")),
                failed=str(raw.get("failed") or ""),
            )
        except (ValueError, KeyError, TypeError):
            return None
