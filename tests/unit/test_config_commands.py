"""`haagent config …` and Patroni's spellings of it: what is printed, where, and with which exit code."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haagent.__main__ import main
from haagent.config import Environment, load
from haagent.config.dynamic import merge_patch
from haagent.config.generate import Host, as_text, of_server, sample
from haagent.config.shown import masked
from haagent.config.validate import cannot_bind
from postgres_ctl.describe import ServerDescription
from tests.unit.test_config_load import MINIMAL

HOST = Host("n0", "10.0.0.1", "", "/var/lib/postgresql")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        code = ended.value.code
        assert isinstance(code, int)
        return code, out, err

    return call


@pytest.fixture
def file(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A file that is fine here (a store without a server, free ports), with changes."""

    def write(changes: dict[str, Any]) -> Path:
        local = {"etcd3": None, "local": {"path": str(tmp_path / "dcs.db")}}
        base = merge_patch(MINIMAL, {**local, "postgresql": {"data_dir": f"{tmp_path}/data"}})
        base = merge_patch(base, {"restapi": {"listen": f"127.0.0.1:{_free_port()}"}})
        base = merge_patch(base, {"postgresql": {"listen": f"127.0.0.1:{_free_port()}"}})
        path = tmp_path / "agent.yml"
        path.write_text(yaml.safe_dump(merge_patch(base, changes)))
        return path

    return write


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- validate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [["--validate-config"], ["config", "validate"]])
def test_a_good_file_is_answered_with_silence(
    run: Run, file: Callable[..., Path], spelling: list[str]
) -> None:
    assert run(*spelling, file({})) == (0, "", "")


def test_options_may_stand_on_either_side_of_the_file(run: Run, file: Callable[..., Path]) -> None:
    path = file({})
    assert run(path, "--validate-config", "-i")[0] == 0
    code, out, _ = run("--validate-config", "--print", path)
    assert code == 0
    assert yaml.safe_load(out)["scope"] == "main"


def test_each_problem_is_one_line_on_stderr(run: Run, file: Callable[..., Path]) -> None:
    path = file({"postgresql": {"pg_ctl_timeout": "soon"}, "tags": {"nofailover": "perhaps"}})
    code, out, err = run("--validate-config", path)
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0].startswith("postgresql.pg_ctl_timeout 'soon' must be ")
    assert lines[1].startswith("tags.nofailover 'perhaps' must be ")
    assert len(lines) == 2


def test_an_unknown_key_warns_and_does_not_fail(run: Run, file: Callable[..., Path]) -> None:
    code, _, err = run("--validate-config", file({"postgresql": {"parameter": {}}}))
    assert code == 0
    assert err == "warning: postgresql.parameter: unknown key, ignored (did you mean parameters?)\n"


def test_a_port_in_use_is_a_problem_unless_told_otherwise(run: Run, file: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        path = file({"restapi": {"listen": address}})
        code, _, err = run("--validate-config", path)
        assert code == 1
        assert f"restapi.listen '{address}' is in use" in err
        assert run("--validate-config", "-i", path) == (0, "", "")
        assert run("--validate-config", "--ignore-listen-port", path) == (0, "", "")


def test_names_and_addresses_that_cannot_be_listened_on() -> None:
    assert cannot_bind("192.0.2.77", 1234) == "cannot be listened on: Cannot assign requested address"
    assert "cannot be resolved" in (cannot_bind("no-such-host.invalid", 1234) or "")
    for host in ("*", "0.0.0.0", "localhost", "127.0.0.1"):
        assert cannot_bind(host, _free_port()) is None


def test_servers_of_the_dcs_must_answer(run: Run, file: Callable[..., Path]) -> None:
    dead = f"127.0.0.1:{_free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"127.0.0.1:{server.getsockname()[1]}"
        etcd = {"local": None, "etcd3": {"host": None, "hosts": [alive, dead]}}
        code, _, err = run("--validate-config", file(etcd))
    assert code == 1
    assert err.startswith(f"etcd3.hosts '{dead}' is not reachable: Connection refused")
    assert len(err.splitlines()) == 1


def test_programs_and_data_must_fit(run: Run, file: Callable[..., Path], tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 13.9'\n")
    (programs / "postgres").chmod(0o755)
    code, _, err = run("--validate-config", file({"postgresql": {"bin_dir": str(programs)}}))
    assert code == 1
    for missing in ("initdb", "pg_controldata", "pg_basebackup"):
        assert f"must contain the program {missing}" in err
    assert "must be of PostgreSQL 14 or newer" in err

    data = tmp_path / "data"
    data.mkdir()
    (data / "letter.txt").write_text("")
    assert "is neither empty nor a PostgreSQL data directory" in run("--validate-config", file({}))[2]
    (data / "PG_VERSION").write_text("9\n")
    (data / "global").mkdir()
    (data / "global" / "pg_control").write_text("")
    assert "is of PostgreSQL 9, but postgresql.bin_dir has " in run("--validate-config", file({}))[2]


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\0", "scope: &a [*a]", "1: {2: 3}", "postgresql: []"])
def test_no_file_ends_in_a_traceback(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yml"
    path.write_text(text)
    code, out, err = run("--validate-config", path)
    assert (code, out) == (1, "")
    assert err.splitlines()


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--validate-config", tmp_path / "none.yml")
    assert code == 1
    assert "cannot be read: No such file or directory" in err


# --- what is shown ------------------------------------------------------------------------------


def test_print_shows_everything_but_secrets(run: Run, file: Callable[..., Path]) -> None:
    more = {"parameters": {"primary_conninfo": "user=a password='hunter2 x' host=b"}}
    path = file({"kubernetes": {"token": "hunter2"}, "postgresql": more})
    code, out, err = run("--validate-config", "-p", path)
    assert code == 0
    assert "hunter2" not in out + err
    shown = yaml.safe_load(out)
    assert shown["postgresql"]["authentication"]["superuser"] == {"username": "postgres", "password": "***"}
    assert shown["kubernetes"] == {"token": "***"}
    assert shown["postgresql"]["parameters"]["primary_conninfo"] == "user=a password=*** host=b"


def test_what_is_masked() -> None:
    tree = {
        "etcd3": {"url": "http://u:hunter2@h:1", "password": "hunter2"},
        "restapi": {"keyfile_password": "hunter2", "keyfile": "/k"},
        "bootstrap": {"users": {"admin": {"password": "hunter2"}}},
        "postgresql": {
            "pgpass": "/tmp/pgpass",
            "authentication": {"superuser": {"sslpassword": "hunter2"}, "replication": {"password": ""}},
            "pgbackrest": [{"token": "hunter2"}],
        },
    }
    shown = masked(tree)
    assert "hunter2" not in str(shown)
    assert shown["etcd3"]["url"] == "http://***@h:1"
    assert shown["restapi"]["keyfile"] == "/k"
    assert shown["postgresql"]["pgpass"] == "/tmp/pgpass"
    assert shown["postgresql"]["authentication"]["replication"]["password"] == ""


# --- generate -----------------------------------------------------------------------------------


def loads_what_is_left_to_do(config: dict[str, Any], path: Path) -> list[str]:
    """Warnings of the validator: the file loads, and it names what people have to fill in."""
    path.write_text(as_text(config))
    return sorted(warning.split(":")[0] for warning in load(str(path), Environment()).warnings)


def test_a_sample_loads_and_names_what_is_left(tmp_path: Path) -> None:
    host = Host("n0", "10.0.0.1", "", str(tmp_path))
    config = sample(host)
    config["postgresql"]["bin_dir"] = None
    assert loads_what_is_left_to_do(config, tmp_path / "a.yml") == [
        "etcd3.hosts",
        "postgresql.authentication.replication.password",
        "postgresql.authentication.superuser.password",
        "postgresql.data_dir",
        "scope",
    ]


def test_the_sample_goes_to_stdout_or_a_new_private_file(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--generate-sample-config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["scope"] == "#FIXME"
    path = tmp_path / "new.yml"
    assert run("--generate-sample-config", path) == (0, "", "")
    assert path.read_text() == out
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    code, _, err = run("--generate-sample-config", path)
    assert (code, err) == (1, f"{path}: is there already: name a new file\n")
    assert run("--generate-sample-config", tmp_path / "no" / "dir.yml")[0] == 1


SERVER = ServerDescription(
    data_dir="/data",
    config_file="/etc/pg/main.conf",
    bin_dir="",
    listen_addresses="*",
    port=5433,
    cluster_name="",
    user="boss",
    password="hunter2",
    can_rewind=False,
    replication_user="streamer",
    settings={
        "max_connections": "200",
        "wal_level": "replica",
        "work_mem": "64MB",
        "port": "5433",
        "data_directory": "/data",
        "restore_command": "cp /a/%f %p",
        "primary_conninfo": "password=hunter2",
        "synchronous_standby_names": "*",
        "TimeZone": "Etc/UTC",
    },
    hba=("local all all trust",),
)


def test_a_running_server_becomes_a_configuration_that_loads(tmp_path: Path) -> None:
    config = of_server(SERVER, HOST)
    pg = config["postgresql"]
    assert config["bootstrap"]["dcs"]["postgresql"] == {
        "use_pg_rewind": False,
        "parameters": {"max_connections": 200, "wal_level": "replica"},
    }
    assert pg["parameters"] == {"work_mem": "64MB", "TimeZone": "Etc/UTC"}
    assert pg["recovery_conf"] == {"restore_command": "cp /a/%f %p"}
    assert (pg["listen"], pg["connect_address"]) == ("*:5433", "10.0.0.1:5433")
    assert (pg["config_dir"], pg["config_base_name"]) == ("/etc/pg", "main")
    assert pg["authentication"]["superuser"] == {"username": "boss", "password": "hunter2"}
    assert pg["authentication"]["replication"] == {"username": "streamer", "password": "#FIXME"}
    assert pg["pg_hba"] == ["local all all trust"]
    assert "pg_ident" not in pg
    pg |= {"data_dir": str(tmp_path / "data"), "bin_dir": None}
    assert loads_what_is_left_to_do(config, tmp_path / "a.yml") == [
        "etcd3.hosts",
        "postgresql.authentication.replication.password",
        "scope",
    ]


def test_a_server_that_does_not_answer_is_one_line(run: Run) -> None:
    code, out, err = run("--generate-config", "--dsn", f"host=127.0.0.1 port={_free_port()} password=hunter2")
    assert (code, out) == (1, "")
    assert "Connection refused" in err
    assert "hunter2" not in err
    assert len(err.splitlines()) == 1
    assert run("--generate-config", "--dsn", "hunter2")[2] == "the DSN cannot be read\n"
