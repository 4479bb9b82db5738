"""What waits in the REST server does not keep others waiting."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from haagent.api.app import MAX_OPERATIONS, MAX_STORE_READS
from haagent.api.connection import Limits
from tests.support.rest import ANSWER_S, DEADLINE_S, Agent, ask, dial, get, serving
from tests.support.wait import wait_for

#: A request that does not give its turn back would hold all others up.
PATIENT = Limits(turn_s=10 * DEADLINE_S)


class HangingAgent(Agent):
    """One of its calls hangs until it is released."""

    def __init__(self, hanging: str) -> None:
        super().__init__()
        self.entered, self.release = threading.Semaphore(0), threading.Event()
        self._hanging = hanging

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name != self._hanging or self.release.is_set():
            return found

        def hang(*arguments: Any) -> Any:
            self.entered.release()
            self.release.wait(DEADLINE_S)
            return found(*arguments)

        return hang


SLOW_CALLS: list[tuple[str, str, str, Any]] = [
    ("refresh", "GET", "/patroni?peer=n1", None),
    ("read_cluster", "GET", "/cluster", None),
    ("read_cluster", "GET", "/config", None),
    ("explain", "GET", "/explain", None),
    ("switchover", "POST", "/switchover", {"leader": "n0"}),
    ("failover", "POST", "/failover", {"candidate": "n1"}),
    ("restart", "POST", "/restart", None),
    ("reinitialize", "POST", "/reinitialize", None),
    ("reload", "POST", "/reload", None),
    ("patch_config", "PATCH", "/config", {"ttl": 20}),
    ("put_config", "PUT", "/config", {"ttl": 20}),
    ("delete_switchover", "DELETE", "/switchover", None),
    ("delete_restart", "DELETE", "/restart", None),
]


@pytest.mark.parametrize(("call", "method", "path", "body"), SLOW_CALLS)
def test_calls_that_take_long_hold_nobody_up(call: str, method: str, path: str, body: Any) -> None:
    agent = HangingAgent(call)
    with serving(agent, PATIENT) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, method, path, body)
        assert agent.entered.acquire(timeout=DEADLINE_S)
        assert get(server, "/primary").status == 200
        agent.release.set()
        assert slow.result(DEADLINE_S).status == 200


def test_a_body_that_does_not_come_holds_nobody_up() -> None:
    announced = b"POST /restart HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
    with serving(Agent(), PATIENT) as server, dial(server, announced):
        for _ in range(3):
            assert get(server, "/primary").status == 200


def test_a_request_that_hangs_in_computing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    agent = HangingAgent("published")
    with serving(agent) as server, ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(get, server, "/primary")
        assert agent.entered.acquire(timeout=DEADLINE_S)
        assert get(server, "/openapi.json").status == 200
        agent.release.set()
        assert hanging.result(DEADLINE_S).status == 200
        assert get(server, "/primary").status == 200
    assert "the others go on without it" in caplog.text


def test_a_crowd_that_reads_the_store_is_no_crowd_at_the_store() -> None:
    agent = HangingAgent("read_cluster")
    with serving(agent) as server, ThreadPoolExecutor(MAX_STORE_READS + 1) as pool:
        crowd = [pool.submit(get, server, "/cluster") for _ in range(MAX_STORE_READS + 1)]
        for _ in range(MAX_STORE_READS):
            assert agent.entered.acquire(timeout=DEADLINE_S)
        one: Callable[[], bool] = lambda: any(reply.done() for reply in crowd)  # noqa: E731
        wait_for(one, DEADLINE_S, "one of them is sent away")
        assert not agent.entered.acquire(blocking=False)
        agent.release.set()
        statuses = sorted(reply.result(DEADLINE_S).status for reply in crowd)
    assert statuses == [200] * MAX_STORE_READS + [503]


def test_a_crowd_at_a_store_that_hangs_leaves_room_for_checks() -> None:
    agent = HangingAgent("read_cluster")
    with serving(agent, Limits(connections=80)) as server, contextlib.ExitStack() as stack:
        stack.callback(agent.release.set)
        for _ in range(150):
            stack.enter_context(dial(server, b"GET /cluster HTTP/1.1\r\n\r\n"))
        for _ in range(5):
            assert ask(server, "GET", "/primary", timeout_s=ANSWER_S).status == 200


def test_operations_have_room_for_so_many() -> None:
    agent = HangingAgent("restart")
    with serving(agent) as server, ThreadPoolExecutor(MAX_OPERATIONS) as pool:
        running = [pool.submit(ask, server, "POST", "/restart") for _ in range(MAX_OPERATIONS)]
        for _ in running:
            assert agent.entered.acquire(timeout=DEADLINE_S)
        refused = ask(server, "POST", "/reload")
        assert (refused.status, refused.text) == (503, "too many operations at the same time")
        agent.release.set()
        assert {call.result(DEADLINE_S).status for call in running} == {200}
        assert ask(server, "POST", "/reload").status == 200


def test_a_slow_resolver_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    real = socket.getaddrinfo

    def resolver(host: str, *arguments: Any, **more: Any) -> Any:
        if host == "slow.example.org":
            entered.set()
            release.wait(DEADLINE_S)
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return real(host, *arguments, **more)

    with serving(Agent(), PATIENT, allowlist=("slow.example.org",)) as server, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        asked = pool.submit(ask, server, "POST", "/reload")
        assert entered.wait(DEADLINE_S)
        assert get(server, "/primary").status == 200
        release.set()
        assert asked.result(DEADLINE_S).status == 403
