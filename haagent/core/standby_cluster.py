"""The section `standby_cluster` of the dynamic configuration: a cluster that follows another one. Pure.

Contract 6.7. `host`, `port` or `restore_command` make it one, whatever else is wrong with the section: what
cannot be read must not let a server of it be promoted. A value that cannot be used is left out with a problem
that names key and value; people are refused it when they send it (`settings.validate_dynamic`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from postgres_ctl.facts import slot_name

#: Any of these, not empty, makes the section one.
MAKES_IT = ("host", "port", "restore_command")
KNOWN = (
    *MAKES_IT,
    "primary_slot_name",
    "create_replica_methods",
    "archive_cleanup_command",
    "recovery_min_apply_delay",
)
DEFAULT_PORT = 5432
_LARGEST_PORT = 65535
_DELAY = re.compile(r"^\d+(\.\d+)?\s*(us|ms|s|min|h|d)?$")

#: (key, value, what is allowed)
Fault = tuple[str, object, str]


@dataclass(frozen=True)
class RemoteNode:
    """The node of the other cluster that this one follows. `host` may be a list, separated by commas."""

    host: str
    port: int = DEFAULT_PORT

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        return f"remote node {self.host}:{self.port}"


@dataclass(frozen=True)
class StandbyCluster:
    """What the cluster follows, and how."""

    #: None: only an archive.
    remote: RemoteNode | None = None
    #: Slot on the remote node; None: none.
    primary_slot_name: str | None = None
    create_replica_methods: tuple[str, ...] = ()
    restore_command: str | None = None
    archive_cleanup_command: str | None = None
    #: Of the standby leader only; as PostgreSQL reads it.
    recovery_min_apply_delay: str | None = None

    def recovery_settings(self, upstream: tuple[str, int] | None) -> dict[str, str]:
        """Recovery parameters that a member which follows `upstream` gets from the section."""
        leads = upstream == (self.remote.address if self.remote is not None else None)
        found = {
            "restore_command": self.restore_command,
            "archive_cleanup_command": self.archive_cleanup_command,
            "recovery_min_apply_delay": self.recovery_min_apply_delay if leads else None,
        }
        return {name: value for name, value in found.items() if value}

    def slot_for(self, upstream: tuple[str, int] | None, member_slot: str | None) -> str | None:
        """The slot to use there: on the remote node only what the section names."""
        follows_remote = self.remote is not None and upstream == self.remote.address
        return self.primary_slot_name if follows_remote else member_slot


def parse(section: object) -> tuple[StandbyCluster | None, tuple[Fault, ...]]:
    """(what is followed, faults). None: the cluster is no standby cluster. Never raises."""
    if not section:
        return None, ()
    if not isinstance(section, Mapping):
        return None, (("", section, "must be a mapping"),)
    faults: list[Fault] = []
    host, port = _host(section, faults), _port(section, faults)
    texts = {
        key: _text(section, key, faults)
        for key in ("primary_slot_name", "restore_command", "archive_cleanup_command")
    }
    methods, delay = _methods(section, faults), _delay(section, faults)
    if not any(section.get(key) for key in MAKES_IT):
        return None, tuple(faults)
    known_host = host or ("localhost" if port is not None and not section.get("host") else None)
    slot = texts["primary_slot_name"]
    found = StandbyCluster(
        remote=RemoteNode(known_host, port or DEFAULT_PORT) if known_host else None,
        primary_slot_name=slot_name(slot) if slot else None,
        create_replica_methods=methods,
        restore_command=texts["restore_command"],
        archive_cleanup_command=texts["archive_cleanup_command"],
        recovery_min_apply_delay=delay,
    )
    return found, tuple(faults)


def unknown(section: object) -> list[str]:
    """Keys of the section that mean nothing."""
    return [str(key) for key in section if key not in KNOWN] if isinstance(section, Mapping) else []


def _text(section: Mapping[str, Any], key: str, faults: list[Fault]) -> str | None:
    value = section.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, str) and "\0" not in value and value.strip():
        return value
    faults.append((key, value, "must be a text"))
    return None


def _host(section: Mapping[str, Any], faults: list[Fault]) -> str | None:
    text = _text(section, "host", faults)
    if text is None:
        return None
    hosts = [part.strip() for part in text.split(",")]
    if not all(hosts) or any(c.isspace() for part in hosts for c in part):
        faults.append(("host", text, "must be a host, or hosts separated by commas"))
        return None
    return ",".join(hosts)


def _port(section: Mapping[str, Any], faults: list[Fault]) -> int | None:
    value = section.get("port")
    if value is None or value == "":
        return None
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _LARGEST_PORT:
        return number
    faults.append(("port", value, f"must be a number from 1 to {_LARGEST_PORT}"))
    return None


def _methods(section: Mapping[str, Any], faults: list[Fault]) -> tuple[str, ...]:
    value = section.get("create_replica_methods")
    if value is None or value == "":
        return ()
    names = value.split(",") if isinstance(value, str) else value
    if isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names):
        return tuple(name.strip() for name in names)
    faults.append(("create_replica_methods", value, "must be a list of names"))
    return ()


def _delay(section: Mapping[str, Any], faults: list[Fault]) -> str | None:
    value = section.get("recovery_min_apply_delay")
    if value is None or value == "":
        return None
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if _DELAY.match(text):
        return text
    faults.append(("recovery_min_apply_delay", value, "must be a time such as 5min (or milliseconds)"))
    return None
