"""The agents' logins at PostgreSQL by certificate: superuser, replication, rewind."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_cluster_crash import QUIET, diverge
from tests.support.certificates import Authority
from tests.support.cluster import Cluster

PASSWORD = "key-geheim"


def test_agents_log_in_by_certificate(shared: Path) -> None:
    """PostgreSQL lets nobody in without one; streaming, rewind and the agent's own sessions work."""
    authority = Authority(shared)
    server = authority.issue("server")
    logins = {}
    for role, user in (("superuser", "postgres"), ("replication", "replicator"), ("rewind", "rewind_user")):
        own = authority.issue(user, PASSWORD if role != "rewind" else None)
        logins[role] = {
            "username": user,
            "sslmode": "verify-ca",
            "sslrootcert": str(authority.cert),
            "sslcert": str(own.cert),
            "sslkey": str(own.key),
            "sslcrl": str(authority.revocation_list()),
            **({"sslpassword": PASSWORD} if role != "rewind" else {}),
        }
    tls = {
        "ssl": "on",
        "ssl_cert_file": str(server.cert),
        "ssl_key_file": str(server.key),
        "ssl_ca_file": str(authority.cert),
    }
    cluster = Cluster(nodes=2, store="local", ttl=4, parameters={**QUIET, **tls})
    rules = [
        "hostssl all postgres,rewind_user 127.0.0.1/32 cert",
        "hostssl replication replicator 127.0.0.1/32 cert",
        "hostnossl all postgres 127.0.0.1/32 trust",  # the test itself
    ]
    cluster.node_config = {"postgresql": {"authentication": logins, "pg_hba": rules}}
    with cluster:
        old = cluster.wait_streaming(1)
        new = diverge(cluster, old)
        old.start()
        assert cluster.wait_streaming(1) is new
        assert "pg_rewind" in old.log()
        encrypted = new.sql(
            "select distinct usename::text, ssl from pg_stat_ssl join pg_stat_activity using (pid)"
            " where usename is not null and application_name <> ''"
        )
        assert sorted(encrypted) == [("postgres", True), ("replicator", True)]
        for node in (old, new):
            assert PASSWORD not in node.log()
        assert PASSWORD in (old.data_dir / "postgresql.conf").read_text(), "libpq reads it from nowhere else"
        assert (old.data_dir / "postgresql.conf").stat().st_mode & 0o077 == 0
