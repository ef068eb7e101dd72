"""A policy on disk: one safetensors file whose metadata describes the whole policy and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import (
    ACTIVATIONS,
    Array,
    Blueprint,
    Dense,
    Gru,
    Head,
    HeadKind,
    Layer,
    Normaliser,
    Spec,
    View,
    layer_arrays,
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
        view = described["view"]
        blueprint = Blueprint(
            spec=Spec(
                spaces.from_json(described["observation_space"]),
                spaces.from_json(described["action_space"]),
                described["task"],
            ),
            head=head_from_json(described["head"]),
            layers=_layers_from_arrays("layers", described["layers"], arrays),
            view=View(_tuple(view["keys"]), _tuple(view["indices"]), int(view["history"]), float(view["noise"])),
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
        size = inputs
        for layer in layers:
            given = layer.weight.shape[0] if isinstance(layer, Dense) else layer.weight_x.shape[0]
            if given != size:
                raise InputError(
                    f"a layer takes {given} numbers where {size} arrive: the policy does not fit {blueprint.spec.observation_space}."
                )
            size = layer.weight.shape[1] if isinstance(layer, Dense) else layer.size
            wanted = (
                ((given, size), (size,))
                if isinstance(layer, Dense)
                else ((given, 3 * size), (size, 3 * size), (3 * size,), (3 * size,))
            )
            if tuple(array.shape for array in layer_arrays(layer)) != wanted:
                raise InputError(
                    f"a layer's arrays have shapes {[a.shape for a in layer_arrays(layer)]}, allowed {list(wanted)}."
                )
        if layers and size != outputs:
            raise InputError(
                f"the last layer gives {size} numbers, the head needs {outputs}: the policy does not fit {blueprint.spec.action_space}."
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
    weight = head.weight if isinstance(head, Dense) else head.weight_x
    bias = head.bias if isinstance(head, Dense) else head.bias_x
    new_weight = weight.astype(np.float64) / scale[:, None]
    new_bias = (bias - mean @ new_weight).astype(np.float32)
    first: Layer
    if isinstance(head, Dense):
        first = Dense(new_weight.astype(np.float32), new_bias, head.activation)
    else:
        first = Gru(new_weight.astype(np.float32), head.weight_h, new_bias, head.bias_h)
    return _replace(blueprint, layers=(first, *blueprint.layers[1:]), normaliser=None)


def _replace(blueprint: Blueprint, **changes: Any) -> Blueprint:
    from dataclasses import replace

    return replace(blueprint, **changes)


def _layers_to_arrays(prefix: str, layers: tuple[Layer, ...], arrays: dict[str, Array]) -> list[dict[str, str]]:
    described = []
    for i, layer in enumerate(layers):
        names = ("weight", "bias") if isinstance(layer, Dense) else ("weight_x", "weight_h", "bias_x", "bias_h")
        arrays.update(
            {f"{prefix}.{i}.{n}": np.asarray(a, np.float32) for n, a in zip(names, layer_arrays(layer), strict=True)}
        )
        described.append(
            {"type": "dense", "activation": layer.activation} if isinstance(layer, Dense) else {"type": "gru"}
        )
    return described


def _layers_from_arrays(prefix: str, described: list[dict[str, str]], arrays: Mapping[str, Array]) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for i, entry in enumerate(described):
        if entry["type"] == "dense":
            if entry["activation"] not in ACTIVATIONS:
                raise InputError(
                    f"unknown activation {printable(entry['activation'])!r}. Allowed: {', '.join(ACTIVATIONS)}."
                )
            layers.append(Dense(arrays[f"{prefix}.{i}.weight"], arrays[f"{prefix}.{i}.bias"], entry["activation"]))
        else:
            layers.append(Gru(*(arrays[f"{prefix}.{i}.{n}"] for n in ("weight_x", "weight_h", "bias_x", "bias_h"))))
    return tuple(layers)


def head_to_json(head: Head) -> dict[str, Any]:
    described = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(head).items()}
    return {**described, "low": [_number_to_json(v) for v in head.low], "high": [_number_to_json(v) for v in head.high]}


def head_from_json(data: Mapping[str, Any]) -> Head:
    bounds = {k: tuple(float(v) for v in data[k]) for k in ("low", "high")}
    return Head(
        data["kind"], tuple(data["sizes"]), bounds["low"], bounds["high"], tuple(data["start"]), tuple(data["shape"])
    )


def _number_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _tuple(values: Any) -> Any:
    return None if values is None else tuple(values)
