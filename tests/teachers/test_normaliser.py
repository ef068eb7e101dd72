"""VecNormalize statistics: the arrays the program would use, on the row that the view makes; nothing runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hostile_cases import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from pickle_mutations import edits, fuzzed, mutated, survived
from sb3_cases import BOX, LAST, Nowhere, acted, drawn, made
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from limbeck import distributions, teachers
from limbeck.contracts import Spec, View
from limbeck.errors import InputError, UnsafeError
from limbeck.teachers import normaliser


def normalised(tmp_path: Path, observation: gym.Space, **kwargs: Any) -> tuple[Any, VecNormalize]:
    """A model and its normaliser after a few hundred steps, both saved."""
    inner = DummyVecEnv([lambda: Nowhere(observation, spaces.Discrete(4))])
    env = VecNormalize(inner, **kwargs)
    env.reset()
    for _ in range(300):
        env.step(np.zeros(1, np.int64))
    model = made(PPO, observation, spaces.Discrete(4))
    model.save(tmp_path / "m.zip")
    env.save(str(tmp_path / "vec_normalize.pkl"))
    return model, env


@pytest.mark.parametrize(
    "observation",
    [
        spaces.Box(-30.0, 50.0, (5,), np.float32),
        spaces.Box(-30.0, 50.0, (2, 3), np.float64),
        spaces.Dict({"z": spaces.Box(-9, 99, (3,), np.float32), "a": spaces.Box(0, 1, (2,), np.float32)}),
    ],
)
def test_the_normaliser_beside_the_zip_is_used(observation: gym.Space, tmp_path: Path) -> None:
    model, env = normalised(tmp_path, observation, clip_obs=1.2)
    teacher = teachers.load(tmp_path / "m.zip", Spec(observation, spaces.Discrete(4)))
    obs = drawn(observation)
    wanted = model.predict(env.normalize_obs(obs), deterministic=True)[0]
    assert (acted(teacher, obs)[0] == wanted).mean() >= 0.99  # statistics are float32 here, float64 there
    assert teacher.blueprint.normaliser.clip == 1.2
    assert any("vec_normalize.pkl" in note for note in teacher.info.notes)
    assert not np.array_equal(wanted, model.predict(obs, deterministic=True)[0]), "the normaliser changes nothing"


def test_the_normaliser_by_stem_comes_first_and_rewards_alone_change_nothing(tmp_path: Path) -> None:
    normalised(tmp_path, BOX)
    (tmp_path / "vec_normalize.pkl").rename(tmp_path / "given.pkl")
    assert teachers.load(tmp_path / "m.zip").blueprint.normaliser is None
    assert teachers.load(tmp_path / "m.zip", normaliser=tmp_path / "given.pkl").blueprint.normaliser is not None
    (tmp_path / "vec_normalize.pkl").write_bytes(b"broken")
    (tmp_path / "given.pkl").rename(tmp_path / "m_vecnormalize.pkl")
    assert teachers.load(tmp_path / "m.zip").blueprint.normaliser is not None
    normalised(tmp_path, BOX, norm_obs=False)
    (tmp_path / "m_vecnormalize.pkl").unlink()
    teacher = teachers.load(tmp_path / "m.zip")
    assert teacher.blueprint.normaliser is None
    assert any("rewards only" in note for note in teacher.info.notes)


def test_an_evil_normaliser_is_refused_or_read_without_running(tmp_path: Path, trap: Any, audited: Any) -> None:
    _, env = normalised(tmp_path, BOX)
    teachers.load(tmp_path / "m.zip")
    (tmp_path / "vec_normalize.pkl").write_bytes(trap.blob)
    with pytest.raises(AttributeError):
        VecNormalize.load(str(tmp_path / "vec_normalize.pkl"), env.venv)
    assert trap.fired(), "positive control"
    with audited() as events, pytest.raises(UnsafeError, match=r"io\.open"):
        teachers.load(tmp_path / "m.zip")
    env.old_obs = trap.payload
    env.save(str(tmp_path / "vec_normalize.pkl"))
    VecNormalize.load(str(tmp_path / "vec_normalize.pkl"), env.venv)
    assert trap.fired(), "positive control"
    with audited() as more:
        teacher = teachers.load(tmp_path / "m.zip")
    assert not trap.fired()
    assert not events
    assert not more
    assert "vec_normalize.pkl: io.open" in teacher.info.unread
    assert teacher.blueprint.normaliser is not None


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path, cartpole_zip: Path) -> None:
    _, env = normalised(tmp_path, BOX)
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        teachers.load(cartpole_zip, normaliser=tmp_path / "vec_normalize.pkl")
    env.obs_rms.var[2] = np.nan
    env.save(str(tmp_path / "vec_normalize.pkl"))
    with pytest.raises(InputError, match="NaN"):
        teachers.load(tmp_path / "m.zip")


def test_training_under_a_normaliser_is_noticed(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Nowhere(BOX, spaces.Discrete(2))]))
    model = PPO("MlpPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    model.learn(4)
    model.save(tmp_path / "m.zip")
    teacher = teachers.load(tmp_path / "m.zip")
    assert teacher.info.stated["trained_normalised"] is True
    assert any("--normaliser" in note for note in teacher.info.notes)


PARTS = spaces.Dict(
    {
        "state": spaces.Box(-30.0, 50.0, (3,), np.float32),
        "far": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        "mode": spaces.Discrete(3),
    }
)


def test_entries_that_are_not_normalised_come_through_as_they_are(tmp_path: Path) -> None:
    """`norm_obs_keys`: the one clip of a policy must not touch the others, however large they are."""
    inner = VecTransposeImage(DummyVecEnv([lambda: Nowhere(PARTS, spaces.Discrete(4))]))
    env = VecNormalize(inner, norm_obs_keys=["state"], clip_obs=1.5)
    env.reset()
    for _ in range(100):
        env.step(np.zeros(1, np.int64))
    model = made(PPO, PARTS, spaces.Discrete(4), policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 6}})
    model.save(tmp_path / "m.zip")
    env.save(str(tmp_path / "vec_normalize.pkl"))
    teacher = teachers.load(tmp_path / "m.zip", Spec(PARTS, spaces.Discrete(4)))
    obs = {**drawn(PARTS, 60), "far": np.random.default_rng(0).normal(0, 20, (60, 2)).astype(np.float32)}
    turned = {**obs, "image": obs["image"].transpose(0, 3, 1, 2)}
    tensor = model.policy.obs_to_tensor(env.normalize_obs(turned))[0]
    with torch.no_grad():
        wanted = model.policy.get_distribution(tensor).distribution.logits.numpy()
    ours = distributions.log_softmax(acted(teacher, obs)[1].params)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)
    assert len(np.unique(wanted.argmax(axis=1))) > 1
    norm = teacher.blueprint.normaliser
    touched = [i for i, scale in enumerate(norm.scale) if np.log2(scale) % 1]
    assert len(touched) == 3
    assert np.abs(obs["far"]).max() > 1.5


@pytest.mark.parametrize("stacked_first", [False, True])
def test_normalised_frames_that_are_stacked(stacked_first: bool, tmp_path: Path) -> None:
    """A normaliser inside the stack is ours before history; one around it has statistics that no single frame has."""
    box = spaces.Box(-30.0, 50.0, (2,), np.float32)
    inner: Any = DummyVecEnv([lambda: Nowhere(box, spaces.Discrete(4))])
    env = VecNormalize(VecFrameStack(inner, 3)) if stacked_first else VecFrameStack(VecNormalize(inner), 3)
    rows = [env.reset().copy()]
    for _ in range(20):
        rows.append(env.step(np.zeros(1, np.int64))[0].copy())
    made(PPO, env.observation_space, spaces.Discrete(4)).save(tmp_path / "m.zip")
    normaliser = env if stacked_first else env.venv
    normaliser.save(str(tmp_path / "vec_normalize.pkl"))
    if stacked_first:
        with pytest.raises(InputError, match=r"statistics of shape \(6,\).*stacked 3 times"):
            teachers.load(tmp_path / "m.zip", Spec(box, spaces.Discrete(4)))
        return
    teacher = teachers.load(tmp_path / "m.zip", Spec(box, spaces.Discrete(4)))
    assert teacher.blueprint.view.history == 3
    assert teacher.blueprint.view.padding == "zero"
    assert teacher.blueprint.normaliser.mean.shape == (2,)


def test_an_image_with_its_channels_last_keeps_its_statistics(tmp_path: Path) -> None:
    """SB3 takes a normalised image for floats, and so divides it by nothing."""
    inner = VecTransposeImage(DummyVecEnv([lambda: Nowhere(LAST, spaces.Discrete(4))]))
    env = VecNormalize(inner)
    env.reset()
    for _ in range(30):
        env.step(np.zeros(1, np.int64))
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 6}}
    model = made(PPO, env.observation_space, spaces.MultiBinary(5), "CnnPolicy", policy_kwargs=kwargs)
    model.save(tmp_path / "m.zip")
    env.save(str(tmp_path / "vec_normalize.pkl"))
    teacher = teachers.load(tmp_path / "m.zip", Spec(LAST, spaces.MultiBinary(5)))
    obs = drawn(LAST, 40)
    tensor = model.policy.obs_to_tensor(env.normalize_obs(obs.transpose(0, 3, 1, 2)))[0]
    with torch.no_grad():
        wanted = model.policy.get_distribution(tensor).distribution.logits.numpy()
    np.testing.assert_allclose(acted(teacher, obs)[1].params, wanted, rtol=1e-3, atol=1e-3)
    assert teacher.blueprint.view.indices is None


# ---------------------------------------------------------------- damage


PENDULUM = spaces.Box(-8.0, 8.0, (3,), np.float32)
SAVED = (FIXTURES / "sb3_ppo_normalised_pendulum.pkl").read_bytes()


def statistics(**changes: Any) -> bytes:
    """The fixture's statistics in a file whose numbers were changed: obs_rms' mean and var, or its own attributes."""
    env = pickle.loads(SAVED)
    env.venv, env.class_attributes, env.returns = None, {}, None  # what is left out again
    for key, value in changes.items():
        setattr(env.obs_rms if key in ("mean", "var") else env, key, value)
    return pickle.dumps(env)


def understood(content: bytes) -> None:
    found = normaliser.read(content, "vec_normalize.pkl", PENDULUM, View())
    if found.normaliser is not None:
        assert np.isfinite(found.normaliser.mean).all()
        assert np.isfinite(found.normaliser.scale).all()
        assert (found.normaliser.scale > 0).all()
        assert found.normaliser.mean.dtype == found.normaliser.scale.dtype == np.float32


SMALL = statistics(observation_space=None, action_space=None)


@fuzzed(100)
@given(st.sampled_from([SAVED, SMALL]), edits)
def test_mutated_statistics_are_survived(original: bytes, changes: list) -> None:
    survived(lambda: understood(mutated(original, changes)))


@pytest.mark.slow
@fuzzed(20_000)
@given(st.sampled_from([SAVED, SMALL]), edits)
def test_many_mutated_statistics_are_survived(original: bytes, changes: list) -> None:
    survived(lambda: understood(mutated(original, changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": np.array([0, 0, 1e39])}, "infinite"),  # more than float32 holds
        ({"var": np.array([1, 1, 1e-200]), "epsilon": 0.0}, "infinite"),  # a spread that float32 takes for zero
        ({"var": np.full(3, 1.7e308), "epsilon": 1.7e308}, "infinite"),
        ({"epsilon": 2**2000}, "bits"),
        ({"epsilon": 2**500}, "infinite"),
        ({"clip_obs": "10"}, "lacks clip_obs"),
        ({"clip_obs": -1.0}, "clips at"),
        ({"obs_rms": {(("a" * 99,) * 16,) * 16: 1}}, "normalises 'tuple'"),
        ({"obs_rms": {"": 1}}, "lacks the mean"),
        ({"mean": np.zeros((0, 3)), "var": np.zeros((0, 3))}, "shape"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        understood(statistics(**changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_clip_is_a_clip_at_infinity() -> None:
    space = spaces.Dict({"state": PENDULUM, "other": PENDULUM})
    rms = {"state": pickle.loads(SAVED).obs_rms}
    found = normaliser.read(statistics(obs_rms=rms, clip_obs=np.inf), "x.pkl", space, View())
    assert found.normaliser.clip == np.inf
    assert found.gain.tolist() == [1.0] * 6
