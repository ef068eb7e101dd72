"""The teachers' networks: two separate MLPs, or one small convolutional trunk with two heads.

Requirements that shaped it: observations come exactly as the environment gives them, and every network converts to
plain layers without loss.

Letters: B rows of a batch, G action groups of A choices each, n numbers of a continuous action.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
CLIP = 10.0  # of a normalised observation


@dataclass(frozen=True)
class Network:
    """Convolutions (channels, kernel, stride) and dense sizes; without convolutions actor and critic share nothing."""

    conv: tuple[tuple[int, int, int], ...] = ()
    dense: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    key: str | None = None  # entry of a Dict observation
    divide: float = 1.0  # of the observation, before the first convolution
    channels_last: bool = True  # of the observation: [H, W, C], or [C, H, W]
    normalise: bool = False  # observations, by their running mean and standard deviation
    log_std: float = 0.0  # where a Gaussian policy starts


class ActorCritic(nn.Module):
    """Policy and value of one network, and what the policy's numbers mean: choices, or a Gaussian around a mean."""

    mean: Tensor  # [O] of the flat observation
    scale: Tensor  # [O]

    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any], network: Network) -> None:
        super().__init__()
        self.network = network
        if isinstance(observations, gym.spaces.Dict):
            observations = observations[network.key or ""]
        self.shape = observations.shape or ()
        self.groups, self.choices = _groups(actions)
        self.several = not isinstance(actions, gym.spaces.Discrete)  # actions of the environment are vectors
        self.bounds: tuple[Array, Array] | None = None
        if isinstance(actions, gym.spaces.Box):
            self.bounds = (actions.low, actions.high)
            self.log_std = nn.Parameter(torch.full((self.groups,), network.log_std))
        flat, width = int(np.prod(self.shape)), self.groups * self.choices
        self.register_buffer("mean", torch.zeros(flat))
        self.register_buffer("scale", torch.ones(flat))
        self.trunk = _trunk(self.shape, network) if network.conv else nn.Sequential()
        hidden = network.dense[-1:] if network.conv else (flat, *network.dense)
        self.pi = _mlp((*hidden, width), network.activation, 0.01)
        self.v = _mlp((*hidden, 1), network.activation, 1.0)

    def forward(self, obs: Tensor, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Observations [B, ...] as the environment gives them -> policy numbers [B, G * A] and values [B]."""
        x = self._features(obs, bf16) if self.network.conv else obs.flatten(1).float()
        if self.network.normalise:
            x = ((x - self.mean) / self.scale).clamp(-CLIP, CLIP)
        return self.pi(x), self.v(x).squeeze(1)

    def said(self, policy: Tensor, greedy: bool = False) -> Tensor:
        """[B, G * A] -> chosen indices [B, G], or numbers [B, n]."""
        if self.bounds is not None:
            return policy if greedy else policy + self.log_std.exp() * torch.randn_like(policy)
        logits = policy.view(-1, self.choices)
        chosen = logits.argmax(1) if greedy else torch.multinomial(logits.softmax(1), 1).squeeze(1)
        return chosen.view(-1, self.groups)

    def judge(self, policy: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability [B] of what was said, and entropy [B], both in nats."""
        if self.bounds is not None:
            unit = torch.distributions.Normal(policy, self.log_std.exp(), validate_args=False)
            return unit.log_prob(said).sum(1), unit.entropy().sum(1)  # type: ignore[no-untyped-call]
        logs = policy.view(-1, self.groups, self.choices).log_softmax(2)
        chosen = logs.gather(2, said.unsqueeze(2)).squeeze(2)
        return chosen.sum(1), -(logs.exp() * logs).sum((1, 2))

    def executed(self, said: Tensor) -> Array:
        """What the environment receives."""
        if self.bounds is not None:
            return np.clip(said.numpy(), *self.bounds)
        return said.numpy() if self.several else said[:, 0].numpy()

    def picked(self, obs: Any) -> Array:
        """The part of an observation that the policy sees."""
        return np.ascontiguousarray(obs if self.network.key is None else obs[self.network.key])

    def _features(self, obs: Tensor, bf16: bool) -> Tensor:
        x = (obs.permute(0, 3, 1, 2) if self.network.channels_last else obs).to(
            torch.bfloat16 if bf16 else torch.float32
        )
        first, *rest = self.trunk
        assert isinstance(first, nn.Conv2d)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            # dividing the first weights is the same as dividing the frames, and far cheaper
            x = nn.functional.conv2d(x, first.weight / self.network.divide, first.bias, first.stride)
            for module in rest:
                x = module(x)
        return x.float()


def _groups(actions: gym.Space[Any]) -> tuple[int, int]:
    """(G, A): groups and choices of each; (n, 1) for numbers."""
    match actions:
        case gym.spaces.Discrete():
            return 1, int(actions.n)
        case gym.spaces.MultiDiscrete() if len(set(actions.nvec.tolist())) == 1:
            return len(actions.nvec), int(actions.nvec[0])
        case gym.spaces.Box():
            return int(np.prod(actions.shape)), 1
    raise TypeError(f"{actions} has no policy here. Allowed: Discrete, MultiDiscrete of equal groups, Box.")


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _mlp(sizes: tuple[int, ...], activation: str, gain: float) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        modules += [_linear(inputs, outputs, 2**0.5), ACTIVATIONS[activation]()]
    return nn.Sequential(*modules, _linear(sizes[-2], sizes[-1], gain))


def _trunk(shape: tuple[int, ...], network: Network) -> nn.Sequential:
    channels, *side = (shape[2], *shape[:2]) if network.channels_last else shape
    modules: list[nn.Module] = []
    for outputs, kernel, stride in network.conv:
        layer = nn.Conv2d(channels, outputs, kernel, stride)
        nn.init.orthogonal_(layer.weight, 2**0.5)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        modules += [layer, ACTIVATIONS[network.activation]()]
        channels, side = outputs, [(s - kernel) // stride + 1 for s in side]
    modules.append(nn.Flatten())
    for inputs, outputs in pairwise((channels * int(np.prod(side)), *network.dense)):
        modules += [_linear(inputs, outputs, 2**0.5), ACTIVATIONS[network.activation]()]
    return nn.Sequential(*modules)
