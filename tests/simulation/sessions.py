"""Sessions of a server, their commits, and which standbys a commit waits for.

Theory. A session is a backend: it commits while it lives and runs, whatever became of its postmaster (H9).
A commit that waits for standbys is in the WAL already; it is acknowledged when they have it, or never. What
comes to a server that is held up lies in its sockets: one transaction per session, done when it goes on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.machine import Proc
from tests.simulation.replication import SyncRule, parse_sync, synced
from tests.simulation.wal import DATA, Record

if TYPE_CHECKING:
    from tests.simulation.postgres import Server

#: How long the wal writer leaves a commit that did not wait for its flush, seconds.
WAL_WRITER_S = 0.2

Done = Callable[[Record], None]


class Connection:
    """A session with its backend. `alive` is the backend's; a client is told through `on_close`."""

    __slots__ = ("alive", "name", "on_close", "proc", "server")

    def __init__(self, server: Server, name: str, proc: Proc) -> None:
        self.server, self.name, self.proc = server, name, proc
        self.alive = True
        self.on_close: Callable[[], object] | None = None

    def close(self) -> None:
        """From the client's side."""
        self.on_close = None
        self.server.sessions.ends(self)
        self.server.host.end_proc(self.proc, 0)


class Waiting(NamedTuple):
    """A commit that waits for standbys to have the first `needs` records."""

    needs: int
    connection: Connection
    record: Record
    done: Done | None


class Sessions:
    """All of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.open: dict[Connection, None] = {}
        self.waiting: list[Waiting] = []
        #: As pg_stat_replication shows it.
        self.sync_rule: SyncRule | None = None
        #: What backends wait for: follows once the checkpointer has published it (H17).
        self.sync_in_force: SyncRule | None = None
        self._queued: dict[Connection, Callable[[], object]] = {}

    # --- coming and going -------------------------------------------------------------------------

    def connect(self, name: str) -> Connection | None:
        """A session, when the door is open; for whoever has reached the server already."""
        server = self.server
        if server.door() != "open":
            return None
        proc = server.host.spawn_proc("postgres", server.dd.path, server.proc)
        connection = Connection(server, name, proc)
        self.open[connection] = None
        proc.on_signal = partial(self._signalled, connection)
        proc.on_kill = partial(self._signalled, connection, int(signal.SIGKILL))
        return connection

    def ends(self, connection: Connection, tell: bool = True) -> None:
        """The backend will never commit again; what waits is never acknowledged."""
        if not connection.alive:
            return
        connection.alive = False
        self.open.pop(connection, None)
        self._queued.pop(connection, None)
        if self.waiting:
            self.waiting = [w for w in self.waiting if w.connection is not connection]
        if tell and connection.on_close is not None:
            self.server.engine.after(0.0, partial(_tell, connection.on_close))
        self.server.session_ended()

    def end_all(self) -> None:
        for connection in list(self.open):
            self.ends(connection)
            if connection.proc.stuck:
                connection.proc.pending.append(signal.SIGTERM)  # it ends once it wakes
            else:
                self.server.host.end_proc(connection.proc, 0)

    def _signalled(self, connection: Connection, signum: int) -> None:
        self.ends(connection)
        if signum != signal.SIGKILL:
            self.server.host.end_proc(connection.proc, 2)
        if signum in (signal.SIGQUIT, signal.SIGKILL):
            self.server.child_crashed()

    # --- writing ----------------------------------------------------------------------------------

    def write(
        self, connection: Connection, payload: object, done: Done | None = None, commit: str = "on"
    ) -> Record | None:
        """As `Server.write`."""
        server = self.server
        if server.held_up or server.hung == "all":
            if connection.alive:
                self._queued.setdefault(connection, partial(self.write, connection, payload, done, commit))
            return None
        if not connection.alive or server.in_recovery or server.host.full:
            return None
        dd = server.dd
        durable = dd.durable
        record = dd.append(DATA, dd.records[-1].timeline, server.member, payload)
        if commit == "off":
            dd.durable = durable
            server.later(WAL_WRITER_S, self._flush)
        else:
            server.grew()
        for truth in server.land.truths:
            truth.written(server, record)
        if commit == "on" and self.sync_in_force is not None:
            self.waiting.append(Waiting(record.index + 1, connection, record, done))
            self.release()
        else:
            self._acknowledge(record, done)
        return record

    def _acknowledge(self, record: Record, done: Done | None) -> None:
        for truth in self.server.land.truths:
            truth.acknowledged(self.server, record)
        if done is not None:
            done(record)

    def _flush(self) -> None:
        dd = self.server.dd
        if dd.durable < len(dd.records):
            dd.durable = len(dd.records)
            self.server.grew()

    def go_on(self) -> None:
        """The server is not held up any more."""
        queued, self._queued = self._queued, {}
        for call in queued.values():
            call()

    # --- synchronous replication ------------------------------------------------------------------

    def use_names(self, names: str, first: bool) -> bool:
        """synchronous_standby_names was read; True when it has to be published.

        That backends wait at all is published by the checkpointer (H17); for whom, walsenders read.
        """
        rule = parse_sync(names)
        changed = rule != self.sync_rule
        self.sync_rule = rule
        if first:
            self.sync_in_force = rule
        elif changed and rule is not None and self.sync_in_force is not None:
            self.publish()
            return False
        return changed and not first

    def publish(self) -> None:
        """From now on backends wait for what is shown; an empty setting acknowledges all (H17)."""
        self.sync_in_force = self.sync_rule
        for truth in self.server.land.truths:
            truth.waits_changed(self.server)
        self.release()

    def release(self) -> None:
        """Acknowledge what is where it has to be."""
        if not self.waiting:
            return
        rule, server = self.sync_in_force, self.server
        until = synced(rule, server.walsenders) if rule is not None else len(server.dd.records)
        ready = [w for w in self.waiting if w.needs <= until]
        self.waiting = [w for w in self.waiting if w.needs > until]
        for one in ready:
            self._acknowledge(one.record, one.done)


def _tell(call: Callable[[], object]) -> None:
    call()
