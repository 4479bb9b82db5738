"""etcd's JSON gateway as one method: a request to some server of the cluster, answered by a deadline.

Theory. What matters to the callers is whether a request may have taken effect:

    NotSent    it never left this process: another server may be asked, whatever the request was
    NoAnswer   it left and no trustworthy answer came: only repeatable requests may be sent again
    Rejected   the server answered with an error; nothing was done

`Gateway.ask` rotates through the servers by these rules inside one total deadline and stays with the server
that answered last. Every exchange runs on a spare thread (`dcs.bounded`), so that neither a name look-up nor
a trickling server holds the caller; one that was given up is barred from sending afterwards. Answers with a
raft term lower than one already seen come from a member that has not heard of an election: NoAnswer.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from dcs.api import boottime
from dcs.bounded import BoundedCalls, TimedOut
from dcs.errors import DcsLoginRefused, DcsUnavailable
from dcs.etcd3_connect import Connections, NotSent, Server, one_line, short, shut
from dcs.etcd3_options import Etcd3Options

T = TypeVar("T")
Body = dict[str, Any]

#: Pauses between rounds in which no server could be asked: an etcd that restarts needs a moment.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5
#: Too short a share of the deadline only burns an attempt.
SHORTEST_ATTEMPT_S = 0.1

# gRPC status codes, as the gateway passes them on.
INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, UNAUTHENTICATED = 3, 5, 7, 9, 16
#: Answers that say what the request did: nothing. All others (unavailable, timeout, internal) say nothing.
_DEFINITE = (INVALID_ARGUMENT, NOT_FOUND, 6, PERMISSION_DENIED, FAILED_PRECONDITION, 11, UNAUTHENTICATED)
#: A token is refused with one of these before anything is done; a new login cures them.
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")


#: Everything that reading from a server may raise.
_FAULTS = (OSError, HTTPError, http.client.HTTPException, ValueError)


class NoAnswer(Exception):
    """The request left and may have had its effect."""


class Rejected(Exception):
    """The server's own definite refusal."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """When one attempt must be over, and when its connection must stand; on CLOCK_BOOTTIME."""

    end: float
    connect_end: float

    @classmethod
    def within(cls, timeout_s: float) -> Limits:
        end = boottime() + timeout_s
        return cls(end, end)


class Gateway:
    """Client of all servers of one etcd cluster. Thread safe. Raises DcsConfigError."""

    def __init__(self, options: Etcd3Options) -> None:
        self.connections = Connections(options)
        self._options = options
        self._calls = BoundedCalls("etcd3")
        self._lock = threading.Lock()
        self._preferred: Server | None = None
        self._token: str | None = None
        self._terms: dict[str, int] = {}
        self._closed = threading.Event()

    # --- rotation ---------------------------------------------------------------------------------

    def ask(self, path: str, body: Body, deadline_s: float, *, repeatable: bool) -> Body:
        """One request, answered by some server. Raises DcsUnavailable, DcsLoginRefused, Rejected."""
        return self.rotate(
            lambda server, limits: self.exchange(server, path, body, limits),
            deadline_s,
            repeatable=repeatable,
        )

    def rotate(self, work: Callable[[Server, Limits], T], deadline_s: float, *, repeatable: bool) -> T:
        """`work` at one server after the other until it succeeds. After a NoAnswer only `repeatable`
        work goes on to the next server. Raises DcsUnavailable, and what `work` raises otherwise."""
        end = boottime() + deadline_s
        cause, pause_s = "no time", FIRST_PAUSE_S
        while not self._closed.is_set():
            try:
                order = self._order(end - boottime())
            except NotSent as error:
                order, cause = [], str(error)
            if boottime() >= end:
                break
            for turn, server in enumerate(order):
                if boottime() >= end:
                    break
                try:
                    result = work(server, _limits(end, len(order) - turn, repeatable))
                    self._prefer(server)
                    return result
                except NotSent as error:
                    cause = f"{server}: {error}"
                    self._avoid(server)
                except NoAnswer as error:
                    cause = f"{server}: {error}"
                    self._avoid(server)
                    if not repeatable:
                        raise DcsUnavailable(f"etcd: {cause}") from None
            self._closed.wait(min(pause_s, max(end - boottime(), 0)))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        why = "closed" if self._closed.is_set() else f"{cause} (within {deadline_s:g} s)"
        raise DcsUnavailable(f"etcd: {why}")

    def _order(self, timeout_s: float) -> list[Server]:
        servers, preferred = self.connections.servers(timeout_s), self._preferred
        first = servers.index(preferred) if preferred in servers else 0
        return list(servers[first:] + servers[:first])

    def _prefer(self, server: Server) -> None:
        self._preferred = server

    def _avoid(self, server: Server) -> None:
        """The next request begins elsewhere, unless somebody has already moved on."""
        with self._lock:
            order = self._order(0.0)  # known by now
            if order[0] == server:
                self._preferred = order[1 % len(order)]

    # --- one request at one server ----------------------------------------------------------------

    def exchange(self, server: Server, path: str, body: Body, limits: Limits) -> Body:
        """Raises NotSent, NoAnswer, Rejected, DcsLoginRefused; at the latest at `limits.end`."""
        return self._logged_in(server, limits, lambda token: self._post(server, path, body, limits, token))

    def open_stream(self, server: Server, path: str, body: Body, limits: Limits) -> Stream:
        """Send, and return once the headers of the answer are there. Raises like `exchange`."""

        def opened(token: str | None) -> Stream:
            request = _Request(self.connections, server, path, body, limits, token)
            return self._bounded(request, request.open, limits)

        return self._logged_in(server, limits, opened)

    def _post(self, server: Server, path: str, body: Body, limits: Limits, token: str | None) -> Body:
        request = _Request(self.connections, server, path, body, limits, token)
        status, content = self._bounded(request, request.perform, limits)
        answer = parse_answer(status, content)
        self.check_term(answer)
        return answer

    def _bounded(self, request: _Request, call: Callable[[], T], limits: Limits) -> T:
        try:
            return self._calls.run(call, limits.end - boottime())
        except TimedOut:
            request.give_up()
            raise (NoAnswer if request.sent else NotSent)("timed out") from None
        except DcsUnavailable as error:  # closed, or too many calls hang
            raise NotSent(str(error)) from None

    def check_term(self, answer: Body) -> None:
        """Raises NoAnswer when the answer comes from a member behind an election we know of.

        An answer without etcd's header comes from something else, whose `{}` must not pass for an
        empty cluster."""
        header = answer.get("header") or _mapping(answer.get("result")).get("header")
        if not isinstance(header, dict) or "raft_term" not in header:
            raise NoAnswer("an answer that is not etcd's")
        cluster, term = str(header.get("cluster_id")), _int(header["raft_term"])
        with self._lock:
            known = self._terms.get(cluster, 0)
            self._terms[cluster] = max(known, term)
        if term < known:
            raise NoAnswer(f"stale member (raft term {term}, known {known})")

    # --- login ------------------------------------------------------------------------------------

    def _logged_in(self, server: Server, limits: Limits, call: Callable[[str | None], T]) -> T:
        token = self._token
        if self._options.username and token is None:
            token = self._login(server, limits)
        try:
            return call(token)
        except Rejected as error:
            if not _is_stale_token(error):
                raise _as_login_refused(error) or error from None
        if not self._options.username:
            raise DcsLoginRefused("etcd asks for a user name and password")
        # Refused before anything was done, so even a write may be sent again with a new token.
        token = self._login(server, limits)
        try:
            return call(token)
        except Rejected as error:
            if _is_stale_token(error):
                raise NoAnswer(str(error)) from None
            raise _as_login_refused(error) or error from None

    def _login(self, server: Server, limits: Limits) -> str | None:
        body = {"name": self._options.username, "password": self._options.password}
        try:
            answer = self._post(server, "/v3/auth/authenticate", body, limits, None)
        except NoAnswer as error:
            raise NotSent(f"login: {error}") from None  # the request proper has not been sent
        except Rejected as error:
            if error.code == FAILED_PRECONDITION:  # authentication is switched off
                return None
            raise DcsLoginRefused(f"etcd, user {self._options.username!r}: {error}") from None
        token = answer.get("token")
        self._token = token if isinstance(token, str) else None
        return self._token

    def close(self) -> None:
        self._closed.set()
        self.connections.close()
        self._calls.close()


def _limits(end: float, servers_left: int, repeatable: bool) -> Limits:
    """An equal share of what is left; a request that is sent only once then waits to the very end."""
    share_s = max((end - boottime()) / servers_left, SHORTEST_ATTEMPT_S)
    share_end = min(boottime() + share_s, end)
    return Limits(share_end if repeatable else end, share_end)


class _Request:
    """One POST, performed on a spare thread and perhaps given up by its owner meanwhile."""

    def __init__(
        self,
        connections: Connections,
        server: Server,
        path: str,
        body: Body,
        limits: Limits,
        token: str | None,
    ) -> None:
        self._connections = connections
        self._server = server
        self._path = path
        self._content = json.dumps(body).encode()
        self._limits = limits
        # The name, not the cached address: etcd may check it.
        self._headers = {"Content-Type": "application/json", "Host": str(server)}
        if token:
            self._headers["Authorization"] = token
        self._lock = threading.Lock()
        self._connection: HTTPConnection | None = None
        self._given_up = False
        self.sent = False

    def give_up(self) -> None:
        """Nothing is sent from here on; a thread that waits for the answer wakes."""
        with self._lock:
            self._given_up = True
            if self._connection is not None:
                shut(self._connection)

    def perform(self) -> tuple[int, bytes]:
        connection, response = self._send(self._connections.borrow)
        try:
            content = response.read()
        except _FAULTS as error:
            connection.close()
            raise NoAnswer(short(error)) from None
        self._connections.give_back(self._server, connection)
        return response.status, content

    def open(self) -> Stream:
        return Stream(*self._send(self._connections.connect))

    def _send(
        self, connect: Callable[[Server, float], HTTPConnection]
    ) -> tuple[HTTPConnection, BaseHTTPResponse]:
        connection = connect(self._server, max(self._limits.connect_end - boottime(), 0.01))
        with self._lock:
            self._connection = connection
            if self._given_up or boottime() >= self._limits.end:
                connection.close()
                raise NotSent("timed out")
            self.sent = True
        try:
            if connection.sock is not None:
                connection.sock.settimeout(max(self._limits.end - boottime(), 0.01))
            connection.request(
                "POST",
                self._path,
                self._content,
                self._headers,
                preload_content=False,
                decode_content=False,
            )
            return connection, connection.getresponse()
        except _FAULTS as error:
            connection.close()
            raise NoAnswer(short(error)) from None


class Stream:
    """An answer that goes on: one JSON document a line."""

    def __init__(self, connection: HTTPConnection, response: BaseHTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status

    def lines(self) -> Iterator[bytes]:
        """Yields each line; ends when the server ends. Raises NoAnswer. No time limit: see `abort`."""
        if self._connection.sock is not None:
            self._connection.sock.settimeout(None)
        rest = b""
        try:
            for chunk in self._response.stream(amt=None, decode_content=False):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line for line in whole if line.strip())
        except _FAULTS as error:
            raise NoAnswer(short(error)) from None

    def read_all(self) -> bytes:
        """The whole answer, where it is an error."""
        return self._response.read(65536)

    def abort(self) -> None:
        """Wake the thread inside `lines`. Callable from any thread; returns at once."""
        shut(self._connection)

    def close(self) -> None:
        self._connection.close()


# --- answers ----------------------------------------------------------------------------------------


def parse_answer(status: int, content: bytes) -> Body:
    """The JSON object of an answer. Raises Rejected, or NoAnswer for what is no definite answer."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise NoAnswer(f"HTTP status {status} without JSON")
    error = parsed.get("error")
    if status == 200 and not error:
        return parsed
    # A unary call names the error flat, a stream in an object of its own.
    detail = error if isinstance(error, dict) else parsed
    message = one_line(str(detail.get("message") or error or f"HTTP status {status}"))
    code = _int(detail.get("code", detail.get("grpc_code", 0)))
    if code in _DEFINITE:
        raise Rejected(code, message)
    raise NoAnswer(message)


def _is_stale_token(error: Rejected) -> bool:
    return error.code == UNAUTHENTICATED or any(text in str(error) for text in _STALE_TOKEN)


def _as_login_refused(error: Rejected) -> DcsLoginRefused | None:
    return DcsLoginRefused(f"etcd: {error}") if error.code == PERMISSION_DENIED else None


def _mapping(value: object) -> Body:
    return value if isinstance(value, dict) else {}


def _int(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0
