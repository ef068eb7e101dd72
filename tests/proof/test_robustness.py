"""Teacher and student side by side, where the disturbed return has a closed form."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from proof_cases import Rule, labelled_task, right, wrong_above

from limbeck import seeding, tasks
from limbeck.proof import robustness
from limbeck.proof.robustness import Pair

TASK = labelled_task()
SEEDS = [seeding.episode_seed(0, "stress", i) for i in range(2000)]


def pair(student, teacher=None):
    return Pair(student, teacher or right(TASK), TASK, "greedy", SEEDS, 0)


def test_noise_costs_what_the_integral_says():
    """x uniform in [0, 1], label x > .5, noise s: wrong in 2 s int_0^inf Phi(-v) dv = s sqrt(2 / pi) of the rows."""
    both = pair(right(TASK))
    base = robustness.ground(both)
    assert base.spread[""][0] == pytest.approx(1 / math.sqrt(12), abs=0.01)
    (row,) = robustness.stressed(both, base, [("noise", 0.2)])
    wrong = 0.2 * float(base.spread[""][0]) * math.sqrt(2 / math.pi)
    assert 1 - row.teacher == pytest.approx(wrong, abs=4 * math.sqrt(wrong / len(SEEDS)))
    assert row.student == row.teacher, "the same rule under the same draws"
    assert row.retention == 1.0 == row.low == row.high, "and therefore no interval"
    assert row.env_steps == 2 * len(SEEDS)
    assert base.row.env_steps == 3 * len(SEEDS)


def test_the_attack_is_worse_than_the_noise_and_known():
    """A rule on one number falls for every row within the radius of its threshold: 2 r of them."""
    both = pair(right(TASK))
    base = robustness.ground(both)
    (row,) = robustness.stressed(both, base, [("adversarial", 0.1)])
    wrong = 2 * 0.1 * float(base.spread[""][0])
    assert 1 - row.student == pytest.approx(wrong, abs=4 * math.sqrt(wrong / len(SEEDS)))


def test_retention_is_told_against_undisturbed_random_play():
    both = pair(wrong_above(TASK, 0.8))
    base = robustness.ground(both)
    kept = (base.row.student - base.random.mean()) / (base.row.teacher - base.random.mean())
    assert base.row.retention == pytest.approx(kept)
    assert base.row.low < kept < base.row.high
    assert kept == pytest.approx(0.6, abs=0.05)  # (.8 - .5) / (1 - .5)
    assert (base.row.disturbance, base.row.unit) == ("none", "as the environment is")


class PendulumEnv(gym.Env):
    """Ten steps; a step pays g for action 1. Shifted by the name of its class, as Gymnasium's own is."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.g = 8.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._t += 1
        return np.full(1, self._t, np.float32), self.g * float(action == 1), self._t == 10, False, {}


def test_another_world_has_its_own_random_play():
    """All returns are proportional to g, so what is kept is the same in every gravity, against random play there."""
    task = tasks.resolve(PendulumEnv)
    both = Pair(
        Rule(task.spec, lambda t: np.concatenate([t - 7.5, 7.5 - t], axis=1)),  # 1 in eight of ten steps
        Rule(task.spec, lambda t: np.concatenate([-1 - t, 1 + t], axis=1)),
        task, "greedy", SEEDS[:20], 3,
    )  # fmt: skip
    base = robustness.ground(both)
    rows = list(robustness.stressed(both, base, [("gravity", 0.8), ("gravity", 1.25), ("delay", 1.0)]))
    assert base.row.teacher == 80
    for row in rows[:2]:
        assert row.teacher == pytest.approx(row.level * 80)
        assert row.retention == pytest.approx(base.row.retention)
        assert (row.low, row.high) == pytest.approx((base.row.low, base.row.high))
        assert row.env_steps == 3 * 20 * 10, "random play is on the bill"
    late = (rows[2].student - base.random.mean()) / (rows[2].teacher - base.random.mean())
    assert rows[2].retention == pytest.approx(late), "the same world: the same floor"
    assert rows[2].env_steps == 2 * 20 * 10
    assert {row.seed for row in [base.row, *rows]} == {3}


def test_the_same_again_gives_the_same_bits():
    both = pair(wrong_above(TASK, 0.8))
    base = robustness.ground(both)
    first, again = (list(robustness.stressed(both, base, [("noise", 0.1)])) for _ in range(2))
    assert first == again
    assert np.array_equal(robustness.ground(both).random, base.random)


def test_a_teacher_that_is_hardly_above_random_play_has_no_interval():
    """Four rows, of which resamples may hold none where the teacher is right and random play wrong."""
    few = replace(pair(right(TASK)), seeds=SEEDS[:4])
    base = robustness.ground(few)
    assert 0 < base.random.sum() < 4
    assert math.isnan(base.row.low)
    assert "no interval" in robustness.kept(base.row)


def test_what_is_left_out_is_told():
    told = []
    found = robustness.cases(("noise", "delay", "gravity"), TASK, lambda name, why: told.append((name, why)))
    assert found == [("noise", 0.05), ("noise", 0.1), ("noise", 0.2)]
    assert [name for name, _ in told] == ["delay", "gravity"]
