"""play(): start states, and returns that do not depend on how many episodes run side by side."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from limbeck import rollout, seeding, tasks
from limbeck.contracts import Blueprint, Dense, Gru
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import flat_size, head_for


def network(task, sizes=(64, 64), seed=0, gru=0):
    rng, head = np.random.default_rng(seed), head_for(task.spec.action_space)
    widths, layers = [flat_size(task.spec.observation_space), *sizes], []

    def draw(a, b):
        return (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32)

    for a, b in itertools.pairwise(widths):
        layers.append(Dense(draw(a, b), np.zeros(b, np.float32), "tanh"))
    if gru:
        zeros = np.zeros(3 * gru, np.float32)
        layers.append(Gru(draw(widths[-1], 3 * gru), draw(gru, 3 * gru), zeros, zeros))
        widths.append(gru)
    layers.append(Dense(3 * draw(widths[-1], head.width), np.zeros(head.width, np.float32)))
    return NumpyPolicy(Blueprint(task.spec, head, tuple(layers)))


def seeds(n, stage="proof"):
    return [seeding.episode_seed(0, stage, i) for i in range(n)]


def first_observations(policy, task, mode):
    """{position of the seed: first observation of its episode}"""
    found = {}

    def watch(frame):
        for row in np.flatnonzero(frame.alive & frame.first):
            found[int(frame.indices[row])] = frame.obs[row].copy()

    rollout.play(policy, task, seeds(24), mode=mode, slots=16, watch=watch)
    return found


@pytest.mark.parametrize("env", ["CartPole-v1", "LunarLander-v3"])
def test_start_states_agree_for_every_seed(env):
    task = tasks.resolve(env)
    teacher = first_observations(network(task), task, "greedy")
    student = first_observations(network(task, (4,), seed=3), task, "sampled")
    chance = first_observations(None, task, "uniform")
    assert set(teacher) == set(student) == set(chance) == set(range(24))
    for i in range(24):
        assert np.array_equal(teacher[i], student[i])
        assert np.array_equal(teacher[i], chance[i])
    assert len({obs.tobytes() for obs in teacher.values()}) == 24


@pytest.mark.parametrize(("env", "gru", "mode"), [("Pendulum-v1", 0, "greedy"), ("Pendulum-v1", 12, "greedy"), ("CartPole-v1", 0, "sampled")])  # fmt: skip
def test_returns_do_not_depend_on_the_number_of_slots(env, gru, mode):
    task = tasks.resolve(lambda: gym.make(env, max_episode_steps=100))
    policy = network(task, gru=gru)
    results = [rollout.play(policy, task, seeds(37), mode=mode, slots=slots) for slots in (1, 3, 4, 16, 64)]
    for other in results[1:]:
        assert np.array_equal(results[0].returns, other.returns)
        assert np.array_equal(results[0].lengths, other.lengths)
    assert len(set(results[0].returns)) > 5


@pytest.mark.parametrize("cuts", [(0, 5, 6, 37), (0, 16, 37), (0, 20, 30, 37)])
def test_returns_do_not_depend_on_the_cutting_into_calls(cuts):
    task = tasks.resolve(lambda: gym.make("Pendulum-v1", max_episode_steps=100))
    policy = network(task)
    whole = rollout.play(policy, task, seeds(37))
    parts = [rollout.play(policy, task, seeds(37)[a:b], number=a) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(whole.returns, np.concatenate([part.returns for part in parts]))


def test_an_episode_keeps_its_row_whatever_the_slots_and_the_cut():
    """The row that a block gives to seed number i is i mod 16."""
    task = tasks.resolve("CartPole-v1")
    met = {}

    class Spy(NumpyPolicy):
        def on_flat(self, flat, state, first, mask=None):
            for row in range(len(flat)):
                met.setdefault(flat[row].tobytes(), set()).add(row)
            return super().on_flat(flat, state, first, mask)

    starts = {}
    for number, n, slots in ((0, 40, 64), (0, 40, 4), (0, 40, 1), (7, 21, 16), (33, 7, 8)):
        met.clear()

        def watch(frame, number=number):
            for row in np.flatnonzero(frame.alive & frame.first):
                starts.setdefault(int(frame.indices[row]) + number, []).append(frame.obs[row].tobytes())

        rollout.play(
            Spy(network(task).blueprint), task, seeds(40)[number : number + n], number=number, slots=slots, watch=watch
        )
        for i in range(number, number + n):
            assert i % rollout.BLOCK in met[starts[i][-1]]


def test_a_vector_environment_with_more_lanes_than_seeds():
    make = lambda: gym.make("CartPole-v1", max_episode_steps=60)  # noqa: E731
    policy = network(tasks.resolve(make))
    alone = rollout.play(policy, tasks.resolve(make), seeds(3))
    vector = SyncVectorEnv([make] * 8, autoreset_mode=AutoresetMode.NEXT_STEP)
    together = rollout.play(policy, tasks.resolve(vector), seeds(3))
    vector.close()
    assert np.array_equal(alone.returns, together.returns)


def test_steps_are_counted():
    task = tasks.resolve("CartPole-v1")
    played = rollout.play(None, task, seeds(10), mode="uniform")
    assert played.env_steps == played.lengths.sum() == played.returns.sum()  # CartPole pays 1 a step
