"""The ready-made configurations of docs/backup.md, up to the programs' command lines.

WAL-G and Barman are no packages of Debian's main archive that these tests could rely on: a stub stands in for
them, which records how it was called, and does what they would do. pgBackRest runs for real in
tests/acceptance/test_pgbackrest.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from haagent.config.load import load as config_load
from haagent.config.sources import Environment
from haagent.config.types import AgentConfig
from postgres_ctl.api import ConnectionTarget
from postgres_ctl.bootstrap import RoleSpec
from postgres_ctl.config_files import ServerConfig
from postgres_ctl.controldata import read_controldata
from postgres_ctl.custom_bootstrap import CustomSpec, custom_bootstrap
from postgres_ctl.datadir import data_dir_state, is_unclaimed
from postgres_ctl.facts import ControlState, DataDirState
from postgres_ctl.gucs import protected_parameters
from postgres_ctl.methods import MethodSpec, run_method
from tests.support.postgres import BIN_DIR, SUPERUSER, Server, postgres_user  # noqa: F401

pytestmark = pytest.mark.usefixtures("postgres_user")

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "backup.md"
EXAMPLES = {
    match[1]: match[0]
    for match in re.finditer(r"(?s)(?<=```yaml\n)# ([\w-]+)\n.*?(?=```)", DOCUMENT.read_text())
}
DATA_DIR = "/var/lib/postgresql/main/data"
PLENTY_S = 60.0
#: Program -> its arguments, as the vendor documents them.
RESTORES = {
    "wal-g": ["--config", "/etc/wal-g.yml", "backup-fetch", DATA_DIR, "LATEST"],
    "barman": [
        *("barman@backup", "barman", "recover", "--remote-ssh-command", "'ssh postgres@pg1'"),
        *("main", "latest", DATA_DIR),
    ],
}
PROGRAMS = {"wal-g": "wal-g", "barman": "ssh"}


@pytest.fixture
def source(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    one = Server.create("source")
    try:
        yield one
    finally:
        one.destroy()


@pytest.fixture
def other(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    two = Server.empty("other")
    try:
        yield two
    finally:
        two.destroy()


def stub(tool: str, source: Server, other: Server) -> str:
    """A program called like the tool; it records its arguments and copies `source` as if from a backup."""
    path = other.root / PROGRAMS[tool]
    path.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" > {other.root}/called\ncp -a {source.data_dir} {other.data_dir}\n'
    )
    path.chmod(0o755)
    return str(path)


def configured(tool: str, source: Server, other: Server) -> AgentConfig:
    program, text = stub(tool, source, other), EXAMPLES[tool]
    own: dict[str, Any] = yaml.safe_load(text)
    base: dict[str, Any] = {
        "scope": "main",
        "name": "pg1",
        "restapi": {"listen": "127.0.0.1:8008"},
        "local": {"path": str(other.root / "dcs.db")},
        "postgresql": {
            "listen": "127.0.0.1:5432",
            "data_dir": str(other.root / "main"),
            "bin_dir": BIN_DIR,
            "authentication": {"replication": {"username": "replicator"}},
        },
    }
    for section in ("bootstrap", "postgresql"):
        base[section] = base.get(section, {}) | own[section]
    for section, name in (
        ("bootstrap", own["bootstrap"]["method"]),
        ("postgresql", own["bootstrap"]["method"]),
    ):
        command = base[section][name]["command"]
        assert command.split()[0] == PROGRAMS[tool]
        base[section][name]["command"] = command.replace(PROGRAMS[tool], program, 1)
    return config_load(None, Environment({}, yaml.safe_dump(base)))


@pytest.mark.parametrize("tool", EXAMPLES)
def test_a_replica_by_a_recording_stub(tool: str, source: Server, other: Server) -> None:
    config = configured(tool, source, other)
    method, last = config.postgresql.replica_methods
    assert (method.no_leader, method.no_params, last.name) == (True, True, "basebackup")
    target = ConnectionTarget("127.0.0.1", source.port, SUPERUSER)
    data = str(other.data_dir)
    run_method(
        MethodSpec(
            method.name, data, BIN_DIR, method.command, "main", target, "/dev/null", method.arguments, True
        ),
        PLENTY_S,
    )
    assert (other.root / "called").read_text().splitlines() == RESTORES[tool]
    assert data_dir_state(data) is DataDirState.VALID
    assert (other.data_dir / "standby.signal").exists()


@pytest.mark.parametrize("tool", EXAMPLES)
def test_a_new_cluster_by_a_recording_stub(tool: str, source: Server, other: Server) -> None:
    """Up to the recovery: the stub's copy of a stopped server has nothing to recover from an archive."""
    config = configured(tool, source, other)
    method = config.bootstrap.method
    assert method is not None
    assert method.recovery_conf is not None
    assert method.recovery_conf["recovery_target_time"] == "2030-01-01 12:00:00+00"
    assert method.recovery_conf["restore_command"].split()[-2:] in (['"%f"', '"%p"'], ["%f", "%p"])
    data = str(other.data_dir)
    server = ServerConfig(data, "127.0.0.1", other.port, "main", protected=protected_parameters({})[0])
    custom_bootstrap(
        CustomSpec(
            method.name, data, BIN_DIR, method.command, "main", server, RoleSpec(SUPERUSER, superuser=True),
            arguments=method.arguments, no_params=method.no_params,
        ),
        PLENTY_S,
    )  # fmt: skip
    assert (other.root / "called").read_text().splitlines() == RESTORES[tool]
    assert read_controldata(BIN_DIR, data).state is ControlState.SHUT_DOWN
    assert is_unclaimed(data)
