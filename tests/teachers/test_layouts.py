"""Weights by the names of their tensors, and weights that a line describes: the numbers of the program that made them."""

from __future__ import annotations

import itertools
import json
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hostile_cases import FIXTURES, Trap
from safetensors.numpy import save as safetensors_bytes
from torch import nn

from limbeck import distributions, teachers
from limbeck.contracts import Conv, Spec, Teacher, View
from limbeck.errors import InputError, LimbeckError, UnsafeError
from limbeck.teachers import architecture, layouts

SHARED = Path(__file__).parents[3] / "shared" / "teachers"
CARTPOLE = Spec(spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(2), "cartpole")
PENDULUM = Spec(spaces.Box(-8, 8, (3,), np.float32), spaces.Box(-2, 2, (1,), np.float32), "pendulum")
BEACON = Spec(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(3), "beacon")
CLEANRL = {
    "ppo": (CARTPOLE, "categorical", "tanh"), "ppo_continuous": (PENDULUM, "gaussian", "tanh"),
    "ppo_atari": (BEACON, "categorical", "relu"), "dqn": (CARTPOLE, "q", "relu"), "dqn_atari": (BEACON, "q", "relu"),
    "c51": (CARTPOLE, "q", "relu"), "sac": (PENDULUM, "squashed", "relu"), "td3": (PENDULUM, "tanh", "relu"),
    "ddpg": (PENDULUM, "tanh", "relu"),
}  # fmt: skip
RSL_RL = ("mlp", "log_std", "gru", "lstm", "v2", "v3")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.golden.npz") as file:
        return dict(file)


def cleanrl(name: str, **more: Any) -> Teacher:
    return teachers.load(FIXTURES / f"cleanrl_{name}.cleanrl_model", CLEANRL[name][0], **more)


def answers(teacher: Teacher, obs: Any) -> Any:
    count = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
    return teacher.policy(obs, teacher.policy.initial_state(count), np.ones(count, bool))


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


# ---------------------------------------------------------------- CleanRL


@pytest.mark.parametrize("name", list(CLEANRL))
def test_cleanrl_files_answer_as_their_program(name: str) -> None:
    teacher, wanted = cleanrl(name), golden(f"cleanrl_{name}")
    _, kind, activation = CLEANRL[name]
    said = answers(teacher, wanted["obs"])
    close = {"rtol": 1e-5, "atol": 3e-5}
    np.testing.assert_allclose(distributions.act(teacher.policy.head, said.params), wanted["action"], **close)
    assert len(np.unique(wanted["action"], axis=0)) > 1
    for key in ("logits", "q"):
        if key in wanted:
            np.testing.assert_allclose(said.params, wanted[key], **close)
    if "log_std" in wanted:
        np.testing.assert_allclose(said.params, np.concatenate([wanted["mean"], wanted["log_std"]], axis=1), **close)
    if "value" in wanted:
        np.testing.assert_allclose(said.value, wanted["value"], **close)
    assert (teacher.info.format, teacher.policy.head.kind) == ("cleanrl", kind)
    assert (teacher.blueprint is None) == (name == "c51")
    assert any(f"{activation} is assumed" in note for note in teacher.info.notes)


@pytest.mark.parametrize("name", ["ppo", "dqn", "c51", "ppo_continuous", "sac", "td3", "ddpg"])
def test_cleanrl_files_reach_the_return_that_was_recorded(name: str) -> None:
    """The same ten episodes that the program itself played when the file was made."""
    recorded = json.loads((FIXTURES / f"cleanrl_{name}.json").read_text())
    teacher, env, returns = cleanrl(name), gym.make(recorded["env"]), []
    for episode in range(10):
        obs, _ = env.reset(seed=1000 + episode)
        total, over = 0.0, False
        while not over:
            action = distributions.act(teacher.policy.head, answers(teacher, obs[None]).params)[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert np.mean(returns) == pytest.approx(recorded["return_mean"], rel=0.02, abs=1)


@pytest.mark.parametrize("name", list(CLEANRL))
def test_cleanrl_files_are_inspected_without_a_task(name: str) -> None:
    info = teachers.inspect(FIXTURES / f"cleanrl_{name}.cleanrl_model")
    assert info.format == "cleanrl"
    assert info.algorithm.startswith(f"CleanRL {name.split('_')[0]}")
    assert info.stated["parameters"] > 1000
    assert not any("its name ends" in note for note in info.notes)


def test_the_arguments_of_a_run_are_stated() -> None:
    stated = teachers.inspect(FIXTURES / "cleanrl_c51.cleanrl_model").stated
    assert (stated["env_id"], stated["n_atoms"]) == ("CartPole-v1", 11)


def test_frames_given_singly_are_stacked_and_channels_may_lie_last() -> None:
    wanted = golden("cleanrl_dqn_atari")
    rows, path = wanted["obs"], FIXTURES / "cleanrl_dqn_atari.cleanrl_model"
    last = teachers.load(path, Spec(spaces.Box(0, 255, (84, 84, 4), np.uint8), spaces.Discrete(3)))
    np.testing.assert_allclose(answers(last, rows.transpose(0, 2, 3, 1)).params, wanted["q"], atol=3e-5)
    single = teachers.load(path, Spec(spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(3)))
    assert single.blueprint is not None
    assert single.blueprint.view == View(history=4)
    state = single.policy.initial_state(len(rows))
    for t in range(4):
        output = single.policy(rows[:, t], state, np.full(len(rows), t == 0))
        state = output.state
    np.testing.assert_allclose(output.params, wanted["q"], atol=3e-5)


def test_multidiscrete_actions_split_the_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({k: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, n)) for k, n in (("actor", 5), ("critic", 1))})  # fmt: skip
    path = saved(tmp_path / "m.pt", net.state_dict())
    spec = Spec(CARTPOLE.observation_space, spaces.MultiDiscrete([3, 2]))
    teacher, obs = teachers.load(path, spec), np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    with torch.no_grad():
        logits = net["actor"](torch.as_tensor(obs)).numpy()
    actions = distributions.act(teacher.policy.head, answers(teacher, obs).params)
    assert np.array_equal(actions, np.stack([logits[:, :3].argmax(1), logits[:, 3:].argmax(1)], axis=1))
    with pytest.raises(InputError, match="logits of discrete actions"):
        teachers.load(path, Spec(CARTPOLE.observation_space, PENDULUM.action_space))


def test_an_atari_network_with_memory(tmp_path: Path) -> None:
    """ppo_atari_lstm: one frame, an LSTM between the dense layer and the heads."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 4, 8, 4), nn.ReLU(), nn.Conv2d(4, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    network = nn.Sequential(*convs, nn.Flatten(), nn.Linear(4 * 49, 8), nn.ReLU())
    parts = nn.ModuleDict({"network": network, "lstm": nn.LSTM(8, 6), "actor": nn.Linear(6, 3), "critic": nn.Linear(6, 1)})  # fmt: skip
    path = saved(tmp_path / "m.pt", parts.state_dict())
    teacher = teachers.load(path, Spec(spaces.Box(0, 255, (1, 84, 84), np.uint8), spaces.Discrete(3)))
    rows = np.random.default_rng(0).integers(0, 256, (5, 2, 1, 84, 84)).astype(np.uint8)
    with torch.no_grad():
        hidden = network(torch.as_tensor(rows).reshape(10, 1, 84, 84) / 255.0).reshape(5, 2, 8)
        wanted = parts["actor"](parts["lstm"](hidden)[0]).numpy()
    state = teacher.policy.initial_state(2)
    for t in range(5):
        output = teacher.policy(rows[t], state, np.full(2, t == 0))
        state = output.state
        np.testing.assert_allclose(output.params, wanted[t], atol=1e-5)


def test_actions_of_other_bounds_are_refused() -> None:
    for space in (spaces.Box(-1, 1, (1,)), spaces.Box(-2, 2, (2,)), spaces.Discrete(2)):
        with pytest.raises(InputError, match="does not fit"):
            teachers.load(FIXTURES / "cleanrl_td3.cleanrl_model", Spec(PENDULUM.observation_space, space))


@pytest.mark.parametrize("scale", [torch.tensor([-2.0]), torch.zeros(3)])
def test_scales_that_are_no_bounds_are_refused(scale: torch.Tensor, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", changed("cleanrl_sac.cleanrl_model", action_scale=scale))
    with pytest.raises(InputError, match="no bounds of actions"):
        teachers.load(path, PENDULUM)


def test_what_does_not_fit_is_named() -> None:
    path = FIXTURES / "cleanrl_ppo.cleanrl_model"
    with pytest.raises(InputError, match="sees 4 numbers, the task gives 3"):
        teachers.load(path, Spec(PENDULUM.observation_space, spaces.Discrete(2)))
    with pytest.raises(InputError, match="gives 2 numbers where 3 are needed"):
        teachers.load(path, Spec(CARTPOLE.observation_space, spaces.Discrete(3)))
    with pytest.raises(InputError, match="Name the environment"):
        teachers.load(path)
    with pytest.raises(InputError, match="--kind was given"):
        teachers.load(path, CARTPOLE, kind="q")
    with pytest.raises(InputError, match="picture of 4 channels"):
        teachers.load(FIXTURES / "cleanrl_dqn_atari.cleanrl_model", CARTPOLE)
    with pytest.raises(InputError, match="22 logits over 11 returns"):
        teachers.load(FIXTURES / "cleanrl_c51.cleanrl_model", Spec(CARTPOLE.observation_space, spaces.Discrete(4)))


def test_another_activation_is_stated_with_architecture() -> None:
    obs = golden("cleanrl_ppo")["obs"]
    assumed, stated, other = (answers(cleanrl("ppo", architecture=a), obs).params for a in (None, "tanh", "relu"))
    assert np.array_equal(assumed, stated)
    assert not np.allclose(assumed, other)


def test_statistics_that_cleanrl_does_not_save_are_asked_for(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    teacher = cleanrl("ppo_continuous")
    assert any("--normaliser" in note for note in teacher.info.notes)
    norm = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=1e9)
    norm.obs_rms.mean, norm.obs_rms.var = np.array([0.1, 0.2, 0.3]), np.array([1.0, 4.0, 9.0])
    norm.save(str(tmp_path / "s.pkl"))
    obs = golden("cleanrl_ppo_continuous")["obs"]
    scaled = norm.normalize_obs(obs).astype(np.float32)
    ours = answers(cleanrl("ppo_continuous", normaliser=tmp_path / "s.pkl"), obs)
    np.testing.assert_allclose(ours.params, answers(teacher, scaled).params, atol=1e-5)
    np.testing.assert_allclose(ours.value, answers(teacher, scaled).value, atol=1e-5)


# ---------------------------------------------------------------- rsl_rl


def played(teacher: Teacher, wanted: dict[str, np.ndarray]) -> np.ndarray:
    state, said = teacher.policy.initial_state(wanted["first"].shape[1]), []
    for obs, first in zip(wanted["obs"], wanted["first"], strict=True):
        output = teacher.policy(obs, state, first)
        state = output.state
        said.append(output.params)
    return np.stack(said)


@pytest.mark.parametrize("name", RSL_RL)
def test_rsl_rl_files_answer_as_their_program(name: str) -> None:
    teacher, wanted = teachers.load(FIXTURES / f"rslrl_{name}.pt", PENDULUM), golden(f"rslrl_{name}")
    said = played(teacher, wanted)
    np.testing.assert_allclose(said[..., :1], wanted["mean"], atol=1e-5)
    np.testing.assert_allclose(distributions.act(teacher.policy.head, said[0]), wanted["action"][0], atol=1e-5)
    if "std" in wanted:
        np.testing.assert_allclose(np.exp(said[0, 0, 1:]), wanted["std"], rtol=1e-5)
    assert (teacher.info.format, teacher.policy.head.kind) == ("rsl_rl", "gaussian")
    assert any("elu is assumed" in note for note in teacher.info.notes)
    assert teacher.blueprint is not None
    assert teacher.blueprint.value_layers
    assert teachers.inspect(FIXTURES / f"rslrl_{name}.pt").stated["iteration"] > 0


def test_a_spread_by_state_is_read_where_the_user_says_what_it_is() -> None:
    path, wanted = FIXTURES / "rslrl_state_std.pt", golden("rslrl_state_std")
    with pytest.raises(InputError, match="--kind gaussian"):
        teachers.load(path, PENDULUM)
    both = teachers.load(path, PENDULUM, kind="gaussian", architecture="tanh")
    np.testing.assert_allclose(played(both, wanted)[..., :1], wanted["mean"], atol=1e-5)
    zeros = answers(both, np.zeros((1, 3), np.float32)).params
    np.testing.assert_allclose(np.exp(zeros[:, 1]), wanted["std"], rtol=1e-5)
    means = teachers.load(path, PENDULUM, kind="deterministic", architecture="tanh")
    np.testing.assert_allclose(played(means, wanted), wanted["mean"], atol=1e-5)


def test_the_critic_keeps_its_own_normaliser(tmp_path: Path) -> None:
    value = torch.load(FIXTURES / "rslrl_mlp.pt", weights_only=True)
    critic = value["critic_state_dict"]
    critic["obs_normalizer._mean"] = critic["obs_normalizer._mean"] + 0.5
    critic["obs_normalizer._std"] = critic["obs_normalizer._std"] * 3
    teacher = teachers.load(saved(tmp_path / "m.pt", value), PENDULUM)
    obs = torch.as_tensor(golden("rslrl_mlp")["obs"][0])
    hidden = (obs - critic["obs_normalizer._mean"]) / (critic["obs_normalizer._std"] + 0.01)
    for i in (0, 2, 4):
        hidden = nn.functional.linear(hidden, critic[f"mlp.{i}.weight"], critic[f"mlp.{i}.bias"])
        hidden = nn.functional.elu(hidden) if i < 4 else hidden
    np.testing.assert_allclose(answers(teacher, obs.numpy()).value, hidden[:, 0].numpy(), rtol=1e-4, atol=1e-4)


def test_a_critic_that_sees_more_is_left_out_and_a_student_acts_by_its_means(tmp_path: Path) -> None:
    value = torch.load(FIXTURES / "rslrl_log_std.pt", weights_only=True)
    value["critic_state_dict"]["mlp.0.weight"] = torch.zeros(16, 9)
    teacher = teachers.load(saved(tmp_path / "m.pt", value), PENDULUM)
    assert any("critic sees 9 numbers" in note for note in teacher.info.notes)
    actor = {k: v for k, v in value["actor_state_dict"].items() if "std" not in k}
    student = {"student_state_dict": actor, "teacher_state_dict": {"mlp.0.weight": torch.zeros(2, 9)}}
    teacher = teachers.load(saved(tmp_path / "s.pt", student), PENDULUM)
    assert teacher.policy.head.kind == "deterministic"


def test_networks_that_rsl_rl_files_may_hold_and_are_not_read(tmp_path: Path) -> None:
    value = torch.load(FIXTURES / "rslrl_log_std.pt", weights_only=True)
    value["actor_state_dict"]["cnns.camera.0.weight"] = torch.zeros(2, 3, 3, 3)
    with pytest.raises(InputError, match=r"cnns\.camera\.0\.weight has no place"):
        teachers.load(saved(tmp_path / "m.pt", value), PENDULUM)


# ---------------------------------------------------------------- weights and a line


class Pictured(nn.Module):
    """Convolutions, a pool, a memory; two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(6, 4, (2, 3)), nn.Tanh())  # fmt: skip
        self.fc, self.norm, self.gru = nn.Linear(4 * 3 * 1, 10), nn.LayerNorm(10), nn.GRU(10, 7)
        self.pi, self.v = nn.Linear(7, 3), nn.Linear(7, 1)

    def forward(self, x: torch.Tensor, h: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [B, 3, 10, 8]."""
        hidden = torch.relu(self.norm(self.fc(self.body(x / 10).flatten(1))))
        out, h = self.gru(hidden[None], h)
        return self.pi(out[0]), self.v(out[0])[:, 0], h


LINE = (
    "divide 10 > conv 6 3x3 stride=2 pad=1 relu @body.0 > pool max 2x2 stride=1 > conv tanh @body.3 > flatten > dense 10 @fc"
    " > norm relu @norm > gru 7 @gru > head categorical 3 @pi ; value @v"
)


@pytest.mark.parametrize("order", ["chw", "hwc"])
@pytest.mark.parametrize("container", ["pt", "safetensors"])
def test_a_described_network_answers_as_the_module(order: str, container: str, tmp_path: Path) -> None:
    module = Pictured()
    path = tmp_path / f"m.{container}"
    if container == "pt":
        saved(path, {"model": module.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}})
    else:
        path.write_bytes(safetensors_bytes({k: v.numpy() for k, v in module.state_dict().items()}))
    shape = (3, 10, 8) if order == "chw" else (10, 8, 3)
    teacher = teachers.load(path, Spec(spaces.Box(0, 10, shape, np.uint8), spaces.Discrete(3)), architecture=LINE)
    rows = np.random.default_rng(0).integers(0, 11, (6, 5, 3, 10, 8)).astype(np.uint8)
    state, memory = teacher.policy.initial_state(5), None
    for t in range(6):
        with torch.no_grad():
            pi, v, memory = module(torch.as_tensor(rows[t]).float(), memory)
        ours = rows[t] if order == "chw" else rows[t].transpose(0, 2, 3, 1)
        output = teacher.policy(ours, state, np.full(5, t == 0))
        state = output.state
        np.testing.assert_allclose(output.params, pi.numpy(), atol=1e-5)
        np.testing.assert_allclose(output.value, v.numpy(), atol=1e-5)


def chain(*sizes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {
        f"{i}.{kind}": torch.randn(shape) / 2
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
        for kind, shape in (("weight", (b, a)), ("bias", (b,)))
    }


CONTINUOUS = Spec(CARTPOLE.observation_space, spaces.Box(-1, 3, (2,)), "plane")
HEADS = {
    "gaussian @1 log_std=spread": ("gaussian", lambda m, w: np.concatenate([m, np.broadcast_to(w["spread"], m.shape)], 1)),
    "gaussian @1 log_std=-0.5": ("gaussian", lambda m, w: np.concatenate([m, np.full_like(m, -0.5)], 1)),
    "squashed @1 log_std=other": ("squashed", lambda m, w: np.concatenate([m, w["hidden"] @ w["other.weight"].T + w["other.bias"]], 1)),
    "tanh @1": ("tanh", lambda m, w: m),
    "deterministic @1": ("deterministic", lambda m, w: m),
    "@1": ("deterministic", lambda m, w: m),
}  # fmt: skip


@pytest.mark.parametrize("head", list(HEADS))
def test_heads_of_continuous_actions(head: str, tmp_path: Path) -> None:
    weights = {**chain(4, 6, 2), "spread": torch.tensor([0.3, -1.0]), "other.weight": torch.randn(2, 6), "other.bias": torch.randn(2)}  # fmt: skip
    used = [name for name in ("spread", "other") if name in head]
    ignored = " ".join({"spread": "spread", "other": "other.*"}[n] for n in ("spread", "other") if n not in used)
    line = f"dense tanh @0 > head {head} ; ignore {ignored}"
    teacher = teachers.load(saved(tmp_path / "m.pt", weights), CONTINUOUS, architecture=line)
    obs = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    w = {k: v.numpy() for k, v in weights.items()}
    w["hidden"] = np.tanh(obs @ w["0.weight"].T + w["0.bias"])
    kind, wanted = HEADS[head]
    assert teacher.policy.head.kind == kind
    np.testing.assert_allclose(
        answers(teacher, obs).params, wanted(w["hidden"] @ w["1.weight"].T + w["1.bias"], w), atol=1e-5
    )


def test_history_q_values_and_a_critic_of_its_own(tmp_path: Path) -> None:
    weights = chain(8, 5, 2) | {f"c.{k}": v for k, v in chain(8, 3, 1).items()}
    path = saved(tmp_path / "m.pt", weights)
    line = "history 2 > dense 5 elu > head q ; critic > dense relu > dense 1"
    teacher = teachers.load(path, CARTPOLE, architecture=line)
    obs = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    first = teacher.policy(obs[0], teacher.policy.initial_state(6), np.ones(6, bool))
    said = teacher.policy(obs[1], first.state, np.zeros(6, bool))
    x = torch.as_tensor(np.concatenate(list(obs), axis=1))
    with torch.no_grad():
        linear = lambda p, v: nn.functional.linear(v, weights[f"{p}.weight"], weights[f"{p}.bias"])  # noqa: E731
        np.testing.assert_allclose(said.params, linear("1", nn.functional.elu(linear("0", x))), atol=1e-5)
        np.testing.assert_allclose(said.value, linear("c.1", torch.relu(linear("c.0", x)))[:, 0], atol=1e-5)


WRONG = {
    "dense 9 > head q": "tensor has 6 units",
    "dense > dense > head q": r"takes 6 numbers|no layer is left",
    "conv > flatten > head q": r"is 0 \[6, 4\], which is no conv",
    "head q @1": "takes 6 numbers|without a place|task gives 4",
    "head q": "leaves 2 tensors|without a place",
    "dense": "the last step is the head",
    "head q > dense": "the head is the last step",
    "dens > head q": "did you mean 'dense'",
    "dense relu tanh > head q": "two of the same kind",
    "dense relux > head q": "'relux' is unknown",
    "dense stride=2 > head q": "option 'stride=2' is unknown",
    "dense @nope > head q": "no layer 'nope'",
    "dense > head nope": "'nope' is unknown",
    "dense > head q log_std=1": "log_std goes with gaussian",
    "dense > head gaussian": "gaussian head cannot act",
    "divide 0 > dense > head q": "a number above 0",
    "dense > divide 2 > head q": "come first",
    "pool max > dense > head q": "a window such as 2x2",
    "dense > flatten > head q": "no picture here to flatten",
    "dense > head q ; value": "Allowed: value",
    "dense > head q ; value @0": "takes 4 numbers where 6",
    "dense > head q ; nonsense": "after a semicolon",
    "": "unknown step",
    "> > >": "unknown step",
    "dense 1.5 > head q": "whole",
    "dense 99999999999999999999 > head q": "is unknown",
    "dense \x1b[31m > head q": "unknown",
    "dense > " * 300 + "head q": "steps",
    "x" * 5000: "letters",
    "history 9 > dense > head q": "task gives 36",
    "dense > head q @1 ; ignore": "after a semicolon",
}


@pytest.mark.parametrize("line", list(WRONG), ids=[line[:30] for line in WRONG])
def test_an_architecture_that_does_not_fit_says_where(line: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", chain(4, 6, 2))
    assert answers(teachers.load(path, CARTPOLE, architecture="dense > head q"), np.zeros((1, 4))).params.shape == (
        1,
        2,
    )
    with pytest.raises(InputError, match=WRONG[line]) as caught:
        teachers.load(path, CARTPOLE, architecture=line)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_picture_that_may_lie_either_way_must_be_said(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(2 * 3 * 3, 2))
    path = saved(tmp_path / "m.pt", module.state_dict())
    spec = Spec(spaces.Box(0, 1, (4, 4, 4)), spaces.Discrete(2))
    with pytest.raises(InputError, match="first or last"):
        teachers.load(path, spec, architecture="conv > flatten > head q")
    rows = np.random.default_rng(0).random((3, 4, 4, 4)).astype(np.float32)
    for order, turned in (("chw", rows), ("hwc", rows.transpose(0, 3, 1, 2))):
        teacher = teachers.load(path, spec, architecture=f"obs {order} > conv > flatten > head q")
        with torch.no_grad():
            wanted = module(torch.as_tensor(turned)).numpy()
        np.testing.assert_allclose(answers(teacher, rows).params, wanted, atol=1e-5)


def test_without_a_line_the_shapes_suggest_one_that_loads(tmp_path: Path) -> None:
    for module, spec in (
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), CARTPOLE),
        (nn.ModuleDict({"body": nn.Conv2d(4, 2, 3), "fc": nn.Linear(2 * 82 * 82, 5), "pi": nn.Linear(5, 3), "v": nn.Linear(5, 1)}), BEACON),
        (nn.ModuleDict({"memory": nn.GRU(4, 6), "pi": nn.Linear(6, 2)}), CARTPOLE),
    ):  # fmt: skip
        path = saved(tmp_path / "m.pt", module.state_dict())
        with pytest.raises(InputError, match="does not say how to compute") as caught:
            teachers.load(path, spec)
        line = str(caught.value).split("--architecture '")[1].split("'")[0]
        assert answers(teachers.load(path, spec, architecture=line), spec.observation_space.sample()[None]).params.size
        assert any(line[:20] in note for note in teachers.inspect(path).notes)


def test_the_grammar_of_the_documentation_is_the_one_that_is_read() -> None:
    example = (architecture.__doc__ or "").split("\n\n")[1].strip()
    assert architecture.parse(example).steps[0].word == "divide"
    architecture.parse(architecture.EXAMPLE)


def test_options_that_a_layout_has_no_use_for_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", chain(4, 6, 2))
    with pytest.raises(InputError, match="--trust was given"):
        teachers.load(path, CARTPOLE, architecture="dense > head q", trust="0" * 64)
    with pytest.raises(InputError, match="one of them"):
        teachers.load(path, CARTPOLE, architecture="dense > head q", kind="categorical")
    assert teachers.load(path, CARTPOLE, architecture="dense > head", kind="q").policy.head.kind == "q"


# ---------------------------------------------------------------- the teachers that stand beside the project

MINATAR = "conv relu > flatten > dense relu > head categorical @pi ; value @v"
DOORKEY = "divide 10 > conv 16 2x2 relu > conv 32 2x2 relu > conv 64 2x2 relu > flatten > dense 64 relu > head categorical @pi ; value @v"  # fmt: skip
PONG = "divide 255 > conv 32 8x8 stride=4 relu > conv 64 4x4 stride=2 relu > conv 64 3x3 relu > flatten > dense 512 relu > head categorical @pi ; value @v"  # fmt: skip
BESIDE = {
    "minatar_breakout_ppo.pt": (spaces.Box(0, 1, (10, 10, 4), bool), 3, MINATAR),
    "minigrid_doorkey5_ppo.pt": (spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "direction": spaces.Discrete(4)}), 7, DOORKEY),
    "pong_ppo_nosticky.safetensors": (spaces.Box(0, 255, (4, 84, 84), np.uint8), 6, PONG),
}  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared teachers are not here")
@pytest.mark.parametrize("name", list(BESIDE))
def test_shared_teachers_load_from_their_line(name: str) -> None:
    space, actions, line = BESIDE[name]
    spec = Spec(space, spaces.Discrete(actions))
    teacher = teachers.load(SHARED / name, spec, architecture=line)
    assert teacher.blueprint is not None
    assert isinstance(teacher.blueprint.layers[0], Conv)
    space.seed(0)
    obs = space.sample()
    rows = {k: np.stack([v] * 2) for k, v in obs.items()} if isinstance(obs, dict) else np.stack([obs] * 2)
    if isinstance(rows, dict):
        rows["direction"] = np.zeros(2, np.int64)
    said = answers(teacher, rows)
    assert said.params.shape == (2, actions)
    assert np.isfinite(said.value).all()


# ---------------------------------------------------------------- attacks


def test_a_canary_beside_the_weights_is_named_and_never_runs(tmp_path: Path, trap: Trap, audited: Callable) -> None:
    weights = torch.load(FIXTURES / "cleanrl_ppo.cleanrl_model", weights_only=True)
    hostile = {
        "beside": {**weights, "extra": trap.payload},
        "args": {"model_weights": weights, "args": trap.payload},
        "infos": {**torch.load(FIXTURES / "rslrl_mlp.pt", weights_only=True), "infos": trap.payload},
        "tuple": (weights, trap.payload),
    }
    for name, value in hostile.items():
        path = saved(tmp_path / f"{name}.pt", value)
        with audited() as events:
            for architecture_ in (None, "dense > head q"):
                with pytest.raises(UnsafeError, match=r"io\.open|_io\.open|open"):
                    teachers.load(path, CARTPOLE, architecture=architecture_)
            assert teachers.inspect(path).format == "program"
        assert not events
        assert not trap.fired()
        torch.load(path, weights_only=False)  # positive control
        assert trap.fired(), name


def test_loading_runs_and_writes_nothing(audited: Callable) -> None:
    for name in CLEANRL:
        cleanrl(name)
        with audited() as events:
            cleanrl(name)
            teachers.inspect(FIXTURES / f"cleanrl_{name}.cleanrl_model")
        assert not events, name


def changed(source: str, **tensors: Any) -> dict[str, Any]:
    weights = dict(torch.load(FIXTURES / source, weights_only=True))
    for key, value in tensors.items():
        name = key.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    return weights


BROKEN = {
    "nan": (changed("cleanrl_ppo.cleanrl_model", actor__0__bias=torch.full((64,), np.nan)), "holds 64 NaN"),
    "inf": (changed("cleanrl_ppo.cleanrl_model", actor__0__bias=torch.full((64,), np.inf)), "holds 64 NaN"),
    "huge": (changed("cleanrl_ppo.cleanrl_model", actor__0__bias=torch.full((64,), 1e300, dtype=torch.float64)), "float32"),
    "bias of another size": (changed("cleanrl_ppo.cleanrl_model", actor__0__bias=torch.zeros(3)), r"shape \[3\], needed \[64\]"),
    "missing layer": (changed("cleanrl_ppo.cleanrl_model", actor__2__weight=None), "missing"),
    "three axes": (changed("cleanrl_ppo.cleanrl_model", actor__2__weight=torch.zeros(64, 64, 1)), "needed 2 dimensions"),
    "complex": (changed("cleanrl_ppo.cleanrl_model", actor__2__weight=torch.zeros(64, 64, dtype=torch.bool)), "needed 2 dimensions"),
    "no rows": (changed("cleanrl_ppo.cleanrl_model", actor__2__weight=torch.zeros(0, 64)), "needed 2 dimensions"),
    "unchained": (changed("cleanrl_ppo.cleanrl_model", actor__2__weight=torch.zeros(64, 63)), "takes 63 numbers where 64"),
    "far index": (changed("cleanrl_ppo.cleanrl_model", actor__9__weight=torch.zeros(2, 2)), r"0, 2, 4 \.\.\. are expected"),
    "stranger": (changed("cleanrl_ppo.cleanrl_model", actor__0__weight_g=torch.zeros(2)), "does not say how to compute"),
    "hostile name": ({"\x1b]0;x\x07": torch.zeros(2, 2)}, "is no name of a tensor"),
    "no tensors": ({"a": 1}, "no tensors with names"),
    "a number": (7, "no tensors with names"),
    "itself": ("itself", "no tensors with names"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_weights_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    value, match = BROKEN[case]
    if value == "itself":
        value = {}
        value["model"] = value
        value["list"] = [value] * 50
    path = saved(tmp_path / "m.pt", value)
    began = time.perf_counter()
    with pytest.raises(InputError, match=match) as caught:
        teachers.load(path, CARTPOLE)
    assert time.perf_counter() - began < 2
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_truncated_and_mislabelled_files(tmp_path: Path) -> None:
    content = (FIXTURES / "cleanrl_ppo.cleanrl_model").read_bytes()
    for cut in (1, 30, len(content) // 2, len(content) - 1):
        (tmp_path / "t.pt").write_bytes(content[:cut])
        with pytest.raises(InputError):
            teachers.load(tmp_path / "t.pt", CARTPOLE)
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / "h.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(InputError):
        teachers.load(tmp_path / "h.safetensors", CARTPOLE, architecture="head q")


def test_every_layout_recognises_its_own_alone() -> None:
    for name, layout in (
        ("cleanrl_sac.cleanrl_model", "cleanrl"),
        ("rslrl_v2.pt", "rsl_rl"),
        ("torch_state_dict.pt", None),
    ):
        value = torch.load(FIXTURES / name, weights_only=True)
        arrays = {k: ({j: a.numpy() if hasattr(a, "numpy") else a for j, a in v.items()} if isinstance(v, dict) else v.numpy() if hasattr(v, "numpy") else v) for k, v in value.items()}  # fmt: skip
        found = layouts.of(arrays)
        assert (found[0] if found else None) == layout


# ---------------------------------------------------------------- fuzz


def mutated(rng: random.Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(broken) + 1)
        broken[at : at + rng.choice((1, 1, 4))] = rng.randbytes(rng.choice((0, 1, 1, 4)))
    return bytes(broken)


def fuzz(folder: Path, seed: int, count: int) -> int:
    """Mutate members inside the zip (its checksums would catch everything else), and tokens of a line."""
    rng, refusals = random.Random(seed), 0
    names = [
        ("cleanrl_sac.cleanrl_model", PENDULUM),
        ("rslrl_v3.pt", PENDULUM),
        ("cleanrl_c51.cleanrl_model", CARTPOLE),
    ]
    tokens = [
        "conv",
        "dense",
        "head",
        "q",
        "gru",
        "pool",
        "max",
        "2x2",
        "relu",
        "@0",
        "@1",
        ">",
        ">",
        ";",
        "value",
        "ignore",
        "*",
        "6",
        "stride=2",
        "divide",
        "2",
        "history",
        "3",
        "norm",
        "flatten",
        "log_std=1",
    ]
    plain = saved(folder / "plain.pt", chain(4, 6, 2))
    for i in range(count):
        if i % 3 == 0:
            path, spec, line = plain, CARTPOLE, " ".join(rng.choices(tokens, k=rng.randint(1, 12))) + rng.choice(("", " > head q"))  # fmt: skip
        else:
            name, spec = rng.choice(names)
            path, line = folder / "f.pt", None
            with zipfile.ZipFile(FIXTURES / name) as old, zipfile.ZipFile(path, "w") as new:
                chosen = rng.choice(old.namelist()) if i % 3 == 1 else next(m for m in old.namelist() if m.endswith("data.pkl"))  # fmt: skip
                for member in old.namelist():
                    content = old.read(member)
                    new.writestr(member, mutated(rng, content) if member == chosen and content else content)
        began = time.perf_counter()
        try:
            teachers.load(path, spec, architecture=line)
        except LimbeckError as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
        if i % 3:
            teachers_inspect(path)
        assert time.perf_counter() - began < 5
    return refusals


def teachers_inspect(path: Path) -> None:
    try:
        teachers.inspect(path)
    except LimbeckError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_100_mutations_are_loaded_or_refused(tmp_path: Path, audited: Callable) -> None:
    fuzz(tmp_path, 0, 3)  # lazy imports
    before = set(tmp_path.iterdir())
    assert fuzz(tmp_path, 1, 100) > 50
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_many_mutations_are_loaded_or_refused(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 2, 10_000) > 5000
