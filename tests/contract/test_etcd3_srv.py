"""etcd servers found by DNS, with a real name server in a network of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dcs.etcd3_srv import Discovery, NoRecords, record_names
from tests.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]

#: Run where nobody else has a network, a name server or a resolv.conf: $1 is a scratch directory.
SCRIPT = """
set -eu
ip link set lo up
echo nameserver 127.0.0.1 > "$1/resolv.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
dnsmasq --keep-in-foreground --no-resolv --no-hosts --user=root --pid-file= --listen-address=127.0.0.1 \\
    --bind-interfaces --local=/test/ --address=/etcd.example.test/127.0.0.1 \\
    --srv-host=_etcd-client._tcp.example.test,etcd.example.test,1,20 \\
    --srv-host=_etcd-client._tcp.example.test,etcd.example.test,12379,10 \\
    --srv-host=_etcd-client-blue._tcp.example.test,etcd.example.test,12379 &
etcd --data-dir "$1/etcd" --listen-client-urls http://127.0.0.1:12379 \\
    --advertise-client-urls http://127.0.0.1:12379 --listen-peer-urls http://127.0.0.1:12380 \\
    --initial-advertise-peer-urls http://127.0.0.1:12380 --initial-cluster default=http://127.0.0.1:12380 \\
    --log-level error &
PYTHONPATH="$2" "$3" "$1/client.py"
"""

CLIENT = """
from dcs.errors import DcsUnavailable
from dcs.factory import make_dcs

for section in ({"srv": "example.test"}, {"srv": "example.test", "srv_suffix": "blue"}):
    dcs = make_dcs("etcd3", section, "/service/", "main")
    for _ in range(30):
        try:
            print(dcs.put("config", "{}", 2.0), dcs.snapshot(5.0).config)
            break
        except DcsUnavailable as error:
            print(error)
    dcs.close()
for section in ({"srv": "nowhere.test"}, {"srv": "example.test", "srv_suffix": "green"}):
    dcs = make_dcs("etcd3", section, "/service/", "main")
    try:
        dcs.snapshot(4.0)
    except DcsUnavailable as error:
        print("refused:", error)
    dcs.close()
"""


def test_servers_are_found_by_their_records() -> None:
    """By priority: the better server is asked first, the other one does not exist."""
    directory = tempfile.mkdtemp(prefix="haagent-srv-")
    try:
        Path(directory, "client.py").write_text(CLIENT)
        mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
        alone = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", *mapped]
        done = subprocess.run(
            [*alone, "bash", "-c", SCRIPT, "script", directory, str(ROOT), sys.executable],
            check=False, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        *answers, nowhere, green = done.stdout.splitlines()
        assert [line for line in answers if "ConfigRecord" in line], done.stdout
        assert len([line for line in answers if "ConfigRecord" in line]) == 2
        assert "etcd3.srv: nowhere.test: no SRV records" in nowhere
        assert "etcd3.srv: example.test: no SRV records" in green
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_names_of_the_records() -> None:
    assert record_names("example.org", None)[:2] == [
        ("_etcd-client-ssl._tcp.example.org", "https"),
        ("_etcd-client._tcp.example.org", "http"),
    ]
    assert record_names("example.org", "blue")[1] == ("_etcd-client-blue._tcp.example.org", "http")


def test_what_was_known_stays_when_the_name_server_is_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcs.etcd3_srv.RECORDS_AGE_S", -1.0)
    answers: list[tuple[tuple[str, str, int], ...]] = [(("http", "a", 1),), (), (("http", "b", 2),)]

    def find(_limit_s: float) -> tuple[tuple[str, str, int], ...]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not answer:
            raise NoRecords("down")
        return answer

    discovery = Discovery(find)
    assert discovery.servers(1.0) == (("http", "a", 1),)
    wait_for(lambda: discovery.servers(1.0) == (("http", "b", 2),), 30, "looked up again in the background")
