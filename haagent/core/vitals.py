"""What probes say of a server and its storage, and what is remembered of the remedies: frozen facts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from postgres_ctl.facts import ProbeFault


@dataclass(frozen=True)
class ProbeFacts:
    """One kind of probe, of the server or data directory that is there now. As in `Observation.now`."""

    #: When the last one began, and how long it took, seconds; None before the first.
    began_at: float | None = None
    took_s: float = 0.0
    #: What it found; None: nothing wrong.
    fault: ProbeFault | None = None
    cause: str = ""
    #: When the first of those began that have failed in a row, and how many they are.
    failing_since: float | None = None
    in_a_row: int = 0
    #: Failed in the life of this agent.
    failures: int = 0


@dataclass(frozen=True)
class Vitals:
    """`server`: a fresh connection and a commit. `disk`: a page written and synced beside the data."""

    server: ProbeFacts = ProbeFacts()
    disk: ProbeFacts = ProbeFacts()


@dataclass(frozen=True)
class Remedies:
    """What was done about an unhealthy primary, and how restless the cluster is, as this agent saw it."""

    #: When PostgreSQL was restarted for its health.
    restarts: tuple[float, ...] = ()
    #: Hand-overs in a row that were begun for it and have not ended the leadership, and when the last began.
    tries: int = 0
    tried_at: float | None = None
    #: Since when somebody has been fit to take over from an unhealthy primary.
    fit_since: float | None = None
    #: Why an unhealthy primary stays: told once.
    told: str = ""
    #: When another member became the leader.
    changes: tuple[float, ...] = ()
