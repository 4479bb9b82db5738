"""What the demo does, in order: a cluster, rows, a switchover, a dead PostgreSQL, a dead node, the bill.

Theory. Each operation begins when everything streams and rows are acknowledged, and ends when that is so
again; in between the story only waits, for a row that was sent after the fault and acknowledged by the server
that should have taken over. What cannot be reached in time ends the story with a word about what was awaited.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from dcs.api import boottime
from haagent.demo.bill import NODE_LOSS, RESTART, SWITCHOVER, Bound, Load, Operation, settle, why_lost
from haagent.demo.cluster import CONNECTIONS, LOOP_WAIT_S, MAXIMUM_LAG_BYTES, ROWS_PER_S, TTL_S, Cluster
from haagent.demo.errors import Failed
from haagent.demo.evidence import TABLE
from haagent.demo.node import Node
from haagent.demo.screen import Screen
from haagent.demo.watch import Watch
from postgres_ctl.errors import PostgresUnavailable, QueryFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.libpq import Connection

#: For a step that takes a second or a few on an idle machine.
DEADLINE_S = 60.0
_SQL_S = 10.0
#: Rows acknowledged between two operations, as seconds of writing: so that people see it work.
_CALM_S = 1.0
_SWITCHOVER_S = 45.0

_CREATE = f"create table {TABLE} (id bigint primary key, connection int, at timestamptz default now())"


class Story:
    """The parts, in the order they are called."""

    def __init__(self, cluster: Cluster, watch: Watch, screen: Screen) -> None:
        self.cluster, self.watch, self.screen = cluster, watch, screen
        self.operations: list[Operation] = []
        self.acknowledged = self.unknown = 0
        self.same_rows: dict[str, int] = {}
        self.bound = Bound(MAXIMUM_LAG_BYTES, LOOP_WAIT_S, Load())

    def run(self) -> None:
        """All of it. Raises Failed, Stopped."""
        self.start_cluster()
        self.start_writer()
        self.switchover()
        self.kill_postgres()
        lost = self.kill_node()
        self.rejoin(lost)
        self.add_up()

    # --- beginning --------------------------------------------------------------------------------

    def start_cluster(self) -> None:
        first, *others = self.cluster.nodes
        self.screen.step(f"three agents start: {first.name} makes the cluster, the others clone it")
        first.start()
        self.watch.wait_for(self._primaries, DEADLINE_S, f"{first.name} leads")
        for node in others:
            node.start()
        self._wait_settled(len(others), "both standbys stream")

    def start_writer(self) -> None:
        self.screen.step(f"a process of its own writes {ROWS_PER_S} rows/s over {CONNECTIONS} connections")
        self._sql(_CREATE)
        self.cluster.start_writer()
        self._calm()

    # --- operations -------------------------------------------------------------------------------

    def switchover(self) -> None:
        old = self._primary()
        self.screen.step(f"switchover: {old.name} hands over (POST {old.api_url}/switchover)")
        operation = self._begin(SWITCHOVER, old)
        answer: list[str] = []
        asking = threading.Thread(target=_ask_switchover, args=(old, answer), daemon=True)
        asking.start()
        self.watch.wait_for(lambda: answer, _SWITCHOVER_S + 5, "the answer to the switchover")
        self.screen.say(f"answer: {answer[0]}")
        self._wait_written_elsewhere(operation, old)
        self._end(operation, standbys=2)
        operation.why = f"planned: {operation.new} had everything before {old.name} gave up the key"

    def kill_postgres(self) -> None:
        old = self._primary()
        self.screen.step(f"kill -9: PostgreSQL's first process on {old.name}")
        operation = self._begin(RESTART, old)
        killed = old.kill_postmaster()
        self.screen.say(f"postmaster {killed} of {old.name} is gone")
        self.watch.wait_for(self._new_postmaster(old, killed), DEADLINE_S, "a primary after the kill")
        self._wait_written(operation, boottime())
        self._end(operation, standbys=2)
        if operation.new == old.name:
            operation.why = "started again in place on the WAL it had written; the lease was kept"
        else:
            operation.why = f"{operation.new} took over from {old.name}"

    def kill_node(self) -> Node:
        """Returns the node that is gone."""
        old = self._primary()
        self.screen.step(f"node loss: agent, guardian and PostgreSQL of {old.name}, kill -9 at once")
        operation = self._begin(NODE_LOSS, old)
        operation.must_keep_all = False
        self.bound = Bound(MAXIMUM_LAG_BYTES, LOOP_WAIT_S, self.watch.load())
        old.kill_all()
        self.screen.say(f"{old.name} is gone; its lease ends at most {TTL_S} s after its last renewal")
        self._wait_written_elsewhere(operation, old)
        self._end(operation, standbys=1)
        operation.most_rows = self.bound.rows
        took_over, last_seen = self._switch_point(), self.bound.load.wal_end
        if took_over is not None and last_seen is not None:
            self.screen.say(
                f"{operation.new} took over at WAL position {took_over}; "
                f"{old.name} was seen at {last_seen} just before it was lost"
            )
        return old

    def rejoin(self, node: Node) -> None:
        self.screen.step(f"{node.name} comes back")
        node.start()
        self._wait_settled(2, f"{node.name} streams again")

    # --- the end ----------------------------------------------------------------------------------

    def add_up(self) -> None:
        """Stop the writer and compare ids."""
        self.screen.step("the writer stops; its acknowledged ids are compared with the table")
        self.cluster.stop_writer()
        notes = self.watch.notes()
        held = {int(str(row[0])) for row in self._sql(f"select id from {TABLE}")}  # noqa: S608
        settle(self.operations, notes.acks, held)
        for operation in self.operations:
            operation.why = operation.why or why_lost(operation, self.bound)
        self.acknowledged, self.unknown = len(notes.acks), len(notes.unknown)
        for node in self.cluster.nodes:
            self.watch.wait_for(lambda node=node: self._same(node, held), DEADLINE_S, f"{node.name} has them")  # type: ignore[misc]
        names = ", ".join(self.same_rows)
        self.screen.say(f"{names} hold the same {len(held):,} rows")

    def _same(self, node: Node, held: set[int]) -> bool:
        try:
            rows = self._sql(f"select count(*), sum(id) from {TABLE}", node)  # noqa: S608
        except Failed:
            return False
        self.same_rows[node.name] = int(str(rows[0][0]))
        return rows[0] == (str(len(held)), str(sum(held)))

    # --- parts of operations ----------------------------------------------------------------------

    def _begin(self, name: str, old: Node) -> Operation:
        operation = Operation(name, boottime(), old.name)
        self.operations.append(operation)
        return operation

    def _end(self, operation: Operation, standbys: int) -> None:
        self._wait_settled(standbys, "the standbys stream again")
        operation.ended_at = boottime()
        settle([operation], self.watch.notes().acks, set())
        gap = operation.gap_s
        self.screen.result(f"{operation.new} is primary; longest time without an answer: {gap:.2f} s", True)
        self._calm()
        operation.ended_at = boottime()

    def _wait_settled(self, standbys: int, what: str) -> None:
        asked_at = boottime()
        self.watch.wait_for(
            lambda: self.watch.view.at > asked_at and self.watch.view.is_settled(standbys), DEADLINE_S, what
        )

    def _calm(self) -> None:
        """About a second of writing."""
        began_at, rows = boottime(), int(ROWS_PER_S * _CALM_S * 0.8)
        self.watch.wait_for(
            lambda: len(self.watch.notes().since(began_at)) >= rows, DEADLINE_S, f"{rows} acknowledged rows"
        )

    def _wait_written_elsewhere(self, operation: Operation, old: Node) -> None:
        """A row sent after the beginning and acknowledged by another server than `old`."""

        def elsewhere() -> int | None:
            acks = self.watch.notes().since(operation.began_at)
            return next((ack.port for ack in acks if ack.port != old.sql_port), None)

        port = self.watch.wait_for(elsewhere, DEADLINE_S, f"a row acknowledged by another than {old.name}")
        assert port is not None
        operation.new = self.cluster.node_at(port).name

    def _wait_written(self, operation: Operation, since: float) -> None:
        acks = self.watch.wait_for(lambda: self.watch.notes().since(since), DEADLINE_S, "an acknowledged row")
        operation.new = self.cluster.node_at(acks[-1].port).name

    def _new_postmaster(self, old: Node, killed: int) -> Any:
        """A condition: somebody is primary, and not by the postmaster that was killed."""

        def is_there() -> bool:
            names = self.watch.view.primaries()
            return bool(names) and (names != [old.name] or old.postmaster_pid() not in (None, killed))

        return is_there

    # --- asking -----------------------------------------------------------------------------------

    def _primary(self) -> Node:
        names = self.watch.wait_for(self._primaries, DEADLINE_S, "a primary")
        return next(node for node in self.cluster.nodes if node.name == names[0])

    def _primaries(self) -> list[str]:
        return self.watch.view.primaries()

    def _switch_point(self) -> Lsn | None:
        """Where the newest timeline began, as the history tells."""
        try:
            rows = json.loads(self._primary().rest("/history")[1])
            return Lsn(int(rows[-1][1]))
        except (OSError, ValueError, IndexError, TypeError):
            return None

    def _sql(self, sql: str, node: Node | None = None) -> list[tuple[str | None, ...]]:
        """One statement on the primary, or on `node`. Raises Failed."""
        words = (
            self.cluster.read_write
            if node is None
            else {"port": str(node.sql_port), "host": str(node.directory)}
        )
        try:
            session = Connection.open(self.cluster.target, _SQL_S, application_name="demo", **words)
            try:
                return session.query(sql, _SQL_S)
            finally:
                session.close()
        except (PostgresUnavailable, QueryFailed) as fault:
            raise Failed(f"{sql.split(' ', 1)[0]}: {fault}") from None


def _ask_switchover(node: Node, answer: list[str]) -> None:
    try:
        status, text = node.rest("/switchover", {"leader": node.name}, _SWITCHOVER_S)
        answer.append(f"{status} {text}")
    except OSError as fault:
        answer.append(f"none: {fault}")
