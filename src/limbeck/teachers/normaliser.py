"""The statistics of a Stable-Baselines3 VecNormalize pickle, read inertly and laid on the row that a view makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck.contracts import Array, Normaliser, View
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.spaces import flat_size
from limbeck.teachers import inert, seeing
from limbeck.teachers.archive import listed
from limbeck.teachers.plaindata import Opaque

NAMES = ("{stem}_vecnormalize.pkl", "{stem}_vec_normalize.pkl", "vec_normalize.pkl", "vecnormalize.pkl")
UNBOUNDED = 2.0**60  # scale under which no number that float32 holds in practice is clipped; a power of two is exact
_USUAL = (
    "stable_baselines3.",
    "gymnasium.",
    "gym.",
    "numpy.",
    "collections.",
    "_codecs.",
    "builtins.object",
    "copyreg.",
)


@dataclass(frozen=True)
class Normalising:
    """A normaliser for a view's row, and what the network behind it must multiply its numbers by.

    `gain` [O] is 1 where VecNormalize normalised. Entries that it left alone go through the one clip that a policy
    has, so they are divided by a power of two that keeps them from it, and multiplied again by it.
    """

    normaliser: Normaliser | None = None  # None: it leaves observations alone
    gain: Array | None = None
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()  # names in the file that are unusual there


def beside(teacher: Path) -> Path | None:
    """The statistics file that belongs to a teacher file by its name or its folder."""
    candidates = (teacher.with_name(name.format(stem=teacher.stem)) for name in NAMES)
    return next((path for path in candidates if path.is_file()), None)


def read(content: bytes, name: str, space: gym.Space[Any], view: View) -> Normalising:
    """The normaliser of the row that `view` makes of `space`. Raises InputError for what does not fit, UnsafeError for
    pickles that are no VecNormalize."""
    value = inert.read_pickle(content, name)
    found = value.attributes if isinstance(value, Opaque) else {}
    names = inert.names_in(content)
    unread = tuple(n for n in names if not n.startswith(_USUAL))
    if found.get("norm_obs") is False:
        return Normalising(notes=(f"{printable(name)} normalises rewards only, so it is not used",), unread=unread)
    if "obs_rms" not in found:
        wrong = UnsafeError if names else InputError
        raise wrong(
            f"{printable(name)} is no VecNormalize file; unpickling it would use {listed(names)}. Nothing was run. Allowed: the file that VecNormalize.save wrote."
        )
    epsilon, clip = _number(found, "epsilon", name), _number(found, "clip_obs", name)
    if not clip > 0 or not np.isfinite(epsilon):  # a clip may be infinite
        raise InputError(f"{printable(name)} clips at {clip:g} with epsilon {epsilon:g}. Save it again.")
    mean, scale, gain = _rows(found["obs_rms"], name, space, view, (epsilon, clip))
    if view.indices is not None:
        mean, scale, gain = (array[list(view.indices)] for array in (mean, scale, gain))
    return Normalising(Normaliser(mean, scale, clip), gain, (), unread)


def _rows(
    rms: Any, name: str, space: gym.Space[Any], view: View, numbers: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """Mean and scale [O] in float32, and gain [O], of the view's keys, before its indices."""
    epsilon, clip = numbers
    if isinstance(space, gym.spaces.Dict):
        parts = [(key, space[key]) for key in seeing.keys_of(space, view)]
    else:
        parts = [("", space)]
    single = not isinstance(rms, dict)
    if single and len(parts) > 1:
        raise InputError(
            f"{printable(name)} was made for another kind of observation than {space}. Give the right file."
        )
    known = {key for key, _ in parts}
    unknown = [] if single else [key if isinstance(key, str) else type(key).__name__ for key in rms if key not in known]
    if unknown:
        raise InputError(
            f"{printable(name)} normalises {printable(unknown[0])!r}, the teacher sees {sorted(k for k, _ in parts)}. Give the file saved with this teacher."
        )
    columns: list[tuple[Array, Array, Array]] = []
    for key, part in parts:
        if single or key in rms:
            mean, var = _moments(rms if single else rms[key], name, key, part, view.history)
            with np.errstate(all="ignore"):  # what float32 cannot hold is refused below
                mean, scale = (a.astype(np.float32) for a in (mean, np.sqrt(np.maximum(var + epsilon, 0))))
            if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
                raise InputError(f"{printable(name)} holds NaN, infinite or negative statistics. Save it again.")
            columns.append((mean, scale, np.ones(mean.size)))
        else:
            size, untouched = flat_size(part), _untouched_scale(part, clip)
            columns.append((np.zeros(size), np.full(size, untouched), np.full(size, untouched)))
    mean, scale, gain = (np.concatenate([column[i] for column in columns]) for i in range(3))
    return mean.astype(np.float32), scale.astype(np.float32), gain


def _untouched_scale(space: gym.Space[Any], clip: float) -> float:
    """The smallest power of two that brings all numbers of the space below the clip."""
    largest = 1.0
    if isinstance(space, gym.spaces.Box):
        largest = max(float(np.abs(np.asarray(bound, np.float64)).max()) for bound in (space.low, space.high))
    if not largest / clip < UNBOUNDED:
        return UNBOUNDED
    return float(2.0 ** max(0, np.ceil(np.log2(max(largest / clip, 1.0)))))


def _moments(rms: Any, name: str, key: str, space: gym.Space[Any], history: int) -> tuple[Array, Array]:
    """[O] mean and variance in the order of the task's flat row."""
    found = rms.attributes if isinstance(rms, Opaque) else {}
    mean, var = found.get("mean"), found.get("var")
    if (
        not isinstance(mean, np.ndarray)
        or not isinstance(var, np.ndarray)
        or mean.dtype.kind != "f"
        or var.dtype.kind != "f"
        or mean.shape != var.shape
    ):
        raise InputError(f"{printable(name)} lacks the mean or variance {key} of observations. Save it again.")
    trained = gym.spaces.Box(-np.inf, np.inf, mean.shape) if mean.ndim and mean.size else None
    order = seeing.transposition(trained, space) if trained is not None else None
    if order is not None:
        mean, var = (_unordered(array.reshape(-1), order) for array in (mean, var))
    elif not isinstance(space, gym.spaces.Box) or mean.shape not in (space.shape, (int(np.prod(space.shape)),)):
        stacked = f", stacked {history} times" if history > 1 else ""
        raise InputError(
            f"{printable(name)} holds statistics of shape {mean.shape} {key}for {space}{stacked}. Give the file saved with this teacher, and the task wrapped as it was when they were taken."
        )
    return mean.astype(np.float64).reshape(-1), var.astype(np.float64).reshape(-1)


def _unordered(values: Array, order: Array) -> Array:
    """The values whose `order`-th places are the given ones."""
    result = np.empty_like(values)
    result[order] = values
    return result


def _number(found: dict[Any, Any], key: str, name: str) -> float:
    value = found.get(key)
    if not isinstance(value, (int, float, np.number)) or isinstance(value, (np.complexfloating, bool)):
        raise InputError(f"{printable(name)} lacks {key}. Save it again with VecNormalize.save.")
    return float(value)
