"""What this machine says about a configuration that is sound in itself (contract 5.8).

Looked at only when somebody asks (`--validate-config`), not at every start: whether ports are free, whether
the servers of the DCS answer, whether the programs are there and fit the data directory. Nothing is changed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

from dcs.etcd3_srv import NoRecords, look_up
from haagent.config.check import Checked
from haagent.config.postgres import find_bin_dir
from haagent.config.sections import dcs_section
from haagent.config.supported import OLDEST_MAJOR, WANTED, server_major
from haagent.config.types import DcsSection
from haagent.config.values import host_port
from postgres_ctl.api import tool
from postgres_ctl.controldata import major_version
from postgres_ctl.datadir import data_dir_state
from postgres_ctl.errors import DataDirError, ToolFailed
from postgres_ctl.facts import DataDirState

#: A server of the DCS gets this long to accept a connection, seconds.
CONNECT_S = 2.0
#: Programs the agent cannot do without, beside postgres.
_NEEDED = ("initdb", "pg_controldata", "pg_basebackup")


def check_here(checked: Checked, ignore_listen: bool) -> None:
    """Add to `checked` every problem this machine has with it. `ignore_listen`: ports may be in use."""
    if not ignore_listen:
        _check_listen(checked)
    _check_dcs(checked)
    _check_programs(checked)


# --- ports --------------------------------------------------------------------------------------


def _check_listen(checked: Checked) -> None:
    rest, pg = checked.get("restapi.listen"), checked.get("postgresql.listen")
    wanted = [("restapi.listen", rest, [rest.host])] if rest else []
    wanted += [("postgresql.listen", pg, pg.addresses)] if pg else []
    for path, value, hosts in wanted:
        for host in hosts:
            obstacle = cannot_bind(host, value.port)
            if obstacle:
                checked.refuse(path, str(value), obstacle)
                break


def cannot_bind(host: str, port: int) -> str | None:
    """Why nobody can listen there; None when one can. Of a name one of its addresses is enough."""
    try:
        name = None if host in ("*", "") else host
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as e:
        return f"cannot be resolved: {e.strerror}"
    faults = [_bind_fault(family, address) for family, _, _, _, address in found]
    if errno.EADDRINUSE in faults:
        return "is in use by another program"
    return None if None in faults else f"cannot be listened on: {os.strerror(faults[0] or 0)}"


def _bind_fault(family: int, address: tuple[object, ...]) -> int | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as e:
        return e.errno or errno.EIO
    return None


# --- the DCS ------------------------------------------------------------------------------------


def _check_dcs(checked: Checked) -> None:
    """Every server accepts a connection. Only of a section that is sound itself."""
    dcs = dcs_section(replace(checked, problems=[], warnings=[]))
    names = (f"etcd3.{name}" for name in ("url", "proxy", "hosts", "host", "srv"))
    path = next((name for name in names if name in checked.values), "etcd3")
    try:
        servers = list(_servers(dcs))
    except NoRecords as e:
        checked.refuse(path, checked.values[path], f"names no server: {e}")
        return
    for host, port in servers:
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError as e:
            why = e.strerror or "no answer in time"
            checked.refuse(path, f"{host}:{port}", f"is not reachable: {why}")


def _servers(dcs: DcsSection | None) -> Iterator[tuple[str, int]]:
    """Raises NoRecords."""
    if dcs is not None and not dcs.endpoints and dcs.section.get("srv"):
        yield from (
            (host, port) for _, host, port in look_up(dcs.section["srv"], dcs.section.get("srv_suffix"))
        )
    for endpoint in dcs.endpoints if dcs else ():
        scheme, _, place = endpoint.partition("://")
        found = host_port(place.rstrip("/"), 443 if scheme == "https" else 80)
        yield found.host, found.port


# --- PostgreSQL ---------------------------------------------------------------------------------


def _check_programs(checked: Checked) -> None:
    path = "postgresql.bin_dir"
    if any(problem.key == path for problem in checked.problems):
        return
    names = {name: checked.get(f"postgresql.bin_name.{name}") for name in (*_NEEDED, "postgres", "pg_rewind")}
    bin_dir = checked.get(path) or find_bin_dir(names["postgres"])
    needed = (*_NEEDED, *(["pg_rewind"] if checked.get("postgresql.use_pg_rewind") else []))
    for name in needed:
        program = tool(bin_dir, name, names)
        if not os.access(program, os.X_OK) or os.path.isdir(program):
            checked.refuse(path, bin_dir, f"must contain the program {names[name]}")
    try:
        _check_version(tool(bin_dir, "postgres", names), bin_dir, checked)
    except ToolFailed as fault:
        checked.refuse(path, bin_dir, f"has a server that does not run: {fault}")


def _check_version(program: str, bin_dir: str, checked: Checked) -> None:
    major = server_major(program)
    if major < OLDEST_MAJOR:
        checked.refuse("postgresql.bin_dir", bin_dir, WANTED)
    _check_data(major, checked)


def _check_data(major: int, checked: Checked) -> None:
    """An existing data directory must be one, and of the programs' version."""
    path = "postgresql.data_dir"
    data_dir = checked.get(path)
    if data_dir is None or any(problem.key == path for problem in checked.problems):
        return
    try:
        state = data_dir_state(data_dir)
    except DataDirError as fault:
        checked.refuse(path, data_dir, str(fault))
        return
    found = major_version(data_dir)
    if state is DataDirState.FOREIGN:
        checked.refuse(path, data_dir, "is neither empty nor a PostgreSQL data directory")
    elif state is DataDirState.VALID and found != major:
        checked.refuse(path, data_dir, f"is of PostgreSQL {found}, but postgresql.bin_dir has {major}")
