"""haagentctl: the command line people and scripts use on a cluster.

Command modules import only click at their top; stores, YAML and HTTP come in when a command needs them,
so that the program answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from haagent.ctl.actions import reinit_command, reload_command, restart_command
from haagent.ctl.dsn import dsn_command
from haagent.ctl.edit import edit_config_command
from haagent.ctl.explain import explain_command
from haagent.ctl.flush import flush_command
from haagent.ctl.handover import failover_command, switchover_command
from haagent.ctl.pause import pause_command, resume_command
from haagent.ctl.query import query_command
from haagent.ctl.remove import remove_command
from haagent.ctl.session import Session
from haagent.ctl.show import (
    history_command,
    list_command,
    show_config_command,
    topology_command,
    version_command,
)
from haagent.ctl.standby import demote_cluster_command, promote_cluster_command

#: Called by this name we answer as the program we stand in for (contract 4).
PATRONI_NAME = "patronictl"
#: Variables with the log level; the first one set counts.
LOG_LEVELS = ("HAAGENT_LOG_LEVEL", "PATRONI_LOG_LEVEL", "PATRONI_LOGLEVEL", "LOGLEVEL")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config-file", metavar="FILE", help="Configuration file; an agent's file will do.",
              envvar=["HAAGENTCTL_CONFIG_FILE", "PATRONICTL_CONFIG_FILE"])  # fmt: skip
@click.option("-d", "--dcs", "--dcs-url", "dcs_url", metavar="URL", envvar="DCS_URL",
              help="The DCS, for example etcd3://host:2379/service or local:/path/to/file.")  # fmt: skip
@click.option("-k", "--insecure", is_flag=True, help="Do not check certificates of members.")
@click.pass_context
def cli(context: click.Context, config_file: str | None, dcs_url: str | None, insecure: bool) -> None:
    """Look at and control a PostgreSQL cluster managed by haagent or Patroni."""
    _set_log_level(os.environ)
    session = Session(config_file or None, dcs_url or None, insecure)
    context.obj = session
    context.call_on_close(session.close)


def _set_log_level(env: Mapping[str, str]) -> None:
    """Log to stderr as the variables say; without them only warnings are seen (contract 4.1)."""
    named = [env[name] for name in LOG_LEVELS if env.get(name)]
    if named:
        import logging

        level = logging.getLevelNamesMapping().get(named[0].strip().upper(), logging.WARNING)
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s: %(message)s")


for _command in (
    list_command, topology_command, explain_command, history_command, show_config_command, version_command,
    dsn_command, query_command, flush_command, switchover_command, failover_command, restart_command,
    reload_command, reinit_command, pause_command, resume_command, edit_config_command,
    demote_cluster_command, promote_cluster_command, remove_command,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Entry point of `haagentctl` and of `python -m haagent.ctl`."""
    called = Path(sys.argv[0]).name
    cli(prog_name=PATRONI_NAME if called == PATRONI_NAME else "haagentctl")


if __name__ == "__main__":
    main()
