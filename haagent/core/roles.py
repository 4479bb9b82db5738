"""The role words of contract 1.3 and the questions one may ask about them. Pure.

Roles and leader names are compared only inside `haagent.core`; everybody else asks these predicates.
"""

from __future__ import annotations

PRIMARY = "primary"
REPLICA = "replica"
STANDBY_LEADER = "standby_leader"
DEMOTED = "demoted"
UNINITIALIZED = "uninitialized"
PROMOTED = "promoted"

#: Those a restart may be limited to (contract 3.6).
RESTART_ROLES = (PRIMARY, STANDBY_LEADER, REPLICA)

#: What Patroni before 4.0 called a primary; still read, never written.
_OLD_PRIMARY = "master"

STATE_RUNNING = "running"
#: PostgreSQL does not run there, says its agent, and nothing is done about it now.
_AT_REST = ("stopped", "crashed", "start failed", "initdb failed")
#: Shown when the server should run but does not answer a query.
STATE_UNKNOWN = "unknown"


def is_primary(role: str) -> bool:
    """A primary that may be written to, in new or old spelling."""
    return role in (PRIMARY, _OLD_PRIMARY)


def is_replica(role: str) -> bool:
    return role == REPLICA


def is_standby_leader(role: str) -> bool:
    return role == STANDBY_LEADER


def is_restart_role(role: object) -> bool:
    """A role a restart may be limited to; anything may be asked."""
    return role in RESTART_ROLES


def is_demoted(role: str) -> bool:
    return role == DEMOTED


def is_running(state: str) -> bool:
    return state == STATE_RUNNING


def is_at_rest(state: str) -> bool:
    return state in _AT_REST


def same_member(one: str | None, other: str | None) -> bool:
    """Both given, and the same member name."""
    return one is not None and one == other


def overlay_role(primary: bool, leads_standby_cluster: bool = False) -> str:
    """Whose overlay of the configuration counts (contract 5.2): promoted is primary, demoted is replica."""
    if primary:
        return PRIMARY
    return STANDBY_LEADER if leads_standby_cluster else REPLICA


def shown_role(role: str, in_recovery: bool | None, standby_cluster: bool) -> str:
    """The role of `GET /patroni` (contract 3.4): what PostgreSQL is, where it answers.

    `in_recovery` is None when PostgreSQL does not answer. A closed epoch stays `demoted` (hazard H13),
    and inside a standby cluster only the agent knows which replica is its leader.
    """
    if in_recovery is None or standby_cluster or is_demoted(role):
        return role
    return REPLICA if in_recovery else PRIMARY


def shown_state(state: str, answers: bool) -> str:
    """The state of `GET /patroni`: `unknown` for a server that should run but does not answer."""
    return STATE_UNKNOWN if is_running(state) and not answers else state
