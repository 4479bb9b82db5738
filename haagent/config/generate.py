"""Configurations to start from (contract 5.8): a sample, or what a running server is set to.

What only people know is `#FIXME`, in a form the validator reads, so that it can say what is left to do.
The machine is asked in `this_host` only; the rest is pure.
"""

from __future__ import annotations

import copy
import os
import pwd
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haagent.config.check import FIXME
from haagent.config.postgres import find_bin_dir
from haagent.config.shown import as_yaml
from haagent.config.values import LOCAL_HOSTS, WILDCARDS
from postgres_ctl.config_files import RECOVERY_PARAMETERS
from postgres_ctl.describe import ServerDescription
from postgres_ctl.gucs import AGENT_OWNED, OBSOLETE, PROTECTED

_HEAD = f"""\
# Replace every {FIXME}, then: haagent --validate-config FILE
"""
#: A documentation address (RFC 5737): asked for the way there, nothing is sent.
_SOMEWHERE = ("192.0.2.1", 9)
#: Parameters that say where things are, or are the agent's.
_NOT_TAKEN = AGENT_OWNED | OBSOLETE | {
    "config_file", "data_directory", "external_pid_file", "hba_file", "ident_file",
    "synchronous_standby_names",
}  # fmt: skip
#: Recovery settings that stay the user's (contract 5.2, `recovery_conf`).
_RECOVERY_KEPT = (
    "archive_cleanup_command", "recovery_end_command", "recovery_min_apply_delay", "restore_command",
)  # fmt: skip


@dataclass(frozen=True)
class Host:
    """What the machine says."""

    name: str
    #: Address others reach it by; FIXME when it does not know.
    address: str
    bin_dir: str
    #: Where the user who will run the agent keeps data.
    home: str


def this_host() -> Host:
    """This machine. PostgreSQL's user is `postgres` where there is one, else whoever asks."""
    try:
        home = pwd.getpwnam("postgres").pw_dir
    except KeyError:
        home = os.path.expanduser("~")
    return Host(socket.gethostname().split(".")[0] or FIXME, _own_address(), find_bin_dir(), home)


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_SOMEWHERE)
            return str(probe.getsockname()[0])
        except OSError:
            return FIXME


# --- what is in them ----------------------------------------------------------------------------


def sample(host: Host) -> dict[str, Any]:
    """A first member of a new cluster on this machine."""
    pg = {
        "listen": f"127.0.0.1,{host.address}:5432",
        "connect_address": f"{host.address}:5432",
        "data_dir": f"{host.home}/{FIXME}/data",
        "bin_dir": host.bin_dir or f"/{FIXME}",
        "authentication": _authentication("postgres", None, "replicator"),
        "pg_hba": [
            "local all all peer",
            "host all all 127.0.0.1/32 scram-sha-256",
            "host all all samenet scram-sha-256",
            "host replication replicator samenet scram-sha-256",
        ],
    }
    return _whole(host, FIXME, {"wal_keep_size": "512MB"}, True, pg)


def _whole(
    host: Host, scope: str, dynamic: Mapping[str, Any], rewind: bool, postgresql: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "scope": scope,
        "name": host.name,
        "restapi": {"listen": f"{host.address}:8008", "connect_address": f"{host.address}:8008"},
        "etcd3": {"hosts": [f"{FIXME}:2379"]},
        "bootstrap": {
            "dcs": {
                "ttl": 30,
                "loop_wait": 10,
                "retry_timeout": 10,
                "maximum_lag_on_failover": 1048576,
                "postgresql": {"use_pg_rewind": rewind, "parameters": dict(dynamic)},
            },
            "initdb": [{"encoding": "UTF8"}, "data-checksums"],
        },
        "postgresql": dict(postgresql),
        "tags": {"nofailover": False, "noloadbalance": False, "clonefrom": False, "nosync": False},
    }


def _authentication(user: str, password: str | None, replication: str) -> dict[str, Any]:
    return {
        "superuser": {"username": user, "password": password or FIXME},
        "replication": {"username": replication, "password": FIXME},
    }


def of_server(server: ServerDescription, host: Host) -> dict[str, Any]:
    """A member that takes over `server` as it is set now."""
    taken = {
        name: _plain(value)
        for name, value in server.settings.items()
        if name.lower() not in _NOT_TAKEN | RECOVERY_PARAMETERS
    }
    listen, connect = _addresses(server, host)
    recovery = {n: server.settings[n] for n in _RECOVERY_KEPT if server.settings.get(n)}
    pg = {
        "listen": listen,
        "connect_address": connect,
        "data_dir": server.data_dir,
        "config_dir": server.config_dir,
        "config_base_name": server.config_base_name,
        "bin_dir": server.bin_dir,
        "authentication": _authentication(
            server.user, server.password, server.replication_user or "replicator"
        ),
        "parameters": {name: value for name, value in taken.items() if name not in PROTECTED},
        "pg_hba": list(server.hba),
        "pg_ident": list(server.ident),
        "recovery_conf": recovery,
    }
    pg = {name: value for name, value in pg.items() if value not in ({}, [])}
    protected = {name: value for name, value in taken.items() if name in PROTECTED}
    return _whole(host, server.cluster_name or FIXME, protected, server.can_rewind, pg)


def _addresses(server: ServerDescription, host: Host) -> tuple[str, str]:
    """(listen, connect_address). A server that only has a socket gets an address."""
    asked = [a.strip() for a in server.listen_addresses.split(",") if a.strip()] or [host.address]
    texts = [f"[{a}]" if ":" in a else a for a in asked]
    reachable = [a for a in asked if a not in (*WILDCARDS, *LOCAL_HOSTS)]
    found = reachable[0] if reachable else host.address
    connect = f"[{found}]" if ":" in found else found
    return f"{','.join(texts)}:{server.port}", f"{connect}:{server.port}"


def _plain(value: str) -> int | str:
    return int(value) if value.isdigit() and str(int(value)) == value else value


def without_passwords(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a terminal: passwords are to be filled in."""
    shown: dict[str, Any] = copy.deepcopy(dict(config))
    for role in shown["postgresql"]["authentication"].values():
        role["password"] = FIXME
    return shown


def as_text(config: Mapping[str, Any]) -> str:
    return _HEAD + as_yaml(config)
