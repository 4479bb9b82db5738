"""Prometheus scrapes real agents, with the configuration and the alert rules in configs/."""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.programs import CONFIGS, call, server
from tests.support.cluster import Cluster, Node
from tests.support.etcd import free_port

HERE = Path(__file__).parent


class Prometheus:
    """Its API, as a dashboard asks it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> dict[str, float]:
        """Member name -> value."""
        found = self.get("query", query=query)["result"]
        return {one["metric"]["name"]: float(one["value"][1]) for one in found}


@pytest.fixture
def prometheus(cluster: Cluster, tmp_path: Path) -> Iterator[Prometheus]:
    config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    targets = [f"{node.address}:{node.api_port}" for node in cluster.nodes]
    (static,) = config["scrape_configs"][0]["static_configs"]
    assert len(static["targets"]) == len(targets)
    static["targets"] = targets
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(CONFIGS / "prometheus-alerts.yml", tmp_path)
    port = free_port()
    arguments = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with server(arguments, tmp_path / "prometheus.log"):
        yield Prometheus(port)


def test_agents_are_scraped_and_rules_evaluated(cluster: Cluster, prometheus: Prometheus) -> None:
    leader = cluster.leader()
    as_it_is = {node.name: float(node is leader) for node in cluster.nodes}
    cluster.wait_for(lambda: prometheus.values("patroni_primary") == as_it_is, 60, "all three are scraped")
    assert prometheus.values("haagent_failover_candidates") == {leader.name: 2.0}
    targets = prometheus.get("targets")["activeTargets"]
    assert [(t["health"], t["lastError"]) for t in targets] == [("up", "")] * 3

    def evaluated() -> bool:
        (group,) = prometheus.get("rules")["groups"]
        return {rule["health"] for rule in group["rules"]} == {"ok"}

    cluster.wait_for(evaluated, 60, "every rule of the file is evaluated without an error")
    assert [
        a["labels"]["alertname"] for a in prometheus.get("alerts")["alerts"] if a["state"] == "firing"
    ] == []


def test_every_panel_of_the_dashboard_shows_something(cluster: Cluster, prometheus: Prometheus) -> None:
    panels = json.loads((CONFIGS / "grafana-dashboard.json").read_text())["panels"]
    queries = [
        target["expr"].replace("$scope", cluster.scope) for panel in panels for target in panel["targets"]
    ]
    assert len(queries) >= len(panels) > 10

    def empty() -> list[str]:
        return [query for query in queries if not prometheus.get("query", query=query)["result"]]

    cluster.wait_for(lambda: not empty(), 60, "no panel is empty")


def page(node: Node) -> str:
    text = node.rest("/metrics")[1]
    assert isinstance(text, str)
    return text


def test_our_metrics_are_as_prometheus_wants_them(cluster: Cluster) -> None:
    for node in cluster.nodes:
        lines = [line for line in page(node).splitlines() if "haagent_" in line]
        done = call(["promtool", "check", "metrics"], "\n".join(lines) + "\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_alert_rules_fire_when_they_should() -> None:
    rules = str(CONFIGS / "prometheus-alerts.yml")
    tests = sorted(HERE.glob("prometheus-alerts*.test.yml"))
    for arguments in (
        ["check", "rules", "--lint=all", "--lint-fatal", rules],
        ["check", "config", str(CONFIGS / "prometheus.yml")],
        ["test", "rules", *map(str, tests)],
    ):
        done = call(["promtool", *arguments])
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    expected = set(re.findall(r'alertname="(\w+)"', "".join(test.read_text() for test in tests)))
    (group,) = yaml.safe_load(Path(rules).read_text())["groups"]
    assert expected == {rule["alert"] for rule in group["rules"]}


def samples(node: Node) -> dict[str, float]:
    """Name with the labels of its own -> value."""
    found = {}
    for family in text_string_to_metric_families(page(node)):
        for one in family.samples:
            labels = [value for name, value in one.labels.items() if name not in ("scope", "name")]
            found[" ".join([one.name, *labels])] = one.value
    return found


def test_what_happens_is_counted(cluster: Cluster) -> None:
    """A switchover on both sides of it, then a fence, on a member whose agent was frozen."""
    old = cluster.leader()
    new = next(node for node in cluster.nodes if node is not old)
    before, before_new = samples(old), samples(new)
    assert before["haagent_lease_left_seconds"] > 0
    assert before["haagent_lease_renewals_total leader ok"] > 0
    assert before["haagent_failover_expected_loss_bytes"] >= 0
    assert before_new["haagent_lease_left_seconds"] == 0
    assert before_new["haagent_lease_renewals_total session ok"] > 0
    assert before["haagent_dcs_round_trip_seconds_count renew"] > 0
    assert 0 < before["haagent_dcs_round_trip_seconds_sum read"] < 60
    assert 0 <= before["haagent_decision_age_seconds"] < 60

    status, text = old.rest("/switchover", "POST", {"leader": old.name, "candidate": new.name})
    assert status == 200, text
    cluster.wait_for(lambda: grown(samples(new), before_new, "haagent_failovers_total switchover"), 60, "it")
    for node, known, phases in (
        (old, before, ("checkpoint", "stop", "proof")),
        (new, before_new, ("election", "claim", "promotion")),
    ):
        now = samples(node)
        for phase in phases:
            assert grown(now, known, f"haagent_failover_phase_seconds_count {phase}"), phase
            assert now[f"haagent_failover_phase_seconds_sum {phase}"] < 60

    cluster.wait_streaming(2)
    before, others = samples(new), [node for node in cluster.nodes if node is not new]
    failovers = {node.name: samples(node) for node in others}
    new.freeze_agent()
    cluster.wait_for(lambda: any(node.is_primary() for node in others), 60, "another one takes over")
    new.thaw_agent()
    cluster.wait_for(lambda: grown(samples(new), before, "haagent_fencings_total guardian"), 60, "the fence")
    winner = next(node for node in others if node.is_primary())
    counted = "haagent_failovers_total failover"
    cluster.wait_for(lambda: grown(samples(winner), failovers[winner.name], counted), 60, "the failover")


def test_a_fence_without_an_agent_is_counted_by_the_next_one(cluster: Cluster) -> None:
    node = cluster.leader()
    node.kill_agent()
    others = [other for other in cluster.nodes if other is not node]
    cluster.wait_for(lambda: any(other.is_primary() for other in others), 60, "another one takes over")
    assert node.postmaster_pid() is None
    node.start()
    cluster.wait_for(lambda: node.status("/liveness") == 200, 60, "the next agent is there")
    assert samples(node)["haagent_fencings_total guardian"] == 1


def grown(now: dict[str, float], before: dict[str, float], name: str) -> bool:
    return now[name] == before[name] + 1
