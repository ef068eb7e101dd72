"""Potential-based shaping: it telescopes, and leaves every policy's advantage as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.losses.reward import shaped_reward


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.5, 1.0), st.booleans())
def test_it_telescopes(seed, length, gamma, terminated):
    """sum gamma^t r' = sum gamma^t r - V(s_0) + gamma^T V(s_T), the last 0 at the task's own end, not at a time limit."""
    rng = np.random.default_rng(seed)
    reward, potential = rng.normal(size=length), rng.normal(size=length + 1) * 10
    ended = np.zeros(length, bool)
    ended[-1] = terminated
    shaped = shaped_reward(reward, potential[:-1], potential[1:], ended, gamma)
    discount = gamma ** np.arange(length)
    left = 0.0 if terminated else gamma**length * potential[-1]
    assert discount @ shaped == pytest.approx(discount @ reward - potential[0] + left, abs=1e-9)


def test_steps_of_several_episodes_are_one_step_of_their_length():
    """What the polish scores: H steps at once are gamma^H, an H for each episode."""
    rng, gamma, lengths = np.random.default_rng(3), 0.9, np.array([1, 4, 7])
    returns, begun, left, ended = (
        rng.normal(size=3),
        rng.normal(size=3),
        rng.normal(size=3),
        np.array([True, False, True]),
    )
    at_once = shaped_reward(returns, begun, left, ended, gamma**lengths)
    for i, length in enumerate(lengths):
        values = np.array([begun[i], *rng.normal(size=length - 1), left[i]])
        rewards = np.zeros(length)
        rewards[0] = returns[i]
        last = np.zeros(length, bool)
        last[-1] = ended[i]
        steps = shaped_reward(rewards, values[:-1], values[1:], last, gamma)
        assert at_once[i] == pytest.approx(gamma ** np.arange(length) @ steps, abs=1e-9)


def test_by_hand():
    shaped = shaped_reward(
        np.array([1.0, 1.0]), np.array([4.0, 2.0]), np.array([2.0, 6.0]), np.array([False, False]), 0.5
    )
    assert shaped.tolist() == [-2.0, 2.0]


def test_what_stands_behind_a_terminal_state_does_not_matter():
    for nonsense in (1e9, np.nan):
        assert shaped_reward(np.ones(1), np.ones(1), np.array([nonsense]), np.array([True]), 0.9).tolist() == [0.0]


def test_the_teachers_own_steps_are_worth_its_advantage():
    """With Phi = V_T, E[r'] of an action is A_T: the reward then says at once what AggreVaTe would (horizon 1)."""
    rng = np.random.default_rng(0)
    gamma, rewards, moves = 0.9, rng.normal(size=(5, 2)), rng.integers(5, size=(5, 2))
    value = np.zeros(5)
    for _ in range(500):
        value = (rewards + gamma * value[moves]).max(axis=1)
    shaped = shaped_reward(rewards[:, 0], value, value[moves[:, 0]], np.zeros(5, bool), gamma)
    assert shaped == pytest.approx((rewards + gamma * value[moves])[:, 0] - value, abs=1e-9)
    assert (shaped <= 1e-9).all()
