"""Words that all bodies of jobs share."""

from __future__ import annotations

#: Asking another server who it is, seconds.
IDENTIFY_S = 3.0


class Failed(Exception):
    """The job could not do its work; one line says why."""


def options_of(arguments: tuple[str, ...]) -> list[str | dict[str, object]]:
    """`--name=value` arguments back into the option list that `postgres_ctl` checks."""
    options: list[str | dict[str, object]] = []
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        options.append({name: value} if equals else name)
    return options
