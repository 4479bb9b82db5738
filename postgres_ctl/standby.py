"""Does a running standby follow as it should? Pure.

Connection and slot of the walreceiver and the archive commands change with a reload on PostgreSQL 14 and
newer. Only a server that is not in recovery at all needs a restart to become a standby.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ProgrammingError

from postgres_ctl.config_files import RecoveryConfig
from postgres_ctl.facts import InstanceSample


class Change(Enum):
    NONE = "none"
    RELOAD = "reload"
    RESTART = "restart"


#: Compared without these: not visible in a running server's settings, or of no effect on whom it follows.
_NOT_COMPARED = frozenset({"password", "sslpassword"})
#: Connection strings whose words are kept: a standby is asked about the same one in every step.
_KEPT = 32


def needs_change(sample: InstanceSample, desired: RecoveryConfig) -> Change:
    """What makes the running server follow as `desired` says."""
    if not sample.in_recovery:
        return Change.RESTART
    wanted = desired.gucs()
    same = (
        _same_conninfo(sample.primary_conninfo or "", wanted.get("primary_conninfo", ""))
        and (sample.primary_slot_name or "") == wanted.get("primary_slot_name", "")
        and (sample.restore_command or "") == wanted.get("restore_command", "")
    )
    return Change.NONE if same else Change.RELOAD


def follows(sample: InstanceSample, host: str, port: int) -> bool:
    """Is the walreceiver configured for this very upstream?"""
    words = _words(sample.primary_conninfo)
    return words.get("host") == host and words.get("port") == str(port)


def upstream(sample: InstanceSample) -> tuple[str, int] | None:
    """Host and port that primary_conninfo names; None when it names none."""
    if not sample.primary_conninfo:
        return None
    words = _words(sample.primary_conninfo)
    host, port = words.get("host"), words.get("port", "5432")
    return (host, int(port)) if host and port.isdigit() else None


def _same_conninfo(one: str, other: str) -> bool:
    """By text first: our own libpq may be older than the server and not know every keyword."""
    return one == other or _words(one) == _words(other)


@lru_cache(maxsize=_KEPT)
def _words(conninfo: str | None) -> Mapping[str, str]:
    try:
        words = conninfo_to_dict(conninfo or "")
    except ProgrammingError:
        # Equal to nothing we would write: it gets replaced.
        return {"invalid": conninfo or ""}
    return {name: str(value) for name, value in words.items() if name not in _NOT_COMPARED}
