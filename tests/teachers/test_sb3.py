from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import numpy_rows, serialised, with_member, with_settings, with_weights
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from limbeck import distributions, teachers
from limbeck.contracts import Spec, Teacher
from limbeck.errors import InputError, UnsafeError
from limbeck.teachers import stated

BOX = spaces.Box(-1.0, 1.0, (5,), np.float32)
PLANE = spaces.Box(np.array([[-1, 0]], np.float32), np.array([[1, 3]], np.float32))
ACTIONS = spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 3], np.float32))
MIXED = spaces.Dict({"z": BOX, "a": spaces.Discrete(3), "m": spaces.MultiBinary(2)})
RELU = {"activation_fn": torch.nn.ReLU, "net_arch": [8]}


class Nowhere(gym.Env):
    """An environment of given spaces in which nothing depends on anything."""

    def __init__(self, observation: gym.Space, action: gym.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, {}


def made(algorithm: Any, observation: gym.Space, action: gym.Space, **kwargs: Any) -> Any:
    """A model with random weights large enough that actions differ between observations."""
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy"
    sizes = {"n_steps": 8} if algorithm in (PPO, A2C) else {"buffer_size": 8}
    model = algorithm(policy, Nowhere(observation, action), seed=0, device="cpu", **sizes, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return model


def drawn(space: gym.Space, count: int = 200) -> Any:
    space.seed(1)
    rows = [space.sample() for _ in range(count)]
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]} if isinstance(space, spaces.Dict) else np.stack(rows)


def acted(teacher: Teacher, obs: Any) -> tuple[Any, Any]:
    """(executed greedy actions, what the policy said)."""
    count = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
    output = teacher.policy(obs, teacher.policy.initial_state(count), np.ones(count, bool))
    return distributions.act(teacher.policy.head, output.params), output


CASES = {
    "ppo-box-discrete": (PPO, BOX, spaces.Discrete(4), {}),
    "ppo-deep-relu": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {**RELU, "net_arch": {"pi": [8, 4], "vf": [3]}}}),
    "ppo-no-hidden": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"net_arch": []}}),
    "ppo-elu": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"activation_fn": torch.nn.ELU}}),
    "ppo-gelu": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"activation_fn": torch.nn.GELU}}),
    "ppo-leaky": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"activation_fn": torch.nn.LeakyReLU}}),
    "ppo-silu": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"activation_fn": torch.nn.SiLU}}),
    "ppo-continuous": (PPO, BOX, ACTIONS, {"policy_kwargs": {"log_std_init": -1.0}}),
    "ppo-plane-actions": (PPO, BOX, PLANE, {}),
    "ppo-multidiscrete": (PPO, BOX, spaces.MultiDiscrete([3, 2, 4]), {}),
    "ppo-multibinary": (PPO, BOX, spaces.MultiBinary(3), {}),
    "ppo-sde": (PPO, BOX, ACTIONS, {"use_sde": True}),
    "ppo-sde-squashed": (PPO, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "ppo-discrete-obs": (PPO, spaces.Discrete(6), spaces.Discrete(3), {}),
    "ppo-multidiscrete-obs": (PPO, spaces.MultiDiscrete([3, 4]), spaces.Discrete(3), {}),
    "ppo-multibinary-obs": (PPO, spaces.MultiBinary(4), spaces.Discrete(3), {}),
    "ppo-plane-obs": (PPO, spaces.Box(-1, 1, (2, 3), np.float64), spaces.Discrete(3), {}),
    "ppo-dict-obs": (PPO, MIXED, spaces.Discrete(3), {}),
    "a2c-discrete": (A2C, BOX, spaces.Discrete(4), {}),
    "a2c-continuous": (A2C, BOX, ACTIONS, {"policy_kwargs": RELU}),
    "dqn": (DQN, BOX, spaces.Discrete(4), {"policy_kwargs": {"net_arch": [8, 8]}}),
    "dqn-tanh": (DQN, BOX, spaces.Discrete(4), {"policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.Tanh}}),
    "dqn-dict-obs": (DQN, MIXED, spaces.Discrete(4), {"policy_kwargs": {"net_arch": [8]}}),
    "sac": (SAC, BOX, ACTIONS, {"policy_kwargs": {"net_arch": [8, 8]}}),
    "sac-no-hidden": (SAC, BOX, PLANE, {"policy_kwargs": {"net_arch": []}}),
    "td3": (TD3, BOX, ACTIONS, {"policy_kwargs": {"net_arch": [8, 8]}}),
    "ddpg": (DDPG, BOX, PLANE, {"policy_kwargs": {"net_arch": [8]}}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_greedy_action_is_that_of_predict(case: str, tmp_path: Path) -> None:
    algorithm, observation, action, kwargs = CASES[case]
    model = made(algorithm, observation, action, **kwargs)
    model.save(tmp_path / "m.zip")
    teacher = teachers.load(tmp_path / "m.zip", Spec(observation, action, "nowhere"))
    obs = drawn(observation)
    wanted = model.predict(obs, deterministic=True)[0]
    actions, output = acted(teacher, obs)
    assert teacher.info.algorithm == algorithm.__name__
    assert actions.shape == wanted.shape
    if teacher.policy.head.discrete:
        assert np.array_equal(actions, wanted)
        assert len(np.unique(wanted, axis=0)) > 1, "the weights leave no choice to agree on"
    else:
        np.testing.assert_allclose(actions, wanted, rtol=1e-5, atol=1e-5)
    if algorithm in (PPO, A2C):
        with torch.no_grad():
            value = model.policy.predict_values(model.policy.obs_to_tensor(obs)[0]).numpy()[:, 0]
        np.testing.assert_allclose(output.value, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["ppo-continuous", "sac"])
def test_the_spread_is_that_of_the_distribution(case: str, tmp_path: Path) -> None:
    algorithm, observation, action, kwargs = CASES[case]
    model = made(algorithm, observation, action, **kwargs)
    model.save(tmp_path / "m.zip")
    teacher = teachers.load(tmp_path / "m.zip", Spec(observation, action))
    obs = drawn(observation)
    tensor = model.policy.obs_to_tensor(obs)[0]
    with torch.no_grad():
        if algorithm is SAC:
            mean, log_std, _ = model.actor.get_action_dist_params(tensor)
        else:
            normal = model.policy.get_distribution(tensor).distribution
            mean, log_std = normal.mean, normal.stddev.log()
    ours = np.clip(acted(teacher, obs)[1].params[:, 2:], *distributions.LOG_STD_RANGE)
    np.testing.assert_allclose(ours, log_std.numpy(), atol=1e-5)
    np.testing.assert_allclose(acted(teacher, obs)[1].params[:, :2], mean.numpy(), atol=1e-5)


def test_a_real_teacher_is_read_and_says_what_it_is(cartpole_zip: Path) -> None:
    info = teachers.inspect(cartpole_zip)
    assert (info.format, info.algorithm, info.stated["num_timesteps"]) == ("sb3", "PPO", 100096)
    assert "data: clip_range" in info.unread
    assert not any("not written by" in name for name in info.unread)
    assert any("tanh is assumed" in note for note in info.notes)
    assert "stable_baselines3.common.policies.ActorCriticPolicy" in info.stated["code"]["data: policy_class"]
    model = PPO.load(cartpole_zip, device="cpu")
    obs = numpy_rows(2000, 4)
    teacher = teachers.load(cartpole_zip)  # spaces from the file's own print
    assert np.array_equal(acted(teacher, obs)[0], model.predict(obs, deterministic=True)[0])
    assert teacher.policy.spec.action_space == model.action_space
    assert teacher.policy.spec.observation_space == model.observation_space


def test_shared_layers_of_older_versions(tmp_path: Path, cartpole_zip: Path) -> None:
    def shared(weights: dict) -> dict:
        kept = {k: v for k, v in weights.items() if "extractor" not in k}
        first = {k.replace("policy_net", "shared_net"): v for k, v in weights.items() if "policy_net.0" in k}
        moved = {k.replace("net.2", "net.0"): v for k, v in weights.items() if "extractor" in k and "net.2" in k}
        return {**kept, **first, **moved}

    path = with_weights(cartpole_zip, tmp_path / "old.zip", shared)
    obs = numpy_rows(100, 4)
    old, new = teachers.load(path), teachers.load(cartpole_zip)
    assert np.array_equal(acted(old, obs)[1].params, acted(new, obs)[1].params)
    assert not np.array_equal(acted(old, obs)[1].value, acted(new, obs)[1].value)


def test_a_bare_state_dict_of_such_a_policy(tmp_path: Path, cartpole_zip: Path) -> None:
    with zipfile.ZipFile(cartpole_zip) as archive:
        (tmp_path / "policy.pt").write_bytes(archive.read("policy.pth"))
    whole = teachers.load(cartpole_zip)
    bare = teachers.load(tmp_path / "policy.pt", whole.policy.spec)
    obs = numpy_rows(50, 4)
    assert bare.info.format == "torch"
    assert np.array_equal(acted(bare, obs)[1].params, acted(whole, obs)[1].params)


# ---------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def sac_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sac") / "sac.zip"
    made(SAC, BOX, ACTIONS, policy_kwargs={"net_arch": [8]}).save(path)
    return path


class Odd(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("what", "algorithm", "observation", "action", "kwargs"),
    [
        ("gSDE", SAC, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"net_arch": [8]}}),
        ("Softplus", PPO, BOX, spaces.Discrete(2), {"policy_kwargs": {"activation_fn": torch.nn.Softplus}}),
        (
            "image",
            PPO,
            spaces.Box(0, 255, (3, 8, 8), np.uint8),
            spaces.Discrete(2),
            {"policy_kwargs": {"net_arch": []}},
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    what: str, algorithm: Any, observation: gym.Space, action: gym.Space, kwargs: dict, tmp_path: Path
) -> None:
    made(algorithm, observation, action, **kwargs).save(tmp_path / "m.zip")
    with pytest.raises(InputError, match=what):
        teachers.load(tmp_path / "m.zip", Spec(observation, action))


def test_a_cnn_a_recurrent_and_a_custom_policy_are_refused(tmp_path: Path, cartpole_zip: Path) -> None:
    spec = teachers.load(cartpole_zip).policy.spec
    for key, what in (
        ("features_extractor.cnn.0.weight", "feature extractor"),
        ("lstm_actor.weight_ih_l0", "recurrent"),
    ):
        path = with_weights(cartpole_zip, tmp_path / "x.zip", lambda w, key=key: {**w, key: torch.zeros(1)})
        with pytest.raises(InputError, match=what):
            teachers.load(path, spec)
    norm = with_weights(
        cartpole_zip, tmp_path / "x.zip", lambda w: {**w, "mlp_extractor.policy_net.1.weight": torch.ones(64)}
    )
    with pytest.raises(InputError, match="no plain MLP"):
        teachers.load(norm, spec)
    foreign = with_settings(cartpole_zip, tmp_path / "x.zip", policy_class={"__module__": "mine", ":serialized:": ""})
    with pytest.raises(InputError, match="class of module 'mine'"):
        teachers.load(foreign, spec)
    unknown = with_weights(cartpole_zip, tmp_path / "x.zip", lambda w: {"layer.weight": torch.zeros(2, 2)})
    with pytest.raises(InputError, match="no known policy"):
        teachers.load(unknown, spec)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_names_the_tensor(number: float, tmp_path: Path, cartpole_zip: Path) -> None:
    def spoil(weights: dict) -> dict:
        weights["action_net.weight"] = weights["action_net.weight"].clone()
        weights["action_net.weight"][0, 3] = number
        return weights

    with pytest.raises(InputError, match=r"'?action_net\.weight'? holds 1 NaN"):
        teachers.load(with_weights(cartpole_zip, tmp_path / "x.zip", spoil))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: v for k, v in w.items() if k != "action_net.bias"},
        lambda w: {**w, "action_net.weight": torch.zeros(3, 64), "action_net.bias": torch.zeros(3)},
        lambda w: {**w, "action_net.weight": torch.zeros(2, 63)},
        lambda w: {**w, "action_net.weight": torch.zeros(2, 64, dtype=torch.long)},
        lambda w: {**w, "log_std": torch.zeros(2)},
        lambda w: {k: v for k, v in w.items() if "policy_net.0" not in k},
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, tmp_path: Path, cartpole_zip: Path) -> None:
    with pytest.raises(InputError):
        teachers.load(with_weights(cartpole_zip, tmp_path / "x.zip", change))


def test_other_spaces_are_refused_on_one_line(cartpole_zip: Path, sac_zip: Path) -> None:
    lunar = Spec(spaces.Box(-1, 1, (8,), np.float32), spaces.Discrete(4), "LunarLander-v3")
    with pytest.raises(InputError) as caught:
        teachers.load(cartpole_zip, lunar)
    assert str(caught.value).startswith(
        "the teacher does not fit LunarLander-v3: observations: teacher Box(4,), task Box(8,); actions: teacher Discrete(2), task Discrete(4)."
    )
    wider = Spec(BOX, spaces.Box(ACTIONS.low * 2, ACTIONS.high * 2), "wider")
    with pytest.raises(InputError, match="action bounds: teacher"):
        teachers.load(sac_zip, wider)
    other = Spec(spaces.Box(-9.0, 9.0, (5,), np.float32), ACTIONS, "other")
    assert any("observation bounds differ" in note for note in teachers.load(sac_zip, other).info.notes)


def test_settings_that_are_no_table_are_refused(tmp_path: Path, cartpole_zip: Path) -> None:
    for content in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(InputError, match="settings"):
            teachers.load(with_member(cartpole_zip, tmp_path / "x.zip", "data", content))


def test_garbage_in_settings_never_escapes(tmp_path: Path, cartpole_zip: Path) -> None:
    spec = teachers.load(cartpole_zip).policy.spec
    for junk in (
        None,
        3,
        "x",
        [],
        {},
        {":serialized:": 3},
        {":type:": "<class 'Box'>", "_shape": "no"},
        {"_shape": [10**9]},
    ):
        for key in ("observation_space", "action_space", "policy_class", "policy_kwargs"):
            path = with_settings(cartpole_zip, tmp_path / "x.zip", **{key: junk})
            teachers.load(path, spec)
            teachers.inspect(path)


# ---------------------------------------------------------------- canaries


@pytest.mark.parametrize("key", ["lr_schedule", "zz_extra", "policy_class"])
def test_hidden_code_loads_without_running(
    key: str, tmp_path: Path, cartpole_zip: Path, trap: Any, audited: Any
) -> None:
    evil = with_settings(cartpole_zip, tmp_path / "evil.zip", **{key: serialised(trap.blob)})
    with contextlib.suppress(AttributeError, TypeError):  # a policy class that is an open file
        PPO.load(evil, device="cpu")
    assert trap.fired(), "positive control"
    teachers.load(cartpole_zip)
    with audited() as events:
        teacher = teachers.load(evil)
        info = teachers.inspect(evil)
    assert not trap.fired()
    assert not events
    shown = f"data: {key}" + (" (not written by Stable-Baselines3)" if key == "zz_extra" else "")
    assert shown in teacher.info.unread
    assert info.stated["code"][f"data: {key}"] == ("io.open",)
    obs = numpy_rows(50, 4)
    assert np.array_equal(acted(teacher, obs)[1].params, acted(teachers.load(cartpole_zip), obs)[1].params)


def test_evil_weights_are_refused(tmp_path: Path, cartpole_zip: Path, trap: Any, audited: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"a": trap.payload}, buffer)
    evil = with_member(cartpole_zip, tmp_path / "evil.zip", "policy.pth", buffer.getvalue())
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert trap.fired(), "positive control"
    teachers.load(cartpole_zip)
    with audited() as events, pytest.raises(UnsafeError, match=r"io\.open"):
        teachers.load(evil)
    assert not trap.fired()
    assert not events
    assert teachers.inspect(evil).stated["code"]["policy.pth/archive/data.pkl"] == ("io.open",)


def test_an_unexpected_member_is_named(tmp_path: Path, cartpole_zip: Path, trap: Any) -> None:
    evil = with_member(cartpole_zip, tmp_path / "evil.zip", "hook.pkl", trap.blob)
    assert "hook.pkl (not written by Stable-Baselines3)" in teachers.load(evil).info.unread
    assert teachers.inspect(evil).stated["code"]["hook.pkl"] == ("io.open",)
    assert not trap.fired()


# ---------------------------------------------------------------- VecNormalize


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


# ---------------------------------------------------------------- printed spaces


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        ACTIONS,
        PLANE,
        spaces.Box(0, 255, (2, 3), np.uint8),
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(4),
    ],
)
def test_spaces_are_rebuilt_from_their_print(space: gym.Space, tmp_path: Path) -> None:
    discrete = not isinstance(space, spaces.Box)
    model = made(PPO, BOX, space) if discrete else made(PPO, space, spaces.Discrete(2))
    model.save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        entry = json.loads(archive.read("data"))["action_space" if discrete else "observation_space"]
    assert stated.space_of({k: v for k, v in entry.items() if k != ":serialized:"}) == space


def test_bounds_that_were_cut_are_not_invented() -> None:
    entry = {
        ":type:": "<class 'x.Box'>",
        "dtype": "float32",
        "_shape": [2000],
        "low": "[0. 0. ... 0.]",
        "high": "[1. ... 1.]",
    }
    assert np.isinf(stated.space_of(entry).low).all()
    assert stated.space_of({**entry, "dtype": "uint8"}) is None
    assert stated.space_of({**entry, "low_repr": "0.0", "high_repr": "1.0"}).high[0] == 1
