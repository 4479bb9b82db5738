"""flush: drop what was scheduled, a switchover or restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from haagent.ctl.errors import CtlError, refused
from haagent.ctl.session import (
    DCS_DEADLINE_S,
    Cluster,
    Session,
    force_option,
    group_option,
    one_line_errors,
    pass_session,
    role_option,
)

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot
    from haagent.ctl.members import Reply

#: One read and one write of the store by the member.
FLUSH_TIMEOUT_S = 15.0


@click.command("flush", short_help="Drop a scheduled switchover or scheduled restarts.")
@click.argument("cluster_name")
@click.argument("member_names", nargs=-1)
@click.argument("target", type=click.Choice(["restart", "switchover"]))
@group_option
@role_option
@force_option
@pass_session
def flush_command(
    session: Session, cluster_name: str, member_names: tuple[str, ...], target: str, role: str, force: bool
) -> None:
    """Drop the scheduled switchover of a cluster, or the scheduled restarts of its members."""
    cluster = session.cluster(cluster_name)
    snapshot = cluster.sound_snapshot("leader", "failover")
    if target == "restart":
        _flush_restarts(session, cluster, snapshot, role, member_names, force)
    elif snapshot.failover is None or not snapshot.failover.scheduled_at:
        click.echo("No pending scheduled switchover")
    else:
        _flush_switchover(session, cluster, snapshot)


def _flush_restarts(
    session: Session,
    cluster: Cluster,
    snapshot: ClusterSnapshot,
    role: str,
    names: Sequence[str],
    force: bool,
) -> None:
    from haagent.ctl.members import Reply
    from haagent.ctl.selection import choose_members, confirm, require_members
    from haagent.ctl.show import print_members

    require_members(snapshot, cluster.scope)
    print_members(snapshot, cluster.scope)
    members = choose_members(snapshot, role, names)
    listed = ", ".join(member.name for member in members)
    if not force and not confirm(f"Are you sure you want to flush members {listed}?"):
        raise CtlError("Aborted flush")
    failed = False
    for member in members:
        if not member.scheduled_restart or not member.api_url:
            click.echo(f"No scheduled restart for member {member.name}")
            continue
        outcome = session.members.request("DELETE", member.api_url, "/restart", None, FLUSH_TIMEOUT_S)
        if isinstance(outcome, Reply) and outcome.status == 404:  # the store has not caught up
            click.echo(f"No scheduled restart for member {member.name}")
            continue
        if isinstance(outcome, Reply) and outcome.status == 200:
            click.echo(f"Success: flush scheduled restart for member {member.name}")
            continue
        failed = True
        why = (
            f"status code={outcome.status}, ({outcome.text})" if isinstance(outcome, Reply) else outcome.cause
        )
        click.echo(f"Failed: flush scheduled restart for member {member.name}, {why}")
    if failed:
        refused()


def _flush_switchover(session: Session, cluster: Cluster, snapshot: ClusterSnapshot) -> None:
    reply = _ask_members(session, snapshot)
    if reply is None:
        _clear_key(cluster, snapshot)
    elif reply.status not in (200, 404):
        click.echo(f"Failed: flush scheduled switchover, status code={reply.status}, ({reply.text})")
        refused()
    click.echo("Success: scheduled switchover deleted")


def _ask_members(session: Session, snapshot: ClusterSnapshot) -> Reply | None:
    """The first answer; deleting twice does no harm, so a lost answer is no end."""
    from haagent.core.member_select import leader_first
    from haagent.ctl.members import Reply

    for member in leader_first(snapshot):
        outcome = session.members.request(
            "DELETE", member.api_url or "", "/switchover", None, FLUSH_TIMEOUT_S
        )
        if isinstance(outcome, Reply):
            return outcome
    return None


def _clear_key(cluster: Cluster, snapshot: ClusterSnapshot) -> None:
    from dcs.api import Ok
    from dcs.codec import encode_failover

    with one_line_errors():
        written = cluster.dcs.compare_and_set(
            "failover", encode_failover(), snapshot.failover_version, DCS_DEADLINE_S
        )
    if not isinstance(written, Ok):
        raise CtlError("no member could be reached, and the request in the DCS has changed meanwhile")
