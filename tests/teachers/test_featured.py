"""Layers of teachers by their names: what is captured is what torch itself computes there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fixture_cases import FIXTURES
from gymnasium import spaces
from hostile_cases import numpy_rows

from limbeck import tasks, teachers
from limbeck.contracts import Blueprint, Conv, Dense, Pool, Spec, Teacher
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy, layer_shapes
from limbeck.spaces import head_for
from limbeck.teachers import featured

BOX = spaces.Box(-1.0, 1.0, (5,), np.float32)
PICTURE = spaces.Box(-1.0, 1.0, (3, 8, 9), np.float32)


class Net(torch.nn.Module):
    """A network whose activations work in place, as many published ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 6, 3, stride=2), torch.nn.Tanh()
        )
        self.twice = torch.nn.Identity()
        self.head = torch.nn.Linear(6 * 2 * 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.twice(self.twice(self.body(x)))
        out: torch.Tensor = self.head(hidden.flatten(1))
        return out


def asked(teacher: Teacher, obs: Any, *layers: str) -> Any:
    policy = featured.capturing(teacher, layers)
    return policy(obs, policy.initial_state(len(obs)), np.ones(len(obs), bool))


def test_a_modules_layers_are_captured_with_their_shapes() -> None:
    torch.manual_seed(0)
    net, spec = Net(), Spec(PICTURE, spaces.Discrete(2))
    teacher = teachers.load(net, spec)
    shapes = featured.shapes(teacher)
    assert shapes == {
        "body": (6, 2, 3), "body.0": (4, 6, 7), "body.1": (4, 6, 7), "body.2": (6, 2, 3), "body.3": (6, 2, 3), "head": (2,),
    }, "what is called twice has no one output"  # fmt: skip
    obs = numpy_rows(20, 3 * 8 * 9).reshape(20, 3, 8, 9).astype(np.float32)
    output = asked(teacher, obs, "body.0", "body.1", "head")
    with torch.inference_mode():
        before = net.body[0](torch.from_numpy(obs))
    assert np.allclose(output.features["body.0"], before.numpy(), atol=1e-6), (
        "the ReLU in place must not have reached it"
    )
    assert np.allclose(output.features["body.1"], before.clamp_min(0).numpy(), atol=1e-6)
    assert np.array_equal(output.features["head"], output.params)
    assert output.features["body.0"].dtype == np.float32
    assert not net.body[0]._forward_hooks
    assert np.array_equal(output.params, teacher.policy(obs, {}, np.ones(20, bool)).params)


SB3 = [
    ("sb3_dqn_cartpole", "CartPole-v1", ["q_net.q_net.0", "q_net.q_net.1", "q_net.q_net.3", "q_net.q_net.4"]),
    ("sb3_a2c_cartpole", "CartPole-v1", ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.3", "action_net"]),
    ("sb3_sac_pendulum", "Pendulum-v1", ["actor.latent_pi.0", "actor.latent_pi.3"]),
    ("sb3_td3_pendulum", "Pendulum-v1", ["actor.mu.1", "actor.mu.2"]),
    ("contrib_qrdqn_cartpole", "CartPole-v1", ["quantile_net.quantile_net.2", "quantile_net.quantile_net.3"]),
]


def _module_and_class(name: str) -> Any:
    import sb3_contrib
    import stable_baselines3 as sb3

    kinds = {"dqn": sb3.DQN, "a2c": sb3.A2C, "sac": sb3.SAC, "td3": sb3.TD3, "qrdqn": sb3_contrib.QRDQN, "ppo": sb3.PPO}
    return kinds[name.split("_")[1]].load(FIXTURES / f"{name}.zip", device="cpu").policy


def _hooked(module: Any, layers: list[str], run: Any) -> dict[str, np.ndarray]:
    seen: dict[str, np.ndarray] = {}

    def hook(layer: str) -> Any:
        def keep(_module: Any, _inputs: Any, given: torch.Tensor) -> None:
            seen[layer] = given.detach().numpy().copy()

        return keep

    for layer in layers:
        module.get_submodule(layer).register_forward_hook(hook(layer))
    run()
    return seen


@pytest.mark.parametrize(("name", "env", "layers"), SB3)
def test_names_of_stable_baselines3_mean_what_its_own_hooks_see(name: str, env: str, layers: list[str]) -> None:
    task = tasks.resolve(env)
    teacher = teachers.load(FIXTURES / f"{name}.zip", task.spec)
    obs = np.stack([task.spec.observation_space.sample() for _ in range(12)]).clip(-3, 3)
    policy = _module_and_class(name)
    theirs = _hooked(policy, layers, lambda: policy.predict(obs, deterministic=True))
    output = asked(teacher, obs, *layers, "layers.0")
    for layer in layers:
        assert np.allclose(output.features[layer], theirs[layer], rtol=1e-4, atol=1e-5), layer
        assert featured.shapes(teacher)[layer] == theirs[layer].shape[1:]
    assert set(output.features) == {*layers, "layers.0"}


def test_convolutions_come_with_their_channels_first() -> None:
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    weight = conv.weight.detach().numpy().transpose(2, 3, 1, 0).copy()
    layers = (
        Conv(weight, conv.bias.detach().numpy(), (8, 9), (1, 1), (1, 1, 1, 1), "relu", "chw"),
        Pool((8, 9), 4, (2, 3), (2, 3)),
        Dense(numpy_rows(4 * 4 * 3, 2), np.zeros(2, np.float32)),
    )
    spec = Spec(PICTURE, spaces.Discrete(2))
    teacher = teachers.load(Blueprint(spec, head_for(spec.action_space), layers), spec)
    assert featured.shapes(teacher) == {
        "layers.0.linear": (4, 8, 9), "layers.0": (4, 8, 9), "layers.1": (4, 4, 3), "layers.2": (2,),
    }  # fmt: skip
    obs = numpy_rows(6, 3 * 8 * 9).reshape(6, 3, 8, 9).astype(np.float32)
    output = asked(teacher, obs, "layers.0.linear", "layers.0", "layers.1")
    with torch.inference_mode():
        said = conv(torch.from_numpy(obs))
        pooled = torch.nn.functional.max_pool2d(said.relu(), (2, 3))
    assert np.allclose(output.features["layers.0.linear"], said.numpy(), atol=1e-5)
    assert np.allclose(output.features["layers.0"], said.relu().numpy(), atol=1e-5)
    assert np.allclose(output.features["layers.1"], pooled.numpy(), atol=1e-5)


def test_a_distributional_teacher_shows_the_network_behind_its_expectations() -> None:
    teacher = teachers.load(FIXTURES / "cleanrl_c51.cleanrl_model", tasks.resolve("CartPole-v1").spec)
    obs = numpy_rows(7, 4).astype(np.float32)
    output = asked(teacher, obs, "layers.1")
    assert output.features["layers.1"].shape == (7, 84)
    assert np.array_equal(output.params, teacher.policy(obs, {}, np.ones(7, bool)).params)


def test_a_teacher_under_a_mask_still_shows_its_layers() -> None:
    masked = spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary(3)})
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))

    class Joined(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, obs: Any) -> torch.Tensor:
            out: torch.Tensor = self.net(torch.cat([obs["observation"], obs["action_mask"]], 1))
            return out

    teacher = teachers.load(Joined(), Spec(masked, spaces.Discrete(3)))
    obs = {"observation": numpy_rows(4, 5).astype(np.float32), "action_mask": np.ones((4, 3), np.int8)}
    shown = featured.capturing(teacher, ["net.1"])(obs, {}, np.ones(4, bool)).features["net.1"]
    assert shown.shape == (4, 4)
    assert (np.abs(shown) <= 1).all()


def test_layers_that_do_not_exist_are_refused_with_those_that_do() -> None:
    teacher = teachers.load(FIXTURES / "sb3_a2c_cartpole.zip", tasks.resolve("CartPole-v1").spec)
    with pytest.raises(InputError, match=r"unknown teacher layer 'policy_net\.0'.*mlp_extractor\.policy_net\.0"):
        featured.capturing(teacher, ["policy_net.0"])
    assert featured.capturing(teacher, []) is teacher.policy


@pytest.mark.parametrize("source", ["callable", "onnx", "ensemble"])
def test_teachers_that_show_nothing_are_refused(source: str) -> None:
    spec = tasks.resolve("CartPole-v1").spec
    cartpole = FIXTURES / "sb3_a2c_cartpole.zip"
    given: dict[str, Any] = {
        "callable": lambda obs: (np.asarray(obs)[:, 2] > 0).astype(int),
        "onnx": lambda obs: np.asarray(obs)[:, :2],
        "ensemble": [cartpole, cartpole],
    }
    with pytest.raises(InputError, match="shows nothing inside"):
        featured.refuse(teachers.load(given[source], spec), ["layers.0"])


def test_a_recurrent_blueprint_shows_what_its_memory_gives() -> None:
    teacher = teachers.load(FIXTURES / "contrib_lstm_shared_cartpole.zip")
    names = list(layer_shapes(teacher.blueprint.layers))
    policy = featured.capturing(teacher, names)
    assert isinstance(policy, NumpyPolicy)
    output = policy(np.zeros((3, 2), np.float32), policy.initial_state(3), np.ones(3, bool))
    lstm = next(i for i, layer in enumerate(teacher.blueprint.layers) if layer.kind == "lstm")
    assert np.array_equal(output.features[f"layers.{lstm}"], output.state[f"lstm{lstm}.h"])
    assert np.array_equal(output.features[names[-1]], output.params)
