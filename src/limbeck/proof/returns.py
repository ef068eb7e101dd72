"""Returns as claims: the difference D, and the retention with its intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck import seeding
from limbeck.contracts import Bounds
from limbeck.proof import eprocess
from limbeck.proof.eprocess import EProcess, Reals

RESAMPLES = 2000
GRID: Reals = np.concatenate([np.arange(50) / 100, np.arange(500, 1101) / 1000])  # retentions tried for the lower bound


@dataclass(frozen=True)
class Triples:
    """Undiscounted returns of student, teacher and random play on the same seeds, in seed order."""

    student: Reals  # [N]
    teacher: Reals  # [N]
    random: Reals  # [N]

    def __len__(self) -> int:
        return len(self.student)


def differences(triples: Triples, retain: Reals | float) -> Reals:
    """[N, C] D = G_S - r G_T - (1 - r) G_R for each retention r of [C]."""
    r = np.atleast_1d(np.asarray(retain, np.float64))
    return triples.student[:, None] - r * triples.teacher[:, None] - (1 - r) * triples.random[:, None]


def span(bounds: Bounds, retain: Reals | float) -> Reals:
    """[C] B with D >= -B: ceiling - floor, times r for claims above 1 (there D rises with the random return)."""
    return np.maximum(np.atleast_1d(np.asarray(retain, np.float64)), 1.0) * (bounds.ceiling - bounds.floor)


# ---------------------------------------------------------------- retention


def retention(triples: Triples) -> float:
    """(mean S - mean R) / (mean T - mean R); NaN where the teacher was not above random play."""
    if not len(triples):
        return float("nan")
    return float(_ratio(triples.student.mean(), triples.teacher.mean(), triples.random.mean()))


def retention_interval(triples: Triples, run_seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval over seeds (Efron 1979): for display, never for a verdict."""
    rng = seeding.generator(run_seed, "proof", RESAMPLES, len(triples))
    rows = rng.integers(len(triples), size=(RESAMPLES, len(triples)))
    ratios = _ratio(triples.student[rows].mean(1), triples.teacher[rows].mean(1), triples.random[rows].mean(1))
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(student: Reals, teacher: Reals, random: Reals) -> Reals:
    gain = np.asarray(teacher - random)
    return np.where(gain > 0, (student - random) / np.where(gain > 0, gain, 1.0), np.nan)


def begin_grid(bounds: Bounds) -> EProcess:
    """One e-process for each retention of GRID."""
    return eprocess.begin(span(bounds, GRID), len(GRID))


def advance_grid(state: EProcess, triples: Triples) -> EProcess:
    """Bet on N more episodes within the bounds. Only claims above 1 can meet a D below -B, where random play fell below
    the floor; they are held at -B here and the caller drops them."""
    held = np.where(GRID > 1, np.maximum(differences(triples, GRID), -state.bound), differences(triples, GRID))
    return eprocess.advance(state, held)[0]


def retention_low(state: EProcess, alpha: float) -> float:
    """Anytime-valid lower bound of the retention at level 1 - alpha; -inf where not even 0 is shown.

    The largest r of GRID for which the e-processes of r and of every smaller retention have ever crossed 1 / alpha.
    "And every smaller" is what makes the bound valid: it is wrong only if the first retention above the true one was
    crossed, one event of probability alpha, and not any of many.
    """
    crossed = state.peak >= eprocess.threshold(alpha)
    count = len(crossed) if crossed.all() else int(crossed.argmin())
    return float(GRID[count - 1]) if count else -np.inf
