"""The hazards H1-H22, each as a directed scenario: staged, survived, and lost without its mechanism.

    stage.py      the simulator's world, driven by a script that says when each thing happens
    lease.py      H1 H4 H5 H6 H7      lease and leader key
    fence.py      H8 H9 H10 H12 H13   guardian and PostgreSQL
    wal.py        H14 H15 H18 H20     WAL and timelines, hand-over, pause
    rejoining.py  H14 H15             a member that diverged and comes back
    vitality.py   H9 H12 H13          a primary of no use to clients
    failsafe.py   H19                 failsafe mode
    coverage.py   what else covers a hazard, and which do not concern what exists
    mutants/      mechanisms switched off that only a staged hazard misses; else those of ../mutants serve
    play.py       plays scenarios in a mutated copy of the tree

The agents are production's, as everywhere in the simulator. `test_hazards.py` plays each scenario twice: as
it is, where no rule may break and the hazard must really have been met; and in a copy of the tree in which
its mechanism is switched off, where the named check must fail.
"""

from tests.simulation.hazards import failsafe, fence, lease, rejoining, vitality, wal
from tests.simulation.hazards.stage import SCENARIOS, Played, Scenario

__all__ = ["SCENARIOS", "Played", "Scenario", "failsafe", "fence", "lease", "rejoining", "vitality", "wal"]
