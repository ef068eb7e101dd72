import gymnasium as gym
import numpy as np
import pytest
from proof_cases import BOUNDS, Ramp, labelled_task, right

from limbeck import rollout, seeding, tasks
from limbeck.contracts import Evaluation
from limbeck.errors import InputError
from limbeck.proof import bounding, proving
from limbeck.proof.cache import ReturnCache
from limbeck.settings import ProveSettings


def evaluation(*returns: float) -> Evaluation:
    return Evaluation("teacher", "greedy", float(np.mean(returns)), 0.0, 0.0, len(returns), 100, returns)


def test_the_task_s_own_bounds_cost_nothing():
    task = labelled_task()
    assert bounding.bounds_for(task, {}, ProveSettings(), 0) == (task.bounds, 0)


def test_widened_by_a_quarter_of_their_own_ranges():
    found = bounding.widened(np.array([200.0, 300.0]), np.array([-400.0, 0.0]))
    assert (found.floor, found.ceiling) == (-500.0, 325.0)
    assert "-400" in found.source
    assert "300" in found.source


def test_random_play_may_set_the_ceiling():
    assert bounding.widened(np.array([10.0, 20.0]), np.array([0.0, 40.0])).ceiling == 42.5


def test_a_teacher_without_range_is_raised_by_the_random_range():
    found = bounding.widened(np.array([500.0, 500.0]), np.array([10.0, 90.0]))
    assert (found.floor, found.ceiling) == (-10.0, 520.0)


def test_two_constants_are_widened_by_their_distance_and_one_is_refused():
    found = bounding.widened(np.array([4.0]), np.array([0.0, 0.0]))
    assert (found.floor, found.ceiling) == (-1.0, 5.0)
    with pytest.raises(InputError, match="no share"):
        bounding.widened(np.array([4.0, 4.0]), np.array([4.0]))


def test_measured_on_the_seeds_of_stage_bounds_and_billed():
    task = tasks.resolve(Ramp)
    settings = ProveSettings(bound_episodes=40)
    found, steps = bounding.bounds_for(task, {"greedy": evaluation(2.0, 3.0)}, settings, 7)
    seeds = [seeding.episode_seed(7, "bounds", i) for i in range(40)]
    played = rollout.play(None, task, seeds, mode="uniform", run_seed=7)
    assert steps == 40 * 5 == played.env_steps
    assert found.floor == played.returns.min() - np.ptp(played.returns) / 4
    assert found.ceiling == 3.25


def test_the_teacher_s_mode_decides_its_episodes():
    task, seen = (
        tasks.resolve(Ramp),
        {"greedy": evaluation(2.0, 3.0), "sampled": evaluation(1.0, 9.0), "random": evaluation(-50.0)},
    )
    settings = ProveSettings(bound_episodes=20)
    assert bounding.bounds_for(task, seen, settings, 0, "greedy")[0].ceiling == 3.25
    best = bounding.bounds_for(task, seen, settings, 0)[0]
    assert best.ceiling == 11.0  # the better mean is the sampled one
    assert best.floor < -50.0  # verification's random episodes count too


def test_the_step_budget_is_kept():
    returns, steps = bounding.random_returns(tasks.resolve(Ramp), 1000, 1000, 0)
    assert len(returns) == 200
    assert steps == 1000


def test_a_budget_below_the_first_episodes_still_plays_those():
    returns, _ = bounding.random_returns(tasks.resolve(Ramp), 1000, 1, 0)
    assert len(returns) == bounding.FIRST_EPISODES


def test_no_teacher_episodes_are_refused():
    with pytest.raises(InputError, match="at least one verification episode"):
        bounding.bounds_for(tasks.resolve(Ramp), {"random": evaluation(1.0)}, ProveSettings(), 0)


def test_real_environment():
    task = tasks.resolve(lambda: gym.make("CartPole-v1"))
    found, steps = bounding.bounds_for(task, {"greedy": evaluation(500.0, 500.0)}, ProveSettings(bound_episodes=100), 0)
    assert found.floor < 10 < 500 < found.ceiling < 560
    assert 1500 < steps < 3500  # random play lasts about 22 steps


def test_a_proof_never_looks_at_a_test_row_twice():
    task = labelled_task(200)  # 50 test rows: too few for 95 %, which takes 128 of a perfect student
    found = proving.prove(
        right(task), right(task), task, member="m", played_by="numpy", bounds=BOUNDS, settings=ProveSettings(),
        run_seed=0, teacher_mode="greedy", cache=ReturnCache(),
    )  # fmt: skip
    assert found.verdict == "not proved"
    assert found.episodes == len({task.row(seed) for seed in found.seeds}) == task.proof_episodes == 50
    assert bounding.affordable(task, ProveSettings(max_episodes=7)).max_episodes == 7
