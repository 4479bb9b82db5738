"""The way back of a member that diverged, cut off again and again; what goes is written down first."""

from __future__ import annotations

from tests.simulation.hazards.stage import Stage, scenario

#: Enough for a budget to be overdrawn.
KILLS = 6

ONLY_CLONES = {"use_pg_rewind": False, "remove_data_directory_on_diverged_timelines": True}

ENDLESS = {
    "rejoin-state-forgotten": "agent.rewind-budget",
    "rejoin-budget-ignored": "agent.rewind-budget",
    "rejoin-counted-at-its-end": "agent.rewind-budget",
}
UNTOLD = {
    "discard-written-down-afterwards": "rule7.reported",
    "discard-counts-from-the-end": "rule7.reported",
}


@scenario("H14", ENDLESS)
def agent_dies_in_each_rewind(stage: Stage) -> None:
    """Each try is cut off with its agent: nobody is there to count it when it has failed."""
    old, new = diverged(stage)
    for _ in range(KILLS):
        stage.at_boundary(old, "pg.rewind during", "kill-agent", 1.0)
        stage.until("it is cut off, or done", lambda: not _lives(stage, old) or stage.streams(old, new))
        stage.until("its agent is back, or it is done", lambda: _lives(stage, old))
        if stage.streams(old, new):
            break
    stage.expect("it was cloned instead", lambda: stage.said("clone.begin", old))


@scenario("H15", UNTOLD)
def what_a_rewind_discards_is_written_down(stage: Stage) -> None:
    """A primary that was cut off comes back with WAL that nobody else has."""
    old, new = diverged(stage)
    stage.until("it streams again", lambda: stage.streams(old, new))
    stage.expect("it was rewound", lambda: stage.said("rejoin.rewind", old))


@scenario("H15", {"discard-of-a-clone-untold": "rule7.reported"}, postgresql=ONLY_CLONES)
def what_a_clone_discards_is_written_down(stage: Stage) -> None:
    """The same without pg_rewind."""
    old, new = diverged(stage)
    stage.until("it streams again", lambda: stage.streams(old, new))
    stage.expect("it was cloned", lambda: stage.said("clone.begin", old))


def diverged(stage: Stage) -> tuple[str, str]:
    """The old primary, which has WAL of its own and is to come back, and the new one."""
    old, *others = stage.settle()
    together = [stage.strike("cut", f"pg:{old}", f"pg:{other}") for other in others]
    stage.run(2.0)
    back = stage.strike("isolate-from-dcs", old)
    stage.until("a standby leads", lambda: any(stage.leads(name) for name in others))
    new = stage.holder()
    for heal in together:
        heal()
    back()
    return old, new


def _lives(stage: Stage, name: str) -> bool:
    return stage.node(name).agent_process.alive
