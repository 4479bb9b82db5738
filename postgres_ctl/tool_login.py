"""How a PostgreSQL program logs in without a secret among its arguments or in its environment.

A password goes through the password file. The passphrase of a client key has no file of its own: libpq takes
it from a service file, which is there for as long as the program runs, readable by our user only. Should we
die meanwhile it stays, as the password file does, until the next program that needs it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from postgres_ctl.api import ConnectionTarget
from postgres_ctl.datadir import write_synced
from postgres_ctl.errors import ConfigFileError

_SERVICE = "haagent"


@contextlib.contextmanager
def tool_login(
    target: ConnectionTarget, passfile: str, **extra: str
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(conninfo, variables) for a program that connects to `target`. Raises ConfigFileError."""
    if target.sslpassword is None:
        yield target.dsn(**extra), {}
        return
    path = f"{passfile}.service"
    if any(c in target.sslpassword for c in "\r\n\0"):
        raise ConfigFileError("sslpassword contains a line break or NUL character")
    try:
        write_synced(path, f"[{_SERVICE}]\nsslpassword={target.sslpassword}\n", 0o600)
    except OSError as e:
        raise ConfigFileError(f"cannot write {path}: {e.strerror}") from None
    try:
        yield target.dsn(service=_SERVICE, **extra), {"PGSERVICEFILE": path}
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def secrets_of(target: ConnectionTarget) -> list[str]:
    """What may not show in the output of a program."""
    return [secret for secret in (target.password, target.sslpassword) if secret]
