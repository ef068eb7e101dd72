"""Better than the teacher: the e-process at r = 1 and above, its error by simulation, its power by known answers."""

import numpy as np
import pytest
from proof_cases import BOUNDS, labelled_task, right, wrong_above

from limbeck import cli
from limbeck.contracts import Bounds
from limbeck.proof import eprocess, proving, returns
from limbeck.proof.cache import ReturnCache
from limbeck.proof.returns import Triples
from limbeck.settings import ProveSettings

ALPHA, WIDE = 0.05, Bounds(-100.0, 300.0, "of the simulation")


def false_claims(retain, student_mean, proofs, looks, seed=0):
    """Simulated proofs that claim superiority at retention `retain` of a student at its margin, looking after each episode."""
    rng, state = np.random.default_rng(seed), eprocess.begin(returns.span(WIDE, retain)[0], proofs)
    claimed = np.zeros(proofs, bool)
    for _ in range(looks):
        teacher = np.clip(100 + 30 * rng.standard_normal(proofs), -50, 250)  # symmetric: clipping keeps the mean
        random = np.clip(10 * rng.standard_normal(proofs), -50, 50)
        student = np.where(rng.random(proofs) < 0.1, -90.0, (student_mean + 9) / 0.9 + 20 * rng.standard_normal(proofs))
        held = Triples(np.maximum(student, -100), teacher, random)
        state, path = eprocess.advance(state, returns.differences(held, retain)[:, 0][None])
        claimed |= path[0] >= eprocess.threshold(ALPHA)
    return int(claimed.sum())


@pytest.mark.parametrize("retain", [1.0, 1.1])
def test_a_student_at_the_margin_is_called_better_in_less_than_alpha(retain):
    """E[R] = 0 and E[T] = 100, so the margin is a student of mean 100 r; it crashes in a tenth of its episodes."""
    assert false_claims(retain, 100 * retain, proofs=1000, looks=300) <= ALPHA * 1000


@pytest.mark.slow
@pytest.mark.parametrize("retain", [1.0, 1.1, 1.5])
def test_the_same_in_many_more_simulations(retain):
    assert false_claims(retain, 100 * retain, proofs=20_000, looks=1000, seed=1) <= ALPHA * 20_000


def test_the_simulation_sees_a_student_that_is_better():
    assert false_claims(1.0, 130, proofs=200, looks=300) > 150


def prove(student, teacher, retain, most=1000):
    task = labelled_task()
    return proving.prove(
        student(task), teacher(task), task, member="m", played_by="numpy", bounds=BOUNDS, settings=ProveSettings(retain=retain, max_episodes=most),
        run_seed=0, teacher_mode="greedy", cache=ReturnCache(),
    )  # fmt: skip


def worse(task):
    return wrong_above(task, 0.7)


def test_a_student_that_is_always_right_beats_a_teacher_that_is_right_in_seven_of_ten():
    """Every bet on D = S - T in {0, 1} wins: D is 1 in .3 of the episodes, and ln 20 / ln 1.95 = 4.5 such are enough."""
    found = prove(right, worse, 1.0)
    assert found.verdict == "proved"
    assert found.reason.startswith("is better than the teacher at 95 % confidence")
    wins = sum(s > t for s, t in zip(found.student_returns, found.teacher_returns, strict=True))
    assert wins == 5


def test_the_gain_itself_can_be_claimed():
    """(1 - .5) / (.7 - .5) = 2.5 times the gain over random play: 140 % is proved, and said in words."""
    found = prove(right, worse, 1.4)
    assert found.verdict == "proved"
    assert "by >= 40 % of its gain over random play" in found.reason


def test_equals_are_not_called_better():
    found = prove(right, right, 1.0, most=200)
    assert found.verdict == "not proved"
    assert found.log_wealth == 0.0


def test_random_play_below_the_floor_leaves_claims_above_one_undecided():
    """Above 1, D rises with the random return, so its lower bound rests on the floor there too."""
    trial = proving.Trial(Bounds(0.0, 1.0, "b"), ProveSettings(retain=1.2), 0)
    trial.count(Triples(np.array([1.0]), np.array([0.5]), np.array([-0.1])))
    assert trial.verdict == "undecided"
    assert "random play returned -0.1, below the floor 0" in trial.reason


def test_the_flag_sets_the_share_and_is_refused_beside_it(capsys):
    assert cli.main(["prove", "a.safetensors", "b.safetensors", "CartPole-v1", "--superior", "--retain", "0.9"]) == 2
    assert "--superior was given with --retain" in capsys.readouterr().err
