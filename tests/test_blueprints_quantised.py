"""Quantised policies on disk: as small as their numbers, back to the last bit, damage refused; and what was seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantised_cases as cases
from hypothesis import given
from hypothesis import strategies as st

from limbeck import blueprints, packing, storage
from limbeck.contracts import Blueprint, Dense, Layer, Normaliser, Parallel, Quantise, Quantised, Range, Readout, View
from limbeck.contracts.layers import layer_arrays
from limbeck.contracts.quantised import storage_bits
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy


def saved(policy: Blueprint, folder: Path) -> Path:
    blueprints.save(policy, folder / "policy.safetensors")
    return folder / "policy.safetensors"


def says(policy: Blueprint, obs: np.ndarray) -> np.ndarray:
    played = NumpyPolicy(policy)
    return played(obs, played.initial_state(len(obs)), np.ones(len(obs), bool)).params


@given(
    numbers=st.integers(0, 50).flatmap(lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n)),
    bits=st.sampled_from([8, 4, 2]),
)
def test_packed_numbers_come_back(numbers: list[int], bits: int) -> None:
    content = packing.pack(np.array(numbers), bits)
    assert content.size == -(-len(numbers) * bits // 8)
    assert packing.unpack(content, bits, len(numbers)).tolist() == numbers


@pytest.mark.parametrize("sizes", [(5, 7, 6, 3), (1, 1, 1, 2), (9, 3)])
@pytest.mark.parametrize("width", cases.WIDTHS)
def test_a_quantised_policy_comes_back_with_every_number(width: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    policy = cases.policy(sizes, "tanh", width)
    found, _ = blueprints.load(saved(policy, tmp_path))
    assert [type(layer) for layer in found.layers] == [type(layer) for layer in policy.layers]
    for one, two in zip(policy.layers, found.layers, strict=True):
        assert all(b.dtype == np.float32 for b in layer_arrays(two))
        assert all(np.array_equal(a, b) for a, b in zip(layer_arrays(one), layer_arrays(two), strict=True))
        assert getattr(one, "activation", "") == getattr(two, "activation", "")
        assert getattr(one, "width", "") == getattr(two, "width", "")


@pytest.mark.parametrize("width", cases.WIDTHS)
def test_the_file_holds_the_bits_that_are_needed(width: str, tmp_path: Path) -> None:
    policy = cases.policy((8, 64, 64, 2), "tanh", width)
    arrays, _ = storage.read_arrays(saved(policy, tmp_path))
    weights = 8 * 64 + 64 * 64 + 64 * 2
    stored = weights * storage_bits(width) // 8 + 4 * (64 + 64 + 2) + 2 * 128 + 4 * (2 + 16)
    assert sum(a.nbytes for a in arrays.values()) == stored == blueprints.stored_bytes(policy)
    assert (tmp_path / "policy.safetensors").stat().st_size < stored + 3000  # the description is text


def test_the_same_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    policy = cases.policy((5, 7, 3), width="int4")
    once = saved(policy, tmp_path).read_bytes()
    assert saved(blueprints.load(tmp_path / "policy.safetensors")[0], tmp_path).read_bytes() == once


# ---------------------------------------------------------------- damage


def _described(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def damage(_: dict[str, Any], description: dict[str, Any]) -> None:
        change(description["layers"][1])

    return damage


def _stored(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def damage(arrays: dict[str, Any], _: dict[str, Any]) -> None:
        arrays[name] = change(arrays[name])

    return damage


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        wide = array.astype(np.float64)
        wide.reshape(-1)[0] = value
        return wide

    return change


WEIGHT = "layers.1.weight"
DAMAGE = {
    "unknown width": ("int4", _described(lambda layer: layer.update(width="int3")), "unknown width 'int3'"),
    "width that is none": ("int4", _described(lambda layer: layer.update(width=4)), "width"),
    "other width": ("int4", _described(lambda layer: layer.update(width="ternary")), "damaged"),
    "more inputs": ("int4", _described(lambda layer: layer.update(inputs=50)), "damaged"),
    "negative inputs": ("int4", _described(lambda layer: layer.update(inputs=-5)), "damaged"),
    "no inputs": ("int4", _described(lambda layer: layer.update(inputs=0)), "damaged"),
    "huge inputs": ("int4", _described(lambda layer: layer.update(inputs=2**62)), "damaged"),
    "missing inputs": ("int4", _described(lambda layer: layer.pop("inputs")), "damaged"),
    "activation": ("int8", _described(lambda layer: layer.update(activation="gelu")), "gelu"),
    "too few": ("int4", _stored(WEIGHT, lambda a: a[:-1]), "damaged"),
    "not flat": ("int4", _stored(WEIGHT, lambda a: a[None]), "damaged"),
    "no bytes": ("int4", _stored(WEIGHT, _first(0.5)), "damaged"),
    "beyond a byte": ("int4", _stored(WEIGHT, _first(256)), "damaged"),
    "unused bits": ("int4", _stored(WEIGHT, lambda a: a | np.uint8([0] * (a.size - 1) + [240])), "damaged"),
    "least of ternary": ("ternary", _stored(WEIGHT, lambda a: a & np.uint8(252)), "-1..1"),
    "least of int4": ("int4", _stored(WEIGHT, lambda a: a & np.uint8(240)), "-7..7"),
    "beyond int8": ("int8", _stored(WEIGHT, _first(-128)), "-127..127"),
    "fractions": ("int8", _stored(WEIGHT, _first(0.5)), "whole numbers"),
    "multiplier": ("int8", _stored("layers.1.multiplier", _first(0)), "1..255"),
    "shift": ("int8", _stored("layers.1.shift", _first(32)), "1..31"),
    "bias": ("int8", _stored("layers.1.bias", _first(2**22)), "22 bits"),
    "bias that is none": ("int8", _stored("layers.1.bias", _first(np.nan)), "NaN"),
    "scale": ("int8", _stored("layers.0.scale", _first(0)), "quantiser"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, tmp_path: Path) -> None:
    width, damage, words = DAMAGE[name]
    path = saved(cases.policy((5, 5, 3), width=width), tmp_path)
    arrays, meta = storage.read_arrays(path)
    description = json.loads(meta["limbeck"])
    damage(arrays, description)
    storage.write_arrays(path, arrays, {**meta, "limbeck": json.dumps(description)})
    with pytest.raises(InputError, match=words):
        blueprints.load(path)


def test_what_does_not_fit_its_width_is_not_stored(tmp_path: Path) -> None:
    policy = cases.policy((5, 7, 3))
    layer = replace(policy.layers[1], width="int4")
    with pytest.raises(InputError, match=r"-7\.\.7"):
        saved(replace(policy, layers=(policy.layers[0], layer, policy.layers[2])), tmp_path)


# ---------------------------------------------------------------- the order of the layers


def test_levels_stay_between_quantiser_and_readout() -> None:
    policy = cases.policy((4, 4, 4, 3))
    quantise, first, second, last = policy.layers
    real = Dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    out = Dense(np.ones((4, 3), np.float32), np.zeros(3, np.float32))
    back = Readout(first.weight, first.bias, np.ones(4, np.float32))
    sound: list[tuple[Layer, ...]] = [
        policy.layers,
        (quantise, last),
        (real, quantise, first, last),
        (quantise, back, real, out),
        (quantise, back, quantise, first, last),
        (Parallel(((quantise, back),), ((0, 4),), 4), quantise, last),
    ]
    for layers in sound:
        blueprints.check(replace(policy, layers=layers))
    wrong: list[tuple[tuple[Layer, ...], str]] = [
        ((first, second, last), "without a quantise layer"),
        ((last,), "without a quantise layer"),
        ((quantise, real, last), "reads the levels"),
        ((quantise, first, out), "reads the levels"),
        ((quantise, first, quantise, last), "reads the levels"),
        ((quantise, replace(first, weight=last.weight, bias=last.bias, multiplier=first.multiplier[:3],
                            shift=first.shift[:3])), "without a readout"),
        ((Parallel(((quantise,),), ((0, 4),), 4), last), "without a readout"),
    ]  # fmt: skip
    for layers, words in wrong:
        with pytest.raises(InputError, match=words):
            blueprints.check(replace(policy, layers=layers))


def test_too_many_inputs_are_refused() -> None:
    wide = Quantised(*(np.zeros(s, np.float32) for s in ((2**15 + 1, 1), 1)), np.ones(1), np.ones(1))
    assert "allowed 32768" in wide.problem()
    assert "22 bits" in replace(wide, weight=np.full((2**15, 1), 2, np.float32)).problem()


# ---------------------------------------------------------------- what was seen


def test_what_was_seen_comes_back(tmp_path: Path) -> None:
    low, high = np.float32([-1, 0, -3, 2, 5]), np.float32([1, 0, 3, 2.5, 9])
    policy = replace(cases.policy((5, 3)), seen=Range(low, high))
    found, _ = blueprints.load(saved(policy, tmp_path))
    assert found.seen is not None
    assert np.array_equal(found.seen.low, low)
    assert np.array_equal(found.seen.high, high)
    assert blueprints.load(saved(cases.policy((5, 3)), tmp_path))[0].seen is None


@pytest.mark.parametrize(
    ("low", "high"), [([0] * 4, [1] * 4), ([0] * 5, [1] * 4), ([2] * 5, [1] * 5), ([0] * 5, [1] * 4 + [np.inf])]
)
def test_a_range_that_is_none_is_refused(low: list[float], high: list[float], tmp_path: Path) -> None:
    policy = replace(cases.policy((5, 3)), seen=Range(np.float32(low), np.float32(high)))
    with pytest.raises(InputError, match=r"seen|infinite"):
        blueprints.load(saved(policy, tmp_path))


# ---------------------------------------------------------------- folding


def normalised(clip: float, history: int = 1, mean: float = 300.0) -> Blueprint:
    policy = cases.policy((5, 12, 3), "tanh", view=View(history=history))
    norm = Normaliser(np.full(5, mean, np.float32) + np.arange(5, dtype=np.float32), np.full(5, 2.5, np.float32), clip)
    first = policy.layers[0]
    flat = Quantise(np.tile(first.offset[:5] / 4, history), np.tile(first.scale[:5], history))
    return replace(policy, layers=(flat, *policy.layers[1:]), normaliser=norm)


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("clip", [np.inf, 127 / 5 + 1])
def test_a_normaliser_is_folded_into_the_quantiser(clip: float, history: int) -> None:
    """The borders of levels move by a rounding of float32: of 1000 rows of 5 numbers almost none meets one."""
    policy = normalised(clip, history)
    folded = blueprints.fold(policy)
    assert folded.normaliser is None
    assert folded.parameters == policy.parameters - 10
    obs = np.random.default_rng(0).normal(302, 2.5, (1000, 5)).astype(np.float32)
    assert (says(policy, obs) == says(folded, obs)).all(1).mean() > 0.98
    obs[0], obs[1], obs[2] = 1e30, -1e30, np.nan
    assert np.array_equal(says(policy, obs[:3]), says(folded, obs[:3]))


def test_a_clip_inside_of_the_levels_keeps_its_normaliser() -> None:
    tight = normalised(1.0)
    assert blueprints.stored_bytes(tight) == blueprints.stored_bytes(replace(tight, normaliser=None)) + 40
    assert blueprints.fold(tight).normaliser is tight.normaliser
    unfoldable = normalised(np.inf)
    tiny = replace(unfoldable.normaliser, scale=np.full(5, 2.0**-110, np.float32), mean=np.zeros(5, np.float32))
    assert blueprints.fold(replace(unfoldable, normaliser=tiny)).normaliser is tiny


def test_a_quantised_policy_without_a_normaliser_is_left_alone() -> None:
    policy = cases.policy((5, 3))
    assert blueprints.fold(policy) is policy
