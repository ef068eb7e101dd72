"""Why a student falls short, from returns on the same seeds: what each remedy gains names what was missing.

Between the student and what should be possible lie rungs, each of which adds one remedy to the one before it:

    student > trained again > with more data > with a larger network > with the teacher's view > teacher > expected
              training        coverage         capacity                imitation gap             ?         weak teacher

A probe is a fresh student that stands on one rung. How much higher it gets than everything below it is that rung's
part of the shortfall; what lies between the last probe and the teacher is nobody's. The order matters and goes from
the cheapest remedy to the dearest, so a student that is both too small and short of data is told what data alone mends.
Parts are shares of (expected - random); whoever is worse than random play counts as random play, for it has lost
everything either way, and how far a lander flies off says nothing. The part that outweighs all others together is the
cause. Resampled seeds (Efron 1979) say how sure that is: without SURE of them the answer is "unclear".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from limbeck import seeding
from limbeck.proof.eprocess import Reals

Cause = Literal["none", "training", "coverage", "capacity", "imitation gap", "weak teacher", "unclear"]
Probe = Literal["again", "data", "larger", "view"]
RUNGS: dict[Probe, Cause] = {"again": "training", "data": "coverage", "larger": "capacity", "view": "imitation gap"}
REST = "unexplained"  # what no probe recovers
RESAMPLES = 1000
SURE = 0.9  # of the resamples name the same cause
MOST = 0.5  # of the shortfall is the cause's
WEAK = 0.15  # of (expected - random) that a teacher may lack before it is called weak


@dataclass(frozen=True)
class Returns:
    """Undiscounted returns on the same N seeds, in seed order."""

    student: Reals  # [N]
    teacher: Reals  # [N]
    random: Reals  # [N]
    probes: Mapping[Probe, Reals] = field(default_factory=dict)  # [N] each; absent: a remedy that does not exist here
    expected: float | None = None  # what the teacher should reach, where something says so

    def at(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Returns:
        """The same policies on some of the seeds."""
        probes = {name: values[rows] for name, values in self.probes.items()}
        return Returns(self.student[rows], self.teacher[rows], self.random[rows], probes, self.expected)


@dataclass(frozen=True)
class Verdict:
    """The cause, how sure it is, and the parts of the shortfall it was read from."""

    cause: Cause
    reason: str
    parts: Mapping[str, float]  # share of (expected - random) by cause; REST: what no probe recovers
    retention: float  # (student - random) / (teacher - random)
    low: float  # 95 % interval over seeds
    high: float
    sure: float  # share of the resamples that name this cause

    @property
    def shortfall(self) -> float:
        """Of all parts together."""
        return sum(self.parts.values())


def parts(returns: Returns) -> dict[str, float]:
    """Each cause's part of the shortfall, as a share of (expected - random); NaN where nothing is above random play.

    The expected return is what something states for the teacher, or the best that was seen where that is more: a
    student that beats its teacher shows that the teacher is weak.

    >>> zeros = np.zeros(4)
    >>> parts(Returns(zeros + 2, zeros + 10, zeros, {"again": zeros + 2, "data": zeros + 3, "larger": zeros + 9}))
    {'training': 0.0, 'coverage': 0.1, 'capacity': 0.6, 'unexplained': 0.1, 'weak teacher': 0.0}
    """
    random = float(returns.random.mean())
    student, teacher = (max(float(values.mean()), random) for values in (returns.student, returns.teacher))
    reached = {name: max(float(values.mean()), random) for name, values in returns.probes.items()}
    best = max([student, teacher, *reached.values()])
    expected = best if returns.expected is None else max(best, returns.expected)
    scale = expected - random if expected > random else np.nan
    level, found = min(student, teacher), {}
    for name, cause in RUNGS.items():
        if name in reached:
            risen = max(level, min(reached[name], teacher))
            found[str(cause)], level = (risen - level) / scale, risen
    return {**found, REST: (teacher - level) / scale, "weak teacher": (expected - teacher) / scale}


def decide(returns: Returns, retain: float, run_seed: int = 0) -> Verdict:
    """Name the cause; `retain` is the share of the teacher that was asked for, 1 - `retain` may be missing.

    "none" where no more is missing, "unclear" where no single cause outweighs the others, or the seeds are too few.
    """
    found = parts(returns)
    cause, reason = _cause(found, retain)
    rng = seeding.generator(run_seed, "diagnose", RESAMPLES, len(returns.student))
    drawn = [returns.at(rng.integers(len(returns.student), size=len(returns.student))) for _ in range(RESAMPLES)]
    kept = [value for value in map(_retention, drawn) if np.isfinite(value)]
    low, high = np.quantile(kept, [0.025, 0.975]) if kept else (np.nan, np.nan)
    sure = float(np.mean([_cause(parts(one), retain)[0] == cause for one in drawn]))
    if cause not in ("unclear", "none") and sure < SURE:
        reason = (
            f"{cause} is the likeliest, but only {100 * sure:.0f} % of the resampled seeds agree: play more episodes"
        )
        cause = "unclear"
    return Verdict(cause, reason, found, _retention(returns), float(low), float(high), sure)


def _retention(returns: Returns) -> float:
    gain = float(returns.teacher.mean() - returns.random.mean())
    return float(returns.student.mean() - returns.random.mean()) / gain if gain > 0 else float("nan")


def _cause(found: Mapping[str, float], retain: float) -> tuple[Cause, str]:
    """The part that outweighs the others, and what it is read from."""
    total = sum(found.values())
    if not np.isfinite(total):
        return "weak teacher", "nothing that was played is better than random play, the teacher neither"
    imitated = total - found["weak teacher"]
    if found["weak teacher"] < WEAK and imitated <= (1 - retain) * (1 - found["weak teacher"]):
        return "none", "the student keeps what was asked for, and nothing says that its teacher is weak"
    name = max(found, key=lambda key: found[key])
    if name == REST:
        return "unclear", "no probe comes near the teacher, not the largest with the teacher's own view"
    if found[name] < MOST * total:
        return "unclear", "no single cause outweighs the others"
    return _REASONS[name]


_REASONS: dict[str, tuple[Cause, str]] = {
    "training": ("training", "the same student trained again on the same data does much better"),
    "coverage": (
        "coverage",
        "the same student does much better once it has learnt from the states it gets into itself",
    ),
    "capacity": ("capacity", "a larger network with the same view and data does much better"),
    "imitation gap": ("imitation gap", "a network of that size does much better once it sees what the teacher sees"),
    "weak teacher": ("weak teacher", "the teacher itself lacks most of what is missing"),
}
REMEDIES: dict[Cause, str] = {
    "none": "nothing",
    "training": "train it longer (imitate.rounds, imitate.gradient_steps), take more seeds (@4), or the default loss",
    "coverage": "collect more, driven by the student: collect.driver=student, imitate.rounds, collect.steps",
    "capacity": "take a larger student, or polish it on return (polish.enabled, polish.max_parameters)",
    "imitation gap": "let it see more with keys or indices; give it a longer history or a gru if the past tells it",
    "weak teacher": "get a better teacher: train it longer, check its environment and normaliser; or polish on return",
    "unclear": "play more with --episodes, and read the parts: the largest is where to begin",
}
