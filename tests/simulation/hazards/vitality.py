"""A primary that lives and is of no use: H9, H12 and H13, noticed by probes."""

from __future__ import annotations

from tests.simulation.hazards.lease import KEPT
from tests.simulation.hazards.stage import Stage, scenario

#: An unhealthy primary was left alone although there was a remedy.
REMEDIED = "liveness.unhealthy-remedied"
#: Leadership went round without anybody being better off.
NO_STORM = "liveness.no-storm"
#: Noticed, judged, handed over, elected: seconds.
REMEDY_S = 40.0
#: The same where new connections alone are not answered.
UNREACHED_S = 60.0


@scenario("H13", {"vitality-hung-storage-is-no-illness": REMEDIED})
def storage_hangs_under_the_primary(stage: Stage) -> None:
    """Whoever waits for it cannot be ended. The key is never released: the lease runs out."""
    a, b, c = stage.settle()
    stage.strike("stuck-postgres", a)
    stage.must(REMEDIED, "another one leads", lambda: stage.leads(b) or stage.leads(c), REMEDY_S)
    stage.expect("it gave up by itself", lambda: stage.said("leader.unhealthy-hand-over", a))
    stage.expect("it is not stopped", lambda: stage.server(a).any_alive)


@scenario("H13", {"vitality-full-disk-is-no-illness": REMEDIED})
def disk_of_the_primary_is_full(stage: Stage) -> None:
    """A switchover that it asks for itself: what was acknowledged is there."""
    a, b, c = stage.settle()
    stage.strike("full-disk", a)
    stage.must(REMEDIED, "another one leads", lambda: stage.leads(b) or stage.leads(c), REMEDY_S)
    stage.expect("by a switchover", lambda: stage.said("switchover.release", a))
    stage.expect("and it is no candidate", lambda: not stage.leads(a), 2 * REMEDY_S)


@scenario("H12", {"vitality-never-restarts": REMEDIED}, nodes=1)
def postmaster_hangs_and_nobody_else_is_there(stage: Stage) -> None:
    """Nobody new gets in, those inside write on: it is restarted in place."""
    (a,) = stage.settle()
    old = stage.server(a)
    stage.strike("freeze-postmaster", a)
    stage.must(
        REMEDIED,
        "it is another one and writable",
        lambda: stage.server(a) is not old and stage.writable(a),
        UNREACHED_S,
    )


@scenario("H12", {"vitality-restarts-for-ever": REMEDIED})
def postmaster_hangs_again_and_again(stage: Stage) -> None:
    """A restart helps for a moment only: after two of them another one leads."""
    a, b, c = stage.settle()
    for _ in range(3):
        stage.until("it serves", lambda: stage.writable(a) and not stage.server(a).gone)
        stage.run(3.0)
        old = stage.server(a)
        stage.strike("freeze-postmaster", a)
        stage.until("it is dealt with", lambda old=old: old.gone)  # type: ignore[misc]
    stage.must(REMEDIED, "another one leads", lambda: stage.leads(b) or stage.leads(c), UNREACHED_S)


@scenario("H9", {"vitality-keeps-a-key-it-cannot-use": REMEDIED})
def dead_primary_that_cannot_be_ended(stage: Stage) -> None:
    """Guardian and postmaster die while the disk hangs: nothing is released, and the lease runs out."""
    a, b, c = stage.settle()
    stage.strike("stuck-postgres", a)
    stage.strike("kill-guardian", a)
    stage.strike("kill-postmaster", a)
    stage.must(REMEDIED, "another one leads", lambda: stage.leads(b) or stage.leads(c), REMEDY_S / 2)
    stage.expect("something of it is there", lambda: stage.server(a).any_alive)


@scenario("H9", {"vitality-waits-for-what-cannot-be-ended": REMEDIED})
def killed_primary_that_cannot_be_ended(stage: Stage) -> None:
    """The guardian lives, kills what is left, and nothing of it ends: that is known long before any probe."""
    a, b, c = stage.settle()
    stage.strike("stuck-postgres", a)
    stage.strike("kill-postgres", a)
    stage.must(REMEDIED, "another one leads", lambda: stage.leads(b) or stage.leads(c), REMEDY_S / 2.5)
    stage.expect("something of it is there", lambda: stage.server(a).any_alive)


@scenario("H12", {"vitality-one-probe-is-enough": KEPT})
def storage_is_slow_for_a_moment(stage: Stage) -> None:
    """Less than ten seconds: load, not a fault."""
    a, *_ = stage.settle()
    end = stage.strike("stuck-postgres", a)
    stage.stays(KEPT, f"{a} holds the key", lambda: stage.holder() == a, 9.0)
    end()
    stage.stays(KEPT, f"{a} holds the key", lambda: stage.holder() == a, 3 * stage.ttl_s)


@scenario("H13", {"vitality-unfit-members-are-candidates": NO_STORM})
def all_have_the_same_fault(stage: Stage) -> None:
    """One full disk under all of them, and the primary does not even answer: nobody would be better off."""
    a, b, c = stage.settle()
    for name in (a, b, c):
        stage.strike("full-disk", name)
    stage.strike("hang-postgres", a)
    stage.stays(NO_STORM, f"{a} holds the key", lambda: stage.holder() == a, 120.0)
    stage.expect("and says why", lambda: stage.said("leader.unhealthy", a))


@scenario("H13", {"vitality-never-calms-down": NO_STORM})
def fault_follows_the_leader(stage: Stage) -> None:
    """Whoever takes over meets it, and leaves it behind when it hands over: at growing distances."""
    stage.settle()
    begun, sick, end = stage.world.invariants.moves, "", None
    for _ in range(240):
        holder = stage.holder()
        if holder not in ("", sick):
            if end is not None:
                end()
            sick, end = holder, stage.strike("full-disk", holder)
        stage.run(1.0)
        stage.stays(NO_STORM, "few take over", lambda: stage.world.invariants.moves <= begun + 5, 0.0)
    stage.expect("some do", lambda: stage.world.invariants.moves > begun + 1)
