"""A policy on disk: one safetensors file whose metadata describes the whole policy and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from limbeck import layerfiles, spaces, storage
from limbeck.contracts import (
    LEVELS,
    Array,
    Blueprint,
    Conv,
    Dense,
    Floats,
    Gru,
    Head,
    HeadKind,
    Layer,
    Normaliser,
    Parallel,
    Pool,
    Quantise,
    QuantisedConv,
    Range,
    Shared,
    Spec,
    View,
    chain_problem,
)
from limbeck.contracts.quantised import SCALES
from limbeck.errors import InputError, printable
from limbeck.layerfiles import number, number_to_json, whole, word

FORMAT = "limbeck-policy-1"
LARGEST = 2**26  # numbers in one row of a step: 256 MiB; what needs more is a mistake or an attack
DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip  # what a description that is not ours can raise on its way through json, Gymnasium and numpy
FOLDABLE = 10.0  # |mean| / scale up to which folding loses less than float32 rounding of the layer itself


def save(blueprint: Blueprint, path: Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write the policy; `provenance` is plain data kept beside it (recipe, seed, measured return)."""
    arrays: dict[str, Array] = {}
    description = {
        "format": FORMAT,
        "name": blueprint.name,
        "task": blueprint.spec.name,
        "agents": blueprint.spec.agents,
        "observation_space": spaces.to_json(blueprint.spec.observation_space),
        "action_space": spaces.to_json(blueprint.spec.action_space),
        "head": head_to_json(blueprint.head),
        "view": view_to_json(blueprint.view),
        "layers": layerfiles.to_arrays("layers", blueprint.layers, arrays),
        "value_layers": layerfiles.to_arrays("value_layers", blueprint.value_layers, arrays),
    }
    if blueprint.normaliser is not None:
        for key in ("mean", "scale"):
            arrays[f"normaliser.{key}"] = np.asarray(getattr(blueprint.normaliser, key), np.float32)
        description["normaliser_clip"] = number_to_json(blueprint.normaliser.clip)
    if blueprint.seen is not None:
        for key in ("low", "high"):
            arrays[f"seen.{key}"] = np.asarray(getattr(blueprint.seen, key), np.float32)
    meta = {"limbeck": json.dumps(description), "provenance": json.dumps(storage.plain(provenance or {}))}
    storage.write_arrays(path, arrays, meta)


def stored_bytes(blueprint: Blueprint) -> int:
    """Bytes of the deployed policy's numbers as they lie in its file, without critic, description and what was seen."""
    arrays: dict[str, Array] = {}
    layerfiles.to_arrays("layers", blueprint.layers, arrays)
    norm = blueprint.normaliser
    statistics = 0 if norm is None else 4 * (norm.mean.size + norm.scale.size)
    return sum(int(a.nbytes) for a in arrays.values()) + statistics


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
        return _described(described, _sound(arrays, name)), json.loads(meta.get("provenance", "{}"))
    except DAMAGE as error:
        raise InputError(
            f"{printable(name)} is damaged: {type(error).__name__} {printable(error)}. Export the policy again."
        ) from error


def _described(described: Mapping[str, Any], arrays: Mapping[str, Array]) -> Blueprint:
    normaliser = None
    if "normaliser.mean" in arrays:
        clip = float(described["normaliser_clip"])
        normaliser = Normaliser(arrays["normaliser.mean"], arrays["normaliser.scale"], clip)
    observed, acted = (spaces.from_json(described[k]) for k in ("observation_space", "action_space"))
    blueprint = Blueprint(
        spec=Spec(observed, acted, word(described["task"], "task"), whole(described.get("agents", 1), "agents")),
        head=head_from_json(described["head"]),
        layers=layerfiles.from_arrays("layers", described["layers"], arrays),
        view=view_from_json(described["view"]),
        normaliser=normaliser,
        value_layers=layerfiles.from_arrays("value_layers", described["value_layers"], arrays),
        name=word(described["name"], "name"),
        seen=Range(arrays["seen.low"], arrays["seen.high"]) if "seen.low" in arrays else None,
    )
    check(blueprint)
    return blueprint


def _sound(arrays: Mapping[str, Array], name: str) -> dict[str, Floats]:
    """The arrays as float32; numbers that are none are refused."""
    sound = {}
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{printable(name)}: {printable(key)} holds {array.dtype}. Allowed: real numbers.")
        with np.errstate(over="ignore"):
            sound[key] = array.astype(np.float32)
        if not np.isfinite(sound[key]).all():
            raise InputError(
                f"{printable(name)}: {printable(key)} holds NaN or infinite numbers. Export the policy again from a sound checkpoint."
            )
    return sound


def check(blueprint: Blueprint) -> None:
    """Every shape against the next, the first against the view, the last against the head, the head against the actions."""
    _check_head(blueprint.head, blueprint.spec)
    spaces.check_view(blueprint.spec.observation_space, blueprint.view)
    _check_mask(blueprint)
    width = spaces.flat_size(blueprint.spec.observation_space, blueprint.view)
    norm = blueprint.normaliser
    if norm is not None and not norm.mean.shape == norm.scale.shape == (width,):
        raise InputError(
            f"normaliser of {norm.mean.shape} and {norm.scale.shape} numbers against observations of {width}. They must agree."
        )
    if norm is not None and not norm.clip > 0:
        raise InputError(f"the normaliser clips at {norm.clip}. Allowed: positive numbers.")
    _check_seen(blueprint.seen, width)
    inputs = width * blueprint.view.history
    for layers, outputs in ((blueprint.layers, blueprint.head.width), (blueprint.value_layers, 1)):
        if problem := chain_problem(layers, inputs, outputs):
            raise InputError(
                f"{printable(problem)}: the policy does not fit {blueprint.spec.observation_space} and {blueprint.spec.action_space}."
            )
    largest = max([inputs, *map(_largest, (*blueprint.layers, *blueprint.value_layers))])
    if largest > LARGEST:
        raise InputError(f"a step of the policy needs a row of {largest:,} numbers. Allowed: up to {LARGEST:,}.")


def _check_seen(seen: Range | None, width: int) -> None:
    if seen is None:
        return
    if not seen.low.shape == seen.high.shape == (width,):
        raise InputError(
            f"what was seen has {seen.low.shape} and {seen.high.shape} numbers against observations of {width}. They must agree."
        )
    if not (seen.low <= seen.high).all():
        raise InputError("what was seen has a least value above its largest, or NaN. Export the policy again.")


def _check_mask(blueprint: Blueprint) -> None:
    head, view, space = blueprint.head, blueprint.view, blueprint.spec.observation_space
    if view.mask is None:
        return
    if not head.discrete:
        raise InputError(f"an action mask on a {head.kind} head. Allowed on discrete actions: drop the view's mask.")
    width = spaces.flat_size(space, View(keys=(view.mask,)))
    if width != head.width:
        raise InputError(
            f"the view's mask {printable(view.mask)!r} holds {width} numbers for {head.width} actions. Name one number per action."
        )


def _largest(layer: Layer) -> int:
    """The longest row that running a layer needs, that of all windows of an image side by side included."""
    match layer:
        case Conv() | QuantisedConv():
            return max(layer.outputs, math.prod(layer.out_size) * math.prod(layer.weight.shape[:3]))
        case Pool():
            return max(layer.outputs, math.prod(layer.out_size) * math.prod(layer.window) * layer.channels)
        case Parallel():
            return max(layer.outputs, *(_largest(inner) for branch in layer.branches for inner in branch), 0)
        case Shared():
            return max(layer.outputs, layer.count * max(map(_largest, layer.layers)))
    return max(layer.inputs, layer.outputs)


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
    cancel and the student would no longer be the one that was trained. A quantiser subtracts before it multiplies, so
    it takes any normaliser whose clip it does itself; where an observation lies on the border of two levels, it may then
    be the other one.
    """
    norm, view = blueprint.normaliser, blueprint.view
    if norm is None or not blueprint.layers:
        return blueprint
    first = blueprint.layers[0]
    if not (_clips(first, norm.clip) if isinstance(first, Quantise) else _foldable(norm)):
        return blueprint
    if view.history > 1 and view.padding == "zero" and norm.mean.any():
        return blueprint  # the zeros before an episode's start are normalised numbers: unfolded they would be others
    mean, scale = (np.tile(a.astype(np.float64), view.history) for a in (norm.mean, norm.scale))
    folded = _folded(first, mean, scale)
    return blueprint if folded is None else replace(blueprint, layers=(folded, *blueprint.layers[1:]), normaliser=None)


def _foldable(norm: Normaliser) -> bool:
    return math.isinf(norm.clip) and foldable(norm.mean, norm.scale)


def _clips(layer: Quantise, clip: float) -> bool:
    """Whether all that lies beyond +-clip has the outermost levels anyway."""
    low, high = (-clip - layer.offset) * layer.scale, (clip - layer.offset) * layer.scale
    return bool((low <= -LEVELS).all() and (high >= LEVELS).all())


def _folded(layer: Layer, mean: Array, scale: Array) -> Layer | None:
    """The layer for raw numbers that does what `layer` does for normalised ones; None where it cannot."""
    match layer:
        case Dense():
            weight, bias = absorbed(layer.weight, layer.bias, mean, scale)
            return replace(layer, weight=weight, bias=bias)
        case Gru():
            weight, bias = absorbed(layer.weight_x, layer.bias_x, mean, scale)
            return replace(layer, weight_x=weight, bias_x=bias)
        case Quantise() if _repeats((mean, scale), layer.offset.size):
            mean, scale = mean[: layer.offset.size], scale[: layer.offset.size]
            steps = layer.scale / scale
            if not ((steps >= SCALES[0]) & (steps <= SCALES[1])).all():
                return None
            offset = mean + layer.offset.astype(np.float64) * scale
            return replace(layer, offset=offset.astype(np.float32), scale=steps.astype(np.float32))
        case Conv() if (
            layer.layout == "hwc" and not any(layer.padding) and _repeats((mean, scale), layer.weight.shape[2])
        ):
            places = layer.weight.shape[0] * layer.weight.shape[1]
            channels = (np.tile(a[: layer.weight.shape[2]], places) for a in (mean, scale))
            weight, bias = absorbed(layer.weight.reshape(-1, layer.weight.shape[3]), layer.bias, *channels)
            return replace(layer, weight=weight.reshape(layer.weight.shape), bias=bias)
        case Shared() if _repeats((mean, scale), layer.layers[0].inputs):
            size = layer.layers[0].inputs
            inner = _folded(layer.layers[0], mean[:size], scale[:size])
            return None if inner is None else replace(layer, layers=(inner, *layer.layers[1:]))
    return None


def _repeats(arrays: tuple[Array, ...], size: int) -> bool:
    """Whether every stretch of `size` numbers is the same."""
    return all((a.reshape(-1, size) == a[:size]).all() for a in arrays)


def foldable(mean: Array, scale: Array) -> bool:
    """Whether folding these loses less than float32 rounding of the layer itself."""
    return bool((np.abs(mean) <= FOLDABLE * scale).all())


def absorbed(weight: Floats, bias: Floats, mean: Array, scale: Array) -> tuple[Floats, Floats]:
    """Weights on x of a layer that was made for (x - mean) / scale, in float64 until the end."""
    wide = weight.astype(np.float64) / scale[:, None]
    return wide.astype(np.float32), (bias - mean @ wide).astype(np.float32)


def head_to_json(head: Head) -> dict[str, Any]:
    described = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(head).items()}
    return {**described, "low": [number_to_json(v) for v in head.low], "high": [number_to_json(v) for v in head.high]}


def head_from_json(data: Mapping[str, Any]) -> Head:
    bounds = {k: tuple(number(float(v), k) for v in data[k]) for k in ("low", "high")}
    wholes = {k: tuple(whole(v, k) for v in data[k]) for k in ("sizes", "start", "shape")}
    return Head(data["kind"], low=bounds["low"], high=bounds["high"], **wholes)


def view_to_json(view: View) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(view).items()}


def view_from_json(data: Mapping[str, Any]) -> View:
    """The view that `view_to_json` wrote, or an older version, before there were frame stacks and masks."""
    keys, indices, mask = data["keys"], data["indices"], data.get("mask")
    return View(
        keys=None if keys is None else tuple(word(k, "a view's key") for k in keys),
        indices=None if indices is None else tuple(whole(i, "a view's index") for i in indices),
        history=whole(data["history"], "the view's history"),
        noise=number(data.get("noise", 0.0), "the view's noise"),
        padding=data.get("padding", "first"),
        mask=None if mask is None else word(mask, "the view's mask"),
    )
