"""A family's claims share one error probability: exactly over all truths, and by simulation of real e-processes."""

import doctest
import itertools
import math

import numpy as np
import pytest

from limbeck.proof import eprocess, sharing
from limbeck.proof.sharing import Sharing

FAMILIES = [
    [["a"]],
    [["a", "b", "c"]],
    [["a", "b"], ["c"]],
    [["a", "b", "c"], ["d"], ["e"], ["f"]],
    [["a"], ["b"], ["c"], ["d"], ["e"]],
]


def test_examples():
    assert doctest.testmod(sharing) == (0, 3)


@pytest.mark.parametrize("lines", FAMILIES)
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.013])
def test_whatever_is_true_the_chances_of_false_claims_sum_to_alpha_at_most(lines, alpha):
    """The union bound over the false claims, each at the level it has when no false one before it is proved: the worst
    case of any dependence, reached where the e-processes cross one at a time. It is alpha where the last claim is false."""
    family, names = Sharing(lines, alpha), [name for line in lines for name in line]
    for truths in itertools.product([True, False], repeat=len(names)):
        true = dict(zip(names, truths, strict=True))
        total = sum(family.level(name, lambda one: true[one]) for name in names if not true[name])  # noqa: B023
        assert total <= alpha * (1 + 1e-12)
        if not any(true.values()) or list(true.values()) == [True] * (len(names) - 1) + [False]:
            assert total == pytest.approx(alpha), "nothing is given away"


def test_one_sequence_has_all_of_alpha_to_the_bit():
    for alpha in (0.05, 0.1, 0.0123456789):
        alone = Sharing([["a", "b", "c"]], alpha)
        assert [alone.level(name, lambda one: True) for name in "abc"] == [alpha] * 3
        assert alone.level("c", lambda one: one == "a") == 0, "stopped at b"


def test_a_run_begun_without_sharing_keeps_alpha_for_each():
    old = Sharing([["a", "b"], ["c"], ["d"]], 0.05, shared=False)
    assert [old.level(name, lambda one: False) for name in "abcd"] == [0.05, 0, 0.05, 0.05]
    assert old.family == pytest.approx(0.15)
    assert "the 2 compressed members are each tested whatever became of" in old.words(), "nothing is proved yet"


SIMULATIONS, EPISODES = 1500, 250


def family_errors(family):
    """Share of simulated families of three members exactly at the margin (a crash in a tenth of the episodes, all three
    looked at after every one of them) in which any is ever proved."""
    rng = np.random.default_rng(0)
    state, crossed = eprocess.begin(1.0, 3 * SIMULATIONS), np.zeros((EPISODES, 3 * SIMULATIONS))
    for i in range(EPISODES):
        d = np.where(rng.random((1, 3 * SIMULATIONS)) < 0.1, -0.9, 0.1)
        state, path = eprocess.advance(state, d)
        crossed[i] = path[0]
    peaks = crossed.max(axis=0).reshape(SIMULATIONS, 3)
    wrong = 0
    for row in peaks:
        proved = {}
        for name, peak in zip("abc", row, strict=True):
            level = family.level(name, lambda one: proved[one])  # noqa: B023
            proved[name] = bool(level) and peak >= eprocess.threshold(level)
        wrong += any(proved.values())
    return wrong / SIMULATIONS


def test_by_simulation_a_family_of_three_sequences_errs_in_alpha_at_most():
    """Independent members, so that every sequence errs for itself; held to 4 standard errors. With alpha for each (as
    runs were begun once) more than 1 - (1 - alpha)^2 of the families err, which the test would see."""
    lines, alpha = [["a"], ["b"], ["c"]], 0.1
    margin = 4 * math.sqrt(alpha * (1 - alpha) / SIMULATIONS)
    assert family_errors(Sharing(lines, alpha)) <= alpha + margin
    assert family_errors(Sharing(lines, alpha, shared=False)) > alpha + margin
