"""The command: what was asked for, the exit code, and the cleaning up that follows whatever happened.

Signals only set a note that the story looks at wherever it waits, so no signal can interrupt the cleaning up.
Exit codes: 0 all went as it should, 1 it did not or could not start, 128 + signal number when stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcs.api import boottime
from haagent import __version__
from haagent.demo import bill
from haagent.demo.cluster import LOOP_WAIT_S, RETRY_TIMEOUT_S, TTL_S, Cluster, end_of, make_directory, remove
from haagent.demo.errors import DemoError, Failed, Stopped, Unable
from haagent.demo.machine import find_postgres, find_user, prepare
from haagent.demo.screen import Screen
from haagent.demo.story import Story
from haagent.demo.watch import Interrupt, Watch

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    try:
        if args.stop:
            return _stop(Path(args.stop))
        return _Run(args).run()
    except DemoError as fault:
        sys.stderr.write(f"haagent demo: {fault}\n")
        return 128 + fault.signum if isinstance(fault, Stopped) else 1


def _stop(directory: Path) -> int:
    left = end_of(directory)
    if left:
        sys.stderr.write(f"haagent demo: these processes cannot be ended: {left}\n")
    return 1 if left else 0


class _Run:
    """One run, from the look at the machine to the empty process list."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.screen = Screen(color=not args.no_color)
        self.interrupt = Interrupt()
        self.began_at = boottime()

    def run(self) -> int:
        with _noted(self.interrupt):
            user = find_user()
            directory = make_directory(self.args.dir, user)
            try:
                bin_dir = find_postgres(self.args.pg_bin_dir, directory, self.args.pypi_postgres)
                machine = prepare(user, bin_dir, directory)
                self.interrupt.check()
                cluster = Cluster(directory, machine)
            except BaseException:
                self._remove(directory)
                raise
            return self._with(cluster)

    def _with(self, cluster: Cluster) -> int:
        user = cluster.machine.user
        self.screen.print(f"haagent {__version__} demo in {cluster.directory}")
        self.screen.print(f"PostgreSQL from {cluster.machine.bin_dir}, run by user {user.name}")
        self.screen.print(
            f"ttl {TTL_S} s, loop_wait {LOOP_WAIT_S} s, retry_timeout {RETRY_TIMEOUT_S} s; fsync is off"
        )
        fault: DemoError | None = None
        story: Story | None = None
        done = False
        try:
            with self.screen, Watch(cluster, self.screen, self.interrupt) as watch:
                story = Story(cluster, watch, self.screen)
                story.run()
            done = True
        except DemoError as error:
            fault = error
        finally:
            # Also when we fail ourselves: nothing may be left running.
            kept = self.args.keep and not isinstance(fault, Stopped)
            left = [] if kept else cluster.stop_all()
        passed = done and story is not None and all(op.passed for op in story.operations) and not left
        self._tell(cluster, story, fault, left)
        if kept:
            self._tell_how_to_connect(cluster)
        elif passed or isinstance(fault, Stopped):
            self._remove(cluster.directory)
        if not passed and not isinstance(fault, Stopped):
            self.screen.print(f"logs: {cluster.directory}/*/agent.log, */data.haagent/*.log")
        if isinstance(fault, Stopped):
            return 128 + fault.signum
        return 0 if passed else 1

    def _remove(self, directory: Path) -> None:
        """A directory that was chosen is its owner's; only our own goes."""
        if not self.args.dir:
            remove(directory)

    # --- what is told at the end ------------------------------------------------------------------

    def _tell(self, cluster: Cluster, story: Story | None, fault: DemoError | None, left: list[int]) -> None:
        if isinstance(fault, Stopped):
            self.screen.print(f"\n{fault}: every process was ended")
        elif isinstance(fault, Failed):
            self.screen.result(f"FAILED: {fault}", False)
        if left:
            self.screen.print(f"these processes could not be ended: {left}")
        if story is None or fault is not None:
            return
        self.screen.table("The bill", bill.HEADINGS, bill.rows(story.operations))
        for operation in story.operations:
            self.screen.print(bill.line(operation))
        took_s = boottime() - self.began_at
        self.screen.print(
            f"{story.acknowledged:,} rows acknowledged in all; {story.unknown} rows were sent and never "
            f"answered, so they may be there or not. The demo took {took_s:.0f} s."
        )
        if self.args.json:
            self._write_json(cluster, story, took_s)

    def _write_json(self, cluster: Cluster, story: Story, took_s: float) -> None:
        result: dict[str, Any] = {
            "haagent": __version__,
            "passed": all(operation.passed for operation in story.operations),
            "settings": cluster.dynamic,
            "acknowledged": story.acknowledged,
            "unknown": story.unknown,
            "rows_by_member": story.same_rows,
            "operations": bill.as_json(story.operations),
            "took_s": round(took_s, 1),
        }
        try:
            Path(self.args.json).write_text(json.dumps(result, indent=2) + "\n")
        except OSError as fault:
            raise Unable(f"--json {self.args.json}: {fault.strerror}") from None

    def _tell_how_to_connect(self, cluster: Cluster) -> None:
        conninfo = cluster.target.dsn(**cluster.read_write)
        program = shlex.join([sys.executable, "-m", "haagent"])
        lines = [
            "\nThe cluster is left running.",
            f'  SQL          psql "{conninfo}"',
            f"  haagentctl   {program}.ctl -c {cluster.nodes[0].config_file} list",
            *(
                f"  {node.name}           {node.api_url}/patroni  {node.api_url}/dashboard"
                for node in cluster.nodes
            ),
            f"  end it       {program} demo --stop {cluster.directory}",
        ]
        self.screen.print("\n".join(lines), wrap=False)


@contextmanager
def _noted(interrupt: Interrupt) -> Iterator[None]:
    """Signals are noted while this lasts."""

    def note(signum: int, frame: object) -> None:
        interrupt.signum = interrupt.signum or signum

    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
