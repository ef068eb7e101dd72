"""Aggregates, profiles and improvement against stored outputs of rliable; the command is in tests/reference."""

import json
from pathlib import Path

import numpy as np
import pytest

from limbeck import proof
from limbeck.errors import InputError
from limbeck.proof import comparing

STORED = json.loads((Path(__file__).parents[1] / "reference" / "rliable_scores.json").read_text())
X, Y = np.array(STORED["x"]), np.array(STORED["y"])
MEASURES = {"mean": "mean", "median": "median", "iqm": "iqm", "optimality gap": "optimality_gap"}


@pytest.mark.parametrize("name", MEASURES)
def test_points_and_intervals_are_those_of_rliable(name):
    """Both ends are Monte Carlo: with 20,000 resamples an end's standard error is .156 / sqrt(20,000) / density < .001,
    and numbers of two decimals put the bootstrap distribution on a grid of about .003."""
    measure, stored = comparing.MEASURES[name], MEASURES[name]
    assert float(measure(X)) == pytest.approx(STORED["points"][stored], abs=1e-12)
    low, high = comparing.interval(X, measure, run_seed=0, resamples=20_000)
    assert [float(low), float(high)] == pytest.approx(STORED["intervals"][stored], abs=0.007)


def test_probability_of_improvement_with_ties_is_that_of_rliable():
    assert comparing.improvement(X, Y) == pytest.approx(STORED["improvement"], abs=1e-12)
    assert comparing.improvement(X, X) == 0.5
    low, high = comparing.improvement_interval(X, Y, run_seed=0, resamples=5000)
    assert [low, high] == pytest.approx(STORED["improvement_interval"], abs=0.015)


def test_the_performance_profile_is_that_of_rliable():
    found = comparing.profile(X, np.array(STORED["taus"]), run_seed=0, resamples=10_000)
    np.testing.assert_allclose(found.share, STORED["profile"], atol=1e-12)
    low, high = STORED["profile_interval"]
    step = 1 / X.size  # of the empirical shares
    np.testing.assert_allclose(found.low, low, atol=step + 1e-9)
    np.testing.assert_allclose(found.high, high, atol=step + 1e-9)


def test_stratified_means_runs_move_within_their_task_only():
    tasks_apart = np.stack([np.zeros(8), np.full(8, 100.0)], axis=1)
    low, high = comparing.interval(tasks_apart, comparing.mean, run_seed=0, resamples=200)
    assert low == high == 50.0


def test_parts_of_the_resamples_give_what_all_at_once_give(monkeypatch):
    whole = comparing.improvement_interval(X, Y, run_seed=3, resamples=300)
    monkeypatch.setattr(comparing, "AT_ONCE", 7 * X.size)
    assert comparing.improvement_interval(X, Y, run_seed=3, resamples=300) == pytest.approx(whole, abs=0.05)


def test_comparing_says_everything_of_everybody():
    found = proof.compare({"x": X, "y": Y}, thresholds=(0.5, 0.9), resamples=200)
    assert set(found.improvement) == {("x", "y"), ("y", "x")}
    assert found.improvement["x", "y"].value + found.improvement["y", "x"].value == pytest.approx(1.0)
    assert found.aggregates["x"]["iqm"].rows == 6
    assert found.profiles["x"].thresholds == (0.5, 0.9)
    for rate in (*found.aggregates["x"].values(), *found.improvement.values()):
        assert rate.low <= rate.value <= rate.high


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({}, "given as nothing"),
        ({"a": np.ones((3, 2)), "b": np.ones((3, 1))}, r"a \(3, 2\), b \(3, 1\)"),
        ({"a": np.ones(3)}, r"a are \(3,\)"),
        ({"a": np.full((2, 2), np.nan)}, "not finite"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, told):
    with pytest.raises(InputError, match=told):
        proof.compare(scores)
