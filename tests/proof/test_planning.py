import math

import numpy as np
import pytest
from proof_cases import BOUNDS, labelled_task, right, wrong_above

from limbeck import seeding
from limbeck.errors import InputError
from limbeck.proof import planning
from limbeck.proof.returns import Triples
from limbeck.settings import ProveSettings

TASK = labelled_task()
SEEDS = [seeding.episode_seed(0, "select", i) for i in range(32)]


def plan(student, settings=ProveSettings()):
    return planning.plan(student, right(TASK), TASK, BOUNDS, settings, SEEDS, "greedy", 0)


def test_the_formula():
    assert planning.expected_episodes(23, 60, 0.05, 900) == pytest.approx(2 * 900 / 23 * math.log(20))
    assert planning.expected_episodes(23, 300, 0.05, 900) == pytest.approx(2 * (300 / 23) ** 2 * math.log(20))
    assert planning.expected_episodes(-1, 300, 0.05, 900) == math.inf


@pytest.mark.parametrize(("retain", "gap", "bound", "episodes"), [(0.95, 458, 970, 136), (0.99, 458, 970, 670)])
def test_a_perfect_student(retain, gap, bound, episodes):
    """The growth per episode is ln(1 + .95 delta / B)."""
    found = planning.perfect_episodes(retain, 0.05, bound, gap)
    assert found == math.ceil(math.log(20) / math.log(1 + 0.95 * (1 - retain) * gap / bound))
    assert found == pytest.approx(episodes, rel=0.02)
    assert planning.perfect_episodes(1.0, 0.05, bound, gap) is None


def test_a_pilot_of_a_perfect_student_foretells_its_proof():
    found = plan(right(TASK))
    assert found["proved"] == 1.0
    assert found["perfect"] == pytest.approx(found["median"], rel=0.1)
    assert 80 < found["median"] <= found["nine_in_ten"] < 250
    assert found["pilot_env_steps"] == 3 * 32
    assert found["env_steps"] == 3 * found["median"]
    assert found["retention"] == 1.0


def test_a_pilot_of_a_bad_student_foretells_none():
    found = plan(wrong_above(TASK, 0.7), ProveSettings(max_episodes=200))
    assert found["proved"] == 0.0
    assert found["median"] is found["nine_in_ten"] is found["env_steps"] is None
    assert math.isinf(found["expected"])


def test_simulated_proofs_of_a_constant_gain_end_when_arithmetic_says():
    pilot = Triples(np.full(10, 1.0), np.full(10, 1.0), np.zeros(10))
    found = planning.forecast(pilot, BOUNDS, ProveSettings(), 0)
    assert (
        found["median"] == found["nine_in_ten"] == found["perfect"] == math.ceil(math.log(20) / math.log1p(0.95 * 0.05))
    )


def test_a_pilot_never_sees_the_seeds_of_the_proof():
    with pytest.raises(InputError, match="stage"):
        planning.plan(
            right(TASK), right(TASK), TASK, BOUNDS, ProveSettings(), [seeding.episode_seed(0, "proof", 0)], "greedy", 0
        )
