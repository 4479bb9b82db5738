"""`/dashboard`: one page that shows the cluster by reading `/cluster`, `/patroni` and `/events`."""

from __future__ import annotations

from importlib.resources import files

#: The page may talk to this server only, and nothing may be loaded into it.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page() -> str:
    """The HTML text; read once, when the application is built."""
    return files("haagent.api").joinpath("dashboard.html").read_text("utf-8")
