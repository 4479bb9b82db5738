"""Calls that change something: their bodies, and who may make them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from haagent.api import Answer, RestServer
from haagent.api.body import MAX_LARGE_BODIES
from haagent.core.restart import ALWAYS, RestartWish
from haagent.core.settings import Settings
from tests.support.rest import (
    CLUSTER,
    PRIMARY,
    Agent,
    ask,
    basic,
    dial,
    exchange,
    get,
    serving,
)
from tests.support.wait import wait_for


@pytest.fixture(scope="module")
def primary() -> Iterator[RestServer]:
    with serving(Agent()) as server:
        yield server


FUTURE = "2099-01-01T00:00:00+00:00"
FUTURE_S = 4070908800.0
BAD_TIMEOUT = "Timeout should be a positive number of seconds"
BAD_TIME = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601"
SAME = "Switchover target and source are the same"
NO_ZONE = "Timezone information is mandatory for the scheduled restart"
BAD_ROLE = "PostgreSQL role should be either primary, standby_leader, or replica"
BAD_VERSION = "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: "


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
        ("/switchover", {"leader": "n0", "candidate": "n0", "scheduled_at": FUTURE}, 400, SAME),
        ("/switchover", {"leader": ["n0"]}, 400, "leader: must be a text"),
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
        ("/restart", {"<b>": 1}, 400, "Unknown filter for the scheduled restart: &lt;b&gt;"),
        ("/restart", {"role": "leader"}, 400, BAD_ROLE),
        ("/restart", {"role": ["replica"]}, 400, BAD_ROLE),
        ("/restart", {"postgres_version": "new"}, 400, "Invalid PostgreSQL version: new"),
        ("/restart", {"postgres_version": 15.2}, 400, BAD_VERSION + "15.2"),
        ("/restart", {"postgres_version": "9.6"}, 400, BAD_VERSION + "9.6"),
        ("/restart", {"timeout": 0}, 400, BAD_TIMEOUT),
        ("/restart", {"timeout": "5 parsecs"}, 400, BAD_TIMEOUT),
        ("/restart", {"schedule": "2020-01-01T00:00Z"}, 422, "Cannot schedule restart in the past"),
        ("/restart", {"schedule": "nonsense"}, 422, BAD_TIME),
        ("/restart", {"schedule": "2099-01-01T00:00:00+99:99"}, 422, BAD_TIME),
        ("/restart", {"schedule": "2099-01-01 10:00 CET"}, 400, NO_ZONE),
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
        (
            "POST",
            "/switchover",
            {"leader": "n0", "scheduled_at": "2099-01-01 02:00 +0200"},
            ("switchover", {"leader": "n0", "scheduled_at": "2099-01-01T02:00:00+02:00"}),
        ),
        ("DELETE", "/switchover", None, ("delete_switchover", None)),
        ("POST", "/failover", {"candidate": "n1"}, ("failover", {"candidate": "n1"})),
        (
            "POST",
            "/failover",
            {"leader": "n0", "candidate": "n1"},
            ("switchover", {"leader": "n0", "candidate": "n1"}),
        ),
        ("POST", "/restart", None, ("restart", ALWAYS)),
        ("POST", "/restart", b"", ("restart", ALWAYS)),
        ("POST", "/restart", {}, ("restart", ALWAYS)),
        ("POST", "/restart", {"schedule": "now"}, ("restart", ALWAYS)),
        (
            "POST",
            "/restart",
            {"role": "replica", "postgres_version": "17.5", "restart_pending": False, "timeout": None},
            ("restart", RestartWish("replica", 170005, True)),
        ),
        ("POST", "/restart", {"postgres_version": "9.6.3"}, ("restart", RestartWish(None, 90603))),
        ("POST", "/restart", {"timeout": "2min"}, ("restart", RestartWish(timeout_s=120))),
        (
            "POST",
            "/restart",
            {"timeout": 5, "role": "replica", "restart_pending": 0, "schedule": "2099-01-01 02:00 +0200"},
            (
                "restart",
                RestartWish(
                    "replica",
                    None,
                    True,
                    5,
                    FUTURE_S,
                    {
                        "timeout": 5,
                        "role": "replica",
                        "restart_pending": 0,
                        "schedule": "2099-01-01T02:00:00+02:00",
                    },
                ),
            ),
        ),
        ("DELETE", "/restart", None, ("delete_restart", None)),
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


def test_a_question_in_failsafe_mode_reaches_the_agent_and_its_answer_carries_headers() -> None:
    agent = Agent(replace(PRIMARY, settings=replace(PRIMARY.settings, failsafe_mode=True)))
    agent.answers["failsafe"] = lambda: Answer(200, "Accepted", {"lsn": "42"})
    with serving(agent) as server:
        assert ask(server, "POST", "/failsafe").status == 411
        assert agent.calls == []
        reply = ask(server, "POST", "/failsafe", {"name": "n0"})
    assert (reply.status, reply.text, reply.headers["lsn"]) == (200, "Accepted", "42")
    assert agent.calls == [("failsafe", {"name": "n0"})]


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


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b"3",
        b"{",
        b"",
        b"\xff\xfe",
        b'{"ttl": NaN}',
        b"[" * 100_000,
        b'{"leader": "n0", "candidate": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"ttl": 1e999}',
        b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
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
    for method, path in (("POST", "/switchover"), ("PATCH", "/config"), ("POST", "/mpp")):
        assert ask(primary, method, path).status == 411


def test_a_body_of_unknown_length_is_not_taken_for_none() -> None:
    agent = Agent()
    with serving(agent) as server:
        for path in ("/switchover", "/restart", "/reinitialize"):
            chunks = b'1d\r\n{"leader": "n0", "role": "x"}\r\n0\r\n\r\n'
            head = f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            assert exchange(server, head + chunks).startswith(b"HTTP/1.1 411 ")
    assert agent.calls == []


MPP_EVENT = {"type": "before_promote", "group": 1, "leader": "w1", "timeout": 30, "cooldown": 10}


def test_what_citus_workers_tell_is_heard_and_ignored() -> None:
    agent = Agent()
    with serving(agent, username="admin", password="secret", allowlist=("127.0.0.1",)) as server:
        told = ask(server, "POST", "/mpp", MPP_EVENT)
        assert (told.status, told.text) == (200, "OK")
        assert ask(server, "POST", "/citus", MPP_EVENT).status == 401
        assert ask(server, "POST", "/citus", MPP_EVENT, Authorization=basic("admin", "secret")).text == "OK"
        assert ask(server, "POST", "/mpp", {}).status == 400
        # Anybody may send it, so it may cost next to nothing.
        assert ask(server, "POST", "/mpp", b" " * 20_000).status == 413
    assert agent.calls == []


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


def test_few_large_bodies_are_read_at_a_time() -> None:
    agent, large = Agent(), b'{"x":"' + b"y" * 100_000 + b'"}'
    announced = b"PATCH /config HTTP/1.1\r\nContent-Length: 100008\r\n\r\n{"
    with serving(agent) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(dial(server, announced)) for _ in range(MAX_LARGE_BODIES)]
        wait_for(lambda: ask(server, "PATCH", "/config", large).status == 503, 20, "a large body is refused")
        assert ask(server, "PATCH", "/config", {"ttl": 20}).status == 200
        assert get(server, "/primary").status == 200
        slow[0].close()
        wait_for(lambda: ask(server, "PATCH", "/config", large).status == 200, 20, "a large body is read")


# --- access -----------------------------------------------------------------------------------------


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
        for length in (b"1000000", b"99999999999999999"):
            for expect in (b"", b"Expect: 100-continue\r\n"):
                head = b"PATCH /config HTTP/1.1\r\nContent-Length: " + length + b"\r\n" + expect + b"\r\n"
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
