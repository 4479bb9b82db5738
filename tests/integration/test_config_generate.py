"""A configuration made from a running server: it loads, and says what the server says."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from haagent.__main__ import main
from haagent.config import Environment, load
from tests.support.postgres import BIN_DIR, Server, postgres_user, scratch_dir  # noqa: F401

pytestmark = pytest.mark.usefixtures("postgres_user")


@pytest.fixture
def server(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    one = Server.create("describe")
    try:
        one.set(cluster_name="batman", work_mem="12MB", log_line_prefix="%m it''s ")
        one.start()
        yield one
    finally:
        one.destroy()


def run(*arguments: str) -> tuple[object, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.raises(SystemExit) as ended,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        main(list(arguments))
    return ended.value.code, out.getvalue(), err.getvalue()


def test_a_running_server_is_described(server: Server) -> None:
    with scratch_dir("generate") as directory:
        path = directory / "agent.yml"
        dsn = f"{server.conninfo} password=hunter2"
        assert run("--generate-config", "--dsn", dsn, str(path)) == (0, "", "")
        config = load(str(path), Environment())
        assert "hunter2" not in run("--generate-config", "--dsn", dsn)[1]
    assert config.scope == "batman"
    pg = config.postgresql
    assert (pg.data_dir, pg.port, pg.listen_addresses) == (str(server.data_dir), server.port, ("127.0.0.1",))
    assert Path(pg.bin_dir).resolve() == Path(BIN_DIR).resolve()
    assert pg.parameters["work_mem"] == "12MB"
    assert pg.parameters["log_line_prefix"] == "%m it's "
    assert config.bootstrap.dcs["postgresql"]["parameters"]["max_connections"] == 30
    assert pg.pg_hba is not None
    assert "host replication all 127.0.0.1/32 trust" in pg.pg_hba


def test_only_a_superuser_may_ask(server: Server) -> None:
    server.sql("create role nobody login")
    code, out, err = run("--generate-config", "--dsn", server.conninfo.replace("postgres ", "nobody ", 1))
    assert (code, out) == (1, "")
    assert err == "the user nobody is no superuser: a superuser must ask\n"


def test_output_is_yaml(server: Server) -> None:
    code, out, _ = run("--generate-config", "--dsn", server.conninfo)
    assert code == 0
    assert yaml.safe_load(out)["postgresql"]["authentication"]["superuser"]["password"] == "#FIXME"
