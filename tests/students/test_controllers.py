"""Controllers of a few numbers: planted ones are found again, budgets are kept, and CartPole's from a neural teacher."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from limbeck import rollout, runs, seeding, settings
from limbeck.contracts import Floats, Head, Sparse
from limbeck.runtimes.numpy import NumpyPolicy, sums
from limbeck.stages import growing, learn, refusals, scene
from limbeck.stages.opening import open_both
from limbeck.students.trees import rules, targets
from limbeck.students.trees.targets import Examples

TWO, FOUR = Head("categorical", (2,)), Head("categorical", (4,))
TEACHER = Path(__file__).parents[2] / "recipes" / "teachers" / "cartpole.safetensors"


def rng(*counters: int) -> np.random.Generator:
    return seeding.generator(1, "train", 56, *counters)


def certain(x: Floats, action: np.ndarray, head: Head, weight: Floats | None = None) -> Examples:
    params = np.where(np.eye(head.width, dtype=bool)[action.astype(int)], 0.0, -5.0).astype(np.float32)
    return targets.examples(x, params, head, head, np.ones(len(x), np.float32) if weight is None else weight)


def said(layer: Sparse, x: Floats) -> Floats:
    return layer.offset + sums(layer.terms, x)


def test_a_planted_rule_of_whole_numbers_is_found() -> None:
    """2 x2 + x3 > 0 among five inputs, as two numbers; four different directions agree less."""
    x = rng(1).normal(size=(3000, 5)).astype(np.float32)
    best = rules.search(certain(x, 2 * x[:, 2] + x[:, 3] > 0, TWO), 3, ternary=False, keep=16)[0]
    assert (best.loss, best.layer.reads, best.layer.weight.tolist(), best.layer.biased) == (0, ((), (2, 3)), [2, 1], ())


def test_a_planted_threshold_takes_one_number() -> None:
    x = rng(2).normal(size=(2000, 3)).astype(np.float32)
    examples = certain(x, x[:, 0] - x[:, 1] > 0.4, TWO)
    three = rules.search(examples, 3, ternary=False, keep=4)[0]
    assert (three.layer.parameters, three.loss) == (3, pytest.approx(0, abs=1e-12))
    assert three.layer.reads == ((), (0, 1))
    assert -three.layer.bias[0] / three.layer.weight[0] == pytest.approx(0.4, abs=5e-3)  # rows lie 1e-3 apart
    assert rules.search(examples, 2, ternary=False, keep=4)[0].loss > 0.05


def test_ternary_weights_are_ternary() -> None:
    x = rng(3).normal(size=(2000, 4)).astype(np.float32)
    best = rules.search(certain(x, x[:, 0] + x[:, 2] - x[:, 3] > 0, TWO), 4, ternary=True, keep=8)
    assert all(np.isin(one.layer.weight, [-1, 1]).all() for one in best)
    assert (best[0].loss, best[0].layer.reads[1]) == (0, (0, 2, 3))


def test_the_best_threshold_is_the_best_of_all() -> None:
    """Against trying every cut, ties and weights included."""
    values = np.round(rng(4).normal(size=60), 1).astype(np.float32)
    wanted, weight = rng(5).random(60) < 0.5, rng(6).random(60)
    loss, threshold = rules._best_threshold(values, wanted, weight)
    cuts = [values.min() - 1, *(np.unique(values)[1:] + np.unique(values)[:-1]) / 2, values.max() + 1]
    tried = [weight[(values > t) != wanted].sum() for t in cuts]
    assert loss == pytest.approx(min(tried))
    assert weight[(values.astype(np.float64) > threshold) != wanted].sum() == pytest.approx(min(tried))


def test_counted_rules_are_all_there_are() -> None:
    """Triples of -1 ... 1 without zeros: 8; of -3 ... 3: 216 less those with the common divisors 2 (8) and 3 (8)."""
    assert len(list(rules._wholes(3, 1))) == 8
    assert len(list(rules._wholes(3, 3))) == 200
    assert sorted(rules._wholes(1, 3)) == [(-1,), (1,)]


@pytest.mark.parametrize("head", [TWO, FOUR, Head("multicategorical", (2, 3)), Head("bernoulli", (3,))])
@pytest.mark.parametrize(("numbers", "ternary"), itertools.product([1, 4, 9], [False, True]))
def test_budgets_are_kept(head: Head, numbers: int, ternary: bool) -> None:
    x = rng(7).normal(size=(400, 4)).astype(np.float32)
    params = rng(8).normal(size=(400, head.width)).astype(np.float32)
    found = rules.search(targets.examples(x, params, head, head, np.ones(400, np.float32)), numbers, ternary, 5)
    assert 0 < len(found) <= 5
    for one in found:
        assert one.layer.parameters <= numbers
        assert one.layer.problem() == ""
    assert [one.loss for one in found] == sorted(one.loss for one in found)


def test_regression_keeps_the_numbers_that_matter() -> None:
    """Four actions that each depend on an input of their own among eight: those four are kept."""
    x = rng(9).normal(size=(3000, 8)).astype(np.float32)
    action = (3 * x[:, [1, 3, 5, 7]]).argmax(axis=1)
    (layer,) = rules._regressed(rules._thinned(certain(x, action, FOUR)), 4)
    assert list(layer.reads) == [(1,), (3,), (5,), (7,)]
    assert (said(layer, x).argmax(axis=1) == action).mean() > 0.97


def test_continuous_rules_are_least_squares() -> None:
    """Against numpy's solution on the inputs that are kept."""
    head = Head("deterministic", (1,), (-9.0,), (9.0,), (), (1,))
    x = (rng(10).normal(size=(2000, 3)) * [1, 5, 0.2]).astype(np.float32)
    action = (2 * x[:, :1] - 0.3 * x[:, 1:2] + 0.01 * rng(11).normal(size=(2000, 1))).astype(np.float32)
    best = rules.search(targets.examples(x, action, head, head, np.ones(2000, np.float32)), 2, False, 3)[0]
    assert (best.layer.reads, best.layer.biased) == (((0, 1),), ())
    solved = np.linalg.lstsq(x[:, :2].astype(np.float64), action[:, 0].astype(np.float64), rcond=None)[0]
    assert best.layer.weight == pytest.approx(solved, rel=1e-2)


def test_rows_that_matter_more_decide() -> None:
    """Two kinds of rows contradict each other: the one with the weight wins."""
    x = rng(12).normal(size=(2000, 2)).astype(np.float32)
    action = np.where(np.arange(2000) % 2 == 0, x[:, 0] > 0, x[:, 1] > 0)
    for side in (0, 1):
        weight = np.where(np.arange(2000) % 2 == side, 10, 1).astype(np.float32)
        assert rules.search(certain(x, action, TWO, weight), 1, False, 3)[0].layer.reads == ((), (side,))


def test_cartpole_from_a_neural_teacher(tmp_path: Path) -> None:
    """At most two numbers, found from the neural teacher, hold 500 steps on every one of 100 fresh starts.

    `theta + theta_dot`, the best that agreement alone would often choose, holds on about 90 % (methods.md section 5)."""
    recipe = settings.recipe_from(
        {"teacher": str(TEACHER), "env": "CartPole-v1", "students": ["rule:2"], "imitate": {"rounds": 2}, "grow": {"keep": 6, "final_episodes": 64},
         "verify": {"episodes": 4, "random_episodes": 4}}
    )  # fmt: skip
    task, teacher = open_both(recipe, None, None)
    refusals.refuse(recipe, task, teacher)
    here = scene.verify(runs.open_run(tmp_path / "run", recipe, lambda stage, text: None, {}), task, teacher)
    family, _ = learn.imitate_rounds(here)
    growing.settle(here, family)
    made = family.blueprint("rule-2-s0", task.name)
    assert made.parameters <= 2
    seeds = [seeding.episode_seed(0, "proof", i) for i in range(100)]
    assert (rollout.play(NumpyPolicy(made), task, seeds).returns == 500).all()
