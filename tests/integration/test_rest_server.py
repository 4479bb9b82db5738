"""The REST server over real sockets: what can be read from it, and where it listens."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dcs.records import (
    SyncState,
    Tags,
)
from haagent.api import Answer, RestError, RestServer
from haagent.config.values import HostPort
from haagent.core.settings import Settings
from tests.support.rest import (
    CLUSTER,
    DEADLINE_S,
    PRIMARY,
    REPLICA,
    Agent,
    ask,
    dial,
    get,
    read_to_end,
    serving,
    settings,
)


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
            failsafe_active=True,
            pending_restart_reason={"max_connections": ("100", "200")},
            note="pg_rewind 1/3",
            cannot_lead="nofailover",
            scheduled_restart={"schedule": "2099-01-01T00:00:00+00:00"},
            queued_log_records=7,
            lost_log_records=3,
        )
    )
    with serving(agent) as server:
        shown = get(server, "/patroni").json
        assert " ".join(shown) == (
            "state postmaster_start_time role server_version xlog sync_standby timeline replication_state "
            "failsafe_mode_is_active pause cluster_unlocked dcs_last_seen tags database_system_identifier "
            "pending_restart pending_restart_reason patroni scheduled_restart logger_queue_size "
            "logger_records_lost haagent"
        )
        assert shown["sync_standby"] is shown["pause"] is shown["cluster_unlocked"] is True
        assert shown["failsafe_mode_is_active"] is True
        assert shown["tags"] == {"clonefrom": True}
        assert shown["pending_restart"] is True
        assert shown["pending_restart_reason"] == {
            "max_connections": {"old_value": "100", "new_value": "200"}
        }
        assert (shown["logger_queue_size"], shown["logger_records_lost"]) == (7, 3)
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

        assert get(server, "/failsafe").status == 502
        addresses = {"n0": "http://127.0.0.1:21200/patroni"}
        agent.picture = replace(PRIMARY, cluster=replace(CLUSTER, failsafe=addresses))
        assert get(server, "/failsafe").json == addresses

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


# --- listening --------------------------------------------------------------------------------------


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
        assert get(again, "/primary").status == 200


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
