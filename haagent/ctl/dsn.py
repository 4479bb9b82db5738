"""dsn: where to connect to, for scripts."""

from __future__ import annotations

import click

from haagent.core.member_select import ROLES
from haagent.ctl.errors import CtlError
from haagent.ctl.session import Session, group_option, pass_session


@click.command("dsn", short_help="Print where to connect to.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("-r", "--role", type=click.Choice(ROLES), help="A member with this role; leader unless told.")
@click.option("-m", "--member", "member_name", help="This member.")
@pass_session
def dsn_command(
    session: Session, cluster_name: str | None, role: str | None, member_name: str | None
) -> None:
    """Print `host=… port=…` of the first member that fits."""
    from haagent.core.member_select import with_role

    if role and member_name:
        raise CtlError("--role and --member are mutually exclusive options")
    snapshot = session.cluster(cluster_name).sound_snapshot("leader")
    names = (member_name,) if member_name else with_role(snapshot, role or "leader")
    for member in map(snapshot.member, names):
        if member is not None and member.host_port is not None:
            host, port = member.host_port
            click.echo(f"host={host} port={port}")
            return
    raise CtlError("Can not find a suitable member")
