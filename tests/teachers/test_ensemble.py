"""Ensembles: closed forms of the fusions, memories carried apart, what does not mix, and a played one."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from hostile_cases import FIXTURES
from scipy import stats

from limbeck import distributions, identity, rollout, seeding, tasks, teachers
from limbeck.contracts import Blueprint, Dense, Gru, PolicyOutput, Spec, Teacher, View
from limbeck.errors import InputError
from limbeck.spaces import head_for
from limbeck.teachers import ensemble

BOX = gym.spaces.Box(-9, 9, (3,), np.float32)
CHOICE = Spec(BOX, gym.spaces.Discrete(3))
MOVE = Spec(BOX, gym.spaces.Box(-2, 2, (1,), np.float32))
CART = gym.make("CartPole-v1")
CARTPOLE = Spec(CART.observation_space, CART.action_space, "CartPole-v1")
RNG = np.random.default_rng(0)
OBS = RNG.standard_normal((4, 3)).astype(np.float32)


def linear(seed: int, kind: str = "categorical", spec: Spec = CHOICE, critic: bool = False) -> Blueprint:
    rng, head = np.random.default_rng(seed), head_for(spec.action_space, kind)
    made = [Dense(rng.standard_normal((3, n)).astype(np.float32), np.zeros(n, np.float32), "identity") for n in (head.width, 1)]  # fmt: skip
    return Blueprint(spec, head, (made[0],), value_layers=(made[1],) if critic else (), name=f"l{seed}")


def said(teacher: Teacher, obs: np.ndarray = OBS) -> PolicyOutput:
    return teacher.policy(obs, teacher.policy.initial_state(len(obs)), np.ones(len(obs), bool))


def rows(blueprint: Blueprint, obs: np.ndarray = OBS) -> np.ndarray:
    return said(teachers.load(blueprint), obs).params.astype(np.float64)


# ---------------------------------------------------------------- closed forms


def test_the_mean_of_categoricals_is_the_geometric_mean_of_probabilities():
    a, b = linear(1), linear(2)
    p, q = (np.exp(rows(m)) / np.exp(rows(m)).sum(1, keepdims=True) for m in (a, b))
    pool = np.sqrt(p * q)
    fused = said(teachers.load([a, b])).params
    np.testing.assert_allclose(np.exp(fused), pool / pool.sum(1, keepdims=True), rtol=1e-5)


def test_the_pool_does_not_depend_on_where_logits_are_zero():
    head = head_for(CHOICE.action_space)
    two = RNG.standard_normal((2, 5, 3)).astype(np.float32)
    moved = two + np.array([100, -40], np.float32)[:, None, None]
    np.testing.assert_allclose(ensemble.pooled(head, two), ensemble.pooled(head, moved), atol=1e-4)


def test_each_choice_of_a_multidiscrete_action_is_pooled_by_itself():
    space = gym.spaces.MultiDiscrete([2, 3])
    head, two = head_for(space), RNG.standard_normal((2, 5, 5)).astype(np.float32)
    fused = ensemble.pooled(head, two)
    for part, n in ((slice(0, 2), 2), (slice(2, 5), 3)):
        alone = ensemble.pooled(head_for(gym.spaces.Discrete(n)), two[:, :, part])
        np.testing.assert_allclose(fused[:, part], alone, atol=1e-6)


def test_bernoulli_rows_are_pooled_in_log_odds():
    head = head_for(gym.spaces.MultiBinary(2))
    p = np.array([[[0.9, 0.2]], [[0.6, 0.7]]])
    fused = ensemble.pooled(head, np.log(p / (1 - p)).astype(np.float32))
    on, off = np.sqrt(p[0] * p[1]), np.sqrt((1 - p[0]) * (1 - p[1]))
    np.testing.assert_allclose(1 / (1 + np.exp(-fused)), on / (on + off), rtol=1e-5)


def test_gaussians_are_pooled_as_densities():
    head = head_for(MOVE.action_space, "gaussian")
    mean, std = np.array([0.3, -1.2]), np.array([0.5, 2.0])
    fused = ensemble.pooled(head, np.stack([mean, np.log(std)], 1)[:, None].astype(np.float32))
    grid = np.linspace(-8, 8, 20_001)
    density = np.sqrt(stats.norm.pdf(grid, mean[0], std[0]) * stats.norm.pdf(grid, mean[1], std[1]))
    density /= density.sum()
    centre = (grid * density).sum()
    spread = np.sqrt(((grid - centre) ** 2 * density).sum())
    np.testing.assert_allclose(fused[0], [centre, np.log(spread)], atol=1e-4)


def test_action_values_are_averaged_whatever_their_level():
    a, b = linear(1, "q"), linear(2, "q")
    high = replace(b, layers=(replace(b.layers[0], bias=np.full(3, 1000, np.float32)),))
    fused = said(teachers.load([a, high])).params
    np.testing.assert_allclose(fused, (rows(a) + rows(high)) / 2, rtol=1e-5)
    np.testing.assert_array_equal(fused.argmax(1), said(teachers.load([a, b])).params.argmax(1))


def test_entropies_have_their_closed_forms():
    logits = RNG.standard_normal((6, 3)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = ensemble.entropy(head_for(CHOICE.action_space), logits)
    np.testing.assert_allclose(found, stats.entropy(p, axis=1), rtol=1e-5)
    gaussian = ensemble.entropy(head_for(MOVE.action_space, "gaussian"), np.array([[5.0, -0.4]]))
    np.testing.assert_allclose(gaussian, stats.norm(0, np.exp(-0.4)).entropy(), rtol=1e-5)
    coin = ensemble.entropy(head_for(gym.spaces.MultiBinary(1)), np.array([[0.8]]))
    np.testing.assert_allclose(coin, stats.bernoulli(1 / (1 + np.exp(-0.8))).entropy(), rtol=1e-5)


def test_by_confidence_the_most_certain_member_speaks():
    a, b = linear(1), linear(2)
    fused = said(ensemble.of([teachers.load(m) for m in (a, b)], "confidence")).params
    sure = [ensemble.entropy(a.head, rows(m)) for m in (a, b)]
    wanted = np.where((sure[0] <= sure[1])[:, None], rows(a), rows(b))
    assert 0 < (sure[0] <= sure[1]).sum() < 4
    np.testing.assert_allclose(fused, wanted, atol=1e-6)


def test_by_value_the_member_that_values_the_state_highest_speaks():
    a, b = linear(1, critic=True), linear(5, critic=True)
    output = said(ensemble.of([teachers.load(m) for m in (a, b)], "value"))
    values = [said(teachers.load(m)).value for m in (a, b)]
    wanted = np.where((values[0] >= values[1])[:, None], rows(a), rows(b))
    assert 0 < (values[0] >= values[1]).sum() < 4
    np.testing.assert_allclose(output.params, wanted, atol=1e-6)
    np.testing.assert_allclose(output.value, np.maximum(*values), atol=1e-6)
    q = ensemble.of([teachers.load(linear(s, "q")) for s in (1, 2)], "value")
    best = np.where((rows(linear(1, "q")).max(1) >= rows(linear(2, "q")).max(1))[:, None], rows(linear(1, "q")), rows(linear(2, "q")))  # fmt: skip
    np.testing.assert_allclose(said(q).params, best, atol=1e-6)


def test_an_ensemble_of_one_teacher_twice_is_that_teacher():
    for kind, spec in (("categorical", CHOICE), ("q", CHOICE), ("gaussian", MOVE), ("squashed", MOVE), ("tanh", MOVE)):
        member = linear(3, kind, spec)
        fused = said(teachers.load([member, member]))
        alone = rows(member)
        if kind == "categorical":
            alone = distributions.log_softmax(alone)
        elif kind in ("gaussian", "squashed"):  # log standard deviations are read within the same limits everywhere
            alone = np.concatenate([alone[:, :1], np.clip(alone[:, 1:], *distributions.LOG_STD_RANGE)], axis=1)
        np.testing.assert_allclose(fused.params, alone, atol=1e-5)


def test_continuous_heads_of_two_kinds_become_executed_actions():
    a, b = linear(1, "squashed", MOVE), linear(2, "deterministic", MOVE)
    teacher = teachers.load((a, b))
    assert teacher.policy.head.kind == "deterministic"
    acts = [distributions.act(m.head, rows(m).astype(np.float32)) for m in (a, b)]
    np.testing.assert_allclose(said(teacher).params, (acts[0] + acts[1]) / 2, atol=1e-6)


# ---------------------------------------------------------------- memory


def test_members_keep_their_own_memories():
    rng = np.random.default_rng(4)

    def recurrent(seed: int) -> Blueprint:
        own = np.random.default_rng(seed)
        draw = lambda *shape: own.standard_normal(shape).astype(np.float32)  # noqa: E731
        gru = Gru(draw(3, 12), draw(4, 12), np.zeros(12, np.float32), np.zeros(12, np.float32))
        return Blueprint(CHOICE, head_for(CHOICE.action_space), (gru, Dense(draw(4, 3), np.zeros(3, np.float32), "identity")))  # fmt: skip

    members = [recurrent(1), recurrent(2), replace(linear(3), layers=(Dense(np.ones((6, 3), np.float32), np.zeros(3, np.float32), "identity"),), view=View(history=2))]  # fmt: skip
    together = teachers.load(members).policy
    alone = [teachers.load(m).policy for m in members]
    state, states = together.initial_state(2), [p.initial_state(2) for p in alone]
    for step in range(4):
        obs, first = rng.standard_normal((2, 3)).astype(np.float32), np.array([step == 0, step in (0, 2)])
        output = together(obs, state, first)
        outputs = [p(obs, s, first) for p, s in zip(alone, states, strict=True)]
        state, states = output.state, [o.state for o in outputs]
        wanted = ensemble.pooled(together.head, np.stack([o.params for o in outputs]))
        np.testing.assert_allclose(output.params, wanted, atol=1e-6)


# ---------------------------------------------------------------- what does not mix


def test_what_does_not_mix_is_refused():
    cases = [
        ([linear(1), linear(2, "q")], "mean", "action values are no logits"),
        ([linear(1), linear(2, "gaussian", MOVE)], "mean", "for another task"),
        ([linear(1, "q"), linear(2, "q")], "confidence", "which have an entropy"),
        ([linear(1), linear(2)], "value", "member 1 .* states no value"),
        ([linear(1, critic=True), linear(2)], "value", "member 2 .* states no value"),
        ([linear(1)], "mean", "ensemble of 1"),
        ([linear(1), linear(2)], "median", "unknown"),
    ]
    for members, fusion, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            ensemble.of([teachers.load(m) for m in members], fusion)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["ensemble:", "ensemble:a.zip", "ensemble:mean:a.zip,", "ensemble:a,ensemble:b,c"])
def test_names_of_no_ensemble_are_refused(text):
    with pytest.raises(InputError, match="ensemble"):
        teachers.load(text, CARTPOLE)


def test_an_option_of_one_member_is_refused():
    with pytest.raises(InputError, match="whose is open"):
        teachers.load(f"ensemble:{FIXTURES / 'cartpole_ppo_sb3.zip'},{FIXTURES / 'sb3_a2c_cartpole.zip'}", CARTPOLE, kind="q")  # fmt: skip


# ---------------------------------------------------------------- on the command line's name


def test_the_record_lists_all_members_and_identity_covers_them():
    files = [FIXTURES / "cartpole_ppo_sb3.zip", FIXTURES / "sb3_a2c_cartpole.zip"]
    text = f"ensemble:confidence:{files[0]},{files[1]}"
    teacher = teachers.load(text, CARTPOLE)
    alone = [teachers.load(f, CARTPOLE).info for f in files]
    assert teacher.info.format == "ensemble"
    assert [m["sha256"] for m in teacher.info.stated["members"]] == [i.sha256 for i in alone]
    assert "2, fused by confidence" in teacher.info.notes[0]
    variants = [text, text.replace("confidence", "mean"), f"ensemble:confidence:{files[1]},{files[0]}", f"ensemble:confidence:{files[0]},{FIXTURES / 'sb3old_ppo_cartpole.zip'}"]  # fmt: skip
    assert len({identity.of_teacher(teachers.load(v, CARTPOLE)) for v in variants}) == len(variants)
    assert teachers.inspect(text).sha256 == teacher.info.sha256


def test_an_ensemble_of_noisy_teachers_plays_and_retains_more_than_they_do():
    """Six copies of a teacher, each disturbed by noise of its own: the pool averages it out."""
    task = tasks.resolve("CartPole-v1")
    sound = teachers.load(FIXTURES / "cartpole_ppo_sb3.zip", task.spec)
    assert sound.blueprint is not None
    noisy = [disturbed(sound.blueprint, seed, 2.0) for seed in range(6)]
    seeds = [seeding.episode_seed(0, "collect", i) for i in range(8)]

    def mean_return(teacher: Teacher) -> float:
        return float(rollout.play(teacher.policy, task, seeds, run_seed=0).returns.mean())

    alone = [mean_return(teachers.load(m, task.spec)) for m in noisy]
    together = mean_return(teachers.load(noisy, task.spec))
    assert together > np.mean(alone) + 50
    assert together >= 0.9 * mean_return(sound)


def disturbed(blueprint: Blueprint, seed: int, size: float) -> Blueprint:
    rng = np.random.default_rng(seed)
    layers = [replace(x, weight=x.weight + size * x.weight.std() * rng.standard_normal(x.weight.shape).astype(np.float32)) for x in blueprint.layers]  # fmt: skip
    return replace(blueprint, layers=tuple(layers), value_layers=())
