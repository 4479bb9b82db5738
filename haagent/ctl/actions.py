"""restart, reload and reinit: one request per member, one line per answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from haagent.ctl.errors import CtlError, refused
from haagent.ctl.session import (
    Session,
    force_option,
    group_option,
    loop_wait_s,
    pass_session,
    role_option,
)

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot, Member
    from haagent.ctl.members import Outcome

#: For requests that are answered at once.
QUICK_TIMEOUT_S = 10.0
#: A restart may take `primary_start_timeout` (contract 5.3) to come up …
DEFAULT_START_TIMEOUT_S = 300.0
#: … and before that as long as a checkpoint and a fast stop take.
STOP_MARGIN_S = 300.0
#: `reinit --wait` looks this often (contract 4.2).
REINIT_LOOK_S = 2.0
#: Since this PostgreSQL a version has two parts.
FIRST_OF_TWO_PARTS = 10
_CLONING = "creating replica"
#: End of the answer while a job runs on the member (contract 3.6).
_BUSY = "already in progress"


# --- restart ------------------------------------------------------------------------------------


@click.command("restart", short_help="Restart PostgreSQL on members.")
@click.argument("cluster_name")
@click.argument("member_names", nargs=-1)
@group_option
@role_option
@click.option("--any", "any_one", is_flag=True, help="Only one of the members, by chance.")
@click.option("--scheduled", help="Time of the restart, or now.")
@click.option("--pg-version", help="Only if the PostgreSQL version is lower.")
@click.option("--pending", is_flag=True, help="Only if a restart is pending.")
@click.option("--timeout", help="Time until the primary must be up again, else fail over.")
@force_option
@pass_session
def restart_command(
    session: Session, cluster_name: str, member_names: tuple[str, ...], role: str, any_one: bool,
    scheduled: str | None, pg_version: str | None, pending: bool, timeout: str | None, force: bool,
) -> None:  # fmt: skip
    """Restart PostgreSQL on the members of a cluster, or on those named."""
    from haagent.core.cluster_view import is_paused
    from haagent.ctl.schedule import next_hour, parse_schedule
    from haagent.ctl.selection import ask

    snapshot, members = _chosen(session, cluster_name, role, member_names)
    if scheduled is None and not force:
        scheduled = ask(f"When should the restart take place (e.g. {next_hour()}) ", default="now")
    scheduled_at = parse_schedule(scheduled)
    if scheduled_at and is_paused(snapshot):
        raise CtlError("Can't schedule restart in the paused state")
    if pending:  # the others need not be asked
        members = [member for member in members if member.pending_restart]
    _confirm("restart", members, force, scheduled_at)
    if any_one and members:
        members = [random.choice(members)]
    if pg_version is None and not force:
        pg_version = ask("Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ")
    _check_version(pg_version)
    fields = {
        "restart_pending": pending, "postgres_version": pg_version, "timeout": timeout,
        "schedule": scheduled_at,
    }  # fmt: skip
    body = {key: value for key, value in fields.items() if value}
    wait_s = _start_timeout_s(snapshot, timeout) + STOP_MARGIN_S
    _each(members, lambda member: _restart_one(session, member, body, wait_s, replace=force))


def _restart_one(
    session: Session, member: Member, body: dict[str, Any], wait_s: float, replace: bool
) -> bool:
    """Ask one member; with `replace` a restart scheduled before makes way for the new one."""
    from haagent.ctl.members import Reply

    if replace and "schedule" in body and member.scheduled_restart and member.api_url:
        gone = session.members.request("DELETE", member.api_url, "/restart", None, QUICK_TIMEOUT_S)
        if not isinstance(gone, Reply) or gone.status not in (200, 404):
            return _failed("flush scheduled restart", member, gone)
    outcome = _post(session, member, "/restart", body, wait_s)
    if isinstance(outcome, Reply) and outcome.status in (200, 202):
        done = "restart scheduled" if outcome.status == 202 else "restart"
        click.echo(f"Success: {done} on member {member.name}")
        return True
    if isinstance(outcome, Reply) and outcome.status == 409:
        click.echo(f"Failed: another restart is already scheduled on member {member.name}")
        return False
    return _failed("restart", member, outcome)


def _check_version(text: str | None) -> None:
    """Raises CtlError for what is no version of PostgreSQL."""
    if not text:
        return
    parts = text.split(".")
    if not all(re.fullmatch("[0-9]+", part) for part in parts):
        raise CtlError(f"Invalid PostgreSQL version: {text}")
    if len(parts) != (3 if int(parts[0]) < FIRST_OF_TWO_PARTS else 2):
        raise CtlError(f"Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {text}")


def _start_timeout_s(snapshot: ClusterSnapshot, given: str | None) -> float:
    """How long the start may take, seconds. Raises CtlError for a timeout that is no duration."""
    from haagent.core.settings import parse_duration_s

    if given:
        seconds = parse_duration_s(given)
        if seconds is None or seconds <= 0:
            raise CtlError(f"--timeout must be a positive duration such as 60 or 2min, not {given}")
        return seconds
    data = snapshot.config.data if snapshot.config else {}
    configured = parse_duration_s(data.get("primary_start_timeout"))
    return max(configured or 0.0, DEFAULT_START_TIMEOUT_S)


# --- reload -------------------------------------------------------------------------------------


@click.command("reload", short_help="Let members read their configuration again.")
@click.argument("cluster_name")
@click.argument("member_names", nargs=-1)
@group_option
@role_option
@force_option
@pass_session
def reload_command(
    session: Session, cluster_name: str, member_names: tuple[str, ...], role: str, force: bool
) -> None:
    """Let the agents read their configuration files again and reload PostgreSQL."""
    snapshot, members = _chosen(session, cluster_name, role, member_names)
    _confirm("reload", members, force)
    _each(members, lambda member: _reload_one(session, member, loop_wait_s(snapshot)))


def _reload_one(session: Session, member: Member, within_s: int) -> bool:
    from haagent.ctl.members import Reply

    outcome = _post(session, member, "/reload", {}, QUICK_TIMEOUT_S)
    if not isinstance(outcome, Reply) or outcome.status not in (200, 202):
        return _failed("reload", member, outcome)
    click.echo(
        f"Reload request received for member {member.name} and will be processed within {within_s} seconds"
    )
    return True


# --- reinit -------------------------------------------------------------------------------------


@click.command("reinit", short_help="Build replicas anew from a copy.")
@click.argument("cluster_name")
@click.argument("member_names", nargs=-1)
@group_option
@click.option("--from-leader", is_flag=True, help="Take the base backup from the leader.")
@click.option("--wait", is_flag=True, help="Wait until it is done.")
@force_option
@pass_session
def reinit_command(
    session: Session, cluster_name: str, member_names: tuple[str, ...], from_leader: bool, wait: bool,
    force: bool,
) -> None:  # fmt: skip
    """Wipe the data directories of the replicas named and build them anew."""
    from haagent.ctl.selection import ask

    _, replicas = _chosen(session, cluster_name, "replica", member_names)
    if not member_names:
        names = ", ".join(member.name for member in replicas)
        question = f"Which member do you want to reinitialize [{names}]?"
        named = ask(question, instead="name the member after the cluster, and use --force")
        replicas = [member for member in replicas if member.name == named]
        if not replicas:
            raise CtlError(f"{named or 'nothing'} is not a member of cluster")
    _confirm("reinitialize", replicas, force)
    body = {"force": force, "from_leader": from_leader}
    started = [member for member in replicas if _reinit_one(session, member, body)]
    if wait:
        _await_clones(session, started)
    if len(started) < len(replicas):
        refused()


def _reinit_one(session: Session, member: Member, body: dict[str, Any]) -> bool:
    from haagent.ctl.members import Reply
    from haagent.ctl.selection import confirm

    outcome = _post(session, member, "/reinitialize", body, QUICK_TIMEOUT_S)
    if isinstance(outcome, Reply) and outcome.status == 200:
        click.echo(f"Success: reinitialize for member {member.name}")
        return True
    _failed("reinitialize", member, outcome)
    busy = isinstance(outcome, Reply) and outcome.text.strip().endswith(_BUSY)
    if busy and not body["force"] and confirm("Do you want to cancel it and reinitialize anyway?"):
        return _reinit_one(session, member, {**body, "force": True})
    return False


def _await_clones(session: Session, members: Sequence[Member]) -> None:
    """Look at `GET /patroni` of each until the clone is over; a silent member is asked again."""
    import threading

    waiting, pause = list(members), threading.Event()
    told = 0
    while waiting:
        if told != len(waiting):
            told = len(waiting)
            names = ", ".join(member.name for member in waiting)
            click.echo(f"Waiting for reinitialize to complete on: {names}")
        pause.wait(REINIT_LOOK_S)
        for member in [m for m in waiting if _is_built(session, m)]:
            click.echo(f"Reinitialize is completed on: {member.name}")
            waiting.remove(member)


def _is_built(session: Session, member: Member) -> bool:
    from haagent.ctl.members import Reply

    outcome = session.members.request("GET", member.api_url or "", "/patroni", None, QUICK_TIMEOUT_S)
    status = outcome.json_object() if isinstance(outcome, Reply) else None
    return status is not None and status.get("state") not in (None, _CLONING)


# --- common -------------------------------------------------------------------------------------


def _chosen(
    session: Session, scope: str, role: str, names: Sequence[str]
) -> tuple[ClusterSnapshot, list[Member]]:
    from haagent.ctl.selection import choose_members, require_members
    from haagent.ctl.show import print_members

    cluster = session.cluster(scope)
    snapshot = cluster.sound_snapshot("leader", "config")
    require_members(snapshot, cluster.scope)
    print_members(snapshot, cluster.scope)
    return snapshot, choose_members(snapshot, role, names)


def _confirm(action: str, members: Sequence[Member], force: bool, scheduled_at: str | None = None) -> None:
    from haagent.ctl.selection import confirm

    names = ", ".join(member.name for member in members)
    what = f"{action} members {names}"
    if scheduled_at:
        what = f"schedule {action} of members {names} at {scheduled_at.replace('T', ' ')}"
    if not force and not confirm(f"Are you sure you want to {what}?"):
        raise CtlError(f"Aborted {action}")


def _each(members: Sequence[Member], work: Callable[[Member], bool]) -> None:
    """One after the other, so that a cluster is never restarted as a whole; exit 1 if any failed."""
    done = [work(member) for member in members]
    if not all(done):
        refused()


def _post(session: Session, member: Member, path: str, body: dict[str, Any], wait_s: float) -> Outcome:
    from haagent.ctl.members import NotReached

    if not member.api_url:
        return NotReached("it publishes no api_url")
    return session.members.request("POST", member.api_url, path, body, wait_s)


def _failed(action: str, member: Member, outcome: Outcome) -> bool:
    from haagent.ctl.members import NotReached, Reply

    if isinstance(outcome, Reply):
        why = f"status code={outcome.status}, ({outcome.text})"
    else:
        what = "not reached" if isinstance(outcome, NotReached) else "result unknown"
        why = f"{what} ({outcome.cause})"
    click.echo(f"Failed: {action} for member {member.name}, {why}")
    return False
