"""Addresses, environment variables, and the section postgresql merged with the DCS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from haagent.config import (
    AgentConfig,
    ConfigErrors,
    Environment,
    effective_postgresql,
    load,
    take_environment,
)
from haagent.config import values as v
from haagent.config.check import check
from haagent.config.docs import DEFAULT_FILE, reference
from haagent.config.dynamic import merge_patch, without_nulls
from haagent.config.load import read
from haagent.config.schema import KEYS, Key
from haagent.config.sources import VARIABLES
from haagent.core.settings import parse_settings
from tests.unit.test_config_load import MINIMAL

ROOT = Path(__file__).parents[2]


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("a.example.org:1", "a.example.org", 1),
        ("[::1]:5432", "::1", 5432),
        ("::1:5432", "::1", 5432),
        ("*:80", "*", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_host_and_port(text: str, host: str, port: int) -> None:
    found = v.host_port(text)
    assert (found.host, found.port) == (host, port)
    assert v.host_port(str(found)) == found


@pytest.mark.parametrize(
    "text", ["a", "a:", ":1", "a:0", "a:65536", "a:b", "a b:1", "[::1]", "x::y:1", "a/b:1", 5, None]
)
def test_what_is_no_host_and_port(text: object) -> None:
    with pytest.raises(ValueError):
        v.host_port(text)


@pytest.mark.parametrize(
    ("text", "addresses", "port"),
    [
        ("*:5432", ("*",), 5432),
        ("10.0.0.1,localhost:6000", ("10.0.0.1", "localhost"), 6000),
        ("10.0.0.1,[::1]:6000", ("10.0.0.1", "::1"), 6000),
        ("10.0.0.1", ("10.0.0.1",), 5432),
        ("::1", ("::1",), 5432),
        ("[::]", ("::",), 5432),
    ],
)
def test_listen(text: str, addresses: tuple[str, ...], port: int) -> None:
    found = v.listen(text)
    assert (found.addresses, found.port) == (addresses, port)
    assert v.listen(str(found)) == found


@pytest.mark.parametrize("text", ["", ",:1", "a,:1", "a b", "a:b:c", "a:70000", 5432])
def test_what_is_no_listen(text: object) -> None:
    with pytest.raises(ValueError):
        v.listen(text)


def test_options_become_arguments() -> None:
    given = ["data-checksums", {"encoding": "UTF8"}, "--locale=C", {"waldir": "/x y"}, {"verbose": None}]
    arguments = ("--data-checksums", "--encoding=UTF8", "--locale=C", "--waldir=/x y", "--verbose")
    assert v.options(given) == arguments
    assert v.options(arguments) == arguments
    assert v.options({"checkpoint": "fast", "verbose": ""}) == ("--checkpoint=fast", "--verbose")
    unusable: list[object] = ["x", [1], [{"a": []}], ["-D /x"], [{"": 1}]]
    for bad in unusable:
        with pytest.raises(ValueError):
            v.options(bad)


# --- environment --------------------------------------------------------------------------------


def test_variables_are_taken_out_of_the_environment() -> None:
    environ = {
        "PATRONI_NAME": "a",
        "HAAGENT_SUPERUSER_PASSWORD": "hunter2",
        "PATRONI_X": "1",
        "HOME": "/",
        "PGPORT": "1",
    }
    taken = take_environment(environ)
    assert environ == {"HOME": "/", "PGPORT": "1"}
    assert "hunter2" not in repr(taken)
    assert taken.warnings == ("PATRONI_X: unknown variable, ignored",)


def test_variables_that_are_not_configuration_stay() -> None:
    environ = {"HAAGENT_VENV": "/x", "PATRONICTL_CONFIG_FILE": "/y"}
    assert take_environment(environ).warnings == ()
    assert environ == {"HAAGENT_VENV": "/x", "PATRONICTL_CONFIG_FILE": "/y"}


def test_a_misspelt_variable_is_told() -> None:
    taken = take_environment({"PATRONI_RESTAPI_LISTN": "x", "PATRONI_KUBERNETES_PORTS": "[]"})
    assert taken.warnings == (
        "PATRONI_KUBERNETES_PORTS: the section kubernetes is not built: ignored",
        "PATRONI_RESTAPI_LISTN: unknown variable, ignored (did you mean PATRONI_RESTAPI_LISTEN?)",
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("NAME", "name"),
        ("POSTGRESQL_BIN_PG_REWIND", "postgresql.bin_name.pg_rewind"),
        ("SUPERUSER_SSLMODE", "postgresql.authentication.superuser.sslmode"),
        ("REPLICATION_PASSWORD", "postgresql.authentication.replication.password"),
        ("RESTAPI_USERNAME", "restapi.authentication.username"),
        ("CTL_INSECURE", "ctl.insecure"),
        ("ETCD3_HOSTS", "etcd3.hosts"),
        ("LOGLEVEL", "log.level"),
    ],
)
def test_names_of_variables(name: str, path: str) -> None:
    assert VARIABLES[name] == path


def write(tmp_path: Path, changes: dict[str, Any] | None = None) -> str:
    base = merge_patch(MINIMAL, {"postgresql": {"data_dir": f"{tmp_path}/data"}})
    path = tmp_path / "agent.yml"
    path.write_text(yaml.safe_dump(merge_patch(base, changes or {})))
    return str(path)


def test_variables_win_over_the_file_at_every_load(tmp_path: Path) -> None:
    taken = take_environment(
        {
            "PATRONI_NAME": "from-patroni",
            "HAAGENT_NAME": "from-haagent",
            "PATRONI_ETCD3_HOSTS": "['a:1', 'b:2']",
            "PATRONI_RESTAPI_HTTP_EXTRA_HEADERS": "X-A: b, X-C: 1",
            "PATRONI_RESTAPI_ALLOWLIST": "'10.0.0.1', '10.0.0.2'",
            "PATRONI_REWIND_USERNAME": "rewinder",
            "PATRONI_SCOPE": "  ",
        }
    )
    path = write(tmp_path, {"etcd3": {"host": None}})
    for _ in range(2):
        config = load(path, taken)
        assert (config.scope, config.name) == ("main", "from-haagent")
        assert config.dcs.endpoints == ("http://a:1", "http://b:2")
        assert config.restapi.http_extra_headers == {"X-A": "b", "X-C": "1"}
        assert config.restapi.allowlist == ("10.0.0.1", "10.0.0.2")
        assert config.postgresql.authentication.rewind.username == "rewinder"


@pytest.mark.parametrize("text", ["a:1,b:2", "['a:1', b:2]", "'a:1','b:2'", '"a:1", "b:2"'])
def test_lists_in_variables_may_be_quoted(text: str, tmp_path: Path) -> None:
    taken = take_environment({"PATRONI_ETCD3_HOSTS": text})
    config = load(write(tmp_path, {"etcd3": {"host": None}}), taken)
    assert config.dcs.endpoints == ("http://a:1", "http://b:2")


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    taken = take_environment({"PATRONI_POSTGRESQL_LISTEN": "a:b"})
    with pytest.raises(
        ConfigErrors, match=r"postgresql.listen 'a:b' must be .* \(PATRONI_POSTGRESQL_LISTEN\)"
    ):
        load(write(tmp_path), taken)


def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    taken = take_environment(
        {
            "HAAGENT_SCOPE": "s",
            "HAAGENT_NAME": "n",
            "HAAGENT_RESTAPI_LISTEN": "127.0.0.1:1",
            "HAAGENT_ETCD3_HOST": "127.0.0.1:2",
            "HAAGENT_POSTGRESQL_LISTEN": "127.0.0.1:3",
            "HAAGENT_POSTGRESQL_DATA_DIR": f"{tmp_path}/data",
            "HAAGENT_REPLICATION_USERNAME": "r",
        }
    )
    assert load(None, taken).name == "n"
    with pytest.raises(ConfigErrors, match="configuration is missing"):
        load(None, Environment())


def test_a_whole_document_in_a_variable(tmp_path: Path) -> None:
    text = Path(write(tmp_path)).read_text()
    taken = take_environment({"PATRONI_CONFIGURATION": text, "PATRONI_NAME": "ignored"})
    assert load(None, taken).name == "n0"


def test_an_etcd_login_alone_is_not_a_section() -> None:
    assert take_environment({"PATRONI_ETCD3_USERNAME": "u", "PATRONI_ETCD3_PASSWORD": "p"}).values == {}
    taken = take_environment({"PATRONI_ETCD3_USERNAME": "u", "PATRONI_ETCD3_HOST": "h"})
    assert set(taken.values) == {"etcd3.username", "etcd3.host"}


# --- postgresql in force ------------------------------------------------------------------------


def effective(tmp_path: Path, local: dict[str, Any], dynamic: dict[str, Any]) -> Any:
    config: AgentConfig = load(write(tmp_path, {"postgresql": local}), Environment())
    settings, _ = parse_settings({"postgresql": dynamic}, 3, False)
    return effective_postgresql(config, settings)


def test_local_values_win_over_the_dcs_except_protected_ones(tmp_path: Path) -> None:
    found = effective(
        tmp_path,
        {"parameters": {"work_mem": "1MB", "max_connections": 500, "jit": False}, "use_pg_rewind": False},
        {
            "parameters": {"work_mem": "2MB", "max_connections": 200, "shared_buffers": "1GB", "port": 1},
            "use_pg_rewind": True,
            "use_slots": False,
            "pg_hba": ["local all all trust"],
            "pg_ctl_timeout": 5,
        },
    )
    assert found.config.parameters == {"work_mem": "1MB", "jit": "off", "shared_buffers": "1GB"}
    assert found.protected["max_connections"] == "200"
    assert found.protected["wal_level"] == "replica"
    assert (found.config.use_pg_rewind, found.use_slots) == (False, False)
    assert found.config.pg_hba == ("local all all trust",)
    assert found.config.pg_ctl_timeout_s == 5
    assert found.warnings == (
        "postgresql.parameters.max_connections: only from the DCS, ignored in the local file",
    )


def test_a_role_has_settings_of_its_own(tmp_path: Path) -> None:
    found = effective(
        tmp_path,
        {
            "parameters": {"work_mem": "1MB", "jit": False},
            "parameters_primary": {"work_mem": "2MB", "max_connections": 500},
            "pg_hba": ["local all all trust"],
            "pg_hba_replica": ["host all all all reject"],
        },
        {
            "parameters_primary": {"work_mem": "3MB", "temp_buffers": "4MB", "port": 1},
            "parameters_replica": {"jit": "on"},
            "pg_ident_primary": ["m a b"],
            "pg_hba_primary": [],
        },
    )
    primary, replica = found.config.for_role("primary"), found.config.for_role("replica")
    assert primary.parameters == {"work_mem": "2MB", "jit": "off", "temp_buffers": "4MB"}
    assert replica.parameters == {"work_mem": "1MB", "jit": "on"}
    assert (primary.pg_hba, primary.pg_ident) == (("local all all trust",), ("m a b",))
    assert (replica.pg_hba, replica.pg_ident) == (("host all all all reject",), None)
    assert found.config.for_role("standby_leader") == found.config
    assert found.warnings == (
        "postgresql.parameters_primary.port: may not depend on the role, ignored",
        "postgresql.parameters_primary.max_connections: may not depend on the role, ignored",
    )


def test_the_dcs_cannot_give_postgresql_another_name(tmp_path: Path) -> None:
    found = effective(tmp_path, {}, {"bin_name": {"postgres": "initdb", "pg_rewind": "other"}})
    assert (found.config.bin_name["postgres"], found.config.bin_name["pg_rewind"]) == ("postgres", "other")
    assert found.warnings == ("postgresql.bin_name.postgres: initdb is not the program postgres: ignored",)


def test_the_dcs_fills_what_the_local_file_leaves_out(tmp_path: Path) -> None:
    found = effective(tmp_path, {}, {"use_pg_rewind": "on", "basebackup": {"checkpoint": "fast"}})
    assert found.config.use_pg_rewind
    assert found.config.basebackup == ("--checkpoint=fast",)


def test_the_dcs_cannot_move_an_instance(tmp_path: Path) -> None:
    found = effective(
        tmp_path, {}, {"listen": "*:1", "data_dir": "/elsewhere", "authentication": {"superuser": {}}}
    )
    assert found.config.data_dir == f"{tmp_path}/data"
    assert found.config.port == 5432
    assert len(found.warnings) == 3


def test_ways_to_make_a_replica_may_stand_in_the_dcs_and_the_file_replaces_them_whole(tmp_path: Path) -> None:
    dynamic = {
        "create_replica_methods": ["wal_g", "basebackup"],
        "wal_g": {"command": "wal-g fetch", "no_leader": "on", "depth": 2, "gone": None},
        "barman": {"command": "barman", "no_params": True, "keep_data": True, "host": "b"},
    }
    found = effective(tmp_path, {}, {**dynamic, "create_replica_method": ["ignored"]})
    wal_g, basebackup = found.config.replica_methods
    assert (wal_g.name, wal_g.command, wal_g.no_leader) == ("wal_g", "wal-g fetch", True)
    assert dict(wal_g.arguments) == {"no_leader": "on", "depth": 2}
    assert basebackup.name == "basebackup"
    local = {"create_replica_method": "barman,wal_g", "wal_g": {"depth": 3}}
    found = effective(tmp_path, local, {name: dynamic[name] for name in ("barman", "wal_g")})
    barman, wal_g = found.config.replica_methods
    assert (barman.command, barman.no_params, barman.keep_data, dict(barman.arguments)) == (
        "barman",
        True,
        True,
        {"host": "b"},
    )
    assert (wal_g.command, wal_g.no_leader, dict(wal_g.arguments)) == ("wal_g", False, {"depth": 3})
    assert found.warnings == ()


@pytest.mark.parametrize(
    "dynamic",
    [
        {"create_replica_methods": ["x", "basebackup"], "x": {"command": "'", "keep_data": 7}},
        {"create_replica_methods": {"a": 1}, "create_replica_method": 3, "a": {}},
        {"pg_hba": 5, "use_pg_rewind": "perhaps", "pg_ctl_timeout": -1, "bin_dir": "relative"},
        {"parameters": {"max_connections": "many", "wal_level": "minimal", "x": [1], "y": {"a": 1}}},
        {"parameters": [], "recovery_conf": "x", "bin_name": 7, "authentication": 3, "pre_promote": "/x"},
        {"basebackup": ["pgdata=/x"], "": 1, "zebra": {}},
        {"parameters_primary": [], "pg_hba_replica": {}, "rewind": ["source-server=x", "debug"]},
    ],
)
def test_nothing_in_the_dcs_stops_a_running_agent(tmp_path: Path, dynamic: dict[str, Any]) -> None:
    found = effective(tmp_path, {}, dynamic)
    assert found.config.data_dir == f"{tmp_path}/data"
    assert "--pgdata=/x" not in found.config.basebackup
    assert found.warnings


def test_merge_patch_removes_merges_and_replaces() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1]}
    assert merge_patch(old, {"a": None, "b": {"c": None, "x": {"y": None}}, "e": {"f": 1}, "g": None}) == {
        "b": {"d": 3, "x": {}},
        "e": {"f": 1},
    }
    assert without_nulls({"a": None, "b": {"c": None}}) == {"b": {}}


# --- reference ----------------------------------------------------------------------------------


def test_the_reference_is_up_to_date() -> None:
    written = (ROOT / DEFAULT_FILE).read_text()
    assert written == reference(), "run: python -m haagent.config.docs"


#: Some text that each kind of value takes; the first that fits and is not the default is used.
_TEXTS = (
    "logfmt", "WARNING", "on", "off", "0640", "17", "1027", "127.0.0.1:7", "{a: b}", "[a, b]", "required",
    "minimal", "https", "http://a:1", "/etc/hostname", "word", "512kB", "stale",
)  # fmt: skip


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_sets_its_key(name: str, tmp_path: Path) -> None:
    """Whatever the file says, the value is what the file would have given for the variable's text."""
    path = VARIABLES[name]
    key = KEYS[path]
    text = next(text for text in _TEXTS if _fits(key, text))
    environ = {f"PATRONI_{name}": text}
    if path.startswith("etcd3."):
        environ["PATRONI_ETCD3_HOSTS"] = "a:1,b:2" if path != "etcd3.hosts" else text
    tree = read(_written(tmp_path, {}), take_environment(environ))
    assert environ == {}
    checked = check(tree)
    wanted = check(read(_written(tmp_path, _nested(path, _as_yaml(key, text))), Environment()))
    assert checked.values[path] == wanted.values[path]
    assert tree.origins[path] == f"PATRONI_{name}"


def _fits(key: Key, text: str) -> bool:
    try:
        return key.type.parse(_as_yaml(key, text)) not in (key.default, None)
    except (ValueError, TypeError):
        return False


def _as_yaml(key: Key, text: str) -> object:
    return yaml.safe_load(text) if text[0] in "{[" else text


def _nested(path: str, value: object) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _written(directory: Path, changes: dict[str, Any]) -> str:
    path = directory / "agent.yml"
    path.write_text(yaml.safe_dump(merge_patch(MINIMAL, changes)))
    return str(path)
