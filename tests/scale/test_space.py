"""The space of a search: exact bytes, and a sampler that is only offered what fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from search_cases import TEACHER

from limbeck import blueprints, settings
from limbeck.errors import InputError
from limbeck.scale.asked import seconds, settings_from
from limbeck.scale.passes import Outcome, non_dominated, promising
from limbeck.scale.space import Space, answers, corners, draw_method, draw_student, space_of
from limbeck.settings import SearchSettings
from limbeck.stages.opening import open_both


class Dice:
    """Answers at random, and keeps what was asked."""

    def __init__(self, seed: int) -> None:
        self.rng, self.asked = np.random.default_rng(seed), dict[str, object]()

    def choice(self, name: str, options: Sequence[str]) -> str:
        self.asked[name] = options[self.rng.integers(len(options))]
        return str(self.asked[name])

    def whole(self, name: str, low: int, high: int) -> int:
        self.asked[name] = int(self.rng.integers(low, high + 1))
        return int(self.rng.integers(low, high + 1))

    def real(self, name: str, low: float, high: float) -> float:
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))


def space(**changes: object) -> Space:
    recipe = settings.recipe_from({"teacher": str(TEACHER), "env": "CartPole-v1"})
    return space_of(recipe, *open_both(recipe), SearchSettings(**changes))


def dense(*sizes: int) -> int:
    return 4 * sum((a + 1) * b for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("spec", "size"), [("linear", dense(4, 2)), ("mlp:8", dense(4, 8, 2)), ("mlp:16x2x64:tanh", dense(4, 16, 2, 64, 2))]
)
def test_bytes_are_those_of_the_closed_form_and_of_the_saved_student(spec: str, size: int, tmp_path: object) -> None:
    found = space()
    method = next(corners(found))
    assert dict(found.sizes(method).values())[spec] == size
    assert 4 * blueprints.fold(found.blueprint(spec, method)).parameters == size


def test_whole_numbers_are_weighed_as_they_are_stored() -> None:
    """CartPole: 4 inputs and their ranges, 8 neurons (bias of 4 bytes, multiplier, shift), 2 outputs (bias, step); a byte a weight."""
    found = space(students=("mlp:8:int8", "mlp:8:int4"))
    sizes = dict(found.sizes(next(corners(found))).values())
    assert sizes["mlp:8:int8"] == 4 * 8 + 8 * 2 + 4 * (4 + 4) + 8 * (4 + 1 + 1) + 2 * (4 + 4)
    assert sizes["mlp:8:int4"] == sizes["mlp:8:int8"] - (4 * 8 + 8 * 2) // 2


def test_every_answer_leads_to_a_student_within_the_budget() -> None:
    found = space(max_bytes=300)
    method = next(corners(found))
    within, sizes = found.within(method), dict(found.sizes(method).values())
    drawn = [draw_student(within, found.students, ("relu", "tanh"), Dice(seed)) for seed in range(200)]
    assert None not in drawn
    assert {spec for spec in drawn if spec and sizes[spec] > 300} == set()
    assert len(set(drawn)) > 15


def test_a_family_that_does_not_fit_is_answered_with_none() -> None:
    found = space(max_bytes=40)  # linear alone
    method = next(corners(found))
    drawn = {draw_student(found.within(method), found.students, ("relu",), Dice(seed)) for seed in range(20)}
    assert drawn == {"linear", None}


def test_a_drawn_method_is_drawn_again_from_its_answers() -> None:
    found = space()
    method = draw_method(found, Dice(3))

    class Fixed(Dice):
        def choice(self, name: str, options: Sequence[str]) -> str:
            return str(answers(found, method)[name])

        def real(self, name: str, low: float, high: float) -> float:
            return float(answers(found, method)[name])

    assert draw_method(found, Fixed(0)) == method
    recipe = found.recipe_for(replace(method, learning_rate=6e-3))
    assert recipe.imitate.final_learning_rate == pytest.approx(6e-4)  # the recipe's share, a tenth


def test_the_recipes_own_method_is_the_first() -> None:
    assert space().default() == {
        "loss": "kl", "driver": "student", "polish": "yes", "history": "1", "learning_rate": 3e-3,
    }  # fmt: skip
    assert "driver" not in space(drivers=("teacher",)).default()


def test_a_loss_that_this_teacher_cannot_serve_is_refused() -> None:
    with pytest.raises(InputError, match="q_kl"):
        space(losses=("kl", "q_kl"))


def test_non_dominated_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    found = [Outcome(n, "x", int(s), float(r), 0, True) for n, (s, r) in enumerate(rng.integers(0, 8, (40, 2)))]
    front = non_dominated(found)
    for one in found:
        beaten = any(
            o.size_bytes <= one.size_bytes and o.mean_return >= one.mean_return
            and (o.size_bytes < one.size_bytes or o.mean_return > one.mean_return)
            for o in found
        )  # fmt: skip
        same = any((o.size_bytes, o.mean_return) == (one.size_bytes, one.mean_return) for o in front)
        assert same == (not beaten)
    assert promising(found, 1.0)[: len(front)] == [o.trial for o in reversed(front)]
    assert len(promising(found, 0.5)) == 20


@pytest.mark.parametrize(("text", "value"), [("20us", 2e-5), ("1.5 ms", 1.5e-3), ("3e-6", 3e-6), ("140ns", 1.4e-7)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "given", ["fast", "20", "0us", "-3ms", "1e4", "2h", "1.2.3s", "", "nan", "inf", 0.0, -1.0, 5e3, float("nan")]
)
def test_no_duration_says_units_and_range(given: str | float) -> None:
    if given == "20":  # seconds
        assert settings_from({"max_latency": given}, [])[0].max_latency == 20
        return
    with pytest.raises(InputError, match="allowed 1ns to 3600s: a number and its unit, s, ms, us or ns, such as 20us"):
        settings_from({"max_latency": given}, [])


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match="did you mean 'widths'"):
        settings_from({}, ["search.width=2"])
    with pytest.raises(InputError, match="growing numbers"):
        settings_from({}, ["search.rungs=4,2"])
    for option in ("students=mlp:8", "imitate.rounds=9", "race.rounds=1,2"):
        with pytest.raises(InputError, match=f"{option.split('=')[0]} says nothing to a search.* Give .* instead"):
            settings_from({}, [option])
    with pytest.raises(InputError, match="learning_rates = 1e-3, allowed two numbers"):
        settings_from({}, ["search.learning_rates=1e-3"])
    with pytest.raises(InputError, match="losses is empty"):
        settings_from({}, ["search.losses="])
    with pytest.raises(InputError, match="widths is empty"):
        settings_from({}, ["search.widths="])
    asked, rest = settings_from({"max_latency": "20us"}, ["search.polish=no", "race.episodes=4"])
    assert (asked.polish, rest) == ((False,), ["race.episodes=4"])
    assert asked.max_latency == pytest.approx(2e-5)
