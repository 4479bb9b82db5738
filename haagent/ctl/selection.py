"""Which members a command means, and the questions it asks on a terminal.

Questions are for people only: without a terminal on standard input the command ends with one line that names
the option to give, instead of waiting for an answer nobody can give.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from haagent.ctl.errors import CtlError

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot, Member


def choose_members(snapshot: ClusterSnapshot, role: str, names: Sequence[str]) -> list[Member]:
    """Members of `role`, of these only `names` when given; names that do not match are dropped.

    Raises CtlError when nothing is left (contract 4.2).
    """
    from haagent.core.member_select import with_role

    matching = with_role(snapshot, role)
    chosen = [name for name in matching if not names or name in names]
    if not chosen:
        raise CtlError(
            f"No '{role}' among provided members" if names else f"The cluster has no member of role '{role}'"
        )
    return [member for member in snapshot.members if member.name in chosen]


def require_members(snapshot: ClusterSnapshot, scope: str) -> None:
    """Raises CtlError for a cluster nobody is in, such as a misspelt one."""
    if not snapshot.members:
        raise CtlError(f"{scope} cluster doesn't have any members")


def ask(text: str, default: str = "", instead: str = "use --force") -> str:
    """The user's answer; raises CtlError without a terminal, click.Abort on Ctrl-C.

    `instead` tells what to do where nobody can be asked.
    """
    require_terminal(instead)
    return str(click.prompt(text, type=str, default=default)).strip()


def ask_secret(text: str, instead: str) -> str:
    """As `ask`, without showing what is typed."""
    require_terminal(instead)
    return str(click.prompt(text, type=str, hide_input=True))


def confirm(text: str) -> bool:
    """True for yes; raises CtlError without a terminal, click.Abort on Ctrl-C."""
    require_terminal("use --force")
    return click.confirm(text)


def require_terminal(instead: str) -> None:
    """Raises CtlError, which tells to do `instead`, unless a person can be asked."""
    if not sys.stdin.isatty():
        raise CtlError(f"standard input is not a terminal, so no question can be asked: {instead}")
