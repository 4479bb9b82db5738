"""Programs of the user's that fill a data directory, on real ones (contract 6.4)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from postgres_ctl.api import ConnectionTarget
from postgres_ctl.datadir import WORKS_ON, condemn, data_dir_state
from postgres_ctl.errors import ToolFailed
from postgres_ctl.facts import DataDirState
from postgres_ctl.methods import MethodSpec, run_method
from postgres_ctl.process import processes_with
from tests.support.postgres import BIN_DIR, SUPERUSER, Server, postgres_user, wait_for  # noqa: F401

pytestmark = pytest.mark.usefixtures("postgres_user")

PLENTY_S = 60.0


@pytest.fixture
def server(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    one = Server.create("one")
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


def target(server: Server) -> ConnectionTarget:
    return ConnectionTarget("127.0.0.1", server.port, SUPERUSER)


def method(server: Server, other: Server, script: str, **changes: Any) -> MethodSpec:
    program = other.root / "make.sh"
    program.write_text(f"#!/bin/bash\nset -eu\n{script}\n")
    program.chmod(0o755)
    data, command = str(other.data_dir), f"{program} 'one word'"
    return replace(
        MethodSpec("make", data, BIN_DIR, command, "batman", target(server), "/dev/null"), **changes
    )


def test_a_method_gets_the_arguments_of_the_contract_and_leaves_a_standby(
    server: Server, other: Server
) -> None:
    script = f"""
        printf '%s\\n' "$@" > {other.root}/args
        [ ! -e {other.data_dir} ] && cp -a {server.data_dir} {other.data_dir}
        touch {other.data_dir}/{{promote,recovery.signal,postmaster.opts,go}}
    """
    keys = {"speed": 3, "no_leader": True}
    spec = method(server, other, script, arguments=keys, trigger_files=("go", "../args"))
    run_method(spec, PLENTY_S)
    assert (other.root / "args").read_text().splitlines() == [
        "one word",
        "--speed=3",
        "--no_leader=True",
        "--scope=batman",
        "--role=replica",
        f"--datadir={other.data_dir}",
        f"--connstring={target(server).dsn()}",
    ]
    assert data_dir_state(str(other.data_dir)) is DataDirState.VALID
    assert (other.data_dir / "standby.signal").exists()
    gone = ("promote", "recovery.signal", "postmaster.opts", "go")
    assert not [name for name in gone if (other.data_dir / name).exists()]


def test_what_a_method_leaves_is_looked_at(server: Server, other: Server) -> None:
    copy = f"cp -a {server.data_dir} {other.data_dir}"
    for script, changes, fault in (
        ("exit 3", {}, "make.sh failed with exit code 3"),
        ("mkdir -p " + str(other.data_dir / "base"), {}, "holds no PostgreSQL data directory"),
        (copy, {"system_identifier": "7"}, "a copy of another cluster"),
    ):
        with pytest.raises(ToolFailed, match=fault):
            run_method(method(server, other, script, **changes), PLENTY_S)
        assert not other.data_dir.exists() or list(other.data_dir.iterdir()) == []
        assert data_dir_state(str(other.data_dir)) is DataDirState.MISSING_OR_EMPTY


def test_data_that_a_failed_method_was_to_keep_count_as_incomplete(server: Server, other: Server) -> None:
    data = str(other.data_dir)
    run_method(method(server, other, f"cp -a {server.data_dir} {data}"), PLENTY_S)
    (other.data_dir / "kept").touch()
    condemn(data)
    assert data_dir_state(data) is DataDirState.MISSING_OR_EMPTY
    for _ in range(2):
        with pytest.raises(ToolFailed):
            run_method(method(server, other, "exit 1", keep_data=True), PLENTY_S)
        assert (other.data_dir / "kept").exists()
        assert data_dir_state(data) is DataDirState.MISSING_OR_EMPTY
    run_method(method(server, other, f"test -e {data}/kept", keep_data=True), PLENTY_S)
    assert data_dir_state(data) is DataDirState.VALID
    assert (other.data_dir / "kept").exists()


def test_a_method_abandoned_by_a_dead_agent_is_ended_with_all_it_started(
    server: Server, other: Server
) -> None:
    """It has made the directory anew, and its children have sessions of their own."""
    data = str(other.data_dir)
    script = f"rm -rf {data}; mkdir -m 700 {data}; touch {data}/half; setsid sleep 1000 & exec sleep 1000"
    spec = method(server, other, script)
    code = (
        "from postgres_ctl.methods import *;"
        f"run_method(MethodSpec('make', {data!r}, {BIN_DIR!r}, {spec.command!r}, 'x', None, '/dev/null'), 60)"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    marker = Path(f"{data}.incomplete")
    wait_for(lambda: marker.exists() and (other.data_dir / "half").exists(), "it works")
    inode = str(other.data_dir.stat().st_ino)
    wait_for(lambda: inode in marker.read_text(), "the marker follows the directory")
    agent.kill()
    agent.wait()
    mark = f"{WORKS_ON}={data}".encode()
    assert len(processes_with(mark)) == 2
    assert data_dir_state(data) is DataDirState.MISSING_OR_EMPTY
    run_method(method(server, other, f"cp -a {server.data_dir}/. {data}"), PLENTY_S)
    assert data_dir_state(data) is DataDirState.VALID
    assert processes_with(mark) == []


def test_a_directory_that_appeared_after_a_dead_agents_method_is_nobodys(other: Server) -> None:
    """Perhaps somebody has restored it by hand: neither started nor wiped."""
    data = str(other.data_dir)
    condemn(data)
    other.data_dir.mkdir(exist_ok=True)
    moved = other.data_dir.rename(other.root / "other")
    shutil.copytree(moved, other.data_dir)
    (other.data_dir / "PG_VERSION").write_text("15\n")
    assert data_dir_state(data) is DataDirState.FOREIGN
    Path(f"{data}.incomplete").unlink()
