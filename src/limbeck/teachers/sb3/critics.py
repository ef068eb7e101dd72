"""The Q(s, a) of SAC, TD3, DDPG and TQC zips: what their actor was trained to climb.

SAC    the smaller of its critics      TD3, DDPG    the first      TQC    the mean over all quantiles of all critics

Their values are discounted as in training, in the rewards of training, and SAC's and TQC's hold the entropy that they were
trained to seek. CrossQ's critics, whose layers are normalised, are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import torch

from limbeck import distributions
from limbeck.contracts import Array, Blueprint, Head, Layer, Observation
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teachers.sb3.extractors import Extract
from limbeck.teachers.sb3.weights import SUPPORTED, Weights, open_ended, stack

TORCH = {
    "identity": lambda x: x, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "elu": torch.nn.functional.elu, "leaky_relu": torch.nn.functional.leaky_relu, "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu, "hardtanh": torch.nn.functional.hardtanh, "softplus": torch.nn.functional.softplus,
}  # fmt: skip


@dataclass(frozen=True)
class Branch:
    """One critic: the observation's share of its first layer as a network of its own, and the rest."""

    seen: NumpyPolicy  # observation -> [B, H] before the first activation
    action: torch.Tensor  # [n, H] weights of the action in the first layer
    activation: str  # behind the first layer
    rest: tuple[tuple[torch.Tensor, torch.Tensor, str], ...]  # weight, bias and activation of the layers behind it

    @property
    def outputs(self) -> int:
        return len(self.rest[-1][1]) if self.rest else self.action.shape[1]

    def __call__(self, obs: Observation, scaled: torch.Tensor) -> torch.Tensor:
        count = len(scaled)
        before = self.seen(obs, self.seen.initial_state(count), np.ones(count, bool)).params
        x = TORCH[self.activation](torch.from_numpy(np.array(before)) + scaled @ self.action)
        for weight, bias, activation in self.rest:
            x = TORCH[activation](x @ weight + bias)
        return x


@dataclass(frozen=True)
class SavedCritic:
    """Q(s, a) of a saved teacher; actions are executed ones, which its networks see between -1 and 1."""

    branches: tuple[Branch, ...]
    head: Head
    smallest: bool  # of the branches; else the mean over them and their outputs

    def __call__(self, obs: Observation, action: torch.Tensor) -> torch.Tensor:
        low, high = (torch.from_numpy(bound) for bound in distributions.bounds(self.head))
        scaled = 2 * (action - low) / (high - low) - 1
        values = torch.cat([branch(obs, scaled) for branch in self.branches], dim=1)
        return values.amin(1) if self.smallest else values.mean(1)


def read(weights: Weights, algorithm: str, extract: Extract, activation: str, drawn: Blueprint) -> SavedCritic | None:
    """The critic of a zip whose policy is `drawn`, None where it holds none that is read here. Raises InputError for one
    whose tensors do not fit together."""
    names = sorted({found.group(1) for key in weights if (found := re.match(r"(critic\.qf\d+)\.", key))})
    normed = any(re.match(r"critic\.qf\d+\.\d+\.ra_mean", key) for key in weights)
    if algorithm not in ("SAC", "TD3", "DDPG", "TQC") or not names or normed or drawn.view.history > 1:
        return None
    used = names[:1] if algorithm in ("TD3", "DDPG") else names
    try:
        branches = tuple(_branch(weights, name, extract, activation, drawn) for name in used)
    except KeyError as error:
        raise InputError(f"the critic's tensor {error} is missing. Save the teacher again.") from error
    single = branches[0].outputs == 1  # bare weights do not say that they are TQC's, their quantiles do
    return SavedCritic(branches, drawn.head, algorithm == "SAC" and single)


def _branch(weights: Weights, name: str, extract: Extract, activation: str, drawn: Blueprint) -> Branch:
    first, *rest = open_ended(list(stack(weights, name, activation)))
    actions = sum(drawn.head.sizes)
    if first.inputs <= actions:
        raise InputError(
            f"{name} takes {first.inputs} numbers, {actions} of them actions: it is no critic. {SUPPORTED}"
        )
    split = first.inputs - actions
    own = replace(first, weight=np.ascontiguousarray(first.weight[:split]), activation="identity")
    layers: tuple[Layer, ...] = extract(weights, "critic.features_extractor").then([own])
    if layers[-1].inputs != split:
        raise InputError(f"{name} takes {split} numbers of the observation, {layers[-1].inputs} arrive. {SUPPORTED}")
    head = Head("deterministic", (own.outputs,))
    network = NumpyPolicy(replace(drawn, head=head, layers=layers, value_layers=(), name=name))
    behind = tuple((_tensor(layer.weight), _tensor(layer.bias), layer.activation) for layer in rest)
    return Branch(network, _tensor(first.weight[split:]), first.activation, behind)


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
