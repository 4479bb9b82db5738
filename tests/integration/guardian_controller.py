"""An agent reduced to its guardian link, to be killed. JSON lines: commands on stdin, the rest on stdout.

Run as the user that PostgreSQL runs under. The first answer is what the guardian said first.
`{"call": "arm", "args": [...], "kwargs": {...}}` calls that method of GuardianLink, or `fence_directly`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from haagent.guardian_client import GuardianLink, GuardianUnavailable, fence_directly


def tell(kind: str, value: Any) -> None:
    body = (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
    sys.stdout.write(json.dumps({kind: type(value).__name__, "body": body}) + "\n")
    sys.stdout.flush()


def main() -> None:
    state_dir, data_dir, idle_exit_s = sys.argv[1:]
    try:
        link = GuardianLink.connect(
            state_dir,
            data_dir,
            lambda event: tell("event", event),
            deadline_s=20,
            idle_exit_s=float(idle_exit_s),
        )
    except GuardianUnavailable as fault:
        tell("answer", str(fault))
        return
    tell("answer", link.hello)
    for line in sys.stdin:
        order = json.loads(line)
        function = fence_directly if order["call"] == "fence_directly" else getattr(link, order["call"])
        tell("answer", function(*order["args"], **order["kwargs"]))


if __name__ == "__main__":
    main()
