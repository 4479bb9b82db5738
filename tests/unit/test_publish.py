"""What a member tells the others: state, role, and a key that promises nothing it does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from haagent.core.model import Instance, JobFacts, LastExit, LeaseFacts, Memory, Unavailable
from haagent.core.publish import Addresses, cannot_lead, member_record, role_text, state_text
from postgres_ctl.facts import ControlState, InstanceSample
from tests.unit.core_facts import (
    EPOCH,
    NO_LEASE,
    NOW,
    OPTIME,
    crashed,
    empty,
    following,
    leading,
    lease,
    lost_stream,
    obs,
    paused,
    primary,
    silent,
    standby,
    stopped,
    tags,
)

WHERE = Addresses("postgres://10.0.0.1:5432/postgres", "http://10.0.0.1:8008/patroni", "4.1.5", "haagent/0.1")
CLOSED = lease(fence_at=None, closed_epoch=EPOCH)


def job(kind: str) -> JobFacts:
    return JobFacts(kind, NOW - 1)


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "memory", "state"),
    [
        (primary(), Memory(), "running"),
        (silent(), Memory(), "running"),
        (
            replace(silent(), sample=Unavailable(NOW, "the database system is starting up")),
            Memory(),
            "starting",
        ),
        (stopped(), Memory(), "stopped"),
        (stopped(), Memory(start_failures=1), "start failed"),
        (empty(), Memory(bootstrap="failed: disk full"), "initdb failed"),
    ],
)
def test_state_of_an_instance(instance: Instance, memory: Memory, state: str) -> None:
    assert state_text(following(instance), memory) == state


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("initdb", "initializing new cluster"),
        ("custom bootstrap", "running custom bootstrap script"),
        ("clone", "creating replica"),
        ("restart", "restarting"),
        ("start primary", "starting"),
        ("stop", "stopping"),
    ],
)
def test_a_job_is_the_state(kind: str, state: str) -> None:
    assert state_text(leading(primary(), job=job(kind)), Memory()) == state


def test_a_primary_that_died_with_its_key_is_crashed() -> None:
    assert state_text(leading(crashed()), Memory()) == "crashed"
    assert state_text(leading(crashed(last_exit=LastExit(True, True))), Memory()) == "stopped"
    # Stopped on purpose: the successor of a switchover reads this, and asks nobody.
    clean = stopped(ControlState.SHUT_DOWN, last_exit=LastExit(False, True))
    assert state_text(leading(clean), Memory()) == "stopped"


# --- role -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "have", "role"),
    [
        (primary(), lease(), "primary"),
        (primary(), CLOSED, "demoted"),
        (silent(writable=True), CLOSED, "demoted"),
        # Fenced, and it cannot be ended (H13): the key is long gone, or another agent looks at it.
        (silent(writable=True, epoch=EPOCH), replace(NO_LEASE, closed_epoch=EPOCH), "demoted"),
        (primary(writable_epoch=EPOCH), replace(NO_LEASE, closed_epoch=EPOCH), "demoted"),
        (primary(writable_epoch=EPOCH + 1), lease(epoch=EPOCH + 1, closed_epoch=EPOCH), "primary"),
        (primary(), replace(NO_LEASE, closed_epoch=EPOCH), "primary"),
        (lost_stream(writable=True), lease(), "promoted"),
        (standby(), NO_LEASE, "replica"),
        (standby(), lease(), "replica"),
        (crashed(), lease(), "primary"),
        (crashed(), CLOSED, "demoted"),
        (stopped(), NO_LEASE, "replica"),
        (empty(), NO_LEASE, "uninitialized"),
    ],
)
def test_role_of_an_instance(instance: Instance, have: LeaseFacts, role: str) -> None:
    assert role_text(leading(instance, lease=have)) == role


def test_a_member_that_promotes_says_so() -> None:
    assert role_text(leading(standby(), job=job("promote"))) == "promoted"


# --- member key -----------------------------------------------------------------------------------


def record(seen: Any, memory: Memory | None = None) -> Any:
    return member_record(seen, memory if memory is not None else Memory(), WHERE)


def test_a_primary_publishes_its_position_and_no_others() -> None:
    told = record(leading(primary()), Memory(checkpointed_epoch=EPOCH))
    assert (told.role, told.state, told.timeline) == ("primary", "running", 1)
    assert (told.xlog_location, told.receive_lsn, told.replay_lsn) == (OPTIME, None, None)
    assert (told.version, told.agent, told.checkpoint_after_promote) == ("4.1.5", "haagent/0.1", None)


def test_a_new_primary_says_that_its_checkpoint_is_missing() -> None:
    assert record(leading(primary())).checkpoint_after_promote is False
    assert record(following(standby())).checkpoint_after_promote is None


def test_a_standby_publishes_what_it_received_and_replayed() -> None:
    told = record(following(standby()))
    assert (told.receive_lsn, told.replay_lsn, told.replication_state) == (OPTIME, OPTIME, "streaming")


def test_a_demoted_primary_publishes_no_position() -> None:
    assert record(leading(primary(), lease=CLOSED)).xlog_location is None


def test_during_a_job_no_position_is_published() -> None:
    assert record(following(standby(), job=job("restart"))).xlog_location is None
    assert record(leading(standby(), job=job("promote"))).xlog_location == OPTIME


def test_pending_restarts_and_the_pause_are_published() -> None:
    here = standby()
    assert isinstance(here.sample, InstanceSample)
    waiting = replace(here, sample=replace(here.sample, pending_restart=(("max_connections", "100", "200"),)))
    told = record(following(waiting, settings=paused()))
    assert told.pending_restart
    assert dict(told.pending_restart_reason) == {"max_connections": ("100", "200")}
    assert told.pause


def test_a_note_for_people_is_published() -> None:
    assert record(following(stopped()), Memory(note="pg_rewind failed")).note == "pg_rewind failed"


# --- cannot lead ----------------------------------------------------------------------------------


def test_a_healthy_standby_can_lead() -> None:
    assert cannot_lead(following(standby()), Memory()) is None
    assert cannot_lead(following(lost_stream()), Memory()) is None


def test_a_primary_leads_already() -> None:
    assert cannot_lead(leading(primary()), Memory(promote_failed_at=NOW)) is None


def test_why_a_member_cannot_lead_is_published() -> None:
    tagged = following(standby())
    tagged = replace(tagged, me=replace(tagged.me, tags=tags(nofailover=True)))
    for seen, memory, rule in (
        (tagged, Memory(), "tag.nofailover"),
        (following(silent()), Memory(), "postgres.answers"),
        (following(standby()), Memory(promote_failed_at=NOW - 1), "promote.failed"),
        (obs("pg1", stopped(ControlState.SHUT_DOWN)), Memory(), "postgres.answers"),
    ):
        assert (cannot_lead(seen, memory) or "").startswith(rule)
