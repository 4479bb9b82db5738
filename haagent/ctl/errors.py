"""How haagentctl ends badly: one line `Error: …` on stderr and exit 1, or a refusal that was printed.

CtlError    something is wrong on our side of the request; click prints `Error: <text>`, exit 1
refused()   the cluster said no: its words went to stdout, exit 1 (Patroni's tool ends with 0 here)
"""

from __future__ import annotations

from typing import NoReturn

import click


class CtlError(click.ClickException):
    """A fault to be told in one line; never a traceback."""


def refused() -> NoReturn:
    """End with exit code 1 after the refusal has been printed."""
    raise click.exceptions.Exit(1)
