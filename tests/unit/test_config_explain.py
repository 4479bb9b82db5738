"""Which value is in force, where it comes from, and what loses against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from haagent.__main__ import main
from haagent.config.explain import BOOTSTRAP, Dynamic, Explained, Unknown, explain
from haagent.config.sources import read_yaml, take_environment

FILE = """\
scope: main
ttl: 20
tags: {nofailover: true}
bootstrap:
  dcs:
    loop_wait: 7
postgresql:
  listen: 127.0.0.1:5432
  use_slots: false
  use_pg_rewind: false
  authentication:
    superuser: {password: hunter2}
  parameters:
    work_mem: 8MB
    max_connections: 500
    port: 1
    pg_stat_statements.max: 100
log:
  loggers: {urllib3: DEBUG}
"""
DCS: dict[str, Any] = {
    "ttl": 30,
    "retry_timeout": 20,
    "postgresql": {
        "use_pg_rewind": True,
        "pg_ctl_timeout": 90,
        "parameters": {"work_mem": "4MB", "max_connections": 200, "jit": "off"},
    },
}


def one(key: str, environ: dict[str, str] | None = None, dynamic: Dynamic | None = None) -> Explained:
    tree = read_yaml(FILE, "agent.yml")
    take_environment(dict(environ or {})).overlay(tree)
    found = explain(key, tree, dynamic or Dynamic(DCS, "the DCS"))
    assert isinstance(found, list)
    assert len(found) == 1
    return found[0]


def source(key: str, **more: Any) -> tuple[Any, str, str]:
    found = one(key, **more)
    return found.value, found.source, found.where


@pytest.mark.parametrize(
    ("key", "value", "kind", "where"),
    [
        ("scope", "main", "file", "agent.yml line 1"),
        ("namespace", "service", "default", ""),
        ("tags.nofailover", True, "file", "agent.yml line 3"),
        ("tags.noloadbalance", None, "default", ""),
        ("postgresql.pg_ctl_timeout", 90, "dynamic", "the DCS"),
        ("postgresql.use_pg_rewind", False, "file", "agent.yml line 10"),
        ("postgresql.use_slots", True, "default", ""),
        ("postgresql.parameters.jit", "off", "dynamic", "the DCS"),
        ("postgresql.parameters.pg_stat_statements.max", 100, "file", "agent.yml line 17"),
        ("postgresql.parameters.max_connections", 200, "dynamic", "the DCS"),
        ("postgresql.parameters.max_wal_senders", "10", "default", ""),
        ("postgresql.parameters.port", None, "agent", "postgresql.listen"),
        ("ttl", 30, "dynamic", "the DCS"),
        ("bootstrap.dcs.ttl", 30, "dynamic", "the DCS"),
        ("maximum_lag_on_failover", 1048576, "default", ""),
    ],
)
def test_where_a_value_comes_from(key: str, value: object, kind: str, where: str) -> None:
    assert source(key) == (value, kind, where)


def test_a_variable_wins_over_the_file_and_hides_its_lines() -> None:
    environ = {"PATRONI_SCOPE": "other", "HAAGENT_LOG_LOGGERS": "etcd: INFO"}
    assert source("scope", environ=environ) == ("other", "environment", "PATRONI_SCOPE")
    assert source("log.loggers.etcd", environ=environ) == ("INFO", "environment", "HAAGENT_LOG_LOGGERS")


def test_what_loses_is_told() -> None:
    assert one("postgresql.parameters.work_mem").notes == ("the DCS has 4MB: the local value wins",)
    assert "ignored: the value in agent.yml line 15" in one("postgresql.parameters.max_connections").notes
    assert one("ttl").notes[-1] == "ignored: the value in agent.yml line 2 (only from the DCS)"
    assert one("loop_wait").notes[-1] == "not used any more: agent.yml line 6, the cluster exists"


def test_what_a_role_has_instead_is_told() -> None:
    data = {"postgresql": {"parameters_replica": {"work_mem": "1GB", "max_connections": 1}}}
    dynamic = Dynamic(data, "the DCS")
    assert one("postgresql.parameters.work_mem", dynamic=dynamic).notes == ("1GB while replica (the DCS)",)
    assert "replica" not in str(one("postgresql.parameters.max_connections", dynamic=dynamic).notes)


def test_the_value_in_force_is_the_adjusted_one() -> None:
    found = one("retry_timeout")
    assert found.value == 14
    assert any("using loop_wait 1, retry_timeout 14" in note for note in found.notes)


def test_before_there_is_a_cluster_bootstrap_counts() -> None:
    dynamic = Dynamic({"loop_wait": 7}, BOOTSTRAP)
    assert source("loop_wait", dynamic=dynamic) == (7, "dynamic", "bootstrap.dcs, agent.yml line 6")


def test_when_a_change_takes_effect() -> None:
    assert one("scope").takes_effect == "start"
    assert one("tags").takes_effect == "reload"
    assert one("ttl").takes_effect == "at once"


def test_secrets_are_masked() -> None:
    assert source("postgresql.authentication.superuser.password")[0] == "***"
    assert "hunter2" not in str(one("postgresql.authentication.superuser.password"))


def test_a_section_tells_what_is_set_in_it() -> None:
    found = explain("postgresql", read_yaml(FILE, "agent.yml"), Dynamic(DCS, "the DCS"))
    assert isinstance(found, list)
    keys = [one.key for one in found]
    assert "postgresql.pg_ctl_timeout" in keys
    assert "postgresql.bin_dir" not in keys
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("postgresql.parameter.x", "postgresql.parameters"),
        ("pg_hbaa", "postgresql.pg_hba"),
        ("lop_wait", "loop_wait"),
        ("postgresql.listen.x", "postgresql.listen"),
        ("zebra", None),
        ("", None),
    ],
)
def test_unknown_keys(key: str, meant: str | None) -> None:
    assert explain(key, read_yaml(FILE, "agent.yml"), Dynamic({}, "the DCS")) == Unknown(key, meant)


def test_the_program_tells_it_to_people_and_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "patroni.dynamic.json").write_text('{"ttl": 40}')
    path = tmp_path / "agent.yml"
    path.write_text(f"local: {{path: {tmp_path}/dcs.db}}\npostgresql: {{data_dir: {data}}}\n")

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["config", "explain", *arguments, str(path)])
        return (ended.value.code, *capsys.readouterr())

    code, out, err = run("-f", "json", "ttl")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["value"], found["where"]) == (40, f"{data}/patroni.dynamic.json")
    assert run("ttl")[1].splitlines()[:2] == ["ttl: 40", f"  from: {data}/patroni.dynamic.json"]
    assert run("tl")[::2] == (1, "tl: unknown key (did you mean ttl?)\n")
    assert run("log")[:2] == (0, "nothing is set in log\n")
    assert not (tmp_path / "dcs.db").exists()
