"""Times of `--scheduled`: `now`, or a point in time; without a zone the local one is meant (contract 4.2)."""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta

from haagent.ctl.errors import CtlError


def parse_schedule(text: str | None) -> str | None:
    """The time as ISO 8601 with its zone, None for "at once". Raises CtlError.

    A zone that is not known is refused: to ignore it would act at another hour than the one meant.
    """
    from dateutil import parser, tz

    if text is None or text.strip().lower() in ("", "now"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", parser.UnknownTimezoneWarning)
            moment = parser.parse(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=tz.tzlocal())
        return moment.isoformat()
    except (ValueError, OverflowError, TypeError, RecursionError, parser.UnknownTimezoneWarning):
        hint = "It should be in an unambiguous format (e.g. ISO 8601)"
        raise CtlError(f"Unable to parse scheduled timestamp ({text}). {hint}") from None


def next_hour() -> str:
    """An example of a time for prompts: one hour from now, local."""
    return (datetime.now().astimezone() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
