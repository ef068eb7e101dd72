import numpy as np
import pytest

from limbeck.contracts import Bounds
from limbeck.proof import eprocess, returns
from limbeck.proof.returns import GRID, Triples

BOUNDS = Bounds(-500.0, 400.0, "given")


def lunar(rng: np.random.Generator, n: int, student: float = 268.0) -> Triples:
    """Returns of a student with true retention (student + 190) / 458."""
    return Triples(
        np.clip(student + 40 * rng.standard_normal(n), -500, 400),
        np.clip(268 + 20 * rng.standard_normal(n), -500, 400),
        np.clip(-190 + 60 * rng.standard_normal(n), -500, 400),
    )


def test_difference_is_zero_when_a_share_is_kept_exactly():
    triples = Triples(np.array([80.0, 8.0]), np.array([100.0, 10.0]), np.array([0.0, 0.0]))
    assert returns.differences(triples, 0.8)[:, 0] == pytest.approx([0.0, 0.0])
    assert returns.retention(triples) == pytest.approx(0.8)


def test_difference_counts_random_play():
    triples = Triples(np.array([50.0]), np.array([100.0]), np.array([-100.0]))
    assert returns.differences(triples, [0.5, 1.0, 1.1])[0] == pytest.approx([50.0, -50.0, -70.0])
    assert returns.retention(triples) == pytest.approx(0.75)


@pytest.mark.parametrize("retain", [0.5, 0.95, 1.0, 1.1])
def test_span_is_the_worst_that_bounded_returns_can_do(retain):
    corners = np.array(np.meshgrid([-500.0, 400.0], [-500.0, 400.0], [-500.0, 400.0])).reshape(3, -1)
    worst = returns.differences(Triples(*corners), retain).min()
    assert returns.span(BOUNDS, retain)[0] == pytest.approx(-worst)


def test_retention_of_a_teacher_no_better_than_random_is_nan():
    same = np.zeros(3)
    assert np.isnan(returns.retention(Triples(same + 1, same, same)))
    assert np.isnan(returns.retention(Triples(np.zeros(0), np.zeros(0), np.zeros(0))))


def test_bootstrap_interval_holds_the_estimate_and_shrinks():
    rng = np.random.default_rng(0)
    widths = []
    for n in (50, 800):
        triples = lunar(rng, n)
        low, high = returns.retention_interval(triples, 0)
        assert low < returns.retention(triples) < high
        assert returns.retention_interval(triples, 0) == (low, high)
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.5)  # sqrt(800 / 50)


def test_lower_bound_holds_at_every_look():
    """True retention .95: the bound may pass it in at most 5 % of 200 runs, whenever one looks."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        state = returns.advance_grid(returns.begin_grid(BOUNDS), lunar(rng, 120, student=-190 + 0.95 * 458))
        wrong += (
            returns.retention_low(state, 0.05) > 0.951
        )  # clipping at 400 lowers the student's mean, never raises it
    assert wrong <= 10


def test_lower_bound_rises_with_episodes_towards_the_truth():
    rng, state, lows = np.random.default_rng(2), returns.begin_grid(BOUNDS), []
    for _ in range(6):
        state = returns.advance_grid(state, lunar(rng, 100))
        lows.append(returns.retention_low(state, 0.05))
    assert lows == sorted(lows)
    assert 0.90 < lows[0] < lows[-1] < 1.0


def test_lower_bound_needs_every_smaller_retention_too():
    state = returns.begin_grid(BOUNDS)
    peak = np.where(GRID <= 0.8, 4.0, 0.0)
    peak[-1] = 9.0  # a stray crossing far above proves nothing
    assert returns.retention_low(eprocess.EProcess(state.bound, state.log_wealth, state.rivals, peak), 0.05) == 0.8
    assert returns.retention_low(state, 0.05) == -np.inf
    full = eprocess.EProcess(state.bound, state.log_wealth, state.rivals, peak + 9)
    assert returns.retention_low(full, 0.05) == GRID[-1]
