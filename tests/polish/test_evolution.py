"""Evolution on return: it improves, it repeats, it continues, it counts its steps, its seeds are its own."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from limbeck import rollout, seeding, spaces, tasks
from limbeck.contracts import Blueprint, Dense
from limbeck.polish import evolution
from limbeck.polish.evolution import Field, Search
from limbeck.runtimes.numpy import NumpyPolicy

TASK = tasks.resolve("CartPole-v1")
SHAPES = {"head0.weight": (4, 2), "head0.bias": (2,)}


def build(theta):
    head = spaces.head_for(TASK.spec.action_space)
    return NumpyPolicy(Blueprint(TASK.spec, head, (Dense(theta[:8].reshape(4, 2), theta[8:]),)))


def field(**changes):
    theta = np.zeros(10, np.float32)
    base = Field(TASK, build, evolution.scales(SHAPES, theta), 0, 0, pairs=6, episodes=4, sigma=0.5, learning_rate=0.5,
                 validate_every=2, validation_episodes=10)  # fmt: skip
    return replace(base, **changes)


def run(where, generations, start=None):
    search = start or evolution.begin(where, np.zeros(10, np.float32))
    for _ in range(generations):
        search = evolution.generation(where, search)
    return search


def test_it_learns_to_balance_and_keeps_its_best():
    first = evolution.begin(field(), np.zeros(10, np.float32))
    search = run(field(), 20, first)
    assert first.best_return < 30
    assert search.best_return > 100
    fresh = [seeding.episode_seed(0, "select", i) for i in range(50)]
    assert rollout.play(build(search.best), TASK, fresh).returns.mean() > 60


def test_it_repeats_and_continues_bit_for_bit():
    whole, half = run(field(), 4), run(field(), 2)
    stored = Search.from_arrays({k: np.array(v) for k, v in half.to_arrays().items()})
    rest = run(field(), 2, stored)
    assert np.array_equal(whole.theta, rest.theta)
    assert np.array_equal(whole.best, rest.best)
    assert (whole.env_steps, whole.generation, whole.best_return) == (rest.env_steps, rest.generation, rest.best_return)


def test_every_step_is_on_the_bill(monkeypatch):
    counted, real = [], rollout.play

    def counting(*arguments, **options):
        played = real(*arguments, **options)
        counted.append((played.env_steps, [seeding.stage_of(s) for s in played.seeds.tolist()]))
        return played

    monkeypatch.setattr(rollout, "play", counting)
    search = run(field(), 2)
    assert search.env_steps == sum(steps for steps, _ in counted)
    assert {stage for _, stages in counted for stage in stages} == {"polish"}


def test_it_stops_at_the_target_at_the_limit_and_when_stale():
    zero = np.zeros(1, np.float32)
    search = Search(zero, zero, zero, zero, best_return=10.0, generation=3)
    assert evolution.finished(search, 20, target_return=9.0)
    assert evolution.finished(search, 3, target_return=99.0)
    assert evolution.finished(replace(search, stale=evolution.PATIENCE), 20, 99.0)
    assert not evolution.finished(search, 20, 99.0)


def test_members_have_streams_of_their_own():
    assert not np.array_equal(run(field(), 1).theta, run(field(member=1), 1).theta)


def test_scales_follow_the_tensors():
    theta = np.concatenate([np.full(8, 2.0), np.zeros(2)]).astype(np.float32)
    assert evolution.scales(SHAPES, theta).tolist() == [2.0] * 8 + [np.float32(0.1)] * 2


@pytest.mark.parametrize(
    "values",
    [
        [[3.0, 1.0, 2.0], [1.0, 3.0, 1.0]],
        np.random.default_rng(0).integers(-4, 4, (2, 30)).astype(float),
        np.random.default_rng(1).normal(size=(2, 5)),
        [[0.0, -0.0, np.inf], [-np.inf, np.inf, 1e-300]],
        [[7.0], [7.0]],
        [[1.0, np.nan], [2.0, 3.0]],
    ],
)
def test_ranks_are_those_of_scipy_to_the_bit(values):
    values = np.asarray(values)
    wanted = (rankdata(values, axis=None).reshape(values.shape) - 1) / (values.size - 1) - 0.5
    np.testing.assert_array_equal(evolution.centred_ranks(values), wanted)


def test_seeds_of_members_generations_and_validations_do_not_meet():
    seen = [
        seed
        for member in (0, 1, 255, 256, 300)
        for number in (0, 1, 16_384, 65_536)
        for seed in evolution.generation_seeds(field(member=member), number)
    ]
    first = seeding.episode_seed(0, "polish", evolution.VALIDATION_OFFSET)
    validation = {seeding.episode_seed(0, "polish", evolution.VALIDATION_OFFSET + i) for i in range(10**5)}
    assert first in validation
    assert len(set(seen)) == len(seen)
    assert not validation & set(seen)
