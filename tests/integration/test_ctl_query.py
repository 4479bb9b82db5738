"""haagentctl query against a real PostgreSQL: rows, failures, and never on the wrong kind of server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from dcs.factory import make_dcs
from tests.integration.test_ctl import Cluster, Result
from tests.support.postgres import SUPERUSER, Server, free_port, postgres_user, scratch_dir  # noqa: F401

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\t"


@pytest.fixture(scope="module")
def cluster(postgres_user: None) -> Iterator[Cluster]:  # noqa: F811
    """n0 leads and is a real primary; the store says n1 is its replica, but it is that primary, too."""
    server = Server.create("ctl")
    try:
        server.start()
        with scratch_dir("ctl") as directory:
            file, store = directory / "ctl.yml", directory / "store.db"
            file.write_text(f"scope: faceoff\nlocal: {{path: {store}}}\n")
            made = Cluster(file, make_dcs("local", {"path": str(store)}, "service", "faceoff"))
            with made.filled():
                for name in ("n0", "n1"):
                    made.member(name, conn_url=f"postgres://127.0.0.1:{server.port}/postgres")
                made.member("n2", conn_url=f"postgres://127.0.0.1:{free_port()}/postgres")
                yield made
    finally:
        server.destroy()


def query(cluster: Cluster, *args: str, stdin: str = "") -> Result:
    return cluster.run("query", "-U", SUPERUSER, *args, stdin=stdin)


def test_rows_come_with_a_header(cluster: Cluster) -> None:
    assert query(cluster, "-c", "select 1 as a") == Result(0, "a\n1\n", "")
    values = query(
        cluster, "-m", "n0", "-c", "select not false, null as n, 1.50 as d, 'infinity'::date is null"
    )
    assert values.out == "?column?\tn\td\t?column?\nTrue\tNone\t1.50\tFalse\n"
    assert query(cluster, "--delimiter", ";", "-c", "select 1 as a, 2 as b").out == "a;b\n1;2\n"
    assert query(cluster, "-c", "select 'infinity'::date as day").out == "day\ninfinity\n"


def test_other_formats(cluster: Cluster) -> None:
    sql = "select 1 as a, null as n, now()::date - now()::date = 0 as same"
    shown = query(cluster, "--format", "json", "-c", sql)
    assert json.loads(shown.out) == [{"a": 1, "n": None, "same": True}]
    assert query(cluster, "--format", "pretty", "-c", "select 10 as a, 'x' as name").out == (
        "+----+------+\n| a  | name |\n+----+------+\n| 10 | x    |\n+----+------+\n".replace("a ", " a")
    )


def test_sql_from_a_file_may_be_several_statements(cluster: Cluster) -> None:
    sql = "create temp table t (a int); insert into t values (1), (2); select a from t order by a"
    assert query(cluster, "-f", "-", stdin=sql).out == "a\n1\n2\n"
    assert query(cluster, "-c", "create temp table t (a int)").out == "CREATE TABLE\n"


@pytest.mark.parametrize(
    ("sql", "state", "cause"),
    [
        ("select * from nowhere", "42P01", 'relation "nowhere" does not exist'),
        ("copy (select 1) to stdout", "0A000", "COPY from or to the client is not possible here"),
        ("select pg_terminate_backend(pg_backend_pid())", "57P01|.*terminating", ".*terminating connection"),
    ],
)
def test_what_the_server_refuses_is_told(cluster: Cluster, sql: str, state: str, cause: str) -> None:
    shown = query(cluster, "-c", sql)
    assert shown.code == 0
    assert re.match(f"{TIME}ERROR, SQLSTATE: ({state})", shown.out)
    assert re.match(f"Warning: {cause}", shown.err)


def test_no_statement_reaches_the_wrong_kind_of_server(cluster: Cluster) -> None:
    shown = query(cluster, "-r", "replica", "-c", "select 1")
    assert shown.code == 0
    assert re.fullmatch(f"{TIME}No connection to role replica is available\n", shown.out)
    assert re.search(r"Warning: n1: .*not in hot standby mode", shown.err)
    assert "Warning: n2: " in shown.err
    assert query(cluster, "-r", "any", "-c", "select 1 as a").out == "a\n1\n"
    unknown = query(cluster, "-m", "n9", "-c", "select 1")
    assert re.fullmatch(f"{TIME}No connection to member n9 is available\n", unknown.out)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("-r", "any", "-m", "n0", "-c", "select 1"), "--role and --member are mutually exclusive options"),
        ((), "You need to specify either --command or --file"),
        (("-c", "select 1", "-f", "-"), "--file and --command are mutually exclusive options"),
        (("-c", " "), "the SQL is empty"),
        (("-c", "select 1", "--password"), "standard input is not a terminal, so no question can be asked: "
         "set PGPASSWORD or use a password file"),
    ],
)  # fmt: skip
def test_wishes_that_make_no_sense(cluster: Cluster, args: tuple[str, ...], error: str) -> None:
    assert query(cluster, *args) == Result(1, "", f"Error: {error}\n")
