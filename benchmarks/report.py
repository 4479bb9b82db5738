"""From the figures of a run to the table and docs/benchmarks.md.

`python -m benchmarks.report` writes the document again from benchmarks/failover.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import network
from benchmarks.plan import NODE_LOSS, START_S, gap_target_s
from benchmarks.programs import PATRONI_MINIMUM, SHORT, Timing
from benchmarks.scenarios import APPLICATION_POOL, FAULTS, WATCH_S
from tests.support.cluster import REPOSITORY
from tests.support.versions import bin_dir

UNKNOWN = "unknown"
Data = Mapping[str, Any]
_TITLES = {"start": "start to all replicas streaming"} | {fault.name: fault.title for fault in FAULTS}


# --- rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One scenario under one setting."""

    scenario: str
    program: str
    timing: str
    fsync: bool
    rounds: int
    median_s: float
    worst_s: float
    target_s: float | None
    two_writable_s: float | None
    open_ended: bool
    lost: int
    acknowledged: int

    @property
    def slow(self) -> bool:
        return self.target_s is not None and self.worst_s > self.target_s

    @property
    def missed(self) -> bool:
        """Longer than promised, two writable servers, or a planned change that lost something."""
        return self.slow or bool(self.two_writable_s) or (self.scenario == "switchover" and self.lost > 0)

    def brief(self) -> str:
        two = self.two_writable_s
        many = "" if not two else f"; two writable {'> ' if self.open_ended else ''}{two:.1f}"
        return f"{_seconds(self.median_s)} ({_seconds(self.worst_s)}){many}"

    def cells(self) -> tuple[str, ...]:
        two = "" if self.two_writable_s is None else f"{self.two_writable_s:.2g}"
        verdict = "missed" if self.missed else "met"
        return (
            _TITLES[self.scenario],
            self.program,
            self.timing,
            "on" if self.fsync else "off",
            str(self.rounds),
            _seconds(self.median_s),
            _seconds(self.worst_s),
            "" if self.target_s is None else f"{self.target_s:g}",
            f"> {two}" if self.open_ended else two,
            "" if self.two_writable_s is None else str(self.lost),
            verdict if self.target_s is not None or self.two_writable_s is not None else "",
        )


def _seconds(value_s: float) -> str:
    """Milliseconds where they decide."""
    return f"{value_s:.3f}" if value_s < 1 else f"{value_s:.2f}"


HEAD = (
    "scenario",
    "program",
    "ttl/loop/retry",
    "fsync",
    "rounds",
    "median",
    "worst",
    "target",
    "two writable",
    "lost",
    "verdict",
)


def rows(data: Data) -> list[Row]:
    groups: dict[tuple[str, str, str, bool], list[Data]] = {}
    for sample in data["samples"]:
        key = (sample["scenario"], sample["program"], sample["timing"], sample["fsync"])
        groups.setdefault(key, []).append(sample)
    order = list(_TITLES)
    return [_row(*key, group) for key, group in sorted(groups.items(), key=lambda kv: _order(order, kv[0]))]


def _order(scenarios: list[str], key: tuple[Any, ...]) -> tuple[Any, ...]:
    scenario, program, timing, fsync = key
    return scenarios.index(scenario), program, int(timing.split("/")[0]), not fsync


def _row(scenario: str, program: str, timing: str, fsync: bool, group: list[Data]) -> Row:
    starting = scenario == "start"
    values = [sample["start_s" if starting else "gap_s"] for sample in group]
    target_s = START_S if starting else gap_target_s(scenario, Timing(*map(int, timing.split("/"))))
    return Row(
        scenario,
        program,
        timing,
        fsync,
        rounds=len(group),
        median_s=statistics.median(values),
        worst_s=max(values),
        target_s=target_s,
        two_writable_s=None if starting else max(sample["two_writable_s"] for sample in group),
        open_ended=any(sample.get("open_ended") for sample in group),
        lost=sum(sample.get("lost") or 0 for sample in group),
        acknowledged=sum(sample.get("acknowledged") or 0 for sample in group),
    )


def missed(data: Data) -> list[Row]:
    """haagent's rows that miss a target."""
    return [row for row in rows(data) if row.program == "haagent" and row.missed]


def _aligned(lines: Iterable[tuple[str, ...]]) -> list[str]:
    lines = list(lines)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def table(data: Data) -> str:
    """For a terminal."""
    lines = _aligned([HEAD, *(row.cells() for row in rows(data))])
    costs = _aligned([COST_HEAD, *(_cost_cells(cost) for cost in data["costs"])]) if data["costs"] else []
    failed = [f"FAILED {f['program']} {f['timing']} {f['scenario']}: {f['error']}" for f in data["failures"]]
    return "\n".join([*lines, "", *costs, *failed])


# --- document ---------------------------------------------------------------------------------------

COST_HEAD = ("program", "ttl/loop/retry", "processor s/min a node", "PSS MiB a node", "etcd requests/min")


def _cost_cells(cost: Data) -> tuple[str, ...]:
    return (
        cost["program"],
        cost["timing"],
        f"{cost['cpu_s_per_min']:.2f}",
        f"{cost['pss_mib']:.0f}",
        f"{cost['etcd_requests_per_min']:.0f}",
    )


def _markdown(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *lines))


def _prose(text: str) -> str:
    """Paragraphs in lines of decent length; indented ones as they are."""
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(
        part if part.startswith(" ") else textwrap.fill(part, 108, break_on_hyphens=False)
        for part in paragraphs
    )


def _section(data: Data, title: str, scenarios: tuple[str, ...], note: str) -> str:
    chosen = [row for row in rows(data) if row.scenario in scenarios]
    if not chosen:
        return ""
    return f"## {title}\n\n{_prose(note)}\n\n{_markdown(HEAD, (row.cells() for row in chosen))}\n"


def _summary(data: Data) -> str:
    """The two programs side by side, with fsync on."""
    columns = (("haagent", PATRONI_MINIMUM), ("patroni", PATRONI_MINIMUM), ("haagent", SHORT))
    found = {(row.scenario, row.program, row.timing): row for row in rows(data) if row.fsync}
    lines = []
    for scenario, title in _TITLES.items():
        chosen = [found.get((scenario, program, str(timing))) for program, timing in columns]
        if any(chosen):
            lines.append((title, *(row.brief() if row else "" for row in chosen)))
    head = ("", *(f"{program} {timing}" for program, timing in columns))
    return f"## In short\n\n{_prose(_SUMMARY_NOTE)}\n\n{_markdown(head, lines)}\n" if lines else ""


def document(data: Data) -> str:
    """docs/benchmarks.md."""
    others = tuple(fault.name for fault in FAULTS if fault.everywhere and fault.name not in NODE_LOSS)
    parts = [
        "# Benchmarks\n",
        _prose(_INTRODUCTION.format(minutes=round(data["took_s"] / 60), date=data["measured_at"][:10]))
        + "\n",
        _summary(data),
        _machine_section(data),
        _section(data, "Planned and small", ("switchover", "postmaster"), _GAP_NOTE),
        _section(data, "Node loss", NODE_LOSS, _LOSS_NOTE.format(how=network.HOW, pool=APPLICATION_POOL)),
        _section(data, "Agents and guardians", others, _FAULT_NOTE.format(watch=f"{WATCH_S:g}")),
        _section(data, "Start", ("start",), _START_NOTE),
        f"## Idle\n\n{_prose(_IDLE_NOTE)}\n\n{_markdown(COST_HEAD, map(_cost_cells, data['costs']))}\n"
        if data["costs"]
        else "",
        _missed_section(data),
        "## Repeat\n",
        _prose(_REPEAT) + "\n",
    ]
    return "\n".join(part for part in parts if part)


def _machine_section(data: Data) -> str:
    lines = [f"- {name}: {value}" for name, value in data["machine"].items()]
    load = [sample["load"] for sample in data["samples"] if "load" in sample] or [0.0]
    lines.append(
        f"- load average before the rounds: median {statistics.median(load):.1f}, worst {max(load):.1f}"
    )
    again = data.get("measured_again", [])
    if again:
        lines.append(f"- measured again after that run, and put in its place: {'; '.join(again)}")
    return "## Measured on\n\n" + "\n".join(line for line in lines if line) + "\n"


def _idle_section(data: Data) -> str:
    lines = [_cost_cells(cost) for cost in data["costs"]]
    return f"## Idle\n\n{_prose(_IDLE_NOTE)}\n\n{_markdown(COST_HEAD, lines)}\n" if lines else ""


def _missed_section(data: Data) -> str:
    lines = [
        f"- {_TITLES[row.scenario]}, {row.timing}, fsync {'on' if row.fsync else 'off'}:"
        f" {_seconds(row.worst_s)} s"
        for row in missed(data)
    ]
    lines += [
        f"- {_TITLES.get(f['scenario'], f['scenario'])}, {f['program']} {f['timing']}: {f['error']}"
        for f in data["failures"]
    ]
    return "## Missed\n\n" + "\n".join(lines) + "\n" if lines else ""


_INTRODUCTION = """
haagent beside Patroni from PyPI: same machine, etcd, PostgreSQL, YAML and clients, one run of {minutes}
minutes on {date}. This file is written by that run (`make bench`); the figures behind it are in
`benchmarks/failover.json`.

All times are seconds. *median* and *worst* are write gaps: the longest time between two acknowledged
inserts of a client that inserts every 5 ms over a connection string naming all three servers, with
`target_session_attrs=read-write`. *two writable* is how long two servers acknowledged writes at the same
time (worst round; `>`: still so when we stopped looking), *lost* how many acknowledged writes of all rounds
were missing afterwards: replication is asynchronous, so only a planned change promises none. A verdict
counts the worst round against the target, and any time with two writable servers as missed.
"""

_SUMMARY_NOTE = """Write gaps in seconds, median (worst), with fsync on. Columns: program and
`ttl/loop_wait/retry_timeout`; 20/2/3 is the fastest that Patroni permits, 3/1/1 the fastest haagent does."""

_GAP_NOTE = """Nothing runs beside the cluster but that one client. Switchovers go to a named candidate, by
`POST /switchover`. Targets: 0.3 s for a switchover, 0.5 s for a postmaster killed with SIGKILL."""

_LOSS_NOTE = """Target: the lease (`ttl`) and 1 s. *Killed*: agent, guardian and PostgreSQL of the primary
get SIGKILL at once. *Packets dropped*: every node lives in a network namespace on a bridge, and the primary
is cut off by {how}; it notices nothing itself. Clients on every server write too, those of the primary
inside its namespace, which is why the writes it took until its fence are lost. The application has {pool}
sessions (one that looks for the writable server waits a second at a silent address) with
`tcp_user_timeout` of 0.5 to 1.25 s, and names the lost server last; its gap ends with the first session
that writes again."""

_FAULT_NOTE = """Clients write on every server, through sessions from before the fault and new ones; one
clock orders their acknowledgements. Watched until {watch} s after the successor's first write (or the lease
and {watch} s where none is needed). *Agent killed* and *frozen* leave PostgreSQL running. Patroni has no
guardian to kill."""

_START_NOTE = """All three agents started at once with empty directories, until one leads and two stream.
Target: 5 s."""

_IDLE_NOTE = """Agent and guardian of a node, without PostgreSQL, over half a minute; requests are the
messages etcd received from the whole cluster of three."""

_REPEAT = """
    make bench                                                    # everything, into this file
    make bench ARGS='--agent haagent --only switchover --phases --no-document'

As root: agents then run as `postgres`, and nodes can be cut off in network namespaces (without root that
scenario is left out, and said so). Patroni is installed into `/opt/haagent/patroni-venv` (`--patroni-venv`)
with Debian's python. `--phases` prints what agents and servers logged in each gap. `--help` lists the rest.
"""


# --- the machine ------------------------------------------------------------------------------------


def machine(patroni_python: Path, directory: Path) -> dict[str, str]:
    """What the figures depend on."""
    cpus = re.findall(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory_kb = int(re.findall(r"^MemTotal:\s+(\d+)", _read("/proc/meminfo"), re.MULTILINE)[0])
    patroni_version = "import patroni.version; print(patroni.version.__version__)"
    haagent_version = "import haagent; print(haagent.__version__)"
    return {
        "machine": f"{len(cpus)} cores {(cpus or [platform.machine()])[0]}, {memory_kb / 2**20:.0f} GiB",
        "system": f"Linux {platform.release()}, {_os_name()}",
        "haagent": f"{_output(sys.executable, '-c', haagent_version)}, commit {_commit()}",
        "Patroni": _output(str(patroni_python), "-c", patroni_version),
        "PostgreSQL": _output(f"{bin_dir()}/postgres", "--version").removeprefix("postgres (PostgreSQL) "),
        "etcd": _output("etcd", "--version").splitlines()[0].removeprefix("etcd Version: ") + ", one server",
        "python": platform.python_version(),
        "client": f"psycopg {psycopg.__version__}",
        "data directories": f"on {_file_system(directory)}; etcd's on a RAM disk where there is one",
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _os_name() -> str:
    names = re.findall(r'^PRETTY_NAME="(.*)"$', _read("/etc/os-release"), re.MULTILINE)
    return names[0] if names else UNKNOWN


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() or UNKNOWN


def _commit() -> str:
    changed = _output("git", "status", "--porcelain", "haagent", "dcs", "postgres_ctl") != UNKNOWN
    return _output("git", "rev-parse", "--short", "HEAD") + (" and local changes" if changed else "")


def _file_system(directory: Path) -> str:
    """Kind of the file system that holds `directory`: the longest mount point above it."""
    best, kind = "", UNKNOWN
    for line in _read("/proc/mounts").splitlines():
        _, point, this_kind, *_ = line.split()
        inside = os.path.commonpath([point, directory.resolve()]) == point
        if inside and len(point) >= len(best):
            best, kind = point, this_kind
    return kind


def _main() -> None:
    here = Path(__file__).resolve().parent
    data = json.loads((here / "failover.json").read_text())
    (REPOSITORY / "docs" / "benchmarks.md").write_text(document(data))


if __name__ == "__main__":
    _main()
