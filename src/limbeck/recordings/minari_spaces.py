"""The spaces that a Minari data set states, as gymnasium's own, and the columns in which their parts lie.

Nested Dicts and Tuples become a flat Dict with joined keys ("0", "a/b"), as an environment's do at the border of a
task. The numbers come from a stranger's file: they are counted as Python integers, which cannot overflow, before
anything of their size is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import spaces
from limbeck.errors import printable
from limbeck.recordings.records import MAX_CHOICES

PART = "/"  # joins the keys of a nested observation, as a task's does
MAX_NUMBERS = 2**24  # of one observation
MOST = 2**53  # integers up to it are exact however they are computed with
_DTYPES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)


def observation_space(data: Mapping[str, Any]) -> tuple[gym.Space[Any], dict[str, str]]:
    """The space, nested ones flattened, and where each of its parts lies in an episode ("" for a plain space).

    Raises ValueError and its like for what no space can be made of.

    >>> number = {"type": "Discrete", "n": 2}
    >>> space, places = observation_space({"type": "Tuple", "subspaces": [number, {"type": "Dict", "subspaces": {"a": number}}]})
    >>> places
    {'0': '_index_0', '1/a': '_index_1/a'}
    """
    stated = space_of(data)
    if isinstance(stated, gym.spaces.Text):
        raise ValueError("there is nothing to see but text")
    if not isinstance(stated, (gym.spaces.Dict, gym.spaces.Tuple)):
        return stated, {"": ""}
    flat: dict[str, gym.Space[Any]] = {}
    places: dict[str, str] = {}
    for keys, steps, part in _leaves(stated, (), ()):
        key = PART.join(keys)
        if key in flat:
            raise ValueError(f"two parts are called {printable(key)}")
        flat[key], places[key] = part, PART.join(steps)
    if not flat:
        raise ValueError("there is nothing to see")
    return gym.spaces.Dict(flat), places


def _leaves(
    space: gym.Space[Any], keys: tuple[str, ...], steps: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], gym.Space[Any]]]:
    """Keys as a task joins them, steps as Minari stores them; texts are left out."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*keys, str(key)), (*steps, str(key)))
    elif isinstance(space, gym.spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from _leaves(part, (*keys, str(i)), (*steps, f"_index_{i}"))
    elif not isinstance(space, gym.spaces.Text):
        yield keys, steps, space


def space_of(data: Mapping[str, Any]) -> gym.Space[Any]:
    """The space that Minari's description states, nested as it is."""
    match data["type"]:
        case "Box":
            return _box(data)
        case "Discrete":
            return gym.spaces.Discrete(_choices(data["n"]), start=_starts(data.get("start", 0))[0])
        case "MultiDiscrete":
            _choices(data["nvec"])
            _starts(data["start"])
            return gym.spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
        case "MultiBinary":
            if math.prod(_integers(data["n"], 1)) > MAX_CHOICES:
                raise ValueError(f"more than {MAX_CHOICES:,} choices")
            return gym.spaces.MultiBinary(data["n"])
        case "Dict":
            return gym.spaces.Dict({key: space_of(part) for key, part in data["subspaces"].items()})
        case "Tuple":
            return gym.spaces.Tuple([space_of(part) for part in data["subspaces"]])
        case "Text":
            return gym.spaces.Text(1)
    raise ValueError(f"a space of type {printable(data['type'])}")


def _box(data: Mapping[str, Any]) -> gym.spaces.Box:
    if data["dtype"] not in _DTYPES:
        raise ValueError(f"numbers of type {printable(data['dtype'])}")
    dtype, shape = np.dtype(data["dtype"]), tuple(_integers(data["shape"], 0))
    if math.prod(shape) > MAX_NUMBERS:
        raise ValueError(f"the shape {printable(shape)}, at most {MAX_NUMBERS:,} numbers are read")
    with np.errstate(over="ignore", invalid="ignore"):  # a bound beyond the type's range is none
        low, high = np.array(data["low"], dtype), np.array(data["high"], dtype)
    if low.shape != shape or high.shape != shape or not (low <= high).all():
        raise ValueError(f"bounds that do not fit the shape {shape}")
    return gym.spaces.Box(low, high, shape, dtype.type)


def _choices(nested: Any) -> int:
    """How many choices there are in all."""
    count = sum(_integers(nested, 1))
    if count > MAX_CHOICES:
        raise ValueError(f"{printable(count)} choices, at most {MAX_CHOICES:,} are read")
    return count


def _starts(nested: Any) -> list[int]:
    numbers = _integers(nested, -MOST)
    if max(numbers, default=0) > MOST:
        raise ValueError(f"choices that count from {printable(max(numbers))}, at most {MOST} is read")
    return numbers


def _integers(nested: Any, least: int) -> list[int]:
    """The numbers of nested lists in their order; ValueError for any that is no integer of at least `least`."""
    if isinstance(nested, list):
        return [number for item in nested for number in _integers(item, least)]
    if type(nested) is not int or nested < least:
        raise ValueError(f"{printable(nested)} where an integer from {least} on belongs")
    return [nested]


def described(space: gym.Space[Any]) -> dict[str, Any]:
    """Minari's description of a space. Raises InputError for kinds that it has none for."""
    match space:
        case gym.spaces.Box():
            return {
                "type": "Box",
                "dtype": str(space.dtype),
                "shape": list(space.shape),
                "low": space.low.tolist(),
                "high": space.high.tolist(),
            }
        case gym.spaces.Discrete():
            return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
        case gym.spaces.MultiDiscrete():
            return {
                "type": "MultiDiscrete",
                "dtype": str(space.dtype),
                "nvec": space.nvec.tolist(),
                "start": space.start.tolist(),
            }
        case gym.spaces.MultiBinary():
            return {"type": "MultiBinary", "n": list(space.shape) if len(space.shape) > 1 else int(space.shape[0])}
        case gym.spaces.Dict():
            return {"type": "Dict", "subspaces": {k: described(v) for k, v in space.spaces.items()}}
    raise spaces.unsupported("space", space)
