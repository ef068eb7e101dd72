"""Quantile bounds by simulation with peeking, and by their closed form; what a proof's record says of its tails."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
from proof_cases import BOUNDS
from scipy.stats import binom

from limbeck.contracts import Proof
from limbeck.errors import InputError
from limbeck.proof import tails

SIMULATIONS, LOOKS = 400, 600


def worst_looks(draw, share, quantile, bounds_of):
    """How many simulated sequences were, at any look, given bounds that miss the quantile."""
    rng, missed = np.random.default_rng(0), 0
    looks = range(20, LOOKS + 1, 20)
    for _ in range(SIMULATIONS):
        returns = draw(rng, LOOKS)
        missed += any(not low <= quantile <= high for low, high in (bounds_of(returns[:n], share) for n in looks))
    return missed


def ours(returns, share):
    found = tails.worst(returns, share)
    return (-math.inf, math.inf) if math.isnan(found.value) else (found.low, found.high)


@functools.cache
def exact_counts(count, share):
    return int(binom.ppf(0.025, count, share)), int(binom.ppf(0.975, count, share))


def looked_at_once(returns, share):
    """The exact binomial bounds, valid for one look (Clopper-Pearson of order statistics)."""
    count, ordered = len(returns), np.sort(returns)
    least, most = exact_counts(count, share)
    return ordered[least - 1] if least >= 1 else -math.inf, ordered[most] if most < count else math.inf


def normal(rng, count):
    return rng.standard_normal(count)


def crashes(rng, count):
    """0 in 5 % of episodes, else 100: the 5 % quantile is 0, with ties throughout."""
    return np.where(rng.random(count) < 0.05, 0.0, 100.0)


@pytest.mark.parametrize(("draw", "quantile"), [(normal, -1.6448536269514722), (crashes, 0.0)])
def test_the_bounds_hold_however_often_one_looks(draw, quantile):
    assert worst_looks(draw, 0.05, quantile, ours) <= 0.05 * SIMULATIONS


def test_bounds_for_one_look_do_not():
    """The test above can fail: peeking breaks exact bounds."""
    assert worst_looks(normal, 0.05, -1.6448536269514722, looked_at_once) > 0.1 * SIMULATIONS


def test_fewer_episodes_than_needed_give_no_number():
    """M_N(0) = b / (b + N) (1 - p)^-N with b = 1 / p - 1: the first N that reaches 20."""
    for share in (0.05, 0.01):
        b = 1 / share - 1
        wealth = lambda n: b / (b + n) * (1 - share) ** -n  # noqa: B023, E731
        assert wealth(tails.needed(share)) >= 20 > wealth(tails.needed(share) - 1)
    few = tails.worst(np.arange(92.0), 0.05)
    assert math.isnan(few.value)
    assert few.interval == "needs 93 episodes"
    assert tails.worst(np.arange(93.0), 0.05).low == 0.0


def test_the_quantile_is_an_order_statistic():
    found = tails.worst(np.random.default_rng(0).permutation(np.arange(1.0, 401.0)), 0.05)
    assert (found.value, found.low, found.high, found.rows) == (20.0, 9.0, 36.0, 400)


def test_the_plausible_counts_are_where_the_mixture_says():
    """By the integral itself: int Beta(t; 1, 19) (t / p)^k ((1 - t) / (1 - p))^(N - k) dt."""
    count, share, k = 60, 0.05, 7
    t = np.linspace(0, 1, 200_001)[1:-1]
    density = 19 * (1 - t) ** 18
    integral = np.trapezoid(density * (t / share) ** k * ((1 - t) / (1 - share)) ** (count - k), t)
    assert float(tails.log_mixture(float(k), count, share)) == pytest.approx(math.log(integral), rel=1e-6)


def record(student, teacher, random, low=0.5):
    count = len(student)
    return Proof("t", "m", "c", 0.95, 0.05, "proved", "", BOUNDS, "proof", tuple(range(count)), tuple(student), tuple(teacher),
                 tuple(random), 3.0, 1.0, low, 0)  # fmt: skip


def test_a_proof_s_tails_are_told_for_student_and_teacher():
    student, teacher = np.linspace(0, 1, 600), np.linspace(1, 2, 600)
    found = tails.tails_of(record(student, teacher, np.zeros(600)))
    assert found["worst 1 %"].value == pytest.approx(student[5])
    assert found["teacher worst 1 %"].value == pytest.approx(teacher[5])
    assert found["worst 5 %"].interval == "order statistics, anytime-valid, together with worst 1 %"
    assert found["improvement"].value == pytest.approx(1 / (2 * 600**2)), "one pair ties at 1"
    assert found["iqm"].value == pytest.approx(student[150:450].mean() / 1.5)
    assert found["teacher iqm"].value == pytest.approx(1.0)
    assert "superior" not in found


# ---------------------------------------------------------------- both levels at once

MANY = 1200  # episodes
QUANTILES = {"worst 5 %": -1.6448536269514722, "worst 1 %": -2.3263478740408408}  # of the normal


def missed_somewhere(bounds_of, simulations=150):
    """Simulated policies of which, at any of the looks, any level's bounds miss its quantile."""
    rng, missed = np.random.default_rng(1), 0
    for _ in range(simulations):
        returns = rng.standard_normal(MANY)
        looks = (bounds_of(returns[:n]) for n in range(100, MANY + 1, 100))
        missed += any(not low <= QUANTILES[key] <= high for one in looks for key, (low, high) in one.items())
    return missed / simulations


def all_levels(returns):
    found = tails.together(returns)
    return {key: (rate.low, rate.high) for key, rate in found.items() if math.isfinite(rate.value)}


def test_both_tails_hold_together_however_often_one_looks():
    """At most .05 of the simulations, held to 4 standard errors; exact bounds for one look and one level miss far more."""
    margin = 4 * math.sqrt(0.05 * 0.95 / 150)
    assert missed_somewhere(all_levels) <= 0.05 + margin
    alone = lambda returns: {key: looked_at_once(returns, tails.SHARES[key]) for key in QUANTILES}  # noqa: E731
    assert missed_somewhere(alone) > 0.05 + margin


def test_at_one_look_the_chance_that_any_tail_is_missed_is_a_sum_of_binomial_tails():
    """The bounds miss where the number of episodes below Q, binomial, is outside `plausible`: no simulation needed."""
    for count in range(tails.needed(0.01, tails.TOGETHER), 3000, 97):
        chances = []
        for share in tails.SHARES.values():
            least, most = tails.plausible(count, share, tails.TOGETHER)
            chances.append(binom.cdf(least - 1, count, share) + binom.sf(most, count, share))
        assert max(chances) <= tails.TOGETHER
        assert sum(chances) <= tails.ALPHA


def test_a_band_around_the_whole_distribution_would_be_wider_in_the_tails():
    """Dvoretzky-Kiefer-Wolfowitz with Massart's constant, at one look: no lower bound of the worst 1 % at all up to 18,444."""
    half = lambda count: math.sqrt(math.log(2 / tails.ALPHA) / (2 * count))  # noqa: E731
    assert half(18_444) > 0.01 > half(18_445)
    for count in (600, 2000, 10_000):
        for share in tails.SHARES.values():
            least, most = tails.plausible(count, share, tails.TOGETHER)
            assert least / count > share - half(count)
            assert most / count < share + half(count)


def lunar(rng, shape):
    """LunarLander-like returns [3, N]: student and teacher crash in a tenth of the episodes, each in its own."""
    student, teacher = (
        np.where(rng.random(shape) < 0.1, rng.normal(-50, 90, shape), rng.normal(260, 25, shape)) for _ in range(2)
    )
    return np.stack([student, teacher, rng.normal(-180, 110, shape)])


def test_the_interquartile_mean_s_interval_covers_the_truth(monkeypatch):
    """The gain is drawn anew with the returns: 95 % nominal, held to 4 standard errors of 200 simulations. Crashes move
    the teacher's mean and not the interquartile mean: with the gain held fixed about half of the intervals cover."""
    monkeypatch.setattr(tails, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    large = lunar(rng, 400_000)
    floor, ceiling = large[2].mean(), large[1].mean()
    ordered = np.sort(large[0])[100_000:300_000]
    truth = (ordered.mean() - floor) / (ceiling - floor)
    covered = 0
    for row in range(200):
        iqm = tails.tails_of(record(*lunar(rng, 60)), row)["iqm"]
        covered += iqm.low <= truth <= iqm.high
    assert covered >= 200 * 0.95 - 4 * math.sqrt(200 * 0.95 * 0.05)


def test_a_student_that_is_its_teacher_has_no_interval_of_improvement():
    """Both sides of a pair come from the same resampled episodes: one half, whatever is drawn."""
    same = np.random.default_rng(0).normal(size=50)
    found = tails.tails_of(record(same, same, same - 1))
    assert (found["improvement"].low, found["improvement"].high) == (0.5, 0.5)
    assert found["iqm"] == found["teacher iqm"]


def test_superiority_is_said_where_the_bound_for_all_retentions_reaches_one():
    better = record(np.ones(10), np.zeros(10), np.zeros(10) - 1, low=1.05)
    assert tails.tails_of(better)["superior"].low == 1.05
    assert "superior" not in tails.tails_of(replace(better, retention_low=0.999))
    assert tails.tails_of(replace(better, seeds=())) == {}


def test_tails_that_are_none_are_refused():
    with pytest.raises(InputError, match="above 0 and below 1"):
        tails.worst([1.0], 1.0)
