"""Play scenarios in mutated copies: [[copy, [scenario, ...]], ...] as JSON in, what became of them out.

Theory. Most of the time a simulation takes to start goes into libraries. Here they are loaded once; each copy
gets a child of this process that forgets our own packages and finds them in the copy.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tests.simulation.hazards  # noqa: F401 - with all libraries

_OURS = ("haagent", "dcs", "postgres_ctl", "tests")


def play(job: tuple[str, list[str]]) -> dict[str, Any]:
    """In a child of its own: scenario -> what became of it, or "error" -> how it ended."""
    copy, names = job
    try:
        _move_into(copy)
        found = importlib.import_module("tests.simulation.hazards").SCENARIOS
        used = Path(str(importlib.import_module("haagent").__file__)).resolve()
        assert used.is_relative_to(Path(copy).resolve()), f"{used} is not the copy in {copy}"
        return {name: asdict(found[name].play()) for name in names}
    except Exception:
        return {"error": traceback.format_exc()}


def _move_into(copy: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path[0] = copy
    importlib.invalidate_caches()


def main(jobs: str) -> None:
    """Prints a list, in the order of the jobs."""
    logging.getLogger().addHandler(logging.NullHandler())  # a mutant may complain as it likes
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(pool.map(play, json.loads(jobs), chunksize=1)))


if __name__ == "__main__":
    main(sys.argv[1])
