"""Every kind of policy of Stable-Baselines3 and sb3-contrib, untrained, against the live library; and what a zip says."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hostile_cases import numpy_rows, with_weights
from sb3_cases import ACTIONS, BOX, FIRST, LAST, MIXED, PICTURES, PLANE, ROWS, acted, agrees, drawn, made, reloaded
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from limbeck import distributions, teachers
from limbeck.contracts import Conv, Gsde, Parallel, Spec, View
from limbeck.errors import InputError

RELU = {"activation_fn": torch.nn.ReLU, "net_arch": [8]}
SMALL = {"policy_kwargs": {"net_arch": [8, 6]}}
CNN = {"net_arch": [5], "features_extractor_kwargs": {"features_dim": 7}}
SDE = {"use_sde": True, "policy_kwargs": {"net_arch": [8], "log_std_init": -1.0}}


def cnn(**more: Any) -> dict[str, Any]:
    return {"policy": "CnnPolicy", "policy_kwargs": {**CNN, **more}}


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
    "ppo-softplus": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"activation_fn": torch.nn.Softplus}}),
    "ppo-unshared": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"share_features_extractor": False}}),
    "ppo-sde-expln": (PPO, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"use_expln": True}}),
    "ppo-sde-one-std": (PPO, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"full_std": False}}),
    "ppo-sde-no-hidden": (PPO, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"net_arch": []}}),
    "ppo-cnn-hwc": (PPO, LAST, spaces.Discrete(3), cnn()),
    "ppo-cnn-chw": (PPO, FIRST, spaces.Discrete(3), cnn()),
    "ppo-cnn-unshared": (PPO, LAST, spaces.Discrete(3), cnn(share_features_extractor=False)),
    "a2c-cnn-unscaled": (A2C, FIRST, spaces.MultiBinary(6), cnn(normalize_images=False, activation_fn=torch.nn.ReLU)),
    "ppo-cnn-floats": (PPO, spaces.Box(0, 1, (2, 36, 36)), spaces.Discrete(3), cnn(normalize_images=False)),
    "ppo-cnn-sde": (PPO, LAST, ACTIONS, {**cnn(), "use_sde": True}),
    "ppo-mlp-on-image-hwc": (PPO, spaces.Box(0, 255, (6, 5, 3), np.uint8), spaces.Discrete(3), SMALL),
    "ppo-mlp-on-image-chw": (PPO, spaces.Box(0, 255, (3, 6, 5), np.uint8), spaces.Discrete(3), SMALL),
    "ppo-pictures": (
        PPO,
        PICTURES,
        spaces.Discrete(3),
        {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 6}}},
    ),
    "ppo-pictures-no-hidden": (
        PPO,
        PICTURES,
        ACTIONS,
        {"use_sde": True, "policy_kwargs": {"net_arch": [], "features_extractor_kwargs": {"cnn_output_dim": 6}}},
    ),
    "a2c-cnn": (A2C, LAST, spaces.MultiDiscrete([2, 3]), cnn()),
    "dqn-no-hidden": (DQN, BOX, spaces.Discrete(4), {"policy_kwargs": {"net_arch": []}}),
    "dqn-cnn": (DQN, LAST, spaces.Discrete(4), cnn()),
    "dqn-pictures": (
        DQN,
        PICTURES,
        spaces.Discrete(4),
        {"policy_kwargs": {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 6}}},
    ),
    "qrdqn": (QRDQN, BOX, spaces.Discrete(4), {"policy_kwargs": {"net_arch": [8], "n_quantiles": 7}}),
    "qrdqn-cnn": (QRDQN, LAST, spaces.Discrete(4), cnn(n_quantiles=5)),
    "sac-cnn": (SAC, LAST, ACTIONS, cnn()),
    "sac-dict-obs": (SAC, MIXED, ACTIONS, SMALL),
    "sac-sde": (SAC, BOX, ACTIONS, SDE),
    "sac-sde-clipped": (SAC, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"net_arch": [8], "clip_mean": 0.1}}),
    "sac-sde-unclipped": (SAC, BOX, ACTIONS, {"use_sde": True, "policy_kwargs": {"net_arch": [8], "clip_mean": 0.0}}),
    "td3-cnn": (TD3, LAST, ACTIONS, cnn()),
    "tqc": (TQC, BOX, ACTIONS, SMALL),
    "tqc-sde": (TQC, BOX, PLANE, SDE),
    "crossq": (CrossQ, BOX, ACTIONS, SMALL),
    "crossq-epsilon": (CrossQ, BOX, ACTIONS, {"policy_kwargs": {"net_arch": [8], "batch_norm_eps": 0.1}}),
    "crossq-plain": (CrossQ, BOX, ACTIONS, {"policy_kwargs": {"net_arch": [8], "batch_norm": False}}),
    "crossq-sde": (CrossQ, BOX, ACTIONS, SDE),
    "trpo": (TRPO, BOX, spaces.Discrete(4), SMALL),
    "trpo-continuous": (TRPO, BOX, ACTIONS, SMALL),
    "ars": (ARS, BOX, spaces.Discrete(4), {"policy_kwargs": {"net_arch": [8]}}),
    "ars-linear": (ARS, BOX, spaces.Discrete(4), {"policy": "LinearPolicy"}),
    "ars-linear-continuous": (ARS, BOX, ACTIONS, {"policy": "LinearPolicy"}),
    "ars-linear-squashed": (ARS, BOX, ACTIONS, {"policy": "LinearPolicy", "policy_kwargs": {"squash_output": True}}),
    "ars-continuous": (ARS, BOX, ACTIONS, {"policy_kwargs": {"net_arch": [8]}}),
    "ars-unsquashed": (ARS, BOX, ACTIONS, {"policy_kwargs": {"net_arch": [8], "squash_output": False}}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_greedy_action_is_that_of_predict(case: str, tmp_path: Path) -> None:
    algorithm, observation, action, kwargs = CASES[case]
    model = made(algorithm, observation, action, **kwargs)
    teacher = reloaded(model, tmp_path, observation, action)
    assert teacher.info.algorithm == algorithm.__name__
    assert not any("not written by" in entry for entry in teacher.info.unread)
    agrees(teacher, model, drawn(observation, ROWS))


@pytest.mark.parametrize(
    "case",
    ["ppo-continuous", "sac", "ppo-sde", "ppo-sde-squashed", "ppo-sde-expln", "ppo-sde-one-std", "ppo-cnn-sde",
     "ppo-pictures-no-hidden", "sac-sde", "sac-sde-clipped", "sac-sde-unclipped", "sac-cnn", "tqc", "tqc-sde", "crossq", "crossq-sde"],
)  # fmt: skip
def test_the_spread_is_that_of_the_distribution(case: str, tmp_path: Path) -> None:
    algorithm, observation, action, kwargs = CASES[case]
    model = made(algorithm, observation, action, **kwargs)
    teacher = reloaded(model, tmp_path, observation, action)
    obs = drawn(observation, ROWS)
    tensor = model.policy.obs_to_tensor(obs)[0]
    model.policy.set_training_mode(False)
    with torch.no_grad():
        if hasattr(model.policy, "actor"):
            mean, log_std, rest = model.actor.get_action_dist_params(tensor)
            if rest:
                model.actor.action_dist.proba_distribution(mean, log_std, **rest)
                log_std = model.actor.action_dist.distribution.stddev.log()
        else:
            normal = model.policy.get_distribution(tensor).distribution
            mean, log_std = normal.mean, normal.stddev.log()
    ours = acted(teacher, obs)[1].params
    assert teacher.policy.head.kind in ("gaussian", "squashed")
    clipped = np.clip(log_std.numpy(), *distributions.LOG_STD_RANGE)
    np.testing.assert_allclose(np.clip(ours[:, 2:], *distributions.LOG_STD_RANGE), clipped, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[:, :2], mean.numpy(), rtol=1e-5, atol=1e-5)


def test_sampled_actions_have_the_spread_of_the_programs_own(tmp_path: Path) -> None:
    model = made(PPO, BOX, ACTIONS, use_sde=True, policy_kwargs={"log_std_init": -1.0, "squash_output": True})
    teacher = reloaded(model, tmp_path, BOX, ACTIONS)
    obs = np.repeat(drawn(BOX, 1), 4000, axis=0)
    tensor = model.policy.obs_to_tensor(obs)[0]
    torch.manual_seed(0)
    with torch.no_grad():
        model.policy.reset_noise(len(obs))
        theirs = model.policy.unscale_action(model.policy.get_distribution(tensor).sample().numpy())
    ours = distributions.act(teacher.policy.head, acted(teacher, obs)[1].params, "sampled", np.random.default_rng(0))
    error = 4 * np.sqrt(theirs.var(axis=0) * 2 / len(obs))
    assert (abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.1)


# ---------------------------------------------------------------- memory and masks

LSTM = {"lstm_hidden_size": 6, "net_arch": [5]}
MEMORIES = {
    "own": ("MlpLstmPolicy", BOX, {**LSTM}),
    "shared": ("MlpLstmPolicy", BOX, {**LSTM, "shared_lstm": True, "enable_critic_lstm": False}),
    "actor": ("MlpLstmPolicy", BOX, {**LSTM, "enable_critic_lstm": False}),
    "deep": ("MlpLstmPolicy", BOX, {**LSTM, "n_lstm_layers": 2}),
    "unbiased": ("MlpLstmPolicy", BOX, {**LSTM, "lstm_kwargs": {"bias": False}}),
    "cnn": ("CnnLstmPolicy", LAST, {**LSTM, "features_extractor_kwargs": {"features_dim": 7}}),
    "dict": ("MultiInputLstmPolicy", MIXED, {**LSTM, "share_features_extractor": False}),
}


@pytest.mark.parametrize("case", list(MEMORIES))
def test_memory_is_carried_and_forgotten_as_in_predict(case: str, tmp_path: Path) -> None:
    policy, observation, kwargs = MEMORIES[case]
    model = made(RecurrentPPO, observation, spaces.Discrete(3), policy, policy_kwargs=kwargs)
    teacher = reloaded(model, tmp_path, observation, spaces.Discrete(3))
    lanes, rng = 4, np.random.default_rng(0)
    obs, first = drawn(observation, 30 * lanes), rng.random((30, lanes)) < 0.15
    first[0] = True
    state, theirs, critic, seen = teacher.policy.initial_state(lanes), None, None, []
    for step in range(30):
        here = slice(step * lanes, (step + 1) * lanes)
        rows = {k: v[here] for k, v in obs.items()} if isinstance(obs, dict) else obs[here]
        output = teacher.policy(rows, state, first[step])
        value, critic = recurrent_value(model, rows, theirs, critic, first[step])
        action, theirs = model.predict(rows, theirs, first[step], deterministic=True)
        assert np.array_equal(output.params.argmax(axis=1), action), step
        np.testing.assert_allclose(output.value, value, rtol=1e-4, atol=1e-5)
        state, seen = output.state, [*seen, *action]
    assert len(set(seen)) > 1
    assert teacher.info.algorithm == "RecurrentPPO"


def recurrent_value(model: Any, rows: Any, actor: Any, critic: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
    """The critic's answer and next state, by the whole forward pass of the library."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    layers, _, size = model.policy.lstm_hidden_state_shape
    zeros = torch.zeros(layers, len(first), size)
    actor = (zeros, zeros) if actor is None else tuple(torch.as_tensor(part) for part in actor)
    critic = (zeros, zeros) if critic is None else critic
    tensor = model.policy.obs_to_tensor(rows)[0]
    with torch.no_grad():
        starts = torch.as_tensor(first, dtype=torch.float32)
        _, value, _, states = model.policy(tensor, RNNStates(actor, critic), starts, deterministic=True)
    return value.numpy()[:, 0], states.vf


MASKED = [(BOX, spaces.Discrete(5), ""), (MIXED, spaces.Discrete(5), ""), (LAST, spaces.Discrete(5), "CnnPolicy"),
          (BOX, spaces.MultiDiscrete([3, 4]), ""), (BOX, spaces.MultiBinary(3), "")]  # fmt: skip


@pytest.mark.parametrize(("observation", "action", "policy"), MASKED)
def test_masked_choices_are_those_of_predict(
    observation: gym.Space, action: gym.Space, policy: str, tmp_path: Path
) -> None:
    kwargs = {"policy_kwargs": CNN} if policy else SMALL
    model = made(MaskablePPO, observation, action, policy, **kwargs)
    width = {"Discrete": 5, "MultiDiscrete": 7, "MultiBinary": 6}[type(action).__name__]
    if isinstance(action, spaces.MultiBinary):  # two masks for each switch there, on and off, which no head here has
        with pytest.raises(InputError, match="action mask has 6 numbers"):
            reloaded(model, tmp_path, masked_space(observation, width), action)
        return
    teacher = reloaded(model, tmp_path, masked_space(observation, width), action)
    obs, rng = drawn(observation, ROWS), np.random.default_rng(0)
    masks = rng.random((ROWS, width)) < 0.5
    masks[:, [0, -1]] = True
    wanted = model.predict(obs, deterministic=True, action_masks=masks)[0]
    inside = obs if isinstance(obs, dict) else {"observation": obs}
    actions, output = acted(teacher, {**inside, "action_mask": masks.astype(np.int8)})
    assert np.array_equal(actions, wanted)
    assert not np.array_equal(wanted, model.predict(obs, deterministic=True)[0])
    assert teacher.info.algorithm == "MaskablePPO"
    assert output.value is not None


def masked_space(observation: gym.Space, width: int) -> spaces.Dict:
    inside = observation.spaces if isinstance(observation, spaces.Dict) else {"observation": observation}
    return spaces.Dict({**inside, "action_mask": spaces.MultiBinary(width)})


def test_a_masked_teacher_needs_a_task_with_a_mask(tmp_path: Path) -> None:
    model = made(MaskablePPO, BOX, spaces.Discrete(5), **SMALL)
    with pytest.raises(InputError, match="nowhere offers no 'action_mask'"):
        reloaded(model, tmp_path, BOX, spaces.Discrete(5))
    alone = teachers.load(tmp_path / "m.zip")  # without a task: a place for the mask is made
    assert alone.policy.spec.observation_space["action_mask"] == spaces.MultiBinary(5)
    named = spaces.Dict({"x": BOX, "allowed": spaces.MultiBinary(5)})
    teacher = teachers.load(tmp_path / "m.zip", Spec(named, spaces.Discrete(5)), view=View(mask="allowed"))
    assert teacher.blueprint.view == View(keys=("x",), mask="allowed")


# ---------------------------------------------------------------- how images and actions are laid out


@pytest.mark.parametrize("policy", ["CnnPolicy", "MlpPolicy"])
def test_one_teacher_on_both_layouts_of_an_image(policy: str, tmp_path: Path) -> None:
    kwargs = {"policy_kwargs": CNN} if policy == "CnnPolicy" else SMALL
    model = made(PPO, LAST, spaces.MultiBinary(6), policy, **kwargs)
    last = reloaded(model, tmp_path, LAST, spaces.MultiBinary(6))
    first = reloaded(model, tmp_path, FIRST, spaces.MultiBinary(6))
    obs = drawn(LAST, ROWS)
    agrees(last, model, obs)
    mine, other = acted(last, obs)[1], acted(first, obs.transpose(0, 3, 1, 2))[1]
    np.testing.assert_allclose(mine.params, other.params, rtol=1e-5, atol=1e-5)
    assert (last.blueprint.view.indices is None) == (policy == "CnnPolicy")
    if isinstance(last.blueprint.layers[0], Conv):
        assert (last.blueprint.layers[0].layout, first.blueprint.layers[0].layout) == ("hwc", "chw")
    assert any("channels first" in note for note in last.info.notes)


def test_a_dict_keeps_the_networks_order_whatever_the_tasks(tmp_path: Path) -> None:
    model = made(PPO, PICTURES, spaces.Discrete(3), policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 6}})
    turned = spaces.Dict(
        {
            "side": spaces.Box(0, 255, (1, 36, 36), np.uint8),
            "front": LAST,
            "z": BOX,
            "a": spaces.Discrete(3),
            "extra": BOX,
        }
    )
    teacher = reloaded(model, tmp_path, turned, spaces.Discrete(3))
    obs = drawn(PICTURES, ROWS)
    wanted = model.predict(obs, deterministic=True)[0]
    given = {**obs, "side": obs["side"].transpose(0, 3, 1, 2), "extra": drawn(BOX, ROWS)}
    assert np.array_equal(acted(teacher, given)[0], wanted)
    assert teacher.blueprint.view.keys == ("a", "front", "side", "z")
    assert isinstance(teacher.blueprint.layers[0], Parallel)
    assert any("does not see 'extra'" in note for note in teacher.info.notes)


def test_a_start_of_the_actions_is_added(tmp_path: Path) -> None:
    model = made(PPO, BOX, spaces.Discrete(4, start=2), **SMALL)
    teacher = reloaded(model, tmp_path, BOX, spaces.Discrete(4, start=2))
    obs = drawn(BOX, ROWS)
    assert np.array_equal(acted(teacher, obs)[0], model.predict(obs, deterministic=True)[0] + 2)
    assert any("count from 2" in note for note in teacher.info.notes)


def test_quantiles_are_meaned_in_double_precision(tmp_path: Path) -> None:
    model = made(QRDQN, BOX, spaces.Discrete(3), policy_kwargs={"net_arch": [8], "n_quantiles": 50})
    teacher = reloaded(model, tmp_path, BOX, spaces.Discrete(3))
    obs = drawn(BOX, ROWS)
    with torch.no_grad():
        wanted = model.policy.quantile_net.quantile_net.double()(torch.as_tensor(obs).double()).numpy()
    wanted = wanted.reshape(ROWS, 50, 3).mean(axis=1)
    np.testing.assert_allclose(acted(teacher, obs)[1].params, wanted, rtol=1e-5, atol=1e-6)
    assert teacher.policy.head.kind == "q"
    assert teacher.blueprint.layers[-1].outputs == 3


def test_the_spread_of_a_gsde_layer_follows_its_closed_form() -> None:
    layer = Gsde(np.ones((2, 1), np.float32), np.zeros(1, np.float32), np.full((2, 1), 0.5, np.float32), limit=1.0)
    from limbeck.runtimes.numpy import apply

    row = apply(layer, np.array([[1.0, 2.0]], np.float32))[0]
    np.testing.assert_allclose(row, [1.0, 0.5 * np.log(5 * 0.25 + 1e-6)], rtol=1e-6)


# ---------------------------------------------------------------- what a zip says


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


def test_bare_weights_of_a_cnn_see_images_as_the_library_would(tmp_path: Path) -> None:
    model = made(PPO, LAST, spaces.MultiBinary(6), "CnnPolicy", policy_kwargs=CNN)
    torch.save(model.policy.state_dict(), tmp_path / "policy.pt")
    obs = drawn(LAST, ROWS)
    for offered, rows in ((LAST, obs), (FIRST, obs.transpose(0, 3, 1, 2))):
        agrees(teachers.load(tmp_path / "policy.pt", Spec(offered, spaces.MultiBinary(6))), model, rows)
    other = spaces.Box(0, 255, (48, 40, 3), np.uint8)
    with pytest.raises(InputError, match="The image has another size"):
        teachers.load(tmp_path / "policy.pt", Spec(other, spaces.MultiBinary(6)))
