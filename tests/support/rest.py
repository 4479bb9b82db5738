"""A REST server on a free port with a hand-made agent behind it, and clients that misbehave on request.

The agent is the other side of the interface: an object that holds a `Published` picture and notes what it is
asked to do.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from dcs.api import boottime
from dcs.errors import DcsUnavailable
from dcs.records import (
    ClusterSnapshot,
    ConfigRecord,
    HistoryRow,
    Leader,
    Member,
    Status,
)
from haagent.api import Answer, Published, RestServer
from haagent.api.connection import Limits
from haagent.api.view import Numbers
from haagent.config.types import RestApiConfig
from haagent.config.values import HostPort
from haagent.core.restart import RestartWish
from haagent.core.settings import Settings
from haagent.measures import Measures
from haagent.runtime import SystemRuntime
from postgres_ctl.facts import InstanceSample, Lsn, WalSender

#: Generous: a machine under load must not fail a test; a hanging server must.
DEADLINE_S = 20.0
#: What a health check may take while hundreds of bad clients are connected.
ANSWER_S = 5.0
PRIMARY_SAMPLE = InstanceSample(
    sampled_at=0.0,
    postmaster_start_time="2026-11-21 03:59:27.322518+00:00",
    server_version=150020,
    system_identifier="7710469456714918895",
    in_recovery=False,
    timeline=1,
    flush_lsn=Lsn(67108960),
    receive_lsn=None,
    replay_lsn=None,
    replay_timestamp=None,
    replay_paused=False,
    walreceiver_status=None,
    walreceiver_latest_end_lsn=None,
    walreceiver_slot=None,
    walreceiver_conninfo=None,
    startup_waits_for_wal=False,
    senders=(WalSender(1, "replicator", "n1", "127.0.0.1", "streaming", "async", 0, None, None, None, None),),
    slots=(),
    pending_restart=(),
    primary_conninfo=None,
    primary_slot_name=None,
    restore_command=None,
    replication_state=None,
)
REPLICA_SAMPLE = replace(
    PRIMARY_SAMPLE,
    in_recovery=True,
    flush_lsn=None,
    receive_lsn=Lsn(67108960),
    replay_lsn=Lsn(67108960),
    walreceiver_status="streaming",
    walreceiver_latest_end_lsn=Lsn(67108960),
    startup_waits_for_wal=True,
    senders=(),
    replication_state="streaming",
)
CLUSTER = ClusterSnapshot(
    leader=Leader("n0", "1", 1),
    members=(
        Member(
            "n0",
            "postgres://127.0.0.1:21100/postgres",
            "http://127.0.0.1:21200/patroni",
            "running",
            "primary",
        ),
        Member("n1", "postgres://127.0.0.1:21101/postgres", "http://127.0.0.9:21201/patroni", "running"),
    ),
    status=Status(67108960),
    config=ConfigRecord({"ttl": 30, "postgresql": {"use_pg_rewind": True}}, 7),
    history=(
        HistoryRow(1, 67109256, "no recovery target specified", "2026-11-21T04:00:09.220152+00:00", "n1"),
    ),
)
PRIMARY = Published(
    scope="faceoff",
    name="n0",
    state="running",
    role="primary",
    settings=Settings(),
    sample=PRIMARY_SAMPLE,
    cluster=CLUSTER,
    cluster_is_fresh=True,
    dcs_last_seen=1795233587,
    system_identifier="7710469456714918895",
    alive_until=inf,
)
REPLICA = replace(PRIMARY, name="n1", role="replica", sample=REPLICA_SAMPLE)


class Agent:
    """An agent as the REST server sees it."""

    def __init__(self, published: Published = PRIMARY, leads: bool = True) -> None:
        self.picture = published
        self.leads = leads
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.explanation: Mapping[str, Any] = {"can_lead": True, "rules": []}
        self.dcs_is_up = True

    def published(self) -> Published:
        return self.picture

    def leader_until(self) -> float | None:
        return boottime() + 60 if self.leads else None

    def numbers(self) -> Numbers:
        return Numbers(Measures(SystemRuntime()))

    def refresh(self, deadline_s: float) -> Published:
        self.calls.append(("refresh", deadline_s))
        return replace(self.picture, dcs_last_seen=42)

    def read_cluster(self) -> ClusterSnapshot:
        if not self.dcs_is_up or self.picture.cluster is None:
            raise DcsUnavailable("http://user:secret@127.0.0.1 timed out")
        return self.picture.cluster

    def _call(self, name: str, body: Any) -> Answer:
        self.calls.append((name, body))
        return self.answers.get(name, lambda: Answer(200, name))()

    def switchover(self, body: Mapping[str, Any]) -> Answer:
        return self._call("switchover", body)

    def delete_switchover(self) -> Answer:
        return self._call("delete_switchover", None)

    def failover(self, body: Mapping[str, Any]) -> Answer:
        return self._call("failover", body)

    def failsafe(self, body: Mapping[str, Any]) -> Answer:
        return self._call("failsafe", body)

    def restart(self, wish: RestartWish) -> Answer:
        return self._call("restart", wish)

    def delete_restart(self) -> Answer:
        return self._call("delete_restart", None)

    def reinitialize(self, body: Mapping[str, Any]) -> Answer:
        return self._call("reinitialize", body)

    def reload(self) -> Answer:
        return self._call("reload", None)

    def patch_config(self, patch: Mapping[str, Any]) -> Answer:
        return self._call("patch_config", patch)

    def put_config(self, data: Mapping[str, Any]) -> Answer:
        return self._call("put_config", data)

    def explain(self) -> Mapping[str, Any]:
        return self.explanation

    def events(self) -> list[Mapping[str, Any]]:
        return [{"time": "2030-01-01T00:00:00+00:00", "message": "promoted"}]


def settings(**changes: Any) -> RestApiConfig:
    address = HostPort("127.0.0.1", 0)
    return replace(RestApiConfig(listen=address, connect=address), **changes)


@contextlib.contextmanager
def serving(agent: Agent | None = None, limits: Limits | None = None, **changes: Any) -> Iterator[RestServer]:
    server = RestServer(agent or Agent(), settings(**changes), limits)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: RestServer,
    method: str,
    path: str,
    body: Any = None,
    timeout_s: float = DEADLINE_S,
    **headers: str,
) -> Reply:
    """One request on a connection of its own; `body` is sent as JSON unless it is bytes."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
    try:
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name, value)
        if raw is not None:
            connection.putheader("Content-Length", str(len(raw)))
        connection.endheaders(raw)
        return Reply(connection.getresponse())
    finally:
        connection.close()


def get(server: RestServer, path: str) -> Reply:
    return ask(server, "GET", path)


def dial(server: RestServer, data: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
    sock.sendall(data)
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            parts.append(data)
    return b"".join(parts)


def exchange(server: RestServer, data: bytes) -> bytes:
    """Everything the server says to `data`, until it closes."""
    with dial(server, data) as sock:
        return read_to_end(sock)


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
