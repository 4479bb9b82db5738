"""`python -m benchmarks.failover`: haagent beside Patroni, scenario by scenario.

Prints each figure as it comes, then the table; writes everything to a JSON file, and
docs/benchmarks.md from it.
Exit status 1 when haagent missed a target or a scenario failed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks import network, report, scenarios
from benchmarks.cost import idle_cost
from benchmarks.plan import Stage, stages
from benchmarks.programs import BenchCluster, ensure_patroni
from benchmarks.quiet import Quiet
from tests.support.etcd import EtcdServer, free_port

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
#: pytest's failures, by which the harness says that something did not happen in time, are no Exceptions.
_FAILURES = (Exception, pytest.fail.Exception)


def main() -> int:
    arguments = _arguments()
    chosen = [stage for stage in stages() if _wanted(stage, arguments)]
    python = ensure_patroni(arguments.patroni_venv)
    # On a disk: what fsync costs shows nowhere else. Open to the agents' user.
    with tempfile.TemporaryDirectory(prefix="haagent-bench-", dir=arguments.directory) as directory:
        os.chmod(directory, 0o755)
        os.environ["HAAGENT_TEST_DIR"] = directory
        run = Run(python, arguments)
        with contextlib.suppress(KeyboardInterrupt):
            run.everything(chosen)
    data = run.as_data()
    if arguments.again:
        data = renewed(json.loads(arguments.output.read_text()), data)
    print("\n" + report.table(data))
    arguments.output.write_text(json.dumps(trimmed(data)) + "\n")
    print(f"\nfigures: {arguments.output}")
    if arguments.document:
        arguments.document.write_text(report.document(data))
        print(f"document: {arguments.document}")
    return 1 if report.missed(data) or run.failures else 0


def renewed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`before` with everything that was measured now in place of what was there under the same setting."""
    kinds = {_kind(sample) for sample in [*now["samples"], *now["failures"]]}
    data = dict(before)
    for part in ("samples", "failures"):
        data[part] = [each for each in before[part] if _kind(each) not in kinds] + now[part]
    settings = {_setting(cost) for cost in now["costs"]}
    data["costs"] = [cost for cost in before["costs"] if _setting(cost) not in settings] + now["costs"]
    what = ", ".join(dict.fromkeys(sample["scenario"] for sample in now["samples"]))
    where = ", ".join(dict.fromkeys(_named(sample) for sample in now["samples"]))
    when = f"{now['measured_at'][11:16]} UTC, haagent {now['machine']['haagent']}"
    data["measured_again"] = [*before.get("measured_again", []), f"{what} of {where} ({when})"]
    return data


def trimmed(data: dict[str, Any]) -> dict[str, Any]:
    """What was logged stays with the longest gap of each scenario and setting only: the rest is bulk."""
    worst: dict[tuple[Any, ...], float] = {}
    for sample in data["samples"]:
        worst[_kind(sample)] = max(worst.get(_kind(sample), 0.0), sample.get("gap_s", 0.0))
    for sample in data["samples"]:
        if "marks" in sample and sample["gap_s"] < worst[_kind(sample)]:
            sample["marks"] = []
    return data


def _named(sample: dict[str, Any]) -> str:
    return f"{sample['program']} {sample['timing']} fsync {'on' if sample['fsync'] else 'off'}"


def _setting(sample: dict[str, Any]) -> tuple[Any, ...]:
    return sample["program"], sample["timing"], sample["fsync"]


def _kind(sample: dict[str, Any]) -> tuple[Any, ...]:
    return *_setting(sample), sample["scenario"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.failover", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--agent", choices=("haagent", "patroni", "both"), default="both")
    add("--repetitions", type=int, default=5, help="rounds of each quick scenario (default 5)")
    add("--only", nargs="+", metavar="SCENARIO", help="these scenarios, for example node-cut idle")
    add("--timing", nargs="+", metavar="TTL/LOOP/RETRY", help="these timings, for example 3/1/1")
    add("--fsync", choices=("on", "off"), help="only with fsync so")
    add("--patroni-venv", type=Path, default=Path("/opt/haagent/patroni-venv"))
    add("--directory", default="/var/tmp", help="where clusters live (default /var/tmp)")
    add("--output", type=Path, default=HERE / "failover.json")
    add("--document", type=Path, default=DOCUMENT, help="Markdown to write")
    add("--no-document", dest="document", action="store_const", const=None)
    add(
        "--quiet",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="wait so long at most, all in all, for other programs to be quiet (default 60)",
    )
    add("--again", action="store_true", help="replace what is measured now in the figures there are")
    add("--phases", action="store_true", help="print what was logged in every gap")
    return parser.parse_args()


def _wanted(stage: Stage, arguments: argparse.Namespace) -> bool:
    return (
        arguments.agent in ("both", stage.program)
        and (not arguments.timing or str(stage.timing) in arguments.timing)
        and (not arguments.fsync or stage.fsync == (arguments.fsync == "on"))
        and (not arguments.only or bool(set(arguments.only) & _scenarios(stage)))
    )


def _scenarios(stage: Stage) -> set[str]:
    return {*stage.scenarios, "start"} | ({"idle"} if stage.idle_s else set())


class Run:
    """Goes through stages and keeps what was measured."""

    def __init__(self, patroni_python: Path, arguments: argparse.Namespace) -> None:
        self._python = patroni_python
        self._arguments = arguments
        self._quiet = Quiet(arguments.quiet)
        self._begun = time.monotonic()
        self._position = ""
        self.samples: list[dict[str, Any]] = []
        self.costs: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []

    def everything(self, chosen: list[Stage]) -> None:
        with contextlib.ExitStack() as stack:
            net = stack.enter_context(network.Network()) if network.possible() else None
            etcd = stack.enter_context(_etcd(net))
            for number, stage in enumerate(chosen):
                self._position = f"{number + 1}/{len(chosen)}"
                cluster = functools.partial(self._stage, stage, f"bench{number}", etcd, net)
                self._guarded(stage, "cluster", cluster)

    def _stage(self, stage: Stage, scope: str, etcd: EtcdServer, net: network.Network | None) -> None:
        wanted = [scenarios.fault(name) for name in stage.scenarios if self._asked(name)]
        # Only where something is cut: a bridge in between would be one more thing to explain.
        cut = net if any(fault.needs_network for fault in wanted) else None
        cluster = BenchCluster(
            stage.program,
            stage.timing,
            fsync=stage.fsync,
            etcd=etcd,
            scope=scope,
            network=cut,
            patroni_python=self._python,
        )
        with scenarios.ending(cluster):
            self._quiet.wait()
            started_s = scenarios.start_to_streaming(cluster)
            self._say(stage, f"all streaming after {started_s:.2f} s")
            self._keep(stage, "start", {"start_s": started_s})
            if stage.idle_s and self._asked("idle"):
                self._idle(stage, cluster)
            for fault in wanted:
                if fault.needs_network and cut is None:
                    self._say(stage, f"{fault.title}: left out, network namespaces need root")
                    continue
                for number in range(stage.rounds(self._arguments.repetitions)):
                    scenarios.healthy(cluster)  # else what follows measures nothing: the stage ends
                    self._quiet.wait()
                    action = functools.partial(self._round, stage, cluster, fault, number + 1)
                    self._guarded(stage, fault.name, action)

    def _asked(self, scenario: str) -> bool:
        return not self._arguments.only or scenario in self._arguments.only

    def _idle(self, stage: Stage, cluster: BenchCluster) -> None:
        cost = idle_cost(cluster, stage.idle_s)
        self._say(
            stage,
            f"idle, a node: {cost.cpu_s_per_min:.2f} s processor/min, {cost.pss_mib:.0f} MiB;"
            f" cluster: {cost.etcd_requests_per_min:.0f} etcd requests/min",
        )
        self.costs.append({**self._labels(stage), **asdict(cost)})

    def _round(self, stage: Stage, cluster: BenchCluster, fault: scenarios.Fault, number: int) -> None:
        load = os.getloadavg()[0]
        result = scenarios.measure(cluster, fault)
        more = " and still so" if result.open_ended else ""
        self._say(
            stage,
            f"{fault.title} {number}: gap {result.gap_s:.3f} s,"
            f" two writable {result.two_writable_s:.2f} s{more},"
            f" {result.lost} of {result.acknowledged} lost",
        )
        if self._arguments.phases:
            print("\n".join(f"      {mark}" for mark in result.marks), flush=True)
        self._keep(stage, fault.name, {**asdict(result), "load": round(load, 1)})

    def _guarded(self, stage: Stage, scenario: str, action: Callable[[], None]) -> None:
        """A scenario that fails is a finding, and the next one still runs."""
        try:
            action()
        except _FAILURES as error:
            text = f"{type(error).__name__}: {str(error).strip()[:400]}"
            self.failures.append({**self._labels(stage), "scenario": scenario, "error": text})
            self._say(stage, f"{scenario} FAILED: {text}")

    def _keep(self, stage: Stage, scenario: str, values: dict[str, Any]) -> None:
        self.samples.append({**self._labels(stage), "scenario": scenario, **values})

    @staticmethod
    def _labels(stage: Stage) -> dict[str, Any]:
        return {"program": stage.program, "timing": str(stage.timing), "fsync": stage.fsync}

    def _say(self, stage: Stage, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        print(f"{minutes:2}:{seconds:02} [{self._position}] {stage}: {text}", flush=True)

    def as_data(self) -> dict[str, Any]:
        return {
            "machine": report.machine(self._python, Path(self._arguments.directory)),
            "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
            "took_s": round(time.monotonic() - self._begun),
            "repetitions": self._arguments.repetitions,
            "samples": self.samples,
            "costs": self.costs,
            "failures": self.failures,
        }


def _etcd(net: network.Network | None) -> EtcdServer:
    """One server for the whole run; nodes in namespaces reach it over the bridge."""
    if net is None:
        return EtcdServer()
    port = free_port()
    reached = f"http://{net.host}:{port}"
    arguments = (
        f"--listen-client-urls=http://127.0.0.1:{port},{reached}",
        f"--advertise-client-urls={reached}",
    )
    return EtcdServer(client_port=port, extra_args=arguments)


if __name__ == "__main__":
    sys.exit(main())
