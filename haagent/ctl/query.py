"""query: run SQL on a member, found by role or name (contract 4.2).

Theory. Who leads is read from the store, but the session must find it so as well: a leader's session wants
a primary, a replica's a standby, so that a picture that is a moment old never sends a statement to the wrong
server. Failures are rows of the output with exit code 0, as in Patroni; their cause goes to stderr. Passwords
come from a prompt, PGPASSWORD or the password file, never from an argument.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

import click

from haagent.core.member_select import ROLES
from haagent.ctl.errors import CtlError
from haagent.ctl.session import Session, group_option, pass_session, repeated, watch_options

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot, Member
    from postgres_ctl.adhoc import Table
    from postgres_ctl.libpq import Connection

#: A person waits, and ends it with Ctrl-C: more than any statement one waits for.
QUERY_DEADLINE_S = 24 * 3600.0


@dataclass(frozen=True)
class _Login:
    user: str
    password: str | None = field(repr=False)
    dbname: str


@dataclass(frozen=True)
class _Shape:
    form: str
    delimiter: str


@click.command("query", short_help="Run SQL on a member.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("-r", "--role", type=click.Choice(ROLES), help="A member with this role; leader unless told.")
@click.option("-m", "--member", "member_name", help="This member.")
@click.option("-d", "--dbname", default="postgres", show_default=True, help="Database.")
@click.option("-U", "--username", help="Database user; $PGUSER or the one of the system unless told.")
@click.option("--password", "ask_password", is_flag=True, help="Ask for the password.")
@click.option("-c", "--command", "command", metavar="SQL", help="The SQL.")
@click.option("-f", "--file", "file", type=click.File("rb"), help="A file with the SQL, - is standard input.")
@click.option("--format", "form", type=click.Choice(["pretty", "tsv", "json", "yaml", "yml"]), default="tsv",
              show_default=True, help="Output format.")  # fmt: skip
@click.option("--delimiter", default="\t", help="Between the columns of tsv; a tab unless told.")
@watch_options
@pass_session
def query_command(
    session: Session, cluster_name: str | None, role: str | None, member_name: str | None, dbname: str,
    username: str | None, ask_password: bool, command: str | None, file: IO[bytes] | None, form: str,
    delimiter: str, every_s: float | None,
) -> None:  # fmt: skip
    """Run SQL on the leader, or on another member, and print the rows."""
    from haagent.ctl.config import require_text
    from haagent.ctl.selection import ask_secret

    if role and member_name:
        raise CtlError("--role and --member are mutually exclusive options")
    sql = _sql(command, file)
    for what, text in (
        ("the SQL", sql),
        ("--member", member_name),
        ("--dbname", dbname),
        ("--username", username),
    ):
        require_text(what, text or "")
    cluster = session.cluster(cluster_name)
    password = ask_secret("Password", "set PGPASSWORD or use a password file") if ask_password else None
    login = _Login(username or os.environ.get("PGUSER") or _system_user(), password, dbname)
    shape = _Shape(form, "\t" if delimiter == r"\t" else delimiter)

    def once() -> None:
        snapshot = cluster.sound_snapshot("leader")
        _print_answer(snapshot, role, member_name, login, sql, shape)

    repeated(once, every_s)


def _sql(command: str | None, file: IO[bytes] | None) -> str:
    if command is not None and file is not None:
        raise CtlError("--file and --command are mutually exclusive options")
    if command is None and file is None:
        raise CtlError("You need to specify either --command or --file")
    try:
        sql = command if command is not None else file.read().decode("utf-8") if file else ""
    except UnicodeDecodeError:
        raise CtlError("the file with the SQL is not UTF-8 text") from None
    if not sql.strip() or "\0" in sql:
        raise CtlError("the SQL is empty" if not sql.strip() else "the SQL has a zero byte in it")
    return sql


def _system_user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user id
        raise CtlError("no database user: use --username") from None


def _print_answer(
    snapshot: ClusterSnapshot, role: str | None, name: str | None, login: _Login, sql: str, shape: _Shape
) -> None:
    from haagent.ctl.output import warn
    from postgres_ctl.adhoc import run
    from postgres_ctl.errors import PostgresUnavailable, QueryFailed

    role = role or (None if name else "leader")
    connection = _connected(snapshot, role, name, login)
    if connection is None:
        whom = f"role {role}" if role else f"member {name}"
        _tell(f"No connection to {whom} is available", shape)
        return
    try:
        click.echo(table_text(run(connection, sql, QUERY_DEADLINE_S), shape.form, shape.delimiter))
    except (QueryFailed, PostgresUnavailable) as error:
        warn(str(error))
        state = error.sqlstate if isinstance(error, QueryFailed) else None
        _tell(f"ERROR, SQLSTATE: {state or error}", shape)
    finally:
        connection.close()


def _tell(text: str, shape: _Shape) -> None:
    """What went wrong, in the place of the rows; in tsv without a header."""
    from postgres_ctl.adhoc import Table

    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
    if shape.form == "tsv":
        click.echo(f"{now}{shape.delimiter}{text}")
    else:
        click.echo(table_text(Table(("Time", "Error"), ((now, text),), ""), shape.form, shape.delimiter))


# --- connecting ---------------------------------------------------------------------------------


def _connected(
    snapshot: ClusterSnapshot, role: str | None, name: str | None, login: _Login
) -> Connection | None:
    """A session on the first member that fits and lets us in; each failure is told on stderr."""
    from haagent.core.member_select import session_kind, with_role
    from haagent.ctl.output import warn
    from postgres_ctl.adhoc import connect
    from postgres_ctl.errors import PostgresUnavailable

    names = with_role(snapshot, role) if role else (name or "",)
    kind = session_kind(snapshot, role or "any")
    for member in filter(None, map(snapshot.member, names)):
        target = _target(member, login, kind)
        if target is None:
            continue
        try:
            return connect(target, "haagentctl")
        except PostgresUnavailable as error:
            warn(f"{member.name}: {error}")
    return None


def _target(member: Member, login: _Login, kind: str) -> Any:
    from postgres_ctl.api import ConnectionTarget

    if member.host_port is None:
        return None
    host, port = member.host_port
    attributes = {"target_session_attrs": kind}
    return ConnectionTarget(host, port, login.user, login.password, login.dbname, options=attributes)


# --- showing ------------------------------------------------------------------------------------


def table_text(table: Table, form: str, delimiter: str) -> str:
    """What came back, as text without the final line end; the status where there are no rows."""
    import json

    from haagent.ctl.output import Column, pretty_table, yaml_text

    if not table.columns:
        return table.status
    if form == "tsv":
        lines = [table.columns, *table.rows]
        return "\n".join(delimiter.join(map(str, cells)) for cells in lines)
    if form == "pretty":
        # Two columns may have the same name: their place is the key.
        columns = [
            Column(str(n), right=_all_numbers(table, n), heading=name) for n, name in enumerate(table.columns)
        ]
        return pretty_table(columns, [{str(n): cell for n, cell in enumerate(row)} for row in table.rows])
    rows = [dict(zip(table.columns, map(_plain, row), strict=True)) for row in table.rows]
    return json.dumps(rows) if form == "json" else yaml_text(rows)


def _all_numbers(table: Table, column: int) -> bool:
    from decimal import Decimal

    values = [row[column] for row in table.rows if row[column] is not None]
    numeric = (int, float, Decimal)
    return bool(values) and all(isinstance(v, numeric) and not isinstance(v, bool) for v in values)


def _plain(value: Any) -> Any:
    """As JSON and YAML know it; anything else as text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
