"""Clients that write all the time, and what they can prove: lost writes, gaps, two primaries at once.

    with Writers(cluster) as writers:
        writers.wait_acknowledged(50)
        ... break something ...
        writers.wait_acknowledged(50)            # fifty more: the cluster is back
    evidence = writers.evidence()
    assert evidence.overlaps() == []
    assert evidence.missing(cluster.leader().dsn) == []
    print(evidence.write_gap_s("any"))

Theory. Three kinds of clients, each a thread of its own, because each finds other faults:
- "any": one session through a multi-host connection string with target_session_attrs=read-write, opened again
  when it breaks: what a well-made application sees.
- "old:<node>": a session to one server that is kept open as long as it lives. Fencing that only refuses new
  connections does not stop it (rule 8).
- "new:<node>": a new connection to one server for each write.
With `sessions=True` two more, which a server can go on serving without hearing anything new:
- "open:<node>": a kept session that is inside a transaction most of the time; what is noted is its COMMIT.
- "call:<node>": a kept session inside a procedure that commits row after row and tells each by a notice.
Each write notes CLOCK_MONOTONIC before it is sent and after COMMIT was acknowledged, and asks the server in
the same statement for its port and the timeline it inserts WAL into: these two name the tenure. The server
also says when it executed the statement and where its WAL ended: a frozen server that is woken executes what
was sent long before. A commit that came with a warning (a cancelled wait for a synchronous standby, hazard
H22) is not acknowledged.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import psycopg

from tests.support.wait import DEADLINE_S, pause, wait_for

TABLE = "haagent_test_writes"
#: Between two writes of one client, seconds: the resolution of a measured gap.
WRITE_INTERVAL_S = 0.005
#: After a refusal, seconds: standbys refuse every write, and a refused connection costs processor time.
REFUSED_INTERVAL_S = 0.05
#: libpq's shortest, seconds.
_CONNECT_TIMEOUT_S = 2
#: ids of different clients never meet, of later `Writers` on the same table neither.
_IDS_PER_CLIENT = 1_000_000_000
_client_numbers = itertools.count()

#: What a server says of itself: port, timeline, when, and the end of its WAL in bytes.
_TENURE = """
    inet_server_port(), ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int,
    extract(epoch from clock_timestamp())::float8, (pg_current_wal_insert_lsn() - '0/0')::bigint
"""
_INSERT = f"INSERT INTO {TABLE} (id) VALUES (%s) RETURNING {_TENURE}"
PROCEDURE = f"{TABLE}_loop"
_CREATE_PROCEDURE = f"""
    CREATE OR REPLACE PROCEDURE {PROCEDURE}(first_id bigint, rows int, pause_s float8) LANGUAGE plpgsql AS $$
    DECLARE port int; line int; at float8; lsn bigint;
    BEGIN
        FOR i IN 0 .. rows - 1 LOOP
            INSERT INTO {TABLE} (id) VALUES (first_id + i) RETURNING {_TENURE} INTO port, line, at, lsn;
            COMMIT;
            RAISE NOTICE 'wrote % % % % %', first_id + i, port, line, at, lsn;
            PERFORM pg_sleep(pause_s);
        END LOOP;
    END $$
"""
#: Rows of one call, and the time between two, seconds: a call ends soon enough for `stop`.
_CALL_ROWS = 100
_CALL_PAUSE_S = 0.02
#: How long a transaction stays open before its COMMIT, seconds.
_OPEN_S = 0.3

#: How long a client keeps its session.
Keep = Literal["while it works", "while it lives", "never"]

Connection = psycopg.Connection[tuple[Any, ...]]


class Server(Protocol):
    """What writers need of a node."""

    @property
    def name(self) -> str: ...
    @property
    def sql_port(self) -> int: ...
    @property
    def dsn(self) -> str: ...


class Servers(Protocol):
    """What writers need of a cluster."""

    @property
    def nodes(self) -> Sequence[Server]: ...
    @property
    def read_write_dsn(self) -> str: ...


@dataclass(frozen=True)
class Write:
    """One acknowledged write. Times on CLOCK_MONOTONIC, seconds."""

    id: int
    client: str
    sent_at: float
    acked_at: float
    #: Node that committed it, and the timeline it wrote into.
    server: str
    timeline: int
    #: When the server executed it, by its own word on our clock, and where its WAL ended then, bytes.
    executed_at: float = 0.0
    lsn: int = 0


@dataclass(frozen=True)
class Overlap:
    """A write acknowledged by a server although it was sent after a later tenure had acknowledged one."""

    late: Write
    first_of_newer: Write


@dataclass(frozen=True)
class Evidence:
    """What the clients saw."""

    writes: tuple[Write, ...]
    #: Sent, and neither acknowledged nor refused: may be in the table or not.
    unknown: frozenset[int] = frozenset()
    #: Committed with a warning: no promise was given.
    warned: frozenset[int] = frozenset()
    #: The latest error of each client, for failure messages.
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def acknowledged(self) -> frozenset[int]:
        return frozenset(write.id for write in self.writes)

    def of(self, client: str) -> list[Write]:
        """Acknowledged writes of one client, or of a kind ("old", "new"), "" for all; in order of ack."""
        chosen = (w for w in self.writes if _matches(client, w.client))
        return sorted(chosen, key=lambda w: w.acked_at)

    def write_gap_s(self, client: str = "any", since: float = 0.0) -> float:
        """Longest time between two acknowledgements in a row after `since`, seconds. ValueError below two."""
        acks = [w.acked_at for w in self.of(client) if w.acked_at >= since]
        if len(acks) < 2:
            raise ValueError(f"{len(acks)} acknowledged writes of {client!r} since then: no gap to measure")
        return max(later - earlier for earlier, later in itertools.pairwise(acks))

    def tenures(self) -> list[tuple[str, int]]:
        """(server, timeline) in the order of their first acknowledged write."""
        return list(self._first_of_tenure())

    def _first_of_tenure(self) -> dict[tuple[str, int], Write]:
        first: dict[tuple[str, int], Write] = {}
        for write in self.of(""):
            first.setdefault((write.server, write.timeline), write)
        return first

    def overlaps(self) -> list[Overlap]:
        """Writes that prove two writable servers at once.

        Sent to X after another server's newer tenure had acknowledged a write, and acknowledged by X all the
        same. One timeline has one server, so a second one on the same timeline is never a newer tenure.
        """
        found = []
        for (server, timeline), first in self._first_of_tenure().items():
            for write in self.writes:
                other_older = write.server != server and write.timeline <= timeline
                if other_older and write.sent_at > first.acked_at:
                    found.append(Overlap(write, first))
        return found

    def missing(self, dsn: str) -> list[int]:
        """Acknowledged ids that the table does not hold: lost writes."""
        with contextlib.closing(psycopg.connect(dsn, connect_timeout=10)) as session:
            held = {row[0] for row in session.execute(f"SELECT id FROM {TABLE}")}
        return sorted(self.acknowledged - held)


def replicated(writers: Writers, primary_dsn: str) -> frozenset[int]:
    """Ids acknowledged by now, once all other nodes of the cluster stream and have them: no failover may lose
    these. (One whose stream is just cut would not be counted as behind.)

    What is acknowledged after that may be lost by an asynchronous failover (rule 5)."""
    evidence = writers.evidence()
    # What an earlier failover has lost, as it may, is not safe any more.
    known = frozenset(evidence.acknowledged) - set(evidence.missing(primary_dsn))
    have_it = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn >= %s::pg_lsn"
    standbys = len(writers.cluster.nodes) - 1
    with contextlib.closing(psycopg.connect(primary_dsn, autocommit=True, connect_timeout=10)) as session:
        row = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        wait_for(
            lambda: session.execute(have_it, row).fetchone() == (standbys,), DEADLINE_S, "standbys catch up"
        )
    return known


def _own_ids() -> Iterable[int]:
    return itertools.count(next(_client_numbers) * _IDS_PER_CLIENT)


def _matches(wanted: str, client: str) -> bool:
    return wanted in ("", client) or client.startswith(f"{wanted}:")


class _Client:
    """One thread that writes until told to stop."""

    def __init__(self, name: str, dsn: str, ids: Iterable[int], servers: dict[int, str], keep: Keep) -> None:
        self.name = name
        self.writes: list[Write] = []
        self.unknown: list[int] = []
        self.warned: list[int] = []
        self.error = ""
        self._dsn = f"{dsn} connect_timeout={_CONNECT_TIMEOUT_S} application_name=writer"
        self._ids = iter(ids)
        self._servers = servers
        self._keep = keep
        self._session: Connection | None = None
        self._warning = False
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"writer {name}", daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            acknowledged = usable = False
            try:
                if self._session is None:
                    self._session = self._connect()
                acknowledged = self._write(self._session)
                usable = True
            except psycopg.Error as error:
                self.error = f"{type(error).__name__}: {str(error).strip()}"
                usable = self._session is not None and not self._session.broken
            if self._keep == "never" or not usable or (self._keep == "while it works" and not acknowledged):
                self._disconnect()
            self._stop.wait(WRITE_INTERVAL_S if acknowledged else REFUSED_INTERVAL_S)
        self._disconnect()

    def _connect(self) -> Connection:
        session = psycopg.connect(self._dsn, autocommit=True)
        session.add_notice_handler(self._on_notice)
        return session

    def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                session.close()

    def _on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._warning = self._warning or notice.severity_nonlocalized == "WARNING"

    def _write(self, session: Connection) -> bool:
        """One insert, committed by its statement. True when it was acknowledged without a warning."""
        number = next(self._ids)
        self._warning = False
        sent_at = time.monotonic()
        try:
            row = session.execute(_INSERT.encode(), (number,)).fetchone()
        except psycopg.Error as error:
            self._note_failure(session, number, error)
            raise
        assert row is not None
        return self._note(number, sent_at, row)

    def _note_failure(self, session: Connection, number: int, error: psycopg.Error) -> None:
        # An answer with a code that leaves the session usable is a refusal: nothing was committed.
        if error.sqlstate is None or session.broken:
            self.unknown.append(number)

    def _note(self, number: int, sent_at: float | None, row: Sequence[Any]) -> bool:
        """Acknowledged now, unless a warning came with it. Without `sent_at` the server's word stands in."""
        acked_at = time.monotonic()
        if self._warning:
            self.warned.append(number)
            return False
        port, timeline, executed_at, lsn = row
        executed_at += acked_at - time.time()
        sent_at = executed_at if sent_at is None else sent_at
        server = self._servers.get(port, f"port {port}")
        self.writes.append(Write(number, self.name, sent_at, acked_at, server, timeline, executed_at, lsn))
        return True

    def ask_to_stop(self) -> None:
        self._stop.set()

    def cut(self) -> None:
        """Break a session that waits for a frozen server, so that its thread can end."""
        session = self._session
        if session is not None:
            with (
                contextlib.suppress(psycopg.Error, OSError),
                socket.socket(fileno=os.dup(session.fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)


class _OpenClient(_Client):
    """Inserts, waits inside the transaction, commits."""

    def _write(self, session: Connection) -> bool:
        number = next(self._ids)
        session.execute("BEGIN")
        try:
            row = session.execute(_INSERT.encode(), (number,)).fetchone()
        except psycopg.Error:
            if not session.broken:
                session.rollback()
            raise
        assert row is not None
        self._stop.wait(_OPEN_S)
        self._warning = False
        sent_at = time.monotonic()
        try:
            session.execute("COMMIT")
        except psycopg.Error as error:
            self._note_failure(session, number, error)
            raise
        return self._note(number, sent_at, row)


class _CallClient(_Client):
    """One statement that commits many times; each commit is told by a notice."""

    def _write(self, session: Connection) -> bool:
        first, *_ = itertools.islice(self._ids, _CALL_ROWS)
        self._warning = False
        session.execute(f"CALL {PROCEDURE}(%s, %s, %s)".encode(), (first, _CALL_ROWS, _CALL_PAUSE_S))
        return True

    def _on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        super()._on_notice(notice)
        word, *numbers = (notice.message_primary or "").split()
        if word == "wrote" and len(numbers) == 5:
            number, port, timeline, executed_at, lsn = numbers
            self._note(int(number), None, (int(port), int(timeline), float(executed_at), int(lsn)))
            self._warning = False


class Writers:
    """All clients of one cluster. `with` creates the table and starts them, and stops them at its end."""

    def __init__(self, cluster: Servers, *, direct: bool = True, sessions: bool = False) -> None:
        """direct: also the clients of single servers ("old:…", "new:…"), not only "any".

        sessions: also those inside a transaction or a procedure ("open:…", "call:…").
        """
        self.cluster = cluster
        servers = {node.sql_port: node.name for node in cluster.nodes}
        wanted: list[tuple[str, str, Keep]] = [("any", cluster.read_write_dsn, "while it works")]
        for node in cluster.nodes if direct else ():
            wanted += [
                (f"old:{node.name}", node.dsn, "while it lives"),
                (f"new:{node.name}", node.dsn, "never"),
            ]
        self._clients = [_Client(name, dsn, _own_ids(), servers, keep) for name, dsn, keep in wanted]
        for node in cluster.nodes if sessions else ():
            self._clients += [
                _OpenClient(f"open:{node.name}", node.dsn, _own_ids(), servers, "while it lives"),
                _CallClient(f"call:{node.name}", node.dsn, _own_ids(), servers, "while it lives"),
            ]

    def start(self) -> None:
        create_table(self.cluster.read_write_dsn)
        for client in self._clients:
            client.thread.start()

    def stop(self, deadline_s: float = 10.0) -> None:
        """Stop all clients; those that a frozen server holds are cut off after `deadline_s`."""
        for client in self._clients:
            client.ask_to_stop()
        end = time.monotonic() + deadline_s
        for client in self._clients:
            if client.thread.ident is not None:
                client.thread.join(max(0.0, end - time.monotonic()))
        end = time.monotonic() + deadline_s
        while any(client.thread.is_alive() for client in self._clients):
            for client in self._clients:
                if client.thread.is_alive():
                    client.cut()
            if time.monotonic() > end:
                raise AssertionError("writers do not stop")
            pause()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def count(self, client: str = "any") -> int:
        """Acknowledged writes so far."""
        return sum(len(c.writes) for c in self._clients if _matches(client, c.name))

    def wait_acknowledged(self, more: int, client: str = "any", deadline_s: float = DEADLINE_S) -> None:
        """Wait until `more` further writes of this client (or kind) were acknowledged."""
        goal = self.count(client) + more
        what = f"{more} more acknowledged writes of {client!r}"
        wait_for(lambda: self.count(client) >= goal, deadline_s, what)

    def _errors(self) -> dict[str, str]:
        return {client.name: client.error for client in self._clients if client.error}

    def evidence(self) -> Evidence:
        """Everything noted so far; also while they write."""
        return Evidence(
            writes=tuple(write for client in self._clients for write in tuple(client.writes)),
            unknown=frozenset(number for client in self._clients for number in tuple(client.unknown)),
            warned=frozenset(number for client in self._clients for number in tuple(client.warned)),
            errors=self._errors(),
        )


def create_table(dsn: str, deadline_s: float = DEADLINE_S) -> None:
    """The table all clients write into; waits for a writable server."""

    def create() -> bool:
        with contextlib.closing(psycopg.connect(dsn, autocommit=True, connect_timeout=5)) as session:
            session.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (id bigint PRIMARY KEY)".encode())
            session.execute(_CREATE_PROCEDURE.encode())
        return True

    wait_for(create, deadline_s, "a writable server to create the writers' table")
