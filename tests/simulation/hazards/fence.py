"""Hazards of guardian and PostgreSQL: H8, H9, H10, H12, H13."""

from __future__ import annotations

from tests.simulation.hazards.lease import KEPT
from tests.simulation.hazards.stage import DYNAMIC, Stage, scenario


@scenario("H8", {"guardian-keeps-no-deadline-for-a-standby": "rule2.promote-after-key"}, nodes=2)
def frozen_between_guard_and_promote(stage: Stage) -> None:
    """The winner's agent freezes after its last look, right before it asks for the promotion; once it has
    thawed and asked, it dies."""
    a, b = stage.settle()
    stage.at_boundary(b, "guardian.promote before", "freeze-agent", 3 * stage.ttl_s)
    stage.at_boundary(b, "guardian.promote after", "kill-agent", 3 * stage.ttl_s)
    stage.strike("power-cut", a)
    stage.until("it freezes", lambda: stage.node(b).agent_process.frozen)
    stage.until("its key is gone", lambda: stage.holder() == "")
    stage.until("it thaws", lambda: not stage.node(b).agent_process.frozen)
    stage.run(2 * stage.ttl_s)


@scenario("H8", {"callback-after-a-freeze": "rule1.callback-under-lease"})
def frozen_between_the_look_and_the_callback(stage: Stage) -> None:
    """A new agent finds its primary, and freezes before it tells the callbacks; when it thaws, another one
    leads."""
    a, b, c = stage.settle()
    stage.strike("kill-agent", a, duration=0.2)
    stage.at_boundary(a, "dcs.put_if_leader before", "freeze-agent", 3 * stage.ttl_s)
    stage.until("it freezes", lambda: stage.node(a).agent_process.frozen)
    stage.until("another one leads", lambda: stage.leads(b) or stage.leads(c))
    stage.until("it thaws", lambda: not stage.node(a).agent_process.frozen)
    stage.run(2.0)


@scenario("H8", {"guardian-starts-under-any-epoch": "rule2.promote-after-key"})
def frozen_between_guard_and_start(stage: Stage) -> None:
    """A crashed primary's agent freezes right before it asks for the start in place; once it has thawed and
    asked, it dies."""
    a, b, c = stage.settle()
    stage.at_boundary(a, "guardian.start before", "freeze-agent", 4 * stage.ttl_s)
    stage.at_boundary(a, "guardian.start after", "kill-agent", 2 * stage.ttl_s)
    stage.strike("kill-postmaster", a)
    stage.until("it freezes", lambda: stage.node(a).agent_process.frozen)
    stage.expect("on its way back", lambda: stage.said("leader.restart-in-place", a))
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))
    stage.until("it thaws", lambda: not stage.node(a).agent_process.frozen)
    stage.run(stage.ttl_s)


@scenario("H8", {"keeper-arms-late": "rule1.writable-under-lease"}, nodes=2)
def agent_dies_as_it_promotes(stage: Stage) -> None:
    """The winner's agent dies in the moment in which the promotion is under way."""
    a, b = stage.settle()
    stage.at_boundary(b, "guardian.promote after", "kill-agent", 10 * stage.ttl_s)
    stage.strike("power-cut", a)
    stage.until("it is writable", lambda: stage.writable(b))
    stage.until("without an agent", lambda: not stage.node(b).agent_process.alive, 0.0)
    stage.until("its deadline ends it", lambda: not stage.writable(b))


@scenario("H8", {"guardian-fence-spares-recovery": "rule2.promote-after-key"}, nodes=2)
def deadline_passes_during_a_slow_promotion(stage: Stage) -> None:
    """The promotion takes longer than the lease, and the agent is dead: what is fenced is a standby yet."""
    a, b = stage.settle()
    stage.in_kernel(b, "server.promote", 3 * stage.ttl_s)
    stage.at_boundary(b, "guardian.promote after", "kill-agent", 10 * stage.ttl_s)
    stage.strike("power-cut", a)
    stage.until("the promotion is asked for", lambda: not stage.node(b).agent_process.alive)
    server = stage.server(b)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.expect("the guardian has ended it", lambda: server.gone)
    stage.run(4 * stage.ttl_s)


@scenario(
    "H9",
    {"guardian-exit-told-before-all-is-reaped": "rule2.release-after-stop"},
    primary_start_timeout=0,
)
def killed_postmaster_leaves_backends(stage: Stage) -> None:
    """kill -9 of the postmaster; what it leaves would write on for long, and a standby is to take over."""
    a, b, c = stage.settle()
    server = stage.server(a)
    stage.until("sessions are open", lambda: len(server.connections) > 0)
    stage.in_kernel(a, "server.orphans", 60.0)
    stage.strike("kill-postmaster", a)
    stage.until("the postmaster is dead", lambda: server.gone)
    stage.until("its backends are not", lambda: len(server.connections) > 0, 0.0)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario("H9", {"guardian-never-sweeps": "rule8.old-sessions-end"})
def killed_postmaster_and_no_store(stage: Stage) -> None:
    """The same, and the store is out of reach: the backends must end before the lease does."""
    a, b, c = stage.settle()
    server = stage.server(a)
    stage.until("sessions are open", lambda: len(server.connections) > 0)
    stage.in_kernel(a, "server.orphans", 60.0)
    stage.strike("isolate-from-dcs", a)
    stage.strike("kill-agent", a, duration=10 * stage.ttl_s)
    stage.strike("kill-postmaster", a)
    stage.until("the postmaster is dead", lambda: server.gone)
    stage.until("its backends are not", lambda: len(server.connections) > 0, 0.0)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario(
    "H9",
    {"guardian-forgets-a-stopped-postmaster": "rule8.old-sessions-end"},
)
def stopped_postmaster_and_a_lost_lease(stage: Stage) -> None:
    """SIGSTOP of the postmaster: it acts on no signal, its old sessions write on, and the lease runs out."""
    a, b, c = stage.settle()
    server = stage.server(a)
    stage.until("sessions are open", lambda: len(server.connections) > 0)
    stage.strike("freeze-postmaster", a)
    stage.strike("isolate-from-dcs", a)
    stage.until(
        "old sessions are all there is", lambda: server.door() == "silent" and server.writable_now, 0.0
    )
    stage.until("they end", lambda: not server.writable_now)
    stage.expect("while the key is held", lambda: stage.holder() == a)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario("H9", {"agent-leaves-orphans-alone": "rule8.old-sessions-end"})
def backends_without_postmaster_and_guardian(stage: Stage) -> None:
    """Guardian and postmaster are killed at once, and the store is lost: what the postmaster left works on,
    and nobody is its parent."""
    a, b, c = stage.settle()
    server = stage.server(a)
    stage.until("sessions are open", lambda: len(server.connections) > 0)
    stage.in_kernel(a, "server.orphans", 4 * stage.ttl_s)
    stage.strike("isolate-from-dcs", a)
    stage.strike("kill-guardian", a)
    stage.strike("kill-postmaster", a)
    stage.until("its backends live", lambda: server.gone and len(server.connections) > 0, 0.0)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario(
    "H10",
    {
        "agent-does-not-stand-in": "rule1.writable-under-lease",
        "agent-trusts-a-silent-guardian": "rule1.writable-under-lease",
    },
)
def guardian_frozen_and_the_lease_runs_out(stage: Stage) -> None:
    """The guardian is frozen for good, and the agent loses the store: the agent itself is the fence."""
    a, b, c = stage.settle()
    stage.strike("freeze-guardian", a)
    stage.strike("isolate-from-dcs", a)
    stage.until("PostgreSQL is stopped", lambda: not stage.writable(a))
    stage.expect("while the key is held", lambda: stage.holder() == a)
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario("H10", {"agent-does-not-stand-in": "rule1.writable-under-lease"})
def guardian_frozen_while_renewals_go_on(stage: Stage) -> None:
    """The store renews, but the guardian acknowledges no deadline any more; then the store is lost."""
    a, b, c = stage.settle()
    stage.strike("freeze-guardian", a)
    stage.run(0.6 * stage.ttl_s)
    stage.strike("isolate-from-dcs", a)
    stage.until("PostgreSQL is stopped", lambda: not stage.writable(a))
    stage.until("somebody else leads", lambda: stage.leads(b) or stage.leads(c))


@scenario(
    "H12",
    {
        "agent-stops-postgres-when-it-cannot-decide": "rule10.nothing-new",
        "agent-lets-go-when-it-cannot-decide": KEPT,
    },
    nodes=1,
)
def decide_raises_and_nobody_else_is_there(stage: Stage) -> None:
    """Every decision of the leader's agent fails, and no other member could lead."""
    (a,) = stage.settle()
    stage.strike("broken-decide", a)
    stage.stays(KEPT, f"{a} is writable", lambda: stage.writable(a), 5 * stage.ttl_s)


@scenario("H10", {"watchdog-never-opened": "rule2.promote-after-key"}, watchdog="required", ttl=10, seed=2)
def whole_host_freezes_and_has_a_watchdog(stage: Stage) -> None:
    """Agent, guardian and PostgreSQL stand still together for longer than the lease, and go on."""
    a, b, c = stage.settle()
    stage.strike("freeze-host", a, duration=25.0)
    stage.expect("its watchdog resets it", lambda: stage.rebooted(a), stage.ttl_s)
    stage.expect("before the key is gone", lambda: stage.holder() == a)
    stage.must("liveness.one-primary", "another leads", lambda: stage.leads(b) or stage.leads(c), 15.0)
    stage.run(25.0)


@scenario(
    "H10", {"watchdog-fed-without-a-proof": "rule2.promote-after-key"}, watchdog="required", ttl=10, seed=2
)
def agent_freezes_first_and_then_the_host(stage: Stage) -> None:
    """The guardian alone keeps the watchdog alive, until it cannot act either, right before its fence."""
    a, *_ = stage.settle()
    stage.strike("freeze-agent", a, duration=60.0)
    stage.until("the fence is near", lambda: 0.0 < stage.deadline_left_s(a) < 0.3)
    stage.strike("freeze-host", a, duration=3.5)
    stage.expect("its watchdog resets it", lambda: stage.rebooted(a), 2.5)
    stage.run(2 * stage.ttl_s)


@scenario("H12", {"permit-although-decide-failed": "liveness.one-primary"})
def decide_raises_and_another_can(stage: Stage) -> None:
    """Every decision of the leader's agent fails, and others could lead: it lets its lease run out."""
    a, b, c = stage.settle()
    stage.strike("broken-decide", a)
    stage.must(
        "liveness.one-primary", "another one leads", lambda: stage.leads(b) or stage.leads(c), 4 * stage.ttl_s
    )


@scenario("H12", {"garbage-breaks-the-whole-view": KEPT})
def garbage_in_the_store(stage: Stage) -> None:
    """Bytes that mean nothing in keys that a healthy primary does not need."""
    a, *_ = stage.settle()
    for key in ("sync", "failover", "status", "history", "failsafe", "haagent_claims", "members/stranger"):
        stage.strike("garbage", key, detail='{"leader": 7')
    stage.stays(KEPT, f"{a} leads", lambda: stage.leads(a), 4 * stage.ttl_s)


@scenario("H12", {"leading-stops-what-does-not-answer": KEPT})
def sql_is_not_answered(stage: Stage) -> None:
    """A storm of connections: nobody new gets in, the agent neither; the sessions inside go on."""
    a, *_ = stage.settle()
    server = stage.server(a)
    stage.until("sessions are open", lambda: len(server.connections) > 0)
    stage.strike("hang-postgres", a)
    stage.expect("the lease is kept", lambda: stage.said("leader.no-answer", a), stage.ttl_s)
    stage.stays(KEPT, f"{a} leads", lambda: stage.leads(a), 4 * stage.ttl_s)


@scenario("H13", {"closed-epoch-shows-a-position": "liveness.one-primary"})
def fenced_and_not_dead(stage: Stage) -> None:
    """The fence's SIGKILL is pending in uninterruptible sleep, the agent answers its peers: they must not
    wait for a primary that is none any more."""
    a, b, c = stage.settle()
    stage.strike("stuck-postgres", a)
    stage.strike("isolate-from-dcs", a)
    stage.until("the key is gone", lambda: stage.holder() != a)
    stage.until("PostgreSQL is not", lambda: stage.server(a).any_alive, 0.0)
    stage.must("liveness.one-primary", "another one leads", lambda: stage.leads(b) or stage.leads(c), 2.0)
    stage.expect("the old one is still stuck", lambda: stage.server(a).any_alive)


@scenario("H13", {"race-unwilling-peer-blocks-for-ever": "liveness.one-primary"})
def most_wal_and_cannot_lead(stage: Stage) -> None:
    """The standby with the most WAL cannot lead, as its replay stands still: the other one waits at most one
    ttl."""
    a, b, c = stage.settle()
    stage.pause_replay(b)
    stage.fall_behind(a, c)
    stage.strike("power-cut", a)
    stage.until("the key is gone", lambda: stage.holder() != a)
    stage.expect("it cannot", lambda: stage.said("race.refused", b, "postgres.wal-read"), stage.ttl_s)
    stage.expect("the other one waits", lambda: stage.said("race.refused", c, "peer.ahead"))
    stage.must("liveness.one-primary", f"{c} leads", lambda: stage.leads(c), 2 * stage.ttl_s)


@scenario("H13", {"race-old-answers-of-the-lost-count": "liveness.one-primary"}, nodes=2)
def lost_host_said_it_was_a_primary(stage: Stage) -> None:
    """The primary's host dies. The standby is busy with a restart when the key goes, and comes into the race
    with nothing but an old answer, which it is not going to ask for again."""
    a, b = stage.settle()
    stage.until("it has asked once", lambda: stage.said("follow.ask", b, since=stage.primary_since(a)), 0.0)
    stage.strike("power-cut", a)
    stage.until("the key is about to go", lambda: stage.key_left_s() < 0.5)
    stage.in_kernel(b, "server.start", 2.0)
    stage.strike("kill-postgres", b)
    stage.until("the key is gone", lambda: stage.holder() == "")
    stage.must("liveness.one-primary", f"{b} leads", lambda: stage.leads(b), 2 * stage.ttl_s)


@scenario(
    "H13",
    {"promote-although-the-program-refused": "rule6.told-not-to"},
    postgresql={**DYNAMIC["postgresql"], "pre_promote": "pre_promote"},
)
def program_forbids_the_promotion(stage: Stage) -> None:
    """The winner's pre_promote fails after a while: it gives the key back, and another one leads."""
    a, b, c = stage.settle()
    stage.in_kernel(b, "hook.pre_promote", 3.0, fails=True, times=99)
    stage.fall_behind(a, c)()
    stage.strike("power-cut", a)
    stage.until("one of them takes the key", lambda: stage.holder() in (b, c))
    if stage.holder() == b:
        stage.expect("it is refused", lambda: stage.said("promote.refused", b, "promote.failed"), stage.ttl_s)
    stage.must("liveness.one-primary", f"{c} leads", lambda: stage.leads(c), 3 * stage.ttl_s)
