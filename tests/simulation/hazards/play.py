"""Play scenarios of this tree: what a test starts in a private, mutated copy. Names in, JSON out."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import haagent
from tests.simulation.hazards import SCENARIOS


def main(names: list[str]) -> None:
    """Prints name -> what became of it, without the trace."""
    here, used = Path.cwd().resolve(), Path(haagent.__file__).resolve()
    assert used.is_relative_to(here), f"{used} is not the copy in {here}"
    logging.disable(logging.CRITICAL)  # a mutant may complain as it likes
    print(json.dumps({name: asdict(SCENARIOS[name].play()) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
