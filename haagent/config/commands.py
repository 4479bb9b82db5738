"""`haagent config …`, and Patroni's spellings of it (contract 5.8): look at a configuration, or make one.

Whatever goes wrong is one line on stderr and exit code 1, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Mapping
from typing import Any

from haagent.config import generate
from haagent.config.load import judge, process_environment, read
from haagent.config.shown import as_yaml, masked
from haagent.config.types import ConfigErrors
from haagent.config.validate import check_here
from postgres_ctl.describe import describe_server
from postgres_ctl.errors import PostgresError


def main(args: argparse.Namespace) -> int:
    """Do what was asked for; the exit code."""
    commands = {"validate": _validate, "sample": _sample, "generate": _generate}
    try:
        return commands[args.config_command](args)
    except ConfigErrors as fault:
        _say(*fault.problems)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PostgresError, OSError) as fault:
        _say(fault)
    return 1


def _say(*lines: object) -> None:
    for line in lines:
        sys.stderr.write(f"{line}\n")


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _validate(args: argparse.Namespace) -> int:
    """Silent when all is well; else one line per problem, and 1. Warnings are told, and do not count."""
    tree = read(args.config, process_environment())
    _, checked = judge(tree, args.config)
    check_here(checked, args.ignore_listen_port)
    if args.print:
        _print(as_yaml(masked(tree.data)))
    _say(*(f"warning: {warning}" for warning in checked.warnings))
    _say(*checked.problems)
    return 1 if checked.problems else 0


# --- making one ---------------------------------------------------------------------------------


def _sample(args: argparse.Namespace) -> int:
    _write(generate.sample(generate.this_host()), args.config)
    return 0


def _generate(args: argparse.Namespace) -> int:
    server = describe_server(args.dsn or "")
    _write(generate.of_server(server, generate.this_host()), args.config)
    return 0


def _write(config: Mapping[str, Any], path: str | None) -> None:
    """To stdout without passwords, or into a new file that only its owner can read."""
    if path is None:
        _print(generate.as_text(generate.without_passwords(config)))
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as e:
        raise OSError(f"{path}: cannot be written: {e.strerror}") from None
    with open(fd, "w", encoding="utf-8") as file:
        found = os.fstat(fd)
        if found.st_size:
            raise OSError(f"{path}: is there already: name a new file")
        if stat.S_ISREG(found.st_mode):
            os.fchmod(fd, 0o600)
        file.write(generate.as_text(config))
