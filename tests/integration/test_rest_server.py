"""The REST server over real sockets: answers, access, hostile clients, TLS.

The agent behind it is the other side of the interface: an object that holds a `Published` picture and
notes what it is asked to do.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from dcs.api import boottime
from dcs.errors import DcsUnavailable
from dcs.records import (
    ClusterSnapshot,
    ConfigRecord,
    HistoryRow,
    Leader,
    Member,
    Status,
    SyncState,
    Tags,
)
from haagent.api import Answer, Published, RestError, RestServer
from haagent.api.server import Limits
from haagent.config.types import RestApiConfig
from haagent.config.values import HostPort
from haagent.core.settings import Settings
from postgres_ctl.facts import InstanceSample, Lsn, WalSender
from tests.support.wait import wait_for

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

    def failover(self, body: Mapping[str, Any]) -> Answer:
        return self._call("failover", body)

    def restart(self, body: Mapping[str, Any]) -> Answer:
        return self._call("restart", body)

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


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- reading ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def primary() -> Iterator[RestServer]:
    with serving(Agent()) as server:
        yield server


@pytest.fixture(scope="module")
def replica() -> Iterator[RestServer]:
    with serving(Agent(REPLICA, leads=False)) as server:
        yield server


#: path -> status of a primary, status of an asynchronous streaming replica
HEALTH = {
    "/": (200, 503),
    "/primary": (200, 503),
    "/master": (200, 503),
    "/read-write": (200, 503),
    "/leader": (200, 503),
    "/standby-leader": (503, 503),
    "/standby_leader": (503, 503),
    "/replica": (503, 200),
    "/replica?lag=1kB": (503, 200),
    "/replica?replication_state=streaming": (503, 200),
    "/replica?tag_zone=a": (503, 503),
    "/read-only": (200, 200),
    "/sync": (503, 503),
    "/synchronous": (503, 503),
    "/async": (503, 200),
    "/asynchronous": (503, 200),
    "/quorum": (503, 503),
    "/read-only-sync": (200, 503),
    "/read-only-quorum": (200, 503),
    "/health": (200, 200),
    "/nonsense": (503, 503),
    "//primary": (200, 503),
    "/a%0ab": (503, 503),
}


@pytest.mark.parametrize("path", HEALTH)
def test_health_checks(primary: RestServer, replica: RestServer, path: str) -> None:
    for server, status in zip((primary, replica), HEALTH[path], strict=True):
        reply = get(server, path)
        assert reply.status == status
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.json["state"] == "running"
        for method in ("HEAD", "OPTIONS"):
            bare = ask(server, method, path)
            assert (bare.status, bare.body) == (status, b"")


@pytest.mark.parametrize(
    "name", ["patroni", "cluster", "config", "history", "metrics", "failsafe", "liveness", "readiness"]
)
def test_head_and_options_of_other_paths_are_503(primary: RestServer, name: str) -> None:
    assert ask(primary, "HEAD", f"/{name}").status == 503
    assert ask(primary, "OPTIONS", f"/{name}/x").status == 503


def test_patroni_json_is_what_peers_read(primary: RestServer, replica: RestServer) -> None:
    ours = {"version": "0.1.0", "note": None, "cannot_lead": None, "position_is_proven": True}
    common = {
        "state": "running",
        "postmaster_start_time": "2026-11-21 03:59:27.322518+00:00",
        "server_version": 150020,
        "timeline": 1,
        "dcs_last_seen": 1795233587,
        "database_system_identifier": "7710469456714918895",
    }
    sender = {
        "usename": "replicator", "application_name": "n1", "client_addr": "127.0.0.1", "state": "streaming",
        "sync_state": "async", "sync_priority": 0,
    }  # fmt: skip
    shown = get(primary, "/patroni").json
    ours["version"] = shown["haagent"]["version"]
    assert shown == common | {
        "role": "primary",
        "xlog": {"location": 67108960},
        "replication": [sender],
        "patroni": {"version": "4.1.5", "scope": "faceoff", "name": "n0"},
        "haagent": ours,
    }
    xlog = {
        "received_location": 67108960, "replayed_location": 67108960, "replayed_timestamp": None,
        "paused": False,
    }  # fmt: skip
    assert get(replica, "/patroni").json == common | {
        "role": "replica",
        "xlog": xlog,
        "replication_state": "streaming",
        "patroni": {"version": "4.1.5", "scope": "faceoff", "name": "n1"},
        "haagent": ours,
    }


def test_patroni_json_tells_what_is_special() -> None:
    agent = Agent(
        replace(
            REPLICA,
            cluster=replace(CLUSTER, leader=None, sync=SyncState("n0", ("n1",), 0, 1)),
            settings=Settings(pause=True),
            tags=Tags({"clonefrom": True}),
            pending_restart_reason={"max_connections": ("100", "200")},
            note="pg_rewind 1/3",
            cannot_lead="nofailover",
        )
    )
    with serving(agent) as server:
        shown = get(server, "/patroni").json
        assert shown["sync_standby"] is shown["pause"] is shown["cluster_unlocked"] is True
        assert shown["tags"] == {"clonefrom": True}
        assert shown["pending_restart"] is True
        assert shown["pending_restart_reason"] == {
            "max_connections": {"old_value": "100", "new_value": "200"}
        }
        assert shown["haagent"]["note"] == "pg_rewind 1/3"
        assert shown["haagent"]["cannot_lead"] == "nofailover"


def test_a_closed_epoch_shows_no_position() -> None:
    with serving(Agent(replace(PRIMARY, role="demoted"), leads=False)) as server:
        shown = get(server, "/patroni").json
    assert shown["role"] == "demoted"
    assert "xlog" not in shown


def test_a_silent_postgresql_leaves_role_and_state() -> None:
    with serving(Agent(replace(PRIMARY, sample=None))) as server:
        reply = get(server, "/patroni")
    assert reply.status == 200
    assert (reply.json["role"], reply.json["state"]) == ("primary", "unknown")
    assert not reply.json.keys() & {"xlog", "timeline", "server_version"}


def test_only_peers_get_a_fresh_sample() -> None:
    agent = Agent()
    with serving(agent) as server:
        assert get(server, "/patroni").json["dcs_last_seen"] == 1795233587
        assert agent.calls == []
        assert get(server, "/patroni?peer=n1").json["dcs_last_seen"] == 42
        assert [name for name, _ in agent.calls] == ["refresh"]


def test_cluster_config_and_history() -> None:
    agent = Agent()
    with serving(agent) as server:
        cluster = get(server, "/cluster").json
        assert cluster["scope"] == "faceoff"
        assert [(m["name"], m["role"]) for m in cluster["members"]] == [("n0", "leader"), ("n1", "replica")]
        assert get(server, "/config").json == {"ttl": 30, "postgresql": {"use_pg_rewind": True}}
        row = [1, 67109256, "no recovery target specified", "2026-11-21T04:00:09.220152+00:00", "n1"]
        assert get(server, "/history").json == [row]

        agent.picture = replace(PRIMARY, cluster=replace(CLUSTER, config=None, history=None))
        assert get(server, "/config").status == 502
        assert get(server, "/history").json == []

        agent.dcs_is_up = False
        for path in ("/cluster", "/config"):
            reply = get(server, path)
            assert reply.status == 503
            assert "secret" not in reply.text


def test_liveness_and_readiness_have_no_body() -> None:
    agent = Agent()
    with serving(agent) as server:
        for path in ("/liveness", "/readiness"):
            assert (get(server, path).status, get(server, path).body) == (200, b"")
        agent.leads = False
        agent.picture = replace(PRIMARY, alive_until=0.0)
        for path in ("/liveness", "/readiness?lag=1MB&mode=write"):
            assert (get(server, path).status, get(server, path).body) == (503, b"")


def test_metrics_explain_events_and_dashboard(primary: RestServer) -> None:
    metrics = get(primary, "/metrics")
    assert metrics.headers["Content-Type"] == "text/plain"
    assert 'patroni_primary{scope="faceoff",name="n0"} 1\n' in metrics.text
    assert get(primary, "/explain").json == {"can_lead": True, "rules": []}
    assert get(primary, "/events").json[0]["message"] == "promoted"
    page = get(primary, "/dashboard")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/failsafe", 502),
        ("POST", "/failsafe", 502),
        ("POST", "/mpp", 501),
        ("POST", "/citus", 501),
        ("POST", "/nonsense", 501),
        ("PUT", "/patroni", 501),
        ("DELETE", "/config", 501),
        ("PATCH", "/", 501),
        ("BREW", "/coffee", 501),
        ("TRACE", "/", 501),
        ("GET", "/mpp", 503),
        ("POST", "/sigterm", 202),
    ],
)
def test_paths_with_a_fixed_answer(primary: RestServer, method: str, path: str, status: int) -> None:
    assert ask(primary, method, path, b"{}" if method in ("POST", "PUT", "PATCH") else None).status == status


def test_a_fault_of_the_agent_is_a_plain_500(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()

    def broken() -> Answer:
        raise KeyError("missing")

    agent.answers["reload"] = broken
    with serving(agent) as server:
        reply = ask(server, "POST", "/reload")
        assert (reply.status, reply.text) == (500, "internal error")
        assert get(server, "/primary").status == 200
    assert "POST /reload failed" in caplog.text


def test_headers_of_answers() -> None:
    extra = {"X-Frame-Options": "DENY"}
    for tokens, server_header in (("Minimal", "Patroni/4.1.5"), ("ProductOnly", "Patroni")):
        with serving(
            server_tokens=tokens, http_extra_headers=extra, https_extra_headers={"X-S": "1"}
        ) as server:
            reply = get(server, "/primary")
            assert reply.headers["Server"] == server_header
            assert reply.headers["X-Frame-Options"] == "DENY"
            assert reply.headers["X-S"] is None
    with serving() as server:
        assert get(server, "/primary").headers["Server"].startswith("haagent/")


# --- changing -----------------------------------------------------------------------------------

FUTURE = "2099-01-01T00:00:00+00:00"
BAD_TIME = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (
            "/switchover",
            {"candidate": "n1"},
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            "/switchover",
            {"leader": "n0", "candidate": "n0"},
            400,
            "Switchover target and source are the same",
        ),
        ("/switchover", {"leader": "n0", "member": "n0"}, 400, "Switchover target and source are the same"),
        ("/switchover", {"leader": ["n0"]}, 400, "leader: must be a text"),
        ("/switchover", {"leader": "n0", "scheduled_at": FUTURE}, 400, "not supported yet: scheduled_at"),
        ("/switchover", {"leader": "n0", "scheduled_at": "nonsense"}, 422, BAD_TIME),
        (
            "/switchover",
            {"leader": "n0", "scheduled_at": "2020-01-01T00:00:00+00:00"},
            422,
            "Cannot schedule switchover in the past",
        ),
        (
            "/switchover",
            {"leader": "n0", "scheduled_at": "2099-01-01T00:00:00"},
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        ("/failover", {"leader": "n0"}, 400, "Failover could be performed only to a specific candidate"),
        ("/failover", {"candidate": "n1", "scheduled_at": FUTURE}, 400, "Failover can't be scheduled"),
        ("/restart", {"bogus": 1}, 400, "Unknown filter for the scheduled restart: bogus"),
        ("/restart", {"role": "replica"}, 400, "not supported yet: role"),
        ("/restart", {"restart_pending": False}, 400, "not supported yet: restart_pending"),
        ("/restart", {"postgres_version": "15.2"}, 400, "not supported yet: postgres_version"),
        ("/restart", {"timeout": 5}, 400, "not supported yet: timeout"),
        ("/restart", {"schedule": FUTURE}, 400, "not supported yet: schedule"),
        ("/restart", {"schedule": "2020-01-01T00:00Z"}, 422, "Cannot schedule restart in the past"),
        ("/restart", {"schedule": "nonsense"}, 422, BAD_TIME),
        ("/reinitialize", {"force": "yes"}, 400, "force: must be true or false"),
    ],
)
def test_bodies_refused_before_the_agent_is_asked(path: str, body: Any, status: int, text: str) -> None:
    agent = Agent()
    with serving(agent) as server:
        reply = ask(server, "POST", path, body)
    assert (reply.status, reply.text) == (status, text)
    assert agent.calls == []


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (
            "/switchover",
            {"leader": "n0"},
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
        (
            "/switchover",
            {"leader": "n0", "scheduled_at": FUTURE},
            400,
            "Can't schedule switchover in the paused state",
        ),
        ("/restart", {"schedule": FUTURE}, 500, "Can't schedule restart in the paused state"),
    ],
)
def test_bodies_refused_while_paused(path: str, body: Any, status: int, text: str) -> None:
    agent = Agent(replace(PRIMARY, settings=Settings(pause=True)))
    with serving(agent) as server:
        reply = ask(server, "POST", path, body)
    assert (reply.status, reply.text) == (status, text)
    assert agent.calls == []


@pytest.mark.parametrize(
    ("method", "path", "body", "call"),
    [
        ("POST", "/switchover", {"leader": "n0"}, ("switchover", {"leader": "n0"})),
        (
            "POST",
            "/switchover",
            {"leader": "n0", "candidate": None, "member": "n1", "scheduled_at": None},
            ("switchover", {"leader": "n0", "candidate": "n1"}),
        ),
        (
            "POST",
            "/switchover",
            {"leader": "n0", "candidate": "n1", "scheduled_at": "now"},
            ("switchover", {"leader": "n0", "candidate": "n1"}),
        ),
        ("POST", "/failover", {"candidate": "n1"}, ("failover", {"candidate": "n1"})),
        (
            "POST",
            "/failover",
            {"leader": "n0", "candidate": "n1"},
            ("switchover", {"leader": "n0", "candidate": "n1"}),
        ),
        ("POST", "/restart", None, ("restart", {})),
        ("POST", "/restart", b"", ("restart", {})),
        ("POST", "/restart", {}, ("restart", {})),
        ("POST", "/restart", {"schedule": "now"}, ("restart", {})),
        ("POST", "/reinitialize", None, ("reinitialize", {"force": False, "from_leader": False})),
        ("POST", "/reinitialize", {"force": True}, ("reinitialize", {"force": True, "from_leader": False})),
        ("POST", "/reload", None, ("reload", None)),
        ("PATCH", "/config", {"ttl": None}, ("patch_config", {"ttl": None})),
        ("PUT", "/config", {"ttl": 20}, ("put_config", {"ttl": 20})),
    ],
)
def test_calls_reach_the_agent(method: str, path: str, body: Any, call: tuple[str, Any]) -> None:
    agent = Agent()
    with serving(agent) as server:
        reply = ask(server, method, path, body)
    assert (reply.status, reply.text) == (200, call[0])
    assert agent.calls == [call]


def test_answers_of_the_agent_are_text_or_json() -> None:
    agent = Agent()
    agent.answers["patch_config"] = lambda: Answer(200, {"ttl": 20})
    agent.answers["reload"] = lambda: Answer(202, "reload scheduled")
    with serving(agent) as server:
        patched = ask(server, "PATCH", "/config", {"ttl": 20})
        assert (patched.json, patched.headers["Content-Type"]) == ({"ttl": 20}, "application/json")
        reloaded = ask(server, "POST", "/reload")
        assert (reloaded.status, reloaded.text) == (202, "reload scheduled")
        assert reloaded.headers["Content-Type"] == "text/html"


def test_nothing_scheduled_can_be_deleted(primary: RestServer) -> None:
    for path, text in (
        ("/switchover", "no switchover is scheduled"),
        ("/restart", "no restarts are scheduled"),
    ):
        reply = ask(primary, "DELETE", path)
        assert (reply.status, reply.text) == (404, text)


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"null", b"3", b"{", b"", b"\xff\xfe", b'{"ttl": NaN}', b"[" * 100_000]
)
def test_a_needed_body_must_be_an_object_with_content(body: bytes) -> None:
    agent = Agent()
    with serving(agent) as server:
        for method, path in (
            ("PATCH", "/config"),
            ("PUT", "/config"),
            ("POST", "/switchover"),
            ("POST", "/failover"),
        ):
            assert ask(server, method, path, body).status == 400
    assert agent.calls == []


def test_a_needed_body_must_be_announced(primary: RestServer) -> None:
    assert ask(primary, "POST", "/switchover").status == 411
    assert ask(primary, "PATCH", "/config").status == 411
    chunked = b"POST /switchover HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert exchange(primary, chunked).startswith(b"HTTP/1.1 411 ")


def test_bodies_have_a_limit() -> None:
    agent = Agent()
    with serving(agent) as server:
        assert ask(server, "PATCH", "/config", b" " * (1024 * 1024 + 1)).status == 413
        assert ask(server, "PATCH", "/config", b" " * (8 * 1024 * 1024)).status == 413
        almost = b'{"x":"' + b"y" * (1024 * 1024 - 100) + b'"}'
        assert ask(server, "PATCH", "/config", almost).status == 200
        assert exchange(
            server, b"PATCH /config HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n{"
        ).startswith(b"HTTP/1.1 413 ")
    assert [name for name, _ in agent.calls] == ["patch_config"]


# --- access -------------------------------------------------------------------------------------


def test_changes_need_the_password_and_reads_do_not() -> None:
    agent = Agent()
    with serving(agent, username="admin", password="sécret") as server:
        for path in ("/primary", "/patroni", "/cluster", "/config", "/metrics", "/history", "/explain"):
            assert get(server, path).status == 200
        nobody = ask(server, "POST", "/reload")
        assert (nobody.status, nobody.text) == (401, "no auth header received")
        assert nobody.headers["WWW-Authenticate"] == 'Basic realm="Patroni"'
        wrong = (
            basic("admin", "secret"), basic("", ""), basic("admin", ""), "Basic", "Basic !!!", "Bearer x",
            "x" * 4000,
        )  # fmt: skip
        for header in wrong:
            refused = ask(server, "POST", "/reload", Authorization=header)
            assert (refused.status, refused.text) == (401, "not authenticated")
            assert refused.headers["WWW-Authenticate"] == 'Basic realm="Patroni"'
        for method, path in (
            ("DELETE", "/restart"),
            ("PUT", "/config"),
            ("POST", "/failsafe"),
            ("POST", "/sigterm"),
        ):
            assert ask(server, method, path).status == 401
        assert agent.calls == []
        assert ask(server, "POST", "/reload", Authorization=basic("admin", "sécret")).status == 200


def test_the_password_is_asked_for_before_the_body() -> None:
    with serving(username="admin", password="secret") as server:
        head = b"PATCH /config HTTP/1.1\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        answer = exchange(server, head)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"100 Continue" not in answer


def test_a_client_may_wait_for_the_go_ahead() -> None:
    agent = Agent()
    with (
        serving(agent) as server,
        dial(server, b"PATCH /config HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n") as sock,
    ):
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'{"ttl":9}')
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert agent.calls == [("patch_config", {"ttl": 9})]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"allowlist": ("127.0.0.1",)}, 200),
        ({"allowlist": ("10.0.0.0/8", "127.0.0.0/8")}, 200),
        ({"allowlist": ("no.such.host.invalid", "localhost")}, 200),
        ({"allowlist": ("10.0.0.0/8", "::1")}, 403),
        # n0 has its API on 127.0.0.1.
        ({"allowlist_include_members": True}, 200),
        ({"allowlist": ("10.0.0.1",), "allowlist_include_members": True}, 200),
    ],
)
def test_changes_need_an_allowed_address(changes: dict[str, Any], status: int) -> None:
    with serving(**changes) as server:
        reply = ask(server, "POST", "/reload")
        assert reply.status == status
        if status == 403:
            assert reply.text == "Access is denied"
        assert get(server, "/primary").status == 200


def test_strangers_are_denied_where_only_members_may() -> None:
    agent = Agent(replace(PRIMARY, cluster=replace(CLUSTER, members=CLUSTER.members[1:])))
    with serving(agent, allowlist_include_members=True) as server:
        assert ask(server, "POST", "/reload").status == 403
        agent.picture = PRIMARY
        assert ask(server, "POST", "/reload").status == 200
        assert ask(server, "POST", "/failsafe", {"name": "n0"}).status == 403


# --- requests off the beaten track --------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1 x\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\n\r\n", 400),
        (b"GET primary HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
        (b"POST /reload HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /reload HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST /reload HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"x" * 100_000, 431),
        (b"GET /primary HTTP/1.0\r\n\r\n", 200),
        (b"GET /primary HTTP/1.0\n\n", 200),
        (b"\r\n\r\nGET /primary HTTP/1.0\r\n\r\n", 200),
        (b"GET http://proxy.example/primary?lag=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET /primary HTTP/1.1\r\nHost: b[d h*st\r\nConnection: close\r\n\r\n", 200),
        (b"GET /primary HTTP/1.1\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", 200),
        (b"OPTIONS * HTTP/1.0\r\n\r\n", 503),
        (b"OPTIONS / HTTP/1.0\r\n\r\n", 200),
        (b"GET /%ff%00%0d%0aX-Evil:1 HTTP/1.0\r\n\r\n", 503),
    ],
)
def test_odd_requests_get_a_clear_answer(primary: RestServer, data: bytes, status: int) -> None:
    answer = exchange(primary, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Traceback" not in answer
    assert b"\nX-Evil" not in answer.partition(b"\r\n\r\n")[0]


def test_headers_with_underscores_cannot_pose_as_others() -> None:
    with serving(username="a", password="b") as server:
        assert ask(server, "POST", "/reload", Http_Authorization=basic("a", "b")).status == 401
        assert ask(server, "POST", "/reload", authorization_=basic("a", "b")).status == 401


def test_a_connection_serves_many_requests() -> None:
    with serving() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        connection.connect()
        socket_used = connection.sock
        for path, status in (
            ("/primary", 200),
            ("/replica", 503),
            ("/patroni", 200),
            ("/nonsense", 503),
        ) * 20:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == status
        connection.request("PATCH", "/config", body=b'{"ttl": 20}')
        assert connection.getresponse().read() == b"patch_config"
        for method in ("HEAD", "OPTIONS"):
            connection.request(method, "/primary")
            assert connection.getresponse().read() == b""
        assert connection.sock is socket_used
        connection.close()


def test_requests_may_be_sent_ahead(primary: RestServer) -> None:
    first = b'PATCH /config HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"ttl":9}'
    answers = exchange(primary, first + b"GET /replica HTTP/1.1\r\n\r\nGET /primary HTTP/1.0\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answers) == [b"200", b"503", b"200"]


def test_many_clients_at_once() -> None:
    with serving() as server:

        def client(number: int) -> int:
            replies = [get(server, "/primary" if number % 2 else "/replica") for _ in range(10)]
            return sum(reply.status == (200 if number % 2 else 503) for reply in replies)

        with ThreadPoolExecutor(20) as pool:
            assert sum(pool.map(client, range(40))) == 400


# --- hostile clients ----------------------------------------------------------------------------

HALVES = (
    b"",
    b"GET /primary",
    b"GET /primary HTTP/1.1\r\nX-Slow: ",
    b"POST /switchover HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{",
)


def assert_answers(server: RestServer, times: int = 10) -> None:
    for _ in range(times):
        assert ask(server, "GET", "/primary", timeout_s=ANSWER_S).status == 200


def test_hundreds_of_half_sent_requests_delay_nobody() -> None:
    with serving() as server, contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(dial(server, HALVES[number % len(HALVES)]))
            if number % 30 == 0:
                assert_answers(server, 1)
        assert_answers(server)


def test_at_the_cap_the_oldest_unfinished_request_gives_way() -> None:
    with serving(limits=Limits(connections=16)) as server, contextlib.ExitStack() as stack:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        stack.callback(kept.close)
        kept.request("GET", "/primary")
        kept.getresponse().read()
        slow = [stack.enter_context(dial(server, HALVES[n % 3])) for n in range(60)]
        assert_answers(server)
        assert read_to_end(slow[0]) == b""
        kept.request("GET", "/primary")
        assert kept.getresponse().status == 200


def test_a_running_call_is_never_given_up() -> None:
    agent, started, finish = Agent(), threading.Event(), threading.Event()

    def slowly() -> Answer:
        started.set()
        finish.wait(DEADLINE_S)
        return Answer(200, "done")

    agent.answers["switchover"] = slowly
    with (
        serving(agent, Limits(connections=8)) as server,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(1) as pool,
    ):
        operation = pool.submit(ask, server, "POST", "/switchover", {"leader": "n0"})
        assert started.wait(DEADLINE_S)
        for number in range(40):
            stack.enter_context(dial(server, HALVES[number % len(HALVES)]))
        assert_answers(server)
        finish.set()
        assert operation.result(DEADLINE_S).text == "done"


def test_a_client_that_does_not_read_gives_way() -> None:
    agent = Agent()
    agent.explanation = {"filler": "x" * 32_000_000}
    with serving(agent, Limits(connections=1)) as server:
        frozen = dial(server, b"GET /explain HTTP/1.1\r\n\r\n")

        def others_are_served() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return get(server, "/primary").status == 200
            return False

        wait_for(others_are_served, DEADLINE_S, "an answer beside the frozen reader")
        with frozen:
            assert len(read_to_end(frozen)) < 32_000_000


def rest_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rest"]


def test_every_wait_for_a_client_ends() -> None:
    agent = Agent()
    agent.explanation = {"filler": "x" * 32_000_000}
    limits = Limits(head_s=0.3, idle_s=0.3, body_s=0.3, send_s=0.3, linger_s=0.3)
    clients = (*HALVES, b"GET /primary HTTP/1.1\r\n\r\n", b"GET /explain HTTP/1.1\r\n\r\n")
    with serving(agent, limits) as server, contextlib.ExitStack() as stack:
        before = set(rest_threads())
        for data in clients:
            stack.enter_context(dial(server, data))
        wait_for(lambda: len(set(rest_threads()) - before) == 0, DEADLINE_S, "all workers are free")
        assert_answers(server, 1)


def test_a_body_that_stops_midway_is_a_timeout() -> None:
    agent = Agent()
    with serving(agent, Limits(body_s=0.3)) as server:
        answer = exchange(server, b"POST /switchover HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert agent.calls == []


# --- listening ----------------------------------------------------------------------------------


def test_a_taken_port_is_a_clear_error() -> None:
    with serving() as server:
        second = RestServer(Agent(), settings(listen=HostPort("127.0.0.1", server.port)))
        with pytest.raises(
            RestError, match=rf"restapi.listen: 127.0.0.1:{server.port}: another process listens"
        ):
            second.start()
        second.stop()


def test_an_unknown_host_is_a_clear_error() -> None:
    for host in ("no.such.host.invalid", "203.0.113.77"):
        with pytest.raises(RestError, match=r"restapi\.listen: "):
            RestServer(Agent(), settings(listen=HostPort(host, 0))).start()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["*", "", "0.0.0.0", "localhost"])
def test_hosts_that_include_ipv4_loopback(host: str) -> None:
    with serving(listen=HostPort(host, 0), allowlist=("127.0.0.1",)) as server:
        assert ask(server, "POST", "/reload").status == 200


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this host")
@pytest.mark.parametrize("host", ["*", "::1", "::"])
def test_hosts_that_include_ipv6_loopback(host: str) -> None:
    with serving(listen=HostPort(host, 0), allowlist=("::1",)) as server:
        connection = http.client.HTTPConnection("::1", server.port, timeout=DEADLINE_S)
        connection.request("POST", "/reload")
        assert connection.getresponse().status == 200
        connection.close()


def test_stop_frees_the_port_and_ends_every_connection() -> None:
    server = RestServer(Agent(), settings())
    server.start()
    port = server.port
    waiting = dial(server, b"GET /pri")
    server.stop()
    with waiting:
        assert read_to_end(waiting) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    with serving(listen=HostPort("127.0.0.1", port)) as again:
        assert_answers(again, 1)


def test_stop_lets_a_running_call_answer() -> None:
    agent, started, stopping = Agent(), threading.Event(), threading.Event()

    def slowly() -> Answer:
        started.set()
        stopping.wait(DEADLINE_S)
        return Answer(200, "done")

    agent.answers["restart"] = slowly
    server = RestServer(agent, settings())
    server.start()
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(ask, server, "POST", "/restart")
        assert started.wait(DEADLINE_S)
        stop = pool.submit(server.stop, DEADLINE_S)
        stopping.set()
        assert call.result(DEADLINE_S).text == "done"
        stop.result(DEADLINE_S)


def test_reload_takes_over_access_rules_and_address() -> None:
    with serving() as server:
        assert ask(server, "POST", "/reload").status == 200
        server.reload(settings(listen=HostPort("127.0.0.1", 0), username="a", password="b"))
        assert ask(server, "POST", "/reload").status == 401
        server.reload(settings(listen=HostPort("localhost", 0)))
        assert ask(server, "POST", "/reload").status == 200
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(RestError):
            server.reload(settings(listen=HostPort("127.0.0.1", other.getsockname()[1])))
        assert ask(server, "POST", "/reload").status == 200


# --- TLS ----------------------------------------------------------------------------------------


class Certificates:
    """An authority, certificates it signed, and one it did not."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca = self._make("ca")[0]
        self.server, self.server_key = self._make("server", signed=True)
        self.other_server, self.other_server_key = self._make("other", signed=True)
        self.client = self._make("client", signed=True)
        self.stranger = self._make("stranger")
        self.locked_key = str(directory / "locked.key")
        self._openssl(
            "ec", "-in", self.server_key, "-aes256", "-passout", "pass:geheim", "-out", self.locked_key
        )

    def _make(self, name: str, signed: bool = False) -> tuple[str, str]:
        certificate, key = str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key")
        by_ca = ("-CA", str(self._directory / "ca.pem"), "-CAkey", str(self._directory / "ca.key"))
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", key, "-out", certificate,
            *(by_ca if signed else ()),
        )  # fmt: skip
        return certificate, key

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=DEADLINE_S)

    def ask(
        self, server: RestServer, method: str = "GET", client: tuple[str, str] | None = None
    ) -> tuple[int, int]:
        """(status, serial number of the server's certificate)."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(*client)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.port, timeout=DEADLINE_S, context=context
        )
        try:
            connection.request(method, "/reload" if method == "POST" else "/primary")
            assert isinstance(connection.sock, ssl.SSLSocket)
            peer = connection.sock.getpeercert()
            assert peer
            return connection.getresponse().status, int(str(peer["serialNumber"]), 16)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> dict[str, Any]:
    return {"certfile": certificates.server, "keyfile": certificates.server_key, "cafile": certificates.ca}


def test_https(certificates: Certificates, tls: dict[str, Any]) -> None:
    with serving(**tls, https_extra_headers={"X-S": "1"}) as server:
        assert certificates.ask(server)[0] == 200
        assert certificates.ask(server, "POST")[0] == 200
        assert exchange(server, b"GET /primary HTTP/1.0\r\n\r\n")[:5] != b"HTTP/"


def test_hundreds_of_silent_tls_clients_delay_nobody(certificates: Certificates, tls: dict[str, Any]) -> None:
    with serving(**tls) as server, contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(dial(server, b"\x16\x03\x01\x02\x00\x01"[: number % 6]))
        for _ in range(5):
            assert certificates.ask(server)[0] == 200


def test_optional_client_certificates_are_for_changes(
    certificates: Certificates, tls: dict[str, Any]
) -> None:
    with serving(**tls, verify_client="optional") as server:
        assert certificates.ask(server)[0] == 200
        assert certificates.ask(server, "POST")[0] == 403
        assert certificates.ask(server, "POST", certificates.client)[0] == 200
        with pytest.raises(OSError):
            certificates.ask(server, "GET", certificates.stranger)


def test_required_client_certificates_are_for_everything(
    certificates: Certificates, tls: dict[str, Any]
) -> None:
    with serving(**tls, verify_client="required") as server:
        for client in (None, certificates.stranger):
            with pytest.raises(OSError):
                certificates.ask(server, "GET", client)
        assert certificates.ask(server, "GET", certificates.client)[0] == 200
        assert certificates.ask(server, "POST", certificates.client)[0] == 200


def test_certificates_are_read_again_on_reload(
    certificates: Certificates, tls: dict[str, Any], tmp_path: Path
) -> None:
    paths: dict[str, Any] = {"certfile": str(tmp_path / "cert.pem"), "keyfile": str(tmp_path / "cert.key")}

    def install(certificate: str, key: str) -> None:
        for source, target in ((certificate, paths["certfile"]), (key, paths["keyfile"])):
            Path(target).write_bytes(Path(source).read_bytes())

    install(certificates.server, certificates.server_key)
    with serving(**paths) as server:
        first = certificates.ask(server)[1]
        install(certificates.other_server, certificates.other_server_key)
        assert certificates.ask(server)[1] == first
        server.reload(settings(**paths))
        second = certificates.ask(server)[1]
        assert second != first
        Path(paths["certfile"]).write_text("no certificate")
        with pytest.raises(RestError, match=r"restapi\.certfile: "):
            server.reload(settings(**paths))
        assert certificates.ask(server)[1] == second


def test_a_protected_key_needs_its_password(certificates: Certificates) -> None:
    locked: dict[str, Any] = {"certfile": certificates.server, "keyfile": certificates.locked_key}
    with serving(**locked, keyfile_password="geheim") as server:
        assert certificates.ask(server)[0] == 200
    for password in (None, "falsch"):
        with pytest.raises(RestError, match=r"restapi\.certfile: ") as caught:
            RestServer(Agent(), settings(**locked, keyfile_password=password))
        assert "falsch" not in str(caught.value)


def test_bad_tls_settings_are_clear_errors(tls: dict[str, Any], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    bad = [
        ({"certfile": missing}, f"restapi.certfile: cannot read {missing}: No such file"),
        ({"ciphers": "NONSENSE"}, "restapi.ciphers: 'NONSENSE' selects no cipher"),
        (
            {"cafile": missing, "verify_client": "required"},
            f"restapi.cafile: cannot use {missing}: No such file",
        ),
        (
            {"verify_client": "sometimes"},
            "restapi.verify_client: 'sometimes' is not none, optional or required",
        ),
    ]
    for changes, message in bad:
        with pytest.raises(RestError) as caught:
            RestServer(Agent(), settings(**{**tls, **changes}))
        assert str(caught.value).startswith(message)
        assert os.linesep not in str(caught.value)
