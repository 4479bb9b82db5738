"""demote-cluster and promote-cluster: a whole cluster follows another one, or stops to (contract 4.2).

Theory. The wish is the section `standby_cluster` of the dynamic configuration, sent through a member like
`pause`; the agents carry it out. It is judged first by the function the agents use, so that as long as one
haagent member could not follow the wish the answer says so, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from haagent.ctl.errors import CtlError, refused
from haagent.ctl.session import Cluster, Session, force_option, group_option, pass_session, patch_config

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot

#: A shutdown, or a recovery that ends: as long as contract 5.3 gives a start, and a shutdown before it.
CHANGE_LIMIT_S = 600.0


_Test = Callable[["ClusterSnapshot"], bool]


@dataclass(frozen=True)
class _Wish:
    """What `standby_cluster` shall be (None: absent), and how it is seen that it is so."""

    action: str
    noun: str
    section: Mapping[str, Any] | None
    is_configured: _Test
    is_done: _Test


@click.command("demote-cluster", short_help="Make the cluster follow another one.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("--host", help="Host (or hosts) of the cluster to follow.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port.")
@click.option("--restore-command", help="Command that fetches its WAL from an archive.")
@click.option("--primary-slot-name", help="Slot to use there.")
@force_option
@pass_session
def demote_cluster_command(
    session: Session, cluster_name: str | None, host: str | None, port: int | None,
    restore_command: str | None, primary_slot_name: str | None, force: bool,
) -> None:  # fmt: skip
    """Turn a cluster into a standby cluster."""
    from haagent.core.cluster_view import is_standby_cluster
    from haagent.core.member_select import runs_as_standby_cluster

    if not (host or port or restore_command):
        raise CtlError("At least --host, --port or --restore-command should be specified")
    fields = {
        "host": host, "port": port, "restore_command": restore_command,
        "primary_slot_name": primary_slot_name,
    }  # fmt: skip
    section = {key: value for key, value in fields.items() if value}
    wish = _Wish("demote", "demotion", section, is_standby_cluster, runs_as_standby_cluster)
    _change(session, session.cluster(cluster_name), wish, force)


@click.command("promote-cluster", short_help="Stop following another cluster.")
@click.argument("cluster_name", required=False)
@group_option
@force_option
@pass_session
def promote_cluster_command(session: Session, cluster_name: str | None, force: bool) -> None:
    """Turn a standby cluster into one of its own."""
    from haagent.core.cluster_view import is_standby_cluster
    from haagent.core.member_select import runs_on_its_own

    def is_promoted(snapshot: ClusterSnapshot) -> bool:
        return not is_standby_cluster(snapshot)

    wish = _Wish("promote", "promotion", None, is_promoted, runs_on_its_own)
    _change(session, session.cluster(cluster_name), wish, force)


def _change(session: Session, cluster: Cluster, wish: _Wish, force: bool) -> None:
    from haagent.ctl.selection import confirm
    from haagent.ctl.show import print_members

    snapshot = cluster.sound_snapshot("leader", "config")
    patch = {"standby_cluster": wish.section}
    _refuse(cluster, snapshot, wish, patch)
    click.echo("Current cluster topology")
    print_members(snapshot, cluster.scope)
    if not force and not confirm(f"Are you sure you want to {wish.action} {cluster.scope} cluster?"):
        raise CtlError(f"Aborted cluster {wish.noun}")
    _carry_out(session, cluster, snapshot, wish, patch)


def _refuse(cluster: Cluster, snapshot: ClusterSnapshot, wish: _Wish, patch: Mapping[str, Any]) -> None:
    """Raises CtlError for what cannot be, before anybody is asked."""
    from haagent.config.dynamic import merge_patch
    from haagent.ctl.edit import judge

    if wish.is_configured(snapshot):
        raise CtlError("Cluster is already in the required state")
    if snapshot.leader is None:
        raise CtlError(f"Cluster has no leader, {wish.noun} is not possible")
    if any(member.is_haagent for member in snapshot.members):
        judge(cluster, snapshot, merge_patch(snapshot.config.data if snapshot.config else {}, patch))


def _carry_out(
    session: Session, cluster: Cluster, snapshot: ClusterSnapshot, wish: _Wish, patch: Mapping[str, Any]
) -> None:
    from haagent.ctl.output import timestamp

    reply = patch_config(session, snapshot, patch)
    if reply.status != 200:
        click.echo(f"Failed: {wish.action} cluster, status code={reply.status}, ({reply.text})")
        refused()
    if not cluster.wait_until(_told(wish.is_done), CHANGE_LIMIT_S):
        raise CtlError(f"the cluster was not seen {wish.action}d within {CHANGE_LIMIT_S:g} seconds")
    click.echo(f"{timestamp()} cluster is successfully {wish.action}d")


def _told(is_done: _Test) -> _Test:
    """`is_done`, telling on the way each new state of the leader."""
    from haagent.core.member_select import leader_member
    from haagent.ctl.output import timestamp

    seen: list[str] = []

    def looked_at(snapshot: ClusterSnapshot) -> bool:
        leader = leader_member(snapshot)
        role, state = (leader.role, leader.state) if leader else ("unknown", "unknown")
        text = f"cluster is unlocked: {snapshot.leader is None}, leader role: {role}, leader state: {state}"
        done = is_done(snapshot)
        if not done and text not in seen[-1:]:
            seen.append(text)
            click.echo(f"{timestamp()} {text}")
        return done

    return looked_at
