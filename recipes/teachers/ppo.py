"""Proximal policy optimisation in one file: what makes the teachers of this folder.

Requirements that shaped it: every family of environments through one loop (Gymnasium, envpool, ale-py and a team of
agents all speak the vector interface with NEXT_STEP autoreset), and a returned policy whose score can be believed: the
checkpoint is chosen on some episodes and measured on others.

Schulman et al. 2017 (arXiv:1707.06347) with generalised advantages (arXiv:1506.02438).
Letters: T steps, N rows of the vector environment, B rows of a batch, G action groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from network import ActorCritic, Network
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import Tensor, nn

Array = NDArray[Any]
Weights = dict[str, Tensor]
Make = Callable[[int, int], VectorEnv[Any, Any, Any]]  # (environments, seed) -> vector environment, NEXT_STEP autoreset


@dataclass(frozen=True)
class Settings:
    """How to train. `steps` counts rows with a real transition only roughly: reset rows are counted too."""

    steps: int
    envs: int = 16
    horizon: int = 128  # T
    minibatch: int = 512
    epochs: int = 4
    learning_rate: float = 1e-3  # falls linearly to 0
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad: float = 0.5
    reward_scale: float = 1.0
    bf16: bool = False
    checks: int = 20  # evaluations during training, evenly spaced
    check_episodes: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """Mean return with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    episodes: int


def train(make: Make, network: Network, settings: Settings, keep: Callable[[Weights], None]) -> ActorCritic:
    """The best checkpoint, chosen by greedy evaluation on seeds that training never uses; `keep` gets each better one."""
    torch.manual_seed(settings.seed)
    envs = make(settings.envs, settings.seed + 1)
    net = ActorCritic(envs.single_observation_space, envs.single_action_space, network)
    optimiser = torch.optim.Adam(net.parameters(), settings.learning_rate, eps=1e-5, fused=True)
    rows = int(envs.num_envs)
    rounds = max(1, settings.steps // (rows * settings.horizon))
    check_every = max(1, rounds // settings.checks)
    best, best_score, started = deepcopy(net.state_dict()), -np.inf, time.process_time()
    seen = _Running(net)
    obs, done = net.picked(envs.reset(seed=settings.seed + 1)[0]).copy(), np.zeros(rows, bool)
    for number in range(rounds):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * (1 - number / rounds)
        batch, obs, done = _collect(net, envs, obs, done, settings)
        entropy = _learn(net, optimiser, batch, settings)
        if net.network.normalise:
            seen.update(batch.obs)
        if (number + 1) % check_every == 0 or number + 1 == rounds:
            score = evaluate(net, make, settings.check_episodes, 1_000_000 + 1000 * number, settings.bf16)
            if score.mean >= best_score:
                best, best_score = deepcopy(net.state_dict()), score.mean
                keep(best)
            steps, seconds = (number + 1) * rows * settings.horizon, time.process_time() - started
            print(
                f"{steps:>9,} steps {seconds:6.0f} s  return {score.mean:9.3f}  best {best_score:9.3f}"
                f"  entropy {entropy:6.3f}",
                flush=True,
            )
    envs.close()
    net.load_state_dict(best)
    return net


@torch.no_grad()
def evaluate(
    net: ActorCritic, make: Make, episodes: int, seed: int, bf16: bool = False, envs: int = 16, greedy: bool = True
) -> Score:
    """Equally many episodes from each environment, so that short ones do not crowd out long ones."""
    vector = make(min(envs, episodes), seed)
    team = int(getattr(vector, "agents", 1))  # rows that share one episode
    rows = int(vector.num_envs)
    each = -(-episodes * team // rows)
    obs, done = net.picked(vector.reset(seed=seed)[0]), np.zeros(rows, bool)
    running = np.zeros(rows)
    returns: list[list[float]] = [[] for _ in range(rows)]
    while min(map(len, returns)) < each:
        said = net.said(net(torch.from_numpy(obs), bf16)[0], greedy)
        obs, reward, terminated, truncated, _ = vector.step(net.executed(said))
        obs, running = net.picked(obs), running + np.where(done, 0, reward)
        done = np.asarray(terminated | truncated) & ~done
        for row in np.flatnonzero(done):
            returns[row].append(float(running[row]))
            running[row] = 0.0
    vector.close()
    values = np.array([r[:each] for r in returns]).reshape(-1, team, each).mean(1).reshape(-1)
    half = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return Score(mean, mean - half, mean + half, len(values))


@dataclass(frozen=True)
class _Batch:
    """Rows with a real transition only."""

    obs: Tensor  # [B, ...] as the environment gave them
    said: Tensor  # [B, G]
    log_prob: Tensor  # [B]
    advantage: Tensor  # [B]
    target: Tensor  # [B] of the value


@torch.no_grad()
def _collect(
    net: ActorCritic, envs: VectorEnv[Any, Any, Any], obs: Array, done: Array, settings: Settings
) -> tuple[_Batch, Array, Array]:
    """T steps of N rows. The step after an end only resets (NEXT_STEP): such rows are left out of the batch."""
    T, N = settings.horizon, len(done)
    seen, said, logs, values = [], [], [], []
    rewards, alive, ended, terminated = (np.zeros((T, N), kind) for kind in (np.float32, bool, bool, bool))
    for step in range(T):
        x = torch.from_numpy(obs.copy())  # ale-py and envpool write the next frames into the same memory
        policy, value = net(x, settings.bf16)
        action = net.said(policy)
        alive[step] = ~done
        given, reward, terminated[step], truncated, _ = envs.step(net.executed(action))
        obs = net.picked(given)
        done = (terminated[step] | np.asarray(truncated)) & alive[step]
        rewards[step], ended[step] = np.asarray(reward) * settings.reward_scale, done
        seen.append(x)
        said.append(action)
        logs.append(net.judge(policy, action)[0])
        values.append(value)
    values.append(net(torch.from_numpy(obs.copy()), settings.bf16)[1])
    value = torch.stack(values).numpy()
    advantage = _advantages(rewards, value, ended, terminated, settings)
    rows = torch.from_numpy(alive)
    kept = (torch.stack(items)[rows] for items in (seen, said, logs))
    return _Batch(*kept, *(torch.from_numpy(a)[rows] for a in (advantage, advantage + value[:-1]))), obs, done


def _advantages(rewards: Array, value: Array, ended: Array, terminated: Array, settings: Settings) -> Array:
    """[T, N]. An episode that was cut off is worth what its last observation promises, a finished one nothing more."""
    advantage, carried = np.zeros_like(rewards), np.zeros(rewards.shape[1], np.float32)
    for step in reversed(range(len(rewards))):
        error = rewards[step] + settings.gamma * value[step + 1] * ~terminated[step] - value[step]
        carried = error + settings.gamma * settings.lam * carried * ~ended[step]
        advantage[step] = carried
    return advantage


def _learn(net: ActorCritic, optimiser: torch.optim.Optimizer, batch: _Batch, settings: Settings) -> float:
    """Epochs of clipped steps; the mean entropy of the last one, in nats."""
    count = len(batch.advantage)
    entropies: list[float] = []
    for _ in range(settings.epochs):
        order, entropies = torch.randperm(count), []
        for start in range(0, max(1, count - settings.minibatch + 1), settings.minibatch):
            rows = order[start : start + settings.minibatch]
            policy, value = net(batch.obs[rows], settings.bf16)
            log_prob, entropy = net.judge(policy, batch.said[rows])
            advantage = batch.advantage[rows]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            ratio = (log_prob - batch.log_prob[rows]).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - settings.clip, 1 + settings.clip) * advantage)
            error = (value - batch.target[rows]).square().mean()
            loss = -gain.mean() + settings.value * error - settings.entropy * entropy.mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), settings.max_grad)
            optimiser.step()
            entropies.append(float(entropy.detach().mean()))
    return float(np.mean(entropies))


class _Running:
    """Mean and variance of all observations so far, merged batch by batch (Chan et al. 1983), kept in the network."""

    def __init__(self, net: ActorCritic) -> None:
        self.net, self.count = net, 0
        self.mean, self.variance = np.zeros(len(net.mean)), np.zeros(len(net.mean))

    def update(self, obs: Tensor) -> None:
        rows = obs.flatten(1).double().numpy()
        total, shift = self.count + len(rows), rows.mean(0) - self.mean
        self.variance = (self.count * self.variance + len(rows) * rows.var(0)) / total
        self.variance += shift**2 * self.count * len(rows) / total**2
        self.mean += shift * len(rows) / total
        self.count = total
        self.net.mean.copy_(torch.from_numpy(self.mean))
        self.net.scale.copy_(torch.from_numpy(np.sqrt(self.variance + 1e-8)))
