"""The e-process by simulation: how often it claims what is false, how soon what is true, and against a published one."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import InputError
from limbeck.proof import eprocess, planning

REFERENCE = Path(__file__).parents[1] / "reference" / "confseq_betting.json"
ALPHA = 0.05
PROOFS = 2000
LOOKS = 1000
CLAIMS_ALLOWED = int(ALPHA * PROOFS)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def claims(draw: Draw, bound: float, proofs: int = PROOFS, looks: int = LOOKS, seed: int = 0) -> np.ndarray:
    """[proofs] episode at which each simulated proof first crossed, 0 where it never did, looking after every one."""
    rng, state, ends = np.random.default_rng(seed), eprocess.begin(bound, proofs), np.zeros(proofs, int)
    for begin in range(0, looks, 50):
        state, path = eprocess.advance(state, draw(rng, (50, proofs)))
        crossed = path >= eprocess.threshold(ALPHA)
        fresh = crossed.any(axis=0) & (ends == 0)
        ends[fresh] = begin + 1 + crossed.argmax(axis=0)[fresh]
    return ends


def bounded_gaussian(rng, shape):
    return np.clip(60 * rng.standard_normal(shape), -500, 500)  # symmetric, so clipping leaves the mean at 0


def bernoulli_crash(rng, shape):
    return np.where(rng.random(shape) < 0.05, -95.0, 5.0)  # mean 0


def skewed(rng, shape):
    return rng.exponential(50.0, shape) - 50.0  # bounded below by -50, long tail above


def rare_fortune(rng, shape):
    return np.where(rng.random(shape) < 0.02, 490.0, -10.0)  # mean 0


def ties(rng, shape):
    return rng.choice([-1.0, 0.0, 0.0, 0.0, 1.0], shape)


@pytest.mark.parametrize(
    ("draw", "bound"),
    [
        (bounded_gaussian, 500.0),
        (bernoulli_crash, 95.0),
        (bernoulli_crash, 400.0),
        (skewed, 50.0),
        (rare_fortune, 10.0),
        (ties, 1.0),
    ],
)
def test_at_the_margin_false_claims_stay_below_alpha_with_peeking(draw, bound):
    assert (claims(draw, bound) > 0).sum() <= CLAIMS_ALLOWED


def test_the_simulation_sees_an_invalid_process():
    """A bet that may lose more than everything would have claimed too often: the test above can fail."""

    def too_narrow(rng, shape):  # the same crash, clipped at a third of its depth: what the bound forbids
        return np.maximum(bernoulli_crash(rng, shape), -32.0)

    assert (claims(too_narrow, 95.0) > 0).sum() > CLAIMS_ALLOWED


def test_a_student_that_crashes_in_three_percent_is_never_proved_at_99_percent():
    """True loss 12.5 against a margin of 4.5 (teacher 268, random -190)."""

    def crashing(rng, shape):
        teacher, random = (
            268 + 20 * rng.standard_normal(shape),
            np.clip(-190 + 100 * rng.standard_normal(shape), -450, 50),
        )
        student = np.where(rng.random(shape) < 0.03, -150.0, 268 + 20 * rng.standard_normal(shape))
        return student - 0.99 * np.minimum(teacher, 345) - 0.01 * random

    assert not claims(crashing, 345.0 + 575.0, proofs=1000).any()


@pytest.mark.parametrize(("retain", "low", "high"), [(0.95, 60, 140), (0.99, 300, 700)])
def test_a_perfect_student_is_proved_within_the_episodes_the_design_expects(retain, low, high):
    """LunarLander-like numbers: B = 900, teacher 268, random -190, the student's return equals the teacher's."""

    def perfect(rng, shape):
        teacher, random = (
            268 + 20 * rng.standard_normal(shape),
            np.clip(-190 + 100 * rng.standard_normal(shape), -450, 50),
        )
        return (1 - retain) * (teacher - random)

    ends = claims(perfect, 900.0, proofs=300)
    assert ends.min() > 0
    assert low <= np.quantile(ends, 0.5) <= np.quantile(ends, 0.9) <= high


def test_a_noisy_student_costs_less_than_the_formula():
    """sigma 60, delta 23: design's formula says 234 episodes for B = 900."""

    def noisy(rng, shape):
        return np.clip(23 + 60 * rng.standard_normal(shape), -900, 900)

    ends = claims(noisy, 900.0, proofs=300)
    assert ends.min() > 0
    assert np.median(ends) <= planning.expected_episodes(23, 60, ALPHA, 900)


def test_wealth_under_a_given_betting_sequence_equals_confseq():
    stored = json.loads(REFERENCE.read_text())
    lambdas, d = np.array(stored["lambdas"]), np.array(stored["differences"])
    assert len(np.unique(lambdas)) > 100  # the published bets do move
    np.testing.assert_allclose(np.exp(eprocess.log_wealth_of(lambdas, d)), stored["capital"], rtol=1e-10)


def test_the_largest_bet_is_confseq_s_largest_bet():
    """The rival with the largest fraction bets CAP / B throughout, as confseq does when truncated at .95 / m."""
    stored = json.loads(REFERENCE.read_text())
    state, _ = eprocess.advance(eprocess.begin(stored["bound"]), np.array(stored["differences"])[:, None])
    assert stored["cap"] == eprocess.CAP
    assert math.exp(state.rivals[0, -1]) == pytest.approx(stored["capital_at_the_cap"][-1], rel=1e-10)


def test_our_wealth_follows_from_our_bets():
    rng = np.random.default_rng(3)
    d, state, lambdas = rng.uniform(-1, 1.2, 200), eprocess.begin(1.0), []
    for value in d:
        lambdas.append(eprocess.bets(state)[0])
        state, _ = eprocess.advance(state, np.array([[value]]))
    assert 0 <= min(lambdas) < max(lambdas) <= eprocess.CAP
    assert state.log_wealth[0] == pytest.approx(eprocess.log_wealth_of(np.array(lambdas), d)[-1], rel=1e-12)


def test_bets_are_blind_to_the_episode_they_are_placed_on():
    first = eprocess.advance(eprocess.begin(1.0), np.array([[0.2], [-0.5]]))[0]
    for third in (-1.0, 0.0, 50.0):
        after = eprocess.advance(first, np.array([[third]]))[0]
        assert after.log_wealth[0] - first.log_wealth[0] == pytest.approx(math.log1p(eprocess.bets(first)[0] * third))


@pytest.mark.parametrize("cut", [1, 7, 32, 99])
def test_continuing_equals_one_long_run_bit_for_bit(cut):
    d = np.random.default_rng(1).normal(0.05, 0.3, (100, 3)).clip(-1, 1)
    whole, path = eprocess.advance(eprocess.begin(1.0, 3), d)
    first, head = eprocess.advance(eprocess.begin(1.0, 3), d[:cut])
    second, tail = eprocess.advance(first, d[cut:])
    assert np.array_equal(np.concatenate([head, tail]), path)
    for name in ("log_wealth", "rivals", "peak"):
        assert np.array_equal(getattr(whole, name), getattr(second, name))
    assert whole.episodes == second.episodes == 100


def test_closed_forms():
    state, path = eprocess.advance(eprocess.begin(2.0), np.full((10, 1), 0.1))
    assert path[-1, 0] == pytest.approx(
        10 * math.log1p(0.95 * 0.1 / 2.0)
    )  # a perfect student meets the largest bet only
    assert eprocess.threshold(0.05) == pytest.approx(math.log(20))
    assert eprocess.most_wealth(state, 0.1, 5) == pytest.approx(15 * math.log1p(0.95 * 0.1 / 2.0))
    assert eprocess.most_wealth(state, -3.0, 5) == pytest.approx(path[-1, 0])


def test_the_worst_episode_leaves_five_percent():
    state, _ = eprocess.advance(eprocess.begin(2.0), np.array([[-2.0]]))
    assert math.exp(state.log_wealth[0]) == pytest.approx(0.05)


def test_refusals():
    with pytest.raises(InputError, match="below the bound"):
        eprocess.advance(eprocess.begin(1.0), np.array([[-1.01]]))
    for bound in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="finite and above 0"):
            eprocess.begin(bound)
