"""Running the clients: those from PyPI out of this environment, those from Debian out of PATH."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.cluster import Cluster, Node

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
#: Longest that one call of a client may take on a busy machine, seconds.
CALL_S = 120.0


def program(name: str) -> str:
    """The client's path. It lacks only where `make setup` has not been run."""
    here = Path(sys.executable).with_name(name)
    found = str(here) if here.exists() else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found is not None, f"{name} is not installed: run `make setup`"
    return found


#: Wide enough for a table; an editor that changes nothing.
_VARIABLES = {"COLUMNS": "200", "LC_ALL": "C.UTF-8", "PGPASSWORD": "super-secret", "EDITOR": "true"}


def call(arguments: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(arguments[0]), *arguments[1:]],
        input=stdin,
        env={**os.environ, **_VARIABLES},
        capture_output=True,
        text=True,
        timeout=CALL_S,
        check=False,
    )


def patronictl(cluster: Cluster, *arguments: str, code: int = 0, stdin: str = "") -> str:
    """Patroni's own ctl with a node's file as it is; what it printed. Fails when it ends otherwise."""
    done = call(["patronictl", "-c", str(cluster.nodes[0].config_file), *arguments], stdin)
    assert done.returncode == code, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def check_patroni(node: Node, *arguments: str) -> str:
    """One check against one node: OK, WARNING, CRITICAL or UNKNOWN, by its exit code."""
    endpoint = f"http://{node.address}:{node.api_port}"
    done = call(["check_patroni", "--timeout", "10", "-e", endpoint, *arguments])
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[done.returncode]
    assert f" {word} - " in done.stdout, f"{arguments}: {done.stdout}\n{done.stderr}"
    return word


@contextlib.contextmanager
def server(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A client that goes on running, until the end of the `with`."""
    with log.open("wb") as output:
        process = subprocess.Popen([program(arguments[0]), *arguments[1:]], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
