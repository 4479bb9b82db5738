"""A PostgreSQL connection on which nothing can block longer than its caller allows.

Theory. `statement_timeout` and `connect_timeout` are kept by a healthy server only: a stopped backend, a
stopped postmaster (its kernel still accepts connections) or a silent partition answers nothing. So this
drives libpq's non-blocking interface and waits for the socket itself, against one deadline per call. After
a missed deadline the connection is closed and forgotten: an answer that comes late must not be taken for
the answer of the next question. Host names are looked up in a thread that may be abandoned, because name
look-ups know no deadline either.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import threading

from psycopg import pq
from psycopg.pq import abc

from postgres_ctl.api import ConnectionTarget, boottime
from postgres_ctl.errors import PostgresUnavailable, QueryFailed

Row = tuple[str | None, ...]


class NoAnswer(PostgresUnavailable):
    """The server said nothing within the deadline."""


_COPY = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)
#: feature_not_supported
_NOT_SUPPORTED = "0A000"


class Connection:
    """One libpq connection. Not thread safe: one thread uses it, any thread may let it be collected."""

    def __init__(self, pgconn: abc.PGconn) -> None:
        self._pgconn = pgconn

    @classmethod
    def open(cls, target: ConnectionTarget, deadline_s: float, **keywords: str) -> Connection:
        """Connect within `deadline_s` seconds. `keywords` are added to the conninfo.

        Raises PostgresUnavailable, also while the server starts up or stops or refuses the login (libpq
        tells these apart by text only); messages hold no password.
        """
        end = boottime() + deadline_s
        words = dict(keywords)
        if "hostaddr" not in target.options and (pairs := resolve(target.host, target.port, deadline_s)):
            words["host"] = ",".join(name for name, _ in pairs)
            words["hostaddr"] = ",".join(address for _, address in pairs)
        pgconn = pq.PGconn.connect_start(target.secret_dsn(**words).encode())
        try:
            _finish_connecting(pgconn, end)
            pgconn.nonblocking = 1
        except BaseException:
            pgconn.finish()
            raise
        pgconn.notice_handler = None
        return cls(pgconn)

    @property
    def is_open(self) -> bool:
        return self._pgconn.status == pq.ConnStatus.OK

    @property
    def server_version(self) -> int:
        """As PostgreSQL counts it: 150018."""
        return self._pgconn.server_version

    def query(self, sql: str, deadline_s: float, params: tuple[str | None, ...] = ()) -> list[Row]:
        """Run one statement (or, without params, several); rows of the last one as text.

        Raises PostgresUnavailable: no answer within `deadline_s` seconds, connection closed for good.
        Raises QueryFailed: the server refused; the connection lives on.
        """
        return _decoded(self.query_bytes(sql, deadline_s, params))

    def query_bytes(
        self, sql: str, deadline_s: float, params: tuple[str | None, ...] = ()
    ) -> list[tuple[bytes | None, ...]]:
        """Like `query`, values as the server sent them."""
        return _rows(self.results(sql, deadline_s, params))

    def results(self, sql: str, deadline_s: float, params: tuple[str | None, ...] = ()) -> list[abc.PGresult]:
        """Like `query`, everything that came back, one result for each statement, none of them an error."""
        end = boottime() + deadline_s
        try:
            if params:
                values = [None if value is None else value.encode() for value in params]
                self._pgconn.send_query_params(sql.encode(), values)
            else:
                self._pgconn.send_query(sql.encode())
            self._flush(end)
            results = self._results(end)
        except (PostgresUnavailable, QueryFailed):
            self.close()
            raise
        except Exception as e:  # psycopg raises its own tree for a broken connection
            self.close()
            raise PostgresUnavailable(_one_line(str(e))) from None
        _raise_error(results)
        return results

    def ask(self, sql: str, deadline_s: float) -> None:
        """Send one statement; `answer` gets what comes of it. Raises PostgresUnavailable, closed for good."""
        try:
            self._pgconn.send_query(sql.encode())
            self._flush(boottime() + deadline_s)
        except PostgresUnavailable:
            self.close()
            raise
        except Exception as e:
            self.close()
            raise PostgresUnavailable(_one_line(str(e))) from None

    def answer(self, deadline_s: float) -> list[Row] | None:
        """Rows of the statement that was asked; None: not yet, it goes on and may be waited for again.

        Raises PostgresUnavailable (connection lost), QueryFailed (the server refused)."""
        end = boottime() + deadline_s
        try:
            while self._pgconn.is_busy():
                _wait(self._pgconn.socket, select.POLLIN, end)
                self._pgconn.consume_input()
            results = self._results(end)
        except NoAnswer:
            return None
        except PostgresUnavailable:
            self.close()
            raise
        except Exception as e:
            self.close()
            raise PostgresUnavailable(_one_line(str(e))) from None
        _raise_error(results)
        return _decoded(_rows(results))

    def cancel(self) -> None:
        """Ask the server to end the running statement; waits for the server to take the wish."""
        self._pgconn.get_cancel().cancel()

    def _flush(self, end: float) -> None:
        while self._pgconn.flush():
            # Read too: a server that answers before it has read everything must not dead-lock us.
            if _wait(self._pgconn.socket, select.POLLIN | select.POLLOUT, end) & select.POLLIN:
                self._pgconn.consume_input()

    def _results(self, end: float) -> list[abc.PGresult]:
        results: list[abc.PGresult] = []
        while True:
            while self._pgconn.is_busy():
                _wait(self._pgconn.socket, select.POLLIN, end)
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
            if result is None:
                return results
            if result.status in _COPY:  # would be returned again and again
                raise QueryFailed("COPY from or to the client is not possible here", _NOT_SUPPORTED)
            results.append(result)
            if not self.is_open:
                raise PostgresUnavailable(
                    _one_line(_text(result.error_message)) or "server closed the connection"
                )

    def close(self) -> None:
        """Close without waiting for anybody; safe to call twice."""
        self._pgconn.finish()


def _finish_connecting(pgconn: abc.PGconn, end: float) -> None:
    while True:
        if pgconn.status == pq.ConnStatus.BAD:
            raise _connect_error(pgconn)
        match pgconn.connect_poll():
            case pq.PollingStatus.OK:
                return
            case pq.PollingStatus.READING:
                _wait(pgconn.socket, select.POLLIN, end)
            case pq.PollingStatus.WRITING:
                _wait(pgconn.socket, select.POLLOUT, end)
            case _:
                raise _connect_error(pgconn)


def _connect_error(pgconn: abc.PGconn) -> PostgresUnavailable:
    return PostgresUnavailable(_one_line(_text(pgconn.error_message)) or "connection failed")


def _wait(fd: int, events: int, end: float) -> int:
    """Wait for the socket until `end`. Returns the events; raises PostgresUnavailable when it is too late."""
    poll = select.poll()
    poll.register(fd, events)
    while (left := end - boottime()) > 0:
        ready = poll.poll(left * 1000)
        if ready:
            return ready[0][1]
    raise NoAnswer("no answer in time")


def _raise_error(results: list[abc.PGresult]) -> None:
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
            raise QueryFailed(_one_line(_text(message)), _text(state) or None)


def _rows(results: list[abc.PGresult]) -> list[tuple[bytes | None, ...]]:
    last = results[-1] if results else None
    if last is None or last.status != pq.ExecStatus.TUPLES_OK:
        return []
    return [tuple(last.get_value(row, col) for col in range(last.nfields)) for row in range(last.ntuples)]


def _decoded(rows: list[tuple[bytes | None, ...]]) -> list[Row]:
    return [tuple(None if value is None else value.decode(errors="replace") for value in row) for row in rows]


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")


def _one_line(message: str) -> str:
    return " ".join(message.split())


def resolve(host: str, port: int, deadline_s: float) -> list[tuple[str, str]]:
    """Each (name, address) of `host`, which may be a comma separated list; [] when nothing needs looking up.

    Raises PostgresUnavailable.
    """
    names = host.split(",")
    if all(_is_address(name) for name in names):
        return []
    found: list[tuple[str, str]] = []
    failure: list[str] = []

    def look_up() -> None:
        try:
            for name in names:
                entries = [] if _is_address(name) else socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
                addresses = [str(entry[4][0]) for entry in entries] or [name]
                found.extend((name, address) for address in dict.fromkeys(addresses))
        except OSError as e:
            failure.append(e.strerror or str(e))

    thread = threading.Thread(target=look_up, name=f"resolve {host}", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise PostgresUnavailable(f"name look-up of {host} gave no answer in time")
    if failure:
        raise PostgresUnavailable(f"name look-up of {host} failed: {failure[0]}")
    return found


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name.startswith("/") or not name
