"""The fit against Q that is known exactly: FrozenLake by linear equations, a linear-quadratic problem in closed form."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from limbeck import critic
from limbeck.contracts import Head
from limbeck.critic import Steps
from limbeck.errors import InputError
from limbeck.proof import expected_regret
from limbeck.settings import CriticSettings

GAMMA = 0.95
STATES, ACTIONS = 16, 4
EVERY = torch.eye(STATES)


def lake(slippery: bool) -> tuple[np.ndarray, np.ndarray, dict]:
    """P[s, a, s'] without what ends the episode, E r[s, a], and Gymnasium's own table."""
    table = gym.make("FrozenLake-v1", map_name="4x4", is_slippery=slippery).unwrapped.P
    moves, reward = np.zeros((STATES, ACTIONS, STATES)), np.zeros((STATES, ACTIONS))
    for s in range(STATES):
        for a in range(ACTIONS):
            for share, after, gain, done in table[s][a]:
                reward[s, a] += share * gain
                moves[s, a, after] += 0.0 if done else share
    return moves, reward, table


def exact(moves: np.ndarray, reward: np.ndarray, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and V of a policy by solving Bellman's equations."""
    chain = np.einsum("sa,sab->sb", policy, moves)
    v = np.linalg.solve(np.eye(STATES) - GAMMA * chain, (policy * reward).sum(1))
    return reward + GAMMA * moves @ v, v


def softened(moves: np.ndarray, reward: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(Q* / temperature), the greedy policy for 0."""
    q = np.zeros((STATES, ACTIONS))
    for _ in range(2000):
        q = reward + GAMMA * moves @ q.max(1)
    if not temperature:
        return np.eye(ACTIONS)[q.argmax(1)]
    wide = np.exp((q - q.max(1, keepdims=True)) / temperature)
    return wide / wide.sum(1, keepdims=True)


def play(table: dict, policy: np.ndarray, rows: int, teacher_share: float) -> tuple[Steps, np.ndarray]:
    """Rows of play, of which the teacher draws a share and chance the rest; the states' numbers."""
    rng, s, told = np.random.default_rng(3), 0, []
    for _ in range(rows):
        taught = rng.random() < teacher_share
        a = rng.choice(ACTIONS, p=policy[s]) if taught else rng.integers(ACTIONS)
        outcomes = table[s][a]
        _, after, gain, done = outcomes[rng.choice(len(outcomes), p=[o[0] for o in outcomes])]
        told.append((s, a, gain, done, 1.0 if taught else policy[s, a]))
        s = int(rng.integers(14)) if done else after  # exploring starts: every state has its rows
        s = 0 if table[s][0][0][1] == s and all(o[3] for o in table[s][0]) else s  # not in a hole
    states, taken, gains, ended, trace = map(np.array, zip(*told, strict=True))
    goes_on = ~ended.astype(bool)
    goes_on[-1] = False
    steps = Steps(
        np.eye(STATES, dtype=np.float32)[states], taken.astype(np.int64), policy[states].astype(np.float32),
        gains.astype(np.float64), goes_on, ended.astype(bool), trace.astype(np.float64),
    )  # fmt: skip
    return steps, states


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("trace", [0.0, 0.95])
def test_without_chance_the_fit_is_exact(temperature: float, trace: float) -> None:
    """A deterministic lake that chance alone explores: tabular inputs hold Q, so only the ridge (1e-7) and float32 remain."""
    moves, reward, table = lake(slippery=False)
    policy = softened(moves, reward, temperature)
    steps, states = play(table, policy, 4000, teacher_share=0.0)
    settings = CriticSettings(gamma=GAMMA, trace=trace, members=1, features=16, action_features=16, ridge=1e-7)
    found = critic.fit(steps, settings, np.random.default_rng(0))
    q, v = exact(moves, reward, policy)
    seen = np.unique(states)
    pi = torch.from_numpy(policy.astype(np.float32))
    assert found.value(EVERY).numpy()[seen] == pytest.approx(v[seen], abs=0.01)
    assert found.advantage(EVERY, pi).numpy()[seen] == pytest.approx((q - v[:, None])[seen], abs=0.01)


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_on_ice_the_fit_is_within_its_noise(temperature: float) -> None:
    """Returns lie in [0, 1], so an advantage from n rows of its state and action errs by sqrt(0.25 / n) or less; twice
    that, averaged over what was visited, bounds the root mean square error. The advantages are larger than that."""
    moves, reward, table = lake(slippery=True)
    policy = softened(moves, reward, temperature)
    steps, states = play(table, policy, 12_000, teacher_share=0.5)
    found = critic.fit(steps, CriticSettings(gamma=GAMMA), np.random.default_rng(0))
    q, v = exact(moves, reward, policy)
    counts = np.zeros((STATES, ACTIONS))
    np.add.at(counts, (states, steps.taken), 1)
    shares = counts.sum(1) / counts.sum()
    wanted = q - v[:, None]
    got = found.advantage(EVERY, torch.from_numpy(policy.astype(np.float32))).numpy()
    noise = np.sqrt((shares[:, None] * np.minimum(1.0, 4 * 0.25 / np.maximum(counts, 1))).mean(1).sum())
    error = np.sqrt((shares[:, None] * (got - wanted) ** 2).mean(1).sum())
    scale = np.sqrt((shares[:, None] * wanted**2).mean(1).sum())
    assert error < noise
    assert error < 0.6 * scale
    assert (policy * got).sum(1) == pytest.approx(np.zeros(STATES), abs=1e-6)  # V = E Q by construction


def test_the_performance_difference_lemma_holds_for_expected_regret() -> None:
    """J(pi_T) - J(pi_S) = sum_s d(s) regret(s), d the discounted visits of the student (Kakade & Langford 2002)."""
    moves, reward, _ = lake(slippery=True)
    teacher, student = softened(moves, reward, 0.0), softened(moves, reward, 0.3)
    q, v = exact(moves, reward, teacher)
    chain = np.einsum("sa,sab->sb", student, moves)
    visits = np.linalg.solve(np.eye(STATES) - GAMMA * chain.T, np.eye(STATES)[0])
    regret = expected_regret(q - v[:, None], np.log(student), Head("categorical", (ACTIONS,)), "sampled")
    assert visits @ regret == pytest.approx(v[0] - exact(moves, reward, student)[1][0], abs=1e-10)
    assert visits @ regret > 0.05


def test_expected_regret_refuses_what_has_no_list_of_actions() -> None:
    with pytest.raises(InputError, match="one choice among several"):
        expected_regret(np.zeros((2, 3)), np.zeros((2, 3), np.float32), Head("tanh", (3,)))


def test_a_fit_is_a_function_of_its_rows_and_its_stream() -> None:
    moves, reward, table = lake(slippery=True)
    steps, _ = play(table, softened(moves, reward, 0.1), 500, 0.5)
    settings = CriticSettings(members=2, features=16, action_features=8)
    first, again, other = (critic.fit(steps, settings, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert not torch.equal(first.arrays["solution"], other.arrays["solution"])


def test_a_row_whose_outcome_is_hidden_does_not_count() -> None:
    """A time limit or a lane's end hides what came of a step, so its reward alone says nothing."""
    moves, reward, table = lake(slippery=True)
    steps, _ = play(table, softened(moves, reward, 0.1), 500, 0.5)
    cut = dataclasses.replace(steps, goes_on=steps.goes_on & (np.arange(500) % 50 != 49))
    loud = dataclasses.replace(cut, reward=np.where(cut.known, cut.reward, 1e6))
    settings = CriticSettings(members=1, features=16, action_features=8)
    found = [critic.fit(each, settings, np.random.default_rng(0)).arrays["solution"] for each in (cut, loud)]
    assert torch.equal(*found)
    assert not cut.known.all()


def test_caution_lowers_what_was_hardly_tried_most() -> None:
    moves, reward, table = lake(slippery=True)
    policy = softened(moves, reward, 0.0)
    steps, _ = play(table, policy, 4000, teacher_share=0.9)
    found = critic.fit(steps, CriticSettings(gamma=GAMMA), np.random.default_rng(0))
    pi = torch.from_numpy(policy.astype(np.float32))
    lowered = (found.advantage(EVERY, pi) - found.advantage(EVERY, pi, caution=2.0)).numpy()
    own = policy.astype(bool)
    assert lowered[own] == pytest.approx(0.0, abs=1e-6)
    assert lowered[~own].min() > 0


def test_a_continuous_fit_finds_the_closed_form() -> None:
    """s' = s + a/2, r = -s^2 - a^2/10, teacher a = -s: V = -p s^2 with p = 1.1 + gamma p / 4, so
    Q(s, a) = -s^2 - a^2/10 - gamma p (s + a/2)^2. Ranges are those of the data; Q spans 2 there, 5 % of that is allowed."""
    rng = np.random.default_rng(0)
    rows, length = 6000, 10
    s, a, reward = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    for t in range(rows):
        s[t] = rng.uniform(-1, 1) if t % length == 0 else s[t - 1] + a[t - 1] / 2
        a[t] = np.clip(-s[t] + rng.normal(0, 0.4), -1, 1)
        reward[t] = -(s[t] ** 2) - a[t] ** 2 / 10
    goes_on = np.arange(rows) % length != length - 1
    inputs, taken = s[:, None].astype(np.float32), a[:, None].astype(np.float32)
    steps = Steps(inputs, taken, -inputs[:, None], reward, goes_on, np.zeros(rows, bool), np.zeros(rows))
    found = critic.fit(steps, CriticSettings(gamma=GAMMA, ridge=1e-5), np.random.default_rng(1))
    p = 1.1 / (1 - GAMMA / 4)

    def q(s: np.ndarray, a: np.ndarray) -> np.ndarray:
        return -(s**2) - a**2 / 10 - GAMMA * p * (s + a / 2) ** 2

    at, act = (np.linspace(-0.6, 0.6, 9).repeat(5), np.tile(np.linspace(-0.8, 0.8, 5), 9))
    seen, tried, own = (torch.from_numpy(x[:, None].astype(np.float32)) for x in (at, act, -at))
    near = np.abs(act + at) < 0.8  # two deviations of what was tried
    got = (found.preference(seen, tried) - found.preference(seen, own)).numpy()
    assert got[near] == pytest.approx((q(at, act) - q(at, -at))[near], abs=0.1)
    assert found.value(seen).numpy() == pytest.approx(-p * at**2, abs=0.1)
