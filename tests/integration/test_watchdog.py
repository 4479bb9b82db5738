"""The watchdog device (contract 7.4) on real servers, with a FIFO in its place: driver `testing`."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.cluster import Cluster, Node


class Device:
    """What a watchdog of that node would have been told, and whether it would have reset the host."""

    def __init__(self, node: Node) -> None:
        self.path = node.root / "watchdog"
        os.mkfifo(self.path)
        self.path.chmod(0o666)
        # For both, so that it neither waits for a writer nor ends with one.
        self._fd = os.open(self.path, os.O_RDWR)
        self.text = ""
        self.reset_after_s: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        timeout_s, last = 60.0, 0.0
        while data := os.read(self._fd, 4096).decode():
            if data == "E":
                return
            now = time.monotonic()
            if self.is_on() and now > last + timeout_s and self.reset_after_s is None:
                self.reset_after_s = now - last
            last = now
            self.text += data
            timeout_s = float(self.timeouts[-1]) if self.timeouts else 60.0

    def is_on(self) -> bool:
        return bool(self.text) and not self.text.endswith("V")

    @property
    def timeouts(self) -> list[int]:
        return [int(n) for n in re.findall(r"Ctimeout=(\d+)\n", self.text)]

    @property
    def keepalives(self) -> int:
        return len(re.sub(r"Ctimeout=\d+\n", "", self.text).replace("V", ""))

    def close(self) -> None:
        os.write(self._fd, b"E")
        self._thread.join(10)
        os.close(self._fd)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster(nodes=2, ttl=20)
    try:
        yield found
    except BaseException:
        found.close(failed=True)
        raise
    finally:
        found.close()


@pytest.fixture
def devices(cluster: Cluster) -> Iterator[list[Device]]:
    found = [Device(node) for node in cluster.nodes]
    for node, device in zip(cluster.nodes, found, strict=True):
        node.config_changes = {"watchdog": section(device.path)}
    yield found
    for device in found:
        device.close()


def section(path: Path, mode: str = "required") -> dict[str, object]:
    return {"mode": mode, "device": str(path), "driver": "testing", "safety_margin": -1}


def patch(node: Node, **changes: object) -> None:
    assert node.rest("/config", "PATCH", changes)[0] == 200


def test_a_watchdog_is_on_while_its_member_leads(cluster: Cluster, devices: list[Device]) -> None:
    cluster.start()
    (a, b), (of_a, of_b) = cluster.nodes, devices
    assert of_a.text.startswith("Ctimeout=10\n1")
    cluster.wait_for(lambda: of_a.keepalives > 4, 60, "each renewal is a keepalive")
    assert of_a.timeouts == [10]
    assert of_b.text == ""

    patch(a, ttl=30)
    cluster.wait_for(lambda: of_a.timeouts[-1] == 15, 60, "the timeout follows the ttl")
    patch(a, pause=True)
    cluster.wait_for(lambda: not of_a.is_on(), 60, "a pause switches it off")
    patch(a, pause=None, ttl=8)
    cluster.wait_for(lambda: of_a.is_on() and of_a.timeouts[-1] == 4, 60, "and a resume on again")

    assert a.rest("/switchover", "POST", {"leader": a.name, "candidate": b.name}, timeout_s=60)[0] == 200
    assert of_b.timeouts[0] == 4
    cluster.wait_for(lambda: not of_a.is_on(), 60, "who stepped down needs none")
    cluster.wait_streaming(1)

    _agent_dies(cluster, b, of_b)
    cluster.wait_for(a.is_primary, 60, "the other one leads")
    cluster.wait_for(of_a.is_on, 60, "with its watchdog")
    assert a.stop() == 0
    assert not of_a.is_on()
    assert [device.reset_after_s for device in devices] == [None, None]


def _agent_dies(cluster: Cluster, node: Node, device: Device) -> None:
    """Its guardian stops PostgreSQL before the device would reset the host, and switches it off."""
    keepalives = device.keepalives
    node.kill_agent()
    cluster.wait_for(lambda: not device.is_on(), 60, "the guardian switches it off")
    assert node.postmaster_pid() is None
    assert device.keepalives < keepalives + 5


def test_a_dead_guardian_resets_no_host_and_a_useless_device_no_cluster(
    cluster: Cluster, devices: list[Device]
) -> None:
    cluster.start()
    (a, b), (of_a, _) = cluster.nodes, devices
    processes.send(a.guardian_pid, signal.SIGKILL)
    cluster.wait_for(lambda: "V" in of_a.text, 60, "the next guardian switches off what was left on")
    cluster.wait_streaming(1)
    leader, other = (a, b) if a.is_primary() else (b, a)

    # Required, and useless: the member says so, and nobody hands over to it.
    other.write_config({"watchdog": section(other.root / "nowhere")})
    processes.send(other.agent_pid, signal.SIGHUP)
    cluster.wait_for(lambda: failed(other), 60, "it says that its watchdog failed")
    body = {"leader": leader.name, "candidate": other.name}
    status, text = leader.rest("/switchover", "POST", body, timeout_s=60)
    assert status == 412
    assert "watchdog" in text

    # Where it is not required, it is left out.
    other.write_config({"watchdog": section(other.root / "nowhere", "automatic")})
    processes.send(other.agent_pid, signal.SIGHUP)
    cluster.wait_for(lambda: not failed(other), 60, "it could lead")
    switched = lambda: leader.rest("/switchover", "POST", body, timeout_s=60)[0] == 200  # noqa: E731
    cluster.wait_for(switched, 60, "its old word does not count for ever")

    # A leader whose watchdog is required from now on, and useless, steps down.
    cluster.wait_streaming(1)
    other.write_config({"watchdog": section(other.root / "nowhere")})
    processes.send(other.agent_pid, signal.SIGHUP)
    cluster.wait_for(leader.is_primary, 60, "the other one leads")


def failed(node: Node) -> bool:
    """As peers read it."""
    return bool(node.rest("/patroni")[1].get("watchdog_failed"))
