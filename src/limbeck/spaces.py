"""Gymnasium spaces as JSON, as heads, and as flat vectors: the one place that knows each kind of space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from limbeck.contracts import Array, Floats, Head, HeadKind, Observation, View
from limbeck.errors import InputError

MASK = "action_mask"  # key of a Dict observation that says which actions are allowed (PettingZoo's word)

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
            shape, dtype = _shape(data["shape"]), np.dtype(data["dtype"])
            low, high = (_bounds_from_json(data[k], shape, dtype) for k in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "Discrete":
            return spaces.Discrete(data["n"], start=data["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
        case "MultiBinary":
            shape = _shape(data["shape"])
            return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
        case "Dict":
            return spaces.Dict({k: from_json(v) for k, v in data["spaces"].items()})
    raise InputError(
        f"unknown space {data['type']!r} in a policy's description. Allowed: Box, Discrete, MultiDiscrete, MultiBinary, Dict."
    )


LARGEST = 2**26  # numbers in one observation; a file may declare more than any machine holds


def _shape(shape: Any) -> tuple[int, ...]:
    given = tuple(shape)
    if any(type(n) is not int or n < 0 for n in given) or math.prod(given) > LARGEST:
        raise InputError(
            f"a space of shape {str(given)[:100]} in a policy's description. Allowed: up to {LARGEST:,} numbers."
        )
    return given


def _bounds_to_json(bounds: Array) -> Any:
    flat = [float(v) if np.isfinite(v) else str(float(v)) for v in np.asarray(bounds, np.float64).reshape(-1)]
    return flat[0] if len(set(flat)) == 1 else flat


def _bounds_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """One number for all entries, or one for each. Whole numbers are held within their type: 2**63 - 1 was written as a
    float and is read as 2**63."""
    given = [float(v) for v in (value if isinstance(value, list) else [value])]
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        values = np.array([int(min(max(v, least), most)) for v in given], dtype)
    else:
        values = np.array(given).astype(dtype)
    return np.broadcast_to(values if values.size == 1 and shape else values.reshape(shape), shape)


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


# ---------------------------------------------------------------- what an environment receives


def as_received(actions: Array, space: gym.Space[Any]) -> Array:
    """Executed actions [B, *shape] as the environment reads them: in the number type of its space, and inside a Box.

    Policies, data sets and exported files say float32, in which 0.3 is more than the 0.3 of a float64 bound; a Box of
    whole numbers takes the nearest one. Raises InputError for actions that are not numbers.

    >>> as_received(np.array([[3.7], [9.0]], np.float32), spaces.Box(0, 5, (1,), np.int64)).tolist()
    [[4], [5]]
    """
    if not isinstance(space, spaces.Box):
        return actions.astype(space.dtype)
    if np.isnan(actions).any():
        raise InputError(f"the policy says an action that is not a number in {space}. Give a policy of finite weights.")
    return within(actions, space.low, space.high)


def within(actions: Array, low: Array, high: Array) -> Array:
    """Numbers in the type of the bounds, and between them."""
    whole, values = low.dtype.kind in "iub", actions.astype(np.float64)
    inside = np.clip(np.rint(values) if whole else values, low, high)
    if not whole:
        return inside.astype(low.dtype)  # rounding keeps the order, and the bounds are of this type
    with np.errstate(invalid="ignore"):  # the largest int64 is 2**63 as a float, which is none
        return np.where(inside >= high, high, inside.astype(low.dtype))


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


# ---------------------------------------------------------------- images

LARGEST_RANGE = 65535.0  # declared bounds beyond it say nothing about the numbers that come


@dataclass(frozen=True)
class Image:
    """The stretch of a policy's input row that is a picture, after history."""

    begin: int  # of the row of O times history numbers
    end: int
    height: int
    width: int
    channels: int  # those of all frames of the history
    layout: Literal["hwc", "chw"]
    scale: float  # the largest number that the space declares; 1 where it declares none


def image_of(space: gym.Space[Any], view: View = View(), agents: int = 1) -> Image:
    """Where the picture lies in the rows that `flatten` and the view's history make.

    A picture is a Box or MultiBinary of two dimensions (one channel) or three, of which the smaller of the first and
    the last counts channels (the last if they are equal). H frames of one channel, or with channels first, lie one
    after another as one picture of H times the channels, oldest first. With `agents` the first dimension counts them
    and the row is one agent's. Raises InputError for none, for two, and for pictures that the view tears apart.

    >>> image_of(spaces.Box(0, 255, (84, 84), np.uint8), View(history=4))
    Image(begin=0, end=28224, height=84, width=84, channels=4, layout='chw', scale=255.0)
    """
    found = [part for part in _parts(space, view) if _image_shape(part[1], agents)]
    if len(found) != 1:
        has = f"{len(found)} pictures ({', '.join(repr(key) for key, _, _ in found)})" if found else "no picture"
        raise InputError(
            f"a convolution needs one picture, and the student sees {has} in {space}. "
            "Allowed: one Box of two or three dimensions. Pick it with keys, or use mlp or gru."
        )
    _, part, begin = found[0]
    size, whole, history = _width(part) // agents, flat_size(space, view) // agents, view.history
    if view.indices is not None:
        raise InputError(
            "a convolution cannot see a picture torn apart by indices. Drop the indices; keys are allowed."
        )
    if (history > 1 or agents > 1) and size != whole:
        raise InputError(
            f"a history of {history} and {agents} agents put other numbers between the frames of a picture. "
            "Pick the picture alone with keys, or use history 1 and one agent."
        )
    height, width, channels, layout = _image_shape(part, agents) or (0, 0, 0, "hwc")
    if history > 1 and channels > 1 and layout == "hwc":
        raise InputError(
            f"a history of {history} frames with {channels} channels in the last dimension does not lie as one picture. "
            "Put channels first, give one channel, or use history 1 and stack frames in the environment."
        )
    layout = "chw" if history > 1 else layout
    return Image(begin, begin + size * history, height, width, channels * history, layout, _scale(part))


def has_image(space: gym.Space[Any], view: View = View(), agents: int = 1) -> bool:
    """Whether `image_of` finds one."""
    try:
        image_of(space, view, agents)
    except InputError:
        return False
    return True


def _parts(space: gym.Space[Any], view: View) -> list[tuple[str, gym.Space[Any], int]]:
    """Key, space and first place in the flat row of everything the view's keys select."""
    named = [(k, space[k]) for k in _keys(space, view)] if isinstance(space, spaces.Dict) else [("", space)]
    begins = np.cumsum([0, *(_width(part) for _, part in named)])
    return [(key, part, int(begin)) for (key, part), begin in zip(named, begins[:-1], strict=True)]


def _image_shape(part: gym.Space[Any], agents: int) -> tuple[int, int, int, Literal["hwc", "chw"]] | None:
    """Height, width, channels, layout; None for what is no picture."""
    if not isinstance(part, spaces.Box | spaces.MultiBinary):
        return None
    shape = part.shape
    if agents > 1:
        if not shape or shape[0] != agents:
            return None
        shape = shape[1:]
    if len(shape) == 2:
        return shape[0], shape[1], 1, "hwc"
    if len(shape) != 3:
        return None
    if shape[2] <= shape[0]:
        return shape[0], shape[1], shape[2], "hwc"
    return shape[1], shape[2], shape[0], "chw"


def _scale(part: gym.Space[Any]) -> float:
    if not isinstance(part, spaces.Box) or part.dtype == np.bool_:
        return 1.0
    largest = max(float(np.abs(np.asarray(b, np.float64)).max()) for b in (part.low, part.high))
    return largest if math.isfinite(largest) and 0 < largest <= LARGEST_RANGE else 1.0


# ---------------------------------------------------------------- parts


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


def _one_hot(values: Array, n: int) -> Floats:
    rows = np.zeros((len(values), n), np.float32)
    rows[np.arange(len(values)), values] = 1
    return rows


def _flat(obs: Array, space: gym.Space[Any]) -> Floats:
    batch = obs.shape[0]
    match space:
        case spaces.Discrete():
            return _one_hot(obs.reshape(batch).astype(np.int64) - int(space.start), int(space.n))
        case spaces.MultiDiscrete():
            values = obs.reshape(batch, -1).astype(np.int64) - space.start.reshape(-1)
            parts = [_one_hot(values[:, i], int(n)) for i, n in enumerate(space.nvec.reshape(-1))]
            return np.concatenate(parts, axis=1)
        case spaces.Box() | spaces.MultiBinary():
            if obs.shape[1:] != space.shape:
                raise InputError(f"observation of shape {obs.shape[1:]} does not fit the space's {space.shape}.")
            return np.ascontiguousarray(obs.reshape(batch, -1), dtype=np.float32)
    raise unsupported("observation space", space)
