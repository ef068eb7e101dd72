"""The worst episodes of a policy: quantiles of its return with bounds that hold whenever one looks.

For a quantile Q of level p the number of episodes below it is a sum of N trials of probability p. The beta mixture

    M_N(k) = B(a + k, b + N - k) / B(a, b) / (p^k (1 - p)^(N - k)),      a = 1, b = 1 / p - 1

is a martingale of mean 1 in that number k, so by Ville's inequality it stays below 1 / alpha for ever with probability
1 - alpha (Robbins 1970; for quantiles Howard & Ramdas, Bernoulli 2022). The numbers k with M_N(k) < 1 / alpha are
therefore an interval, and the order statistics at its ends enclose Q: a proof may stop by what it saw. An episode
equal to Q counts as below it with the probability that makes p exact, so returns with ties are covered too.

What is shown of a policy holds together. With L levels each is held to alpha / L (Bonferroni), so that

    P(at some N the bounds of some level p_l miss its Q_l) <= sum_l P(sup_N M_N^(p_l) >= L / alpha) <= alpha.

A band around the whole distribution (Dvoretzky, Kiefer & Wolfowitz with Massart's constant) would hold for all levels
at once, but its half width sqrt(log(2 / alpha) / 2 N) is the same everywhere: below it no quantile has a lower bound,
which for the worst 1 % takes 18,445 episodes instead of 555, and it holds for one N, not for one that was stopped at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import betaln

from limbeck import seeding
from limbeck.contracts import Proof, Rate
from limbeck.errors import InputError
from limbeck.proof import comparing
from limbeck.proof.eprocess import Reals

ALPHA = 0.05
SHARES = {"worst 5 %": 0.05, "worst 1 %": 0.01}
TOGETHER = ALPHA / len(SHARES)  # of each level, so that all levels of a policy hold at once
ANYTIME = "order statistics, anytime-valid"
SIMULTANEOUS = f"{ANYTIME}, together with {{}}"
NEEDS = "needs {} episodes"  # stands where there are too few for a number
RESAMPLES = 1000
SUPERIOR = "betting, anytime-valid"
PAIRED = "paired bootstrap"


def log_mixture(k: Reals | float, episodes: int, share: float) -> Reals:
    """log M_N(k) of the module's equation."""
    a, b = 1.0, 1 / share - 1
    mixed = betaln(a + k, b + episodes - k) - betaln(a, b)
    return np.asarray(mixed - k * math.log(share) - (episodes - k) * math.log1p(-share))


def plausible(episodes: int, share: float, alpha: float = ALPHA) -> tuple[int, int]:
    """Least and largest number of N episodes that may lie below the quantile of level `share`.

    >>> plausible(400, 0.05)
    (9, 35)
    """
    inside = np.flatnonzero(log_mixture(np.arange(episodes + 1.0), episodes, share) < -math.log(alpha))
    return int(inside[0]), int(inside[-1])


@functools.cache
def needed(share: float, alpha: float = ALPHA) -> int:
    """Episodes from which the quantile of level `share` has a lower bound: before, even none below it is plausible.

    >>> needed(0.05), needed(0.01)
    (93, 473)
    """
    episodes = 1
    while float(log_mixture(0.0, episodes, share)) < -math.log(alpha):
        episodes += 1
    return episodes


def worst(returns: Sequence[float] | Reals, share: float, alpha: float = ALPHA) -> Rate:
    """The quantile of level `share` of N returns: the least return that is not below this share of them.

    NaN with "needs n episodes" where N is too small for a lower bound: the smallest of few returns says nothing.
    """
    if not 0 < share < 1:
        raise InputError(f"a tail of {share} of the episodes was asked for. Allowed: above 0 and below 1.")
    ordered = np.sort(np.asarray(returns, np.float64))
    count = len(ordered)
    if count < needed(share, alpha):
        return Rate(math.nan, math.nan, math.nan, count, NEEDS.format(needed(share, alpha)))
    least, most = plausible(count, share, alpha)
    place = math.ceil(share * count - 1e-9) - 1
    high = float(ordered[most]) if most < count else math.inf
    return Rate(float(ordered[place]), float(ordered[least - 1]), high, count, ANYTIME)


def together(returns: Sequence[float] | Reals) -> dict[str, Rate]:
    """The quantiles of SHARES, whose bounds all hold at once at 95 %; each alone holds at 1 - TOGETHER."""
    found = {key: worst(returns, share, TOGETHER) for key, share in SHARES.items()}
    for key, rate in found.items():
        if math.isfinite(rate.value):
            others = " and ".join(other for other in SHARES if other != key)
            found[key] = replace(rate, interval=SIMULTANEOUS.format(others))
    return found


MEASURES = ("iqm", "teacher iqm", "improvement")


def _measures(table: Reals) -> Reals:
    """[3, r] MEASURES of returns [3, r, N] of student, teacher and random play; NaN where the teacher gains nothing."""
    student, teacher, random = table
    floor = random.mean(axis=1)
    gain = teacher.mean(axis=1) - floor
    scale = np.where(gain > 0, gain, np.nan)
    middle = [(comparing.iqm(returns[..., None]) - floor) / scale for returns in (student, teacher)]
    better = [comparing.improvement(x[:, None], y[:, None]) for x, y in zip(student, teacher, strict=True)]
    return np.stack([*middle, np.array(better)])


def _drawn(table: Reals, run_seed: int) -> Iterator[Reals]:
    """[3, r] MEASURES of resampled episodes, in parts that fit into memory."""
    count = table.shape[1]
    rng = seeding.generator(run_seed, "compare", RESAMPLES, count)
    largest = max(1, comparing.AT_ONCE // (3 * count))
    for begin in range(0, RESAMPLES, largest):
        yield _measures(table[:, rng.integers(count, size=(min(largest, RESAMPLES - begin), count))])


def tails_of(found: Proof, run_seed: int = 0) -> dict[str, Rate]:
    """What a proof's episodes say beside its verdict, none of it part of the claim.

    iqm, teacher iqm   interquartile mean of (G - mean G_R) / (mean G_T - mean G_R) over episodes
    improvement        probability that an episode of the student returns more than another of the teacher
                       (95 % percentile bootstrap: whole episodes are drawn anew, student, teacher and random play
                       together, so both means of the scale vary as the numerator does)
    worst 5 %, worst 1 %, teacher worst ...    quantiles of the return, anytime-valid; both of a policy hold at once at 95 %
    superior           retention with its anytime-valid lower bound, where that bound reaches 1: better than the teacher
    """
    if not found.episodes:
        return {}
    table = np.array([found.student_returns, found.teacher_returns, found.random_returns], np.float64)
    student, teacher, _ = table
    values = _measures(table[:, None])[:, 0]
    low, high = np.quantile(np.concatenate(list(_drawn(table, run_seed)), axis=1), (0.025, 0.975), axis=1)
    rates = {
        key: Rate(float(values[i]), float(low[i]), float(high[i]), found.episodes, PAIRED)
        for i, key in enumerate(MEASURES)
        if math.isfinite(values[i])
    }
    rates |= together(student)
    rates |= {f"teacher {key}": rate for key, rate in together(teacher).items()}
    if found.retention_low >= 1:
        rates["superior"] = Rate(found.retention, found.retention_low, math.inf, found.episodes, SUPERIOR)
    return rates
