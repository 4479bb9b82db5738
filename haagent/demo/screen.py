"""What people see: on a terminal a live table below the events that scroll by, else plain lines.

Plain means one line per event or change, and no control codes: for pipes, files and CI logs. Both show the
same things; only the table that refreshes itself becomes a line whenever a role, state or timeline changes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

#: The writer is shown as stalled when no answer came for this long, seconds.
_STALL_S = 0.25


@dataclass(frozen=True)
class MemberRow:
    name: str
    role: str
    state: str
    timeline: int | None
    lag_bytes: int | None
    leads: bool
    port: int
    note: str = ""


@dataclass(frozen=True)
class Writing:
    """How the writer is doing. `silent_s`: since the last acknowledgement."""

    acknowledged: int
    rows_per_s: float
    silent_s: float
    last_refusal: str


@dataclass(frozen=True)
class ShownEvent:
    """An agent's event. `at`: ISO text, UTC."""

    at: str
    member: str
    rule: str
    reason: str
    failed: str = ""


class Screen:
    """Thread safe. `with` begins and ends the live table."""

    def __init__(self, color: bool = True) -> None:
        self._console = Console(no_color=None if color else True, highlight=False)
        self.is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._step = ""
        self._rows: Sequence[MemberRow] = ()
        self._writing: Writing | None = None
        self._last_line = ""

    def __enter__(self) -> Screen:
        if self.is_live:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._live is not None:
                with contextlib.suppress(OSError):
                    self._live.update(self._picture(), refresh=True)
                    self._live.stop()
                self._live = None

    # --- what is told -----------------------------------------------------------------------------

    def step(self, title: str) -> None:
        """A new part of the story begins."""
        with self._lock:
            self._step = title
            self._line(f"\n[bold]== {escape(title)}[/]", f"\n== {title}")

    def say(self, text: str) -> None:
        with self._lock:
            self._line(f"   {escape(text)}", f"   {text}")

    def result(self, text: str, good: bool) -> None:
        with self._lock:
            self._line(f"   [bold {'green' if good else 'yellow'}]{escape(text)}[/]", f"   {text}")

    def event(self, event: ShownEvent) -> None:
        """One line: time, member, rule, reason."""
        failed = f" (not done: {event.failed})" if event.failed else ""
        clock = local_clock(event.at)
        plain = f"{clock}  {event.member}  {event.rule:<24} {event.reason}{failed}"
        style = "dim" if event.failed else "default"
        rich = (
            f"[dim]{clock}[/]  [cyan]{escape(event.member)}[/]  [magenta]{escape(f'{event.rule:<24}')}[/] "
            f"[{style}]{escape(event.reason + failed)}[/]"
        )
        with self._lock:
            self._line(rich, plain)

    def update(self, rows: Sequence[MemberRow], writing: Writing | None) -> None:
        """The newest look at the members."""
        with self._lock:
            self._rows, self._writing = rows, writing
            if self._live is not None:
                with contextlib.suppress(OSError):
                    self._live.update(self._picture(), refresh=True)
                return
            line = "members: " + ", ".join(_member_text(row) for row in rows)
            if not self.is_live and line != self._last_line:
                self._last_line = line
                _write(f"   {line}")

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table that stays."""
        with self._lock:
            if self.is_live:
                table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
                for index, heading in enumerate(headings):
                    table.add_column(heading, justify="right" if index > 1 else "left")
                for row in rows:
                    table.add_row(*map(escape, row))
                self._console.print(table)
            else:
                _write(f"\n{title}\n{plain_table(headings, rows)}")

    def print(self, text: str, wrap: bool = True) -> None:
        """Text as it is; without `wrap` in whole lines, to be copied."""
        with self._lock:
            if self.is_live:
                self._console.print(escape(text), soft_wrap=not wrap)
            else:
                _write(text)

    # --- how it is drawn --------------------------------------------------------------------------

    def _line(self, rich: str, plain: str) -> None:
        if self.is_live:
            with contextlib.suppress(OSError):  # the terminal is gone: cleaning up goes on
                self._console.print(rich)
        else:
            _write(plain)

    def _picture(self) -> Group:
        table = Table(title=self._step, title_justify="left", title_style="bold", expand=False)
        for heading in ("member", "role", "state", "timeline", "lag", "port", ""):
            table.add_column(heading, justify="right" if heading in ("timeline", "lag", "port") else "left")
        for row in self._rows:
            table.add_row(*_cells(row), style="green" if row.leads else None)
        return Group(table, self._writing_line())

    def _writing_line(self) -> Text:
        writing = self._writing
        if writing is None:
            return Text("writer: not started")
        stalled = writing.silent_s > _STALL_S
        text = f"writer: {writing.acknowledged:,} rows acknowledged, {writing.rows_per_s:.0f}/s"
        if stalled:
            text += f", no answer for {writing.silent_s:.1f} s"
        return Text(text, style="bold red" if stalled else "default")


def _cells(row: MemberRow) -> list[str]:
    timeline = "" if row.timeline is None else str(row.timeline)
    lag = "" if row.lag_bytes is None else f"{row.lag_bytes:,} B"
    return [escape(cell) for cell in (row.name, row.role, row.state, timeline, lag, str(row.port), row.note)]


def _member_text(row: MemberRow) -> str:
    timeline = "" if row.timeline is None else f" timeline {row.timeline}"
    return f"{row.name} {row.role} {row.state}{timeline}"


def _write(text: str) -> None:
    """A reader that went away (`| head`) must not keep the demo from cleaning up."""
    with contextlib.suppress(OSError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def local_clock(at: str) -> str:
    """12:31:07.123 of an ISO time, in this machine's time zone."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return at


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by blanks."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
