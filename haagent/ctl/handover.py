"""switchover and failover: ask, send the request to one member, tell how it ended.

Theory. The request is carried out by the agents; here it is only phrased, and sent exactly once. Members
are tried in turn only while none was reached: as soon as the request may have arrived, a lost answer is
told as "result unknown" and nobody else is asked, for a second request could hand over twice. Only when no
member could be reached the wish is left in the store, by compare-and-set, for the agents to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from haagent.ctl.errors import CtlError, refused
from haagent.ctl.session import (
    DCS_DEADLINE_S,
    Cluster,
    Session,
    force_option,
    group_option,
    loop_wait_s,
    one_line_errors,
    pass_session,
)

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot
    from haagent.ctl.members import Outcome

#: Agents watch the result for 2 * max(10, loop_wait) seconds (contract 3.6); the answer then needs this.
ANSWER_MARGIN_S = 15.0
#: Keys these commands decide on: they must be understood.
_NEEDED_KEYS = ("leader", "config", "failover")
#: How the answer begins when the agent itself does not know how it ended (contract 3.6).
_UNKNOWN_END = "status unknown"


@dataclass(frozen=True)
class _Wish:
    """What is asked for; `leader` and `scheduled_at` (ISO 8601) are set for a switchover only."""

    action: str
    leader: str | None
    candidate: str | None
    scheduled_at: str | None = None

    def body(self) -> dict[str, str]:
        """The body of the REST request."""
        fields = {"leader": self.leader, "candidate": self.candidate, "scheduled_at": self.scheduled_at}
        return {key: value for key, value in fields.items() if value}


@click.command("switchover", short_help="Hand the leadership over in an orderly way.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("--leader", "--primary", "leader", help="Current leader, checked.")
@click.option("--candidate", help="Member that shall lead.")
@click.option("--scheduled", help="Time of the switchover, or now.")
@force_option
@pass_session
def switchover_command(
    session: Session, cluster_name: str | None, leader: str | None, candidate: str | None,
    scheduled: str | None, force: bool,
) -> None:  # fmt: skip
    """Hand the leadership of a healthy cluster to another member without losing a write."""
    cluster = session.cluster(cluster_name)
    snapshot = _show_before(cluster)
    leader = _checked_leader(snapshot, cluster.scope, leader, force)
    candidate = _checked_candidate(snapshot, cluster.scope, candidate, "switchover", force)
    scheduled_at = _checked_time(snapshot, scheduled, force)
    wish = _Wish("switchover", leader, candidate, scheduled_at)
    _confirm(snapshot, cluster.scope, wish, force)
    _carry_out(session, cluster, snapshot, wish)


@click.command("failover", short_help="Make a member the leader, also without a healthy leader.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("--candidate", help="Member that shall lead.")
@force_option
@pass_session
def failover_command(session: Session, cluster_name: str | None, candidate: str | None, force: bool) -> None:
    """Make the named member the leader; may lose writes it does not have."""
    cluster = session.cluster(cluster_name)
    snapshot = _show_before(cluster)
    candidate = _checked_candidate(snapshot, cluster.scope, candidate, "failover", force)
    if candidate is None:
        raise CtlError("Failover could be performed only to a specific candidate")
    wish = _Wish("failover", None, candidate)
    _confirm_risk(snapshot, candidate, force)
    _confirm(snapshot, cluster.scope, wish, force)
    _carry_out(session, cluster, snapshot, wish)


# --- before -------------------------------------------------------------------------------------


def _show_before(cluster: Cluster) -> ClusterSnapshot:
    from haagent.ctl.show import print_members

    snapshot = cluster.sound_snapshot(*_NEEDED_KEYS)
    click.echo("Current cluster topology")
    print_members(snapshot, cluster.scope)
    return snapshot


def _checked_leader(snapshot: ClusterSnapshot, scope: str, given: str | None, force: bool) -> str:
    from haagent.core.member_select import is_leader, leader_name, leads_standby_cluster
    from haagent.ctl.selection import ask

    current = leader_name(snapshot)
    if current is None:
        raise CtlError("This cluster has no leader")
    if given is None and not force:
        title = "Standby Leader" if leads_standby_cluster(snapshot) else "Primary"
        given = ask(title, default=current)
    given = given or current
    if not is_leader(snapshot, given):
        raise CtlError(f"Member {given} is not the leader of cluster {scope}")
    return given


def _checked_candidate(
    snapshot: ClusterSnapshot, scope: str, given: str | None, action: str, force: bool
) -> str | None:
    from haagent.core.member_select import candidates, is_leader
    from haagent.ctl.selection import ask

    names = candidates(snapshot)
    if not names:
        raise CtlError(f"No candidates found to {action} to")
    if given is None and not force:
        given = ask(f"Candidate {list(names)}", instead="use --candidate and --force")
    if not given:
        return None
    if is_leader(snapshot, given):
        raise CtlError(f"Member {given} is already the leader of cluster {scope}")
    if given not in names:
        raise CtlError(f"Member {given} does not exist in cluster {scope} or is tagged as nofailover")
    return given


def _checked_time(snapshot: ClusterSnapshot, given: str | None, force: bool) -> str | None:
    from haagent.core.cluster_view import is_paused
    from haagent.ctl.schedule import next_hour, parse_schedule
    from haagent.ctl.selection import ask

    if given is None and not force:
        given = ask(f"When should the switchover take place (e.g. {next_hour()} ) ", default="now")
    scheduled_at = parse_schedule(given)
    if scheduled_at and is_paused(snapshot):
        raise CtlError("Can't schedule switchover in the paused state")
    return scheduled_at


def _confirm_risk(snapshot: ClusterSnapshot, candidate: str, force: bool) -> None:
    from haagent.core.member_select import risks_acknowledged_writes
    from haagent.ctl.selection import confirm

    if force or not risks_acknowledged_writes(snapshot, candidate):
        return
    if not confirm(f"Are you sure you want to failover to the asynchronous node {candidate}?"):
        raise CtlError("Aborting failover")


def _confirm(snapshot: ClusterSnapshot, scope: str, wish: _Wish, force: bool) -> None:
    from haagent.core.member_select import leader_name
    from haagent.ctl.selection import confirm

    if force:
        return
    current = leader_name(snapshot)
    demoting = f", demoting current leader {current}" if current else ""
    do = f"schedule {wish.action} of" if wish.scheduled_at else wish.action
    at = f" at {wish.scheduled_at}" if wish.scheduled_at else ""
    if not confirm(f"Are you sure you want to {do} cluster {scope}{at}{demoting}?"):
        raise CtlError(f"Aborting {'scheduled ' if wish.scheduled_at else ''}{wish.action}")


# --- the request --------------------------------------------------------------------------------


def _carry_out(session: Session, cluster: Cluster, snapshot: ClusterSnapshot, wish: _Wish) -> None:
    from haagent.ctl.members import Lost, Reply
    from haagent.ctl.output import timestamp

    outcome = _send(session, snapshot, wish)
    title = wish.action.capitalize()
    if outcome is None:
        _leave_in_store(cluster, snapshot, wish)
    elif isinstance(outcome, Lost):
        click.echo(f"{title} result unknown, details: {outcome.cause}")
        refused()
    elif isinstance(outcome, Reply) and outcome.status in (200, 202):
        click.echo(f"{timestamp()} {outcome.text}")
    elif isinstance(outcome, Reply):
        end = "result unknown" if _UNKNOWN_END in outcome.text else "failed"
        click.echo(f"{title} {end}, details: {outcome.status}, {outcome.text}")
        refused()
    _show_after(cluster)


def _show_after(cluster: Cluster) -> None:
    from haagent.ctl.show import print_members

    try:
        print_members(cluster.snapshot(), cluster.scope)
    except CtlError as error:  # the request itself was carried out: that is what the exit code tells
        error.show()


def _send(session: Session, snapshot: ClusterSnapshot, wish: _Wish) -> Outcome | None:
    """The first outcome of a member that was reached, None when there was none."""
    from haagent.core.member_select import leader_first
    from haagent.ctl.members import NotReached

    timeout_s = 2.0 * max(10, loop_wait_s(snapshot)) + ANSWER_MARGIN_S
    for member in leader_first(snapshot, then=wish.candidate):
        api_url = member.api_url or ""
        outcome = session.members.request("POST", api_url, f"/{wish.action}", wish.body(), timeout_s)
        if not isinstance(outcome, NotReached):
            return outcome
    return None


def _leave_in_store(cluster: Cluster, snapshot: ClusterSnapshot, wish: _Wish) -> None:
    from dcs.api import Ok, Unknown
    from dcs.codec import encode_failover
    from haagent.ctl.output import timestamp

    if wish.scheduled_at and datetime.fromisoformat(wish.scheduled_at) < datetime.now().astimezone():
        raise CtlError("no member could be reached, and the time of the switchover has passed")
    value = encode_failover(wish.leader, wish.candidate, wish.scheduled_at)
    with one_line_errors():
        written = cluster.dcs.compare_and_set("failover", value, snapshot.failover_version, DCS_DEADLINE_S)
    if isinstance(written, Unknown):
        raise CtlError(f"no member could be reached; unknown whether the DCS took it: {written.cause}")
    if not isinstance(written, Ok):
        raise CtlError("no member could be reached, and another request came first into the DCS")
    click.echo(f"{timestamp()} No member could be reached, left the {wish.action} request in the DCS")
