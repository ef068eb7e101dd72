"""Turn trained weights into a Limbeck policy: python recipes/teachers/convert.py NAME [--source FOLDER] [--episodes N].

Reads NAME.pt and NAME.json as train.py wrote them, writes NAME.safetensors here, loads that file again and plays it in
the plain environment with `limbeck.rollout.play`: the return it states is of the file as it is, not of the network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environments as worlds
import numpy as np
import torch
from network import CLIP, ActorCritic, Network
from torch import nn
from train import TEACHERS

from limbeck import blueprints, rollout, seeding, spaces, tasks
from limbeck.contracts import Blueprint, Conv, Dense, HeadKind, Layer, Normaliser, Shared, Task
from limbeck.contracts.layers import Layout
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teachers.verification import bootstrap

HERE = Path(__file__).parent
# What limbeck resolves: an id where the environment is one, else a factory of the plain environment.
PLAYED: dict[str, Any] = {
    "cartpole": "CartPole-v1",
    "pendulum": "Pendulum-v1",
    "halfcheetah": "HalfCheetah-v5",
    "highway": "highway-fast-v0",
    "doorkey": worlds.doorkey_image,
    "breakout": worlds.breakout,
    "sardine": worlds.sardine_rerank,
    "pursuit": worlds.Pursuit,
    "pong": worlds.pong,
}


def blueprint(name: str, net: ActorCritic, task: Task, record: dict[str, Any]) -> Blueprint:
    """The network as plain layers; the critic speaks in units of the return again."""
    kind: HeadKind | None = "gaussian" if net.bounds is not None else None
    gain = 1.0 / float(record["settings"]["reward_scale"])
    trunk = tuple(_trunk_layers(net)) if net.network.conv else ()
    policy = (*trunk, *_dense_layers(net.pi, net.network.activation))
    if net.bounds is not None:
        policy = (*policy[:-1], _with_spread(policy[-1], net.log_std.detach().numpy()))
    value = (*trunk, *_dense_layers(net.v, net.network.activation, gain))
    if name == "pursuit":  # every member acts by the same network; the team's value is the mean of theirs
        members = task.spec.observation_space.shape[0]  # type: ignore[index]
        mean = Dense(np.full((members, 1), 1 / members, np.float32), np.zeros(1, np.float32))
        policy, value = (Shared(policy, members),), (Shared(value, members), mean)
    if name == "pong":  # a second copy of the trunk would double the largest file
        value = ()
    normaliser = None
    if net.network.normalise:
        normaliser = Normaliser(net.mean.numpy().copy(), net.scale.numpy().copy(), CLIP)
    head = spaces.head_for(task.spec.action_space, kind)
    return Blueprint(
        task.spec,
        head,
        policy,
        normaliser=normaliser,
        value_layers=value,
        name=f"{record.get('algorithm', 'PPO').lower()}-{name}",
    )


def _trunk_layers(net: ActorCritic) -> Iterator[Layer]:
    """Convolutions give height x width x channels, torch's Flatten channels first: the first dense layer is reordered."""
    layout: Layout = "hwc" if net.network.channels_last else "chw"
    height, width = net.shape[:2] if layout == "hwc" else net.shape[1:]
    size, channels, divide = (height, width), 0, net.network.divide
    for module in net.trunk:
        if isinstance(module, nn.Conv2d):
            weight = _float32(module.weight.detach().numpy().transpose(2, 3, 1, 0) / divide)
            stride = (int(module.stride[0]), int(module.stride[1]))
            layer = Conv(weight, _array(module.bias), size, stride, activation=net.network.activation, layout=layout)
            yield layer
            size, channels, layout, divide = layer.out_size, module.out_channels, "hwc", 1.0
        elif isinstance(module, nn.Linear):
            weight = module.weight.detach().numpy()
            if channels:
                weight = weight.reshape(-1, channels, *size).transpose(0, 2, 3, 1).reshape(len(weight), -1)
                channels = 0
            yield Dense(_float32(weight.T), _array(module.bias), net.network.activation)


def _dense_layers(part: nn.Module, activation: str, gain: float = 1.0) -> list[Dense]:
    linear = [m for m in part.modules() if isinstance(m, nn.Linear)]
    layers = [Dense(_float32(m.weight.detach().numpy().T), _array(m.bias), activation) for m in linear[:-1]]
    return [
        *layers,
        Dense(_float32(linear[-1].weight.detach().numpy().T * gain), _float32(_array(linear[-1].bias) * gain)),
    ]


def _with_spread(last: Layer, log_std: Any) -> Dense:
    """[mean] -> [mean, log std], the second half the same for every observation."""
    assert isinstance(last, Dense)
    weight = np.concatenate([last.weight, np.zeros_like(last.weight)], axis=1)
    return Dense(weight, np.concatenate([last.bias, log_std]).astype(np.float32))


def _array(parameter: torch.Tensor | None) -> Any:
    assert parameter is not None
    return _float32(parameter.detach().numpy())


def _float32(array: Any) -> Any:
    return np.ascontiguousarray(array, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(TEACHERS))
    parser.add_argument("--source", type=Path, default=Path("teachers"))
    parser.add_argument("--episodes", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads((args.source / f"{args.name}.json").read_text())
    task = tasks.resolve(PLAYED[args.name])
    network = Network(**{**record["network"], "conv": tuple(map(tuple, record["network"]["conv"])), "key": None})
    settings = record["settings"]
    observations, actions = (
        _one_member() if args.name == "pursuit" else (task.spec.observation_space, task.spec.action_space)
    )
    net = ActorCritic(observations, actions, network)
    net.load_state_dict(torch.load(args.source / f"{args.name}.pt", weights_only=True))
    file, drawn = HERE / f"{args.name}.safetensors", blueprint(args.name, net, task, record)
    seeds = [seeding.episode_seed(20261121, "teach", i) for i in range(args.episodes)]
    played = rollout.play(NumpyPolicy(drawn), task, seeds)
    low, high = bootstrap(played.returns, 0)
    measured = {"mean": float(played.returns.mean()), "low": low, "high": high, "episodes": args.episodes}
    before = {**record["return"], "mode": "greedy", "interval": "95 %, Student's t over episodes"}
    file_return = {**measured, "mode": "greedy", "interval": "95 %, bootstrap over episodes"}
    few = args.episodes < before["episodes"]  # a large network is slow in numpy: then the many episodes are stated
    provenance = {
        "algorithm": record.get("algorithm", "PPO"),
        "environment": record["env"],
        "env_kwargs": record["env_kwargs"],
        "recipe": record.get("recipe", f"recipes/teachers/train.py {args.name}"),
        "settings": settings,
        "seed": settings["seed"],
        "env_steps": settings["steps"],
        "cpu_seconds": record["cpu_seconds"],
        "return": before if few else file_return,
        "return_before_conversion": before,
        "return_after_conversion": file_return,
    }
    blueprints.save(drawn, file, provenance=provenance)
    again, _ = blueprints.load(file)
    assert again.parameters == drawn.parameters
    print(f"{file.name}: {file.stat().st_size:,} bytes, {drawn.parameters:,} parameters, {measured}")
    print(f"before conversion: {record['return']}")


def _one_member() -> tuple[Any, Any]:
    vector = worlds.pursuers(1, 0)
    return vector.single_observation_space, vector.single_action_space


if __name__ == "__main__":
    main()
