"""The OpenAPI document is true: schemathesis calls everything in it on a real agent, and believes nothing.

Left out of its checks, as contract section 3 wants otherwise: 501 for what is not supported instead of 405
(looked at here instead), and 502 and 503 are answers, not faults. 500 stays a fault.
"""

from __future__ import annotations

import base64
import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster, Node

LAST_SECOND = "9999-12-31T23:59:59-12:00"
LAST_SWITCHOVER = {"leader": "n0", "scheduled_at": LAST_SECOND}
LOGIN = {"username": "admin", "password": "secret"}
#: Also valid: nothing is scheduled (404), an unknown member (412), a time in the past (422).
SETTINGS = """
[checks]
unsupported_method.enabled = false
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "501", "502", "503"]
[[operations]]
include-path = ["/switchover", "/failover", "/restart"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "412", "422", "503"]
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The one member of a cluster, with a password."""
    with Cluster(nodes=1, store="local", node_config={"restapi": {"authentication": LOGIN}}) as cluster:
        yield cluster.leader()


def test_schemathesis_finds_nothing(node: Node, tmp_path: Path) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    url = f"http://{node.address}:{node.api_port}/openapi.json"
    command = [
        str(Path(sys.executable).with_name("st")), "--config-file", str(settings), "run", url,
        "--auth", "{username}:{password}".format(**LOGIN), "--phases", "examples,coverage,fuzzing",
        "--max-examples", "3", "--generation-deterministic", "--continue-on-failure", "--no-color",
        "--warnings", "off", "--request-timeout", "60",
    ]  # fmt: skip
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    assert "Tested: " in run.stdout
    assert node.status("/primary") == 200


def test_times_without_end_do_not_end_the_agent(node: Node) -> None:
    login = base64.b64encode("{username}:{password}".format(**LOGIN).encode()).decode()

    def call(method: str, path: str, body: dict[str, Any] | None = None) -> int:
        return node.rest(path, method, body, timeout_s=60, headers={"Authorization": f"Basic {login}"})[0]

    assert call("PATCH", "/config", {"ttl": 1e15, "loop_wait": 1e14}) == 200
    assert call("POST", "/restart", {"timeout": "440685 d"}) == 400
    for path, wish in (("/restart", {"schedule": LAST_SECOND}), ("/switchover", LAST_SWITCHOVER)):
        assert call("POST", path, wish) == 202
        assert call("POST", "/restart", {"role": "replica"}) == 503  # the loop has seen it, and goes on
        assert call("DELETE", path) == 200
    assert call("PATCH", "/config", {"ttl": None, "loop_wait": None}) == 200
    assert node.agent_running
    assert node.status("/primary") == 200


def test_methods_that_are_not_in_the_document_are_not_supported(node: Node) -> None:
    paths = node.rest("/openapi.json")[1]["paths"]
    for path, described in paths.items():
        for method in {"POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - {m.upper() for m in described}:
            connection = http.client.HTTPConnection(node.address, node.api_port, timeout=10)
            connection.request(method, path)
            assert (method, path, connection.getresponse().status) == (method, path, 501)
            connection.close()
