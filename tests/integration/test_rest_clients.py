"""Odd, slow and hostile clients: each gets a clear answer or none, and nobody else is delayed."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from haagent.api import Answer, RestServer
from haagent.api.connection import Limits
from tests.support.rest import (
    ANSWER_S,
    DEADLINE_S,
    Agent,
    ask,
    basic,
    dial,
    exchange,
    get,
    read_to_end,
    serving,
)
from tests.support.wait import wait_for


@pytest.fixture(scope="module")
def primary() -> Iterator[RestServer]:
    with serving(Agent()) as server:
        yield server


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
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


def test_more_busy_clients_than_connections_get_their_turn() -> None:
    enough = threading.Event()

    def keep_asking() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        while not enough.is_set():
            connection.request("GET", "/patroni")
            assert connection.getresponse().read()
        connection.close()

    others = set(rest_threads())
    with serving(limits=Limits(connections=8)) as server, ThreadPoolExecutor(30) as pool:
        crowd = [pool.submit(keep_asking) for _ in range(30)]
        try:
            for _ in range(10):
                assert ask(server, "GET", "/primary").status == 200
                assert len(set(rest_threads()) - others) <= 8 + 1  # one may be ending
        finally:
            enough.set()
        for client in crowd:
            client.result(DEADLINE_S)


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
