"""Which PostgreSQL the tests run on: the newest one installed, or a version of the matrix.

    HAAGENT_PG_VERSION=14 python -m pytest tests/integration/test_cluster_life.py
    HAAGENT_TEST_PG_BIN=/usr/local/pgsql/bin python -m pytest ...

The versions of the matrix lie beside the system's: scripts/postgres-versions.sh puts them there.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Every major version that haagent supports.
MATRIX = (14, 15, 16, 17, 18)
#: Those `make test` looks at: the oldest and the newest.
MAIN = (14, 18)


def bin_dir() -> str:
    """PostgreSQL's programs for all tests that do not choose. RuntimeError when there are none."""
    chosen = os.environ.get("HAAGENT_TEST_PG_BIN")
    if chosen:
        return chosen
    version = os.environ.get("HAAGENT_PG_VERSION")
    if version:
        return bin_dir_of(int(version))
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("no PostgreSQL under /usr/lib/postgresql: run `make setup`")
    return str(found[-1].parent)


def bin_dir_of(version: int) -> str:
    """PostgreSQL's programs of one version of the matrix. RuntimeError when it is not installed."""
    found = _root() / str(version) / "bin"
    if not (found / "postgres").exists():
        raise RuntimeError(f"no PostgreSQL {version} in {found}: run `make postgres-versions`")
    return str(found)


def _root() -> Path:
    """As scripts/postgres-versions.sh has it."""
    if os.environ.get("HAAGENT_POSTGRES"):
        return Path(os.environ["HAAGENT_POSTGRES"])
    home = Path("/opt") if os.geteuid() == 0 else Path.home() / ".local" / "share"
    return home / "haagent" / "postgresql"
