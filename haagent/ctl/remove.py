"""remove: take everything a cluster has in the DCS away (contract 4.2).

The answers are typed phrases nobody gives by accident, so here, and only here, they are also read from a
pipe: there is no option that would make it easier.
"""

from __future__ import annotations

import sys

import click

from haagent.ctl.errors import CtlError
from haagent.ctl.session import (
    DCS_DEADLINE_S,
    Cluster,
    Session,
    format_option,
    group_option,
    one_line_errors,
    pass_session,
)

PHRASE = "Yes I am aware"


@click.command("remove", short_help="Remove a cluster from the DCS.")
@click.argument("cluster_name")
@group_option
@format_option
@pass_session
def remove_command(session: Session, cluster_name: str, form: str) -> None:
    """Remove every key of a cluster from the DCS. PostgreSQL and its data stay."""
    from haagent.core.member_select import has_same_leader, is_leader
    from haagent.ctl.rows import show_members

    cluster = session.cluster(cluster_name)
    snapshot = cluster.snapshot()
    click.echo(show_members(snapshot, cluster.scope, form))
    if _typed("Please confirm the cluster name to remove") != cluster.scope:
        raise CtlError("Cluster names specified do not match")
    question = f'You are about to remove all information in DCS for {cluster.scope}, please type: "{PHRASE}"'
    if _typed(question) != PHRASE:
        raise CtlError(f'You did not exactly type "{PHRASE}"')
    question = "This cluster currently is healthy. Please specify the leader name to continue"
    if snapshot.leader is not None and not is_leader(snapshot, _typed(question)):
        raise CtlError("You did not specify the current leader of the cluster")
    if not has_same_leader(snapshot, cluster.snapshot()):
        raise CtlError("the leader has changed meanwhile, nothing was removed")
    _delete(cluster)


def _typed(question: str) -> str:
    """One line of standard input; raises CtlError when it has ended."""
    try:
        return str(click.prompt(question, type=str)).strip()
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise CtlError("standard input ended: give each answer as a line of it") from None


def _delete(cluster: Cluster) -> None:
    from dcs.api import Ok

    with one_line_errors():
        outcome = cluster.dcs.delete_cluster(DCS_DEADLINE_S)
    if not isinstance(outcome, Ok):
        why = getattr(outcome, "cause", None) or getattr(outcome, "reason", "")
        raise CtlError(f"it is unknown whether the DCS removed the cluster: {why}")
