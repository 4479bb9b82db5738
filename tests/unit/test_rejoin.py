"""The way back as a state: counted and kept before a try begins, with a budget; what goes is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Discard
from haagent.core.actions import Clone, KeepRejoin, Rewind, TellDiscards
from haagent.core.decide import decide
from haagent.core.model import Instance, JobFacts, Memory, Observation, OperatorRequest, Rejoin
from haagent.core.rejoin import (
    DISCARDS_KEPT,
    PAUSE_MAX_S,
    REWIND_TRIES,
    SPENT_PAUSE_S,
    decode,
    durable,
    encode,
    rewind_pause_s,
    view,
)
from postgres_ctl.facts import ControlState
from tests.unit.core_facts import EPOCH, NOW, SETTINGS, cluster, empty, finished, obs, standby, stopped

EX_PRIMARY = stopped(ControlState.SHUT_DOWN)
BEGUN = Memory(rejoin=Rejoin(tries=1, under_way="rewind", epoch=EPOCH), last_epoch=EPOCH)
GONE = Discard("pg1", 0x3000148, 0x3005000, 17, "rewind", "2030-01-01T10:00:00.000+00:00", "/kept", 16777216)


def following(instance: Instance, seen: Any = None, **changes: Any) -> Observation:
    return obs("pg1", instance, seen, **changes)


def test_a_try_is_counted_and_kept_before_anything_is_done() -> None:
    rewinds = decide(following(EX_PRIMARY), Memory())
    state = Rejoin(tries=1, under_way="rewind", epoch=EPOCH)
    assert rewinds.actions == (KeepRejoin(state, required=True), Rewind("pg0"))
    clones = decide(following(empty()), Memory())
    assert clones.actions == (
        KeepRejoin(replace(state, under_way="clone"), required=True),
        Clone("pg0", "pg0"),
    )


def test_what_an_operator_asked_for_does_not_wait_for_a_disk_that_may_be_full() -> None:
    asked = decide(following(standby(), request=OperatorRequest(4, "reinitialize")), Memory())
    kept = [action for action in asked.actions if isinstance(action, KeepRejoin)]
    assert [action.required for action in kept] == [False]
    assert isinstance(asked.actions[-1], KeepRejoin)


def test_a_healthy_standby_writes_nothing() -> None:
    assert decide(following(standby()), Memory()).actions == ()
    settled = Memory(rejoin=Rejoin(settled_epoch=EPOCH, epoch=EPOCH))
    assert decide(following(standby()), settled).actions == ()


def test_what_is_on_the_disk_already_is_not_written_again() -> None:
    failed = decide(following(EX_PRIMARY, finished=finished("rewind", False, "no route")), BEGUN)
    kept = failed.actions[0]
    assert isinstance(kept, KeepRejoin)
    assert (kept.rejoin.tries, kept.rejoin.under_way, kept.required) == (1, "", False)
    again = decide(following(replace(EX_PRIMARY, kept_rejoin=kept.rejoin)), failed.memory)
    assert again.actions == ()


def test_a_standby_that_streams_again_forgets_its_tries_on_the_disk_too() -> None:
    tried = Rejoin(tries=2, epoch=EPOCH)
    back = decide(following(replace(standby(), kept_rejoin=tried)), Memory(rejoin=tried))
    assert KeepRejoin(Rejoin()) in back.actions


def test_a_try_that_was_cut_off_with_its_agent_is_a_failed_one() -> None:
    next_life = decide(following(EX_PRIMARY), BEGUN)
    assert next_life.rule == "rejoin.pause"
    assert "cut off" in (next_life.memory.note or "")
    assert next_life.memory.rejoin.tries == 1
    assert decide(following(EX_PRIMARY, now=NOW + 3), next_life.memory).memory.rejoin.tries == 2


def test_a_try_under_way_is_not_cut_off() -> None:
    working = decide(following(EX_PRIMARY, job=JobFacts("rewind", NOW - 1)), BEGUN)
    assert working.memory.rejoin.under_way == "rewind"


def test_the_budget_is_one_against_one_leader_over_all_lives_of_the_agent() -> None:
    diverged = Rejoin(tries=REWIND_TRIES, under_way="rewind", diverged=True, epoch=EPOCH)
    life = decide(following(EX_PRIMARY), Memory(rejoin=decode(encode(diverged), NOW), last_epoch=EPOCH))
    later = decide(following(EX_PRIMARY, now=NOW + PAUSE_MAX_S), life.memory)
    assert (later.rule, later.memory.rejoin.tries) == ("rejoin.spent", REWIND_TRIES)
    assert rewind_pause_s(later.memory, NOW) > SPENT_PAUSE_S
    another = cluster(
        "pg2", EPOCH + 1, members=(cluster().members[1], replace(cluster().members[0], name="pg2"))
    )
    assert decide(following(EX_PRIMARY, another), later.memory).memory.rejoin.tries == 1


def test_a_spent_budget_does_not_delay_what_else_is_allowed() -> None:
    spent = Memory(
        rejoin=Rejoin(tries=REWIND_TRIES, diverged=True, not_before=NOW, epoch=EPOCH), last_epoch=EPOCH
    )
    allowed = replace(SETTINGS, remove_data_directory_on_rewind_failure=True)
    cloning = decide(following(EX_PRIMARY, settings=allowed), spent)
    assert cloning.actions[-1] == Clone("pg0", "pg0", wipe=True)


# --- the file -------------------------------------------------------------------------------------


def test_what_counts_survives_the_file() -> None:
    state = Rejoin(3, NOW + 7, "no route", True, True, 0, 0, EPOCH, "rewind")
    assert decode(encode(state), NOW) == durable(state) == state


def test_that_histories_fit_is_looked_at_again() -> None:
    assert durable(Rejoin(settled_epoch=EPOCH, as_it_is_epoch=EPOCH, unanswered=2, epoch=EPOCH)) == Rejoin()


def test_a_pause_of_an_earlier_boot_does_not_last_for_ever() -> None:
    assert decode(encode(Rejoin(tries=1, not_before=1e9)), NOW).not_before == NOW + PAUSE_MAX_S


@pytest.mark.parametrize(
    "text", ["", "garbage", "[]", '{"tries": "3"}', '{"diverged": 1.5}', '{"reason": 4}']
)
def test_a_file_that_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text, NOW)


# --- what goes ------------------------------------------------------------------------------------


def test_the_store_is_told_what_goes_even_while_the_job_runs() -> None:
    seen = following(replace(EX_PRIMARY, untold_discards=(GONE,)), job=JobFacts("rewind", NOW - 1))
    assert decide(seen, BEGUN).actions[-1] == TellDiscards((GONE,), 0, (GONE,))


def test_what_others_told_stays_and_old_rows_go() -> None:
    theirs = tuple(replace(GONE, name="pg2", start=n) for n in range(DISCARDS_KEPT))
    told = replace(cluster(), discards=theirs, discards_version=9)
    action = decide(following(replace(standby(), untold_discards=(GONE,)), told), Memory()).actions[-1]
    assert action == TellDiscards((*theirs[1:], GONE), 9, (GONE,))


# --- for people -----------------------------------------------------------------------------------


def test_where_it_is_on_its_way_back() -> None:
    def state(memory: Memory, **changes: Any) -> str:
        return view(following(EX_PRIMARY, **changes), memory).state

    assert state(Memory()) == "none"
    assert state(BEGUN, job=JobFacts("rewind", NOW)) == "rewinding"
    assert state(BEGUN, job=JobFacts("clone", NOW)) == "cloning"
    assert state(Memory(rejoin=Rejoin(tries=1, not_before=NOW + 2))) == "waiting"
    assert state(Memory(rejoin=Rejoin(diverged=True, stays_out=True))) == "operator"
