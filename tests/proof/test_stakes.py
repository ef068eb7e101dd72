"""Agreement weighted by what is at stake: a teacher whose values say where mistakes matter."""

import numpy as np
import pytest
from proof_cases import Rule, labelled_task, right

from limbeck import rollout, seeding
from limbeck.contracts import Head
from limbeck.proof.agreement import fidelity
from limbeck.proof.regret import Judge

TASK = labelled_task()
SEEDS = [seeding.episode_seed(0, "fidelity", i) for i in range(500)]
STAKE = 10.0  # of states above .9; 1 elsewhere


def stakes(x):
    return np.where(x[:, :1] > 0.9, STAKE, 1.0)


def teacher(kind):
    """Q of the right action is the stake, of the wrong one 0."""
    rule = lambda x: stakes(x) * np.concatenate([x <= 0.5, x > 0.5], axis=1)  # noqa: E731
    return Rule(TASK.spec, rule, Head(kind, (2,)))


def wrong_above_nine_tenths():
    return Rule(TASK.spec, lambda x: np.where(x > 0.9, -1, 1) * np.concatenate([0.5 - x, x - 0.5], axis=1))


def share_above():
    seen = []
    rollout.play(right(TASK), TASK, SEEDS, watch=lambda frame: seen.append(frame.obs[frame.alive]))
    return float((np.concatenate(seen) > 0.9).mean())


def expected(share):
    return (1 - share) / (1 - share + STAKE * share)


def test_a_q_teacher_weighs_by_the_range_of_its_values():
    found = fidelity(wrong_above_nine_tenths(), teacher("q"), TASK, SEEDS).values
    share = share_above()
    assert 0.05 < share < 0.15
    assert found["agreement"] == pytest.approx(1 - share)
    assert found["weighted_agreement"] == pytest.approx(expected(share))
    assert "stakes" not in found


def test_a_judge_weighs_by_its_worst_action():
    def cost(obs, rows, values, acted):
        right_one = (np.asarray(obs)[:, 0] > 0.5).astype(int)
        return stakes(np.asarray(obs))[:, 0] * (acted != right_one)

    judge = Judge("exact", cost, 0.9)
    found = fidelity(wrong_above_nine_tenths(), teacher("categorical"), TASK, SEEDS, judge).values
    assert found["weighted_agreement"] == pytest.approx(expected(share_above()))
    assert found["regret"] == pytest.approx(STAKE * share_above())


def test_without_values_nothing_is_weighted():
    assert "weighted_agreement" not in fidelity(right(TASK), right(TASK), TASK, SEEDS[:8]).values
