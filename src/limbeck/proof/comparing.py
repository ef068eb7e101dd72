"""Scores over runs and tasks: interquartile mean, performance profiles, probability of improvement, with stratified
bootstrap intervals (Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS
2021; the definitions are those of its library rliable).

Letters: N runs (seeds), M tasks, R resamples. All intervals are percentile intervals: runs are drawn anew within every
task, tasks stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck import seeding
from limbeck.contracts import Rate
from limbeck.errors import InputError, printable
from limbeck.proof.eprocess import Reals

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2_000_000  # resampled numbers held at once
STRATIFIED = "stratified bootstrap"
THRESHOLDS = tuple(float(tau) for tau in np.round(np.linspace(0.0, 1.2, 25), 6))

Measure = Callable[[Reals], Reals]  # [..., N, M] -> [...]


@dataclass(frozen=True)
class Profile:
    """Share of all runs whose score lies above each threshold, with its 95 % interval (pointwise)."""

    thresholds: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """What is said of several students over the same tasks."""

    aggregates: Mapping[str, Mapping[str, Rate]]  # who -> mean, median, iqm, optimality gap
    profiles: Mapping[str, Profile]
    improvement: Mapping[tuple[str, str], Rate]  # (x, y) -> probability that a run of x beats a run of y


# ---------------------------------------------------------------- measures


def mean(scores: Reals) -> Reals:
    """Mean over tasks of the mean over runs of scores [..., N, M]."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def median(scores: Reals) -> Reals:
    """Median over tasks of the mean over runs of scores [..., N, M]."""
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


def iqm(scores: Reals) -> Reals:
    """Interquartile mean of scores [..., N, M]: the mean without the lowest and the highest quarter of all N M numbers.

    >>> float(iqm(np.array([[-100.0], [1.0], [2.0], [300.0]])))
    1.5
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def optimality_gap(scores: Reals) -> Reals:
    """1 - mean of min(score, 1) of scores [..., N, M]: what is missing to the teacher's level, gains not counted."""
    return np.asarray(1 - np.minimum(scores, 1).mean(axis=(-2, -1)))


MEASURES: dict[str, Measure] = {"mean": mean, "median": median, "iqm": iqm, "optimality gap": optimality_gap}


def improvement(x: Reals, y: Reals) -> float:
    """P(X > Y) + P(X = Y) / 2 of independent runs, averaged over tasks: x [N, M], y [N', M] (Mann & Whitney 1947).

    >>> improvement(np.array([[2.0], [3.0]]), np.array([[1.0], [2.0]]))
    0.875
    """
    ordered = np.sort(y, axis=0)
    wins = 0.0
    for task in range(x.shape[1]):
        below, up_to = (np.searchsorted(ordered[:, task], x[:, task], side).sum() for side in ("left", "right"))
        wins += (below + up_to) / 2
    return float(wins / (x.shape[1] * len(x) * len(y)))


# ---------------------------------------------------------------- intervals


def interval(scores: Reals, measure: Measure, run_seed: int, resamples: int = RESAMPLES) -> tuple[Reals, Reals]:
    """Bounds of the 95 % interval of `measure` on scores [N, M]."""
    drawn = np.concatenate([measure(part) for part in _resampled(scores, run_seed, resamples)])
    return _percentiles(drawn)


def improvement_interval(x: Reals, y: Reals, run_seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The same of `improvement`; both sides are resampled independently."""
    pairs = zip(_resampled(x, run_seed, resamples), _resampled(y, run_seed + 1, resamples, len(x)), strict=True)
    drawn = [improvement(a, b) for left, right in pairs for a, b in zip(left, right, strict=True)]
    low, high = _percentiles(np.array(drawn))
    return float(low), float(high)


def _resampled(scores: Reals, run_seed: int, resamples: int, beside: int = 0) -> Iterator[Reals]:
    """[r, N, M] in parts that fit into memory; the cut is that of the larger of N and `beside`."""
    runs, tasks = scores.shape
    rng = seeding.generator(run_seed, "compare", resamples, runs, tasks)
    largest = max(1, AT_ONCE // (max(runs, beside) * tasks))
    for begin in range(0, resamples, largest):
        rows = rng.integers(runs, size=(min(largest, resamples - begin), runs, tasks))
        yield np.take_along_axis(scores[None], rows, axis=1)


def _percentiles(drawn: Reals) -> tuple[Reals, Reals]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


# ---------------------------------------------------------------- several students


def compare(
    scores: Mapping[str, Reals], *, thresholds: Sequence[float] = THRESHOLDS, run_seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:  # fmt: skip
    """Aggregates, profiles and pairwise improvement of students over the same tasks.

    scores: who -> [N, M], one row per run (seed), one column per task; N may differ, M not. Scores of different tasks
    must be of one scale: 0 random play, 1 the teacher (as MemberReport.proof.retention), for which thresholds and the
    optimality gap are made.

    >>> found = compare({"a": np.ones((3, 2)), "b": np.zeros((4, 2))})
    >>> found.improvement["a", "b"].value, found.aggregates["b"]["optimality gap"].value
    (1.0, 1.0)
    """
    tables = {name: _table(name, values) for name, values in scores.items()}
    if len({table.shape[1] for table in tables.values()}) != 1:
        shapes = ", ".join(f"{printable(name)} {table.shape}" for name, table in tables.items()) or "nothing"
        raise InputError(f"scores to compare were given as {shapes}. Allowed: [runs, tasks] of the same tasks for all.")
    taus = np.asarray(thresholds, np.float64)
    measured = {
        name: {key: rate(table, one, run_seed, resamples) for key, one in MEASURES.items()}
        for name, table in tables.items()
    }
    profiles = {name: profile(table, taus, run_seed, resamples) for name, table in tables.items()}
    pairs = {
        (x, y): improvement_rate(tables[x], tables[y], run_seed, resamples)
        for x, y in itertools.permutations(tables, 2)
    }
    return Comparison(measured, profiles, pairs)


def rate(scores: Reals, measure: Measure, run_seed: int, resamples: int = RESAMPLES) -> Rate:
    """A measure of scores [N, M] with its interval."""
    low, high = interval(scores, measure, run_seed, resamples)
    return Rate(float(measure(scores)), float(low), float(high), len(scores), STRATIFIED)


def improvement_rate(x: Reals, y: Reals, run_seed: int, resamples: int = RESAMPLES) -> Rate:
    """The probability of improvement of x [N, M] over y [N', M] with its interval."""
    low, high = improvement_interval(x, y, run_seed, resamples)
    return Rate(improvement(x, y), low, high, min(len(x), len(y)), STRATIFIED)


def profile(scores: Reals, thresholds: Reals, run_seed: int, resamples: int = RESAMPLES) -> Profile:
    """The performance profile of scores [N, M]: share of the N M numbers above each threshold, strictly."""

    def shares(drawn: Reals) -> Reals:
        return np.stack([(drawn > tau).mean(axis=(-2, -1)) for tau in thresholds], axis=-1)

    low, high = interval(scores, shares, run_seed, resamples)
    columns = (thresholds, shares(scores), low, high)
    return Profile(*(tuple(column.tolist()) for column in columns))


def _table(name: str, values: Reals) -> Reals:
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise InputError(
            f"the scores of {printable(name)} are {table.shape} or not finite. Allowed: finite numbers [runs, tasks], at least one."
        )
    return table
