"""The short set of directed faults on hosts in network namespaces; `make chaos` draws many more.

Every round has writers on every server, through sessions from before the fault and from after it, inside a
transaction and inside a procedure too, and ends healed. What they saw is judged by `torture.checker`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.torture import plan
from tests.chaos.torture.campaign import CONTROL
from tests.chaos.torture.faults import ALL
from tests.chaos.torture.plan import Round
from tests.chaos.torture.rounds import Result, Runner, wait_successor, wait_two_writable
from tests.chaos.torture.stage import Stage
from tests.support import netns, storage
from tests.support.cluster import Node
from tests.support.wait import holds_for
from tests.support.writers import Writers

#: Long enough that a busy machine does not lose a lease by itself.
TTL_S = 6.0
Until = Callable[[Writers, Node], None]


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    """One cluster for the short set: three servers, three etcd members. Every round leaves it whole."""
    lacking = netns.missing()
    if lacking:
        pytest.skip(lacking)
    with Stage(nodes=3, etcds=3, ttl=TTL_S) as stage:
        yield stage


@pytest.fixture
def runner(shared: Stage) -> Runner:
    return Runner(shared, random.Random(1))


@pytest.fixture
def runner_on_disks() -> Iterator[Runner]:
    """A cluster of its own, whose nodes have disks that can hang and fill up."""
    lacking = netns.missing() or storage.unavailable()
    if lacking:
        pytest.skip(lacking)
    with Stage(nodes=3, etcds=3, ttl=TTL_S, disks=True) as stage:
        yield Runner(stage, random.Random(1))


def survive(runner: Runner, drawn: Round, until: Until | None = None) -> Result:
    result = runner.run(drawn, until)
    assert result.violations == (), str(drawn)
    assert result.double_acknowledged == 0
    return result


def fails_over(runner: Runner, *faults: str) -> None:
    """These faults together, until a successor acknowledges writes; then all is well again."""
    result = survive(runner, plan.single(*faults, lasts_s=0.0), wait_successor)
    assert len({server for server, _ in result.tenures}) > 1, faults


def goes_on(runner: Runner, *faults: str) -> None:
    """These faults for longer than a loop and a retry do not cost the primary its role."""
    result = survive(runner, plan.single(*faults, lasts_s=2.5))
    assert len({server for server, _ in result.tenures}) == 1, faults


def test_processes_of_the_primary_killed_and_frozen(runner: Runner) -> None:
    fails_over(runner, "kill agent and guardian")
    fails_over(runner, "freeze agent")
    fails_over(runner, "freeze postmaster", "kill agent")
    goes_on(runner, "kill guardian")
    goes_on(runner, "freeze guardian", "freeze a backend")
    goes_on(runner, "kill a backend")


def test_packets_of_the_primary_lost(runner: Runner) -> None:
    fails_over(runner, "isolate")
    fails_over(runner, "lose what it sends to etcd")
    goes_on(runner, "cut replication", "cut agents from each other")


def test_planned_operations_lose_nothing_and_etcd_members_come_and_go(runner: Runner) -> None:
    result = survive(runner, plan.single("switchover", lasts_s=0.0))
    assert result.plan.planned
    assert len(result.tenures) == 2
    assert result.lost_rows == 0
    goes_on(runner, "kill an etcd member")


def test_without_a_fence_the_checker_sees_two_writable_servers(runner: Runner) -> None:
    """The positive control: guardian and agent frozen, which only a watchdog could cover."""
    result = runner.run(CONTROL, wait_two_writable)
    assert "late-ack" in {violation.rule for violation in result.violations}
    assert result.double_acknowledged > 0
    assert result.recovery_s is not None


# --- longer ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_fault_alone_is_survived(runner_on_disks: Runner) -> None:
    for fault in ALL.values():
        standby = 0 if fault.role == "standby" else None
        lasts_s = 0.0 if fault.planned else 1.5 * TTL_S
        survive(runner_on_disks, plan.single(fault.name, lasts_s=lasts_s, standby=standby))


@pytest.mark.slow
def test_standbys_too_far_behind_do_not_take_over_and_nothing_is_lost(runner: Runner) -> None:
    """Rule 5: beyond `maximum_lag_on_failover` the cluster waits for its primary."""
    stage = runner.stage
    size_bytes = 3 * stage.maximum_lag_bytes

    def fall_behind_and_lose_the_primary(writers: Writers, old: Node) -> None:
        before = old.value("select pg_current_wal_lsn()::text")
        old.value("select pg_logical_emit_message(false, 'chaos', repeat('x', %s))::text", size_bytes)
        published = "select pg_current_wal_lsn() - %s::pg_lsn"
        assert old.value(published, before) >= size_bytes
        stage.wait_published(old)
        old.kill_all()
        others = [node for node in stage.nodes if node is not old]
        nobody = "a standby far behind becomes primary"
        holds_for(lambda: not any(node.is_writable() for node in others), 2 * TTL_S, nobody)

    result = survive(runner, plan.single("cut replication", lasts_s=0.0), fall_behind_and_lose_the_primary)
    assert result.lost_rows == 0
