"""What a program costs while nothing happens: processor time, memory, requests to etcd."""

from __future__ import annotations

import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import BenchCluster
from tests.support.etcd import EtcdServer
from tests.support.wait import pause

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: After the start: members are published, slots made, files looked at, seconds.
_SETTLE_S = 8.0
_RECEIVED = re.compile(r"^grpc_server_msg_received_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Cost:
    """Per node, mean over the nodes; `etcd_requests_per_min` of the whole cluster."""

    cpu_s_per_min: float
    pss_mib: float
    etcd_requests_per_min: float


def idle_cost(cluster: BenchCluster, window_s: float) -> Cost:
    """Watch an undisturbed cluster for `window_s` seconds."""
    assert cluster.etcd is not None
    pause(_SETTLE_S)
    pids = [pid for node in cluster.bench_nodes for pid in node.program_pids()]
    cpu, requests = _cpu_s(pids), _requests(cluster.etcd)
    pause(window_s)
    cpu, requests = _cpu_s(pids) - cpu, _requests(cluster.etcd) - requests
    nodes = len(cluster.nodes)
    return Cost(
        cpu_s_per_min=cpu * 60 / window_s / nodes,
        pss_mib=sum(_pss_mib(pid) for pid in pids) / nodes,
        etcd_requests_per_min=requests * 60 / window_s,
    )


def _cpu_s(pids: list[int]) -> float:
    """User and system time so far; not children: an earlier base backup would count when it is reaped."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def _pss_mib(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def _requests(etcd: EtcdServer) -> float:
    """Messages etcd received from clients: calls, and what comes in streams (renewals, watches)."""
    with urllib.request.urlopen(f"{etcd.url}/metrics", timeout=5) as answer:
        return sum(float(value) for value in _RECEIVED.findall(answer.read().decode()))
