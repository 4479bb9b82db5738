"""Commands that only look: list, topology, show-config, history, version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from haagent.ctl.session import (
    Session,
    format_option,
    group_option,
    pass_session,
    repeated,
    require_sound,
    watch_options,
)

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot
    from haagent.ctl.members import Reply

#: `version` asks each member for this long.
VERSION_TIMEOUT_S = 5.0


@click.command("list", short_help="Show the members of clusters.")
@click.argument("cluster_names", nargs=-1)
@group_option
@click.option("-e", "--extended", is_flag=True, help="Show all columns.")
@click.option("-t", "--timestamp", "stamped", is_flag=True, help="Print the time first.")
@format_option
@watch_options
@pass_session
def list_command(
    session: Session, cluster_names: tuple[str, ...], extended: bool, stamped: bool, form: str,
    every_s: float | None,
) -> None:  # fmt: skip
    """Show the members of clusters: role, state, timeline and lag."""
    _show(session, cluster_names, form, extended, stamped, tree=False, every_s=every_s)


@click.command("topology", short_help="Show who replicates from whom.")
@click.argument("cluster_names", nargs=-1)
@group_option
@watch_options
@pass_session
def topology_command(session: Session, cluster_names: tuple[str, ...], every_s: float | None) -> None:
    """Show the members of clusters as a tree below the leader."""
    _show(session, cluster_names, "pretty", False, False, tree=True, every_s=every_s)


def _show(
    session: Session, names: tuple[str, ...], form: str, extended: bool, stamped: bool, tree: bool,
    every_s: float | None,
) -> None:  # fmt: skip
    from haagent.ctl.output import warn

    scopes = names or tuple(filter(None, (session.config.scope,)))
    if not scopes:
        warn("no cluster name given and no scope configured, nothing to list")
        return

    def once() -> None:
        for scope in scopes:
            _show_one(session, scope, form, extended, stamped, tree)

    repeated(once, every_s)


def _show_one(session: Session, scope: str, form: str, extended: bool, stamped: bool, tree: bool) -> None:
    from datetime import datetime

    from haagent.ctl.rows import show_members

    snapshot = session.cluster(scope).snapshot()
    if stamped:
        click.echo(datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    click.echo(show_members(snapshot, scope, form, extended, tree))
    require_sound(snapshot, ())  # shown first: the rest of the cluster is what helps now


def print_members(snapshot: ClusterSnapshot, scope: str) -> None:
    """The table of `list`, as the changing commands print it before and after."""
    from haagent.ctl.rows import show_members

    click.echo(show_members(snapshot, scope))


# --- configuration and history ------------------------------------------------------------------


@click.command("show-config", short_help="Show the dynamic configuration.")
@click.argument("cluster_name", required=False)
@group_option
@pass_session
def show_config_command(session: Session, cluster_name: str | None) -> None:
    """Print the dynamic configuration as YAML; nothing when the cluster has none."""
    from haagent.ctl.output import yaml_text

    config = session.cluster(cluster_name).sound_snapshot("config").config
    if config is not None:
        click.echo(yaml_text(config.data))


@click.command("history", short_help="Show the timelines that have ended.")
@click.argument("cluster_name", required=False)
@group_option
@format_option
@pass_session
def history_command(session: Session, cluster_name: str | None, form: str) -> None:
    """Show every failover and switchover that began a new timeline."""
    from haagent.ctl.output import Column, pretty_table, render

    snapshot = session.cluster(cluster_name).sound_snapshot("history")
    columns = [
        Column("TL", right=True), Column("LSN", right=True), Column("Reason"), Column("Timestamp"),
        Column("New Leader"),
    ]  # fmt: skip
    rows = history_rows(snapshot)
    if form != "pretty":
        click.echo(render(form, columns, rows, keep_empty=True))
        return
    click.echo(pretty_table(columns, rows))
    for row in rows:
        if "Note" in row:
            click.echo(f" TL {row['TL']}: {row['Note']}")
    for line in discard_lines(snapshot):
        click.echo(f" {line}")


def discard_lines(snapshot: ClusterSnapshot) -> list[str]:
    """What members threw away, below the table: by timeline, then what belongs to none of its rows."""
    from haagent.core.member_select import discard_text, discards_elsewhere, discards_of

    lines = [
        f"TL {row.timeline}: {discard_text(d)}"
        for row in snapshot.history or ()
        for d in discards_of(snapshot, row)
    ]
    return lines + [discard_text(d) for d in discards_elsewhere(snapshot)]


def history_rows(snapshot: ClusterSnapshot) -> list[dict[str, Any]]:
    """Rows by column title; short ones padded with empty text, `Note` and `Discarded` only where needed."""
    from haagent.core.member_select import discard_json, discards_elsewhere, discards_of, history_note

    rows: list[dict[str, Any]] = []
    for ended in snapshot.history or ():
        row: dict[str, Any] = {
            "TL": ended.timeline,
            "LSN": ended.lsn,
            "Reason": ended.reason,
            "Timestamp": ended.timestamp or "",
            "New Leader": ended.new_leader or "",
        }
        note = history_note(snapshot, ended)
        gone = [discard_json(d) for d in discards_of(snapshot, ended)]
        more = {name: value for name, value in (("Note", note), ("Discarded", gone)) if value}
        rows.append({**row, **more})
    elsewhere = [discard_json(d) for d in discards_elsewhere(snapshot)]
    if rows and elsewhere:
        rows[-1]["Discarded"] = [*rows[-1].get("Discarded", []), *elsewhere]
    return rows


# --- version ------------------------------------------------------------------------------------


@click.command("version", short_help="Show versions of this program and of members.")
@click.argument("cluster_name", required=False)
@click.argument("member_names", nargs=-1)
@group_option
@click.option("-f", "--format", "form", type=click.Choice(["pretty", "json"]), default="pretty")
@pass_session
def version_command(
    session: Session, cluster_name: str | None, member_names: tuple[str, ...], form: str
) -> None:
    """Show the version of this program; with a cluster also agent and PostgreSQL of each member."""
    import json

    from haagent import COMPATIBLE_VERSION, __version__

    answers = _member_versions(session, cluster_name, member_names) if cluster_name else []
    if form == "json":
        own = {"haagentctl": __version__, "compatible": COMPATIBLE_VERSION}
        click.echo(json.dumps({**own, "members": answers} if cluster_name else own))
        return
    program = click.get_current_context().find_root().info_name
    click.echo(f"{program} version {COMPATIBLE_VERSION if program == 'patronictl' else __version__}")
    if cluster_name:
        click.echo("")
    for answer in answers:
        click.echo(f"{answer['Member']}: {_version_text(answer)}")


def _member_versions(session: Session, scope: str | None, names: tuple[str, ...]) -> list[dict[str, Any]]:
    from haagent.ctl.members import Reply, in_parallel
    from haagent.ctl.selection import choose_members

    members = choose_members(session.cluster(scope).snapshot(), "any", names)

    def ask(member: Any) -> dict[str, Any]:
        if not member.api_url:
            return {"Member": member.name, "error": "no api_url"}
        answer = session.members.request("GET", member.api_url, "/patroni", None, VERSION_TIMEOUT_S)
        if not isinstance(answer, Reply):
            return {"Member": member.name, "error": answer.cause}
        return {"Member": member.name, **_versions(answer, member.agent)}

    return in_parallel(ask, members)


def _versions(reply: Reply, agent: str | None) -> dict[str, Any]:
    status = reply.json_object()
    if status is None or not isinstance(status.get("patroni"), dict):
        return {"error": f"status code={reply.status}, no status in the answer"}
    found: dict[str, Any] = {"Patroni": str(status["patroni"].get("version", "unknown"))}
    number = status.get("server_version")
    if isinstance(number, int):
        found["PostgreSQL"] = postgres_version(number)
    return {**found, "agent": agent} if agent else found


def _version_text(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"failed to get version: {answer['error']}"
    postgres = f" PostgreSQL {answer['PostgreSQL']}" if "PostgreSQL" in answer else ""
    agent = f" ({answer['agent']})" if "agent" in answer else ""
    return f"Patroni {answer['Patroni']}{postgres}{agent}"


def postgres_version(number: int) -> str:
    """`170005` -> `17.5`, the text of `server_version_num`."""
    return f"{number // 10000}.{number % 10000}"
