"""Each hazard is survived, and would not be without its mechanism."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.simulation import mutate
from tests.simulation.hazards import SCENARIOS, Scenario
from tests.simulation.hazards.coverage import HAZARDS, REASONS, TESTS

MUTANTS = {m.name: m for m in (*mutate.mutants(), *mutate.mutants(Path(__file__).parent / "mutants"))}
#: Mutant -> the scenarios it must lose.
LOST: dict[str, list[Scenario]] = defaultdict(list)
for one in SCENARIOS.values():
    for mutant in one.off:
        LOST[mutant].append(one)
#: A mutated copy plays its scenarios within so long on a busy machine, seconds.
PLAY_S = 120.0


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_hazard_is_met_and_survived(scenario: Scenario) -> None:
    played = scenario.play()
    assert played.missed == "", "the situation did not come: this proves nothing"
    assert played.violation is None
    assert played.unseen == (), "the mechanism did not show"


@pytest.mark.parametrize("name", LOST)
def test_without_its_mechanism_it_is_not(name: str, tmp_path: Path) -> None:
    mutate.plant(MUTANTS[name], tmp_path)
    names = [scenario.name for scenario in LOST[name]]
    done = mutate.run_in(tmp_path, "tests.simulation.hazards.play", *names, timeout_s=PLAY_S)
    assert done.returncode == 0, done.stderr
    for scenario in LOST[name]:
        played = json.loads(done.stdout)[scenario.name]
        assert played["missed"] == ""
        assert (played["violation"] or {}).get("name") == scenario.off[name], played


def test_every_hazard_has_a_scenario_a_test_or_a_reason() -> None:
    staged = {scenario.hazard for scenario in SCENARIOS.values()}
    assert staged | set(TESTS) | set(REASONS) == set(HAZARDS)
    assert not [hazard for hazard in HAZARDS if hazard not in staged and hazard not in REASONS]


@pytest.mark.parametrize("test", sorted({test for tests in TESTS.values() for test in tests}))
def test_a_test_that_is_referred_to_is_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert re.search(rf"^def {name}\(", (mutate.ROOT / path).read_text(), re.MULTILINE)


def test_a_mutant_of_the_scenarios_is_used_and_says_what_catches_it() -> None:
    own = mutate.mutants(Path(__file__).parent / "mutants")
    for mutant in own:
        assert {scenario.off[mutant.name] for scenario in LOST[mutant.name]} == set(mutant.expected)
