"""The simulated PostgreSQL without agents: servers driven by hand behave as the real ones would."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from haagent.guardian_types import (
    Armed,
    Done,
    GuardianEvent,
    GuardianLost,
    Handle,
    NoAnswer,
    PostmasterExited,
    Refused,
    Started,
)
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.basebackup import CloneSpec
from postgres_ctl.bootstrap import InitdbSpec, RoleSpec
from postgres_ctl.config_files import RecoveryConfig, ServerConfig
from postgres_ctl.errors import PostgresUnavailable, ToolFailed
from postgres_ctl.facts import ControlState, DataDirState, Lsn
from postgres_ctl.rewind import KeepPolicy, NotNeeded, RewindFailed, RewindSpec, Rewound
from postgres_ctl.slots import SlotPlan
from tests.simulation.engine import START_S, Engine, HostClock, Process, SimRuntime
from tests.simulation.host import SimGuardianPort, SimHost
from tests.simulation.network import Network
from tests.simulation.pg_port import SimPostgres
from tests.simulation.postgres import Connection, Land, Server, Truth
from tests.simulation.wal import DATA, RECORD_BYTES, Record, in_common

T = TypeVar("T")
NAMES = ("pg1", "pg2", "pg3")


class Log(Truth):
    """What the truth said, in words."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.acknowledged_records: list[Record] = []
        self.lost: list[Record] = []

    def writable(self, server: Server) -> None:
        self.lines.append(f"{server.member} writable")

    def not_writable(self, server: Server) -> None:
        self.lines.append(f"{server.member} not writable")

    def promoted(self, server: Server, timeline: int, count: int) -> None:
        self.lines.append(f"{server.member} promoted to {timeline} behind {count}")

    def acknowledged(self, server: Server, record: Record) -> None:
        self.acknowledged_records.append(record)

    def discarded(self, host: SimHost, records: tuple[Record, ...], why: str) -> None:
        self.lines.append(f"{host.name} {why} {len(records)}")
        self.lost.extend(records)

    def mixed(self, host: SimHost, why: str) -> None:
        self.lines.append(f"{host.name} mixed")


class Hands:
    """Three hosts, an operator with a `SimPostgres` on each, and a client."""

    def __init__(self, seed: int = 1) -> None:
        self.engine = Engine(seed)
        self.network = Network(self.engine)
        self.land = Land(self.engine, self.network)
        self.truth = Log()
        self.land.truths.append(self.truth)
        self.hosts = {n: SimHost(self.land, n, f"/data/{n}", HostClock(self.engine)) for n in NAMES}
        self.processes = {n: Process(self.engine, f"agent:{n}") for n in NAMES}
        self.ports = {n: SimPostgres(self.hosts[n], self.processes[n], f"agent:{n}") for n in NAMES}
        self.guardians = {n: SimGuardianPort(self.hosts[n], self.processes[n]) for n in NAMES}

    # --- time and tasks

    def wait(self, seconds: float = 1.0) -> None:
        self.engine.run(self.engine.now + seconds)
        assert not self.engine.crashes, self.engine.crashes[0].text

    def until(self, fact: Callable[[], bool], limit_s: float = 120.0) -> None:
        end = self.engine.now + limit_s
        while not fact():
            assert self.engine.now < end, "it never became true"
            self.wait(0.05)

    def do(self, name: str, call: Callable[[], T], limit_s: float = 60.0) -> T:
        """In a task of that member's operator."""
        answers: list[T] = []
        self.processes[name].spawn(lambda: answers.append(call()), "operator")
        self.until(lambda: bool(answers), limit_s)
        return answers[0]

    def cancel(self, name: str) -> Cancellation:
        return SimRuntime(self.processes[name], self.hosts[name].clock).cancellation()

    # --- a cluster

    def config(self, name: str, sync: str = "") -> ServerConfig:
        managed = {"synchronous_standby_names": sync} if sync else {}
        protected = {"max_connections": "100"}
        return ServerConfig(f"/data/{name}", name, 5432, "sim", protected=protected, managed=managed)

    def follow(self, name: str, upstream: str | None, slot: str | None = None) -> None:
        """Write a standby's files, and reload it when it runs."""
        recovery = RecoveryConfig(_target(upstream) if upstream else None, name, slot_name=slot)
        self.hosts[name].dd.server, self.hosts[name].dd.recovery = self.config(name), recovery
        server = self.hosts[name].server
        if server is not None and not server.gone:
            server.reload()

    def set_sync(self, name: str, names: str) -> None:
        self.hosts[name].dd.server = self.config(name, names)
        self.server(name).reload()

    def bootstrap(self, name: str = "pg1") -> Server:
        spec = InitdbSpec(f"/data/{name}", "/bin", RoleSpec("postgres"))
        self.do(name, lambda: self.ports[name].bootstrap(spec, 60.0, self.cancel(name)))
        self.hosts[name].dd.server = self.config(name)
        return self.start(name, standby=False)

    def clone(self, name: str, source: str) -> Server:
        spec = CloneSpec(f"/data/{name}", "/bin", _target(source), "")
        self.do(name, lambda: self.ports[name].clone(spec, 600.0, self.cancel(name)))
        self.follow(name, source)
        return self.start(name, standby=True)

    def cluster(self, standbys: int = 2) -> None:
        self.bootstrap()
        for name in NAMES[1 : 1 + standbys]:
            self.clone(name, "pg1")
        self.until(lambda: all(self.streams(n) for n in NAMES[1 : 1 + standbys]))

    def start(self, name: str, standby: bool) -> Server:
        server = self.hosts[name].start_by_hand(standby)
        self.until(lambda: server.phase != "starting")
        return server

    def server(self, name: str) -> Server:
        server = self.hosts[name].server
        assert server is not None
        return server

    def streams(self, name: str) -> bool:
        link = self.server(name).receiver.link
        return link is not None and link.streaming

    def promote(self, name: str) -> Server:
        server = self.server(name)
        server.dd.promote_file = True
        self.hosts[name].signal_postmaster(signal.SIGUSR1)
        self.until(lambda: not server.in_recovery)
        return server

    def stop(self, name: str, signum: int = signal.SIGINT) -> None:
        server = self.server(name)
        self.hosts[name].signal_postmaster(signum)
        self.until(lambda: not server.any_alive)

    def recover(self, name: str) -> None:
        """A crashed primary, as a standby that follows nobody, then stopped in good order."""
        dd = self.hosts[name].dd
        dd.recovery = None
        self.start(name, standby=True)
        self.stop(name)

    def rewind(self, name: str, source: str) -> object:
        port, dd = self.ports[name], self.hosts[name].dd
        spec = RewindSpec(dd.path, "/bin", _target(source), "")

        def work() -> object:
            control = dd.control_data()
            end = max(control.checkpoint_lsn, control.min_recovery_end)
            port.keep_diverged_wal(dd.path, control, Lsn(end.value - RECORD_BYTES), KeepPolicy())
            return port.rewind(spec, 60.0, self.cancel(name))

        return self.do(name, work)

    # --- clients

    def session(self, name: str) -> Connection:
        connection = self.server(name).connect("client")
        assert connection is not None
        return connection

    def write(self, session: Connection, count: int = 1) -> list[Record]:
        records = [session.server.write(session, f"row {i}") for i in range(count)]
        return [record for record in records if record is not None]


def _target(name: str) -> ConnectionTarget:
    return ConnectionTarget(name, 5432, "replicator")


@pytest.fixture
def hands() -> Iterator[Hands]:
    made = Hands()
    yield made
    made.engine.close()


# --- replication and failover -----------------------------------------------------------------------


def test_a_standby_gets_what_the_primary_writes(hands: Hands) -> None:
    hands.cluster()
    records = hands.write(hands.session("pg1"), 10)
    hands.wait()
    for name in ("pg2", "pg3"):
        assert all(hands.hosts[name].dd.holds(record) for record in records)
        assert hands.server(name).replay == len(hands.hosts["pg1"].dd.records)


def test_a_failover_loses_exactly_what_the_new_primary_has_not_got(hands: Hands) -> None:
    hands.cluster(1)
    session = hands.session("pg1")
    arrived = hands.write(session, 5)
    hands.wait()
    hands.network.isolate("pg:pg2")
    lost = hands.write(session, 7)
    hands.wait()
    hands.stop("pg1", signal.SIGQUIT)
    server = hands.promote("pg2")
    kept = [r for r in hands.truth.acknowledged_records if server.dd.holds(r)]
    assert kept == arrived
    assert [r for r in hands.truth.acknowledged_records if not server.dd.holds(r)] == lost
    assert server.timeline == 2
    assert [s.switch_lsn.value for s in server.dd.histories[2]] == [arrived[-1].end]


def test_a_diverged_old_primary_does_not_stream_and_is_mended_by_pg_rewind(hands: Hands) -> None:
    hands.cluster(1)
    hands.network.isolate("pg:pg2")
    lost = hands.write(hands.session("pg1"), 3)
    hands.stop("pg1", signal.SIGQUIT)
    hands.promote("pg2")
    hands.network.heal_all()
    hands.do("pg2", lambda: hands.ports["pg2"].session(_target("pg2"), "x").checkpoint(60.0))
    hands.follow("pg1", "pg2")
    old = hands.start("pg1", standby=True)
    hands.wait(20.0)
    assert old.receiver.link is None
    assert "forked off" in old.receiver.fault
    hands.stop("pg1")
    hands.hosts["pg1"].dd.standby_signal = False
    assert isinstance(hands.rewind("pg1", "pg2"), Rewound)
    assert hands.truth.lost[: len(lost)] == lost
    hands.start("pg1", standby=True)
    hands.until(lambda: hands.streams("pg1"))
    new = hands.write(hands.session("pg2"), 2)
    hands.wait()
    assert hands.hosts["pg1"].dd.holds(new[-1])
    assert "pg1 mixed" not in hands.truth.lines


def test_pg_rewind_needs_a_checkpoint_after_the_promotion_to_see_it(hands: Hands) -> None:
    hands.cluster(1)
    hands.network.isolate("pg:pg2")
    hands.write(hands.session("pg1"), 3)
    hands.stop("pg1", signal.SIGQUIT)
    hands.promote("pg2")
    hands.network.heal_all()
    hands.recover("pg1")
    assert isinstance(hands.rewind("pg1", "pg2"), NotNeeded)


def test_an_old_primary_that_ended_in_good_order_follows_the_new_timeline(hands: Hands) -> None:
    hands.cluster(1)
    hands.write(hands.session("pg1"), 3)
    hands.stop("pg1")
    end = hands.hosts["pg1"].dd.control_data().checkpoint_lsn
    assert hands.server("pg2").replay * RECORD_BYTES > 0
    sample = hands.server("pg2").sample(0.0)
    assert sample.replay_lsn is not None
    assert sample.replay_lsn > end
    hands.promote("pg2")
    hands.follow("pg1", "pg2")
    hands.start("pg1", standby=True)
    hands.until(lambda: hands.streams("pg1"))
    assert hands.server("pg1").timeline == 2


def test_two_histories_under_one_timeline_number_are_told_apart(hands: Hands) -> None:
    """H15: PostgreSQL does not notice; the truth does."""
    hands.cluster()
    hands.stop("pg1", signal.SIGQUIT)
    hands.promote("pg2")
    hands.promote("pg3")
    one, other = hands.hosts["pg2"].dd, hands.hosts["pg3"].dd
    hands.write(hands.session("pg2"), 3)
    hands.write(hands.session("pg3"), 1)
    assert one.timeline == other.timeline == 2
    common = in_common(one.records, other.records)
    assert common == len(one.records) - 4 == len(other.records) - 2
    hands.stop("pg3", signal.SIGQUIT)
    hands.follow("pg3", "pg2")
    hands.start("pg3", standby=True)
    hands.until(lambda: "pg3 mixed" in hands.truth.lines)
    assert other.mixed


def test_a_standby_with_slot_needs_it_on_the_primary(hands: Hands) -> None:
    hands.cluster(1)
    hands.follow("pg2", "pg1", slot="pg2")
    hands.wait()
    assert "slot pg2 does not exist" in hands.server("pg2").receiver.fault
    port = hands.ports["pg1"]
    session = port.session(_target("pg1"), "operator")
    hands.do("pg1", lambda: port.apply_slots(session, SlotPlan(create=("pg2",)), 2.0))
    hands.until(lambda: hands.streams("pg2"))
    assert hands.server("pg1").sample(0.0).slots[0].active
    failed = hands.do("pg1", lambda: port.apply_slots(session, SlotPlan(drop=("pg2",)), 2.0))
    assert "active" in failed[0]


def test_a_restarted_standby_shows_no_received_position_until_it_streams(hands: Hands) -> None:
    """H16: it votes for less than it acknowledged."""
    hands.cluster(1)
    records = hands.write(hands.session("pg1"), 10)
    hands.wait()
    hands.network.isolate("pg:pg2")
    hands.stop("pg2", signal.SIGQUIT)
    hands.hosts["pg2"].knobs["server.replay-local"] = (1, 5.0, False)
    server = hands.start("pg2", standby=True)
    sample = server.sample(0.0)
    assert sample.receive_lsn is None
    assert not sample.position_is_proven
    assert sample.position < Lsn(records[-1].end)
    hands.until(lambda: server.sample(0.0).position_is_proven)
    assert server.sample(0.0).position == Lsn(records[-1].end)


# --- stopping ---------------------------------------------------------------------------------------


def test_a_fast_stop_waits_until_its_standbys_have_the_shutdown_checkpoint(hands: Hands) -> None:
    hands.cluster()
    hands.network.trouble("pg:pg1", "pg:pg3", slow_s=8.0)
    session = hands.session("pg1")
    server = hands.server("pg1")
    hands.hosts["pg1"].signal_postmaster(signal.SIGINT)
    assert not session.alive
    hands.until(lambda: server.dd.control.state is ControlState.SHUT_DOWN)
    hands.wait(2.0)
    assert not server.gone
    hands.until(lambda: server.gone)
    checkpoint = server.dd.records[-1]
    assert server.dd.control_data().checkpoint_lsn == Lsn(checkpoint.start)
    assert all(hands.hosts[name].dd.holds(checkpoint) for name in ("pg2", "pg3"))


def test_a_fast_stop_waits_for_an_unreachable_standby_only_until_its_timeout(hands: Hands) -> None:
    hands.cluster(1)
    hands.network.isolate("pg:pg2")
    hands.hosts["pg1"].signal_postmaster(signal.SIGINT)
    hands.wait(30.0)
    assert not hands.server("pg1").gone
    hands.wait(60.0)
    assert hands.server("pg1").gone


def test_sessions_of_a_killed_postmaster_go_on_writing_for_a_while(hands: Hands) -> None:
    """H9: orphans."""
    hands.cluster(1)
    hands.hosts["pg1"].knobs["server.orphans"] = (1, 3.0, False)
    session = hands.session("pg1")
    hands.hosts["pg1"].kill_postmaster()
    server = hands.server("pg1")
    assert server.gone
    assert server.writable_now
    assert len(hands.write(session)) == 1
    assert hands.do("pg1", lambda: hands.ports["pg1"].find_postmaster("/data/pg1")) is None
    assert hands.ports["pg1"].leftovers("/data/pg1")
    hands.until(lambda: not server.any_alive)
    assert not server.writable_now
    assert hands.write(session) == []  # type: ignore[unreachable]
    assert not hands.ports["pg1"].leftovers("/data/pg1")


def test_a_stopped_postmaster_lets_nobody_in_while_old_sessions_go_on(hands: Hands) -> None:
    """H9: SIGSTOP."""
    hands.cluster(1)
    session = hands.session("pg1")
    hands.hosts["pg1"].stop_postmaster()
    server = hands.server("pg1")
    assert server.door() == "silent"
    assert len(hands.write(session)) == 1
    hands.hosts["pg1"].signal_postmaster(signal.SIGINT)
    hands.wait(5.0)
    assert len(hands.write(session)) == 1
    hands.hosts["pg1"].continue_postmaster()
    assert not session.alive
    hands.until(lambda: server.gone)


def test_processes_in_uninterruptible_sleep_are_left_over_and_write_nothing(hands: Hands) -> None:
    hands.cluster(1)
    session = hands.session("pg1")
    server = hands.server("pg1")
    server.stick(True)
    assert hands.write(session) == []
    for proc in hands.hosts["pg1"].processes_in("/data/pg1"):
        hands.hosts["pg1"].kill(proc.pid, signal.SIGKILL)
    hands.wait(5.0)
    assert server.gone
    assert not session.alive
    assert hands.ports["pg1"].leftovers("/data/pg1")
    server.stick(False)
    assert not hands.ports["pg1"].leftovers("/data/pg1")
    assert hands.truth.acknowledged_records == []


def test_a_session_that_slept_through_its_servers_end_is_gone_once_it_wakes(hands: Hands) -> None:
    hands.cluster(1)
    hands.session("pg1")
    host, server = hands.hosts["pg1"], hands.server("pg1")
    for connection in server.connections:
        host.stick(connection.proc)
    host.signal_postmaster(signal.SIGQUIT)
    hands.until(lambda: server.gone)
    (left,) = host.processes_in("/data/pg1")
    host.unstick(left)
    assert not hands.ports["pg1"].leftovers("/data/pg1")


def test_a_standby_that_lets_nobody_in_yet_stops_in_good_order_and_hears_whom_to_follow(hands: Hands) -> None:
    """What it has to reach lies beyond its WAL, as after a rewind."""
    hands.cluster(1)
    hands.stop("pg2")
    host, dd = hands.hosts["pg2"], hands.hosts["pg2"].dd
    dd.control.state, dd.control.minimum_timeline = ControlState.IN_ARCHIVE_RECOVERY, 1
    dd.control.minimum = len(dd.records) + 2
    following, dd.recovery = dd.recovery, None
    for _ in range(2):
        host.start_by_hand(standby=True)
        hands.write(hands.session("pg1"), 2)
        hands.wait(10.0)
        assert hands.server("pg2").phase == "starting"
        hands.stop("pg2")
        assert dd.control.state is ControlState.SHUT_DOWN_IN_RECOVERY
    host.start_by_hand(standby=True)
    hands.wait(10.0)
    dd.recovery = following
    hands.do("pg2", lambda: hands.ports["pg2"].reload("/data/pg2"))
    hands.until(lambda: hands.streams("pg2") and hands.server("pg2").phase == "running")


def test_a_crashed_backend_takes_all_sessions_along_and_the_server_comes_back(hands: Hands) -> None:
    hands.cluster(1)
    session, other = hands.session("pg1"), hands.session("pg1")
    hands.hosts["pg1"].kill(session.proc.pid, signal.SIGKILL)
    hands.until(lambda: not other.alive)
    assert not hands.server("pg1").writable_now
    hands.until(lambda: hands.server("pg1").writable_now)
    hands.until(lambda: hands.streams("pg2"))


# --- synchronous replication ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "cut", "acknowledged"),
    [
        ("ANY 1 (pg2, pg3)", ["pg2"], True),
        ("ANY 1 (pg2, pg3)", ["pg2", "pg3"], False),
        ("ANY 2 (pg2, pg3)", ["pg3"], False),
        ("FIRST 1 (pg2, pg3)", ["pg3"], True),
        ("FIRST 1 (pg2, pg3)", ["pg2"], False),
        ("pg3", ["pg2"], True),
        ('"pg3"', ["pg3"], False),
        ("*", ["pg2"], False),
        ("FIRST 2 (pg2, pg3)", [], True),
    ],
)
def test_a_commit_waits_for_the_standbys_that_are_named(
    hands: Hands, names: str, cut: list[str], acknowledged: bool
) -> None:
    """A standby that is connected but out of reach still counts as connected."""
    hands.cluster()
    hands.set_sync("pg1", names)
    hands.until(lambda: hands.server("pg1").sessions.sync_in_force is not None)
    for name in cut:
        hands.network.isolate(f"pg:{name}")
    record = hands.write(hands.session("pg1"))[0]
    hands.wait(3.0)
    assert (record in hands.truth.acknowledged_records) is acknowledged


def test_local_commits_wait_for_nobody_and_a_closed_session_is_never_acknowledged(hands: Hands) -> None:
    hands.cluster(1)
    hands.set_sync("pg1", "pg9")
    hands.until(lambda: hands.server("pg1").sessions.sync_in_force is not None)
    session = hands.session("pg1")
    local = hands.server("pg1").write(session, "local", commit="local")
    assert local in hands.truth.acknowledged_records
    waiting = hands.write(session)[0]
    session.close()
    hands.set_sync("pg1", "")
    hands.wait(5.0)
    assert waiting not in hands.truth.acknowledged_records
    assert hands.hosts["pg2"].dd.holds(waiting)


def test_a_changed_setting_shows_before_backends_wait_for_it(hands: Hands) -> None:
    """H17."""
    hands.cluster(1)
    hands.hosts["pg1"].knobs["server.publish-sync"] = (1, 5.0, False)
    hands.set_sync("pg1", "pg2")
    assert hands.server("pg1").sample(0.0).senders[0].sync_state == "sync"
    hands.network.isolate("pg:pg2")
    record = hands.write(hands.session("pg1"))[0]
    assert record in hands.truth.acknowledged_records
    session = hands.ports["pg1"].session(_target("pg1"), "operator")
    hands.do("pg1", lambda: session.checkpoint(60.0))
    assert hands.write(hands.session("pg1"))[0] not in hands.truth.acknowledged_records


# --- hosts ------------------------------------------------------------------------------------------


def test_a_power_cut_keeps_what_was_flushed_and_a_lying_disk_does_not(hands: Hands) -> None:
    hands.cluster(1)
    session = hands.session("pg1")
    records = hands.write(session, 5)
    unflushed = hands.server("pg1").write(session, "fast", commit="off")
    assert unflushed is not None
    hands.hosts["pg1"].power_cut()
    dd = hands.hosts["pg1"].dd
    assert dd.records[-1] is records[-1]
    assert hands.truth.lost == [unflushed]
    hands.hosts["pg1"].boot_up()
    hands.start("pg1", standby=False)
    hands.wait(1.0)
    hands.until(lambda: hands.streams("pg2"))
    more = hands.write(hands.session("pg1"), 4)
    hands.wait()
    hands.hosts["pg1"].power_cut(lose=3)
    assert dd.records[-1] is more[0]
    hands.hosts["pg1"].boot_up()
    hands.start("pg1", standby=False)
    hands.write(hands.session("pg1"), 10)
    hands.until(lambda: "pg2 mixed" in hands.truth.lines)


def test_a_lying_disk_keeps_what_pg_control_names_of_a_standby_as_well(hands: Hands) -> None:
    """pg_control is younger: with less WAL than that nothing would ever start again."""
    hands.cluster(1)
    dd = hands.hosts["pg2"].dd
    dd.control.minimum = len(dd.records)
    hands.hosts["pg2"].power_cut(lose=3)
    assert len(dd.records) == dd.control.minimum


def test_a_frozen_host_writes_after_the_thaw_what_was_sent_to_it(hands: Hands) -> None:
    hands.cluster(1)
    session = hands.session("pg1")
    hands.hosts["pg1"].freeze()
    assert not hands.server("pg1").writable_now
    assert hands.write(session) == []
    hands.wait(30.0)
    assert hands.truth.acknowledged_records == []
    hands.hosts["pg1"].thaw()
    hands.wait()
    assert [r.payload for r in hands.truth.acknowledged_records] == ["row 0"]
    hands.until(lambda: hands.streams("pg2"))


def test_the_clock_of_a_paused_machine_may_stand_still(hands: Hands) -> None:
    host = hands.hosts["pg1"]
    before = host.clock.now()
    host.freeze()
    hands.wait(10.0)
    host.thaw(clock_stood=True)
    assert host.clock.now() == pytest.approx(before)
    host.freeze()
    hands.wait(10.0)
    host.thaw()
    assert host.clock.now() == pytest.approx(before + 10.0)


def test_a_hung_server_costs_the_deadline_and_writes_for_its_old_sessions(hands: Hands) -> None:
    hands.cluster(1)
    client = hands.session("pg1")
    session = hands.ports["pg1"].session(_target("pg1"), "operator")
    assert not hands.do("pg1", lambda: session.sample(2.0)).in_recovery
    hands.server("pg1").hang("sql")

    def silent() -> float:
        began = hands.engine.now
        with pytest.raises(PostgresUnavailable):
            session.sample(2.0)
        return hands.engine.now - began

    assert hands.do("pg1", silent) == pytest.approx(2.0)
    assert len(hands.write(client)) == 1
    hands.server("pg1").hang("")
    assert not hands.do("pg1", lambda: session.sample(2.0)).in_recovery


# --- tools ------------------------------------------------------------------------------------------


def test_a_clone_that_fails_or_loses_its_agent_leaves_no_data_directory(hands: Hands) -> None:
    hands.bootstrap()
    port, spec = hands.ports["pg2"], CloneSpec("/data/pg2", "/bin", _target("pg1"), "")
    hands.hosts["pg2"].knobs["pg.clone"] = (1, 0.0, True)

    def fails() -> bool:
        with pytest.raises(ToolFailed):
            port.clone(spec, 60.0, hands.cancel("pg2"))
        return True

    assert hands.do("pg2", fails)
    assert port.data_dir_state("/data/pg2") is DataDirState.MISSING_OR_EMPTY
    hands.processes["pg2"].spawn(lambda: port.clone(spec, 60.0, hands.cancel("pg2")) and None, "clone")
    hands.wait(0.01)
    hands.processes["pg2"].kill()
    hands.wait(60.0)
    assert hands.hosts["pg2"].dd.state == "incomplete"
    assert port.data_dir_state("/data/pg2") is DataDirState.MISSING_OR_EMPTY


def test_a_cancelled_rewind_leaves_a_damaged_directory_behind_its_marker(hands: Hands) -> None:
    hands.cluster(1)
    hands.network.isolate("pg:pg2")
    hands.write(hands.session("pg1"), 3)
    hands.stop("pg1", signal.SIGQUIT)
    hands.promote("pg2")
    hands.network.heal_all()
    hands.do("pg2", lambda: hands.ports["pg2"].session(_target("pg2"), "x").checkpoint(60.0))
    hands.recover("pg1")
    hands.hosts["pg1"].knobs["pg.rewind"] = (1, 0.0, True)
    outcome = hands.rewind("pg1", "pg2")
    assert isinstance(outcome, RewindFailed)
    assert outcome.damaged
    assert hands.ports["pg1"].rewind_interrupted("/data/pg1")
    assert isinstance(hands.rewind("pg1", "pg2"), Rewound)
    assert not hands.ports["pg1"].rewind_interrupted("/data/pg1")


# --- the guardian -----------------------------------------------------------------------------------


class Watched:
    """A guardian's link with what it told."""

    def __init__(self, hands: Hands, name: str) -> None:
        self.events: list[GuardianEvent] = []
        self.hands, self.name = hands, name
        port = hands.guardians[name]
        self.link = hands.do(name, lambda: port.connect("/state", f"/data/{name}", self.events.append))

    def do(self, call: Callable[[], T]) -> T:
        return self.hands.do(self.name, call)

    def start(self, writable: bool, epoch: int | None) -> object:
        argv = ["/bin/postgres"]
        return self.do(
            lambda: self.link.start(
                argv, {}, f"/data/{self.name}", writable=writable, epoch=epoch, deadline_s=10.0
            )
        )

    def arm(self, epoch: int, seconds: float) -> object:
        now = self.hands.hosts[self.name].clock.now()
        handle = Handle("session", epoch)
        return self.do(lambda: self.link.arm(handle, now + seconds, now + seconds + 1.0, 2.0))


def _prepared(hands: Hands) -> Watched:
    spec = InitdbSpec("/data/pg1", "/bin", RoleSpec("postgres"))
    hands.do("pg1", lambda: hands.ports["pg1"].bootstrap(spec, 60.0, hands.cancel("pg1")))
    hands.hosts["pg1"].dd.server = hands.config("pg1")
    return Watched(hands, "pg1")


def test_the_guardian_starts_a_primary_under_a_lease_and_fences_it_at_its_end(hands: Hands) -> None:
    watched = _prepared(hands)
    assert not isinstance(watched.start(True, 7), Started)
    assert isinstance(watched.arm(7, 20.0), Armed)
    assert isinstance(watched.start(True, 7), Started)
    hands.until(lambda: hands.server("pg1").writable_now)
    session = hands.session("pg1")
    fence_at = watched.do(lambda: watched.link.status(1.0))
    assert not isinstance(fence_at, Refused | NoAnswer)
    assert fence_at.armed is not None
    hands.until(lambda: hands.hosts["pg1"].clock.now() > fence_at.armed.hard_at, 30.0)  # type: ignore[union-attr]
    assert not session.alive
    assert not hands.server("pg1").writable_now
    hands.until(lambda: any(isinstance(e, PostmasterExited) and e.fenced for e in watched.events))


def test_the_fence_reaches_sessions_of_a_stopped_postmaster(hands: Hands) -> None:
    watched = _prepared(hands)
    watched.arm(7, 12.0)
    watched.start(True, 7)
    hands.until(lambda: hands.server("pg1").writable_now)
    session = hands.session("pg1")
    hands.hosts["pg1"].stop_postmaster()
    hands.wait(2.0)
    assert len(hands.write(session)) == 1
    hands.wait(12.0)
    assert not session.alive
    hands.until(lambda: any(isinstance(e, PostmasterExited) and e.fenced for e in watched.events))


def test_orphans_are_killed_before_the_exit_is_told(hands: Hands) -> None:
    watched = _prepared(hands)
    watched.arm(7, 60.0)
    watched.start(True, 7)
    hands.until(lambda: hands.server("pg1").writable_now)
    session = hands.session("pg1")
    hands.hosts["pg1"].knobs["server.orphans"] = (1, 100.0, False)
    hands.hosts["pg1"].kill_postmaster()
    hands.until(lambda: bool(watched.events))
    assert not session.alive
    exited = watched.events[0]
    assert isinstance(exited, PostmasterExited)
    assert (exited.status, exited.leftovers) == (-9, ())
    assert not hands.ports["pg1"].leftovers("/data/pg1")


def test_leftovers_are_told_and_told_gone(hands: Hands) -> None:
    watched = _prepared(hands)
    watched.arm(7, 60.0)
    watched.start(True, 7)
    hands.until(lambda: hands.server("pg1").writable_now)
    hands.session("pg1")
    hands.server("pg1").stick(True)
    watched.do(lambda: watched.link.stop("kill", 2.0))
    hands.until(lambda: bool(watched.events))
    assert isinstance(watched.events[0], PostmasterExited)
    assert len(watched.events[0].leftovers) == 2
    hands.server("pg1").stick(False)
    hands.until(lambda: len(watched.events) == 2)
    assert isinstance(watched.events[1], PostmasterExited)
    assert watched.events[1].leftovers == ()


def test_a_standby_is_promoted_by_the_guardian(hands: Hands) -> None:
    hands.bootstrap("pg2")
    spec = CloneSpec("/data/pg1", "/bin", _target("pg2"), "")
    hands.do("pg1", lambda: hands.ports["pg1"].clone(spec, 600.0, hands.cancel("pg1")))
    hands.follow("pg1", "pg2")
    watched = Watched(hands, "pg1")
    assert isinstance(watched.start(False, None), Started)
    hands.until(lambda: hands.streams("pg1"))
    watched.arm(3, 60.0)
    assert isinstance(watched.do(lambda: watched.link.promote(3, 5.0)), Done)
    hands.until(lambda: hands.server("pg1").writable_now)
    assert hands.server("pg1").timeline == 2


def test_a_dead_guardian_takes_postgres_along(hands: Hands) -> None:
    watched = _prepared(hands)
    watched.arm(7, 60.0)
    watched.start(True, 7)
    hands.until(lambda: hands.server("pg1").writable_now)
    hands.hosts["pg1"].kill_guardian()
    hands.until(lambda: any(isinstance(e, GuardianLost) for e in watched.events))
    hands.until(lambda: not hands.server("pg1").any_alive)


def test_a_frozen_guardian_gives_no_answer_and_is_woken(hands: Hands) -> None:
    watched = _prepared(hands)
    hands.hosts["pg1"].freeze_guardian()
    assert isinstance(watched.arm(7, 60.0), NoAnswer)
    assert isinstance(watched.arm(7, 60.0), Armed)
    hands.hosts["pg1"].freeze_guardian(stuck=True)
    assert isinstance(watched.arm(7, 70.0), NoAnswer)
    assert isinstance(watched.arm(7, 70.0), NoAnswer)


def test_without_the_guardian_the_agent_ends_all_of_postgres(hands: Hands) -> None:
    watched = _prepared(hands)
    watched.arm(7, 60.0)
    watched.start(True, 7)
    hands.until(lambda: hands.server("pg1").writable_now)
    session = hands.session("pg1")
    hands.hosts["pg1"].freeze_guardian(stuck=True)
    pid = hands.server("pg1").pid
    assert watched.do(lambda: hands.guardians["pg1"].fence_directly(pid, "/data/pg1")) == []
    assert not session.alive


def test_an_agent_that_comes_back_finds_its_guardian_and_a_stranger_is_adopted(hands: Hands) -> None:
    hands.bootstrap()
    watched = Watched(hands, "pg1")
    found = hands.ports["pg1"].find_postmaster("/data/pg1")
    assert found is not None
    assert isinstance(watched.do(lambda: watched.link.adopt(*found, 1.0)), Done)
    again = Watched(hands, "pg1")
    assert again.link.hello.guardian_pid == watched.link.hello.guardian_pid
    assert again.link.hello.postmaster is not None
    assert again.link.hello.postmaster.adopted
    hands.until(lambda: any(isinstance(e, GuardianLost) for e in watched.events))
    again.arm(1, 5.0)
    hands.until(lambda: any(isinstance(e, PostmasterExited) for e in again.events))
    assert not hands.server("pg1").any_alive


# --- the same in every process ----------------------------------------------------------------------


def _chaos(seed: int) -> str:
    """A digest of a random life of three servers."""
    hands = Hands(seed)
    hands.cluster()
    draw = hands.engine.rng("chaos")
    for _ in range(60):
        name = draw.choice(NAMES)
        host = hands.hosts[name]
        act: Any = draw.choice(
            (host.kill_postmaster, host.freeze, host.thaw, host.power_cut, host.boot_up, host.stop_postmaster,
             host.continue_postmaster, lambda h=host: h.signal_postmaster(signal.SIGINT),
             lambda h=host: h.processes_in(h.dd.path) or (h.powered and h.start_by_hand(draw.random() < 0.5)))
        )  # fmt: skip
        act()
        for other in NAMES:
            server = hands.hosts[other].server
            connection = server.connect("client") if server is not None else None
            if connection is not None:
                hands.write(connection, draw.randrange(3))
        hands.wait(draw.random() * 3)
    ends = [[(r.author, r.timeline, r.kind) for r in h.dd.records] for h in hands.hosts.values()]
    text = "\n".join(
        [*hands.truth.lines, repr(ends), str(hands.engine.events), f"{hands.engine.now - START_S:.9f}"]
    )
    hands.engine.close()
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_seed_gives_the_same_in_every_process() -> None:
    code = "from tests.simulation.test_postgres import _chaos; print(_chaos(5), _chaos(6))"
    digests = set()
    for hash_seed in ("0", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert digests == {f"{_chaos(5)} {_chaos(6)}\n"}
    assert _chaos(5) != _chaos(6)


def test_writing_is_data_only() -> None:
    """Records of clients are told from the server's own."""
    hands = Hands()
    hands.bootstrap()
    assert [r.kind for r in hands.write(hands.session("pg1"), 2)] == [DATA, DATA]
    hands.engine.close()
