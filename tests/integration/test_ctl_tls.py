"""A cluster whose REST API asks everybody for a certificate: haagentctl, and agents among themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.certificates import Authority
from tests.support.cluster import REPOSITORY, Cluster, Node, merged

PASSWORD = "key-geheim"


def ctl(directory: Path, node: Node, section: dict[str, Any], *arguments: str) -> tuple[int, str]:
    """haagentctl under the node's configuration with another section `ctl`: (exit code, all output)."""
    file = directory / "ctl.yml"
    file.write_text(yaml.safe_dump(merged(node.config(), {"ctl": None}) | {"ctl": section}))
    command = [sys.executable, "-m", "haagent.ctl", "-c", str(file), *arguments]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_haagentctl_over_https(shared: Path) -> None:
    ours, theirs = Authority(shared), Authority(shared, "theirs")
    # Made for another host: agents do not look at that among themselves, haagentctl does unless told not to.
    server, client = ours.issue("server", host="elsewhere.example.org"), ours.issue("client", PASSWORD)
    stranger = theirs.issue("stranger")
    certified = {
        "cacert": str(ours.cert),
        "certfile": str(client.cert),
        "keyfile": str(client.key),
        "keyfile_password": PASSWORD,
    }
    rest = {
        "certfile": str(server.cert),
        "keyfile": str(server.key),
        "cafile": str(ours.cert),
        "verify_client": "required",
    }
    cluster = Cluster(nodes=2, node_config={"restapi": rest, "ctl": certified})
    try:
        cluster.start_store()
        first, second = cluster.nodes
        first.start()
        cluster.wait_for(first.is_writable, 120, "the first one leads")
        second.start()
        cluster.wait_for(second.is_streaming, 120, "the second one streams")

        def switchover(section: dict[str, Any], *options: str) -> tuple[int, str]:
            wish = ("switchover", "--candidate", second.name, "--force")
            return ctl(shared, first, section, *options, *wish)

        def reload(section: dict[str, Any], *options: str) -> tuple[int, str]:
            return ctl(shared, first, section, *options, "reload", cluster.scope, "--force")

        # Without a certificate, or with a foreign one, nobody is let in; an unknown server is not believed.
        unchecked = certified | {"insecure": True}
        for section in (
            certified,
            {"cacert": str(ours.cert), "insecure": True},
            unchecked | {"certfile": str(stranger.cert), "keyfile": str(stranger.key)},
            unchecked | {"cacert": str(theirs.cert)},
            unchecked | {"keyfile_password": "wrong"},
        ):
            code, output = reload(section)
            assert code == 1, f"{section}: {output}"
            assert PASSWORD not in output
        for code, output in (reload(unchecked), reload(certified, "-k")):
            assert code == 0, output

        # The leader asks the candidate before it hands over, and that by certificate as well.
        code, output = switchover(unchecked)
        assert code == 0, output
        assert f'Successfully switched over to "{second.name}"' in output
        cluster.wait_for(lambda: second.is_writable() and first.is_streaming(), 60, "the roles are swapped")
    finally:
        cluster.close()
