"""One run of haagentctl: its configuration, its stores, its members, and the options commands share.

`Session` is made once per process from the global options and handed to each command by click. It opens
nothing before it is asked to, so that `--help` and `version` need no store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from haagent.ctl.errors import CtlError

if TYPE_CHECKING:
    from dcs.api import Dcs
    from dcs.records import ClusterSnapshot
    from haagent.ctl.config import CtlConfig
    from haagent.ctl.members import MemberClient, Reply

#: For one read or write of the store: the default retry_timeout, during which a quorum may be re-elected.
DCS_DEADLINE_S = 10.0
#: A PATCH is one read and one write of the store by the member.
PATCH_TIMEOUT_S = 15.0
#: Pause between two pictures of `-W`, seconds.
DEFAULT_WATCH_S = 2.0
LONGEST_WATCH_S = 86400.0
#: Used where the cluster has no `loop_wait` (contract 5.3).
DEFAULT_LOOP_WAIT_S = 10

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns faults of the store into CtlError."""
    from dcs.errors import DcsConfigError, DcsLoginRefused, DcsUnavailable

    try:
        yield
    except DcsLoginRefused as error:
        raise CtlError(f"the DCS refused the login: {error}") from None
    except DcsUnavailable as error:
        raise CtlError(f"the DCS cannot be reached: {error}") from None
    except DcsConfigError as error:
        raise CtlError(f"the DCS cannot be used: {error}") from None


@dataclass
class Cluster:
    """One cluster in its store."""

    scope: str
    dcs: Dcs

    def snapshot(self) -> ClusterSnapshot:
        """Everything the store holds, now. Raises CtlError."""
        with one_line_errors():
            return self.dcs.snapshot(DCS_DEADLINE_S)

    def sound_snapshot(self, *needed: str) -> ClusterSnapshot:
        """As `snapshot`; raises CtlError when one of the `needed` keys cannot be understood."""
        snapshot = self.snapshot()
        require_sound(snapshot, needed)
        return snapshot

    def wait_until(self, done: Callable[[ClusterSnapshot], bool], limit_s: float) -> bool:
        """Look at every change of the store until `done`; False after `limit_s` seconds. Raises CtlError."""
        import threading

        from dcs.api import WatchEvent, boottime

        changed = threading.Event()

        def on_event(_event: WatchEvent) -> None:
            changed.set()

        deadline = boottime() + limit_s
        with one_line_errors():
            watch = self.dcs.watch(on_event)
        try:
            while not done(self.snapshot()):
                if not changed.wait(deadline - boottime()):
                    return False
                changed.clear()
        finally:
            watch.close()
        return True


@dataclass
class Session:
    """What the global options said. Attributes are computed when first needed."""

    config_file: str | None = None
    dcs_url: str | None = None
    insecure: bool = False
    _opened: dict[str, Cluster] = field(default_factory=dict)

    @cached_property
    def config(self) -> CtlConfig:
        from haagent.ctl.config import load_config

        return load_config(self.config_file, self.dcs_url, self.insecure, os.environ)

    @cached_property
    def members(self) -> MemberClient:
        from haagent.ctl.members import MemberClient

        return MemberClient(self.config.rest)

    def cluster(self, scope: str | None) -> Cluster:
        """The cluster named, or the configured one. Raises CtlError."""
        from haagent.ctl.config import require_text

        name = scope or self.config.scope
        if not name:
            raise CtlError("no cluster name given and no scope configured")
        require_text("the cluster name", name)
        if name not in self._opened:
            self._opened[name] = Cluster(name, self._open(name))
        return self._opened[name]

    def _open(self, scope: str) -> Dcs:
        from dcs.factory import make_dcs

        config = self.config
        if config.backend is None:
            raise CtlError("no DCS configured: name one with --dcs-url or a section such as etcd3")
        with one_line_errors():
            return make_dcs(config.backend, config.section, config.namespace, scope)

    def close(self) -> None:
        """Close every store that was opened."""
        for cluster in self._opened.values():
            cluster.dcs.close()


pass_session = click.make_pass_decorator(Session, ensure=True)


def require_sound(snapshot: ClusterSnapshot, needed: Collection[str]) -> None:
    """Raise CtlError naming the first broken key among `needed` (all keys when empty)."""
    for broken in snapshot.broken:
        if not needed or broken.key in needed:
            raise CtlError(f"key {broken.key} in the DCS cannot be understood: {broken.cause}")


def loop_wait_s(snapshot: ClusterSnapshot) -> int:
    """The cluster's `loop_wait` in seconds."""
    value = snapshot.config.data.get("loop_wait") if snapshot.config else None
    return value if isinstance(value, int) and not isinstance(value, bool) else DEFAULT_LOOP_WAIT_S


def patch_config(session: Session, snapshot: ClusterSnapshot, patch: Mapping[str, Any]) -> Reply:
    """The first answer of a member to this PATCH of the dynamic configuration, the leader asked first.

    A PATCH may be repeated, so a lost answer is no end. Raises CtlError when nobody answers.
    """
    from haagent.core.member_select import leader_first
    from haagent.ctl.members import Reply

    for member in leader_first(snapshot):
        outcome = session.members.request("PATCH", member.api_url or "", "/config", patch, PATCH_TIMEOUT_S)
        if isinstance(outcome, Reply):
            return outcome
    raise CtlError("Can not find accessible cluster member")


# --- options that many commands share -----------------------------------------------------------


def _refuse_group(_ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    if value is not None:
        raise CtlError("Citus is not supported, --group cannot be used")


def group_option(command: Command) -> Command:
    """`--group`, accepted for the sake of a clear answer."""
    return click.option(
        "--group", type=int, expose_value=False, callback=_refuse_group, help="Citus group (not supported)."
    )(command)


def force_option(command: Command) -> Command:
    return click.option("--force", is_flag=True, help="Do not ask for confirmation.")(command)


def format_option(command: Command) -> Command:
    return click.option(
        "-f",
        "--format",
        "form",
        default="pretty",
        show_default=True,
        help="Output format.",
        type=click.Choice(["pretty", "tsv", "json", "yaml", "yml"]),
    )(command)


def role_option(command: Command) -> Command:
    from haagent.core.member_select import ROLES

    return click.option(
        "-r",
        "--role",
        type=click.Choice(ROLES),
        default="any",
        show_default=True,
        help="Only members with this role.",
    )(command)


def watch_options(command: Command) -> Command:
    """`-W` and `-w SEC`; the command gets `every_s`, seconds, None for "once"."""

    def settled(*args: Any, watch: bool, every_s: float | None, **options: Any) -> Any:
        every = DEFAULT_WATCH_S if every_s is None and watch else every_s
        if every is not None and not every <= LONGEST_WATCH_S:  # also what is not a number
            raise CtlError(f"--watch takes at most {LONGEST_WATCH_S:g} seconds")
        return command(*args, every_s=every, **options)

    wrapped = update_wrapper(settled, command)
    click.option("-W", "watch", is_flag=True, help=f"Show again every {DEFAULT_WATCH_S:g} seconds.")(wrapped)
    click.option(
        "-w",
        "--watch",
        "every_s",
        type=click.FloatRange(min=0.1),
        metavar="SEC",
        help="Show again every SEC.",
    )(wrapped)
    return cast(Command, wrapped)


def repeated(once: Callable[[], None], every_s: float | None) -> None:
    """Call `once`; with `every_s` again and again with this pause between, until Ctrl-C."""
    import threading

    from haagent.ctl.output import coloured

    if every_s is None:
        once()
        return
    pause = threading.Event()
    while True:
        if coloured():
            click.clear()
        try:
            once()
        except CtlError as error:  # a store without quorum is just what one watches for
            error.show()
        pause.wait(every_s)
