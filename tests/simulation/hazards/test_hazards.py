"""Each hazard is survived, and would not be without its mechanism."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

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
#: All mutated copies play their scenarios within so long on a busy machine, seconds.
PLAY_S = 600.0


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_hazard_is_met_and_survived(scenario: Scenario) -> None:
    played = scenario.play()
    assert played.missed == "", "the situation did not come: this proves nothing"
    assert played.violation is None
    assert played.unseen == (), "the mechanism did not show"


def test_without_its_mechanism_no_hazard_is_survived(tmp_path: Path) -> None:
    jobs = [(str(tmp_path / name), [scenario.name for scenario in lost]) for name, lost in LOST.items()]
    for name in LOST:
        mutate.plant(MUTANTS[name], tmp_path / name)
    done = mutate.run_in(mutate.ROOT, "tests.simulation.hazards.play", json.dumps(jobs), timeout_s=PLAY_S)
    assert done.returncode == 0, done.stderr
    results = zip(LOST, json.loads(done.stdout), strict=True)
    assert [text for name, played in results if (text := _wrong(name, played))] == []


def _wrong(name: str, played: dict[str, Any]) -> str:
    """What a mutant did not do that it had to; "" when it broke what it has to break."""
    if "error" in played:
        return f"{name}: {played['error']}"
    for scenario in LOST[name]:
        one = played[scenario.name]
        check = (one["violation"] or {}).get("name")
        if one["missed"] or check != scenario.off[name]:
            return f"{name}: {scenario.name} broke {check}, not {scenario.off[name]}: {one}"
    return ""


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
