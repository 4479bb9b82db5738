"""Keys of the configuration, each seen by what it does: in the store, over REST, in files, in PostgreSQL."""

from __future__ import annotations

import base64
import json
import stat
import urllib.request
from email.message import Message
from functools import partial
from pathlib import Path

from tests.support.cluster import Cluster, Node
from tests.support.versions import bin_dir
from tests.support.wait import wait_for

QUIET = {"logging_collector": "off"}


def login(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def setting(node: Node, name: str) -> str:
    return str(node.value("select setting from pg_settings where name = %s", name))


def words(conninfo: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in conninfo.split())


def stored(cluster: Cluster, path: str) -> dict[str, object]:
    """The JSON value of one key, by its whole path."""
    assert cluster.etcd is not None
    found = cluster.etcd.post("/v3/kv/range", {"key": base64.b64encode(path.encode()).decode()})
    return dict(json.loads(base64.b64decode(found["kvs"][0]["value"])))


def pending(node: Node) -> dict[str, dict[str, str]]:
    """pending_restart_reason, {} while nothing is pending."""
    return dict(node.rest("/patroni")[1].get("pending_restart_reason", {}))


def headers_of(node: Node) -> Message:
    with urllib.request.urlopen(f"http://{node.address}:{node.api_port}/patroni", timeout=10) as answer:
        return answer.headers  # type: ignore[no-any-return]


def environment_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def test_variables_win_over_the_file_and_are_kept_from_postgresql(shared: Path) -> None:
    """The file is wrong in all that a variable says."""
    cluster = Cluster(nodes=1, parameters=QUIET)
    node = cluster.nodes[0]
    assert cluster.etcd is not None
    nowhere = "127.0.0.1:1"
    node.config_changes = {
        "name": "wrong",
        "scope": "wrong",
        "namespace": "wrong",
        "etcd3": {"host": nowhere},
        "log": {"level": "CRITICAL"},
        "restapi": {
            "listen": nowhere,
            "connect_address": nowhere,
            "authentication": {"username": "wrong", "password": "wrong"},
            "server_tokens": "ProductOnly",
        },
        "postgresql": {
            "listen": nowhere,
            "connect_address": nowhere,
            "data_dir": "/nonexistent/wrong",
            "pgpass": "/nonexistent/pgpass",
            "bin_dir": "/nonexistent/bin",
            "authentication": {
                "superuser": {"username": "wrong", "password": "wrong"},
                "replication": {"username": "wrong", "password": "wrong"},
                "rewind": {"username": "wrong", "password": "wrong"},
            },
        },
    }
    sql, api = f"{node.address}:{node.sql_port}", f"{node.address}:{node.api_port}"
    cluster.environment = {
        "PATRONI_NAME": "right",
        "PATRONI_SCOPE": cluster.scope,
        "PATRONI_NAMESPACE": "/elsewhere/",
        "PATRONI_ETCD3_PROXY": f"http://{cluster.etcd.hostport}",
        "PATRONI_RESTAPI_LISTEN": api,
        "PATRONI_RESTAPI_CONNECT_ADDRESS": f"localhost:{node.api_port}",
        "PATRONI_RESTAPI_USERNAME": "admin",
        "PATRONI_RESTAPI_PASSWORD": "geheim",
        "PATRONI_RESTAPI_HTTP_EXTRA_HEADERS": "X-Place: here",
        "PATRONI_RESTAPI_SERVER_TOKENS": "minimal",
        "PATRONI_LOG_DIR": str(shared),
        "PATRONI_LOG_LEVEL": "INFO",
        "PATRONI_LOG_FORMAT": "%(levelname)s <%(message)s>",
        "PATRONI_LOG_MODE": "0604",
        "PATRONI_POSTGRESQL_LISTEN": sql,
        "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"localhost:{node.sql_port}",
        "PATRONI_POSTGRESQL_PROXY_ADDRESS": "pooler.example.org:6432",
        "PATRONI_POSTGRESQL_DATA_DIR": str(node.data_dir),
        "PATRONI_POSTGRESQL_PGPASS": str(node.root / "pgpass"),
        "PATRONI_POSTGRESQL_BIN_DIR": bin_dir(),
        "PATRONI_SUPERUSER_USERNAME": "postgres",
        "PATRONI_SUPERUSER_PASSWORD": "super",
        "PATRONI_REPLICATION_USERNAME": "streamer",
        "PATRONI_REPLICATION_PASSWORD": "rep",
        "HAAGENT_REWIND_USERNAME": "rewinder",
        "PATRONI_REWIND_USERNAME": "loses against HAAGENT_",
        "PATRONI_REWIND_PASSWORD": "rew",
        "PG_MALLOC_ARENA_MAX": "3",
    }
    with cluster:
        member = stored(cluster, "/elsewhere/test/members/right")
        assert member["conn_url"] == f"postgres://localhost:{node.sql_port}/postgres"
        assert member["api_url"] == f"http://localhost:{node.api_port}/patroni"
        assert member["proxy_url"] == "postgres://pooler.example.org:6432/postgres"
        assert node.rest("/reload", "POST")[0] == 401
        assert node.rest("/reload", "POST", headers=login("wrong", "wrong"))[0] == 401
        assert node.rest("/reload", "POST", headers=login("admin", "geheim"))[0] == 202
        assert headers_of(node)["X-Place"] == "here"
        assert headers_of(node)["Server"].startswith("Patroni/4.1")
        roles = node.sql("select rolname from pg_roles where rolname !~ '^pg_' order by 1")
        assert roles == [("postgres",), ("rewinder",), ("streamer",)]

        (log,) = shared.glob("patroni.log")
        assert stat.S_IMODE(log.stat().st_mode) == 0o604
        assert "INFO <initialized a new cluster" in log.read_text()

        postmaster = node.postmaster_pid()
        assert postmaster is not None
        inherited = environment_of(postmaster)
        assert not [name for name in inherited if name.startswith(("PATRONI_", "HAAGENT_"))]
        assert inherited["MALLOC_ARENA_MAX"] == "3"


def test_files_and_connections_are_as_the_file_says(shared: Path) -> None:
    cluster = Cluster(nodes=2, store="local", parameters=QUIET)
    custom = shared / "custom.conf"
    custom.write_text("work_mem = '7MB'\n")
    custom.chmod(0o644)
    for node in cluster.nodes:
        conf = shared / f"conf-{node.name}"
        conf.mkdir()
        conf.chmod(0o777)
        address = f"{node.address}/32"
        node.config_changes = {
            "tags": {"clonefrom": True, "place": "here", "nostream": False},
            "bootstrap": {"initdb": [{"encoding": "LATIN1"}, {"locale": "C"}]},
            "postgresql": {
                "config_dir": str(conf),
                "config_base_name": "server",
                "custom_conf": str(custom),
                "database": "template1",
                "use_unix_socket": True,
                "krbsrvname": "pgservice",
                "pg_hba": [
                    "local all postgres peer map=agents",
                    f"host all all {address} trust",
                    f"host replication all {address} scram-sha-256",
                ],
                "pg_ident": ["agents postgres postgres", "agents root postgres"],
                "recovery_conf": {
                    "restore_command": "/bin/false",
                    "recovery_target_time": "2001-01-01",
                    "primary_slot_name": "not_taken",
                },
                "basebackup": [{"max-rate": "1000M"}, "verbose", {"checkpoint": "fast"}],
                "authentication": {"replication": {"sslmode": "disable", "gssencmode": "disable"}},
            },
        }
    with cluster:
        primary = cluster.wait_streaming(1)
        (standby,) = cluster.replicas()
        conf = shared / f"conf-{standby.name}"
        assert setting(standby, "config_file") == str(conf / "server.conf")
        assert setting(standby, "hba_file") == str(conf / "pg_hba.conf")
        assert setting(standby, "ident_file") == str(conf / "pg_ident.conf")
        assert (conf / "pg_ident.conf").read_text().splitlines()[2:] == [
            "agents postgres postgres",
            "agents root postgres",
        ]
        assert (standby.data_dir / "server.conf.backup").read_text() == (conf / "server.conf").read_text()
        assert primary.value("select current_setting('work_mem')") == "7MB"
        assert primary.sql("select pg_encoding_to_char(encoding), datcollate from pg_database limit 1") == [
            ("LATIN1", "C")
        ]
        assert setting(standby, "restore_command") == "/bin/false"
        assert setting(standby, "recovery_target_time") == ""
        assert setting(standby, "primary_slot_name") == standby.name
        source = words(setting(standby, "primary_conninfo"))
        assert source["application_name"] == standby.name
        assert source["user"] == "replicator"
        assert source["sslmode"] == source["gssencmode"] == "disable"
        assert source["channel_binding"] == "prefer"
        assert source["krbsrvname"] == "pgservice"
        assert "password" not in source
        passfile = Path(source["passfile"])
        assert passfile == standby.root / "pgpass"
        assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
        assert f"{primary.address}:{primary.sql_port}:*:replicator:rep-secret" in passfile.read_text()
        sessions = primary.sql(
            "select datname, client_addr is null from pg_stat_activity where application_name ~ '^Patroni'"
        )
        assert sessions
        assert set(sessions) == {("template1", True)}
        tags = standby.rest("/patroni")[1]["tags"]
        assert tags == {"clonefrom": True, "place": "here"}
        assert standby.status("/replica?tag_place=here") == 200
        assert standby.status("/replica?tag_place=there") == 503


def test_dynamic_keys_reach_the_store_and_the_servers() -> None:
    """use_slots, parameters and their protection, ttl; changed while everything runs."""
    lines = ["host nowhere dynamic 192.0.2.1/32 reject"]
    dcs = {"postgresql": {"use_slots": False, "parameters": {"max_connections": 47, "work_mem": "6MB"}}}
    cluster = Cluster(nodes=2, dcs=dcs, parameters={**QUIET, "max_connections": 300})
    for node in cluster.nodes:
        hba = node.config()["postgresql"]["pg_hba"]
        node.config_changes = {
            "bootstrap": {"pg_hba": hba},
            "postgresql": {"pg_hba": None},
        }
    with cluster:
        primary = cluster.wait_streaming(1)
        (standby,) = cluster.replicas()
        assert setting(primary, "max_connections") == "47"
        assert primary.value("select current_setting('work_mem')") == "6MB"
        assert setting(standby, "primary_slot_name") == ""
        assert primary.value("select count(*) from pg_replication_slots") == 0
        assert cluster.lease_ttl("leader") == 6

        change = {
            "ttl": 9,
            "postgresql": {
                "use_slots": True,
                "pg_hba": [*hba, *lines],
                "parameters": {"max_connections": 48, "work_mem": "5MB", "no_such_guc": 1},
            },
        }
        assert primary.rest("/config", "PATCH", change)[0] == 200
        slot = "select active from pg_replication_slots where slot_name = %s"
        cluster.wait_for(lambda: primary.sql(slot, standby.name) == [(True,)], 60, "the slot is used")
        for node in (primary, standby):
            seen = partial(node.value, "select current_setting('work_mem')")
            wait_for(lambda seen=seen: seen() == "5MB", 60, "the new value is in force")  # type: ignore[misc]
            told = partial(pending, node)
            reason = wait_for(told, 60, "a restart is due")
            assert reason["max_connections"] == {"old_value": "47", "new_value": "48"}
            rules = "select count(*) from pg_hba_file_rules where user_name = '{dynamic}'"
            assert node.value(rules) == 1
        assert "no_such_guc" in primary.log()
        cluster.wait_for(lambda: cluster.lease_ttl("leader") == 9, 60, "the lease has its new length")


def test_bootstrap_hba_is_for_servers_whose_lines_nobody_gives() -> None:
    cluster = Cluster(nodes=1, store="local", parameters=QUIET)
    node = cluster.nodes[0]
    hba = [*node.config()["postgresql"]["pg_hba"], "host nowhere first 192.0.2.1/32 reject"]
    node.config_changes = {"bootstrap": {"pg_hba": hba}, "postgresql": {"pg_hba": None}}
    with cluster:
        text = (node.data_dir / "pg_hba.conf").read_text()
        assert "overwritten by" not in text
        assert text.splitlines()[-1] == hba[-1]


def test_logs_go_where_the_section_says(shared: Path) -> None:
    log = {
        "dir": str(shared),
        "file_size": 2000,
        "file_num": 2,
        "type": "json",
        "format": ["message", {"levelname": "severity"}],
        "static_fields": {"place": "here"},
    }
    with Cluster(nodes=1, store="local", node_config={"log": log}, parameters=QUIET) as cluster:
        node, second = cluster.leader(), shared / "patroni.log.2"
        asked = lambda: node.rest("/reload", "POST")[0] == 202 and second.exists()  # noqa: E731
        cluster.wait_for(asked, 60, "the log was rotated twice")
        node.stop()
        files = sorted(path.name for path in shared.iterdir())
        assert files == ["patroni.log", "patroni.log.1", "patroni.log.2"]
        lines = [line for name in files for line in (shared / name).read_text().splitlines()]
        assert all((shared / name).stat().st_size < 10_000 for name in files)
        for entry in map(json.loads, lines):
            assert entry["place"] == "here"
            assert {"message", "severity"} <= set(entry)
