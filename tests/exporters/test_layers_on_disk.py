"""Convolutions and memories in whole numbers on disk: in the bits they need, back to the last one, damage refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantised_cases as cases
from cases_layers import HWC, SMALL, alike, policy
from cases_quantised_layers import SOME

from limbeck import blueprints, storage
from limbeck.contracts import Blueprint, Normaliser, Quantise, QuantisedConv, QuantisedGru, Shared, View
from limbeck.contracts.quantised import storage_bits
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy


def saved(made: Blueprint, folder: Path) -> Path:
    blueprints.save(made, folder / "policy.safetensors")
    return folder / "policy.safetensors"


def alike_layers(one: Any, two: Any) -> None:
    """Every field the same, arrays to the last bit."""
    assert type(one) is type(two)
    for entry in fields(one):
        mine, theirs = getattr(one, entry.name), getattr(two, entry.name)
        if isinstance(mine, np.ndarray):
            assert theirs.dtype == np.float32
            assert np.array_equal(mine, theirs)
        elif entry.name == "layers":
            for inner in zip(mine, theirs, strict=True):
                alike_layers(*inner)
        else:
            assert mine == theirs


def drawn(width: str) -> Blueprint:
    """A picture, then a memory; odd numbers of weights, so that the last byte is half empty."""
    rng = np.random.default_rng(5)
    conv = cases.conv(rng, (11, 10), (3, 3, 3, 5), "tanh", width, stride=(3, 2))
    memory = cases.gru(rng, conv.outputs, 3, width)
    return policy(HWC, alike(3, 110), conv, memory, cases.readout(rng, 3, 4, width))


@pytest.mark.parametrize("name", SOME)
def test_every_field_comes_back(name: str, tmp_path: Path) -> None:
    made = SOME[name]
    path = saved(made, tmp_path)
    found, _ = blueprints.load(path)
    for pair in zip(made.layers, found.layers, strict=True):
        alike_layers(*pair)
    once = path.read_bytes()
    assert saved(found, tmp_path).read_bytes() == once


@pytest.mark.parametrize("width", cases.WIDTHS)
def test_numbers_take_the_bits_they_need(width: str, tmp_path: Path) -> None:
    made, bits = drawn(width), storage_bits(width)
    found, _ = blueprints.load(saved(made, tmp_path))
    for pair in zip(made.layers, found.layers, strict=True):
        alike_layers(*pair)
    conv, memory = made.layers[1], made.layers[2]
    assert isinstance(conv, QuantisedConv)
    assert isinstance(memory, QuantisedGru)
    packed = sum(-(-w.size * bits // 8) for w in (conv.weight, memory.weight_x, memory.weight_h, made.layers[3].weight))
    wanted = packed + 4 * (3 + 3) + (4 + 2) * 5 + 2 * (4 + 2) * 9 + 4 * (4 + 4)
    arrays, _ = storage.read_arrays(tmp_path / "policy.safetensors")
    assert sum(a.nbytes for a in arrays.values()) == wanted == blueprints.stored_bytes(made)
    assert (tmp_path / "policy.safetensors").stat().st_size < wanted + 3500  # the description is text


# ---------------------------------------------------------------- damage


def described(place: int, **changes: Any) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda _, layers: layers[place].update(changes)


def absent(place: int, key: str) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda _, layers: layers[place].pop(key)


def stored(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda arrays, _: arrays.update({name: change(arrays[name])})


def lost(name: str) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda arrays, _: arrays.pop(name)


CONV, FROM_X, FROM_H = "layers.1.weight", "layers.2.weight_x", "layers.2.weight_h"
DAMAGE = {
    "window of words": ("int4", described(1, window=["3", "3"]), "window"),
    "window of one": ("int4", described(1, window=[9]), "window"),
    "other window": ("int4", described(1, window=[3, 4]), "damaged"),
    "negative windows": ("int4", described(1, window=[-3, -3]), "damaged"),
    "unknown sides": ("int4", described(1, window=[-1, -9]), "damaged"),
    "huge windows": ("int4", described(1, window=[2**62, 2**62]), "damaged"),
    "no window": ("int4", described(1, window=[0, 3]), "damaged"),
    "window absent": ("int4", absent(1, "window"), "damaged"),
    "turned window": ("int4", described(1, window=[1, 9]), "takes 330 numbers|fit"),
    "channels": ("int2", described(1, channels=4), "damaged"),
    "channels absent": ("int2", absent(1, "channels"), "damaged"),
    "size": ("int8", described(1, size=[2, 10]), "a window of"),
    "size absent": ("int8", absent(1, "size"), "damaged"),
    "size as a number": ("int8", described(1, size=11), "size is 11"),
    "stride": ("int8", described(1, stride=[0, 2]), "windows of"),
    "huge stride": ("int8", described(1, stride=[2**40, 2]), "windows of"),
    "layout": ("int8", described(1, layout="whc"), "layout 'whc'"),
    "layout as a number": ("int8", described(1, layout=3), "layout is 3"),
    "activation": ("int8", described(1, activation="gelu"), "gelu"),
    "times": ("int8", described(0, times=111), "takes 333 numbers"),
    "no times": ("int8", described(0, times=0), "0 stretches"),
    "huge times": ("int8", described(0, times=2**40), "stretches"),
    "times as words": ("int8", described(0, times="110"), "times"),
    "width of a conv": ("int4", described(1, width="int3"), "unknown width"),
    "width of a memory": ("int4", described(2, width=["int4"]), "width is"),
    "other width of a memory": ("int4", described(2, width="int2"), "damaged"),
    "flat weights": ("int8", stored(CONV, lambda a: a.reshape(-1)), "allowed 4 dimensions"),
    "five dimensions": ("int8", stored(CONV, lambda a: a[None]), "allowed 4 dimensions"),
    "no channels out": ("int8", stored(CONV, lambda a: a[..., :0]), "shape"),
    "bytes cut": ("int4", stored(CONV, lambda a: a[:-1]), "damaged"),
    "unclean end": ("int4", stored(CONV, lambda a: a | np.uint8([0] * (a.size - 1) + [240])), "damaged"),
    "least of ternary": ("ternary", stored(FROM_X, lambda a: a & np.uint8(252)), "-1..1"),
    "memory cut": ("int4", stored(FROM_H, lambda a: a[:-1]), "damaged"),
    "memory of more inputs": ("int4", described(2, inputs=90), "damaged"),
    "fewer gates": ("int4", stored("layers.2.bias_h", lambda a: a[:-1]), "damaged"),
    "fewer gates in bytes": ("int8", stored("layers.2.bias_h", lambda a: a[:-1]), "bias_h has shape"),
    "no memory": ("int8", stored(FROM_H, lambda a: a[:0]), "shape"),
    "square memory": ("int8", stored(FROM_H, lambda a: a[:, :3]), "weight_h has shape"),
    "lost half": ("int8", lost("layers.2.multiplier_x"), "damaged"),
    "lost kernel": ("int8", lost(CONV), "damaged"),
    "multiplier": ("int8", stored("layers.2.multiplier_h", lambda a: a * 0), "1..255"),
    "shift": ("int8", stored("layers.2.shift_x", lambda a: a * 0 + 32), "1..31"),
    "shift of a conv": ("int8", stored("layers.1.shift", lambda a: a * 0), "1..31"),
    "bias": ("int8", stored("layers.2.bias_x", lambda a: a * 0 + 2**22), "22 bits"),
    "sums": ("int8", stored("layers.1.bias", lambda a: a * 0 + 2**22 - 1), "22 bits"),
    "fractions": ("int8", stored(FROM_H, lambda a: a + np.float32(0.5)), "whole numbers"),
    "beyond int8": ("int8", stored(CONV, lambda a: a.astype(np.int16) * 0 + 128), "-127..127"),
    "NaN": ("int8", stored("layers.2.bias_h", lambda a: a * np.float32(np.nan)), "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_in_one_line(name: str, tmp_path: Path) -> None:
    width, damage, words = DAMAGE[name]
    path = saved(drawn(width), tmp_path)
    arrays, meta = storage.read_arrays(path)
    description = json.loads(meta["limbeck"])
    damage(arrays, description["layers"])
    storage.write_arrays(path, arrays, {**meta, "limbeck": json.dumps(description)})
    with pytest.raises(InputError, match=words) as found:
        blueprints.load(path)
    assert "\n" not in str(found.value)


def test_what_does_not_fit_its_width_is_not_stored(tmp_path: Path) -> None:
    made = drawn("int8")
    for place in (1, 2):
        narrow = replace(made.layers[place], width="int4")
        layers = (*made.layers[:place], narrow, *made.layers[place + 1 :])
        with pytest.raises(InputError, match=r"-7\.\.7"):
            saved(replace(made, layers=layers), tmp_path)


# ---------------------------------------------------------------- folding


def says(made: Blueprint, obs: np.ndarray) -> np.ndarray:
    played = NumpyPolicy(made)
    return played.on_flat(obs, played.initial_state(len(obs)), np.ones(len(obs), bool)).params


def quantised_pixels(mean: np.ndarray, scale: np.ndarray, clip: float = np.inf) -> Blueprint:
    rng = np.random.default_rng(8)
    conv = cases.conv(rng, (11, 10), (3, 3, 3, 5), "tanh", "int8", stride=(3, 2))
    made = policy(HWC, alike(3, 110, -0.5, 50), conv, cases.readout(rng, conv.outputs, 4, "int8"))
    return replace(made, normaliser=Normaliser(mean.astype(np.float32), scale.astype(np.float32), clip))


@pytest.mark.parametrize("clip", [np.inf, 6.0])
def test_statistics_of_channels_fold_into_their_ranges(clip: float) -> None:
    """mean + offset x scale and steps / scale, of 3 channels for 110 pixels. All here are powers of two and whole
    numbers: nothing is rounded, so not a bit moves."""
    made = quantised_pixels(np.tile([96, 128, 64], 110), np.tile([32, 64, 16], 110), clip)
    folded = blueprints.fold(made)
    assert folded.normaliser is None
    first = folded.layers[0]
    assert isinstance(first, Quantise)
    assert first.times == 110
    assert first.offset.tolist() == [96 - 16, 128 + 32, 64 + 24]
    assert first.scale.tolist() == [50 / 32, 50 / 64, 50 / 16]
    obs = np.random.default_rng(0).integers(0, 256, (200, 330)).astype(np.float32)
    assert np.array_equal(says(made, obs), says(folded, obs))
    assert folded.parameters == made.parameters - 660


def test_statistics_of_single_pixels_stay_beside_ranges_of_channels() -> None:
    made = quantised_pixels(np.arange(330) / 2, np.full(330, 32))
    assert blueprints.fold(made) is made
    assert blueprints.fold(quantised_pixels(np.full(330, 4.0), np.full(330, 32), 2.0)).normaliser is not None


def test_statistics_fold_into_the_steps_of_a_history_and_into_agents() -> None:
    rng = np.random.default_rng(3)
    steps = cases.conv(rng, (5, 1), (3, 1, 6, 8), "relu", "int8")
    norm = Normaliser(np.float32([1, 2, 3, 4, 5, 6]), np.float32([1, 2, 4, 8, 2, 1]))
    made = policy(SMALL, alike(6, 5, 0, 32), steps, cases.readout(rng, 24, 4, "int8"), view=View(history=5))
    agents = policy(SMALL, Shared((alike(3, 1, 0, 32), cases.readout(rng, 3, 2, "int8")), 2))
    same = Normaliser(np.tile(norm.mean[:3], 2), np.tile(norm.scale[:3], 2))
    for one, statistics in ((made, norm), (agents, same)):
        given = replace(one, normaliser=statistics)
        folded = blueprints.fold(given)
        assert folded.normaliser is None
        obs = (rng.integers(-64, 64, (100, 6)) / 16).astype(np.float32)
        assert np.array_equal(says(given, obs), says(folded, obs))
