"""A running server as a configuration would describe it: where it is, what it is set to, who may log in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import rows
from psycopg.conninfo import conninfo_to_dict

from postgres_ctl.errors import ConfigFileError, PostgresUnavailable, QueryFailed

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10000

#: What a file, the command line or the environment of the server sets.
_SETTINGS = """
select name, current_setting(name) from pg_settings
where source in ('configuration file', 'command line', 'environment variable') order by name
"""
_PLACES = """
select current_setting('data_directory') as data_dir, current_setting('config_file') as config_file,
  current_setting('hba_file') as hba_file, current_setting('ident_file') as ident_file,
  current_setting('listen_addresses') as listen_addresses, current_setting('port')::int as port,
  current_setting('cluster_name') as cluster_name,
  (select setting from pg_config where name = 'BINDIR') as bin_dir,
  current_setting('wal_log_hints') = 'on' or current_setting('data_checksums') = 'on' as can_rewind,
  (select usename from pg_stat_replication where usename is not null order by pid limit 1)
    as replication_user
"""


@dataclass(frozen=True)
class ServerDescription:
    """One running server."""

    data_dir: str
    config_file: str
    bin_dir: str
    listen_addresses: str
    port: int
    cluster_name: str
    user: str
    password: str | None = field(repr=False)
    #: pg_rewind would work here.
    can_rewind: bool
    #: Whom its standbys stream as; None when it has none.
    replication_user: str | None
    #: Everything that is set, as the server shows it.
    settings: Mapping[str, str]
    #: Lines of pg_hba.conf and pg_ident.conf, without comments.
    hba: tuple[str, ...] = ()
    ident: tuple[str, ...] = ()

    @property
    def config_dir(self) -> str:
        return os.path.dirname(self.config_file)

    @property
    def config_base_name(self) -> str:
        return os.path.basename(self.config_file).removesuffix(".conf")


def describe_server(dsn: str) -> ServerDescription:
    """Ask the server at `dsn` (libpq's defaults for what it leaves out), and read its files on this machine.

    Raises PostgresUnavailable, QueryFailed (also for a user who is no superuser), ConfigFileError.
    """
    try:
        conninfo_to_dict(dsn)
    except psycopg.Error:
        raise PostgresUnavailable("the DSN cannot be read") from None  # the text may hold a password
    try:
        with psycopg.connect(
            dsn,
            connect_timeout=CONNECT_TIMEOUT_S,
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c search_path=pg_catalog",
        ) as connection:
            return _describe(connection)
    except psycopg.OperationalError as e:
        raise PostgresUnavailable(_one_line(e)) from None
    except psycopg.Error as e:
        raise QueryFailed(_one_line(e), e.sqlstate) from None


def _describe(connection: psycopg.Connection[tuple[object, ...]]) -> ServerDescription:
    if connection.info.parameter_status("is_superuser") != "on":
        raise QueryFailed(f"the user {connection.info.user} is no superuser: a superuser must ask")
    settings = {str(name): str(value) for name, value in connection.execute(_SETTINGS)}
    with connection.cursor(row_factory=rows.dict_row) as cursor:
        found = cursor.execute(_PLACES).fetchone() or {}
    hba, ident = _lines(found.pop("hba_file")), _lines(found.pop("ident_file"))
    return ServerDescription(
        user=connection.info.user,
        password=connection.info.password or None,
        settings=settings,
        hba=hba,
        ident=ident,
        **found,
    )


def _lines(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "is not UTF-8 text"
        raise ConfigFileError(f"cannot read {path}: {why} (run this on the server's machine)") from None
    return tuple(line for line in lines if line and not line.startswith("#"))


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())
