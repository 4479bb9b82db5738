"""The job that makes a new cluster, by initdb or by a program of the user's (contract 2.10, 5.6).

Nothing listens meanwhile, and what is made belongs to nobody before its agent holds the leader key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from haagent.config.types import BootstrapMethod, PostgresConfig
from haagent.instance import LocalInstance
from haagent.jobs_words import options_of
from postgres_ctl.api import Cancellation
from postgres_ctl.bootstrap import InitdbSpec, RoleSpec
from postgres_ctl.custom_bootstrap import CustomSpec
from postgres_ctl.facts import CopyProgress
from postgres_ctl.post_bootstrap import PostBootstrap

log = logging.getLogger(__name__)

INITDB_S = 300.0
#: The user's program may load a dump.
POST_BOOTSTRAP_S = 24 * 3600.0
#: Restoring a backup ends by itself or by cancellation, not by this; seconds.
RESTORE_S = 7 * 24 * 3600.0


def make_cluster(
    instance: LocalInstance,
    recovering: Callable[[], object],
    copied: Callable[[CopyProgress], object],
    cancel: Cancellation,
) -> None:
    """`recovering` is told when a program has restored what is now recovered, `copied` how far it is.

    Raises PostgresError."""
    config, pg = instance.config, instance.effective.config
    method = config.bootstrap.method
    if method is None:
        for warning in instance.pg.bootstrap(_initdb_spec(instance, pg), INITDB_S, cancel):
            log.warning("%s", warning)
    else:
        log.info("running custom bootstrap script: %s", method.name)
        with instance.pg.watch_copy(pg.data_dir, None, copied):
            instance.pg.custom_bootstrap(_custom_spec(instance, pg, method), RESTORE_S, cancel, recovering)
    instance.forget_kept()
    lines = config.bootstrap.pg_hba
    if lines and pg.pg_hba is None:
        instance.pg.append_hba(pg.data_dir, lines)  # to the end of the file that was made


def _initdb_spec(instance: LocalInstance, pg: PostgresConfig) -> InitdbSpec:
    superuser, *roles = _roles(pg)
    return InitdbSpec(
        data_dir=pg.data_dir,
        bin_dir=pg.bin_dir,
        superuser=superuser,
        options=options_of(instance.config.bootstrap.initdb),
        roles=roles,
        initdb=pg.bin_name["initdb"],
        postgres=pg.bin_name["postgres"],
        post=_post_bootstrap(instance, pg),
        post_deadline_s=POST_BOOTSTRAP_S,
    )


def _custom_spec(instance: LocalInstance, pg: PostgresConfig, method: BootstrapMethod) -> CustomSpec:
    superuser, *roles = _roles(pg)
    return CustomSpec(
        name=method.name,
        data_dir=pg.data_dir,
        bin_dir=pg.bin_dir,
        command=method.command,
        scope=instance.config.scope,
        server=instance.server_config(primary=True),
        superuser=superuser,
        roles=roles,
        arguments=method.arguments,
        no_params=method.no_params,
        keep_existing_recovery_conf=method.keep_existing_recovery_conf,
        recovery_conf=method.recovery_conf,
        post=_post_bootstrap(instance, pg),
        postgres=pg.bin_name["postgres"],
        pg_controldata=pg.bin_name["pg_controldata"],
    )


def _roles(pg: PostgresConfig) -> list[RoleSpec]:
    """The superuser first."""
    auth = pg.authentication
    roles = [
        RoleSpec(auth.superuser.username, auth.superuser.password, superuser=True),
        RoleSpec(auth.replication.username, auth.replication.password, replication=True),
    ]
    if auth.rewind.username != auth.superuser.username:
        roles.append(RoleSpec(auth.rewind.username, auth.rewind.password, rewind=True))
    return roles


def _post_bootstrap(instance: LocalInstance, pg: PostgresConfig) -> PostBootstrap | None:
    command = instance.config.bootstrap.post_bootstrap
    if command is None:
        return None
    return PostBootstrap(command, instance.server_config(primary=True), pg.pgpass, pg.database)
