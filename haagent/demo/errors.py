"""How a demo can end before its end.

DemoError
├── Unable     this machine lacks something; nothing was started
├── Failed     something that was waited for did not happen
└── Stopped    asked to stop: Ctrl-C, SIGTERM, the terminal is gone
"""

import signal


class DemoError(Exception):
    """One line for people."""


class Unable(DemoError):
    """The demo cannot run here; the text says why and what would help."""


class Failed(DemoError):
    """The cluster did not do what it should have done in time."""


class Stopped(DemoError):
    """Raised where the demo waits, after the signal `signum` came."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
