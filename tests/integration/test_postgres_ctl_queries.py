"""Session, sample and replication protocol against real servers, healthy and hung."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from postgres_ctl.api import ConnectionTarget
from postgres_ctl.errors import PostgresUnavailable, QueryFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.process import reload
from postgres_ctl.queries import Session, identify_system, timeline_history
from postgres_ctl.slots import SlotPlan, apply_plan
from tests.support.postgres import SUPERUSER, Server, postgres_user, wait_for  # noqa: F401

pytestmark = pytest.mark.usefixtures("postgres_user")

#: Enough for any answer of a healthy server on a busy machine.
PLENTY_S = 20.0
#: A call on a hung server must end by itself long before the test's own patience does.
HUNG_S = 0.3
PATIENCE_S = 15.0


def target(server: Server) -> ConnectionTarget:
    return ConnectionTarget("127.0.0.1", server.port, SUPERUSER, password="secret-word")


def session(server: Server) -> Session:
    return Session(target(server), "haagent heartbeat")


@pytest.fixture(scope="module")
def pair(postgres_user: None) -> Iterator[tuple[Server, Server]]:  # noqa: F811
    primary, standby = Server.create("primary"), Server.empty("standby")
    try:
        primary.start()
        session(primary).create_physical_slot("standby_1", PLENTY_S)
        standby.clone_from(primary, slot="standby_1", name="standby-1")
        standby.start()
        standby.wait_streaming()
        yield primary, standby
    finally:
        standby.destroy()
        primary.destroy()


@pytest.fixture
def server(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    """A server of the test's own, to be mistreated."""
    one = Server.create("single")
    try:
        one.start()
        yield one
    finally:
        one.destroy()


def test_sample_of_a_primary_holds_position_senders_and_slots(pair: tuple[Server, Server]) -> None:
    primary, _ = pair
    sample = session(primary).sample(PLENTY_S)
    assert not sample.in_recovery
    assert sample.timeline == 1
    assert sample.server_version // 10000 >= 14
    assert sample.flush_lsn is not None
    assert sample.position == sample.flush_lsn
    assert sample.flush_lsn <= Lsn.parse(primary.value("select pg_current_wal_flush_lsn()::text"))
    assert [(s.application_name, s.state) for s in sample.senders] == [("standby-1", "streaming")]
    assert [(s.name, s.type, s.active) for s in sample.slots] == [("standby_1", "physical", True)]
    assert sample.replication_state is None
    assert sample.postmaster_start_time.endswith("+00:00")


def test_sample_of_a_standby_holds_received_and_replayed_positions(pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    primary.sql("create table if not exists t (n int)")
    end = primary.value("select pg_current_wal_flush_lsn()::text")
    standby.wait_replayed(end)
    with_lag = session(standby).sample(PLENTY_S)
    assert with_lag.in_recovery
    assert with_lag.timeline == 1
    assert with_lag.flush_lsn is None
    assert with_lag.receive_lsn is not None
    assert with_lag.receive_lsn >= Lsn.parse(end)
    assert with_lag.replay_lsn is not None
    assert with_lag.replay_lsn >= Lsn.parse(end)
    assert with_lag.walreceiver_status == "streaming"
    assert with_lag.walreceiver_slot == "standby_1"
    assert with_lag.replication_state == "streaming"
    assert with_lag.position_is_proven
    assert f"port={primary.port}" in (with_lag.primary_conninfo or "")


def test_paused_replay_is_seen_and_resumed(pair: tuple[Server, Server]) -> None:
    _, standby = pair
    connection = session(standby)
    connection.query("select pg_wal_replay_pause()", PLENTY_S)
    assert connection.sample(PLENTY_S).replay_paused
    connection.resume_replay(PLENTY_S)
    assert not connection.sample(PLENTY_S).replay_paused


def test_standby_after_restart_has_a_proven_position_only_when_it_read_all_its_wal(server: Server) -> None:
    """H16: with no walreceiver the wait event of the startup process is the proof."""
    server.stop()
    server.configure("restore_command = 'false'\n")
    (server.data_dir / "standby.signal").touch()
    server.start()
    connection = session(server)
    wait_for(lambda: connection.sample(PLENTY_S).startup_waits_for_wal, "startup waits for WAL")
    sample = connection.sample(PLENTY_S)
    assert sample.receive_lsn is None
    assert sample.position == sample.replay_lsn
    assert sample.position_is_proven
    assert sample.replication_state == "in archive recovery"
    assert sample.timeline == 1


def test_timeline_of_a_promoted_server_is_the_new_one_at_once(server: Server) -> None:
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start()
    connection = session(server)
    assert connection.sample(PLENTY_S).timeline == 1
    connection.query("select pg_promote(true, 20)", PLENTY_S)
    sample = connection.sample(PLENTY_S)
    assert not sample.in_recovery
    assert sample.timeline == 2
    history = timeline_history(target(server), 2, PLENTY_S)
    assert [switch.timeline for switch in history] == [1]
    assert history[0].switch_lsn <= sample.position
    assert identify_system(target(server), PLENTY_S).timeline == 2


def test_pending_restart_names_old_and_new_value(server: Server) -> None:
    connection = session(server)
    server.set(max_connections="44")
    reload(str(server.data_dir))
    wait_for(lambda: connection.sample(PLENTY_S).pending_restart, "pending restart shows")
    assert connection.pending_restart(PLENTY_S) == (("max_connections", "30", "44"),)


def test_identify_system_of_a_standby_is_its_received_wal(pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    end = primary.value("select pg_current_wal_flush_lsn()::text")
    standby.wait_replayed(end)
    ours, theirs = (identify_system(target(s), PLENTY_S) for s in (primary, standby))
    assert theirs.system_identifier == ours.system_identifier
    assert theirs.flush_lsn >= Lsn.parse(end)
    with pytest.raises(QueryFailed):
        timeline_history(target(standby), 9, PLENTY_S)


def test_slot_plan_is_carried_out_and_refusals_are_told(pair: tuple[Server, Server]) -> None:
    primary, _ = pair
    connection = session(primary)
    assert apply_plan(connection, SlotPlan(create=("later",)), PLENTY_S) == ()
    reserved = next(s for s in connection.sample(PLENTY_S).slots if s.name == "later").restart_lsn
    assert reserved is not None
    primary.sql("create table if not exists advance_me (n int)")
    goal = Lsn.parse(primary.value("select pg_current_wal_flush_lsn()::text"))
    assert goal > reserved
    plan = SlotPlan(drop=("standby_1",), advance=(("later", goal),))
    failures = apply_plan(connection, plan, PLENTY_S)
    assert len(failures) == 1
    assert "standby_1" in failures[0]
    slots = {s.name: s for s in connection.sample(PLENTY_S).slots}
    assert slots["later"].restart_lsn == goal
    assert apply_plan(connection, SlotPlan(drop=("later", "never_was")), PLENTY_S) == ()
    assert "later" not in {s.name for s in connection.sample(PLENTY_S).slots}


def test_refused_statement_keeps_the_connection(server: Server) -> None:
    connection = session(server)
    pid = connection.query("select pg_backend_pid()", PLENTY_S)
    with pytest.raises(QueryFailed) as refused:
        connection.query("select 1/0", PLENTY_S)
    assert refused.value.sqlstate == "22012"
    assert connection.query("select pg_backend_pid()", PLENTY_S) == pid


def test_stopped_backend_does_not_hold_the_caller(server: Server) -> None:
    connection = session(server)
    backend = int(connection.query("select pg_backend_pid()", PLENTY_S)[0][0] or 0)
    os.kill(backend, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(PostgresUnavailable):
            connection.sample(HUNG_S)
        assert time.monotonic() - started < PATIENCE_S
        # The next call makes a connection of its own: a late answer cannot be mistaken for its.
        fresh = connection.query("select pg_backend_pid()", PLENTY_S)[0][0]
        assert fresh != str(backend)
    finally:
        os.kill(backend, signal.SIGCONT)
        connection.close()


def test_stopped_postmaster_does_not_hold_a_new_connection(server: Server) -> None:
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(PostgresUnavailable):
            session(server).sample(HUNG_S)
        with pytest.raises(PostgresUnavailable):
            identify_system(target(server), HUNG_S)
        assert time.monotonic() - started < PATIENCE_S
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_server_that_died_is_unavailable_and_comes_back_by_itself(server: Server) -> None:
    connection = session(server)
    connection.sample(PLENTY_S)
    server.stop(signal.SIGQUIT)
    for _ in range(2):
        with pytest.raises(PostgresUnavailable):
            connection.sample(PLENTY_S)
    server.start()
    assert not connection.sample(PLENTY_S).in_recovery


def test_checkpoint_is_done_on_return_and_the_statement_timeout_is_back(server: Server) -> None:
    impatient = Session(target(server), "haagent checkpoint", statement_timeout_ms=500)
    server.sql("create table big as select generate_series(1, 100000) as n")
    end = Lsn.parse(server.value("select pg_current_wal_insert_lsn()::text"))
    impatient.checkpoint(PLENTY_S)
    assert Lsn.parse(server.value("select redo_lsn::text from pg_control_checkpoint()")) >= end
    with pytest.raises(QueryFailed) as refused:
        impatient.query("select pg_sleep(60)", PLENTY_S)
    assert refused.value.sqlstate == "57014"


def test_messages_and_representations_hold_no_password(server: Server) -> None:
    words = ("secret-word", "other-word")
    wrong = ConnectionTarget("127.0.0.1", server.port, "nobody", words[0], sslpassword=words[1])
    assert "-word" not in repr(wrong)
    assert "-word" not in wrong.dsn()
    with pytest.raises(PostgresUnavailable) as refused:
        Session(wrong, "x").sample(PLENTY_S)
    assert "nobody" in str(refused.value)
    assert "-word" not in str(refused.value)


def test_standby_that_lost_its_upstream_knows_the_timeline_it_was_on(postgres_user: None) -> None:  # noqa: F811
    """pg_control still shows the old timeline: no restartpoint was made since the switch."""
    first, second, standby = Server.create("first"), Server.empty("second"), Server.empty("standby")
    try:
        first.start()
        for server, name in ((second, "second"), (standby, "standby")):
            server.clone_from(first, name=name)
            server.start()
            server.wait_streaming()
        second.value("select pg_promote()")
        standby.make_standby_conf(second)
        standby.value("select pg_reload_conf()")
        second.sql("create table t (n int)")
        end = second.value("select pg_current_wal_flush_lsn()::text")
        standby.wait_replayed(end)
        assert session(standby).sample(PLENTY_S).timeline == 2
        second.stop()
        wait_for(
            lambda: session(standby).sample(PLENTY_S).walreceiver_status is None, "the end of the stream"
        )
        assert session(standby).sample(PLENTY_S).timeline == 2
    finally:
        for server in (first, second, standby):
            server.destroy()
