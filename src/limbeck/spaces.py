"""Gymnasium spaces as JSON, as heads, and as flat vectors: the one place that knows each kind of space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from limbeck.contracts import Array, Floats, Head, HeadKind, Observation, View
from limbeck.errors import InputError

# ---------------------------------------------------------------- JSON


def to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """A space as plain JSON values; infinite bounds become the strings "inf" and "-inf"."""
    match space:
        case spaces.Box():
            return {
                "type": "Box",
                "shape": list(space.shape),
                "dtype": str(space.dtype),
                "low": _bounds_to_json(space.low),
                "high": _bounds_to_json(space.high),
            }
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
        case spaces.Dict():
            return {"type": "Dict", "spaces": {k: to_json(v) for k, v in space.spaces.items()}}
    raise unsupported("space", space)


def from_json(data: dict[str, Any]) -> gym.Space[Any]:
    """The space that `to_json` wrote."""
    match data["type"]:
        case "Box":
            shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
            low, high = (_bounds_from_json(data[k], shape, dtype) for k in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "Discrete":
            return spaces.Discrete(data["n"], start=data["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
        case "MultiBinary":
            return spaces.MultiBinary(data["shape"])
        case "Dict":
            return spaces.Dict({k: from_json(v) for k, v in data["spaces"].items()})
    raise InputError(
        f"unknown space {data['type']!r} in a policy's description. Allowed: Box, Discrete, MultiDiscrete, MultiBinary, Dict."
    )


def _bounds_to_json(bounds: Array) -> Any:
    flat = [float(v) if np.isfinite(v) else str(float(v)) for v in np.asarray(bounds, np.float64).reshape(-1)]
    return flat[0] if len(set(flat)) == 1 else flat


def _bounds_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    values = np.array([float(v) for v in (value if isinstance(value, list) else [value])])
    return np.broadcast_to(values if values.size == 1 else values.reshape(shape), shape).astype(dtype)


def unsupported(what: str, space: object) -> InputError:
    return InputError(
        f"{what} {space} is not supported. Allowed: Box, Discrete, MultiDiscrete, MultiBinary, and Dict of these for observations."
    )


# ---------------------------------------------------------------- heads


def head_for(space: gym.Space[Any], kind: HeadKind | None = None) -> Head:
    """The head that acts in `space`; `kind` picks among those that fit (default: categorical or deterministic)."""
    match space:
        case spaces.Discrete():
            head = Head(kind or "categorical", (int(space.n),), start=(int(space.start),), shape=())
            allowed: tuple[str, ...] = ("categorical", "q")
        case spaces.MultiDiscrete():
            sizes = tuple(int(n) for n in space.nvec.reshape(-1))
            head = Head(
                kind or "multicategorical",
                sizes,
                start=tuple(int(s) for s in space.start.reshape(-1)),
                shape=space.nvec.shape,
            )
            allowed = ("multicategorical",)
        case spaces.MultiBinary():
            head = Head(kind or "bernoulli", (int(np.prod(space.shape)),), shape=tuple(space.shape))
            allowed = ("bernoulli",)
        case spaces.Box():
            n = int(np.prod(space.shape))
            low, high = (tuple(float(v) for v in np.asarray(b).reshape(-1)) for b in (space.low, space.high))
            head = Head(kind or "deterministic", (n,), low, high, shape=tuple(space.shape))
            allowed = ("gaussian", "squashed", "deterministic", "tanh")
        case _:
            raise unsupported("action space", space)
    if head.kind not in allowed:
        raise InputError(f"a {head.kind} head cannot act in {space}. Allowed there: {', '.join(allowed)}.")
    if head.kind in ("squashed", "tanh") and not head.bounded:
        raise InputError(
            f"a {head.kind} head needs finite action bounds, given {space}. Use a gaussian or deterministic head."
        )
    return head


# ---------------------------------------------------------------- flat vectors


def flat_size(space: gym.Space[Any], view: View = View()) -> int:
    """O: length of the flat observation after the view's keys and indices, before history."""
    if isinstance(space, spaces.Dict):
        full = sum(_width(space[k]) for k in _keys(space, view))
    else:
        full = _width(space)
    return full if view.indices is None else len(view.indices)


def flatten(obs: Observation, space: gym.Space[Any], view: View = View()) -> Floats:
    """[B, ...] observations as [B, O] float32: one-hot for discrete parts, keys in the view's order, indices last."""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict):
            raise InputError(f"expected a dict observation for {space}, given {type(obs).__name__}.")
        flat = np.concatenate([_flat(np.asarray(obs[k]), space[k]) for k in _keys(space, view)], axis=1)
    else:
        flat = _flat(np.asarray(obs), space)
    return flat if view.indices is None else np.ascontiguousarray(flat[:, list(view.indices)])


def mask_of(obs: Observation, view: View) -> NDArray[np.bool_] | None:
    """[B, W] which actions are allowed, None for views without a mask."""
    if view.mask is None:
        return None
    if not isinstance(obs, dict):
        raise InputError(f"the view's mask {view.mask!r} needs a dict observation, given {type(obs).__name__}.")
    mask = np.asarray(obs[view.mask])
    return mask.reshape(len(mask), -1) > 0


def input_size(space: gym.Space[Any], view: View) -> int:
    """Numbers an artefact is fed per step: the flat observation of the view's keys, then the action mask."""
    masks = _width(space[view.mask]) if view.mask is not None and isinstance(space, spaces.Dict) else 0
    return flat_size(space, View(keys=view.keys, mask=view.mask)) + masks


def input_rows(obs: Observation, space: gym.Space[Any], view: View) -> Floats:
    """[B, I] float32 rows as `input_size` describes them."""
    flat, mask = flatten(obs, space, View(keys=view.keys, mask=view.mask)), mask_of(obs, view)
    return flat if mask is None else np.concatenate([flat, mask.astype(np.float32)], axis=1)


def check_view(space: gym.Space[Any], view: View) -> None:
    """Refuse keys, indices or a mask that the observation does not have."""
    if view.mask is not None and (not isinstance(space, spaces.Dict) or view.mask not in space.spaces):
        raise InputError(f"the view's action mask {view.mask!r} is not in {space}. Name a key of the observation.")
    if view.padding not in ("first", "zero"):
        raise InputError(f"view padding {view.padding!r} is unknown. Allowed: first, zero.")
    if view.keys is not None:
        if not isinstance(space, spaces.Dict):
            raise InputError(
                f"view keys {view.keys} need a Dict observation, given {space}. Use indices, or drop the keys."
            )
        for key in view.keys:
            if key not in space.spaces:
                raise InputError(
                    f"view key {key!r} is not in the observation. Allowed: {', '.join(sorted(space.spaces))}."
                )
    width = flat_size(space, View(keys=view.keys, mask=view.mask))
    bad = [i for i in view.indices or () if not 0 <= i < width]
    if bad:
        raise InputError(
            f"view index {bad[0]} is outside the flat observation of {width} numbers. Allowed: 0 to {width - 1}."
        )
    if not 1 <= view.history <= 1024:
        raise InputError(f"view history {view.history} is out of range. Allowed: 1 to 1024.")


def _keys(space: spaces.Dict, view: View) -> list[str]:
    return list(view.keys) if view.keys is not None else sorted(k for k in space.spaces if k != view.mask)


def _width(space: gym.Space[Any]) -> int:
    match space:
        case spaces.Discrete():
            return int(space.n)
        case spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case spaces.Box() | spaces.MultiBinary():
            return int(np.prod(space.shape))
    raise unsupported("observation space", space)


def _flat(obs: Array, space: gym.Space[Any]) -> Floats:
    batch = obs.shape[0]
    match space:
        case spaces.Discrete():
            return np.eye(int(space.n), dtype=np.float32)[obs.reshape(batch).astype(np.int64) - int(space.start)]
        case spaces.MultiDiscrete():
            values = obs.reshape(batch, -1).astype(np.int64) - space.start.reshape(-1)
            parts = [np.eye(int(n), dtype=np.float32)[values[:, i]] for i, n in enumerate(space.nvec.reshape(-1))]
            return np.concatenate(parts, axis=1)
        case spaces.Box() | spaces.MultiBinary():
            if obs.shape[1:] != space.shape:
                raise InputError(f"observation of shape {obs.shape[1:]} does not fit the space's {space.shape}.")
            return np.ascontiguousarray(obs.reshape(batch, -1), dtype=np.float32)
    raise unsupported("observation space", space)
