"""Performance profiles: exact shares, a band that covers, and a chart that bears whatever a result holds."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
import reporting_samples as samples

from limbeck.reporting import profiles


def test_examples() -> None:
    assert doctest.testmod(profiles).failed == 0


def test_the_band_encloses_whole_curves_as_often_as_it_says() -> None:
    """Uniform scores, whose share at least t is 1 - t: at most 5 % of 400 curves leave the band anywhere, and half the band
    would not do."""
    rng, grid, left, half = np.random.default_rng(0), np.linspace(0, 1, 101), 0, 0
    for _ in range(400):
        off = np.abs(profiles.at_least(rng.random(80), grid) - (1 - grid)).max()
        left += bool(off > profiles.band(80))
        half += bool(off > profiles.band(80) / 2)
    assert left <= 400 * 0.05
    assert half > 400 * 0.2


def test_returns_are_told_as_shares_of_the_teacher_s_gain_in_that_proof() -> None:
    one = replace(samples.proof("m", 1.0, 4), student_returns=(0.0, 5.0, math.nan, 15.0), teacher_returns=(10.0,) * 4,
                  random_returns=(-1.0, 1.0, -3.0, 3.0))  # fmt: skip
    assert profiles.scaled(one, one.student_returns).tolist() == [0.0, 0.5, 1.5]
    assert not len(profiles.scaled(replace(one, teacher_returns=(-5.0,) * 4), one.student_returns))
    assert not len(profiles.scaled(replace(one, random_returns=()), one.student_returns))


def test_the_headline_s_member_comes_first_and_others_without_a_proof_not_at_all() -> None:
    whole = samples.partly()
    names = [member.name for member in profiles.drawn(whole)]
    assert names[0] == "mlp:16x16-s1"
    assert set(names) == {member.name for member in whole.members if member.proof is not None}
    assert len(profiles.drawn(samples.rich(12))) == profiles.MOST_CURVES


def test_the_curve_passes_through_its_shares() -> None:
    """The teacher always returns 1 of its own mean: its curve is 1 up to there, and the label says so."""
    proof = replace(samples.proof("m", 1.0, 4), student_returns=(0.0, 5.0, 10.0, 10.0), teacher_returns=(10.0,) * 4,
                    random_returns=(0.0,) * 4)  # fmt: skip
    whole = samples.result()
    drawing = profiles.profile(replace(whole, members=[replace(whole.members[-1], proof=proof)]))
    assert "returns at least the teacher&apos;s mean in 50 % of its 4 episodes" in drawing.replace("'", "&apos;")
    assert "the teacher itself in 100 %" in drawing


@pytest.mark.parametrize("whole", [samples.hostile(), samples.nothing_proved(), samples.empty()])
def test_any_result_gives_a_drawing_or_none(whole: object) -> None:
    drawing = profiles.profile(whole)
    assert "<script" not in drawing
    assert bool(drawing) == bool(profiles.drawn(whole))
