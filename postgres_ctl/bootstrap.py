"""Making the first data directory of a cluster: initdb, then roles and passwords, with nobody listening.

Theory. A new cluster must not be writable for anybody before the leader key is held (safety rule 1), so
roles are not made over a connection but by a single-user server: it listens nowhere, reads statements from
stdin and ends with a shutdown checkpoint. The whole is one construction (`datadir.under_construction`):
whoever dies in the middle leaves a directory that is known to be incomplete.

Passwords reach initdb and the single-user server by stdin, an unnamed file in memory, and the server hashes
them as its `password_encryption` says. Statement logging is off meanwhile.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from postgres_ctl.api import Cancellation, ToolResult, boottime, option_arguments, run_tool, tool
from postgres_ctl.datadir import mark_unclaimed, move_aside, under_construction
from postgres_ctl.errors import ConfigFileError, DataDirError, ToolFailed
from postgres_ctl.post_bootstrap import PostBootstrap, complete

__all__ = [
    "InitdbSpec",
    "RoleSpec",
    "bootstrap",
    "create_roles",
    "move_aside",
    "role_statements",
    "single_user",
]

#: Options of `bootstrap.initdb` that are ours or make no sense (contract 5.6).
FORBIDDEN_INITDB_OPTIONS = frozenset(
    {"pgdata", "nosync", "no-sync", "pwfile", "pwprompt", "sync-only", "version", "help", "username"}
)
#: EXECUTE on these lets pg_rewind work without a superuser (contract 2.10).
_REWIND_FUNCTIONS = (
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
)


@dataclass(frozen=True)
class RoleSpec:
    """A role the agent logs in as. The password never shows in repr."""

    name: str
    password: str | None = field(default=None, repr=False)
    superuser: bool = False
    replication: bool = False
    rewind: bool = False


@dataclass(frozen=True)
class InitdbSpec:
    """What to make: `options` is contract 5.6's list, each `"name"` or `{"name": value}`."""

    data_dir: str
    bin_dir: str
    superuser: RoleSpec
    options: Sequence[str | Mapping[str, object]] = ()
    #: Replication role, rewind role: those that are configured.
    roles: Sequence[RoleSpec] = ()
    #: Names of the programs, where they differ.
    initdb: str = "initdb"
    postgres: str = "postgres"
    #: The user's program that completes the new cluster, if any, and its time in seconds.
    post: PostBootstrap | None = None
    post_deadline_s: float = 24 * 3600.0


def initdb_arguments(options: Sequence[str | Mapping[str, object]]) -> tuple[list[str], list[str]]:
    """(arguments, warnings) for initdb from contract 5.6's list; options not allowed are left out."""
    return option_arguments("bootstrap.initdb", options, FORBIDDEN_INITDB_OPTIONS)


def bootstrap(spec: InitdbSpec, deadline_s: float, cancel: Cancellation | None = None) -> tuple[str, ...]:
    """initdb and roles within `deadline_s` seconds; returns warnings. The server is not running afterwards.

    On failure the half made directory is removed, or moved to `<data_dir>.failed` when it was the user's
    program that failed; its time does not count. Raises ToolFailed, DataDirError, ConfigFileError.
    """
    _require_plain_passwords([spec.superuser, *spec.roles])
    arguments, warnings = initdb_arguments(spec.options)
    with under_construction(spec.data_dir):
        end = boottime() + deadline_s
        _initdb(spec, arguments, deadline_s, cancel)
        left_s = max(0.0, end - boottime())
        if spec.post is not None:
            _complete(spec, spec.post, cancel)
        create_roles(
            spec.bin_dir,
            spec.data_dir,
            [spec.superuser, *spec.roles],
            left_s,
            cancel,
            program=spec.postgres,
        )
        mark_unclaimed(spec.data_dir)
    return tuple(warnings)


def _initdb(spec: InitdbSpec, arguments: list[str], deadline_s: float, cancel: Cancellation | None) -> None:
    argv = [tool(spec.bin_dir, spec.initdb), f"--pgdata={spec.data_dir}", f"--username={spec.superuser.name}"]
    # LC_ALL=C is for readable output; the cluster's locale is what our own environment says.
    if not any(a.startswith(("--locale", "--no-locale", "--lc-")) for a in arguments):
        arguments = [f"--locale={_environment_locale()}", *arguments]
    password = spec.superuser.password
    if password is not None:
        # The unnamed file that is its stdin: no password lies on a disk should we be killed now.
        argv.append("--pwfile=/dev/stdin")
    run_tool(
        [*argv, *arguments],
        deadline_s,
        cancel=cancel,
        stdin=f"{password or ''}\n".encode(),
        secrets=(password or "",),
        cwd=spec.data_dir,
    )


def _complete(spec: InitdbSpec, post: PostBootstrap, cancel: Cancellation | None) -> None:
    """The roles come afterwards: the program may have made them already, or find that they are not there."""
    superuser = spec.superuser
    program = tool(spec.bin_dir, spec.postgres)
    try:
        complete(post, program, superuser.name, superuser.password, spec.post_deadline_s, cancel)
    except ToolFailed as fault:
        move_aside(spec.data_dir)
        raise ToolFailed(f"post_bootstrap: {fault}", fault.output, fault.cancelled) from None


def _environment_locale() -> str:
    """The locale of our own environment as the C library would pick it for collation."""
    for name in ("LC_ALL", "LC_COLLATE", "LANG"):
        if os.environ.get(name):
            return os.environ[name]
    return "C"


# --- roles ----------------------------------------------------------------------------------------


def create_roles(
    bin_dir: str,
    data_dir: str,
    roles: Sequence[RoleSpec],
    deadline_s: float,
    cancel: Cancellation | None = None,
    program: str = "postgres",
    settings: Mapping[str, str] | None = None,
    config_file: str | None = None,
) -> None:
    """Create or change `roles` in a stopped data directory. Idempotent. Raises ToolFailed, DataDirError."""
    _require_plain_passwords(roles)
    statements = role_statements(roles)
    hidden = [role.password for role in roles if role.password]
    single_user(
        bin_dir,
        data_dir,
        statements,
        deadline_s,
        cancel,
        config_file=config_file,
        settings=settings,
        secrets=hidden,
        program=program,
    )


def role_statements(roles: Sequence[RoleSpec]) -> list[str]:
    """SQL for `roles`; two of one name become one role with the rights of both. Raises ConfigFileError."""
    merged: dict[str, RoleSpec] = {}
    for role in roles:
        known = merged.get(role.name, role)
        merged[role.name] = RoleSpec(
            role.name,
            known.password if known.password is not None else role.password,
            known.superuser or role.superuser,
            known.replication or role.replication,
            known.rewind or role.rewind,
        )
    statements = []
    for role in merged.values():
        statements.append(_create_or_alter(role))
        if role.rewind and not role.superuser:
            name = quote_identifier(role.name)
            statements += [
                f"GRANT EXECUTE ON FUNCTION {function} TO {name}" for function in _REWIND_FUNCTIONS
            ]
    return statements


def _create_or_alter(role: RoleSpec) -> str:
    attributes = "LOGIN"
    if role.superuser:
        attributes += " SUPERUSER"
    if role.replication:
        attributes += " REPLICATION"
    if role.password is not None:
        attributes += f" PASSWORD {quote_literal(role.password)}"
    name = quote_identifier(role.name)
    # The tag is random: a password cannot end the block.
    tag = f"$r{secrets.token_hex(8)}$"
    exists = f"EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {quote_literal(role.name)})"
    alter, create = f"ALTER ROLE {name} WITH {attributes}", f"CREATE ROLE {name} WITH {attributes}"
    return f"DO {tag} BEGIN IF {exists} THEN {alter}; ELSE {create}; END IF; END {tag}"


def quote_literal(text: str) -> str:
    """An SQL string constant that holds on one line and under any standard_conforming_strings."""
    if "\0" in text:
        raise ConfigFileError("a user name or password contains a NUL character")
    escaped = text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"E'{escaped}'"


def quote_identifier(text: str) -> str:
    """A quoted SQL name. Raises ConfigFileError on line breaks, which single-user mode cannot take."""
    if not text or any(c in text for c in "\0\n\r"):
        raise ConfigFileError(f"not a usable role name: {text!r}")
    escaped = text.replace('"', '""')
    return f'"{escaped}"'


def _require_plain_passwords(roles: Sequence[RoleSpec]) -> None:
    """Password files are made of lines: a line break would cut the password silently."""
    for role in roles:
        if any(c in (role.password or "") for c in "\0\n\r"):
            raise ConfigFileError(
                f"the password of role {role.name!r} contains a line break or NUL character"
            )


# --- single-user mode -----------------------------------------------------------------------------

#: A failed statement ends the run; nothing of the statements gets into a log; no wait for standbys.
_SINGLE_USER_SETTINGS = {
    "exit_on_error": "on",
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_destination": "stderr",
    "logging_collector": "off",
    "synchronous_commit": "local",
    "synchronous_standby_names": "",
    "archive_mode": "off",
}


def single_user(
    bin_dir: str,
    data_dir: str,
    statements: Sequence[str],
    deadline_s: float,
    cancel: Cancellation | None = None,
    *,
    config_file: str | None = None,
    settings: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    dbname: str = "postgres",
    program: str = "postgres",
) -> ToolResult:
    """Start a single-user server, run `statements` (crash recovery first, where due), shut down cleanly.

    It listens nowhere. Refused for a standby, which single-user mode cannot recover. Raises ToolFailed
    (a statement failed, deadline, cancelled: then the server had SIGTERM, which is a clean stop too),
    DataDirError.
    """
    # Not data_dir_state: during bootstrap the directory is marked incomplete.
    if not os.path.exists(os.path.join(data_dir, "PG_VERSION")):
        raise DataDirError(f"{data_dir} is not a data directory")
    if os.path.exists(os.path.join(data_dir, "standby.signal")):
        raise DataDirError(f"{data_dir} is a standby's: single-user mode cannot recover it")
    if any("\n" in statement for statement in statements):
        raise ConfigFileError("a statement for single-user mode contains a line break")
    argv = [tool(bin_dir, program), "--single", "-D", data_dir]
    if config_file:
        argv.append(f"--config-file={config_file}")
    for name, value in (_SINGLE_USER_SETTINGS | dict(settings or {})).items():
        argv += ["-c", f"{name}={value}"]
    script = "".join(f"{statement};\n" for statement in statements)
    return run_tool(
        [*argv, dbname], deadline_s, cancel=cancel, stdin=script.encode(), secrets=secrets, cwd=data_dir
    )
