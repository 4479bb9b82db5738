"""The reference of all keys, written from the table: `python -m haagent.config.docs [FILE]`.

FILE defaults to docs/configuration.md under the current directory; `-` prints. A test holds the file and
the table together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from haagent.config.schema import (
    BACKENDS,
    BACKENDS_LATER,
    BACKENDS_REFUSED,
    CONN_OPTIONS,
    DYNAMIC,
    KEYS,
    Key,
    Status,
)
from haagent.config.sources import variable

DEFAULT_FILE = "docs/configuration.md"

_HEAD = """\
# Configuration

*Written by `python -m haagent.config.docs`; do not edit.*

`haagent run FILE` reads a YAML file, or every `*.yml` of a directory, merged in name order: later files win,
null deletes. A file made for Patroni 4.1 works unchanged, as far as its keys are built (column *status*).
`configs/haagent.yml` is an annotated example.

**Precedence.** Environment variables, the local file, the dynamic configuration in the DCS, defaults.
Variables are read once, at the start, and removed from the environment. `HAAGENT_CONFIGURATION` may hold the
whole YAML; other variables are ignored then. Every variable also works with the prefix `PATRONI_`;
`HAAGENT_` wins.

**Roles.** `parameters_primary`, `parameters_replica` and `parameters_standby_leader` are laid over
`parameters` while the member has that role; `pg_hba_<role>` and `pg_ident_<role>` stand in for `pg_hba` and
`pg_ident`. Who was promoted is a primary, who was demoted a replica; the files change with the role.
Parameters that only the DCS may set, and those the agent sets, may not depend on the role.

**Problems.** A file that cannot be used is refused with one line per problem: key, value, what is allowed,
and where it stands. Unknown keys are ignored with a warning that names the nearest known key.

**Checking and making a file.** `haagent --validate-config FILE` is silent when all is well; else it prints
one line per problem, `path value reason`, and ends with 1. It also looks at this machine: free ports (`-i`:
they may be in use), servers of the DCS, programs, data directory. `-p` prints what came out of files and
variables, with every secret as `***`: unlike Patroni, because such output ends in tickets and logs.
`haagent --generate-sample-config [FILE]` makes an example, `haagent --generate-config [--dsn DSN] [FILE]`
describes a running server; what only you know is `#FIXME`, and the check names what is left. A file made so
is new and readable by its owner only; passwords (the superuser's from the DSN) are written there, never to
the terminal. All are `haagent config validate | sample | generate`, too.

**Completing a new cluster.** `bootstrap.post_bootstrap` is a command line; a conninfo of the superuser comes
as its last argument, PGPASSFILE, PGHOST and PGPORT are set. It runs once, on a writable server with the
cluster's parameters that only this program can reach (no address, a private socket directory): nobody writes
before there is a leader. The replication and rewind roles are made or changed after it. When it fails, or
takes longer than a day, there is no cluster: the data directory is moved to `<data_dir>.failed` and the agent
ends with 1.

**Explaining.** `haagent config explain KEY [FILE]` tells the value in force and where it comes from: a
variable, file and line, the DCS (its copy patroni.dynamic.json when it does not answer), a default; what is
set elsewhere without effect; and when a change takes effect. KEY may be a section. `-f json` is for
programs. `haagent config schema` prints a JSON Schema for editors (configs/haagent.schema.json); a first
line `# yaml-language-server: $schema=haagent.schema.json` makes them use it.

**Reload.** *reload* takes effect on SIGHUP and `POST /reload`; *start* when the agent is started again.
*DCS* in the same column: the key may stand in `postgresql` of the dynamic configuration too; the local file
wins.

**Status.** Empty: works. *no effect*: understood, nothing here depends on it. *ignored*: not built yet, a
warning says so. *refused*: not built yet, and to ignore it would break a promise of safety.

**Units.** Sizes take B, kB, MB, GB, TB; times us, ms, s, min, h, d. Switches take on/off, true/false, yes/no,
1/0.
"""

_DYNAMIC_HEAD = """\
## Dynamic configuration

One JSON object in the DCS, the same for all members: first `bootstrap.dcs`, then changed with
`haagentctl edit-config` or `PATCH /config`. A value that cannot be read falls back to its default, one below
its minimum is raised, each with a warning. `loop_wait + 2 * retry_timeout` must fit into `ttl`: a local file
that breaks this is refused; in the DCS, `loop_wait` is shortened first, then `retry_timeout`. While a Patroni
member is in the cluster, Patroni's minima hold (ttl 20, loop_wait 1, retry_timeout 3). Unknown keys are kept
and not used.

`postgresql.use_slots` and these parameters are taken from here only: max_connections, max_worker_processes,
max_prepared_transactions, max_locks_per_transaction, max_wal_senders, max_replication_slots, wal_level,
track_commit_timestamp, wal_log_hints, hot_standby, wal_keep_size.
"""

_DCS_HEAD = """\
## DCS sections

Exactly one of {built}. {later}: not built yet. {refused}: refused.
"""


_LOGIN_OPTIONS = """\
Each section of `postgresql.authentication` also takes libpq's {options}
as `HAAGENT_SUPERUSER_SSLMODE` and so on.
"""


def reference() -> str:
    """The whole document."""
    parts = [_HEAD, _DYNAMIC_HEAD, _table(DYNAMIC.values(), dynamic=True)]
    sections: dict[str, list[Key]] = {}
    for key in KEYS.values():
        sections.setdefault(key.path.split(".")[0] if key.section else "", []).append(key)
    for name, keys in sections.items():
        if name == next(iter(BACKENDS)):
            parts.append(_dcs_head())
        level = "###" if name in BACKENDS else "##"
        parts.append(f"{level} {f'Section `{name}`' if name else 'Top of the file'}\n")
        parts.append(_table((key for key in keys if key.name not in CONN_OPTIONS), dynamic=False))
        if name == "postgresql":
            parts.append(_LOGIN_OPTIONS.format(options=", ".join(f"`{o}`" for o in CONN_OPTIONS)))
    return "\n".join(parts)


def _dcs_head() -> str:
    def listed(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    return _DCS_HEAD.format(
        built=listed(BACKENDS), later=listed(BACKENDS_LATER), refused=listed(BACKENDS_REFUSED)
    )


def _table(keys: Iterable[Key], dynamic: bool) -> str:
    rows = ["| key | value | default | meaning | status |", "|---|---|---|---|---|"]
    if not dynamic:
        rows = [
            "| key | value | default | meaning | read | variable | status |",
            "|---|---|---|---|---|---|---|",
        ]
    for key in keys:
        cells = [f"`{key.path}`", key.type.name, _default(key), _meaning(key)]
        cells += [] if dynamic else [_read_when(key), _variable(key)]
        rows.append("| " + " | ".join(_cell(cell) for cell in [*cells, _status(key)]) + " |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(key: Key) -> str:
    if key.required:
        return "**required**"
    if key.default is None or (isinstance(key.default, (dict, tuple)) and not key.default):
        return ""
    if isinstance(key.default, bool):
        return "on" if key.default else "off"
    return f"`{key.default}`"


def _meaning(key: Key) -> str:
    return key.meaning + (" (never shown)" if key.secret else "")


def _read_when(key: Key) -> str:
    return ("reload" if key.reload else "start") + (", DCS" if key.dynamic else "")


def _variable(key: Key) -> str:
    name = variable(key)
    return f"`HAAGENT_{name}`" if name and key.status is Status.BUILT else ""


def _status(key: Key) -> str:
    if key.status is Status.BUILT:
        return ""
    text = str(key.status.value)
    if key.refused:
        text += f"; {', '.join(map(str, key.refused))} refused"
    elif key.status is Status.REFUSED and key.harmless not in ((), ("",)):
        text += f" unless {', '.join(map(str, key.harmless))}"
    return text


def main(arguments: list[str]) -> int:
    target = arguments[0] if arguments else DEFAULT_FILE
    if target == "-":
        sys.stdout.write(reference())
        return 0
    try:
        Path(target).write_text(reference(), encoding="utf-8")
    except OSError as e:
        sys.stderr.write(f"{target}: cannot be written: {e.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
