"""Hazards of lease and leader key: H1, H4, H5, H6, H7."""

from __future__ import annotations

from tests.simulation.hazards.stage import Stage, scenario

#: A primary whose store was away for less than its lease was stopped all the same.
KEPT = "liveness.healthy-primary-kept"


@scenario("H1", {"lease-renewal-looks-at-the-session-only": "rule1.one-writable"})
def key_is_gone_and_the_session_lives(stage: Stage) -> None:
    """The leader key is deleted while the session it hung on goes on. Only the old leader's keeper still
    reaches the store; the others cannot ask it."""
    a, b, c = stage.settle()
    stage.cut_off(a, b)
    stage.cut_off(a, c)
    stage.unheard(a, "dcs.snapshot")
    stage.delete_leader_key()
    stage.expect("the renewal is refused", lambda: stage.said("outage.demote", a), 3.0)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))
    stage.run(stage.ttl_s)


@scenario("H1", {"lease-taking-proves-life": "rule1.writable-under-lease"}, ttl=10, loop_wait=4)
def key_is_taken_late_on_an_old_session(stage: Stage) -> None:
    """The key comes free when the sessions of the others are old; the winner's renewals are never heard."""
    a, b, c = stage.settle()
    for other in (b, c):
        stage.unheard(other, "dcs.renew_session")
        stage.unheard(other, "dcs.renew_leader")
    stage.until(
        "their sessions are old", lambda: 0.0 < min(stage.session_left_s(b), stage.session_left_s(c)) < 4.5
    )
    stage.strike("stop-agent", a, duration=60.0)
    stage.until("one of them takes the key", lambda: stage.holder() in (b, c))
    winner = stage.holder()
    stage.until("its session would last for a promotion", lambda: stage.session_left_s(winner) > 2.0, 0.0)
    stage.until("its session is over", lambda: stage.holder() != winner)
    stage.expect("it had no proof", lambda: stage.deadline_left_s(winner) == 0.0)


@scenario("H1", {"lease-ends-with-its-ttl-only": "rule1.writable-under-lease"})
def ttl_is_raised_while_the_key_is_on_an_old_session(stage: Stage) -> None:
    """The ttl is raised and nobody gets a session of the new one; the key is taken on a short one."""
    a, b, c = stage.settle()
    for other in (b, c):
        stage.unheard(other, "dcs.open_session")
    stage.settings(ttl=30, loop_wait=10, retry_timeout=10)
    stage.until("they know", lambda: all(stage.node(n).agent.observer.settings.ttl_s == 30 for n in (b, c)))
    stage.strike("stop-agent", a, duration=60.0)
    stage.until("one of them takes the key", lambda: stage.holder() in (b, c))
    winner = stage.holder()
    stage.until("it is promoted on the short session", lambda: stage.writable(winner))
    stage.unheard(winner, "dcs.renew_leader")
    stage.until("that session is over", lambda: stage.holder() != winner)
    stage.run(stage.ttl_s)


@scenario(
    "H1",
    {"lease-moved-onto-a-shorter-session": "rule1.writable-under-lease"},
    ttl=30,
    loop_wait=2,
    retry_timeout=2,
)
def ttl_is_lowered_and_the_store_is_lost(stage: Stage) -> None:
    """The ttl is lowered far below a deadline that is proven; the store is lost right after the key moved."""
    a, *_ = stage.settle()
    stage.at_boundary(a, "dcs.move_leader after", "cut-dcs")
    stage.settings(ttl=5, loop_wait=1, retry_timeout=1)
    before = stage.key_session()
    stage.until("the key moves onto a shorter session", lambda: stage.key_session() not in ("", before))
    stage.run(60.0)


@scenario("H1", {"lease-counts-from-the-reply": "rule1.writable-under-lease"}, retry_timeout=2)
def answers_are_slow_and_then_nothing(stage: Stage) -> None:
    """Every answer of the store takes long; after one that arrived, none arrives any more."""
    a, *_ = stage.settle()
    stage.strike("slow", "dcs", f"agent:{a}", value=1.4)
    stage.run(stage.ttl_s)
    stage.until("it still leads", lambda: stage.leads(a))
    stage.at_boundary(a, "dcs.renew_leader after", "cut-dcs")
    stage.until("the key is lost", lambda: stage.holder() != a)
    stage.run(stage.ttl_s)


@scenario("H4", {"race-former-leader-not-waited-for": "rule1.one-writable"})
def key_vanishes_while_its_frozen_holder_serves(stage: Stage) -> None:
    """The agent is frozen, its PostgreSQL serves under its deadline, and the leader key is deleted."""
    a, b, c = stage.settle()
    stage.strike("freeze-agent", a, duration=60.0)
    stage.delete_leader_key()
    since = stage.now
    stage.expect(
        "who asks it waits", lambda: stage.said("race.refused", text="former-leader", since=since), 4.0
    )
    stage.expect("while it is writable", lambda: stage.writable(a))
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario("H4", {"agent-closes-its-session-as-it-ends": "rule1.writable-under-lease"})
def agent_ends_beside_a_running_primary(stage: Stage) -> None:
    """The store suddenly names another cluster: the leader's agent ends, its PostgreSQL runs on."""
    a, *_ = stage.settle()
    stage.strike("garbage", "initialize", duration=3 * stage.ttl_s, detail="7299999999999999999")
    stage.until(
        "the agent ends", lambda: stage.said("start.foreign-cluster", a) and not stage.node(a).agent_is_up
    )
    stage.until("PostgreSQL runs on", lambda: stage.leads(a), 0.0)
    stage.until("until its deadline", lambda: not stage.writable(a))
    stage.expect("with the key held", lambda: stage.holder() == a)


@scenario("H5", {"key-owned-by-name": "rule1.writable-under-lease"}, ttl=10)
def namesake_comes_back_within_the_lease(stage: Stage) -> None:
    """The leader's host loses its power and is back, guardian and handle gone, while the key has its name."""
    a, *_ = stage.settle()
    stage.strike("power-cut", a, duration=0.5)
    stage.until("its agent is back", lambda: stage.node(a).agent_is_up)
    stage.until("the key is still there", lambda: stage.holder() == a, 0.0)
    stage.expect("it is a stranger to it", lambda: stage.said("stranger.wait", a), 3.0)
    stage.run(2 * stage.ttl_s)


@scenario(
    "H6",
    {"release-with-the-epoch-open": "rule2.promote-after-key"},
    primary_start_timeout=0,
    ttl=30,
    loop_wait=2,
    retry_timeout=2,
)
def release_is_applied_and_its_answer_lost(stage: Stage) -> None:
    """A crashed primary hands over; the key is deleted, the answer is lost, and the store with it."""
    a, b, c = stage.settle()
    stage.at_boundary(a, "dcs.release_leader before", "lose-reply")
    deadline = stage.now + stage.deadline_left_s(a)
    stage.strike("kill-postmaster", a)
    stage.until("the key is gone", lambda: stage.holder() != a)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))
    stage.until("the old deadline is still ahead", lambda: stage.now + stage.ttl_s / 3 < deadline, 0.0)
    stage.run(stage.ttl_s)


@scenario("H7", {"lease-renewed-every-loop": KEPT}, ttl=30, loop_wait=26, retry_timeout=2)
def one_renewal_is_not_answered(stage: Stage) -> None:
    """A loop_wait that is long against the ttl, and one renewal whose answer is lost."""
    a, *_ = stage.settle()
    lost = stage.unheard(a, "dcs.renew_leader", reply=True)
    stage.until("a renewal is lost, or late", lambda: lost.times == 1 or not stage.writable(a))
    stage.expect("it is lost", lambda: lost.times == 1)
    lost.ended = True
    stage.stays(KEPT, f"{a} is writable", lambda: stage.writable(a), 2 * stage.ttl_s)
