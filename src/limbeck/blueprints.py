"""A policy on disk: one safetensors file whose metadata describes the whole policy and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import (
    LAYERS,
    Array,
    Blueprint,
    Dense,
    Floats,
    Gru,
    Head,
    HeadKind,
    Layer,
    Normaliser,
    Spec,
    View,
    chain_problem,
)
from limbeck.errors import InputError, printable

FORMAT = "limbeck-policy-1"
FOLDABLE = 10.0  # |mean| / scale up to which folding loses less than float32 rounding of the layer itself


def save(blueprint: Blueprint, path: Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write the policy; `provenance` is plain data kept beside it (recipe, seed, measured return)."""
    arrays: dict[str, Array] = {}
    description = {
        "format": FORMAT,
        "name": blueprint.name,
        "task": blueprint.spec.name,
        "observation_space": spaces.to_json(blueprint.spec.observation_space),
        "action_space": spaces.to_json(blueprint.spec.action_space),
        "head": head_to_json(blueprint.head),
        "view": storage.plain(blueprint.view),
        "layers": _layers_to_arrays("layers", blueprint.layers, arrays),
        "value_layers": _layers_to_arrays("value_layers", blueprint.value_layers, arrays),
    }
    if blueprint.normaliser is not None:
        arrays["normaliser.mean"], arrays["normaliser.scale"] = blueprint.normaliser.mean, blueprint.normaliser.scale
        description["normaliser_clip"] = _number_to_json(blueprint.normaliser.clip)
    meta = {"limbeck": json.dumps(description), "provenance": json.dumps(storage.plain(provenance or {}))}
    storage.write_arrays(path, arrays, meta)


def load(path: Path) -> tuple[Blueprint, dict[str, Any]]:
    """The policy and its provenance. Raises InputError for damage, unknown formats and numbers that are not finite."""
    arrays, meta = storage.read_arrays(path)
    return from_arrays(arrays, meta, str(path))


def from_arrays(arrays: Mapping[str, Array], meta: Mapping[str, str], name: str) -> tuple[Blueprint, dict[str, Any]]:
    if "limbeck" not in meta:
        raise InputError(
            f"{printable(name)} holds arrays but no Limbeck policy. Allowed: files written by Limbeck, or a format of `limbeck inspect --help`."
        )
    try:
        described = json.loads(meta["limbeck"])
        if described["format"] != FORMAT:
            raise InputError(
                f"{printable(name)} was written in format {printable(described['format'])}, this version reads {FORMAT}. Update limbeck."
            )
        for key, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(
                    f"{printable(name)}: {printable(key)} holds NaN or infinite numbers. Export the policy again from a sound checkpoint."
                )
        normaliser = None
        if "normaliser.mean" in arrays:
            clip = float(described["normaliser_clip"])
            normaliser = Normaliser(arrays["normaliser.mean"], arrays["normaliser.scale"], clip)
        blueprint = Blueprint(
            spec=Spec(
                spaces.from_json(described["observation_space"]),
                spaces.from_json(described["action_space"]),
                described["task"],
            ),
            head=head_from_json(described["head"]),
            layers=_layers_from_arrays("layers", described["layers"], arrays),
            view=_view_from_json(described["view"]),
            normaliser=normaliser,
            value_layers=_layers_from_arrays("value_layers", described["value_layers"], arrays),
            name=described["name"],
        )
        check(blueprint)
        return blueprint, json.loads(meta.get("provenance", "{}"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{printable(name)} is damaged: {type(error).__name__} {printable(error)}. Export the policy again."
        ) from error


def check(blueprint: Blueprint) -> None:
    """Every shape against the next, the first against the view, the last against the head, the head against the actions."""
    _check_head(blueprint.head, blueprint.spec)
    spaces.check_view(blueprint.spec.observation_space, blueprint.view)
    width = spaces.flat_size(blueprint.spec.observation_space, blueprint.view)
    if blueprint.normaliser is not None and blueprint.normaliser.mean.shape != (width,):
        raise InputError(
            f"normaliser of {blueprint.normaliser.mean.shape} numbers against observations of {width}. They must agree."
        )
    inputs = width * blueprint.view.history
    for layers, outputs in ((blueprint.layers, blueprint.head.width), (blueprint.value_layers, 1)):
        if problem := chain_problem(layers, inputs, outputs):
            raise InputError(
                f"{problem}: the policy does not fit {blueprint.spec.observation_space} and {blueprint.spec.action_space}."
            )


def _check_head(head: Head, spec: Spec) -> None:
    """A head from a file must be one that acts in its action space: its words and numbers reach exported code."""
    if head.kind not in get_args(HeadKind):
        raise InputError(f"unknown head {printable(head.kind)!r}. Allowed: {', '.join(get_args(HeadKind))}.")
    wanted = spaces.head_for(spec.action_space, head.kind)
    start = head.start or (0,) * len(wanted.start)
    if (head.sizes, head.low, head.high, start, head.shape) != (
        wanted.sizes,
        wanted.low,
        wanted.high,
        wanted.start,
        wanted.shape,
    ):
        raise InputError(f"the policy's {head.kind} head does not act in {spec.action_space}. Export the policy again.")


def fold(blueprint: Blueprint) -> Blueprint:
    """The same policy with an unclipped normaliser folded into its first layer: fewer stored numbers, same function.

    Observations far from zero for their spread (a temperature in kelvin) keep their normaliser: folded, float32 would
    cancel and the student would no longer be the one that was trained.
    """
    norm = blueprint.normaliser
    if norm is None or not math.isinf(norm.clip) or not blueprint.layers:
        return blueprint
    if (np.abs(norm.mean) > FOLDABLE * norm.scale).any():
        return blueprint
    history = blueprint.view.history
    mean, scale = (np.tile(a.astype(np.float64), history) for a in (norm.mean, norm.scale))
    head = blueprint.layers[0]
    if isinstance(head, Dense):
        weight, bias = _absorbed(head.weight, head.bias, mean, scale)
        first: Layer = replace(head, weight=weight, bias=bias)
    elif isinstance(head, Gru):
        weight, bias = _absorbed(head.weight_x, head.bias_x, mean, scale)
        first = replace(head, weight_x=weight, bias_x=bias)
    else:
        return blueprint
    return replace(blueprint, layers=(first, *blueprint.layers[1:]), normaliser=None)


def _absorbed(weight: Floats, bias: Floats, mean: Array, scale: Array) -> tuple[Floats, Floats]:
    """Weights on x of a layer that was made for (x - mean) / scale, in float64 until the end."""
    wide = weight.astype(np.float64) / scale[:, None]
    return wide.astype(np.float32), (bias - mean @ wide).astype(np.float32)


def _layers_to_arrays(prefix: str, layers: tuple[Layer, ...], arrays: dict[str, Array]) -> list[dict[str, Any]]:
    """Layers as plain tables; their numbers go into `arrays` under the layer's place, as layers.0.weight."""
    return [_layer_to_arrays(f"{prefix}.{i}", layer, arrays) for i, layer in enumerate(layers)]


def _layer_to_arrays(place: str, layer: Layer, arrays: dict[str, Array]) -> dict[str, Any]:
    described: dict[str, Any] = {"type": layer.kind}
    for entry in fields(layer):
        value = getattr(layer, entry.name)
        if isinstance(value, np.ndarray):
            arrays[f"{place}.{entry.name}"] = np.asarray(value, np.float32)
        elif entry.name == "layers":
            described["layers"] = _layers_to_arrays(f"{place}.layers", value, arrays)
        elif entry.name == "branches":
            described["branches"] = [
                _layers_to_arrays(f"{place}.branches.{k}", branch, arrays) for k, branch in enumerate(value)
            ]
        else:
            described[entry.name] = _number_to_json(value) if isinstance(value, float) else value
    return described


def _layers_from_arrays(prefix: str, described: list[dict[str, Any]], arrays: Mapping[str, Array]) -> tuple[Layer, ...]:
    return tuple(_layer_from_arrays(f"{prefix}.{i}", entry, arrays) for i, entry in enumerate(described))


def _layer_from_arrays(place: str, described: dict[str, Any], arrays: Mapping[str, Array]) -> Layer:
    if described["type"] not in LAYERS:
        raise InputError(f"unknown layer {printable(described['type'])!r}. Allowed: {', '.join(LAYERS)}.")
    values: dict[str, Any] = {}
    for entry in fields(LAYERS[described["type"]]):
        key = entry.name
        if f"{place}.{key}" in arrays:
            values[key] = arrays[f"{place}.{key}"]
        elif key == "layers":
            values[key] = _layers_from_arrays(f"{place}.layers", described[key], arrays)
        elif key == "branches":
            values[key] = tuple(
                _layers_from_arrays(f"{place}.branches.{k}", branch, arrays) for k, branch in enumerate(described[key])
            )
        elif key in described:
            values[key] = _plain(described[key], key)
    return LAYERS[described["type"]](**values)


def _plain(value: Any, key: str) -> Any:
    """An option of a layer from a file: a word, a number, whole numbers, or pairs of them; nothing else."""
    if isinstance(value, list):
        return tuple(_plain(inner, key) for inner in value)
    if key in ("limit", "epsilon"):
        return float(value)
    if type(value) is int or (isinstance(value, str) and key in ("activation", "layout", "method")):
        return value
    raise InputError(f"a layer's {printable(key)} is {printable(value)!r}. Export the policy again.")


def head_to_json(head: Head) -> dict[str, Any]:
    described = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(head).items()}
    return {**described, "low": [_number_to_json(v) for v in head.low], "high": [_number_to_json(v) for v in head.high]}


def head_from_json(data: Mapping[str, Any]) -> Head:
    bounds = {k: tuple(float(v) for v in data[k]) for k in ("low", "high")}
    return Head(
        data["kind"], tuple(data["sizes"]), bounds["low"], bounds["high"], tuple(data["start"]), tuple(data["shape"])
    )


def _view_from_json(data: Mapping[str, Any]) -> View:
    return View(
        keys=_tuple(data["keys"]),
        indices=_tuple(data["indices"]),
        history=int(data["history"]),
        noise=float(data["noise"]),
        padding=data.get("padding", "first"),  # files written before there were frame stacks and masks
        mask=data.get("mask"),
    )


def _number_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _tuple(values: Any) -> Any:
    return None if values is None else tuple(values)
