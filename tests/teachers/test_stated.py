"""Spaces from their print, and what of two spaces must agree."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_cases import ACTIONS, BOX, LAST, MIXED, PICTURES, PLANE, made
from stable_baselines3 import PPO

from limbeck.contracts import Spec
from limbeck.errors import InputError
from limbeck.teachers import stated


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        ACTIONS,
        PLANE,
        spaces.Box(0, 255, (2, 3), np.uint8),
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(4),
    ],
)
def test_spaces_are_rebuilt_from_their_print(space: gym.Space, tmp_path: Path) -> None:
    discrete = not isinstance(space, spaces.Box)
    model = made(PPO, BOX, space) if discrete else made(PPO, space, spaces.Discrete(2))
    model.save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        entry = json.loads(archive.read("data"))["action_space" if discrete else "observation_space"]
    assert stated.space_of({k: v for k, v in entry.items() if k != ":serialized:"}) == space


def test_bounds_that_were_cut_are_not_invented() -> None:
    entry = {
        ":type:": "<class 'x.Box'>",
        "dtype": "float32",
        "_shape": [2000],
        "low": "[0. 0. ... 0.]",
        "high": "[1. ... 1.]",
    }
    assert np.isinf(stated.space_of(entry).low).all()
    whole = {**entry, "dtype": "uint8", "low": "[0 0 ... 0]"}
    assert stated.space_of({**whole, "high": "[1 255 ... 1]"}) is None
    assert stated.space_of({**whole, "high": "[255 ... 255]"}) == spaces.Box(0, 255, (2000,), np.uint8)
    assert stated.space_of({**entry, "low_repr": "0.0", "high_repr": "1.0"}).high[0] == 1


@pytest.mark.parametrize("space", [MIXED, PICTURES, spaces.Dict({"a'b": PLANE, "m": spaces.MultiDiscrete([2, 3])})])
def test_dicts_are_rebuilt_in_the_order_of_their_print(space: spaces.Dict) -> None:
    assert stated.dict_of(str(space.spaces)) == space
    turned = dict(reversed(space.spaces.items()))
    assert list(stated.dict_of(str(turned)).spaces) == list(turned)
    old = "OrderedDict([" + ", ".join(f"({key!r}, {part})" for key, part in turned.items()) + "])"
    assert list(stated.dict_of(old).spaces) == list(turned)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "{'a': Text(5)}", "{'a': Dict('b': Discrete(2))}", "{'a': Discrete(2), 'a': Discrete(2)}", "{'a': Box(0, 1, (0,), uint8)}",
     "{'a': Box(0, 1, (99999999, 99999999), float32)}", "{'a': Box(0, 1, (2,), object)}", "{'a': Discrete(2)} and more", "{'a': Discrete(0)}"],
)  # fmt: skip
def test_prints_of_anything_else_give_nothing(text: str) -> None:
    assert stated.space_of({":type:": "<class 'gymnasium.spaces.dict.Dict'>", "spaces": text}) is None


def test_an_image_is_what_the_library_takes_for_one() -> None:
    from stable_baselines3.common.preprocessing import is_image_space

    half = spaces.Box(0, 254, (4, 4, 1), np.uint8)
    for space in (
        LAST,
        half,
        spaces.Box(0, 255, (4, 4, 1), np.int16),
        spaces.Box(0, 255, (4, 4), np.uint8),
        BOX,
        spaces.Discrete(2),
    ):
        assert stated.is_image(space) == is_image_space(space)
    assert stated.is_image(LAST)


def test_all_that_differs_stands_on_one_line() -> None:
    mine, task = Spec(BOX, ACTIONS), Spec(LAST, spaces.Box(-1, 1, (2,)), "other")
    with pytest.raises(InputError) as caught:
        stated.compare_spaces(mine, task)
    assert str(caught.value).startswith(
        "the teacher does not fit other: observations: teacher Box(5,), task Box(36, 40, 3); action bounds: teacher"
    )
    wide = Spec(spaces.Box(-9.0, 9.0, (5,), np.float32), ACTIONS)
    assert stated.compare_spaces(mine, wide)[0].startswith("observation bounds differ")
    assert stated.compare_spaces(mine, mine) == ()
