"""The etcd client against servers that freeze, die, restart, lose replies or are no etcd at all."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dcs.api import Conflict, LeaseHandle, Ok, Refused, Renewed, Taken, Unknown
from dcs.errors import DcsUnavailable
from dcs.etcd3 import Etcd3Dcs, Etcd3Options
from dcs.etcd3_http import Gateway, NoAnswer
from dcs.etcd3_watch import PING_S, SILENCE_S
from tests.contract.conftest import CALL_S, Events, etcd_client
from tests.support.etcd import EtcdCluster, EtcdServer, free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import DEADLINE_S, holds_for, wait_for

#: What a busy machine may add to a deadline before we call the call hung.
SLACK_S = 5.0
SHORT_S = 0.3


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """A server of this test's own, to be mistreated."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def proxy(etcd: EtcdServer) -> Iterator[TcpProxy]:
    with TcpProxy(etcd.client_port) as proxy:
        yield proxy


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Etcd3Dcs]]:
    """Clients of a cluster named like the test, closed afterwards."""
    clients: list[Etcd3Dcs] = []

    def connected(*urls: str) -> Etcd3Dcs:
        clients.append(etcd_client(list(urls), request.node.name))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


Connect = Callable[..., Etcd3Dcs]


def take(client: Etcd3Dcs, name: str = "pg0", ttl_s: float = 60) -> LeaseHandle:
    taken = client.take_leader(client.open_session(ttl_s, CALL_S), name, CALL_S)
    assert isinstance(taken, Taken)
    return taken.handle


def every_call(client: Etcd3Dcs, handle: LeaseHandle) -> dict[str, Callable[[], object]]:
    return {
        "snapshot": lambda: client.snapshot(SHORT_S),
        "open_session": lambda: client.open_session(10, SHORT_S),
        "renew_session": lambda: client.renew_session(handle.session, SHORT_S),
        "renew_leader": lambda: client.renew_leader(handle, "pg0", SHORT_S),
        "take_leader": lambda: client.take_leader(handle.session, "pg0", SHORT_S),
        "move_leader": lambda: client.move_leader(handle, handle.session, "pg0", SHORT_S),
        "put_member": lambda: client.put_member(handle.session, "pg0", "{}", SHORT_S),
        "create": lambda: client.create("initialize", "", SHORT_S),
        "put": lambda: client.put("status", "1", SHORT_S),
        "compare_and_set": lambda: client.compare_and_set("sync", "{}", 0, SHORT_S),
        "put_if_leader": lambda: client.put_if_leader(handle, "pg0", "status", "1", SHORT_S),
        "delete": lambda: client.delete("status", SHORT_S),
        "release_leader": lambda: client.release_leader(handle, "pg0", SHORT_S),
        "close_session": lambda: client.close_session(handle.session, SHORT_S),
        "delete_cluster": lambda: client.delete_cluster(SHORT_S),
    }


def all_end_unknown(client: Etcd3Dcs, handle: LeaseHandle) -> None:
    """Every call ends by its deadline, and claims neither success nor refusal."""
    for name, call in every_call(client, handle).items():
        begin = time.monotonic()
        try:
            outcome = call()
        except DcsUnavailable:
            outcome = Unknown("raised")
        assert isinstance(outcome, Unknown), name
        assert time.monotonic() - begin < SHORT_S + SLACK_S, name


# --- a server that does not answer ----------------------------------------------------------------


def test_with_a_frozen_server_every_call_ends_unknown(server: EtcdServer, connect: Connect) -> None:
    client = connect(server.url)
    handle = take(client)
    server.freeze()
    all_end_unknown(client, handle)
    server.thaw()
    assert client.snapshot(CALL_S) is not None


def test_with_a_trickling_server_every_call_ends_unknown(proxy: TcpProxy, connect: Connect) -> None:
    client = connect(proxy.url)
    handle = take(client)
    proxy.trickle()
    all_end_unknown(client, handle)


def test_with_no_server_every_call_ends_unknown(connect: Connect) -> None:
    client = connect(f"http://127.0.0.1:{free_port()}")
    all_end_unknown(client, LeaseHandle("4711", 1))
    with pytest.raises(DcsUnavailable, match=r"^etcd: 127\.0\.0\.1:\d+: Failed to establish"):
        client.snapshot(SHORT_S)


def test_a_name_that_does_not_resolve_is_unavailable(connect: Connect) -> None:
    client = connect("http://no-such-host.invalid:2379")
    with pytest.raises(DcsUnavailable, match=r"no-such-host\.invalid"):
        client.snapshot(SHORT_S)


def test_an_empty_answer_of_something_else_is_no_empty_cluster(connect: Connect) -> None:
    with _Impostor(b"{}") as impostor:
        all_end_unknown(connect(impostor.url), LeaseHandle("4711", 1))
    with _Impostor(b"<html>busy</html>") as impostor:
        all_end_unknown(connect(impostor.url), LeaseHandle("4711", 1))
    with _Impostor(b'{"header":{"cluster_id":"1","raft_term":"1"},"kvs":[7]}') as impostor:
        client = connect(impostor.url)
        with pytest.raises(DcsUnavailable):
            client.snapshot(SHORT_S)


class _Impostor:
    """Answers every POST with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> _Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# --- lost replies ---------------------------------------------------------------------------------


def test_a_take_whose_reply_was_lost_is_unknown_and_yet_took(proxy: TcpProxy, connect: Connect) -> None:
    client = connect(proxy.url)
    session = client.open_session(60, CALL_S)
    proxy.cut_next_reply()
    assert isinstance(client.take_leader(session, "pg0", CALL_S), Unknown)
    assert proxy.cut.wait(DEADLINE_S)
    leader = client.snapshot(CALL_S).leader
    assert leader is not None
    assert leader.session == session
    assert isinstance(client.renew_leader(LeaseHandle(session, leader.epoch), "pg0", CALL_S), Renewed)


def test_a_write_without_reply_is_not_sent_again(proxy: TcpProxy, etcd: EtcdServer, connect: Connect) -> None:
    client = connect(proxy.url, etcd.url)
    first = client.put("status", "1", CALL_S)
    assert isinstance(first, Ok)
    proxy.cut_next_reply()
    assert isinstance(client.put("status", "2", CALL_S), Unknown)
    after = client.compare_and_set("status", "3", first.version + 1, CALL_S)
    assert isinstance(after, Ok)  # written exactly once meanwhile: the next revision


def test_a_read_without_reply_is_answered_by_the_next_server(
    proxy: TcpProxy, etcd: EtcdServer, connect: Connect
) -> None:
    client = connect(proxy.url, etcd.url)
    handle = take(client)
    proxy.cut_next_reply()
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)
    assert proxy.cut.wait(DEADLINE_S)


def test_a_write_that_could_not_be_sent_goes_to_the_next_server(
    proxy: TcpProxy, etcd: EtcdServer, connect: Connect
) -> None:
    client = connect(f"http://127.0.0.1:{free_port()}", proxy.url, etcd.url)
    proxy.refuse()
    # The proxy takes the connection and closes it: sent into the void, so only "unknown" is honest.
    outcomes = [client.put("status", "1", CALL_S) for _ in range(3)]
    assert isinstance(outcomes[-1], Ok)
    assert all(isinstance(outcome, Ok | Unknown) for outcome in outcomes)


def test_refused_and_unknown_renewals_differ(proxy: TcpProxy, etcd: EtcdServer, connect: Connect) -> None:
    client, other = connect(proxy.url), connect(etcd.url)
    handle = take(client)
    proxy.freeze()
    assert isinstance(client.renew_leader(handle, "pg0", SHORT_S), Unknown)
    proxy.thaw()
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)
    assert isinstance(other.close_session(handle.session, CALL_S), Ok)
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)


# --- watching -------------------------------------------------------------------------------------


def test_a_watch_reconnects_after_a_cut_and_says_so(
    proxy: TcpProxy, etcd: EtcdServer, connect: Connect
) -> None:
    events = Events(connect(proxy.url))
    proxy.drop()
    events.until_gap()
    assert isinstance(connect(etcd.url).put("status", "1", CALL_S), Ok)
    events.until_key("status")


def test_a_watch_on_a_silent_connection_moves_to_the_next_server(
    proxy: TcpProxy, etcd: EtcdServer, connect: Connect
) -> None:
    events = Events(connect(proxy.url, etcd.url))
    proxy.freeze()
    events.until_gap()
    assert isinstance(connect(etcd.url).put("status", "1", CALL_S), Ok)
    events.until_key("status")


def test_a_watch_survives_the_restart_of_its_only_server(server: EtcdServer, connect: Connect) -> None:
    client = connect(server.url)
    events = Events(client)
    server.kill()
    server.start()
    events.until_gap()
    assert isinstance(client.put("status", "1", CALL_S), Ok)
    events.until_key("status")


def test_closing_a_watch_on_a_frozen_server_returns_at_once(proxy: TcpProxy, connect: Connect) -> None:
    events = Events(connect(proxy.url))
    proxy.freeze()
    begin = time.monotonic()
    events.watch.close()
    assert time.monotonic() - begin < SLACK_S
    wait_for(
        lambda: not [t for t in threading.enumerate() if t.name == "etcd3-watch"],
        DEADLINE_S,
        "the watch's thread ends",
    )


# --- three servers --------------------------------------------------------------------------------


@pytest.fixture
def trio() -> Iterator[EtcdCluster]:
    with EtcdCluster(3) as cluster:
        yield cluster


def test_the_lease_and_the_watch_outlive_the_leader_of_etcd(trio: EtcdCluster, connect: Connect) -> None:
    leader = trio.leader()
    client = connect(leader.url, *(url for url in trio.urls if url != leader.url))
    handle = take(client)
    events = Events(client)
    leader.kill()
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)
    events.until_gap()
    assert isinstance(client.put_if_leader(handle, "pg0", "status", "1", CALL_S), Ok)
    events.until_key("status")


def test_a_server_cut_off_from_the_majority_is_left(trio: EtcdCluster, connect: Connect) -> None:
    leader = trio.leader()
    lone, *others = sorted(trio.servers, key=lambda server: server is leader)
    client = connect(lone.url)
    handle = take(client)
    events = Events(client)
    for server in others:
        server.freeze()
    # The lone server still answers, but must not vouch for anything.
    assert isinstance(client.renew_leader(handle, "pg0", 2.0), Unknown)
    with pytest.raises(DcsUnavailable):
        client.snapshot(SHORT_S)
    assert isinstance(client.put("status", "1", SHORT_S), Unknown)
    # Longer than a silent watch is believed: it has to look elsewhere, and reads again when it stands.
    holds_for(
        lambda: not isinstance(client.renew_leader(handle, "pg0", SHORT_S), Renewed),
        SILENCE_S + 2 * PING_S,
        "a lone server vouches for nothing",
    )
    for server in others:
        server.thaw()
    events.until_gap()
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)


def test_with_one_of_three_frozen_reads_and_renewals_go_on(trio: EtcdCluster, connect: Connect) -> None:
    leader = trio.leader()
    frozen = next(server for server in trio.servers if server is not leader)
    client = connect(frozen.url, *(url for url in trio.urls if url != frozen.url))
    handle = take(client)
    events = Events(client)
    frozen.freeze()
    assert isinstance(client.renew_leader(handle, "pg0", 3.0), Renewed)
    assert client.snapshot(3.0).leader is not None
    events.until_gap()
    frozen.thaw()


# --- small print ----------------------------------------------------------------------------------


def test_an_answer_of_an_older_term_is_not_trusted(etcd: EtcdServer) -> None:
    gateway = Gateway(Etcd3Options((etcd.url,)))
    gateway.check_term({"header": {"cluster_id": "7", "raft_term": "5"}})
    gateway.check_term({"result": {"header": {"cluster_id": "7", "raft_term": "6"}}})
    with pytest.raises(NoAnswer, match="stale member"):
        gateway.check_term({"header": {"cluster_id": "7", "raft_term": "5"}})
    # Another cluster, restored from a backup, begins anew.
    gateway.check_term({"header": {"cluster_id": "8", "raft_term": "2"}})
    gateway.close()


def test_bytes_that_are_no_text_break_only_their_key(etcd: EtcdServer, connect: Connect) -> None:
    client = connect(etcd.url)
    handle = take(client)
    base = f"/service/{test_bytes_that_are_no_text_break_only_their_key.__name__}/"
    for key in (b"config", b"members/\xff\xfe", b"members/pg0"):
        etcd.post("/v3/kv/put", {"key": _b64(base.encode() + key), "value": _b64(b"\xff\x00{")})
    seen = client.snapshot(CALL_S)
    assert seen.leader is not None
    assert seen.leader.epoch == handle.epoch
    assert {broken.key for broken in seen.broken} == {"config", "members/pg0", "members/\\xff\\xfe"}
    assert isinstance(client.delete_cluster(CALL_S), Ok)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def test_a_value_etcd_will_not_take_is_a_conflict(etcd: EtcdServer, connect: Connect) -> None:
    outcome = connect(etcd.url).put("config", "x" * 2_000_000, CALL_S)
    assert isinstance(outcome, Conflict)
    assert "too large" in outcome.reason
