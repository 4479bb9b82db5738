"""Many faults in a random order, several at a time, under load: never two primaries, and it heals by itself.

The order comes from a seed, which a failure prints; HAAGENT_SOAK_SEED repeats one, HAAGENT_SOAK_FAULTS sets
how many. What happens in which millisecond is the machine's, so a seed repeats the plan, not the run.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.support import processes
from tests.support.cluster import Cluster, Node
from tests.support.wait import pause
from tests.support.writers import Writers

FAULTS = int(os.environ.get("HAAGENT_SOAK_FAULTS", "8"))
HEALED_S = 90.0


def kill_agent(node: Node) -> None:
    node.kill_agent()


def freeze_agent(node: Node) -> None:
    if node.agent_running:
        node.freeze_agent()


def kill_guardian(node: Node) -> None:
    processes.send(node.guardian_pid, signal.SIGKILL)


def freeze_guardian(node: Node) -> None:
    processes.send(node.guardian_pid, signal.SIGSTOP)


def kill_postmaster(node: Node) -> None:
    processes.send(node.postmaster_pid(), signal.SIGKILL)


def freeze_postgresql(node: Node) -> None:
    for pid in node.postgres_pids():
        processes.send(pid, signal.SIGSTOP)


def kill_node(node: Node) -> None:
    node.kill_all()


def cut_store(node: Node) -> None:
    assert node.proxy is not None
    node.proxy.refuse()


def silence_store(node: Node) -> None:
    assert node.proxy is not None
    node.proxy.freeze()


def switch_over(node: Node) -> None:
    """Asked and not waited for: the next fault comes in the middle."""
    try:
        node.rest("/switchover", "POST", {"leader": node.name}, timeout_s=0.3)
    except OSError:
        pass


ALL: tuple[Callable[[Node], None], ...] = (
    kill_agent, freeze_agent, kill_guardian, freeze_guardian, kill_postmaster, freeze_postgresql,
    kill_node, cut_store, silence_store, switch_over,
)  # fmt: skip
#: A frozen guardian beside an agent that cannot act needs a watchdog (design section 2): never both at once.
NEVER_TWO_OF = {freeze_agent, kill_agent, freeze_guardian}


def heal(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.proxy is not None
        node.proxy.accept()
        node.proxy.thaw()
        node.signal_all(signal.SIGCONT)
        if node.agent_exit is not None:
            node.start()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_faults_never_make_two_primaries_and_heal() -> None:
    seed = int(os.environ.get("HAAGENT_SOAK_SEED", random.randrange(1_000_000)))
    plan = random.Random(seed)
    done: list[str] = [f"seed {seed}"]
    with Cluster(nodes=3, ttl=4, proxied=True, parameters={"log_min_messages": "log"}) as cluster:
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            for _ in range(FAULTS):
                _round(cluster, plan, done)
                heal(cluster)
                try:
                    cluster.wait_streaming(2, HEALED_S)
                    writers.wait_acknowledged(20, "any", HEALED_S)
                except pytest.fail.Exception as failure:
                    pytest.fail(f"not healed after {done}: {failure}")
                overlaps = writers.evidence().overlaps()
                assert not overlaps, f"two writable servers after {done}: {overlaps[0]}"
        assert {node.agent_exit for node in cluster.nodes} == {None}


def _round(cluster: Cluster, plan: random.Random, done: list[str]) -> None:
    """One to three faults, on the leader mostly, some time apart."""
    leader = next(iter(cluster.leaders()), cluster.nodes[0])
    frozen: set[str] = set()
    for _ in range(plan.choice((1, 1, 2, 3))):
        node = leader if plan.random() < 0.7 else plan.choice(cluster.nodes)
        fault = plan.choice(ALL)
        if fault in NEVER_TWO_OF:
            if node.name in frozen:
                continue
            frozen.add(node.name)
        done.append(f"{fault.__name__} {node.name}{' (leader)' if node is leader else ''}")
        fault(node)
        pause(plan.choice((0.0, 0.05, 0.5, 2.0)))
    pause(plan.choice((0.0, 1.0, 3.0, 7.0)))
