"""Finish a small student on return: antithetic evolution strategy with common random numbers.

Each generation plays theta +- sigma s e for a few directions e, every candidate on the same start seeds, and moves the
mean along the centred ranks (Salimans et al. 2017, arXiv:1703.03864) by Adam. s is the mean |weight| of each tensor.
A generation is a pure function of (state, its number): seeds and directions come from their own counted stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from limbeck import rollout, seeding
from limbeck.contracts import Array, Floats, Policy, Task
from limbeck.polish import shaping
from limbeck.polish.shaping import Shaping

SCALE_FLOOR = 0.1
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
VALIDATION_OFFSET = 1 << 26  # generations draw their seeds below it in the polish stream, validations lie from it on
PATIENCE = 3  # validations without gain before the search ends


@dataclass(frozen=True)
class Search:
    """The search between two generations: all there is to continue from."""

    theta: Floats  # [P] mean
    mean: Floats  # [P] Adam's first moment
    square: Floats  # [P] Adam's second moment
    best: Floats  # [P] weights of the best validation
    best_return: float
    generation: int = 0
    stale: int = 0  # validations since the best
    env_steps: int = 0

    def to_arrays(self) -> dict[str, Array]:
        numbers = np.array([self.best_return, self.generation, self.stale, self.env_steps], np.float64)
        return {"theta": self.theta, "mean": self.mean, "square": self.square, "best": self.best, "numbers": numbers}

    @staticmethod
    def from_arrays(arrays: Mapping[str, Array]) -> Search:
        best_return, generation, stale, env_steps = arrays["numbers"]
        theta, mean, square, best = (np.array(arrays[key], np.float32) for key in ("theta", "mean", "square", "best"))
        return Search(theta, mean, square, best, float(best_return), int(generation), int(stale), int(env_steps))


@dataclass(frozen=True)
class Field:
    """Where the search plays."""

    task: Task
    build: Callable[[Floats], Policy]  # weights [P] -> policy
    scale: Floats  # [P]
    run_seed: int
    member: int  # counter that keeps the members' streams apart
    pairs: int
    episodes: int  # per candidate and generation
    sigma: float
    learning_rate: float
    validate_every: int
    validation_episodes: int
    shaping: Shaping | None = None  # None: candidates play whole episodes and are worth their returns


def scales(shapes: Mapping[str, tuple[int, ...]], theta: Floats) -> Floats:
    """[P] mean |weight| of the tensor each number belongs to, at least 0.1."""
    parts, position = [], 0
    for shape in shapes.values():
        size = math.prod(shape)
        typical = max(float(np.abs(theta[position : position + size]).mean()), SCALE_FLOOR)
        parts.append(np.full(size, typical, np.float32))
        position += size
    return np.concatenate(parts)


def begin(field: Field, theta: Floats) -> Search:
    """The search before its first generation: the student as imitation left it, validated."""
    value, steps = _validate(field, theta)
    zeros = np.zeros_like(theta)
    return Search(theta, zeros, zeros.copy(), theta.copy(), value, env_steps=steps)


def finished(search: Search, generations: int, target_return: float) -> bool:
    """Target reached, generations spent, or no gain for PATIENCE validations."""
    return search.best_return >= target_return or search.generation >= generations or search.stale >= PATIENCE


def generation(field: Field, search: Search) -> Search:
    """One generation: candidates, ranks, Adam; every few generations a validation that may become the best."""
    number = search.generation
    rng = seeding.generator(field.run_seed, "polish", field.member, number)
    directions = rng.standard_normal((field.pairs, search.theta.size)).astype(np.float32)
    seeds = generation_seeds(field, number)
    returns, steps = np.zeros((2, field.pairs)), 0
    for pair, direction in enumerate(directions):
        for side, sign in enumerate((1.0, -1.0)):
            theta = search.theta + np.float32(sign * field.sigma) * field.scale * direction
            returns[side, pair], taken = _score(field, field.build(theta), seeds)
            steps += taken
    ranks = centred_ranks(returns)
    gradient = ((ranks[0] - ranks[1]).astype(np.float32) @ directions) / field.pairs
    moved = _ascend(search, gradient, field)
    moved = replace(moved, generation=number + 1, env_steps=search.env_steps + steps)
    if (number + 1) % field.validate_every:
        return moved
    value, steps = _validate(field, moved.theta)
    moved = replace(moved, env_steps=moved.env_steps + steps, stale=moved.stale + 1)
    return replace(moved, best=moved.theta.copy(), best_return=value, stale=0) if value > moved.best_return else moved


def _score(field: Field, policy: Policy, seeds: list[int]) -> tuple[float, int]:
    """What a candidate is worth on these seeds, and the environment steps that it took to know."""
    if field.shaping is not None:
        scores, steps = shaping.score(policy, field.task, seeds, field.shaping)
        return float(scores.mean()), steps
    played = rollout.play(policy, field.task, seeds)
    return float(played.returns.mean()), played.env_steps


def generation_seeds(field: Field, number: int) -> list[int]:
    """Start seeds of one generation: drawn, so that no count of members, generations or episodes can run into another's."""
    drawn = seeding.generator(field.run_seed, "polish", field.member, number, 1).integers(
        VALIDATION_OFFSET, size=field.episodes
    )
    return [seeding.episode_seed(field.run_seed, "polish", int(index)) for index in drawn]


def centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks scaled to [-1/2, 1/2], ties sharing their mean rank, in the shape of `values`; NaN where any value is.

    >>> centred_ranks(np.array([3.0, 1.0, 2.0])).tolist()
    [0.5, -0.5, 0.0]
    """
    if np.isnan(values).any():  # has no rank, and must not pass for the best
        return np.full(values.shape, np.nan)
    _, place, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    before = (count.cumsum() - (count + 1) / 2)[place].reshape(values.shape)  # rank - 1
    return before / max(values.size - 1, 1) - 0.5


def _ascend(search: Search, gradient: Floats, field: Field) -> Search:
    step = search.generation + 1
    mean = ADAM_BETAS[0] * search.mean + (1 - ADAM_BETAS[0]) * gradient
    square = ADAM_BETAS[1] * search.square + (1 - ADAM_BETAS[1]) * gradient**2
    direction = (mean / (1 - ADAM_BETAS[0] ** step)) / (np.sqrt(square / (1 - ADAM_BETAS[1] ** step)) + ADAM_EPS)
    theta = search.theta + np.float32(field.learning_rate) * field.scale * direction
    return replace(
        search, theta=theta.astype(np.float32), mean=mean.astype(np.float32), square=square.astype(np.float32)
    )


def _validate(field: Field, theta: Floats) -> tuple[float, int]:
    seeds = [
        seeding.episode_seed(field.run_seed, "polish", VALIDATION_OFFSET + i) for i in range(field.validation_episodes)
    ]
    played = rollout.play(field.build(theta), field.task, seeds)
    return float(played.returns.mean()), played.env_steps
