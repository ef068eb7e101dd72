"""Shipping: a member goes to the targets that can hold it, and of the others it is told why not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import quantised_cases
from gymnasium import spaces as S

from limbeck import spaces
from limbeck.contracts import Blueprint, Dense, Spec
from limbeck.stages import ship

TARGETS = ("c", "onnx", "onnx15", "onnx_int8", "numpy")


def fitting(blueprint: Blueprint) -> tuple[list[str], list[str]]:
    told: list[str] = []
    run = SimpleNamespace(
        recipe=SimpleNamespace(export=SimpleNamespace(targets=TARGETS)), tell=lambda stage, text: told.append(text)
    )
    one: Any = SimpleNamespace(member=SimpleNamespace(name="mlp"), blueprint=blueprint)
    here: Any = SimpleNamespace(run=run)
    return ship._fitting(here, one), told


def test_a_dense_member_goes_everywhere() -> None:
    spec = Spec(S.Box(-1, 1, (2,), np.float32), S.Discrete(2))
    layer = Dense(np.ones((2, 2), np.float32), np.zeros(2, np.float32))
    assert fitting(Blueprint(spec, spaces.head_for(spec.action_space), (layer,))) == (list(TARGETS), [])


def test_whole_numbers_stay_out_of_what_would_round_them() -> None:
    targets, told = fitting(quantised_cases.policy((5, 6, 4)))
    assert targets == ["c", "onnx", "numpy"]
    assert told[0].startswith("mlp: not written as onnx15: its whole numbers need float64")
    assert told[1].startswith("mlp: not written as onnx_int8: it computes in whole numbers already")
