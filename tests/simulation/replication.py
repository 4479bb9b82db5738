"""Streaming replication: walreceiver, walsender, and who has to have a commit before it is acknowledged.

Theory. A `Link` is one walreceiver with its walsender. What the upstream has made durable travels in batches:
one event per batch and standby, however many records. PostgreSQL's checks see timeline numbers and LSNs
only; when they let two histories onto one another, the standby's copy is mixed, and only the truth knows
(H14, H15).

A link that is cut stays, on both sides, until WAL_TIMEOUT_S without a word have passed.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from postgres_ctl.facts import WalSender
from tests.simulation.wal import FIRST_LSN, SEGMENT_BYTES, Record, lsn_at

if TYPE_CHECKING:
    from tests.simulation.engine import Timer
    from tests.simulation.postgres import Server

#: wal_retrieve_retry_interval, seconds.
RETRY_S = 5.0
#: wal_receiver_timeout and wal_sender_timeout, seconds.
WAL_TIMEOUT_S = 60.0
#: How often the two look whether the other is still there, seconds.
KEEPALIVE_S = 10.0
#: A lost packet is sent again after this, seconds.
RETRANSMIT_S = 1.0


def segment_start(lsn: int) -> int:
    """Streaming is asked for from here: PostgreSQL never begins inside a segment."""
    return lsn - lsn % SEGMENT_BYTES


class Link:
    """One walreceiver and its walsender. Positions are counts of records, as the upstream knows them."""

    __slots__ = (
        "flush", "heard", "name", "open", "pending", "pid", "replay", "sent", "slot", "source", "standby",
        "streaming", "upstream", "upstream_gone",
    )  # fmt: skip

    def __init__(self, upstream: Server, standby: Server, name: str, slot: str | None, pid: int) -> None:
        self.upstream, self.standby, self.name, self.slot, self.pid = upstream, standby, name, slot, pid
        self.open, self.pending, self.upstream_gone, self.streaming = True, False, False, False
        self.sent = self.flush = self.replay = 0
        self.source: list[Record] = []
        self.heard = upstream.engine.now
        upstream.engine.after(KEEPALIVE_S, self._keepalive)

    # --- the way down -----------------------------------------------------------------------------

    def poke(self) -> None:
        """The upstream has more, or may have."""
        if self.open and not self.pending and not self.upstream_gone:
            self._send()

    def _send(self) -> None:
        if self.upstream.held_up:
            self.pending = False
            return
        dd = self.upstream.dd
        self.sent, self.source = dd.durable, dd.records
        self.pending = True
        delay_s = self.upstream.network.latency(self.upstream.endpoint, self.standby.endpoint)
        if delay_s is None:
            self.standby.later(RETRANSMIT_S, self._send_again)
        else:
            self.standby.later(delay_s, self._arrive)

    def _send_again(self) -> None:
        if self.open and not self.upstream_gone:
            self._send()

    def _arrive(self) -> None:
        up, standby = self.upstream, self.standby
        if not self.open or standby.receiver.link is not self:
            return
        self.pending = False
        self.heard = standby.engine.now
        standby.received(self.source, self.sent)
        self.reply()
        if self.upstream_gone:
            self.close()
        elif up.dd.durable > self.sent:
            self._send()

    # --- the way up -------------------------------------------------------------------------------

    def reply(self) -> None:
        """The standby tells what it has. Nobody waiting for it, it is taken as told at once."""
        up, standby = self.upstream, self.standby
        if self.upstream_gone or not self.open or standby.receiver.link is not self:
            return
        delay_s = up.network.latency(standby.endpoint, up.endpoint)
        flush, replay = min(self.sent, standby.dd.durable), standby.replay
        if delay_s is None:
            standby.later(RETRANSMIT_S, self.reply)
        elif up.sessions.waiting or up.phase == "stopping":
            up.later(delay_s, partial(self._told, flush, replay))
        else:
            self._told(flush, replay)

    def _told(self, flush: int, replay: int) -> None:
        if not self.open:
            return
        self.flush, self.replay = flush, replay
        self.streaming = True
        slot = self.upstream.dd.slots.get(self.slot) if self.slot else None
        if slot is not None:
            slot.restart = flush
        self.upstream.standby_has_more()

    # --- the end ----------------------------------------------------------------------------------

    def upstream_ends(self) -> None:
        """The walsender is gone: the standby hears of it when the network lets it."""
        self.upstream_gone = True
        delay_s = self.upstream.network.latency(self.upstream.endpoint, self.standby.endpoint)
        if delay_s is not None and self.upstream.host.powered and not self.pending:
            self.standby.later(delay_s, self.close)

    def standby_ends(self) -> None:
        """The walreceiver is gone: the walsender stays until it hears of it."""
        if self.standby.receiver.link is self:
            self.standby.receiver.link = None
        delay_s = self.upstream.network.latency(self.standby.endpoint, self.upstream.endpoint)
        if delay_s is not None and self.standby.host.powered:
            self.upstream.later(delay_s, self.close)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        if self in self.upstream.walsenders:
            self.upstream.walsenders.remove(self)
            self.upstream.standby_has_more()
        if self.standby.receiver.link is self:
            self.standby.receiver.link = None
            self.standby.dirty()
            self.standby.receiver.look()

    def _keepalive(self) -> None:
        up, standby, now = self.upstream, self.standby, self.upstream.engine.now
        if not self.open:
            return
        both_run = not (up.held_up or standby.held_up)
        if both_run and up.land.connected(up.endpoint, standby.endpoint):
            self.heard = now
            if self.upstream_gone or standby.gone or standby.receiver.link is not self:
                self.close()
                return
        if now >= self.heard + WAL_TIMEOUT_S:
            self.close()
            return
        up.engine.after(KEEPALIVE_S, self._keepalive)

    # --- as shown ---------------------------------------------------------------------------------

    def row(self, sync_state: str, priority: int) -> WalSender:
        """In pg_stat_replication. Made without the slow constructor of a frozen class."""
        flush = lsn_at(self.flush) if self.flush else None
        row = object.__new__(WalSender)
        row.__dict__.update(
            pid=self.pid,
            usename="replicator",
            application_name=self.name,
            client_addr=self.standby.host.name,
            state="streaming" if self.streaming else "catchup",
            sync_state=sync_state,
            sync_priority=priority,
            sent_lsn=lsn_at(self.sent) if self.sent else None,
            write_lsn=flush,
            flush_lsn=flush,
            replay_lsn=lsn_at(self.replay) if self.replay else None,
        )
        return row


class Receiver:
    """The walreceiver's side of a standby: whom to connect to, and when."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.link: Link | None = None
        self.fault = ""
        self._attempted = -RETRY_S
        self._timer: Timer | None = None

    def look(self, at_once: bool = False) -> None:
        """Connect when it is time. `at_once`: a reload, which waits for no interval."""
        server = self.server
        if self.link is not None or not server.wants_stream():
            return
        if self._timer is not None:
            self._timer.cancel()
        wait_s = 0.0 if at_once else max(0.0, self._attempted + RETRY_S - server.engine.now)
        self._timer = server.later(wait_s, self._attempt)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.link is not None:
            self.link.standby_ends()

    def _attempt(self) -> None:
        server = self.server
        self._timer = None
        if self.link is not None or not server.wants_stream():
            return
        self._attempted = server.engine.now
        found = _upstream(server)
        if isinstance(found, str):
            self.fault = found
            self.look()
            return
        self.fault = ""
        self.link = Link(found, server, server.settings.application_name, server.slot, found.host.new_pid())
        server.stream_begins(found)
        found.walsenders.append(self.link)
        found.dirty()
        self.link.poke()


def _upstream(server: Server) -> Server | str:
    """The server that would stream to `server` now, or why it does not: PostgreSQL's own checks."""
    land, target = server.land, server.upstream_address
    host = land.host_at(target)
    up = host.server if host is not None else None
    if host is None or not land.connected(server.endpoint, host.endpoint) or not host.powered:
        return "could not connect"
    if up is None or up.door() != "open":
        return "connection refused"
    if up.dd.system_id != server.dd.system_id:
        return "database system identifier differs"
    if server.slot is not None:
        if server.slot not in up.dd.slots:
            return f"replication slot {server.slot} does not exist"
        if any(link.slot == server.slot for link in up.walsenders):
            return f"replication slot {server.slot} is active"
    return _histories(server, up) or up


def _histories(server: Server, up: Server) -> str | None:
    """Timelines and LSNs fit, as far as PostgreSQL looks; the upstream's history files are fetched."""
    mine, theirs, end = server.dd.timeline, up.timeline, server.dd.end
    if theirs < mine:
        return f"highest timeline {theirs} of the primary is behind recovery timeline {mine}"
    _fetch_histories(server, up, range(mine, theirs + 1))
    if theirs > mine:
        history = server.dd.history(theirs)
        if history is None:
            return f"no history of timeline {theirs}"
        switch = next((s for s in history if s.timeline == mine), None)
        if switch is None:
            return f"new timeline {theirs} is not a child of database system timeline {mine}"
        if end > switch.switch_lsn.value:
            return f"new timeline {theirs} forked off timeline {mine} before current recovery point"
    elif up.dd.end < segment_start(end):
        return "requested starting point is ahead of the WAL flush position of this server"
    return None


def _fetch_histories(server: Server, up: Server, timelines: range) -> None:
    """Those that are not there: a file that is, be it only a place holder, stays as it is."""
    for timeline in timelines:
        known = up.dd.histories.get(timeline)
        if known is not None and timeline not in server.dd.histories:
            server.dd.histories[timeline] = known
            server.dd.history_times[timeline] = server.engine.now


def first_received(end: int) -> int:
    """What pg_last_wal_receive_lsn() says just after streaming was asked for."""
    return max(FIRST_LSN, segment_start(end))


# --- synchronous_standby_names ----------------------------------------------------------------------


class SyncRule(NamedTuple):
    """`FIRST wanted (names)` by order, or `ANY wanted (names)`."""

    by_order: bool
    wanted: int
    names: tuple[str, ...]

    def priority(self, name: str) -> int:
        """From 1 on; 0 for a standby that is not meant."""
        for place, listed in enumerate(self.names, 1):
            if listed in ("*", name.lower()):
                return place
        return 0


_SYNC = re.compile(r"^\s*(?:(any|first)?\s*(\d+)\s*\((.*)\)|(.*))\s*$", re.IGNORECASE | re.DOTALL)


def parse_sync(text: str) -> SyncRule | None:
    """synchronous_standby_names as PostgreSQL reads it; None when it is empty."""
    match = _SYNC.match(text)
    assert match is not None, text
    inner = match[3] if match[2] else match[4]
    names = tuple(name.strip().strip('"').lower() for name in inner.split(",") if name.strip())
    if not names:
        return None
    by_order = (match[1] or "first").lower() == "first"
    return SyncRule(by_order, int(match[2] or 1), names if by_order else tuple(names))


def sync_states(rule: SyncRule | None, links: list[Link]) -> list[tuple[str, int]]:
    """sync_state and sync_priority of each link."""
    if rule is None:
        return [("async", 0)] * len(links)
    priorities = [rule.priority(link.name) for link in links]
    if not rule.by_order:
        return [("quorum", 1) if p else ("async", 0) for p in priorities]
    chosen = _first(rule, links)
    return [
        ("sync" if link in chosen else "potential", p) if p else ("async", 0)
        for link, p in zip(links, priorities, strict=True)
    ]


def _first(rule: SyncRule, links: list[Link]) -> list[Link]:
    able = [link for link in links if link.streaming and rule.priority(link.name)]
    return sorted(able, key=lambda link: rule.priority(link.name))[: rule.wanted]


def synced(rule: SyncRule, links: list[Link]) -> int:
    """So many records are flushed wherever the rule wants them."""
    if rule.by_order:
        chosen = _first(rule, links)
        return min(link.flush for link in chosen) if len(chosen) >= rule.wanted else 0
    able = sorted((link.flush for link in links if link.streaming and rule.priority(link.name)), reverse=True)
    return able[rule.wanted - 1] if len(able) >= rule.wanted else 0
