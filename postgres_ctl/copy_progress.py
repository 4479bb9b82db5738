"""How far a long copy into a data directory is: bytes that are there, of bytes that the source has.

Nobody tells us: pg_basebackup reports to a terminal, and other programs in their own ways. So the directory
is looked at now and then, the seldomer the longer a look takes. The size of the source is asked for once,
with the very login the copy is made with; where that may not ask, there is no end to compare with.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from postgres_ctl.api import ConnectionTarget, boottime
from postgres_ctl.basebackup import copied_bytes
from postgres_ctl.errors import DataDirError, PostgresError
from postgres_ctl.facts import CopyProgress
from postgres_ctl.libpq import Connection

#: Pause between two looks, seconds, and a look costs at most this share of the time.
EVERY_S, SHARE = 2.0, 0.05
#: pg_database_size looks at every file of the source once, seconds.
ASK_S = 30.0
_SIZE = """
    select sum(pg_catalog.pg_database_size(oid))::text from pg_catalog.pg_database
    where datallowconn and pg_catalog.has_database_privilege(oid, 'connect')
"""


@contextlib.contextmanager
def watched(
    data_dir: str, source: ConnectionTarget | None, report: Callable[[CopyProgress], object]
) -> Iterator[None]:
    """`report` is told now and then, by a thread of its own, while the block runs."""
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(data_dir, source, report, over), name="copy-progress", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        over.set()  # not waited for: it may just ask the source


def _watch(
    data_dir: str,
    source: ConnectionTarget | None,
    report: Callable[[CopyProgress], object],
    over: threading.Event,
) -> None:
    total, pause_s = size_of(source) if source is not None else None, 0.0
    while not over.wait(pause_s):
        began = boottime()
        with contextlib.suppress(DataDirError, OSError):
            copied = copied_bytes(data_dir)
            if not over.is_set():
                report(CopyProgress(copied, total))
        pause_s = max(EVERY_S, (boottime() - began) / SHARE)


def size_of(source: ConnectionTarget) -> int | None:
    """Bytes of all databases of the source; None where that cannot be asked."""
    try:
        session = Connection.open(source, ASK_S)
        try:
            (found,) = session.query(_SIZE, ASK_S)[0]
        finally:
            session.close()
    except PostgresError:
        return None
    return int(found) if found is not None else None
