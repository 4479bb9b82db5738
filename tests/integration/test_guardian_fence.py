"""The fence on real PostgreSQL: nothing is writable at `hard_at`, whoever died, froze or refuses to stop."""

from __future__ import annotations

import os
import signal
import subprocess

import psycopg
import pytest

from haagent import guardian_os
from haagent.guardian_os import boottime
from tests.integration.guardian_support import (
    DEADLINE_S,
    Agent,
    Rig,
    Writer,
    freeze,
    rig_fixture,  # noqa: F401 - brings the fixture `rig`
    template_fixture,  # noqa: F401 - which needs this one
    wait_dead,
    wait_for,
)


def assert_fenced(rig: Rig, agent: Agent | None, writers: list[Writer], hard_at: float) -> None:
    for writer in writers:
        assert writer.wait_end() <= hard_at
    if agent is not None:
        event = agent.event("PostmasterExited")
        assert event["fenced"]
        assert event["leftovers"] == []
        assert rig.processes() == []
    else:
        wait_for(lambda: not rig.processes(), "the end of PostgreSQL")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(host=str(rig.root), user="postgres", dbname="postgres")


def test_deadline_ends_sessions_and_closes_the_epoch(rig: Rig) -> None:
    agent, _, pid = rig.primary()
    old_session = Writer(rig)
    fence_at, hard_at = agent.arm(2, in_s=0.5)
    assert agent.event("Fencing")["epoch"] == 2
    assert boottime() >= fence_at
    assert_fenced(rig, agent, [old_session], hard_at)
    _, state = agent.ask("status")
    assert state["closed_epoch"] == 2
    assert state["armed"] is None
    assert state["last_exit"] == {"pid": pid, "status": 0, "fenced": True}
    assert agent.ask("arm", ["session", 2], boottime() + 9, boottime() + 10)[0] == "ArmRefused"


def test_renewed_deadline_does_not_fire_and_never_moves_back(rig: Rig) -> None:
    agent, _, _ = rig.primary(in_s=0.5)
    later, _ = agent.arm(1, in_s=60)
    assert agent.arm(1, in_s=1)[0] == later
    wait_for(lambda: boottime() > later - 59, "the first deadline to be past")
    Writer(rig)
    _, state = agent.ask("status")
    assert state["postmaster"]["running"]
    assert agent.events.empty()


def test_killed_agent_does_not_stop_the_fence(rig: Rig) -> None:
    agent, _, _ = rig.primary()
    writer = Writer(rig)
    _, hard_at = agent.arm(2, in_s=0.5)
    agent.kill()
    assert_fenced(rig, None, [writer], hard_at)


def test_agent_restarted_within_the_lease_finds_everything(rig: Rig) -> None:
    agent, guardian, pid = rig.primary()
    writer = Writer(rig)
    assert agent.ask("hold", "lease 17")[0] == "Done"
    agent.kill()
    second = rig.agent()
    hello = second.hello()
    assert hello["guardian_pid"] == guardian
    assert hello["generation"] == 2
    assert hello["held"] == "lease 17"
    assert hello["armed"]["handle"] == ["session", 1]
    assert hello["postmaster"]["pid"] == pid
    assert hello["postmaster"]["writable_epoch"] == 1
    second.arm(1, in_s=70)
    writer.wait_ack()
    assert writer.fault is None


def test_postgresql_dies_with_its_guardian(rig: Rig) -> None:
    agent, guardian, pid = rig.primary()
    writer = Writer(rig)
    os.kill(guardian, signal.SIGKILL)
    writer.wait_end()
    wait_dead(pid)
    wait_for(lambda: not rig.processes(), "the end of PostgreSQL")
    agent.event("GuardianLost")


def test_stopped_postmaster_is_fenced_with_its_backends(rig: Rig) -> None:
    agent, _, pid = rig.primary()
    writer = Writer(rig)
    freeze(pid)
    _, hard_at = agent.arm(2, in_s=0.5)
    assert_fenced(rig, agent, [writer], hard_at)


def test_backend_that_acts_on_no_signal_is_dead_in_time(rig: Rig) -> None:
    agent, _, _ = rig.primary()
    stopped, writer = Writer(rig), Writer(rig)
    freeze(stopped.pid)
    _, hard_at = agent.arm(2, in_s=0.5)
    assert_fenced(rig, agent, [writer, stopped], hard_at)


def test_killed_postmaster_is_told_when_its_backends_are_dead(rig: Rig) -> None:
    agent, _, pid = rig.primary()
    busy = rig.connect()
    backend = busy.info.backend_pid
    busy.pgconn.send_query(
        b"do $$begin loop perform count(*) from generate_series(1, 10000); end loop; end$$"
    )
    os.kill(pid, signal.SIGKILL)
    event = agent.event("PostmasterExited")
    assert not guardian_os.is_alive(backend)
    assert event == {"pid": pid, "status": -signal.SIGKILL, "fenced": False, "leftovers": []}
    assert rig.processes() == []
    rig.start(agent)  # the epoch is still open


def test_asked_kill_leaves_nobody(rig: Rig) -> None:
    agent, _, pid = rig.primary()
    writer = Writer(rig)
    freeze(pid)
    freeze(writer.pid)
    assert agent.ask("stop", "kill")[0] == "Done"
    assert agent.event("PostmasterExited")["leftovers"] == []
    assert rig.processes() == []
    writer.wait_end()


def test_guardian_frozen_across_the_deadline_fences_on_resume(rig: Rig) -> None:
    agent, guardian, _ = rig.primary()
    writer = Writer(rig)
    _, hard_at = agent.arm(2, in_s=0.5, budget_s=0.1)
    freeze(guardian)
    # Queued behind the deadline, and without effect because of that: a renewal and a promotion.
    agent.send("arm", ["session", 2], boottime() + 60, boottime() + 61, deadline_s=DEADLINE_S)
    wait_for(lambda: boottime() > hard_at, "the deadline")
    assert writer.fault is None
    os.kill(guardian, signal.SIGCONT)
    assert agent.receive()[0] == "ArmRefused"
    assert agent.event("PostmasterExited")["fenced"]
    writer.wait_end()


def test_client_wakes_a_stopped_guardian(rig: Rig) -> None:
    agent = rig.agent()
    guardian = agent.hello()["guardian_pid"]
    freeze(guardian)
    assert agent.ask("status", deadline_s=0.2)[0] == "NoAnswer"
    wait_for(lambda: not guardian_os.is_stopped(guardian), "the guardian to run")
    assert agent.ask("status")[0] == "GuardianState"


def test_agent_fences_alone_when_the_guardian_is_frozen(rig: Rig) -> None:
    agent, guardian, pid = rig.primary()
    writer = Writer(rig)
    freeze(guardian)
    freeze(pid)
    os.symlink(rig.data_dir, f"{rig.root}/link")
    assert agent.ask("fence_directly", pid, f"{rig.root}/link", deadline_s=DEADLINE_S) == ("list", [])
    writer.wait_end()
    assert rig.processes() == []
    os.kill(guardian, signal.SIGCONT)
    assert agent.event("PostmasterExited")["leftovers"] == []


def test_fence_directly_leaves_strangers_alone(rig: Rig) -> None:
    agent = rig.agent()
    agent.hello()
    with subprocess.Popen(["sleep", "60"], cwd="/") as stranger:
        assert agent.ask("fence_directly", stranger.pid, rig.data_dir) == ("list", [])
        assert guardian_os.is_alive(stranger.pid)
        stranger.kill()


def test_adopted_primary_is_fenced(rig: Rig) -> None:
    pid, ticks = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    agent.arm(1, in_s=60)
    assert agent.ask("adopt", pid, ticks)[0] == "Done"
    _, state = agent.ask("status")
    assert state["postmaster"]["adopted"]
    assert not state["postmaster"]["death_signal"]
    writer = Writer(rig)
    _, hard_at = agent.arm(2, in_s=0.5)
    assert_fenced(rig, agent, [writer], hard_at)


def test_adopted_primary_keeps_its_fence_when_the_epoch_is_closed(rig: Rig) -> None:
    pid, ticks = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    assert agent.ask("adopt", pid, ticks)[0] == "Done"
    writer = Writer(rig)
    assert agent.ask("close_epoch", 1)[0] == "Refused"  # it writes, and no fence is armed
    _, hard_at = agent.arm(2, in_s=0.5)
    assert agent.ask("status")[1]["postmaster"]["writable_epoch"] == 2
    assert agent.ask("close_epoch", 2)[0] == "Done"
    assert_fenced(rig, agent, [writer], hard_at)


def test_adopted_and_stopped_primary_is_fenced_with_its_backends(rig: Rig) -> None:
    pid, ticks = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    assert agent.ask("adopt", pid, ticks)[0] == "Done"
    writer, stopped = Writer(rig), Writer(rig)
    freeze(pid)
    freeze(stopped.pid)
    _, hard_at = agent.arm(2, in_s=0.5)
    assert_fenced(rig, agent, [writer, stopped], hard_at)


def test_adopted_postmaster_killed_by_others_leaves_no_backend(rig: Rig) -> None:
    pid, ticks = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    assert agent.ask("adopt", pid, ticks)[0] == "Done"
    busy = rig.connect()
    backend = busy.info.backend_pid
    busy.pgconn.send_query(
        b"do $$begin loop perform count(*) from generate_series(1, 10000); end loop; end$$"
    )
    os.kill(pid, signal.SIGKILL)
    assert agent.event("PostmasterExited") == {"pid": pid, "status": None, "fenced": False, "leftovers": []}
    assert not guardian_os.is_alive(backend)


def test_disarmed_deadline_does_not_fire_until_armed_again(rig: Rig) -> None:
    agent, _, _ = rig.primary()
    fence_at, _ = agent.arm(2, in_s=0.5)
    assert agent.ask("disarm")[0] == "Done"
    wait_for(lambda: boottime() > fence_at, "the deadline")
    writer = Writer(rig)
    _, state = agent.ask("status")
    assert state["disarmed"]
    assert state["armed"]["handle"] == ["session", 2]
    _, hard_at = agent.arm(2, in_s=0.5)
    assert_fenced(rig, agent, [writer], hard_at)


def test_closed_epoch_keeps_its_fence_while_the_server_may_write(rig: Rig) -> None:
    agent, _, _ = rig.primary()
    writer = Writer(rig)
    _, hard_at = agent.arm(2, in_s=1.0)
    assert agent.ask("close_epoch", 2)[0] == "Done"
    assert agent.ask("arm", ["session", 2], boottime() + 60, boottime() + 61)[0] == "ArmRefused"
    assert agent.ask("disarm")[0] == "Refused"
    assert_fenced(rig, agent, [writer], hard_at)
