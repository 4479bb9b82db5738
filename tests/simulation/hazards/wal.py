"""Hazards of WAL, timelines, switchover, pause: H14, H15, H18, H20."""

from __future__ import annotations

from tests.simulation.hazards.stage import Stage, scenario


@scenario("H14", {"race-stopped-primary-starts-at-once": "rule6.restart-behind"})
def disk_that_lied(stage: Stage) -> None:
    """The primary's disk lost what it had flushed; it is back, and only its wish for the key is heard."""
    a, b, c = stage.settle()
    for other in (b, c):
        stage.unheard(other, "dcs.take_leader")
    end = stage.server(a).dd.end
    stage.strike("lying-disk", a, duration=1.0, value=3.0)
    stage.until("it lost WAL", lambda: stage.node(a).host.dd.end < end, 0.0)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.expect(
        "it knows who has more", lambda: stage.said("race.refused", a, "peer.ahead"), 3 * stage.ttl_s
    )
    stage.run(2 * stage.ttl_s)


@scenario(
    "H15",
    {
        "race-claims-nothing": "rule5.loss-reported",
        "race-number-from-itself": "rule7.histories-not-mixed",
    },
)
def two_histories_under_one_number(stage: Stage) -> None:
    """The new primary dies before anybody has its timeline; another one is promoted beside it."""
    a, b, c = stage.settle()
    stage.fall_behind(a, c)
    stage.strike("cut", f"pg:{b}", f"pg:{c}")
    power = stage.strike("power-cut", a)
    stage.at_boundary(b, "guardian.promote after", "cut-dcs", 10 * stage.ttl_s)
    stage.until(f"{b} is a primary", lambda: stage.writable(b))
    stage.run(1.0)
    again = stage.strike("power-cut", b)
    stage.until(f"{c} leads", lambda: stage.leads(c))
    stage.run(2.0)
    again()
    power()


@scenario("H15", {"race-diverged-wal-blocks": "liveness.one-primary"})
def diverged_wal_is_not_ahead(stage: Stage) -> None:
    """The old primary has WAL beyond the point where the new history left its own. The new primary dies, and
    the old one, a standby now, answers with its position."""
    a, *others = stage.settle()
    for other in others:
        stage.strike("cut", f"pg:{a}", f"pg:{other}")
    stage.run(2.0)
    back = stage.strike("isolate-from-dcs", a)
    stage.until("a standby leads", lambda: any(stage.leads(n) for n in others))
    new = stage.holder()
    last = next(n for n in others if n != new)
    stage.until(
        "the other one follows it",
        lambda: stage.streams(last, new) and stage.server(last).timeline == stage.server(new).timeline,
    )
    stage.until(
        "the old one is a standby", lambda: stage.server(a).phase == "running" and stage.server(a).in_recovery
    )
    stage.strike("power-cut", new)
    back()
    stage.until("the old one has more", lambda: stage.server(a).dd.end > stage.server(last).dd.end, 0.0)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.must("liveness.one-primary", f"{last} leads", lambda: stage.leads(last), stage.ttl_s / 2)


HANDED_OVER = {
    "race-handover-mark-forgotten": "rule3.switchover-loses-nothing",
    "race-handover-mark-ignored": "rule3.switchover-loses-nothing",
}


@scenario("H18", HANDED_OVER, ttl=10)
def candidate_dies_after_the_handover(stage: Stage) -> None:
    """The key is handed over, the candidate dies before it takes it, an operator flushes the request, and the
    other standby is behind."""
    a, b, c = stage.settle()
    stage.fall_behind(a, c)
    stage.in_kernel(a, "server.start", 3.0)
    stage.at_boundary(b, "dcs.take_leader before", "kill-agent", 4 * stage.ttl_s)
    stage.strike("switchover", a, b)
    stage.until("the key is released", lambda: stage.holder() == "")
    stage.store.raw_put("failover", "{}")
    stage.until("the candidate is dead", lambda: not stage.node(b).agent_process.alive)
    stage.until("nobody leads", lambda: stage.holder() == "", 0.0)
    stage.expect("the other one waits", lambda: stage.said("race.refused", c, "handover.incomplete"), 3.0)
    stage.until("the old primary leads again", lambda: stage.leads(a))


@scenario("H18", {"race-handover-mark-ignored": "rule3.switchover-loses-nothing"}, ttl=10)
def candidate_dies_and_nobody_was_named(stage: Stage) -> None:
    """The same without a named candidate: any standby may feel asked."""
    a, b, c = stage.settle()
    stage.fall_behind(a, c)
    stage.in_kernel(a, "server.start", 3.0)
    stage.at_boundary(b, "dcs.take_leader before", "kill-agent", 4 * stage.ttl_s)
    stage.strike("switchover", a)
    stage.until("the candidate is dead", lambda: not stage.node(b).agent_process.alive)
    stage.until("nobody leads", lambda: stage.holder() == "", 0.0)
    stage.expect("the other one waits", lambda: stage.said("race.refused", c, "handover.incomplete"), 3.0)
    stage.until("the old primary leads again", lambda: stage.leads(a))


@scenario("H18", {"race-handover-mark-fresh-for-the-winner": "liveness.one-primary"})
def nobody_left_has_the_last_wal(stage: Stage) -> None:
    """The key is handed over, then both hosts that have all WAL die: after one ttl the one behind leads."""
    a, b, c = stage.settle()
    stage.fall_behind(a, c)
    stage.at_boundary(b, "dcs.take_leader before", "kill-host")
    stage.strike("switchover", a, b)
    stage.until("the candidate is dead", lambda: not stage.node(b).host.powered)
    stage.strike("power-cut", a)
    stage.must("liveness.one-primary", f"{c} leads", lambda: stage.leads(c), 3 * stage.ttl_s)


@scenario("H20", {"race-owner-lost-in-pause-forgotten": "rule1.one-writable"})
def owner_lost_in_a_pause(stage: Stage) -> None:
    """Paused, the leader's agent dies; PostgreSQL runs on without a fence. Then the cluster is resumed."""
    a, b, c = stage.settle()
    resume = stage.strike("pause")
    stage.until("the fence is off", lambda: stage.disarmed(a))
    stage.strike("kill-agent", a, duration=10 * stage.ttl_s)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.run(1.0)
    resume()
    stage.expect(
        "only an operator may go on",
        lambda: (
            stage.said("race.refused", b, "pause.owner-lost")
            and stage.said("race.refused", c, "pause.owner-lost")
        ),
        4 * stage.ttl_s,
    )
    stage.expect("it is writable all the time", lambda: stage.writable(a))


@scenario("H20", {"race-owner-lost-before-this-life": "rule1.one-writable"})
def owner_lost_in_a_pause_before_the_others_started(stage: Stage) -> None:
    """Cut off from the store in a pause; whoever saw it lead is started anew: only its own word is left."""
    a, b, c = stage.settle()
    resume = stage.strike("pause")
    stage.until("the fence is off", lambda: stage.disarmed(a))
    for other in (b, c):
        stage.strike("kill-agent", other, duration=2 * stage.ttl_s)
    stage.strike("isolate-from-dcs", a)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.until("the others are back", lambda: all(stage.node(n).agent_is_up for n in (b, c)))
    resume()
    stage.expect(
        "only an operator may go on",
        lambda: (
            stage.said("race.refused", b, "pause.owner-lost")
            and stage.said("race.refused", c, "pause.owner-lost")
        ),
        4 * stage.ttl_s,
    )
    stage.expect("it is writable all the time", lambda: stage.writable(a))


@scenario("H20", {"race-resume-grace-skipped": "rule1.one-writable"})
def owner_comes_back_after_a_resume(stage: Stage) -> None:
    """The key vanishes in a pause; the others do not know whose it was, and the owner cannot be asked. Nor
    has it left word that its fence is off, as Patroni's members do not."""
    a, b, c = stage.settle()
    resume = stage.strike("pause")
    stage.until("the fence is off", lambda: stage.disarmed(a))
    for other in (b, c):
        stage.strike("kill-agent", other, duration=2 * stage.ttl_s)
        stage.cut_off(a, other)
    back = stage.strike("isolate-from-dcs", a)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.world.store.raw_delete("haagent_unfenced")
    stage.until("the others are back", lambda: all(stage.node(n).agent_is_up for n in (b, c)))
    stage.run(2.0)
    resume()
    stage.expect("they wait", lambda: stage.said("race.refused", b, "resume.grace"), 1.0)
    stage.run(1.0)
    back()
    stage.until("the owner leads by another key", lambda: stage.leads(a))


@scenario("H20", {"guardian-stays-disarmed": "liveness.one-primary"})
def agent_dies_after_a_resume(stage: Stage) -> None:
    """A pause came and went; then the leader's agent dies: the fence must be on again, and
    known to be."""
    a, b, c = stage.settle()
    resume = stage.strike("pause")
    stage.until("the fence is off", lambda: stage.disarmed(a))
    stage.run(2.0)
    resume()
    stage.run(3.0)
    stage.until("it leads on", lambda: stage.leads(a), 0.0)
    stage.strike("kill-agent", a, duration=10 * stage.ttl_s)
    stage.must(
        "liveness.one-primary", "another one leads", lambda: stage.leads(b) or stage.leads(c), 4 * stage.ttl_s
    )
