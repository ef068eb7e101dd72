"""Spaces as a Stable-Baselines3 file states them in the open, and where they differ from the task's.

The printed bounds are rounded to eight digits and cut for large arrays, so they are compared, never trusted: the
policy's bounds come from the task. What a print must decide is whether an observation is an image, which
Stable-Baselines3 divides by 255: that is whole numbers from 0 to 255, of which a cut print still shows the corners.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from limbeck.contracts import Array, Spec
from limbeck.errors import InputError, printable
from limbeck.spaces import flat_size

HUGE = 1e30  # float32's largest number and infinity both mean "no bound"
LARGEST = 2**22  # numbers in one row: a print may claim any shape
DTYPES = ("float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64")
_BOX = r"Box\(([^,()]*), ([^,()]*), (\([\d, ]*\)), (\w+)\)"
_DISCRETE = r"Discrete\((\d+)(?:, start=(-?\d+))?\)"
_MULTIDISCRETE = r"MultiDiscrete\((\[[\d\s]+\])(?:, start=(\[[-\d\s]+\]))?\)"
_MULTIBINARY = r"MultiBinary\((\d+|\([\d, ]+\)|\[[\d, ]+\])\)"
_ENTRY = rf"""(['"])((?:(?!\1).){{1,200}})\1[:,]\s*({_BOX}|{_DISCRETE}|{_MULTIDISCRETE}|{_MULTIBINARY})"""


def space_of(entry: Any) -> gym.Space[Any] | None:
    """The space that a settings entry prints, None where it cannot be rebuilt from the print alone."""
    if not isinstance(entry, Mapping):
        return None
    try:
        with np.errstate(all="ignore"):  # bounds outside the declared type
            space = _space_of(entry)
        return space if space is not None and flat_size(space) <= LARGEST else None
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError, MemoryError, InputError):
        return None


def _space_of(entry: Mapping[str, Any]) -> gym.Space[Any] | None:
    match str(entry.get(":type:", "")).rstrip("'>").rsplit(".", 1)[-1]:
        case "Box":
            return _box(entry)
        case "Discrete":
            return spaces.Discrete(int(entry["n"]), start=int(entry.get("start", 0)))
        case "MultiDiscrete":
            return _multidiscrete(entry["nvec"], entry.get("start"))
        case "MultiBinary":
            return _multibinary([int(n) for n in entry["_shape"]])
        case "Dict":
            return dict_of(str(entry["spaces"]))
    return None


def dict_of(text: str) -> spaces.Dict | None:
    """The Dict whose entries are printed as `{'a': Box(0, 255, (1, 8, 8), uint8), 'b': Discrete(3)}`, in that order."""
    found = list(re.finditer(_ENTRY, text))
    if not found or re.sub(r"OrderedDict|[{}()\[\],\s]", "", re.sub(_ENTRY, "", text)):
        return None
    parts = {entry.group(2): _printed(entry.group(3)) for entry in found}
    if len(parts) != len(found) or any(part is None for part in parts.values()):
        return None
    result = spaces.Dict({key: part for key, part in parts.items() if part is not None})
    result.spaces = {key: result.spaces[key] for key in parts}  # gymnasium sorts; the file's order is the network's
    return result


def _printed(text: str) -> gym.Space[Any] | None:
    if entry := re.fullmatch(_BOX, text):
        low, high, shape, dtype = entry.groups()
        return _box({"low": low, "high": high, "_shape": re.findall(r"\d+", shape), "dtype": dtype})
    if entry := re.fullmatch(_DISCRETE, text):
        return spaces.Discrete(int(entry.group(1)), start=int(entry.group(2) or 0))
    if entry := re.fullmatch(_MULTIDISCRETE, text):
        return _multidiscrete(*entry.groups())
    return _multibinary([int(n) for n in re.findall(r"\d+", text)])


def _multidiscrete(nvec: Any, start: Any) -> spaces.MultiDiscrete | None:
    counts, begins = numbers(nvec), numbers("0" if start is None else start)
    if counts is None or begins is None or not (np.abs(np.concatenate([counts, begins])) <= LARGEST).all():
        return None
    first = np.broadcast_to(begins, counts.shape).astype(np.int64)
    return spaces.MultiDiscrete(counts.astype(np.int64), start=first)


def _multibinary(shape: list[int]) -> spaces.MultiBinary | None:
    if min(shape, default=0) < 1 or math.prod(shape) > LARGEST:
        return None
    return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)


def _box(entry: Mapping[str, Any]) -> spaces.Box | None:
    shape, dtype = tuple(int(n) for n in entry["_shape"]), str(entry["dtype"])
    if dtype not in DTYPES or min(shape, default=1) < 1 or math.prod(shape) > LARGEST:
        return None
    low, high = (_bound(entry, key, shape, cut=not dtype.startswith("float")) for key in ("low", "high"))
    if low is None or high is None:
        if not dtype.startswith("float"):
            return None
        low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, np.dtype(dtype).type)


def _bound(entry: Mapping[str, Any], key: str, shape: tuple[int, ...], cut: bool) -> Array | None:
    values = numbers(entry.get(key))
    if values is None:
        values = numbers(entry.get(f"{key}_repr"))
    if values is None and cut:  # of a cut print of whole numbers, all that is shown must be the same one
        shown = numbers(str(entry.get(key)).replace("...", " "))
        values = shown[:1] if shown is not None and np.unique(shown).size == 1 else None
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


def is_image(space: gym.Space[Any]) -> bool:
    """Whether Stable-Baselines3 takes it for an image, and so divides it by 255: uint8, three axes, 0 to 255."""
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 3
        and space.dtype == np.uint8
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


# ---------------------------------------------------------------- comparison


def differ(problems: list[str], task: Spec) -> InputError:
    """The one wording for a teacher made for other spaces."""
    return InputError(
        f"the teacher does not fit {printable(task.name)}: {'; '.join(problems)}. Give the environment it was trained in, as ENV or with --env, wrapped as it was then."
    )


def compare_spaces(theirs: Spec, task: Spec) -> tuple[str, ...]:
    """Notes on harmless differences between a teacher's spaces and the task's. Raises InputError on the others."""
    mine, other = theirs.observation_space, task.observation_space
    problems = [] if shape_of(mine) == shape_of(other) else [shapes_differ(mine, other)]
    problems += action_problems(theirs.action_space, task.action_space)
    if problems:
        raise differ(problems, task)
    return bounds_note(mine, other)


def shapes_differ(theirs: gym.Space[Any], offered: gym.Space[Any]) -> str:
    return f"observations: teacher {printable(shape_of(theirs), 200)}, task {shape_of(offered)}"


def action_problems(theirs: gym.Space[Any], offered: gym.Space[Any]) -> list[str]:
    """Why actions for `theirs` cannot be played in `offered`; empty where they can."""
    if shape_of(theirs) != shape_of(offered):
        return [f"actions: teacher {shape_of(theirs)}, task {shape_of(offered)}"]
    if isinstance(theirs, spaces.Box) and isinstance(offered, spaces.Box) and not same_bounds(theirs, offered):
        return [f"action bounds: teacher {_range(theirs)}, task {_range(offered)}"]
    return []


def bounds_note(theirs: gym.Space[Any], offered: gym.Space[Any]) -> tuple[str, ...]:
    """A note where two Boxes declare other bounds: harmless, for observation bounds do not enter a policy."""
    if not isinstance(theirs, spaces.Box) or not isinstance(offered, spaces.Box) or same_bounds(theirs, offered):
        return ()
    return (
        f"observation bounds differ: teacher {_range(theirs)}, task {_range(offered)}; they do not enter the policy",
    )


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


def same_bounds(left: spaces.Box, right: spaces.Box) -> bool:
    """Whether two Boxes declare the same bounds, number for number or, if their shapes differ, in any order."""
    if left.shape == right.shape:
        return close(left.low, right.low) and close(left.high, right.high)
    return all(
        close(np.sort(a.reshape(-1)), np.sort(b.reshape(-1)))
        for a, b in ((left.low, right.low), (left.high, right.high))
    )


def close(left: Array, right: Array) -> bool:
    """Whether bounds agree to printed digits; float32's largest number counts as infinite."""
    a, b = (np.clip(np.asarray(bound, np.float64), -HUGE, HUGE) for bound in (left, right))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-6))


def _range(space: spaces.Box) -> str:
    low, high = (np.unique(np.asarray(b, np.float64)) for b in (space.low, space.high))
    shown = [f"{v[0]:.4g}" if v.size == 1 else f"({v[0]:.4g} .. {v[-1]:.4g})" for v in (low, high)]
    return f"[{shown[0]}, {shown[1]}]"
