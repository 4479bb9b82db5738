"""A new cluster by a program of the user's, mostly from a backup, and recovered up to a point in time
(contract 2.10, 5.6).

Theory. What a program has restored has to leave recovery, on a timeline of its own, before it is a cluster;
and no cluster may be writable for anybody before its leader key is held (safety rule 1). So it recovers here,
in a server that listens nowhere but in a directory that only our user can enter, ends recovery, gets its
roles, and is shut down; the real server starts later, under the lease. The whole is one construction: the
kernel ends the server with us, and whoever dies in the middle leaves a directory known to be incomplete.

Two members can restore the same backup and make the same timeline. The directory therefore counts as nobody's
(`datadir.mark_unclaimed`) until its agent holds the key: it is never mixed with that of whoever was faster.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from postgres_ctl.api import Cancellation, tool
from postgres_ctl.basebackup import forget_life
from postgres_ctl.bootstrap import RoleSpec, create_roles
from postgres_ctl.config_files import (
    ServerConfig,
    clean_auto_conf,
    remove_standby_signal,
    write_config,
    write_recovery_signal,
)
from postgres_ctl.controldata import read_controldata
from postgres_ctl.datadir import handed_over, mark_unclaimed, move_aside
from postgres_ctl.errors import PostgresError, ToolFailed
from postgres_ctl.facts import ControlState
from postgres_ctl.methods import fill
from postgres_ctl.post_bootstrap import (
    PostBootstrap,
    PrivateServer,
    archive_settings,
    complete,
    private_config,
)

#: Roles are made within this, seconds.
ROLES_S = 300.0
#: The checkpoint at the end, after a recovery of any length, gets this long, seconds.
LAST_CHECKPOINT_S = 3600.0
#: Of `recovery_conf`, not settings of PostgreSQL 12 and newer, or ours.
_NOT_SETTINGS = frozenset({"standby_mode", "trigger_file", "promote_trigger_file", "recovery_target_action"})


@dataclass(frozen=True)
class CustomSpec:
    """`arguments` are the keys of the method's section that are passed on."""

    name: str
    data_dir: str
    bin_dir: str
    #: Split like a shell line.
    command: str
    scope: str
    #: What the new cluster will run with.
    server: ServerConfig
    superuser: RoleSpec
    roles: Sequence[RoleSpec] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)
    no_params: bool = False
    keep_existing_recovery_conf: bool = False
    recovery_conf: Mapping[str, str] | None = None
    post: PostBootstrap | None = None
    postgres: str = "postgres"
    pg_controldata: str = "pg_controldata"


def custom_arguments(spec: CustomSpec) -> list[str]:
    """The command line of contract 6.4. Raises ValueError on unbalanced quotes."""
    mine = [] if spec.no_params else [f"--scope={spec.scope}", f"--datadir={spec.data_dir}"]
    return [*shlex.split(spec.command), *mine, *(f"--{name}={v}" for name, v in spec.arguments.items())]


def custom_bootstrap(
    spec: CustomSpec,
    deadline_s: float,
    cancel: Cancellation | None = None,
    recovering: Callable[[], object] = lambda: None,
) -> None:
    """Make, recover and complete the cluster within `deadline_s` seconds; nothing runs afterwards.

    `recovering` is told when the program is done. What fails is moved to `<data_dir>.failed`; what is
    cancelled is removed. Raises ToolFailed, DataDirError, ConfigFileError.
    """
    with handed_over(spec.data_dir) as marker:
        try:
            fill(custom_arguments(spec), spec.data_dir, marker, deadline_s, cancel, {})
            if not os.path.exists(os.path.join(spec.data_dir, "PG_VERSION")):
                raise ToolFailed(
                    f"{spec.name} ended well, but {spec.data_dir} holds no PostgreSQL data directory"
                )
            recovering()
            _recover(spec, deadline_s, cancel)
            _complete(spec, deadline_s, cancel)
        except PostgresError:
            if os.path.isdir(spec.data_dir) and not (cancel is not None and cancel.is_set()):
                move_aside(spec.data_dir)
            raise
        mark_unclaimed(spec.data_dir)


# --- recovery -------------------------------------------------------------------------------------


def _recover(spec: CustomSpec, deadline_s: float, cancel: Cancellation | None) -> None:
    """Whatever is to be recovered, and a clean end of it, in a server of our own."""
    settings = _how_to_recover(spec)
    write_config(spec.server, None)
    private = tempfile.mkdtemp(prefix="haagent-")
    try:
        config = private_config(spec.server, private, settings, archived=True)
        argv = [tool(spec.bin_dir, spec.postgres), "-D", spec.data_dir, f"--config-file={config}"]
        # Here, because what the program has left in postgresql.auto.conf would win over the file: a cluster
        # that pauses at its target never becomes one.
        argv += ["-c", "recovery_target_action=promote"]
        running = PrivateServer(argv, spec.data_dir, deadline_s + LAST_CHECKPOINT_S)
        try:
            running.await_writable(deadline_s, cancel)
        finally:
            running.stop(LAST_CHECKPOINT_S)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    control = read_controldata(spec.bin_dir, spec.data_dir, program=spec.pg_controldata)
    if control.state is not ControlState.SHUT_DOWN:
        raise ToolFailed(f"the recovered server was not shut down cleanly, but is {control.state.value}")


def _how_to_recover(spec: CustomSpec) -> dict[str, str]:
    """Signal files in place; returns the settings to recover with."""
    data_dir = spec.data_dir
    has_signal = any(
        os.path.exists(os.path.join(data_dir, f"{kind}.signal")) for kind in ("recovery", "standby")
    )
    forget_life(data_dir)
    settings: dict[str, str] = {}
    if spec.recovery_conf is not None:
        clean_auto_conf(data_dir)
        settings = {name: value for name, value in spec.recovery_conf.items() if name not in _NOT_SETTINGS}
    if spec.recovery_conf is not None or (spec.keep_existing_recovery_conf and has_signal):
        write_recovery_signal(data_dir)
        # Nobody reads it yet, and it may have been made for larger sizes than ours.
        return {"hot_standby": "off", **settings}
    remove_standby_signal(data_dir)
    return settings


# --- roles ----------------------------------------------------------------------------------------


def _complete(spec: CustomSpec, deadline_s: float, cancel: Cancellation | None) -> None:
    """The superuser, whom the user's program may need; that program; the other roles."""
    roles = [spec.superuser, *spec.roles]
    if spec.post is not None:
        _make_roles(spec, roles[:1], cancel)
        post, program = replace(spec.post, archived=True), tool(spec.bin_dir, spec.postgres)
        try:
            complete(post, program, spec.superuser.name, spec.superuser.password, deadline_s, cancel)
        except ToolFailed as fault:
            raise ToolFailed(f"post_bootstrap: {fault}", fault.output, fault.cancelled) from None
    _make_roles(spec, roles, cancel)


def _make_roles(spec: CustomSpec, roles: Sequence[RoleSpec], cancel: Cancellation | None) -> None:
    create_roles(
        spec.bin_dir,
        spec.data_dir,
        roles,
        ROLES_S,
        cancel,
        program=spec.postgres,
        settings=archive_settings(spec.server, archived=True),
        config_file=spec.server.config_file,
    )
