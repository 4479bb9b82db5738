"""Before every other rule: foreign data, a running job, a server that is not proven stopped; requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from haagent.core.actions import AnswerRequest, AskPeers, CancelJob, Clone, Exit, Restart
from haagent.core.model import JobFacts, Memory, OperatorRequest
from haagent.core.restart import RestartWish
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NO_LEASE,
    NOW,
    REMEMBERS,
    SETTINGS,
    answer,
    cluster,
    control,
    empty,
    following,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    member,
    no_answer,
    obs,
    paused,
    primary,
    sample,
    silent,
    standby,
    stopped,
    tags,
)

FOREIGN = control(system_identifier="7000000000000000001")
RESTART, REINIT = OperatorRequest(3, "restart"), OperatorRequest(4, "reinitialize")


def starting(since: float = NOW - 5, epoch: int = EPOCH, **changes: object) -> JobFacts:
    return replace(JobFacts("start primary", since, epoch=epoch), **changes)  # type: ignore[arg-type]


# --- foreign data ---------------------------------------------------------------------------------


def test_data_of_another_cluster_ends_the_agent() -> None:
    decision = judge(following(stopped(control=FOREIGN)))
    assert (decision.rule, kinds(decision)) == ("start.foreign-cluster", (Exit,))


def test_paused_data_of_another_cluster_is_left_alone() -> None:
    assert judge(following(stopped(control=FOREIGN), settings=paused())).rule == "pause.other"


def test_an_unreadable_initialize_says_nothing_about_our_data() -> None:
    assert judge(following(standby(), cluster(initialize="x"))).rule == "follow.steady"


def test_a_replica_of_a_cluster_nobody_knows_lets_its_primary_go_first() -> None:
    new = cluster(leader=None, initialize=None, members=(), status=None)
    assert judge(obs("pg1", standby(), new)).rule == "start.replica-first"


def test_a_replica_of_a_cluster_whose_initialize_was_deleted_takes_part() -> None:
    """Else, with the last primary gone for good, every agent that is started would end, for ever."""
    view = cluster(leader=None, initialize=None, members=())
    assert judge(obs("pg1", lost_stream(), view)).rule == "race.take"


def test_a_replica_whose_store_was_wiped_stays() -> None:
    new = cluster(leader=None, initialize=None, members=(), status=None)
    assert judge(obs("pg1", lost_stream(), new), REMEMBERS).rule != "start.replica-first"


# --- jobs -----------------------------------------------------------------------------------------


def test_while_a_job_runs_nothing_else_is_begun() -> None:
    decision = judge(following(stopped(), job=JobFacts("rewind", NOW - 5, "from pg0")))
    assert (decision.rule, decision.actions) == ("job.running", ())


def test_a_job_whose_lease_is_lost_is_cancelled_once() -> None:
    job = starting(epoch=EPOCH - 1)
    first = judge(leading(silent(), job=job))
    assert (first.rule, kinds(first)) == ("job.lease-lost", (CancelJob,))
    assert judge(leading(silent(), job=replace(job, cancelled=True))).rule == "job.running"


def test_a_stop_that_waits_for_a_program_waits_no_longer_than_the_lease() -> None:
    waiting = JobFacts("stop", NOW - 5, epoch=EPOCH)
    assert judge(leading(primary(), job=waiting)).rule == "job.running"
    for lost in (NO_LEASE, lease(closed_epoch=EPOCH)):
        assert judge(leading(primary(), job=waiting, lease=lost)).rule == "job.lease-lost"


def test_a_job_is_cancelled_when_the_agent_is_told_to_stop() -> None:
    decision = judge(following(stopped(), job=JobFacts("clone", NOW - 5), stopping=True))
    assert (decision.rule, kinds(decision)) == ("job.stopping", (CancelJob,))
    stop = following(stopped(), job=JobFacts("stop", NOW - 5), stopping=True)
    assert judge(stop).rule == "job.running"


def test_a_request_during_a_job_is_refused() -> None:
    decision = judge(following(stopped(), job=JobFacts("clone", NOW - 5), request=RESTART))
    assert (decision.rule, decision.actions) == (
        "job.busy",
        (AnswerRequest(3, 503, "clone already in progress"),),
    )


def test_a_request_during_a_starting_primary_is_refused_too() -> None:
    decision = judge(leading(silent(), job=starting(), request=RESTART))
    assert decision.actions == (AnswerRequest(3, 503, "postgres is still starting"),)


def test_a_reinitialization_by_force_cancels_what_runs_and_waits_for_its_end() -> None:
    forced, clone = replace(REINIT, force=True), JobFacts("clone", NOW - 5, title="bootstrap from pg0")
    decision = judge(following(stopped(), job=clone, request=forced))
    assert (decision.rule, kinds(decision)) == ("job.makes-way", (CancelJob,))
    cancelled = replace(clone, cancelled=True)
    assert judge(following(stopped(), job=cancelled, request=forced)).actions == ()
    polite = judge(following(stopped(), job=clone, request=REINIT))
    assert polite.actions == (AnswerRequest(4, 503, "bootstrap from pg0 already in progress"),)


def test_nothing_is_cancelled_by_force_where_the_data_are_the_primarys() -> None:
    forced, job = replace(REINIT, force=True), JobFacts("restart", NOW - 5, epoch=EPOCH)
    refused = (AnswerRequest(4, 503, "restart already in progress"),)
    assert judge(leading(silent(writable=True), job=job, request=forced)).actions == refused
    assert judge(following(primary(), job=replace(job, epoch=None), request=forced)).actions == refused


RESTARTING = JobFacts("restart", NOW - 60, epoch=EPOCH, starting_since=NOW - 5, start_timeout_s=20)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, "job.starting"),
        ({"starting_since": NOW - 21}, "job.slow-start"),
        ({"starting_since": None}, "job.running"),
        ({"starting_since": NOW - 1000, "start_timeout_s": None}, "job.running"),
    ],
)
def test_a_restarted_primary_has_the_time_it_was_given_once_it_starts(
    changes: dict[str, Any], rule: str
) -> None:
    job = replace(RESTARTING, **changes)
    decision = judge(leading(silent(writable=True), job=job, peers=(answer("pg1"), answer("pg2"))))
    assert decision.rule == rule
    assert (CancelJob in kinds(decision)) is (rule == "job.slow-start")


def test_a_restart_takes_the_usual_time_unless_another_was_asked_for() -> None:
    asked_for = replace(RESTART, wish=RestartWish(timeout_s=7))
    none = replace(SETTINGS, primary_start_timeout_s=0)
    assert judge(leading(primary(), request=asked_for)).actions == (Restart(3, EPOCH, None, 7),)
    assert judge(following(standby(), request=asked_for)).actions == (Restart(3, None, "pg0", 7),)
    assert judge(leading(primary(), request=RESTART, settings=none)).actions == (Restart(3, EPOCH, None),)


def test_a_starting_primary_has_its_time() -> None:
    assert judge(leading(silent(writable=True), job=starting())).rule == "job.starting"


def test_a_primary_that_takes_too_long_looks_for_a_successor() -> None:
    decision = judge(leading(silent(writable=True), job=starting(NOW - 301)))
    assert (decision.rule, decision.actions) == ("job.slow-start.ask", (AskPeers(("pg1", "pg2")),))


def test_a_primary_that_takes_too_long_is_cancelled_when_a_standby_can_take_over() -> None:
    seen = leading(silent(writable=True), job=starting(NOW - 301), peers=(answer("pg1"), no_answer("pg2")))
    assert judge(seen).rule == "job.slow-start"


@pytest.mark.parametrize(
    "unfit",
    [
        no_answer("pg1"),
        replace(answer("pg1"), cannot_lead="disk full"),
        replace(answer("pg1"), tags=tags(nofailover=True)),
        replace(answer("pg1"), watchdog_failed=True),
    ],
)
def test_a_primary_that_takes_too_long_goes_on_when_nobody_can_take_over(unfit: object) -> None:
    seen = leading(silent(writable=True), job=starting(NOW - 301), peers=(unfit, no_answer("pg2")))
    assert judge(seen).rule == "job.running"


def test_paused_a_slow_start_is_not_cancelled() -> None:
    answers = (answer("pg1"), answer("pg2"))
    seen = leading(silent(writable=True), job=starting(NOW - 301), peers=answers, settings=paused())
    assert CancelJob not in kinds(judge(seen))


# --- not proven stopped ---------------------------------------------------------------------------


def test_while_something_of_the_old_server_lives_nothing_is_started_or_released() -> None:
    for seen in (leading(stopped(leftovers=True)), following(stopped(leftovers=True))):
        decision = judge(seen)
        assert (decision.rule, decision.actions) == ("guard.not-proven-stopped", ())
    closed = lease(fence_at=None, closed_epoch=EPOCH)
    assert judge(leading(stopped(leftovers=True), lease=closed)).actions == ()
    assert judge(leading(stopped(leftovers=True), DOWN, lease=NO_LEASE)).actions == ()


# --- requests -------------------------------------------------------------------------------------


def test_the_primary_is_restarted_on_request() -> None:
    decision = judge(leading(primary(), request=RESTART))
    assert (decision.rule, decision.actions) == ("request.restart", (Restart(3, EPOCH, None, 300),))


def test_a_standby_is_restarted_on_request() -> None:
    assert judge(following(standby(), request=RESTART)).actions == (Restart(3, None, "pg0"),)


def test_a_restart_without_data_is_refused() -> None:
    assert judge(following(empty(), request=RESTART)).rule == "request.refused"


def test_a_restart_of_a_starting_server_is_refused() -> None:
    assert judge(following(silent(), request=RESTART)).rule == "request.refused"


def test_a_primary_without_a_proven_lease_is_not_restarted() -> None:
    view = cluster(leader=None)
    assert judge(obs("pg0", primary(), view, request=RESTART)).rule == "request.refused"


@pytest.mark.parametrize(
    ("conditions", "restarted"),
    [
        (RestartWish(role="primary"), "leader"),
        (RestartWish(role="replica"), "standby"),
        (RestartWish(below_version=150006), "leader standby"),
        (RestartWish(below_version=150005), ""),
        (RestartWish(pending=True), ""),
        (RestartWish("replica", 150006, pending=True), ""),
    ],
)
def test_a_restart_happens_only_where_its_conditions_hold(conditions: RestartWish, restarted: str) -> None:
    wish = replace(RESTART, wish=conditions)
    refused = (AnswerRequest(3, 503, "restart conditions are not satisfied"),)
    as_leader = judge(leading(primary(), request=wish)).actions
    as_standby = judge(following(standby(), request=wish)).actions
    assert as_leader == ((Restart(3, EPOCH, None, 300),) if "leader" in restarted else refused)
    assert as_standby == ((Restart(3, None, "pg0"),) if "standby" in restarted else refused)


def test_a_pending_restart_is_one_of_the_conditions() -> None:
    wish = replace(RESTART, wish=RestartWish(pending=True))
    waiting = primary(sample=sample(primary=True, pending_restart=(("max_connections", "100", "60"),)))
    assert judge(leading(waiting, request=wish)).actions == (Restart(3, EPOCH, None, 300),)


def test_conditions_that_cannot_be_judged_do_not_hold() -> None:
    wish = replace(RESTART, wish=RestartWish(below_version=990000))
    assert judge(following(stopped(), request=wish)).actions == (
        AnswerRequest(3, 503, "restart conditions are not satisfied"),
    )


def test_a_replica_is_reinitialized_on_request() -> None:
    decision = judge(following(standby(), request=REINIT))
    assert decision.rule == "request.reinitialize"
    assert decision.actions == (
        AnswerRequest(4, 200, "reinitialize started"),
        Clone("pg0", "pg0", True, True),
    )


def test_a_reinitialization_may_insist_on_the_leader() -> None:
    view = cluster(members=(member("pg0"), member("pg1"), member("pg2", tags=tags(clonefrom=True))))
    assert Clone("pg2", "pg0", True, True) in judge(following(standby(), view, request=REINIT)).actions
    insists = replace(REINIT, from_leader=True)
    assert Clone("pg0", "pg0", True, True, True) in judge(following(standby(), view, request=insists)).actions


def test_the_leader_is_never_reinitialized() -> None:
    assert judge(leading(primary(), request=REINIT)).rule == "request.refused"
    stranger = obs("pg0", stopped(), cluster(), lease=NO_LEASE, request=REINIT)
    assert judge(stranger).rule == "request.refused"


def test_nothing_is_reinitialized_without_a_running_leader() -> None:
    assert judge(following(standby(), cluster(leader=None), request=REINIT)).rule == "request.refused"
    down = cluster(members=(member("pg0", state="crashed"), member("pg1")))
    assert judge(following(standby(), down, request=REINIT)).rule == "request.refused"


def test_a_primary_that_another_member_replaced_is_not_reinitialized_while_it_runs() -> None:
    assert judge(following(primary(), request=REINIT), Memory()).rule == "request.refused"
    assert SETTINGS.primary_start_timeout_s == 300
