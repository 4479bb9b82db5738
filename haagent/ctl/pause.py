"""pause and resume: switch the cluster's automation off and on (contract 2.13).

The wish is a PATCH of the dynamic configuration through any member, the leader first, so that a member
that cannot be reached does not stop the operator. `--wait` follows the store's own events until every
member has published the new state. `resume` asks before it goes on while members are missing: one of them
may still run as a primary nobody watches (hazard H20).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from haagent.ctl.errors import CtlError, refused
from haagent.ctl.session import (
    Cluster,
    Session,
    force_option,
    group_option,
    loop_wait_s,
    pass_session,
    patch_config,
)

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot

#: Whether a member is there at all.
PRESENCE_TIMEOUT_S = 3.0
#: Members write their key at the end of a step: one step and this much (contract 4.2).
RECOGNIZE_MARGIN_S = 1


@click.command("pause", short_help="Stop automatic failover.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("--wait", is_flag=True, help="Wait until every member has seen it.")
@pass_session
def pause_command(session: Session, cluster_name: str | None, wait: bool) -> None:
    """Take the hands of the agents off PostgreSQL: no automatic promotion, demotion, start or stop."""
    from haagent.core.cluster_view import is_paused

    cluster = session.cluster(cluster_name)
    snapshot = cluster.sound_snapshot("leader", "config")
    if is_paused(snapshot):
        raise CtlError("Cluster is already paused")
    _switch(session, cluster, snapshot, paused=True, wait=wait)


@click.command("resume", short_help="Start automatic failover again.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("--wait", is_flag=True, help="Wait until every member has seen it.")
@force_option
@pass_session
def resume_command(session: Session, cluster_name: str | None, wait: bool, force: bool) -> None:
    """Let the agents manage PostgreSQL again."""
    from haagent.core.cluster_view import is_paused

    cluster = session.cluster(cluster_name)
    snapshot = cluster.sound_snapshot("leader", "config")
    if not is_paused(snapshot):
        raise CtlError("Cluster is not paused")
    if not force:
        _ask_about_missing(session, snapshot)
    _switch(session, cluster, snapshot, paused=False, wait=wait)


def _ask_about_missing(session: Session, snapshot: ClusterSnapshot) -> None:
    from haagent.core.member_select import vanished
    from haagent.ctl.selection import confirm

    missing = {**dict.fromkeys(vanished(snapshot), "no member key"), **_silent(session, snapshot)}
    if not missing:
        return
    names = ", ".join(f"{name} ({why})" for name, why in sorted(missing.items()))
    click.echo(f"Missing members: {names}. One of them may still run as primary.")
    if not confirm("Resume nevertheless?"):
        raise CtlError("Aborting resume")


def _silent(session: Session, snapshot: ClusterSnapshot) -> dict[str, str]:
    """Members with a key that do not answer, with the reason."""
    from dcs.records import Member
    from haagent.ctl.members import Reply, in_parallel

    def look(member: Member) -> tuple[str, str | None]:
        if not member.api_url:
            return member.name, "no api_url"
        answer = session.members.request("GET", member.api_url, "/patroni", None, PRESENCE_TIMEOUT_S)
        return member.name, None if isinstance(answer, Reply) else answer.cause

    return {name: why for name, why in in_parallel(look, snapshot.members) if why is not None}


def _switch(session: Session, cluster: Cluster, snapshot: ClusterSnapshot, paused: bool, wait: bool) -> None:
    word = "pause" if paused else "resume"
    reply = patch_config(session, snapshot, {"pause": True if paused else None})
    if reply.status != 200:
        click.echo(f"Failed: {word} cluster management, status code={reply.status}, ({reply.text})")
        refused()
    if wait:
        click.echo(f"'{word}' request sent, waiting until it is recognized by all nodes")
        _await_members(cluster, snapshot, paused)
    click.echo(f"Success: cluster management is {'paused' if paused else 'resumed'}")


def _await_members(cluster: Cluster, before: ClusterSnapshot, paused: bool) -> None:
    """Return when every member has published the state; else print who has not, and exit 1."""
    from haagent.core.member_select import not_yet

    names = frozenset(member.name for member in before.members if member.api_url)
    limit_s = loop_wait_s(before) + RECOGNIZE_MARGIN_S
    if cluster.wait_until(lambda now: not not_yet(now, names, paused), limit_s):
        return
    remaining = not_yet(cluster.snapshot(), names, paused)
    click.echo(f"{', '.join(remaining)} members didn't recognized pause state after {limit_s} seconds")
    refused()
