"""Which remedy gained what: the decision alone, on returns whose cause is known because it was put there."""

import numpy as np
import pytest

from limbeck.proof.diagnosis import MOST, REMEDIES, REST, RUNGS, WEAK, Returns, decide, parts

SEEDS = 40


def returns(student, teacher=100.0, random=0.0, expected=None, spread=5.0, **probes):
    """Returns around the given means, with noise of its own for each policy."""
    rng = np.random.default_rng(3)

    def around(mean):
        return mean + spread * rng.standard_normal(SEEDS)

    found = {name: around(mean) for name, mean in probes.items()}
    return Returns(around(student), around(teacher), around(random), found, expected)


LADDERS = {
    "training": {"again": 97, "data": 98, "larger": 99, "view": 99},
    "coverage": {"again": 22, "data": 97, "larger": 99, "view": 99},
    "capacity": {"again": 22, "data": 25, "larger": 97, "view": 99},
    "imitation gap": {"again": 22, "data": 25, "larger": 28, "view": 97},
}


@pytest.mark.parametrize("cause", LADDERS)
def test_the_first_remedy_that_helps_names_the_cause(cause):
    found = decide(returns(20, **LADDERS[cause]), 0.95)
    assert found.cause == cause
    assert found.sure > 0.99
    assert abs(found.retention - 0.2) < 3 * 2 * 5 / np.sqrt(SEEDS) / 100
    assert found.low < found.retention < found.high
    assert found.parts[cause] > 0.6


@pytest.mark.parametrize("cause", [*RUNGS.values(), "weak teacher", "none", "unclear"])
def test_every_cause_has_a_remedy(cause):
    assert REMEDIES[cause]


def test_a_student_that_keeps_its_teacher_has_nothing_to_cure():
    assert decide(returns(99, again=98, data=100, larger=100), 0.95).cause == "none"


def test_a_teacher_below_what_is_expected_is_weak_whoever_imitates_it():
    found = decide(returns(28, teacher=30, expected=100.0, again=29, data=30, larger=30), 0.95)
    assert found.cause == "weak teacher"
    assert abs(found.parts["weak teacher"] - 0.7) < 0.05
    inside = returns(98, teacher=99, expected=100 + 50 * WEAK, again=98, data=98, larger=98)
    assert decide(inside, 0.95).cause == "none", "a little below what is stated is no weakness"


def test_a_teacher_that_its_students_beat_is_weak_though_nothing_is_expected():
    assert decide(returns(90, teacher=20, again=88, data=92, larger=91), 0.95).cause == "weak teacher"


def test_where_nothing_beats_random_play_the_teacher_is_weak():
    found = decide(returns(-5, teacher=-6, spread=0.0, again=-3, data=-3, larger=-2), 0.95)
    assert found.cause == "weak teacher"
    assert "better than random" in found.reason


def test_the_larger_of_two_shortfalls_counts():
    both = returns(10, teacher=50, expected=100.0, again=10, data=12, larger=49)
    assert parts(both)["weak teacher"] > parts(both)["capacity"] > 0.3
    assert decide(both, 0.95).cause == "weak teacher"


def test_what_no_probe_recovers_is_unclear():
    found = decide(returns(20, again=22, data=25, larger=30, view=35), 0.95)
    assert found.cause == "unclear"
    assert found.parts[REST] > MOST


def test_two_causes_of_one_size_are_unclear():
    assert decide(returns(10, again=10, data=55, larger=100), 0.95).cause == "unclear"


def test_noise_beyond_what_the_seeds_tell_is_unclear_and_says_to_play_more():
    found = decide(returns(80, spread=150.0, again=80, data=85, larger=95), 0.95)
    assert found.cause == "unclear"


def test_worse_than_random_play_counts_as_random_play():
    wild = returns(-400, again=-100, data=-90, larger=98)
    assert decide(wild, 0.95).cause == "capacity", "from -400 to -100 nothing was won"
    assert sum(parts(wild).values()) <= 1 + 1e-9


def test_parts_add_up_to_the_whole_shortfall():
    measured = returns(20, teacher=80, expected=110.0, again=30, data=45, larger=60, view=70)
    student, random = measured.student.mean(), measured.random.mean()
    whole = (110.0 - student) / (110.0 - random)
    assert sum(parts(measured).values()) == pytest.approx(whole, abs=1e-12)


def test_the_same_returns_and_seed_give_the_same_verdict():
    assert decide(returns(20, **LADDERS["coverage"]), 0.95, 7) == decide(returns(20, **LADDERS["coverage"]), 0.95, 7)
