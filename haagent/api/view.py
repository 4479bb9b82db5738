"""What the REST server sees of the agent: one frozen picture, and a narrow port for control calls.

Health answers are computed from `Published` and the clock alone (contract 3.3), never from a query made
for the request: they stay right and quick while PostgreSQL, its disk or the DCS hangs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from dcs.records import ClusterSnapshot, Discard, Tags
from haagent.core.outlook import Outlook
from haagent.core.rejoin import NOT_NEEDED, RejoinView
from haagent.core.restart import RestartWish
from haagent.core.settings import Settings
from haagent.core.vitals import Vitals
from haagent.measures import Measures
from postgres_ctl.facts import CopyProgress, InstanceSample


@dataclass(frozen=True)
class Published:
    """The agent's last complete picture of itself. Replaced as a whole, never changed."""

    scope: str
    name: str
    #: State text of contract 1.3 ("running", "creating replica", …).
    state: str
    #: primary, replica, standby_leader, demoted, uninitialized, promoted.
    role: str
    settings: Settings
    tags: Tags = field(default_factory=Tags)
    #: Last answer of PostgreSQL; None when it does not answer or does not run.
    sample: InstanceSample | None = None
    #: Last view of the DCS; None when there has been none.
    cluster: ClusterSnapshot | None = None
    #: True while the view is younger than ttl.
    cluster_is_fresh: bool = False
    #: Unix time of the last good contact with the DCS, 0 before the first.
    dcs_last_seen: int = 0
    system_identifier: str | None = None
    pending_restart_reason: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: Time and filters as they were asked for; None when no restart is scheduled.
    scheduled_restart: Mapping[str, Any] | None = None
    #: CLOCK_BOOTTIME second until which the loop counts as alive (next planned step + ttl or 2 ttl;
    #: inf in pause).
    alive_until: float = 0.0
    #: One line for people: a running job with its progress, a failing recovery and its reason.
    note: str | None = None
    #: How far a copy into its data directory is; None while there is none.
    copied: CopyProgress | None = None
    #: Why this member cannot take over now, one line; None when it could or it leads.
    cannot_lead: str | None = None
    #: How far it is on its way back under the leader.
    rejoin: RejoinView = NOT_NEEDED
    #: WAL that was thrown away here last, of those that are remembered.
    discards: tuple[Discard, ...] = ()
    #: Its watchdog is required and cannot be used.
    watchdog_failed: bool = False
    #: Promises of all members keep this primary, or this member has promised to keep one.
    failsafe_active: bool = False
    #: Log records that wait to be written, and those lost since the start.
    queued_log_records: int = 0
    lost_log_records: int = 0


@dataclass(frozen=True)
class Numbers:
    """What `/metrics` shows beside the picture."""

    measures: Measures
    #: None where this member is no primary, or cannot tell.
    outlook: Outlook | None = None
    vitals: Vitals = field(default_factory=Vitals)


@dataclass(frozen=True)
class Answer:
    """What a control call answers: HTTP status and a text or JSON body."""

    status: int
    body: str | Mapping[str, Any] | list[Any]
    headers: Mapping[str, str] = field(default_factory=dict)


class AgentPort(Protocol):
    """What REST handlers may ask of the agent. Every call returns within its own deadline."""

    def published(self) -> Published:
        """The current picture; never blocks."""

    def leader_until(self) -> float | None:
        """CLOCK_BOOTTIME second at which our proven lease is fenced; None when we do not hold it.

        "I am leader" means boottime() < leader_until() (design section 2)."""

    def numbers(self) -> Numbers:
        """For `/metrics`; never blocks."""

    def refresh(self, deadline_s: float) -> Published:
        """A picture with a sample taken after this call, or the last one when that takes too long.

        Only for peers in an election (`GET /patroni?peer=<name>`)."""

    def read_cluster(self) -> ClusterSnapshot:
        """Fresh DCS view for `/cluster` and `/config`. Raises dcs.errors.DcsUnavailable."""

    def switchover(self, body: Mapping[str, Any]) -> Answer:
        """Contract 3.6; blocks until the operation ended, or is scheduled."""

    def delete_switchover(self) -> Answer:
        """Drop the switchover that is scheduled."""

    def failover(self, body: Mapping[str, Any]) -> Answer: ...

    def failsafe(self, body: Mapping[str, Any]) -> Answer:
        """A leader without a DCS asks for the promise not to take its place (contract 2.11)."""

    def restart(self, wish: RestartWish) -> Answer:
        """Restart PostgreSQL if the conditions hold when it is its turn; blocks until it has or shall."""

    def delete_restart(self) -> Answer:
        """Drop the restart that is scheduled."""

    def reinitialize(self, body: Mapping[str, Any]) -> Answer: ...

    def reload(self) -> Answer: ...

    def patch_config(self, patch: Mapping[str, Any]) -> Answer:
        """Merge into the dynamic configuration by CAS; validated first."""

    def put_config(self, data: Mapping[str, Any]) -> Answer: ...

    def explain(self) -> Mapping[str, Any]:
        """Could this member take over now, rule by rule (design section 2)."""


@runtime_checkable
class EventSource(Protocol):
    """What an agent may offer beside `AgentPort`: its latest events for `/events` and the dashboard."""

    def events(self) -> list[Mapping[str, Any]]:
        """Latest events, newest last, each with at least `time` (ISO text) and `message`; never blocks."""
