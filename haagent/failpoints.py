"""Where a test may end this process: right after an effect, as kill -9 would.

Inert unless the environment variable names a file, which no configuration can do. The file holds the name of
one action; the first one of that name to be done from then on is the last.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "_HAAGENT_FAILPOINT_FILE"


def passed(action: str) -> None:
    """`action` was done."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    try:
        wanted = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return
    if wanted == action:
        os.kill(os.getpid(), signal.SIGKILL)
