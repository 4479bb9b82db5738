"""Failsafe mode: who is asked, who promises what, and whom it keeps from leading (H19)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Broken, Status
from haagent.core import failsafe
from haagent.core import lease as lease_core
from haagent.core.actions import AskPeers, StopInstance, TakeLeader, WriteFailsafe
from haagent.core.candidate import handover_refusal
from haagent.core.failsafe import Question, Reply
from haagent.core.model import LeaseFacts, Memory, Observation, PromiseFacts
from haagent.promises import Promises
from haagent.runtime import SystemRuntime
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NO_LEASE,
    NOW,
    OPTIME,
    REMEMBERS,
    SETTINGS,
    asked,
    cluster,
    following,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    member,
    obs,
    primary,
    racing,
    request,
    standby,
)
from tests.unit.core_facts import answer as peer_answer

ON = replace(SETTINGS, failsafe_mode=True)
URLS = {n: f"http://10.0.0.{n[-1]}:8008/patroni" for n in ("pg0", "pg1", "pg2")}


# --- the key --------------------------------------------------------------------------------------


def written(seen: Observation) -> Any:
    return [a.members for a in judge(seen).actions if isinstance(a, WriteFailsafe)]


def test_the_leader_names_all_members_and_itself_and_only_when_they_change() -> None:
    assert written(leading(primary(), settings=ON)) == [URLS]
    assert written(leading(primary(), cluster(failsafe=URLS), settings=ON)) == []
    fewer = {n: URLS[n] for n in ("pg0", "pg1")}
    assert written(leading(primary(), cluster(failsafe=fewer), settings=ON)) == [URLS]


def test_after_the_status() -> None:
    """The order of contract 1.2."""
    old = cluster(status=Status(OPTIME - 10))
    order = [k.__name__ for k in kinds(judge(leading(primary(), old, settings=ON)))]
    assert order.index("WriteStatus") < order.index("WriteFailsafe")


def test_without_an_address_nobody_can_be_asked() -> None:
    members = (member("pg0"), member("pg1", api_url=None))
    assert written(leading(primary(), cluster(members=members), settings=ON)) == [{"pg0": URLS["pg0"]}]


def test_a_member_whose_key_cannot_be_read_stays_named() -> None:
    broken = (Broken("members/pg2", "not JSON"),)
    seen = cluster(members=(member("pg0"), member("pg1")), failsafe=URLS, broken=broken)
    assert written(leading(primary(), seen, settings=ON)) == []


def test_the_key_stays_while_promises_of_those_in_it_carry_the_lease() -> None:
    carried = lease(failsafe_until=NOW + 20)
    fewer = {n: URLS[n] for n in ("pg0", "pg1")}
    assert written(leading(primary(), cluster(failsafe=fewer), settings=ON, lease=carried)) == []


def test_switched_off_the_key_is_emptied() -> None:
    assert written(leading(primary(), cluster(failsafe=URLS))) == [{}]
    assert written(leading(primary(), cluster(failsafe={}))) == []
    assert written(leading(primary(), cluster(failsafe=URLS), lease=lease(failsafe_until=NOW + 20))) == []


# --- who may lead ---------------------------------------------------------------------------------


def refused(seen: Observation, memory: Memory = REMEMBERS) -> list[str]:
    return [r.rule for r in judge(seen, memory).refusals]


def free(**changes: Any) -> Any:
    left = tuple(member(n) for n in ("pg1", "pg2"))
    return cluster(leader=None, members=left, **changes)


def test_who_is_not_named_may_not_lead() -> None:
    others = {n: URLS[n] for n in ("pg0", "pg2")}
    assert refused(racing(lost_stream(), free(failsafe=others), settings=ON)) == ["failsafe.member"]
    assert judge(racing(lost_stream(), free(failsafe=URLS), settings=ON), REMEMBERS).rule == "race.take"
    assert judge(racing(lost_stream(), free(failsafe={}), settings=ON), REMEMBERS).rule == "race.take"


def test_an_operator_cannot_waive_that() -> None:
    others = {n: URLS[n] for n in ("pg0", "pg2")}
    forced = asked(free(failsafe=others), request(leader=None))
    assert refused(racing(lost_stream(), forced, settings=ON)) == ["failsafe.member"]


def test_switched_off_it_holds_until_the_leader_knows() -> None:
    """The last leader may have lost the store before it heard that the mode is off."""
    others = {n: URLS[n] for n in ("pg0", "pg2")}
    assert refused(racing(lost_stream(), free(failsafe=others))) == ["failsafe.member"]
    ours = replace(REMEMBERS, last_members=(member("pg0"),))
    assert refused(racing(lost_stream(), free(failsafe=others)), ours) == ["failsafe.member"]
    patroni = replace(REMEMBERS, last_members=(member("pg0", agent=None),))
    assert refused(racing(lost_stream(), free(failsafe=others)), patroni) == []


def test_a_key_that_cannot_be_read_names_nobody_for_sure() -> None:
    broken = (Broken("failsafe", "not JSON"),)
    assert refused(racing(lost_stream(), free(broken=broken), settings=ON)) == ["failsafe.member"]
    assert refused(racing(lost_stream(), free(broken=broken))) == []


def test_a_promise_keeps_out_of_the_race_until_it_ends() -> None:
    promised = PromiseFacts(NOW + 12, "pg0", 3)
    seen = racing(lost_stream(), free(failsafe=URLS), settings=ON, promise=promised)
    assert refused(seen) == ["failsafe.promise"]
    assert refused(replace(seen, settings=SETTINGS)) == ["failsafe.promise"]  # also when switched off
    decision = judge(replace(seen, now=NOW + 12.01), REMEMBERS)
    assert decision.rule in ("race.ask", "race.take")


def test_a_promise_is_not_waived_by_an_operator_and_not_forgotten_once_the_key_is_held() -> None:
    promised = PromiseFacts(NOW + 12, "pg0", 3)
    forced = asked(free(failsafe=URLS), request(leader=None))
    assert refused(racing(lost_stream(), forced, settings=ON, promise=promised)) == ["failsafe.promise"]
    mine = following(lost_stream(), cluster(leader="pg1"), lease=lease(), settings=ON, promise=promised)
    assert judge(mine).rule == "promote.refused"


def test_whoever_hands_the_key_over_needs_no_promise_any_more() -> None:
    """Stopped cleanly, and this member has its last record: pg0 cannot be going on."""
    given = asked(free(failsafe=URLS, status=Status(OPTIME - 100, final_timeline=1)), request())
    promised = PromiseFacts(NOW + 12, "pg0", 3)
    assert judge(racing(lost_stream(), given, settings=ON, promise=promised), REMEMBERS).rule == "race.take"


def test_a_patroni_member_that_promised_is_no_candidate_and_one_of_ours_is() -> None:
    """It would keep out of the race although it is handed the key."""
    seen = leading(primary(), settings=ON)
    for is_haagent in (True, False):
        peer = peer_answer("pg1", failsafe_active=True, is_haagent=is_haagent)
        asks = replace(seen, peers={"pg1": peer})
        refused = handover_refusal(asks, cluster(), "pg1", forced=False)
        assert (refused is None) is is_haagent


# --- the outage -----------------------------------------------------------------------------------


def test_promises_carry_the_primary_and_it_looks_again_before_its_permit_ends() -> None:
    carried = lease(failsafe_until=NOW + 20)
    decision = judge(obs("pg0", primary(), DOWN, lease=carried, settings=ON))
    assert (decision.rule, decision.actions) == ("outage.failsafe", ())
    assert decision.line == (
        "continue to run as a leader because failsafe mode is enabled and all members are accessible"
    )
    longest_step_s = ON.retry_timeout_s + (decision.again_in_s or ON.loop_wait_s)
    assert longest_step_s < lease_core.permit_life_s(ON)


def test_one_refusal_later_the_fence_ends_it() -> None:
    over = lease(failsafe_until=NOW - 1, fence_at=NOW - 1)
    assert kinds(judge(obs("pg0", primary(), DOWN, lease=over, settings=ON))) == (StopInstance,)


def test_a_key_that_ran_out_meanwhile_may_be_free_to_be_taken_again() -> None:
    """The store is back and has refused; this step has not heard of it yet."""
    gone = LeaseFacts("session", None, refused="the lease is gone", failsafe_until=NOW + 5)
    assert judge(obs("pg0", primary(), DOWN, lease=gone, settings=ON)).rule == "outage.refused"
    late = replace(gone, failsafe_until=NOW - 1)
    assert judge(obs("pg0", primary(), DOWN, lease=late, settings=ON)).rule == "outage.demote"
    there = obs("pg0", primary(), cluster(leader=None, failsafe=URLS), lease=gone, settings=ON)
    assert kinds(judge(there)) == (AskPeers,)
    nobody = cluster(leader=None, members=(member("pg0"),))
    assert kinds(judge(replace(there, cluster=nobody))) == (TakeLeader,)


# --- the lease ------------------------------------------------------------------------------------


def held(**changes: Any) -> lease_core.Lease:
    fence_at, hard_at = lease_core.deadlines(NOW, 30, ON)
    base = lease_core.Lease("s", EPOCH, fence_at, hard_at, failures=1)
    return replace(base, **changes)


def test_members_are_asked_from_the_first_renewal_without_an_answer() -> None:
    assert lease_core.needs_promises(held(), NOW + 1, NOW + 20)
    assert not lease_core.needs_promises(held(failures=0), NOW + 1, NOW + 20)
    assert not lease_core.needs_promises(held(), NOW + 1, NOW + 0.5), "without a permit of the loop"
    assert not lease_core.needs_promises(held(), NOW + 29, NOW + 40), "the fence has passed"
    assert not lease_core.needs_promises(held(closed=True), NOW + 1, NOW + 20)


def test_a_promise_counts_from_before_it_was_asked_for_like_a_renewal() -> None:
    carried = lease_core.promised(held(), NOW + 10, 30, ON)
    assert (carried.fence_at, carried.hard_at) == lease_core.deadlines(NOW + 10, 30, ON)
    assert carried.failsafe_until == carried.fence_at
    shorter = lease_core.promised(held(), NOW + 10, 25, ON)
    assert (shorter.fence_at, shorter.hard_at) == lease_core.deadlines(NOW + 10, 25, ON)
    assert lease_core.promised(held(), NOW - 5, 30, ON) == held(), "nothing is ever shortened"
    assert lease_core.promised(held(closed=True), NOW + 10, 30, ON).failsafe_until is None


def test_the_store_is_back() -> None:
    carried = lease_core.promised(held(), NOW + 10, 30, ON)
    assert lease_core.renewed(carried, NOW + 11, 30, NOW + 11, ON).failsafe_until is None
    older = lease_core.renewed(carried, NOW + 9, 30, NOW + 11, ON)
    assert (older.fence_at, older.failsafe_until) == (carried.fence_at, carried.failsafe_until)


def test_a_refusal_ends_it_whatever_was_promised() -> None:
    carried = lease_core.promised(held(), NOW + 10, 30, ON)
    gone = lease_core.refused(carried, "the lease is gone", session_gone=True)
    assert not gone.holds(NOW + 11)
    assert not lease_core.needs_promises(gone, NOW + 11, NOW + 40)
    assert lease_core.promised(gone, NOW + 12, 30, ON) == gone


def test_a_slow_peer_gets_its_time_where_the_lease_has_it() -> None:
    assert failsafe.attempt_s(10.0) > 4
    assert failsafe.attempt_s(3.0) == 2.0
    assert failsafe.attempt_s(1.0) == pytest.approx(0.9)


# --- replies --------------------------------------------------------------------------------------


def test_only_an_acceptance_of_the_right_member_counts() -> None:
    assert failsafe.refusal("pg1", Reply(200, "Accepted")) is None
    assert failsafe.refusal("pg1", Reply(200, "Accepted\n", "pg1", 30.0)) is None
    for reply in (
        Reply(200, "Accepted", "pg2"),
        Reply(200, "OK"),
        Reply(500, "Running as a leader"),
        Reply(502, "failsafe mode is not enabled"),
        Reply(401, "no auth header received"),
        Reply(503, "Accepted"),
    ):
        assert failsafe.refusal("pg1", reply) is not None


def test_the_shortest_promise_counts() -> None:
    ours, patroni = Reply(200, "Accepted", "pg1", 20.0), Reply(200, "Accepted")
    assert failsafe.promised_s(ON, {"pg1": ours, "pg2": patroni}) == 20
    assert failsafe.promised_s(ON, {"pg2": patroni}) == ON.ttl_s
    assert failsafe.promised_s(ON, {}) == ON.ttl_s
    nonsense = failsafe.reply_of(200, "Accepted", {"haagent-member": "pg1", "haagent-promise": "soon"})
    assert failsafe.promised_s(ON, {"pg1": nonsense}) == 0


# --- the member that is asked ---------------------------------------------------------------------

ASKS = Question("pg0", 30.0)


def answer(seen: Observation | None, now: LeaseFacts = NO_LEASE, question: Question = ASKS) -> int:
    verdict = failsafe.may_not_promise(seen, now, question)
    return 200 if verdict is None else verdict[0]


def test_a_standby_promises() -> None:
    assert answer(following(standby(), settings=ON)) == 200
    assert answer(obs("pg1", standby(), DOWN, settings=ON)) == 200
    assert answer(racing(lost_stream(), settings=ON)) == 200
    assert answer(following(standby())) == 502
    assert answer(None) == 502


def test_whoever_leads_or_may_lead_does_not() -> None:
    assert answer(following(standby(), settings=ON), lease()) == 500
    assert answer(following(standby(), settings=ON), lease(fence_at=None)) == 500
    assert answer(obs("pg1", primary(), DOWN, settings=ON)) == 500


def test_nobody_promises_to_somebody_beside_the_leader() -> None:
    assert answer(following(standby(), settings=ON), question=Question("pg2", 30.0)) == 500
    assert answer(following(standby(), settings=ON), question=Question("pg1", 30.0)) == 500


def test_a_promise_is_as_long_as_the_longer_ttl() -> None:
    assert failsafe.wanted_promise_s(ON, Question("pg0", 45.0)) == 45
    assert failsafe.wanted_promise_s(ON, Question("pg0", 10.0)) == 30
    assert failsafe.wanted_promise_s(ON, Question("pg0", None)) == 30
    assert failsafe.wanted_promise_s(ON, Question("pg0", 1e8)) == failsafe.LONGEST_PROMISE_S


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ({"name": "pg0", "conn_url": "x", "api_url": "y", "slots": {}}, Question("pg0")),
        ({"name": "pg0", "haagent": {"ttl": 20}}, Question("pg0", 20.0)),
        ({"name": "pg0", "haagent": {"ttl": "x"}}, Question("pg0")),
        ({"name": "pg0", "haagent": []}, Question("pg0")),
        ({"name": 7}, None),
        ({"name": ""}, None),
        ({"slots": {}}, None),
    ],
)
def test_the_body_of_a_question(body: dict[str, Any], question: Question | None) -> None:
    assert failsafe.question_of(body) == question


def test_it_is_active_for_who_is_carried_and_for_who_has_promised() -> None:
    nothing = PromiseFacts()
    assert failsafe.is_active(lease(failsafe_until=NOW + 1), nothing, NOW)
    assert not failsafe.is_active(lease(), nothing, NOW)
    assert failsafe.is_active(NO_LEASE, PromiseFacts(NOW + 1, "pg0", 1), NOW)
    assert not failsafe.is_active(NO_LEASE, PromiseFacts(NOW + 1, None, 0), NOW)
    assert not failsafe.is_active(NO_LEASE, PromiseFacts(NOW - 1, "pg0", 1), NOW)


# --- the promise on disk --------------------------------------------------------------------------


class Disk:
    """Files, and a host that may boot anew."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.full = False

    def read_text(self, path: str) -> str | None:
        return self.files.get(path)

    def write_synced(self, path: str, text: str) -> None:
        if self.full:
            raise OSError("No space left on device")
        self.files[path] = text


class Host(SystemRuntime):
    def __init__(self) -> None:
        self.time, self.boot = NOW, "one"

    def now(self) -> float:
        return self.time

    def boot_id(self) -> str:
        return self.boot


def fine() -> None:
    return None


def promises(host: Host, disk: Disk, on: bool = True) -> Promises:
    """As after a start of the agent."""
    made = Promises(host, disk, "failsafe.json")
    made.load(30.0, on)
    return made


def test_without_a_record_one_ttl_is_waited_once() -> None:
    host, disk = Host(), Disk()
    assert promises(host, disk).facts() == PromiseFacts(NOW + 30)
    host.time += 10
    assert promises(host, disk).facts().until == NOW + 30
    assert promises(host, Disk(), on=False).facts().until == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"boot": "one"}', '{"boot":"one","until":1e999}'])
def test_a_broken_record_is_none(text: str) -> None:
    disk = Disk()
    disk.files["failsafe.json"] = text
    assert promises(Host(), disk).facts().until == NOW + 30


def test_a_restart_forgets_nothing_and_a_boot_makes_it_whole_again() -> None:
    host, disk = Host(), Disk()
    assert promises(host, disk).give("pg0", 40.0, fine) is None
    host.time += 15
    assert promises(host, disk).facts() == PromiseFacts(NOW + 40, "pg0")
    host.boot, host.time = "two", 3.0
    assert promises(host, disk).facts() == PromiseFacts(43.0, "pg0")


def test_what_has_run_out_is_struck_out() -> None:
    host, disk = Host(), Disk()
    made = promises(host, disk)
    assert made.give("pg0", 40.0, fine) is None
    made.forget(lambda body: body())
    assert made.facts().until == NOW + 40
    host.time += 41
    made.forget(lambda body: body())
    host.boot = "two"
    assert promises(host, disk).facts().until == 0


def test_a_shorter_promise_does_not_shorten_a_longer_one() -> None:
    host, disk = Host(), Disk()
    made = promises(host, disk)
    assert made.give("pg0", 40.0, fine) is None
    assert made.give("pg2", 30.0, fine) is None
    assert made.facts() == PromiseFacts(NOW + 40, "pg2", 2)
    assert json.loads(disk.files["failsafe.json"])["until"] == NOW + 40


def test_a_promise_that_cannot_be_written_is_not_given_but_kept() -> None:
    host, disk = Host(), Disk()
    made = promises(host, disk)
    disk.full = True
    assert made.give("pg0", 40.0, fine) == (503, "the promise could not be written to disk")
    assert made.facts().until == NOW + 40


def test_a_promise_that_is_refused_binds_nobody() -> None:
    host, disk = Host(), Disk()
    made = promises(host, disk, on=False)
    assert made.give("pg0", 40.0, lambda: (500, "Running as a leader")) == (500, "Running as a leader")
    assert made.facts().until == 0
    assert disk.files == {}


def test_taking_the_key_and_promising_exclude_each_other() -> None:
    host, disk = Host(), Disk()
    made = promises(host, disk, on=False)
    seen = made.facts().count
    assert made.begin_to_take(seen)
    assert made.give("pg0", 40.0, fine) == (500, "Running as a leader")
    made.settled()
    assert made.give("pg0", 40.0, fine) is None
    assert not made.begin_to_take(seen), "decided before the promise was given"
    assert made.begin_to_take(made.facts().count), "decided with it: the rules have looked at it"
