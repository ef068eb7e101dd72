"""Two that differ are told apart, the same one is known again."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
from end_to_end_cases import CARTPOLE
from gymnasium import spaces as gs
from gymnasium.vector import SyncVectorEnv

from limbeck import identity, tasks, teachers
from limbeck.contracts import PolicyOutput, Spec
from limbeck.spaces import head_for

SPEC = tasks.resolve("CartPole-v1").spec


def of(rule, kind=None):
    return identity.of_teacher(teachers.load(rule, SPEC, kind=kind))


def test_a_file_is_its_bytes_and_its_normaliser():
    loaded = teachers.load(CARTPOLE, SPEC)
    plain = identity.of_teacher(loaded)
    assert plain == loaded.info.sha256
    one, other = (
        replace(loaded, info=replace(loaded.info, stated={**loaded.info.stated, "normaliser_sha256": name}))
        for name in "ab"
    )
    assert len({plain, identity.of_teacher(one), identity.of_teacher(other)}) == 3


def test_a_callable_is_what_it_answers():
    lean = of(lambda obs: (obs[:, 2] + obs[:, 3] > 0).astype(np.int64))
    again = of(lambda x: ((x[:, 2] + x[:, 3]) > 0).astype(np.int64))
    other = of(lambda obs: (obs[:, 2] + 1.1 * obs[:, 3] > 0).astype(np.int64))
    assert lean == again != other


def test_rounding_of_another_machine_does_not_count():
    values = lambda scale: lambda obs: scale * np.stack([obs[:, 0], obs[:, 1]], axis=1)  # noqa: E731
    assert len({of(values(np.float32(scale)), kind="q") for scale in (1, 1.01)}) == 2
    rows = np.array([[1.23456789, -0.0, 4e-9]], np.float32)
    near = rows * np.float32(1 + 1e-6)
    assert identity._rounded(rows).tobytes() == identity._rounded(near).tobytes()


class Fickle:
    """A policy whose answers vary."""

    spec, head, calls = SPEC, head_for(SPEC.action_space), 0

    def initial_state(self, batch):
        return {}

    def __call__(self, obs, state, first):
        self.calls += 1
        return PolicyOutput(np.full((len(obs), 2), self.calls, np.float32), state)


def test_answers_that_vary_are_never_the_same_twice():
    assert identity.of_answers(Fickle()) != identity.of_answers(Fickle())


def test_every_kind_of_observation_can_be_drawn():
    parts = {"a": gs.Box(0, 255, (2, 2), np.uint8), "b": gs.Discrete(3, start=2), "c": gs.MultiBinary(4), "d": gs.MultiDiscrete([2, 3]),
             "e": gs.Box(-np.inf, np.inf, (2,), np.float32)}  # fmt: skip
    space = gs.Dict(parts)
    batch = identity._batch(Spec(space, gs.Discrete(2)))
    for i in range(identity.ROWS):
        assert space.contains(
            {key: np.asarray(values[i]) if key != "b" else int(values[i]) for key, values in batch.items()}
        )
    assert all(len(np.unique(np.asarray(values), axis=0)) > 1 for values in batch.values())


def test_tasks_that_share_a_class_are_told_apart():
    def vector(env_id, count, **more):
        env = SyncVectorEnv([lambda: gym.make(env_id, **more)] * count)
        found = identity.of_task(tasks.resolve(env))
        env.reset(seed=0)
        env.close()
        return found

    two, three, swing = vector("CartPole-v1", 2), vector("CartPole-v1", 3), vector("Pendulum-v1", 2)
    assert two != three
    assert two["observation_space"] != swing["observation_space"]
    assert two != vector("CartPole-v1", 2, max_episode_steps=30)
    assert two == vector("CartPole-v1", 2)
