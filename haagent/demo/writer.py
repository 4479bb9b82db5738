"""The process that writes rows and notes which were acknowledged: `python -m haagent.demo.writer`.

Theory. What a well-made application does: a few sessions through a connection string that names all servers
and asks for the writable one, opened again as soon as they break. Each row is a transaction of its own with
an id that is never used twice. A note goes to the file only after the server's answer is here, so every id
noted as acknowledged was promised. One whose answer never came is noted as unknown: it may be in the table
or not. The process ends when its standard input ends, so it cannot outlive the demo.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading

from dcs.api import boottime
from haagent.demo.evidence import ACKNOWLEDGED, REFUSED, TABLE, UNKNOWN
from postgres_ctl.api import ConnectionTarget
from postgres_ctl.errors import PostgresUnavailable, QueryFailed
from postgres_ctl.libpq import Connection

#: An answer later than this is not waited for, seconds.
ANSWER_S = 3.0
#: To find the writable one among all servers, seconds.
CONNECT_S = 1.0
#: After a refused connection, seconds: short against the gaps that are measured, long enough for the cores.
AGAIN_S = 0.03

_INSERT = f"insert into {TABLE} (id, connection) values ($1, $2) returning current_setting('port')"  # noqa: S608


class Notes:
    """The file. One write call per line, so that lines of different threads never mix."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, kind: str, *words: object) -> None:
        os.write(self._fd, f"{kind} {' '.join(map(str, words))}\n".encode())


class Client(threading.Thread):
    """One session that writes a row each `interval_s` seconds while there is a server to write to."""

    def __init__(self, number: int, count: int, servers: ConnectionTarget, ports: str, interval_s: float):
        super().__init__(name=f"connection {number}", daemon=True)
        self._number, self._servers, self._ports, self._interval_s = number, servers, ports, interval_s
        self._ids = itertools.count(count + number, count)
        self._session: Connection | None = None

    def work(self, notes: Notes, stop: threading.Event) -> None:
        self._notes, self._stop = notes, stop
        self.start()

    def run(self) -> None:
        due = boottime()
        while not self._stop.wait(max(0.0, due - boottime())):
            due = max(due, boottime() - self._interval_s) + self._interval_s
            try:
                self._write(self._session or self._connect())
            except (PostgresUnavailable, QueryFailed) as fault:
                self._drop()
                self._notes.add(REFUSED, f"{boottime():.6f}", fault)
                due = boottime() + AGAIN_S
        self._drop()

    def _connect(self) -> Connection:
        self._session = Connection.open(
            self._servers,
            CONNECT_S,
            port=self._ports,
            target_session_attrs="read-write",
            application_name=f"demo writer {self._number}",
        )
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _write(self, session: Connection) -> None:
        row_id, sent_at = next(self._ids), boottime()
        try:
            rows = session.query(_INSERT, ANSWER_S, (str(row_id), str(self._number)))
        except PostgresUnavailable:
            self._notes.add(UNKNOWN, row_id, f"{sent_at:.6f}")
            raise
        self._notes.add(ACKNOWLEDGED, row_id, f"{sent_at:.6f}", f"{boottime():.6f}", rows[0][0])


def main(argv: list[str] | None = None) -> None:
    """Write until standard input ends."""
    parser = argparse.ArgumentParser(prog="haagent.demo.writer")
    parser.add_argument("--ports", required=True, help="of all servers, with commas")
    parser.add_argument("--hosts", required=True, help="their socket directories, with commas")
    parser.add_argument("--notes", required=True, help="file to append to")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--rows-per-s", type=float, required=True)
    args = parser.parse_args(argv)
    servers = ConnectionTarget(args.hosts, int(args.ports.split(",")[0]), "postgres")
    notes, stop = Notes(args.notes), threading.Event()
    interval_s = args.connections / args.rows_per_s
    clients = [Client(n, args.connections, servers, args.ports, interval_s) for n in range(args.connections)]
    for client in clients:
        client.work(notes, stop)
    sys.stdin.read()
    stop.set()
    for client in clients:
        client.join(ANSWER_S + CONNECT_S)


if __name__ == "__main__":
    main()
