"""What the sections `consul` and `zookeeper` ask for, on servers that demand it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from kazoo.security import make_digest_acl_credential

from dcs.api import Ok, Taken
from dcs.errors import DcsConfigError, DcsLoginRefused
from dcs.factory import make_dcs
from tests.contract.conftest import CALL_S
from tests.support.consul import ConsulServer
from tests.support.zookeeper import ZooKeeperServer

MASTER = "0b7b1c7e-5ed4-4f2c-8d50-9d0c0e4f1a11"


@pytest.fixture
def guarded() -> Iterator[ConsulServer]:
    """A Consul that lets nobody in without a token."""
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER, "agent": MASTER}}
    with ConsulServer(extra={"acl": acl, "primary_datacenter": "dc1"}, token=MASTER) as server:
        yield server


def test_a_token_lets_in_and_a_wrong_one_is_told_without_being_shown(guarded: ConsulServer) -> None:
    section = {"host": guarded.hostport, "token": MASTER, "dc": "dc1", "consistency": "stale"}
    with_token = make_dcs("consul", section, "service", "batman", "pg0")
    session = with_token.open_session(30, CALL_S)
    assert isinstance(with_token.take_leader(session, "pg0", CALL_S), Taken)
    names = [s["Name"] for s in guarded.get("/v1/session/list")]
    assert names == ["batman-pg0"]
    wrong = "5d4e6ad8-0f5c-4b4a-9f53-111111111111"
    without = make_dcs("consul", section | {"token": wrong}, "service", "batman", "pg0")
    with pytest.raises(DcsLoginRefused) as refused:
        without.snapshot(CALL_S)
    assert wrong not in str(refused.value)
    assert wrong not in repr(without.__dict__)


def test_a_service_follows_the_member_key(consul: ConsulServer) -> None:
    section = {
        "url": f"http://{consul.hostport}",
        "register_service": True,
        "service_tags": ["tag1"],
        "service_check_interval": "7s",
    }
    dcs = make_dcs("consul", section, "service", "My_cluster.x", "pg0")
    session = dcs.open_session(30, CALL_S)
    member = {"conn_url": "postgres://10.0.0.1:5433/postgres", "api_url": "http://10.0.0.1:8008/patroni"}

    def publish(**changes: str) -> dict[str, Any]:
        value = json.dumps(member | changes)
        assert isinstance(dcs.put_member(session, "pg0", value, CALL_S), Ok)
        found = consul.get("/v1/agent/services").get("My_cluster.x/pg0", {})
        assert isinstance(found, dict)
        return found

    service = publish(state="running", role="primary")
    assert (service["Service"], service["Address"], service["Port"]) == ("my-cluster-x", "10.0.0.1", 5433)
    assert service["Tags"] == ["master", "primary", "tag1"]
    assert service["EnableTagOverride"] is True
    checks = consul.get("/v1/agent/checks")
    check = next(c for c in checks.values() if c["ServiceID"] == "My_cluster.x/pg0")
    assert check["Type"] == "http"
    assert publish(state="running", role="replica")["Tags"] == ["replica", "tag1"]
    assert publish(state="stopped", role="demoted") == {}
    dcs.close_session(session, CALL_S)


def test_keys_carry_the_acls_and_credentials_of_the_section() -> None:
    with ZooKeeperServer() as server:
        section = {
            "hosts": [server.hostport],
            "auth_data": {"digest": "agent:hunter2"},
            "set_acls": {f"digest:{make_digest_acl_credential('agent', 'hunter2')}": ["ALL"]},
        }
        dcs = make_dcs("zookeeper", section, "service", "batman", "pg0")
        assert isinstance(dcs.put("config", "{}", CALL_S), Ok)
        assert dcs.snapshot(CALL_S).config is not None
        stranger = make_dcs("zookeeper", {"hosts": server.hostport}, "service", "batman")
        with pytest.raises(DcsLoginRefused):
            stranger.snapshot(CALL_S)
        dcs.close()
        stranger.close()


_CONTINUE = """
import sys
from dcs.api import LeaseHandle
from dcs.factory import make_dcs
hosts, epoch = sys.argv[1:]
dcs = make_dcs("zookeeper", {"hosts": hosts}, "service", "sealed", "pg0")
session = dcs.unsealed(sys.stdin.read())
print(type(dcs.renew_leader(LeaseHandle(session, int(epoch)), "pg0", 20.0)).__name__)
"""


def test_a_sealed_session_is_continued_by_another_process(zookeeper: ZooKeeperServer) -> None:
    """As after a restart of the agent; without the password nobody can."""
    dcs = make_dcs("zookeeper", {"hosts": zookeeper.hostport}, "service", "sealed", "pg0")
    session = dcs.open_session(20, CALL_S)
    taken = dcs.take_leader(session, "pg0", CALL_S)
    assert isinstance(taken, Taken)
    text, password, ttl = dcs.sealed(session).split(":")
    assert (text, ttl) == (session, "20")
    assert password not in session

    def elsewhere(sealed: str) -> str:
        command = [sys.executable, "-c", _CONTINUE, zookeeper.hostport, str(taken.handle.epoch)]
        done = subprocess.run(command, input=sealed, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    assert elsewhere(session) == "Refused"
    assert elsewhere(dcs.sealed(session)) == "Renewed"
    dcs.close()


@pytest.mark.parametrize(
    ("backend", "section", "problem"),
    [
        ("zookeeper", {"hosts": []}, "zookeeper.hosts"),
        ("zookeeper", {"hosts": ["a:b"]}, "zookeeper.hosts: 'a:b' is not host:port"),
        ("zookeeper", {"hosts": "a", "set_acls": {"CN=x": ["FLY"]}}, "zookeeper.set_acls.CN=x"),
        ("zookeeper", {"hosts": "a", "use_ssl": "maybe"}, "zookeeper.use_ssl: 'maybe'"),
        ("consul", {"host": "a:99999"}, "consul.host: 'a:99999' is not host:port"),
        ("consul", {"url": "ftp://a"}, "consul.url: 'ftp' is neither http nor https"),
        ("consul", {"consistency": "never"}, "consul.consistency: 'never'"),
        ("consul", {"key": "/k"}, "consul.key: needs consul.cert"),
    ],
)
def test_a_section_that_cannot_work_is_refused_with_key_and_value(
    backend: str, section: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DcsConfigError) as refused:
        make_dcs(backend, section, "service", "batman")
    assert problem in str(refused.value)
