"""Features extractors: how the row that the view makes becomes what the networks behind take.

Stable-Baselines3 divides images by 255 before any extractor; here that, and whatever else a number must be multiplied
by, is a `gain` that the first layer with weights takes up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from limbeck.contracts import Array, Layer, Parallel
from limbeck.errors import InputError, printable
from limbeck.teachers.sb3.weights import SUPPORTED, Weights, nature, scaled

CNN = r"(cnn|linear)\.\d+\.(weight|bias)"
PATTERN = rf"(extractors\.[^.]+\.)?{CNN}"  # the tensors of an extractor, behind its prefix


@dataclass(frozen=True)
class Stretch:
    """One observation in the row: the whole of it, or an entry of a Dict."""

    key: str  # empty: the whole observation
    begin: int
    end: int
    shape: tuple[int, ...]  # as the teacher was trained on it, frames stacked: an image has its channels first
    layout: Literal["hwc", "chw"]  # of the row
    gain: Array  # [end - begin] what each number must be multiplied by to be what the teacher was trained on


@dataclass(frozen=True)
class Features:
    """The layers of an extractor, and what the numbers it gives must still be multiplied by."""

    layers: tuple[Layer, ...]
    gain: Array  # [F]

    def then(self, layers: list[Layer]) -> tuple[Layer, ...]:
        """The extractor and the layers behind it."""
        return (*self.layers, scaled(layers[0], self.gain), *layers[1:])


Extract = Callable[[Weights, str], Features]


def extractor(sight: tuple[Stretch, ...]) -> Extract:
    """A function from weights and the prefix of an extractor to its features on these stretches."""
    return lambda weights, prefix: _features(weights, prefix, sight)


def images_in(weights: Weights, prefix: str) -> set[str]:
    """The keys of the observations that go through a NatureCNN; the whole observation is the empty key."""
    found = (re.fullmatch(rf"{re.escape(prefix)}\.(?:extractors\.([^.]+)\.)?{CNN}", key) for key in weights)
    return {entry.group(1) or "" for entry in found if entry is not None}


def _features(weights: Weights, prefix: str, sight: tuple[Stretch, ...]) -> Features:
    images = images_in(weights, prefix)
    unknown = images - {stretch.key for stretch in sight}
    if unknown:
        raise InputError(
            f"{prefix} sees {printable(sorted(unknown)[0] or 'one image')!r}, the observation has "
            f"{', '.join(repr(s.key) for s in sight if s.key) or 'no entries'}. Give the environment it was trained in with --env."
        )
    parts = [_part(weights, prefix, stretch, stretch.key in images) for stretch in sight]
    gain = np.concatenate([part.gain for part in parts])
    if not images:
        return Features((), gain)
    if len(parts) == 1:
        return parts[0]
    branches = tuple(part.layers for part in parts)
    return Features((Parallel(branches, tuple((s.begin, s.end) for s in sight), sight[-1].end),), gain)


def _part(weights: Weights, prefix: str, stretch: Stretch, image: bool) -> Features:
    if not image:
        return Features((), stretch.gain)
    inside = f"{prefix}.extractors.{stretch.key}" if stretch.key else prefix
    if len(stretch.shape) != 3 or stretch.end - stretch.begin != np.prod(stretch.shape):
        raise InputError(
            f"{inside} is a NatureCNN, the observation has shape {stretch.shape}: it is no image. {SUPPORTED}"
        )
    channels = weights[f"{inside}.cnn.0.weight"].shape[1:2]
    if channels != stretch.shape[:1]:
        raise InputError(
            f"{inside} sees {channels[0] if channels else 0} channels, the observation of shape {stretch.shape} has {stretch.shape[0]}. "
            "Give the environment it was trained in with --env, its frames stacked as they were then."
        )
    if (stretch.gain != stretch.gain[0]).any():
        raise InputError(
            f"{inside} sees an image whose numbers are scaled differently, which is not read here. {SUPPORTED}"
        )
    layers = nature(weights, inside, (stretch.shape[1], stretch.shape[2]), stretch.layout, float(stretch.gain[0]))
    return Features(tuple(layers), np.ones(layers[-1].outputs))
