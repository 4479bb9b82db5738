"""`haagent config …`, and Patroni's spellings of it (contract 5.8): look at a configuration, or make one.

Whatever goes wrong is one line on stderr and exit code 1, never a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import stat
import sys
from collections.abc import Mapping
from typing import Any

from dcs.errors import DcsError
from dcs.factory import make_dcs
from haagent.config import generate
from haagent.config.check import Checked
from haagent.config.editor_schema import editor_schema
from haagent.config.explain import BOOTSTRAP, Dynamic, Explained, Unknown, explain
from haagent.config.load import judge, process_environment, read
from haagent.config.schema import SECTIONS
from haagent.config.shown import as_yaml, masked
from haagent.config.types import AgentConfig, ConfigErrors
from haagent.config.validate import check_here
from postgres_ctl.config_files import DYNAMIC_CACHE, read_dynamic_cache
from postgres_ctl.describe import describe_server
from postgres_ctl.errors import PostgresError

#: Somebody waits for an answer.
DCS_DEADLINE_S = 3.0


def main(args: argparse.Namespace) -> int:
    """Do what was asked for; the exit code."""
    commands = {
        "validate": _validate,
        "sample": _sample,
        "generate": _generate,
        "schema": _schema,
        "explain": _explain,
    }
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


def _schema(_: argparse.Namespace) -> int:
    _print(editor_schema())
    return 0


# --- explaining one -----------------------------------------------------------------------------


def _explain(args: argparse.Namespace) -> int:
    """Of a file with problems, too: then most of all."""
    tree = read(args.config, process_environment())
    config, checked = judge(tree, args.config)
    told = explain(args.key, tree, _dynamic_in_force(config, checked))
    if isinstance(told, Unknown):
        hint = f" (did you mean {told.did_you_mean}?)" if told.did_you_mean else ""
        _say(f"{told.key}: unknown key{hint}")
        return 1
    if args.format == "json":
        records = [dataclasses.asdict(one) for one in told]
        _print(json.dumps(records if args.key in SECTIONS else records[0], default=str) + "\n")
    else:
        _print("\n".join(_for_people(one) for one in told) or f"nothing is set in {args.key}\n")
    return 0


def _dynamic_in_force(config: AgentConfig | None, checked: Checked) -> Dynamic:
    """From the DCS, else from the copy in PGDATA, else what a new cluster would begin with."""
    found = _ask_dcs(config) if config is not None else None
    if config is not None and found is not None:
        return Dynamic(found, "the DCS", config.dcs.minimum_ttl_s)
    data_dir = checked.get("postgresql.data_dir")
    cached = read_dynamic_cache(data_dir) if data_dir else None
    if cached is not None:
        return Dynamic(cached, os.path.join(data_dir, DYNAMIC_CACHE))
    return Dynamic(checked.get(BOOTSTRAP), BOOTSTRAP)


def _ask_dcs(config: AgentConfig) -> Mapping[str, Any] | None:
    """Its `config`; None when there is none, or no answer, which is told."""
    path = config.dcs.section.get("path")
    if path is not None and not os.path.exists(path):
        return None  # to look must not make the file
    try:
        dcs = make_dcs(config.dcs.backend, config.dcs.section, config.namespace, config.scope)
        try:
            found = dcs.snapshot(DCS_DEADLINE_S).config
        finally:
            dcs.close()
    except DcsError as fault:
        _say(f"warning: the DCS does not answer: {fault}")
        return None
    return found.data if found is not None else None


def _for_people(one: Explained) -> str:
    value = one.value if one.value is not None else "(not set)"
    source = {"default": "default", "agent": f"the agent, from {one.where}"}.get(one.source, one.where)
    lines = [f"{one.key}: {value}", f"  from: {source}", f"  takes effect: {_WHEN[one.takes_effect]}"]
    lines += [f"  status: {one.status}"] if one.status else []
    lines += [f"  note: {note}" for note in one.notes]
    return "\n".join([*lines, f"  {one.meaning}", ""])


_WHEN = {
    "reload": "on SIGHUP or POST /reload",
    "start": "when the agent is started again",
    "at once": "when it is changed in the DCS",
}

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
