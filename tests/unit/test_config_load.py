"""Loading the local file: complete and typed, or refused with every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haagent.config import AgentConfig, ConfigErrors, Environment, changed_keys, load, reload
from haagent.config.dynamic import merge_patch
from haagent.config.types import WatchdogConfig

NO_VARIABLES = Environment()
MINIMAL: dict[str, Any] = {
    "scope": "main",
    "name": "n0",
    "restapi": {"listen": "127.0.0.1:8008"},
    "etcd3": {"host": "127.0.0.1:2379"},
    "postgresql": {
        "listen": "127.0.0.1:5432",
        "authentication": {
            "superuser": {"username": "postgres", "password": "hunter2-super"},
            "replication": {"username": "replicator", "password": "hunter2-repl"},
        },
    },
}
#: A file as people have it for Patroni, with every section of contract 5.2.
LARGE = """
scope: batman
namespace: /db/
name: pg-1
thread_pool_size: 8
log: {type: json, level: debug, traceback_level: ERROR, format: [message, {levelname: level}],
      dateformat: '%H', static_fields: {app: pg}, max_queue_size: 10,
      dir: {dir}, file_num: 2, file_size: 1000000, mode: 0640,
      loggers: {urllib3: WARNING}, deduplicate_heartbeat_logs: on}
restapi:
  listen: '[::]:8008'
  connect_address: '[fd00::1]:8008'
  authentication: {username: admin, password: hunter2-rest}
  allowlist: [10.0.0.0/8, db.example.org]
  allowlist_include_members: true
  http_extra_headers: {X-Frame-Options: SAMEORIGIN, X-Count: 1}
  server_tokens: minimal
  request_queue_size: 7
ctl: {insecure: true, authentication: {username: ctl, password: hunter2-ctl}}
etcd3:
  hosts: [10.0.0.1:2379, '[fd00::2]', etcd3.example.org]
  protocol: https
  username: u
  password: hunter2-etcd
kubernetes: {labels: {application: pg}}
watchdog: {mode: automatic, device: /dev/watchdog, safety_margin: 5}
tags: {nofailover: 'false', failover_priority: 2, noloadbalance: yes, clonefrom: false, replicatefrom: pg-2,
       dc: 7}
bootstrap:
  dcs: {ttl: 30, loop_wait: 10, retry_timeout: 10, synchronous_mode: false, postgresql: {use_slots: true}}
  initdb: [encoding: UTF8, data-checksums, {locale: C.UTF-8}]
  post_bootstrap: /usr/local/bin/setup
  users: {admin: {password: hunter2-old}}
postgresql:
  listen: 10.0.0.1,127.0.0.1:5433
  connect_address: 10.0.0.1:5433
  proxy_address: 10.0.0.1:6432
  data_dir: {dir}/data
  config_dir: {dir}/conf
  bin_name: {postgres: {postgres}}
  bin_dir: {dir}
  config_base_name: postgresql
  pgpass: {dir}/pgpass
  authentication:
    superuser: {username: postgres, password: hunter2-super, sslmode: require, sslpassword: hunter2-key,
                sslcert: /c}
    replication: {username: replicator, password: hunter2-repl}
    rewind: {username: rewinder}
  callbacks: {on_start: /bin/true}
  create_replica_methods: [pgbackrest, basebackup]
  pgbackrest: {command: pgbackrest restore}
  basebackup: [checkpoint: fast, no-password, {max-rate: 100M}]
  pg_hba: ['host all all 10.0.0.0/8 scram-sha-256', 'host replication replicator all md5']
  pg_ident: ['map sys db']
  recovery_conf: {restore_command: 'cp /a/%f %p', recovery_min_apply_delay: 0}
  parameters: {unix_socket_directories: '/run/pg, /tmp', max_connections: 500, jit: off, work_mem: 64MB,
               log_min: null}
  use_pg_rewind: on
  remove_data_directory_on_rewind_failure: true
  use_unix_socket: true
  pg_ctl_timeout: 2min
"""


Loader = Callable[..., AgentConfig]


@pytest.fixture
def loads(tmp_path: Path) -> Loader:
    """Load MINIMAL with changes (null removes), or a text."""

    def run(changes: dict[str, Any] | None = None, text: str | None = None) -> AgentConfig:
        base = merge_patch(MINIMAL, {"postgresql": {"data_dir": f"{tmp_path}/data"}})
        path = tmp_path / "agent.yml"
        path.write_text(yaml.safe_dump(merge_patch(base, changes or {})) if text is None else text)
        return load(str(path), NO_VARIABLES)

    return run


def refusal(load_it: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_it()
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)
    return str(caught.value).splitlines()


def has(lines: list[str], *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in lines)


# --- what comes out -----------------------------------------------------------------------------


def test_a_small_file_gets_all_defaults(loads: Loader, tmp_path: Path) -> None:
    config = loads()
    assert (config.scope, config.name, config.namespace) == ("main", "n0", "service")
    assert config.restapi.api_url == "http://127.0.0.1:8008/patroni"
    assert (config.dcs.backend, config.dcs.endpoints) == ("etcd3", ("http://127.0.0.1:2379",))
    assert config.postgresql.conn_url == "postgres://127.0.0.1:5432/postgres"
    assert config.postgresql.config_dir == config.postgresql.data_dir == f"{tmp_path}/data"
    assert config.postgresql.state_dir == f"{tmp_path}/data.haagent"
    assert config.postgresql.pg_hba is None
    assert config.postgresql.authentication.rewind == config.postgresql.authentication.superuser
    assert Path(config.postgresql.bin_dir, "postgres").exists()
    assert config.warnings == ()


@pytest.fixture
def large(loads: Loader, tmp_path: Path) -> AgentConfig:
    (tmp_path / "postgres-15").write_text("#!/bin/sh\n")
    (tmp_path / "postgres-15").chmod(0o755)
    text = LARGE.replace("{dir}", str(tmp_path)).replace("{postgres: {postgres}}", "{postgres: postgres-15}")
    return loads(text=text)


def test_a_large_patroni_file_runs_unchanged(large: AgentConfig, tmp_path: Path) -> None:
    pg = large.postgresql
    assert large.namespace == "db"
    assert (pg.listen_addresses, pg.port, pg.local_host) == (("10.0.0.1", "127.0.0.1"), 5433, "127.0.0.1")
    assert (pg.connect_host, pg.connect_port, str(pg.proxy_address)) == ("10.0.0.1", 5433, "10.0.0.1:6432")
    assert pg.basebackup == ("--checkpoint=fast", "--no-password", "--max-rate=100M")
    assert pg.parameters["jit"] == "off"
    assert "log_min" not in pg.parameters
    assert pg.unix_socket_dir == "/run/pg"
    assert pg.pg_ctl_timeout_s == 120
    assert (pg.use_pg_rewind, pg.remove_data_directory_on_rewind_failure) == (True, True)
    superuser = pg.authentication.superuser
    assert (superuser.sslmode, superuser.sslpassword, superuser.options) == (
        "require",
        "hunter2-key",
        {"sslcert": "/c"},
    )
    assert pg.authentication.rewind.password is None
    assert large.bootstrap.initdb == ("--encoding=UTF8", "--data-checksums", "--locale=C.UTF-8")


def test_the_other_sections_of_a_large_file(large: AgentConfig, tmp_path: Path) -> None:
    assert large.restapi.api_url == "http://[fd00::1]:8008/patroni"
    assert large.restapi.http_extra_headers == {"X-Frame-Options": "SAMEORIGIN", "X-Count": "1"}
    assert large.restapi.server_tokens == "Minimal"
    assert (large.ctl.username, large.ctl.password, large.ctl.insecure) == ("ctl", "hunter2-ctl", True)
    assert large.dcs.endpoints == (
        "https://10.0.0.1:2379",
        "https://[fd00::2]:2379",
        "https://etcd3.example.org:2379",
    )
    assert large.dcs.section["password"] == "hunter2-etcd"
    assert (large.log.level, large.log.mode, large.log.dir) == ("DEBUG", 0o640, str(tmp_path))
    assert large.postgresql.callbacks == {"on_start": "/bin/true"}
    assert large.watchdog == WatchdogConfig("automatic", "/dev/watchdog", 5)
    assert large.log.format == (("message", "message"), ("levelname", "level"))
    assert large.tags.values == {
        "nofailover": False,
        "failover_priority": 2,
        "noloadbalance": True,
        "replicatefrom": "pg-2",
        "dc": 7,
    }


def test_what_is_not_built_yet_and_harmless_warns(large: AgentConfig) -> None:
    assert sorted(large.warnings) == [
        "bootstrap.users: is gone since Patroni 4.0, no users are made: ignored",
        "kubernetes: not supported yet: ignored",
    ]


def test_of_several_dcs_sections_the_first_in_the_order_of_patroni_counts(loads: Loader) -> None:
    config = loads({"zookeeper": {"hosts": ["a:1"]}, "consul": {"token": "hunter2"}})
    assert config.dcs is not None
    assert config.dcs.backend == "consul"
    assert [w for w in config.warnings if "goes first" in w] == [
        "etcd3: ignored, as consul is there, which goes first",
        "zookeeper: ignored, as consul is there, which goes first",
    ]
    assert "hunter2" not in repr(config)


def test_no_secret_shows(large: AgentConfig) -> None:
    assert "hunter2" not in repr(large)
    assert "hunter2" not in str(large.dcs)
    assert {
        "hunter2-super",
        "hunter2-key",
        "hunter2-repl",
        "hunter2-rest",
        "hunter2-ctl",
        "hunter2-etcd",
    } == set(large.secrets)


def test_a_local_store_needs_only_its_path(loads: Loader) -> None:
    config = loads({"etcd3": None, "local": {"path": "/var/lib/x.db"}})
    assert (config.dcs.backend, config.dcs.section["path"]) == ("local", "/var/lib/x.db")


def test_a_login_in_the_url_is_used_and_hidden(loads: Loader) -> None:
    config = loads({"etcd3": {"host": None, "url": "https://u:hunter2%2F@h:1", "use_proxies": False}})
    assert config.dcs.endpoints == ("https://h:1",)
    assert config.dcs.section["url"] == "https://u:hunter2%2F@h:1"
    assert "hunter2" not in repr(config)
    assert "hunter2/" in config.secrets


def test_rest_login_serves_ctl_too(loads: Loader) -> None:
    login = {"authentication": {"username": "admin", "password": "hunter2"}}
    config = loads({"restapi": login})
    assert (config.ctl.username, config.ctl.password) == ("admin", "hunter2")


@pytest.mark.parametrize("name", ["haagent.yml", "haagent-local.yml", "haagent-pgbackrest.yml"])
def test_the_examples_load_without_a_warning(name: str) -> None:
    example = Path(__file__).parents[2] / "configs" / name
    assert load(str(example), NO_VARIABLES).warnings == ()


# --- what is refused ----------------------------------------------------------------------------


def test_every_problem_is_told_at_once(loads: Loader) -> None:
    lines = refusal(
        lambda: loads(
            {
                "scope": None,
                "name": "a/b",
                "restapi": {"listen": "127.0.0.1:99999", "certfile": "/nowhere.pem"},
                "etcd3": {"host": None, "pasword": "x"},
                "watchdog": {"mode": "needed"},
                "bootstrap": {
                    "dcs": {"ttl": 10, "failsafe_mode": "often"},
                    "initdb": [{"pgdata": "/x"}],
                },
                "postgresql": {"data_dir": "data", "bin_dir": "/", "authentication": {"replication": None}},
            }
        )
    )
    assert has(lines, "scope is missing")
    assert has(lines, "name 'a/b' must be one word without /", "agent.yml line ")
    assert has(lines, "restapi.listen '127.0.0.1:99999' must be host:port")
    assert has(lines, "restapi.certfile '/nowhere.pem' must be a readable file")
    assert has(lines, "etcd3 has no server")
    assert has(lines, "watchdog.mode 'needed' must be one of off, automatic, required")
    assert has(lines, "bootstrap.dcs.ttl 10 must be at least loop_wait 10 + 2 * retry_timeout 10")
    assert has(lines, "bootstrap.dcs.failsafe_mode 'often' must be on or off")
    assert has(lines, "bootstrap.initdb 'pgdata' is an option only the agent may set")
    assert has(lines, "postgresql.data_dir 'data' must be an absolute path")
    assert has(lines, "postgresql.bin_dir '/' must contain the program postgres")
    assert has(lines, "postgresql.authentication.replication.username is missing")
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"name": "__patroni_strict_sync_replica_placeholder__"},
            "must be one word without /, other than __",
        ),
        ({"bootstrap": {"dcs": {"synchronous_mode": "quora"}}}, "bootstrap.dcs.synchronous_mode 'quora'"),
        ({"bootstrap": {"dcs": {"failsafe_mode": "often"}}}, "bootstrap.dcs.failsafe_mode 'often'"),
        ({"bootstrap": {"dcs": {"standby_cluster": {"port": 0.5}}}}, "dcs.standby_cluster.port 0.5"),
        (
            {"bootstrap": {"method": "pgbackrest", "pgbackrest": {}}},
            "bootstrap.method 'pgbackrest' must name a section with a command: bootstrap.pgbackrest",
        ),
        ({"bootstrap": {"method": "dcs"}}, "bootstrap.method 'dcs' has the name of another key"),
        (
            {"bootstrap": {"method": "x", "x": {"command": "y", "recovery_conf": "z"}}},
            "bootstrap.x.recovery_conf 'z' must be a mapping",
        ),
        (
            {"postgresql": {"create_replica_methods": ["parameters"]}},
            "postgresql.create_replica_methods 'parameters' has the name of another key",
        ),
        (
            {"postgresql": {"create_replica_methods": ["x"], "x": {"command": "a 'b"}}},
            'postgresql.x.command "a \'b" must be a command line',
        ),
        (
            {"postgresql": {"create_replica_methods": ["x"], "x": {"no_leader": "perhaps"}}},
            "postgresql.x.no_leader 'perhaps' must be on or off",
        ),
        (
            {"postgresql": {"create_replica_methods": ["x"], "x": {"hosts": ["a"]}}},
            "postgresql.x.hosts ['a'] must be a single value",
        ),
        ({"postgresql": {"create_replica_methods": ["x"], "x": "y"}}, "postgresql.x must be a mapping"),
        ({"postgresql": {"create_replica_methods": {"x": 1}}}, "methods {'x': 1} must be a list"),
        ({"postgresql": {"pre_promote": "x 'y"}}, 'pre_promote "x \'y" must be a command line'),
        ({"postgresql": {"callbacks": {"on_stop": "'x"}}}, 'callbacks.on_stop "\'x" must be a command line'),
        ({"postgresql": {"basebackup": ["format=t"]}}, "postgresql.basebackup 'format'"),
        ({"postgresql": {"basebackup": [{"target": "server:/x"}]}}, "postgresql.basebackup 'target'"),
        ({"postgresql": {"basebackup": ["incremental=/m"]}}, "postgresql.basebackup 'incremental'"),
        (
            {"postgresql": {"rewind": [{"source-server": "x"}]}},
            "postgresql.rewind 'source-server' is an option",
        ),
        (
            {"postgresql": {"bin_name": {"postgres": "initdb"}}},
            "bin_name.postgres 'initdb' must be the program",
        ),
        ({"citus": {"group": 0, "database": "c"}}, "citus.group 0 is not supported"),
        ({"etcd": {"host": "a"}}, "etcd is the v2 API"),
        ({"raft": {"self_addr": "a:1"}}, "raft is not supported"),
        ({"etcd3": None}, "etcd3 is missing"),
        ({"etcd3": None, "kubernetes": {"labels": {"a": "b"}}}, "kubernetes is not built yet"),
        ({"etcd3": None, "zookeeper": {}}, "zookeeper.hosts"),
        ({"etcd3": None, "zookeeper": {"hosts": ["a:1"], "set_acls": {"CN=a": ["FLY"]}}}, "set_acls.CN=a"),
        ({"etcd3": None, "consul": {"host": "a:b:c"}}, "consul.host"),
        ({"etcd3": None, "consul": {"consistency": "never"}}, "consul.consistency"),
        ({"local": {"path": "/x"}}, "local stands beside etcd3"),
        ({"etcd3": {"username": "u"}}, "etcd3 must have both username and password"),
        ({"etcd3": {"host": None, "url": "ftp://u:hunter2@h:1"}}, "etcd3.url 'ftp://***@h:1' must be"),
        ({"restapi": {"listen": "0.0.0.0:8008"}}, "restapi.listen '0.0.0.0:8008' is no address others"),
        ({"restapi": {"verify_client": "required"}}, "restapi.verify_client 'required' needs"),
        ({"postgresql": {"connect_address": "*:5432"}}, "postgresql.connect_address '*:5432'"),
        ({"postgresql": "x"}, "postgresql must be a mapping"),
        ({"tags": {"nofailover": "perhaps"}}, "tags.nofailover 'perhaps' must be on or off"),
        ({"log": {"format": "%(nosuch)s"}}, "log.format '%(nosuch)s' must be a %-format"),
        ({"log": {"loggers": {"a": "LOUD"}}}, "log.loggers.a 'LOUD' must be one of DEBUG"),
        (
            {"postgresql": {"authentication": {"superuser": {"password": ["hunter2"]}}}},
            "superuser.password '***' must be text",
        ),
    ],
)
def test_refused(loads: Loader, changes: dict[str, Any], line: str) -> None:
    assert has(refusal(lambda: loads(changes)), line)


def test_unknown_keys_warn_with_the_nearest_name(loads: Loader) -> None:
    config = loads({"tag": {}, "postgresql": {"parameter": {}, "zebra": 1}, "ttl": 5})
    assert sorted(config.warnings) == [
        "postgresql.parameter: unknown key, ignored (did you mean parameters?)",
        "postgresql.zebra: unknown key, ignored",
        "tag: unknown key, ignored (did you mean tags?)",
        "ttl: counts in the dynamic configuration only: ignored here (see bootstrap.dcs)",
    ]


def test_a_priority_written_as_text_is_published_as_it_was_written(loads: Loader) -> None:
    tags = loads({"tags": {"failover_priority": "0", "sync_priority": "2"}}).tags
    assert tags.values == {"failover_priority": "0", "sync_priority": "2"}
    assert tags.failover_priority == 0
    assert tags.nofailover
    conflict = loads({"tags": {"nofailover": False, "failover_priority": "0"}})
    assert not conflict.tags.nofailover
    assert "between nofailover: False and failover_priority: 0." in conflict.warnings[0]


def test_contradicting_tags_warn_and_the_switch_wins(loads: Loader) -> None:
    config = loads({"tags": {"nofailover": True, "failover_priority": 1}})
    assert config.tags.nofailover
    assert config.warnings == (
        "Conflicting configuration between nofailover: True and failover_priority: 1. "
        "Defaulting to nofailover: True",
    )


def test_a_data_directory_that_cannot_be_made_is_refused(loads: Loader, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = refusal(lambda: loads({"postgresql": {"data_dir": f"{tmp_path}/file/data"}}))
    assert has(lines, "postgresql.data_dir", f"{tmp_path}/file is not a directory")
    lines = refusal(lambda: loads({"postgresql": {"data_dir": f"{tmp_path}/file"}}))
    assert has(lines, "postgresql.data_dir", "must be a directory")


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("scope: [", "agent.yml YAML syntax: "),
        ("scope: a\n\tname: b", "line 2, column 1"),
        ("password: *hunter2", "YAML syntax: found undefined alias, line 1, column 11"),
        ("password: !hunter2 x", "YAML syntax: could not determine a constructor, line 1"),
        ("", "agent.yml is empty"),
        ("- a", "agent.yml is not a mapping"),
        ("a: &a [*a]", "agent.yml is "),
        ("a: 2001-99-99", "agent.yml is not usable YAML"),
        ("[" * 40 + "]" * 40, "agent.yml is nested too deep, line 1"),
    ],
)
def test_unusable_yaml_is_one_line(loads: Loader, text: str, line: str) -> None:
    lines = refusal(lambda: loads(text=text))
    assert len(lines) == 1
    assert line in lines[0]


def test_duplicate_keys_are_refused_with_both_lines(loads: Loader, tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL) + "postgresql:\n  listen: 1.2.3.4:5\n  listen: 1.2.3.4:6\n"
    lines = refusal(lambda: loads(text=text))
    assert has(lines, "postgresql stands twice: line ", "of agent.yml")
    assert has(lines, "postgresql.listen stands twice: line ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(lambda: load(f"{tmp_path}/none.yml", NO_VARIABLES)) == [
        f"{tmp_path}/none.yml cannot be read: No such file or directory"
    ]
    assert has(refusal(lambda: load(str(tmp_path), NO_VARIABLES)), "has no *.yml file")
    (tmp_path / "x.yml").write_bytes(b"\xff\xfe\xff")
    assert has(refusal(lambda: load(f"{tmp_path}/x.yml", NO_VARIABLES)), "is not UTF-8 text")


def test_a_directory_is_merged_in_name_order(tmp_path: Path) -> None:
    base = merge_patch(MINIMAL, {"postgresql": {"data_dir": f"{tmp_path}/data"}, "tags": {"a": 1, "b": 2}})
    (tmp_path / "10.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "20.yml").write_text("name: n7\ntags: {b: null, c: 3}\n")
    (tmp_path / "30.txt").write_text("name: n8\n")
    config = load(str(tmp_path), NO_VARIABLES)
    assert config.name == "n7"
    assert config.tags.values == {"a": 1, "c": 3}


# --- reload --------------------------------------------------------------------------------


def test_a_reload_knows_what_needs_a_start(loads: Loader) -> None:
    old = loads()
    new = loads({"name": "n1", "tags": {"x": 1}, "postgresql": {"listen": "127.0.0.1:1"}})
    assert changed_keys(old, old) == ((), ())
    assert changed_keys(old, new) == (("postgresql.listen", "tags"), ("name",))


def test_a_reload_leaves_alone_what_needs_a_start(loads: Loader, tmp_path: Path) -> None:
    """Else an agent would from then on look at a data directory that its PostgreSQL does not use."""
    old = loads()
    moved = {"name": "n1", "etcd3": None, "local": {"path": f"{tmp_path}/db"}, "tags": {"x": 1}}
    loads({**moved, "postgresql": {"data_dir": f"{tmp_path}/other", "pgpass": f"{tmp_path}/p"}})
    new, changed, later = reload(old)
    assert (new.name, new.postgresql.data_dir) == ("n0", old.postgresql.data_dir)
    assert new.dcs == old.dcs
    assert new.tags.values == {"x": 1}
    assert changed == ("tags",)
    assert later == ("etcd3.host", "local.path", "name", "postgresql.data_dir", "postgresql.pgpass")
    assert reload(new)[1:] == ((), later)


def test_a_reload_of_a_bad_file_changes_nothing(loads: Loader) -> None:
    old = loads()
    with pytest.raises(ConfigErrors):
        loads({"tags": {"nofailover": "perhaps"}})
    with pytest.raises(ConfigErrors):
        reload(old)
