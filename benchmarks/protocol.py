"""How distillers are compared: fixed seeds outside the bill, retention, and the first checkpoint from which it holds.

Needs numpy and Gymnasium (0.29 or later) alone, so that peers with old pins can run the very same lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

BAR = 0.95  # share of the teacher, above random play, that a student must keep
SEEDS = tuple(range(1_000_000, 1_000_400))  # none of a Limbeck stage that meets an environment draws below 2**27
SLOTS = 32

Floats = NDArray[np.float32]
Network = Sequence[
    tuple[Floats, Floats, str]
]  # (weight [in, out], bias [out], activation); greedy: argmax of the last,
# or its clipped value where actions are continuous
ACTIVATE = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "identity": lambda x: x}


@dataclass(frozen=True)
class Checkpoint:
    """A student after a round: what it had cost, and what it keeps."""

    env_steps: int
    seconds: float  # collecting and learning; playing the 400 episodes is not on the bill
    mean_return: float
    retention: float


def retention(student: float, teacher: float, random: float) -> float:
    """(S - R) / (T - R) from mean returns on the same seeds."""
    return (student - random) / (teacher - random)


def first_lasting(checkpoints: Sequence[Checkpoint], bar: float = BAR) -> Checkpoint | None:
    """The first checkpoint from which retention >= bar holds at all later ones; None: it does not hold at the last."""
    result = None
    for checkpoint in reversed(checkpoints):
        if checkpoint.retention < bar:
            break
        result = checkpoint
    return result


def summary(results: Sequence[Checkpoint | None]) -> dict[str, Any]:
    """Median and quartiles over collections; one that never got there counts as infinite (None in the output)."""
    steps = [math.inf if r is None else r.env_steps for r in results]
    seconds = [math.inf if r is None else r.seconds for r in results]
    reached = sum(r is not None for r in results)
    return {
        "collections": len(results),
        "reached": reached,
        "env_steps": _quartiles(steps),
        "seconds": _quartiles(seconds),
    }


def _quartiles(values: list[float]) -> dict[str, float | None]:
    """Linear between neighbours; None where that neighbour never got there."""
    found = []
    for q in (0.5, 0.25, 0.75):
        low, high = (float(np.quantile(values, q, method=side)) for side in ("lower", "higher"))
        found.append(low if low == high else float(np.quantile(values, q)) if math.isfinite(high) else math.inf)
    return {k: v if math.isfinite(v) else None for k, v in zip(("median", "q25", "q75"), found, strict=True)}


def play(network: Network | None, env_id: str, seeds: Sequence[int] = SEEDS) -> NDArray[np.float64]:
    """[N] undiscounted returns, one episode per seed, greedy; without a network uniformly random."""
    envs = [gym.make(env_id, disable_env_checker=True) for _ in range(min(SLOTS, len(seeds)))]
    queue = list(range(len(seeds)))[::-1]
    returns, sitting = np.zeros(len(seeds)), [queue.pop() for _ in envs]
    obs = np.stack([env.reset(seed=seeds[i])[0] for env, i in zip(envs, sitting, strict=True)])
    rng, space = np.random.default_rng(0), envs[0].action_space
    while any(i >= 0 for i in sitting):
        actions = uniform(space, len(envs), rng) if network is None else greedy(network, obs, space)
        for slot, i in enumerate(sitting):
            if i < 0:
                continue
            obs[slot], reward, terminated, truncated, _ = envs[slot].step(actions[slot])
            returns[i] += float(reward)
            if terminated or truncated:
                sitting[slot] = queue.pop() if queue else -1
                if sitting[slot] >= 0:
                    obs[slot] = envs[slot].reset(seed=seeds[sitting[slot]])[0]
    for env in envs:
        env.close()
    return returns


def greedy(network: Network, obs: NDArray[np.float32], space: Any) -> NDArray[Any]:
    """[B, ...] actions for [B, O] observations."""
    x = obs
    for weight, bias, activation in network:
        x = ACTIVATE[activation](x @ weight + bias)
    if isinstance(space, gym.spaces.Discrete):
        return x.argmax(axis=1)
    return np.clip(x, space.low, space.high).astype(space.dtype)


def uniform(space: Any, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """[B, ...] random actions."""
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=count)
    return rng.uniform(space.low, space.high, (count, *space.shape)).astype(space.dtype)


def mean_returns(
    networks: Sequence[Network | None], env_id: str, workers: int, seeds: Sequence[int] = SEEDS
) -> list[float]:
    """Mean return of each network (None: random play) on the same seeds, `workers` processes."""
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(play, network, env_id, seeds) for network in networks]
        return [float(job.result().mean()) for job in jobs]
