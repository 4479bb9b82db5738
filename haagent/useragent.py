"""How agents and haagentctl call themselves to REST servers (contract 3.2)."""

from __future__ import annotations

import platform

from haagent import COMPATIBLE_VERSION, __version__


def user_agent() -> str:
    """Begins as Patroni's, for whoever matches that in access logs or proxies."""
    python, system = platform.python_version(), platform.system()
    return f"Patroni/{COMPATIBLE_VERSION} Python/{python} {system} haagent/{__version__}"
