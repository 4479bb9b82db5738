"""A statement somebody typed, run once on one server: what came back as Python values, for printing.

Unlike `queries`, no setting of the session is changed, and nothing limits the statement but the caller's
deadline: a person waits, and Ctrl-C cancels it on the server, too.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from psycopg import Error, pq
from psycopg.adapt import Transformer
from psycopg.pq import abc

from postgres_ctl.api import ConnectionTarget
from postgres_ctl.libpq import Connection

#: To reach a server and log in, seconds.
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Table:
    """Rows of the last statement; without any, `status` says what was done ("CREATE TABLE")."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    status: str


def connect(target: ConnectionTarget, application_name: str) -> Connection:
    """A session as the server's own settings make it. Raises PostgresUnavailable."""
    words = {"application_name": application_name, "client_encoding": "UTF8"}
    return Connection.open(target, CONNECT_TIMEOUT_S, **words)


def run(connection: Connection, sql: str, deadline_s: float) -> Table:
    """One statement or several, without a transaction around them unless they say so themselves.

    Raises PostgresUnavailable, QueryFailed.
    """
    try:
        results = connection.results(sql, deadline_s)
    except KeyboardInterrupt:
        with contextlib.suppress(Error):
            connection.cancel()
        raise
    last = results[-1]
    status = (last.command_status or b"").decode()
    if last.status != pq.ExecStatus.TUPLES_OK:
        return Table((), (), status)
    names = [(last.fname(column) or b"").decode(errors="replace") for column in range(last.nfields)]
    return Table(tuple(names), tuple(_values(last)), status)


def _values(result: abc.PGresult) -> list[tuple[Any, ...]]:
    """Python values; the server's own text where Python has no such value (an infinite or ancient date)."""
    loader = Transformer()
    loader.set_pgresult(result)
    try:
        return loader.load_rows(0, result.ntuples, tuple)
    except (Error, ValueError, OverflowError):
        return [
            tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
            for row in range(result.ntuples)
        ]


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")
