"""Regret in units of return: what the student's actions cost, and how far a fitted critic is from what was measured.

Performance-difference lemma (Kakade & Langford 2002): with V = E_{pi_T} Q and Q = Q^{pi_T},

    J(pi_T) - J(pi_S) = E_{pi_S}[ sum_t gamma^t (V(s_t) - Q(s_t, a_t)) ].

Both sides can be measured on the same seeds, and their difference is the error of a Q that is not exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from limbeck import distributions, rollout, seeding
from limbeck.contracts import Array, Floats, Head, Mode, Observation, Policy, Task
from limbeck.errors import InputError
from limbeck.proof.eprocess import Reals

RESAMPLES = 2000


@dataclass(frozen=True)
class Judge:
    """Says what an action costs: (observations, teacher's rows [B, W], its values [B] or None, executed actions) -> [B] V - Q."""

    source: str  # exact, teacher's critic or fitted
    cost: Callable[[Observation, Floats, Floats | None, Array], Reals]
    gamma: float


@dataclass(frozen=True)
class Error:
    """Mean over n episodes of predicted less measured loss of discounted return, student against teacher on the same
    seeds, with its 95 % interval (percentile bootstrap over episodes, Efron 1979): both sides' noise is in it."""

    error: float
    low: float
    high: float
    predicted: float  # mean of sum_t gamma^t (V - Q) along the student's episodes
    measured: float  # mean of the teacher's less the student's discounted return
    episodes: int

    def __str__(self) -> str:
        """
        >>> str(Error(1.25, -0.5, 3.0, 5.25, 4.0, 16))
        'fitted (error +1.2 [-0.5, +3])'
        """
        return f"fitted (error {self.error:+.2g} [{self.low:+.2g}, {self.high:+.2g}])"


def expected_regret(advantage: Array, student: Floats, head: Head, mode: Mode = "greedy") -> Reals:
    """[N] -sum_a pi_S(a|s) A_T(s, a) of one choice among A actions: advantage [N, A], the student's rows [N, A].

    >>> expected_regret(np.array([[0.0, -3.0]]), np.log(np.array([[0.75, 0.25]], np.float32)), Head("categorical", (2,)), "sampled").round(3).tolist()
    [0.75]
    """
    if head.kind not in ("categorical", "q") or advantage.shape != student.shape:
        raise InputError(
            f"expected regret is for one choice among several, its advantages one per action; given a {head.kind} head, "
            f"advantages {advantage.shape} and rows {student.shape}."
        )
    if mode == "greedy":
        return -np.take_along_axis(advantage.astype(np.float64), student.argmax(axis=1)[:, None], axis=1)[:, 0]
    return -(np.exp(distributions.log_softmax(student.astype(np.float64))) * advantage).sum(axis=1)


class Tally:
    """Discounted sums along the episodes of `rollout.play`, one per seed."""

    def __init__(self, gamma: float, episodes: int) -> None:
        self._gamma, self._factor = gamma, np.ones(episodes)
        self.sums = np.zeros(episodes)

    def add(self, frame: rollout.Frame, values: Reals) -> None:
        """`values` of the frame's living rows."""
        rows = frame.indices[frame.alive]
        self.sums[rows] += self._factor[rows] * values
        self._factor[rows] *= self._gamma


def discounted(
    policy: Policy, task: Task, seeds: list[int], mode: Mode, run_seed: int, gamma: float
) -> tuple[Reals, int]:
    """[N] discounted returns of a policy on the seeds, and the environment steps they took."""
    tally = Tally(gamma, len(seeds))
    played = rollout.play(
        policy,
        task,
        seeds,
        mode=mode,
        run_seed=run_seed,
        watch=lambda frame: tally.add(frame, frame.reward[frame.alive]),
    )
    return tally.sums, played.env_steps


def error_of(predicted: Reals, student: Reals, teacher: Reals, run_seed: int) -> Error:
    """The error of a critic from [N] predicted losses and discounted returns of both, seed by seed."""
    apart = predicted - (teacher - student)
    rng = seeding.generator(run_seed, "fidelity", RESAMPLES, len(apart))
    means = apart[rng.integers(len(apart), size=(RESAMPLES, len(apart)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Error(
        float(apart.mean()),
        float(low),
        float(high),
        float(predicted.mean()),
        float((teacher - student).mean()),
        len(apart),
    )
