"""Probes of a server and of its storage that write: does it still take what clients would write?

Theory. A sample only reads, mostly memory, on a session that was opened long ago: it is answered while the
postmaster hangs, the WAL cannot be flushed or the disk is full. So `ServerProbe` opens a fresh connection and
commits something through it, and `DiskProbe` writes a page beside the data.

The commit is a logical message without text: it needs no table, waits for this server's own flush alone
(synchronous_commit=local), works where sessions are read-only by default, leaves no dead row, and only a
consumer of logical decoding that asks for messages sees it. It is written only while others write as well:
on an idle server it would be what keeps checkpoints and archive_timeout busy.

A write that is not answered is waited for on, and no other begins: a hung disk must not fill up with probes.
For one thread at a time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from postgres_ctl.api import ConnectionTarget, boottime
from postgres_ctl.errors import PostgresUnavailable, QueryFailed
from postgres_ctl.facts import ProbeAnswer, ProbeFault
from postgres_ctl.libpq import Connection, NoAnswer

#: Less WAL than this since our last write is what an idle server writes by itself, bytes.
QUIET_BYTES = 1024
_PROGRAM = str(Path(__file__).with_name("disk_probe.py"))
_KEYWORDS = {
    "application_name": "Patroni probe",
    "options": (
        "-c statement_timeout=0 -c lock_timeout=0 -c search_path=pg_catalog -c synchronous_commit=local"
        " -c default_transaction_read_only=off -c pg_stat_statements.track=none"
    ),
    "tcp_user_timeout": "10000",
}
_POSITIONS = """
select pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_current_wal_flush_lsn() - '0/0'::pg_lsn
where not pg_is_in_recovery()
"""
_WRITE = "select pg_logical_emit_message(true, 'haagent', '') - '0/0'::pg_lsn"
#: SQLSTATE -> what it means: disk_full, io_error.
_FAULTS = {"53100": ProbeFault.FULL, "58030": ProbeFault.BROKEN}


class ServerProbe:
    """Of one server. It keeps its last connection, to write where no new one is to be had."""

    def __init__(self) -> None:
        self._session: Connection | None = None
        #: A write is not answered yet.
        self._writing = False
        #: End of our last write; None: the next look writes.
        self._written: int | None = None
        self._flushed: int | None = None

    def look(self, target: ConnectionTarget, deadline_s: float) -> ProbeAnswer:
        """One probe, done within `deadline_s` seconds whatever the server does. Never raises.

        A server that answers with a refusal (too many clients, starting up, login failed) is not hung."""
        end, session = boottime() + deadline_s, self._session
        try:
            if session is not None and self._writing:
                return self._written_by(session, end)
            refusal = self._connect(target, deadline_s)
            if self._session is None:
                return ProbeAnswer(None, refusal or "no connection")
            return self._write(self._session, end)
        except NoAnswer:
            self.close()
            return ProbeAnswer(
                ProbeFault.UNREACHED, f"a new connection is not answered within {deadline_s:g} s"
            )
        except QueryFailed as fault:
            self._written, self._writing = None, False
            return ProbeAnswer(_FAULTS.get(fault.sqlstate or ""), str(fault))
        except PostgresUnavailable as fault:
            self.close()
            return ProbeAnswer(None, str(fault))

    def close(self) -> None:
        """Forget the server. A write that hangs there goes on by itself."""
        session, self._session = self._session, None
        self._writing, self._written, self._flushed = False, None, None
        if session is not None:
            session.close()

    def _connect(self, target: ConnectionTarget, deadline_s: float) -> str:
        """A fresh connection takes the place of the last one; else why there is none. Raises NoAnswer."""
        try:
            fresh = Connection.open(target, deadline_s, **_KEYWORDS)
        except NoAnswer:
            raise
        except PostgresUnavailable as refusal:
            return str(refusal)
        old, self._session = self._session, fresh
        if old is not None:
            old.close()
        return ""

    def _write(self, session: Connection, end: float) -> ProbeAnswer:
        rows = session.query(_POSITIONS, max(0.0, end - boottime()))
        if not rows:  # a standby
            self._written = self._flushed = None
            return ProbeAnswer()
        inserted, flushed = int(rows[0][0] or 0), int(rows[0][1] or 0)
        stands, self._flushed = flushed < inserted and flushed == self._flushed, flushed
        if self._written is not None and inserted < self._written + QUIET_BYTES and not stands:
            return ProbeAnswer()
        session.ask(_WRITE, max(0.0, end - boottime()))
        self._writing = True
        return self._written_by(session, end)

    def _written_by(self, session: Connection, end: float) -> ProbeAnswer:
        rows = session.answer(max(0.0, end - boottime()))
        if rows is None:
            return ProbeAnswer(ProbeFault.HANGS, "a write is not flushed in time")
        self._writing, self._written = False, int(rows[0][0] or 0)
        return ProbeAnswer()


class DiskProbe:
    """Of the storage under one data directory (`postgres_ctl.disk_probe`)."""

    def __init__(self) -> None:
        self._hanging: subprocess.Popen[str] | None = None

    def look(self, data_dir: str, deadline_s: float) -> ProbeAnswer | None:
        """One probe, done within about `deadline_s` seconds. None: nothing can be told. Never raises."""
        probe, self._hanging = self._hanging, None
        late = probe is not None
        if probe is None:
            try:
                probe = _start(data_dir)
            except OSError:
                return None
        try:
            said, _ = probe.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            probe.kill()  # it goes when the storage answers
            self._hanging = probe
            return ProbeAnswer(ProbeFault.HANGS, f"a page is not written and synced after {deadline_s:g} s")
        # One that was given up was killed: it did end, so the storage has answered.
        return ProbeAnswer() if late else _meaning(said)


def _start(data_dir: str) -> subprocess.Popen[str]:
    # Not in the data directory: what works there counts as PostgreSQL's.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _PROGRAM, data_dir],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        text=True,
    )


def _meaning(said: str) -> ProbeAnswer | None:
    kind, _, why = said.strip().partition(" ")
    if kind == "ok":
        return ProbeAnswer()
    faults = {"full": ProbeFault.FULL, "broken": ProbeFault.BROKEN}
    return ProbeAnswer(faults[kind], why) if kind in faults else None
