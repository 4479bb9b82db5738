"""Which versions of PostgreSQL haagent runs: looked at once, when it starts, and by `config validate`."""

from __future__ import annotations

import re

from haagent.config.types import ConfigErrors, PostgresConfig
from haagent.core.settings import Problem
from postgres_ctl.api import run_tool, tool
from postgres_ctl.controldata import major_version
from postgres_ctl.errors import ToolFailed

OLDEST_MAJOR = 14
WANTED = f"must be of PostgreSQL {OLDEST_MAJOR} or newer"
_VERSION_S = 10.0


def server_major(program: str) -> int:
    """Major version of the server program; 0 when it says something else. Raises ToolFailed."""
    said = run_tool([program, "--version"], _VERSION_S, keep_stdout=True).stdout
    match = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(match[1]) if match else 0


def require_supported(config: PostgresConfig) -> None:
    """Raises ConfigErrors for a data directory, or else programs, of a version that is too old.

    What cannot be found out is not refused: an agent that starts beside a running primary is in a hurry,
    and PostgreSQL itself says what is wrong.
    """
    found = major_version(config.data_dir)
    if found is not None:
        if found < OLDEST_MAJOR:
            wanted = f"{WANTED}, and is of {found}"
            raise ConfigErrors((Problem("postgresql.data_dir", config.data_dir, wanted),))
        return
    try:
        major = server_major(tool(config.bin_dir, "postgres", config.bin_name))
    except ToolFailed:
        return
    if 0 < major < OLDEST_MAJOR:
        wanted = f"{WANTED}, and is of {major}"
        raise ConfigErrors((Problem("postgresql.bin_dir", config.bin_dir, wanted),))
