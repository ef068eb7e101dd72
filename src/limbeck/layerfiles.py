"""Layers on disk: plain tables that describe them, and named arrays. Real numbers are float32; those of quantised layers
take the bits they need, so that a policy's file is as small as its numbers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from limbeck import packing
from limbeck.contracts import LAYERS, Array, Floats, Layer, Quantised, QuantisedConv, QuantisedGru, Readout
from limbeck.contracts.quantised import BITS, storage_bits
from limbeck.errors import InputError, printable, unknown

DEEPEST = 8  # levels of layers inside of layers


def to_arrays(prefix: str, layers: tuple[Layer, ...], arrays: dict[str, Array]) -> list[dict[str, Any]]:
    """Layers as plain tables; their numbers go into `arrays` under the layer's place, as layers.0.weight."""
    return [_layer_to_arrays(f"{prefix}.{i}", layer, arrays) for i, layer in enumerate(layers)]


def _layer_to_arrays(place: str, layer: Layer, arrays: dict[str, Array]) -> dict[str, Any]:
    if isinstance(layer, Narrow):
        return _narrow_to_arrays(place, layer, arrays)
    described: dict[str, Any] = {"type": layer.kind}
    for entry in fields(layer):
        value = getattr(layer, entry.name)
        if isinstance(value, np.ndarray):
            arrays[f"{place}.{entry.name}"] = np.asarray(value, np.float32)
        elif entry.name == "layers":
            described["layers"] = to_arrays(f"{place}.layers", value, arrays)
        elif entry.name == "branches":
            described["branches"] = [
                to_arrays(f"{place}.branches.{k}", branch, arrays) for k, branch in enumerate(value)
            ]
        else:
            described[entry.name] = number_to_json(value) if isinstance(value, float) else value
    return described


def from_arrays(prefix: str, described: Any, arrays: Mapping[str, Array], depth: int = 0) -> tuple[Layer, ...]:
    if depth > DEEPEST:
        raise InputError(f"layers inside of layers, deeper than {DEEPEST} levels. Export the policy again.")
    if not isinstance(described, list):
        raise InputError(f"the layers are {printable(described)!r}. Allowed: a list. Export the policy again.")
    return tuple(_layer_from_arrays(f"{prefix}.{i}", entry, arrays, depth) for i, entry in enumerate(described))


def _layer_from_arrays(place: str, described: Mapping[str, Any], arrays: Mapping[str, Array], depth: int) -> Layer:
    kind = described["type"]
    if not isinstance(kind, str) or kind not in LAYERS:
        raise InputError(f"unknown layer {printable(kind)!r}. Allowed: {', '.join(LAYERS)}.")
    values: dict[str, Any] = {}
    for entry in fields(LAYERS[kind]):
        key = entry.name
        if key in _RANKS:
            array = arrays[f"{place}.{key}"]
            if kind in _WHOLE and key.startswith("weight"):
                array = _narrow_weight(described, key, array, lambda name: arrays[f"{place}.{name}"].size)
            values[key] = array
            wanted = _WEIGHT_RANKS.get(kind, _RANKS[key]) if key == "weight" else _RANKS[key]
            if array.ndim != wanted:
                raise InputError(f"the {kind} layer's {key} has shape {array.shape}, allowed {wanted} dimensions.")
        elif key == "layers":
            values[key] = from_arrays(f"{place}.layers", described[key], arrays, depth + 1)
        elif key == "branches":
            values[key] = tuple(
                from_arrays(f"{place}.branches.{k}", branch, arrays, depth + 1)
                for k, branch in enumerate(described[key])
            )
        elif key in described:
            read = word if kind in _WHOLE and key == "width" else _OPTIONS[key]
            values[key] = read(described[key], key)
    return LAYERS[kind](**values)


# ---------------------------------------------------------------- layers in whole numbers

Narrow = Quantised | QuantisedConv | QuantisedGru | Readout
_WHOLE = (Quantised.kind, QuantisedConv.kind, QuantisedGru.kind, Readout.kind)
_STORED = {"weight": np.int8, "bias": np.int32, "multiplier": np.uint8, "shift": np.uint8}  # weight_x as weight


def _narrow_to_arrays(place: str, layer: Narrow, arrays: dict[str, Array]) -> dict[str, Any]:
    """The same for a quantised layer; weights of 4 and 2 bits lie packed, raised so that none is negative."""
    described: dict[str, Any] = {"type": layer.kind}
    if problem := layer.problem():
        raise InputError(f"{printable(problem)}: its numbers cannot be stored. Quantise the policy again.")
    bits = storage_bits(layer.width)
    for entry in fields(layer):
        value, stem = getattr(layer, entry.name), entry.name.partition("_")[0]
        if not isinstance(value, np.ndarray):
            described[entry.name] = value
        elif stem == "weight" and bits < 8:
            arrays[f"{place}.{entry.name}"] = packing.pack(value + 2 ** (bits - 1), bits)
        else:
            arrays[f"{place}.{entry.name}"] = value.astype(_STORED.get(stem, np.float32))
    if bits == 8:
        return described
    if isinstance(layer, QuantisedConv):  # what the packed weights do not say
        return described | {"window": layer.window, "channels": int(layer.weight.shape[2])}
    return described | {"inputs": layer.inputs}


def _narrow_weight(described: Mapping[str, Any], key: str, stored: Floats, sizes: Callable[[str], int]) -> Floats:
    """Weights from what `_narrow_to_arrays` stored; `sizes` says how many numbers another array of the layer holds."""
    width = word(described["width"], "width")
    if width not in BITS:
        raise unknown("width", width, BITS)
    if (bits := storage_bits(width)) == 8:
        return stored
    packed = np.clip(stored, 0, 255).astype(np.uint8)
    if not (packed == stored).all():
        raise ValueError("packed weights that are no bytes")
    return packing.signed(packed, bits, _packed_shape(described, key, sizes))


def _packed_shape(described: Mapping[str, Any], key: str, sizes: Callable[[str], int]) -> tuple[int, ...]:
    if described["type"] == QuantisedConv.kind:
        window, channels = wholes(2)(described["window"], "window"), whole(described["channels"], "channels")
        return (*window, channels, sizes("bias"))
    if key == "weight_h":
        return sizes("bias_h") // 3, sizes("bias_h")
    return whole(described["inputs"], "inputs"), sizes(key.replace("weight", "bias"))


# ---------------------------------------------------------------- reading descriptions

_RANKS = {"weight": 2, "bias": 1, "weight_x": 2, "weight_h": 2, "bias_x": 1, "bias_h": 1, "spread": 2, "threshold": 1, "leaves": 2, "multiplier": 1, "multiplier_x": 1, "multiplier_h": 1, "shift": 1, "shift_x": 1, "shift_h": 1, "offset": 1, "scale": 1}  # fmt: skip
_WEIGHT_RANKS = {"conv": 4, "quantised_conv": 4, "norm": 1, "tree": 1, "sparse": 1}


def word(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    raise InputError(f"{key} is {printable(repr(value))}. Allowed: a word. Export the policy again.")


def whole(value: Any, key: str) -> int:
    if type(value) is int and abs(value) < 2**63:
        return value
    raise InputError(f"{key} is {printable(repr(value))}. Allowed: a whole number. Export the policy again.")


def number(value: Any, key: str) -> float:
    if type(value) in (int, float) or value in ("inf", "-inf"):
        return float(value)
    raise InputError(f"{key} is {printable(repr(value))}. Allowed: a number. Export the policy again.")


def wholes(count: int) -> Callable[[Any, str], tuple[int, ...]]:
    def read(value: Any, key: str) -> tuple[int, ...]:
        if isinstance(value, list) and len(value) == count:
            return tuple(whole(v, key) for v in value)
        raise InputError(f"{key} is {printable(repr(value))}. Allowed: {count} whole numbers. Export the policy again.")

    return read


def _places(value: Any, key: str) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(whole(v, key) for v in value)
    raise InputError(f"{key} is {printable(repr(value))}. Allowed: whole numbers. Export the policy again.")


def _reads(value: Any, key: str) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, list):
        return tuple(_places(v, key) for v in value)
    raise InputError(f"{key} is {printable(repr(value))}. Allowed: lists of whole numbers. Export the policy again.")


def _spans(value: Any, key: str) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, list):
        return tuple(wholes(2)(v, key) for v in value)
    raise InputError(f"{key} is {printable(repr(value))}. Allowed: pairs of whole numbers. Export the policy again.")


_OPTIONS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("activation", "layout", "method"), word),
    **dict.fromkeys(("channels", "count", "width", "says", "times"), whole),
    **dict.fromkeys(("size", "stride", "window"), wholes(2)),
    **dict.fromkeys(("epsilon", "limit"), number),
    "padding": wholes(4),
    "spans": _spans,
    "children": _spans,
    "reads": _reads,
    "biased": _places,
}


def number_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
