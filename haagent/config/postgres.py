"""The section postgresql, put together from checked values, and what this machine says about it."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from haagent.config import values as v
from haagent.config.check import Checked, allowed_options
from haagent.config.methods import replica_methods
from haagent.config.schema import CALLBACKS, KEYS, OVERLAYS, ROLES, TOOLS
from haagent.config.types import Authentication, Overlay, PostgresConfig, Role, state_dir
from haagent.config.values import HostPort
from postgres_ctl.rewind import FORBIDDEN_OPTIONS as REWIND_FORBIDDEN

#: Where Debian puts the programs of each version.
_INSTALLED = "/usr/lib/postgresql/*/bin"

_PG_SAME = (
    "pgpass", "database", "config_base_name", "custom_conf", "pg_hba", "pg_ident", "use_unix_socket",
    "use_unix_socket_repl", "use_pg_rewind", "remove_data_directory_on_rewind_failure",
    "remove_data_directory_on_diverged_timelines", "keep_diverged_wal", "keep_diverged_wal_size",
    "krbsrvname", "proxy_address",
)  # fmt: skip
_BASEBACKUP_FORBIDDEN = (
    "pgdata", "format", "wal-method", "xlog-method", "gzip", "version", "dbname", "host", "port", "username",
    "password", "compress", "target", "incremental",
)  # fmt: skip
_ROLE_KEYS = {
    role: tuple(key for key in KEYS.values() if key.section == f"postgresql.authentication.{role}")
    for role in ROLES
}
#: What PostgreSQL listens on -> where the agent connects; the first that is there.
_LOOPBACK = dict.fromkeys(("127.0.0.1", "*", "0.0.0.0"), "127.0.0.1") | {  # noqa: S104 - not bound here
    "localhost": "localhost",
    "::1": "::1",
    "::": "::1",
}


def postgres_config(checked: Checked) -> PostgresConfig | None:
    """Section `postgresql` of `checked`; None when an essential part is missing."""

    def get(name: str) -> Any:
        return checked.get(f"postgresql.{name}")

    listen: v.Listen | None = get("listen")
    if listen is None or get("data_dir") is None:
        return None
    local_host = _local_host(listen)
    connect = get("connect_address") or HostPort(local_host, listen.port)
    _check_connect(checked, connect, listen)
    return PostgresConfig(
        listen_addresses=listen.addresses,
        port=listen.port,
        connect_host=connect.host,
        connect_port=connect.port,
        local_host=local_host,
        data_dir=get("data_dir"),
        config_dir=get("config_dir") or get("data_dir"),
        bin_dir=get("bin_dir") or find_bin_dir(get("bin_name.postgres")),
        bin_name={tool: get(f"bin_name.{tool}") for tool in TOOLS},
        authentication=_authentication(checked),
        parameters=guc_texts(get("parameters")),
        recovery_conf=guc_texts(get("recovery_conf")),
        basebackup=allowed_options(checked, "postgresql.basebackup", _BASEBACKUP_FORBIDDEN),
        rewind=allowed_options(checked, "postgresql.rewind", REWIND_FORBIDDEN),
        replica_methods=replica_methods(checked),
        overlays=MappingProxyType({role: _overlay(checked, role) for role in OVERLAYS}),
        pg_ctl_timeout_s=get("pg_ctl_timeout"),
        callbacks={name: command for name in CALLBACKS if (command := get(f"callbacks.{name}"))},
        pre_promote=get("pre_promote") or None,
        before_stop=get("before_stop") or None,
        **{name: get(name) for name in _PG_SAME},
    )


def _overlay(checked: Checked, role: str) -> Overlay:
    return Overlay(
        parameters=guc_texts(checked.get(f"postgresql.parameters_{role}")),
        pg_hba=checked.get(f"postgresql.pg_hba_{role}") or None,
        pg_ident=checked.get(f"postgresql.pg_ident_{role}") or None,
    )


def guc_texts(data: Mapping[str, Any]) -> Mapping[str, str]:
    """GUC values as PostgreSQL's files have them; null means unset."""
    return MappingProxyType({name: v.text(value) for name, value in data.items() if value is not None})


def _local_host(listen: v.Listen) -> str:
    """The address for the agent's own connections: loopback where PostgreSQL listens there.

    Not the name localhost: it needs a look-up, and may mean ::1 where pg_hba only has 127.0.0.1.
    """
    for address, reached_by in _LOOPBACK.items():
        if address in listen.addresses:
            return reached_by
    return listen.addresses[0]


def _check_connect(checked: Checked, connect: HostPort, listen: v.Listen) -> None:
    path = "postgresql.connect_address"
    if connect.is_wildcard:
        checked.refuse(path, str(connect), "must be an address others can connect to")
    elif path not in checked.values and any(a in v.WILDCARDS for a in listen.addresses):
        checked.warn(f"{path}: not set: other members will be told {connect}, which means themselves")


def _authentication(checked: Checked) -> Authentication:
    superuser, replication, rewind = (_role(checked, role) for role in ROLES)
    assert superuser is not None  # its user name has a default
    return Authentication(superuser, replication or superuser, rewind or superuser)


def _role(checked: Checked, role: str) -> Role | None:
    base = f"postgresql.authentication.{role}"
    username = checked.get(f"{base}.username")
    if username is None:
        return None
    own = ("username", "password", "sslmode", "sslpassword")
    options = {
        key.name: checked.values[key.path]
        for key in _ROLE_KEYS[role]
        if key.name not in own and key.path in checked.values
    }
    return Role(
        username=username,
        password=checked.get(f"{base}.password"),
        sslmode=checked.get(f"{base}.sslmode"),
        sslpassword=checked.get(f"{base}.sslpassword"),
        options=MappingProxyType(options),
    )


# --- the machine --------------------------------------------------------------------------------


def find_bin_dir(program: str = "postgres") -> str:
    """Directory of PostgreSQL's programs: by PATH, else the newest installed version, else ""."""
    by_path = shutil.which(program)
    if by_path:
        return os.path.dirname(os.path.realpath(by_path))
    found = [d for d in glob.glob(_INSTALLED) if os.access(os.path.join(d, program), os.X_OK)]
    return max(found, key=_version, default="")


def _version(bin_dir: str) -> float:
    match = re.search(r"/(\d+(?:\.\d+)?)/bin$", bin_dir)
    return float(match[1]) if match else 0.0


def check_machine(checked: Checked) -> None:
    """Programs and directories, as this process sees them."""
    path, name = "postgresql.bin_dir", checked.get("postgresql.bin_name.postgres")
    bin_dir = checked.get(path) or find_bin_dir(name)
    program = os.path.join(bin_dir, name)
    if not bin_dir:
        checked.refuse(path, "", f"is missing: no PostgreSQL found in PATH or {_INSTALLED}")
    elif not os.access(program, os.X_OK) or os.path.isdir(program):
        checked.refuse(path, bin_dir, f"must contain the program {name}")
    elif not is_postgres(program):
        why = (
            "must be the program postgres, or a script that runs it: the fence knows PostgreSQL by that name"
        )
        checked.refuse("postgresql.bin_name.postgres", name, why)
    if checked.get("postgresql.data_dir"):
        _check_directories(checked.get("postgresql.data_dir"), checked)


def is_postgres(program: str) -> bool:
    """Its processes will be called postgres; a script's are not its own."""
    if os.path.basename(os.path.realpath(program)) in ("postgres", "postmaster"):
        return True
    try:
        with open(program, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _check_directories(data_dir: str, checked: Checked) -> None:
    """Data directory and, beside it, the agent's state directory must be possible."""
    path = "postgresql.data_dir"
    if os.path.lexists(data_dir) and not os.path.isdir(data_dir):
        checked.refuse(path, data_dir, "must be a directory")
        return
    wanted = [state_dir(data_dir)]
    if not os.path.isdir(data_dir):
        wanted.append(data_dir)
    for directory in wanted:
        obstacle = _obstacle(directory)
        if obstacle:
            why = f"needs {directory}, but {obstacle} is not a directory this user can write to"
            checked.refuse(path, data_dir, why)
            return


def _obstacle(directory: str) -> str | None:
    """The existing path that keeps `directory` from being made or written to; None when nothing does."""
    while not os.path.lexists(directory) and directory != "/":
        directory = os.path.dirname(directory)
    usable = os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)
    return None if usable else directory
