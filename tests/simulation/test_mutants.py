"""Every planted bug fits the source, is caught by a named check, and every check has caught two of them."""

from __future__ import annotations

import re
import zlib
from collections import Counter

import pytest

from tests.simulation import invariants, mutate
from tests.simulation.hunt import hunt, known_seeds
from tests.simulation.mutate import Mutant
from tests.simulation.plan import AIMED

MUTANTS = mutate.mutants()
CHECKS = frozenset(re.findall(r"\b(?:rule\d+|liveness|agent)\.[a-z-]+", invariants.__doc__ or ""))
#: Where the seeds written down do not catch one any more, so many fresh ones are tried, and so long; seconds.
SCHEDULES, LIMIT_S = 1500, 100.0


def test_the_mutants_name_checks_that_exist_and_every_check_has_two() -> None:
    named = Counter(check for mutant in MUTANTS for check in mutant.expected)
    assert set(named) <= CHECKS
    assert not [check for check in CHECKS if named[check] < 2]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    first = AIMED + zlib.crc32(mutant.name.encode())
    outcome = hunt(mutant, first, SCHEDULES, LIMIT_S, known_seeds().get(mutant.name, ()))
    assert outcome.verdict == "caught", outcome
    assert outcome.check in mutant.expected
