"""Spaces as a Stable-Baselines3 file states them in the open, and where they differ from the task's.

The printed bounds are rounded to eight digits and cut for large arrays, so they are compared, never trusted: the
policy's bounds come from the task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from limbeck.contracts import Array, Spec
from limbeck.errors import InputError, printable

HUGE = 1e30  # float32's largest number and infinity both mean "no bound"


def space_of(entry: Any) -> gym.Space[Any] | None:
    """The space that a settings entry prints, None where it cannot be rebuilt from the print alone."""
    if not isinstance(entry, Mapping):
        return None
    try:
        match str(entry.get(":type:", "")).rstrip("'>").rsplit(".", 1)[-1]:
            case "Box":
                return _box(entry)
            case "Discrete":
                return spaces.Discrete(int(entry["n"]), start=int(entry.get("start", 0)))
            case "MultiDiscrete":
                nvec = numbers(entry["nvec"])
                return None if nvec is None else spaces.MultiDiscrete(nvec.astype(np.int64))
            case "MultiBinary":
                shape = tuple(int(n) for n in entry["_shape"])
                return spaces.MultiBinary(shape if len(shape) != 1 else shape[0])
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError):
        return None
    return None


def _box(entry: Mapping[str, Any]) -> spaces.Box | None:
    shape, dtype = tuple(int(n) for n in entry["_shape"]), str(entry["dtype"])
    if dtype not in ("float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64"):
        return None
    low, high = (_bound(entry, key, shape) for key in ("low", "high"))
    if low is None or high is None:
        if not dtype.startswith("float"):
            return None
        low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, np.dtype(dtype).type)


def _bound(entry: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Array | None:
    values = numbers(entry.get(key))
    if values is None:
        values = numbers(entry.get(f"{key}_repr"))
    if values is None or values.size not in (1, int(np.prod(shape))):
        return None
    return np.broadcast_to(values if values.size == 1 else values.reshape(shape), shape)


def numbers(text: Any) -> Array | None:
    """[n] the numbers of a printed array, None if it was cut ("...") or is no array.

    >>> numbers("[-1.5  2. inf]")
    array([-1.5,  2. ,  inf])
    """
    parts = re.sub(r"[\[\],]", " ", str(text)).split()
    try:
        return np.array([float(part) for part in parts]) if parts else None
    except ValueError:
        return None


# ---------------------------------------------------------------- comparison


def compare(stated: Mapping[str, Any], task: Spec) -> tuple[str, ...]:
    """Notes on harmless differences between the file's spaces and the task's. Raises InputError on the others."""
    problems: list[str] = []
    notes: list[str] = []
    for what, space in (("observation_space", task.observation_space), ("action_space", task.action_space)):
        theirs = space_of(stated.get(what))
        label = what.replace("_space", "s")
        if theirs is None:
            problems += _dict_difference(stated.get(what), space)
        elif shape_of(theirs) != shape_of(space):
            problems.append(f"{label}: teacher {shape_of(theirs)}, task {shape_of(space)}")
        elif isinstance(theirs, spaces.Box) and isinstance(space, spaces.Box) and not _same_bounds(theirs, space):
            if what == "action_space":
                problems.append(f"action bounds: teacher {_range(theirs)}, task {_range(space)}")
            else:
                notes.append(
                    f"observation bounds differ: teacher {_range(theirs)}, task {_range(space)}; they do not enter the policy"
                )
    if problems:
        raise differ(problems, task)
    return tuple(notes)


def differ(problems: list[str], task: Spec) -> InputError:
    """The one wording for a teacher made for other spaces."""
    return InputError(
        f"the teacher does not fit {printable(task.name)}: {'; '.join(problems)}. Give the environment it was trained in with --env, wrapped as it was then."
    )


def compare_spaces(theirs: Spec, task: Spec) -> tuple[str, ...]:
    """The same for a file that describes its spaces fully."""
    problems: list[str] = []
    notes: list[str] = []
    for label in ("observation", "action"):
        mine, other = (getattr(spec, f"{label}_space") for spec in (theirs, task))
        if shape_of(mine) != shape_of(other):
            problems.append(f"{label}s: teacher {shape_of(mine)}, task {shape_of(other)}")
        elif isinstance(mine, spaces.Box) and not _same_bounds(mine, other):
            line = f"{label} bounds: teacher {_range(mine)}, task {_range(other)}"
            (problems if label == "action" else notes).append(line)
    if problems:
        raise differ(problems, task)
    return tuple(notes)


def shape_of(space: gym.Space[Any]) -> str:
    """What of a space must agree, in words: kind, shape, counts; no bounds, no dtype."""
    match space:
        case spaces.Box():
            return f"Box{tuple(space.shape)}"
        case spaces.Discrete():
            return f"Discrete({space.n})"
        case spaces.MultiDiscrete():
            return f"MultiDiscrete({space.nvec.tolist()})"
        case spaces.MultiBinary():
            return f"MultiBinary{tuple(space.shape)}"
        case spaces.Dict():
            return "Dict(" + ", ".join(f"{k}: {shape_of(v)}" for k, v in sorted(space.spaces.items())) + ")"
    return str(space)


def described(space: gym.Space[Any]) -> str:
    """A space on one line, its bounds as a range."""
    return f"{shape_of(space)} {_range(space)} {space.dtype}" if isinstance(space, spaces.Box) else shape_of(space)


def _dict_difference(entry: Any, space: gym.Space[Any]) -> list[str]:
    if not isinstance(entry, Mapping) or not str(entry.get(":type:", "")).endswith(".Dict'>"):
        return []
    if not isinstance(space, spaces.Dict):
        return [f"observations: teacher Dict, task {shape_of(space)}"]
    keys = set(re.findall(r"'([^']*)': ?[A-Z]", str(entry.get("spaces", ""))))
    return (
        [f"observation keys: teacher {printable(sorted(keys))}, task {sorted(space.spaces)}"]
        if keys and keys != set(space.spaces)
        else []
    )


def _same_bounds(left: spaces.Box, right: spaces.Box) -> bool:
    return _close(left.low, right.low) and _close(left.high, right.high)


def _close(left: Array, right: Array) -> bool:
    a, b = (np.clip(np.asarray(bound, np.float64), -HUGE, HUGE) for bound in (left, right))
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-6))


def _range(space: spaces.Box) -> str:
    low, high = (np.unique(np.asarray(b, np.float64)) for b in (space.low, space.high))
    shown = [f"{v[0]:.4g}" if v.size == 1 else f"({v[0]:.4g} .. {v[-1]:.4g})" for v in (low, high)]
    return f"[{shown[0]}, {shown[1]}]"
