"""Shaping by the teacher's value: it telescopes, prefers no other policy, and costs fewer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from test_evolution import TASK, build, field

from limbeck import rollout, tasks
from limbeck.contracts import Observation
from limbeck.losses.reward import shaped_reward
from limbeck.polish import evolution, shaping
from limbeck.polish.shaping import Shaping

GAMMA = 0.9


def value(obs: Observation, count: int) -> Any:
    """Any function of the state will do as a potential."""
    rows = np.asarray(obs).reshape(count, -1).astype(np.float64)
    return 5 + rows @ np.linspace(1, 2, rows.shape[1]) + (rows**2).sum(axis=1)


class Walk(gym.Env[Any, Any]):
    """Nine places in a row, each worth what it is called; the ends end it, and so does `limit`. Action 1 goes up."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, limit: int = 10**6) -> None:
        self._limit = limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._place, self._age = int(self.np_random.integers(-3, 4)), 0
        return np.array([self._place], np.float32), {}

    def step(self, action: Any) -> Any:
        self._place, self._age = self._place + (1 if action else -1), self._age + 1
        return (
            np.array([self._place], np.float32), float(self._place), abs(self._place) >= 4, self._age >= self._limit, {},
        )  # fmt: skip


def walk(limit: int = 10**6) -> Any:
    return tasks.resolve(lambda: Walk(limit))


def going(task: Any, up: Callable[[float], bool]) -> Any:
    """A policy that goes up where `up` says so."""
    from limbeck import teachers

    return teachers.load(lambda obs: np.array([int(up(float(row[0]))) for row in obs]), task.spec).policy


def by_hand(task: Any, policy: Any, seed: int, horizon: int) -> tuple[float, int]:
    """sum gamma^t r'_t of one episode, step by step, each shaped on its own."""
    env, total, place = task.make(), 0.0, 0
    obs, _ = env.reset(seed=seed)
    for t in range(horizon):
        params = policy(np.asarray(obs)[None], {}, np.array([t == 0])).params
        after, reward, terminated, truncated, _ = env.step(int(params[0].argmax()))
        now, later = value(np.asarray(obs)[None], 1), value(np.asarray(after)[None], 1)
        total += GAMMA**t * float(shaped_reward(np.array([reward]), now, later, np.array([terminated]), GAMMA)[0])
        obs, place = after, t + 1
        if terminated or truncated:
            break
    return total, place


@pytest.mark.parametrize("limit", [3, 6, 10**6])
@pytest.mark.parametrize("horizon", [1, 4, 50])
def test_scores_are_the_sums_of_shaped_rewards(limit: int, horizon: int) -> None:
    task = walk(limit)
    policy = going(task, lambda place: place >= 0)
    seeds = list(range(21))
    scores, steps = shaping.score(policy, task, seeds, Shaping(horizon, GAMMA, value))
    expected = [by_hand(task, policy, seed, horizon) for seed in seeds]
    assert np.allclose(scores, [total for total, _ in expected], rtol=1e-9)
    assert steps == sum(taken for _, taken in expected)


def test_they_telescope_to_a_return_that_the_value_completes() -> None:
    task = walk()
    policy = going(task, lambda place: place % 2 == 0)  # to and fro between two places, for ever
    scores, steps = shaping.score(policy, task, [5], Shaping(40, GAMMA, value))
    env = task.make()
    start = float(env.reset(seed=5)[0][0])
    places = [start]
    for _ in range(40):
        places.append(places[-1] + (1 if places[-1] % 2 == 0 else -1))
    returned = sum(GAMMA**t * places[t + 1] for t in range(40))
    worth = [float(value(np.array([[p]]), 1)[0]) for p in (places[0], places[-1])]
    assert scores[0] == pytest.approx(returned + GAMMA**40 * worth[1] - worth[0], rel=1e-9)
    assert steps == 40


def test_a_vector_environment_that_hides_its_last_state_is_left_one_step_before() -> None:
    venv = gym.vector.SyncVectorEnv([lambda: Walk(6)] * 4, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)
    hidden, single = tasks.resolve(venv), walk(6)
    policy = going(single, lambda place: place % 2 == 0)
    mine, _ = shaping.score(policy, hidden, list(range(8)), Shaping(50, GAMMA, value))
    shorter, _ = shaping.score(policy, single, list(range(8)), Shaping(5, GAMMA, value))
    assert np.allclose(mine, shorter, rtol=1e-9)


def test_with_a_policys_own_value_every_horizon_scores_it_the_same() -> None:
    """V = V^pi makes gamma^H V(s_H) exactly what is missing, so the cut is free of bias (THOR, section 3)."""
    task = walk()
    policy = going(task, lambda place: place > -1)
    own = {}
    for begin in range(-3, 4):
        place, total, t = float(begin), 0.0, 0
        while abs(place) < 4:
            place += 1 if place > -1 else -1
            total, t = total + GAMMA**t * place, t + 1
        own[begin] = total
    exact = Shaping(1, GAMMA, lambda obs, count: np.array([own[int(p)] for p in np.asarray(obs).reshape(-1)]))
    scores = [shaping.score(policy, task, list(range(8)), replace(exact, horizon=h))[0] for h in (1, 2, 3, 9)]
    assert np.allclose(scores, 0.0, atol=1e-9), "what it earns is what its value promised"


def test_no_policy_is_preferred_that_was_not_before() -> None:
    """On a small random decision process, for every policy: shaped value = value - Phi (Ng et al. 1999, theorem 1)."""
    rng = np.random.default_rng(0)
    states, actions = 4, 2
    moves, rewards = rng.dirichlet(np.ones(states), (states, actions)), rng.normal(size=(states, actions, states))
    ends = np.array([False, False, False, True])  # entering the last state ends it
    potential = rng.normal(size=states) * 10
    wide = np.broadcast_to
    shape = (states, actions, states)
    shaped = shaped_reward(
        rewards, wide(potential[:, None, None], shape), wide(potential, shape), wide(ends, shape), GAMMA
    )

    def worth(chosen: tuple[int, ...], reward: np.ndarray) -> np.ndarray:
        step = moves[range(states), chosen]
        gained = (step * reward[range(states), chosen]).sum(1)
        return np.linalg.solve(np.eye(states) - GAMMA * step * ~ends, gained)

    policies = [tuple(int(b) for b in f"{n:04b}") for n in range(16)]
    plain = np.array([worth(p, rewards) for p in policies])
    other = np.array([worth(p, shaped) for p in policies])
    assert np.allclose(other, plain - potential, atol=1e-9)
    assert np.array_equal(np.argsort(plain[:, 0]), np.argsort(other[:, 0]))
    unended = shaped_reward(
        rewards, wide(potential[:, None, None], shape), wide(potential, shape), np.zeros(shape, bool), GAMMA
    )
    wrong = np.array([worth(p, unended) for p in policies])
    assert not np.array_equal(np.argsort(plain[:, 0]), np.argsort(wrong[:, 0])), (
        "a potential at an end would prefer some"
    )


def balance(obs: Observation, count: int) -> Any:
    """What a CartPole state is worth to whoever balances well: less the more it leans and moves."""
    rows = np.asarray(obs, np.float64).reshape(count, -1)
    return np.maximum(0.0, 20 - 40 * np.abs(rows[:, 2] + 0.3 * rows[:, 3]) - 2 * np.abs(rows[:, 0]))


def test_a_truncated_search_takes_fewer_steps_and_still_learns() -> None:
    begin = np.zeros(10, np.float32)
    short = replace(field(), shaping=Shaping(15, 0.95, balance))
    searches = []
    for where in (field(), short):
        search = evolution.begin(where, begin)
        for _ in range(12):
            search = evolution.generation(where, search)
        searches.append(search)
    whole, cut = searches
    assert cut.env_steps < whole.env_steps / 2
    assert cut.best_return > 4 * evolution.begin(short, begin).best_return
    again = evolution.generation(short, evolution.begin(short, begin))
    twice = evolution.generation(short, evolution.begin(short, begin))
    assert np.array_equal(again.theta, twice.theta)


def test_play_leaves_every_episode_after_so_many_steps_and_no_other_way() -> None:
    policy = build(np.zeros(10, np.float32))
    whole = rollout.play(policy, TASK, list(range(6)), slots=8)
    left = rollout.play(policy, TASK, list(range(6)), slots=8, most=9)
    assert np.array_equal(left.lengths, np.minimum(whole.lengths, 9))
    with pytest.raises(ValueError, match="cannot be left"):
        rollout.play(policy, TASK, list(range(9)), slots=8, most=9)
