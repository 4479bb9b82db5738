"""Consul and ZooKeeper that freeze, die, restart, lose replies. etcd has its own: test_etcd3_faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from dcs.api import Conflict, Dcs, KeyEvent, LeaseHandle, Ok, Refused, Renewed, Taken, Unknown, WatchGap
from dcs.errors import DcsUnavailable
from tests.contract.conftest import CALL_S, Events, consul_client, zookeeper_client
from tests.support.consul import ConsulCluster, ConsulServer
from tests.support.etcd import free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import DEADLINE_S, wait_for
from tests.support.zookeeper import ZooKeeperCluster, ZooKeeperServer

#: What a busy machine may add to a deadline before we call the call hung.
SLACK_S = 5.0
SHORT_S = 0.3
TTL_S = 60.0

Server = ConsulServer | ZooKeeperServer
BOTH = pytest.mark.parametrize("backend", ["consul", "zookeeper"])
Connect = Callable[[str, int], Dcs]


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Clients of a cluster named like the test, closed afterwards."""
    clients: list[Dcs] = []

    def connected(backend: str, port: int) -> Dcs:
        scope = request.node.originalname
        made = (
            consul_client(port, scope)
            if backend == "consul"
            else zookeeper_client(f"127.0.0.1:{port}", scope)
        )
        clients.append(made)
        return made

    yield connected
    for client in clients:
        client.close()


@pytest.fixture
def servers() -> Iterator[Callable[[str], tuple[Server, int]]]:
    """A server of this test's own, to be mistreated, and its port."""
    started: list[Server] = []

    def start(backend: str) -> tuple[Server, int]:
        server: Server = ConsulServer() if backend == "consul" else ZooKeeperServer()
        started.append(server)
        server.start()
        return server, server.ports["http"] if isinstance(server, ConsulServer) else server.client_port

    yield start
    for server in started:
        server.close()


def take(client: Dcs, name: str = "pg0", ttl_s: float = TTL_S) -> LeaseHandle:
    taken = client.take_leader(client.open_session(ttl_s, CALL_S), name, CALL_S)
    assert isinstance(taken, Taken)
    return taken.handle


def all_end_unknown(client: Dcs, handle: LeaseHandle) -> None:
    calls: dict[str, Callable[[], object]] = {
        "renew_session": lambda: client.renew_session(handle.session, SHORT_S),
        "renew_leader": lambda: client.renew_leader(handle, "pg0", SHORT_S),
        "take_leader": lambda: client.take_leader(handle.session, "pg0", SHORT_S),
        "put_member": lambda: client.put_member(handle.session, "pg0", "{}", SHORT_S),
        "create": lambda: client.create("initialize", "", SHORT_S),
        "put": lambda: client.put("status", "1", SHORT_S),
        "compare_and_set": lambda: client.compare_and_set("sync", "{}", 0, SHORT_S),
        "put_if_leader": lambda: client.put_if_leader(handle, "pg0", "status", "1", SHORT_S),
        "delete": lambda: client.delete("status", SHORT_S),
        "release_leader": lambda: client.release_leader(handle, "pg0", SHORT_S),
        "delete_cluster": lambda: client.delete_cluster(SHORT_S),
    }
    for name, call in calls.items():
        began = time.monotonic()
        assert isinstance(call(), Unknown), name
        assert time.monotonic() < began + SHORT_S + SLACK_S, name
    for read in (lambda: client.snapshot(SHORT_S), lambda: client.open_session(TTL_S, SHORT_S)):
        began = time.monotonic()
        with pytest.raises(DcsUnavailable):
            read()
        assert time.monotonic() < began + SHORT_S + SLACK_S


@BOTH
def test_with_a_frozen_server_every_call_ends_unknown(
    backend: str, servers: Callable[[str], tuple[Server, int]], connect: Connect
) -> None:
    server, port = servers(backend)
    client = connect(backend, port)
    handle = take(client)
    assert client.snapshot(CALL_S).leader is not None
    server.freeze()
    all_end_unknown(client, handle)
    server.thaw()
    wait_for(lambda: _reads(client), DEADLINE_S, "the server is read again")


def _reads(client: Dcs) -> bool:
    try:
        return client.snapshot(CALL_S) is not None
    except DcsUnavailable:
        return False


@BOTH
def test_with_no_server_nothing_is_known(backend: str, connect: Connect) -> None:
    client = connect(backend, free_port())
    with pytest.raises(DcsUnavailable):
        client.snapshot(SHORT_S)
    with pytest.raises(DcsUnavailable):
        client.open_session(TTL_S, SHORT_S)
    assert isinstance(client.put("status", "1", SHORT_S), Unknown)


@BOTH
def test_a_take_whose_reply_was_lost_is_unknown_and_yet_took(
    backend: str, servers: Callable[[str], tuple[Server, int]], connect: Connect
) -> None:
    _, port = servers(backend)
    # The folders are there, so that the next request is the one that takes.
    assert isinstance(connect(backend, port).put("status", "1", CALL_S), Ok)
    with TcpProxy(port) as proxy:
        client = connect(backend, proxy.port)
        session = client.open_session(TTL_S, CALL_S)
        if backend == "zookeeper":
            assert isinstance(client.put_member(session, "pg0", "{}", CALL_S), Ok)
        proxy.cut_next_reply()
        assert isinstance(client.take_leader(session, "pg0", CALL_S), Unknown)
        assert proxy.cut.wait(DEADLINE_S)
        wait_for(lambda: isinstance(client.renew_session(session, CALL_S), Renewed), DEADLINE_S, "it goes on")
        leader = client.snapshot(CALL_S).leader
        assert leader is not None
        assert leader.session == session
        assert isinstance(client.renew_leader(LeaseHandle(session, leader.epoch), "pg0", CALL_S), Renewed)


@BOTH
def test_refused_and_unknown_renewals_differ(
    backend: str, servers: Callable[[str], tuple[Server, int]], connect: Connect
) -> None:
    _, port = servers(backend)
    with TcpProxy(port) as proxy:
        client, other = connect(backend, proxy.port), connect(backend, port)
        handle = take(client)
        proxy.freeze()
        assert isinstance(client.renew_leader(handle, "pg0", SHORT_S), Unknown)
        proxy.thaw()
        assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)
        assert isinstance(other.delete("leader", CALL_S), Ok)
        assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
        assert isinstance(client.renew_session(handle.session, CALL_S), Renewed)
        assert isinstance(client.close_session(handle.session, CALL_S), Ok)
        assert isinstance(client.renew_session(handle.session, CALL_S), Refused)


@BOTH
def test_a_watch_reconnects_after_a_cut_and_says_so(
    backend: str, servers: Callable[[str], tuple[Server, int]], connect: Connect
) -> None:
    server, port = servers(backend)
    with TcpProxy(port) as proxy:
        events = Events(connect(backend, proxy.port))
        proxy.drop()
        if backend == "zookeeper":
            events.until_gap()
        assert isinstance(connect(backend, port).put("status", "1", CALL_S), Ok)
        # Consul is asked by the last index, so that a new connection may lose nothing: then no gap is told.
        events.until(lambda e: isinstance(e, WatchGap) or (isinstance(e, KeyEvent) and e.key == "status"))
        server.kill()
        server.start()
        events.until_gap()
        assert isinstance(connect(backend, port).put("status", "2", CALL_S), Ok)
        events.until_key("status")


@BOTH
def test_lease_and_watch_outlive_the_leader_of_the_store(backend: str, connect: Connect) -> None:
    ensemble = ConsulCluster() if backend == "consul" else ZooKeeperCluster()
    with ensemble:
        leader = ensemble.leader()
        other = next(server for server in ensemble.servers if server is not leader)
        port = other.ports["http"] if isinstance(other, ConsulServer) else other.client_port
        client = connect(backend, port)
        handle = take(client)
        events = Events(client)
        leader.kill()
        wait_for(
            lambda: isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed), DEADLINE_S, "a renewal"
        )
        assert isinstance(client.put_if_leader(handle, "pg0", "status", '{"optime":7}', CALL_S), Ok)
        events.until(lambda event: True)
        assert isinstance(client.take_leader(handle.session, "pg1", CALL_S), Conflict)
        status = client.snapshot(CALL_S).status
        assert status is not None
        assert status.optime == 7
