"""The statistics of a Stable-Baselines3 VecNormalize pickle, read inertly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck.contracts import Array, Normaliser
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.teachers import inert
from limbeck.teachers.archive import listed
from limbeck.teachers.plaindata import Opaque

NAMES = ("{stem}_vecnormalize.pkl", "{stem}_vec_normalize.pkl", "vec_normalize.pkl", "vecnormalize.pkl")
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


def beside(teacher: Path) -> Path | None:
    """The statistics file that belongs to a teacher file by its name or its folder."""
    candidates = (teacher.with_name(name.format(stem=teacher.stem)) for name in NAMES)
    return next((path for path in candidates if path.is_file()), None)


def read(
    content: bytes, name: str, space: gym.Space[Any]
) -> tuple[Normaliser | None, tuple[str, ...], tuple[str, ...]]:
    """(normaliser or None if it leaves observations alone, notes, names of what stays unread and is unusual).

    A Dict observation's statistics are laid end to end in the order of the space's keys.
    """
    value = inert.read_pickle(content, name)
    found = value.attributes if isinstance(value, Opaque) else {}
    names = inert.names_in(content)
    unread = tuple(n for n in names if not n.startswith(_USUAL))
    if found.get("norm_obs") is False:
        return None, (f"{printable(name)} normalises rewards only, so it is not used",), unread
    if "obs_rms" not in found:
        wrong = UnsafeError if names else InputError
        raise wrong(
            f"{printable(name)} is no VecNormalize file; unpickling it would use {listed(names)}. Nothing was run. Allowed: the file that VecNormalize.save wrote."
        )
    mean, var = _statistics(found, name, space)
    epsilon, clip = _number(found, "epsilon", name), _number(found, "clip_obs", name)
    scale = np.sqrt(var + epsilon)
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all() and clip > 0):
        raise InputError(f"{printable(name)} holds NaN, infinite or negative statistics. Save it again.")
    return Normaliser(mean.astype(np.float32), scale.astype(np.float32), clip), (), unread


def _statistics(found: dict[Any, Any], name: str, space: gym.Space[Any]) -> tuple[Array, Array]:
    rms = found["obs_rms"]
    if isinstance(rms, dict) != isinstance(space, gym.spaces.Dict):
        raise InputError(
            f"{printable(name)} was made for another kind of observation than {space}. Give the right file."
        )
    if not isinstance(space, gym.spaces.Dict):
        return _moments(rms, name, "", space)
    if set(rms) != set(space.spaces):
        raise InputError(
            f"{printable(name)} normalises {sorted(map(str, rms))}, the observation has {sorted(space.spaces)}. Allowed: statistics for all keys."
        )
    parts = [_moments(rms[key], name, key, part) for key, part in space.spaces.items()]
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([var for _, var in parts])


def _moments(rms: Any, name: str, key: str, space: gym.Space[Any]) -> tuple[Array, Array]:
    found = rms.attributes if isinstance(rms, Opaque) else {}
    mean, var = found.get("mean"), found.get("var")
    if (
        not isinstance(mean, np.ndarray)
        or not isinstance(var, np.ndarray)
        or mean.dtype.kind != "f"
        or var.dtype.kind != "f"
    ):
        raise InputError(f"{printable(name)} lacks the mean or variance {key} of observations. Save it again.")
    if not isinstance(space, gym.spaces.Box) or mean.shape != space.shape or var.shape != space.shape:
        raise InputError(
            f"{printable(name)} holds statistics of shape {mean.shape} {key}for {space}. Give the file saved with this teacher."
        )
    return mean.astype(np.float64).reshape(-1), var.astype(np.float64).reshape(-1)


def _number(found: dict[Any, Any], key: str, name: str) -> float:
    value = found.get(key)
    if not isinstance(value, (int, float, np.number)):
        raise InputError(f"{printable(name)} lacks {key}. Save it again with VecNormalize.save.")
    return float(value)
