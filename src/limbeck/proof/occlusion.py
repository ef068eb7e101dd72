"""Where in a picture a policy looks: occlusion maps over visited states (Zeiler & Fergus 2014, arXiv:1311.2901).

The picture is cut into a grid of patches. The influence of a patch in a state is the sum over f of |f(x) - f(x')|, where
x' has the patch's numbers replaced by their means over the visited states, so that nothing is seen there that would be
news; f is what decides (`saliency.deciding`). On policies Greydanus et al. (2018, arXiv:1711.00138) blur in the same
way: finite changes see what gradients of whole-number layers and of thresholds do not. All channels of a patch go
together. Of a history it is the newest frame, the memory follows the true observations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Floats, Looked, View
from limbeck.errors import InputError
from limbeck.proof.eprocess import Reals
from limbeck.proof.saliency import Rows, influences
from limbeck.runtimes.numpy import NumpyPolicy

SMALLEST = 7  # rows and columns of what counts as a picture: less is a table
MOST_CELLS = 10  # of the grid, each way
MOST_STATES, FEWEST_STATES = 64, 4
BLOCK, NUMBERS = 16, 1 << 24  # patches that are asked at once, and numbers of their pictures, which take memory
BUDGET = 1e10  # multiply-adds of all answers that a map takes: seconds, ten on a busy machine
COPIED = 4  # multiply-adds that take as long as one number of an observation


@dataclass(frozen=True)
class Picture:
    """Where the numbers of one picture lie in the flat observation, and to which patch each belongs."""

    key: str  # of the observation, "" where it has none
    height: int
    width: int
    places: NDArray[np.int64]  # [n] of the flat observation
    patches: NDArray[np.int64]  # [n] row-major number of the patch
    grid: tuple[int, int]  # rows, columns


def pictures(space: gym.Space[object], view: View) -> list[Picture]:
    """The pictures of what a policy sees, the view's keys and indices applied.

    >>> [one.grid for one in pictures(gym.spaces.Box(0, 255, (84, 60, 3), np.uint8), View())]
    [(10, 10)]
    """
    keys: list[str] = [""]
    if isinstance(space, gym.spaces.Dict):
        keys = list(view.keys) if view.keys is not None else sorted(k for k in space.spaces if k != view.mask)
    found, begin = [], 0
    for key in keys:
        part = space[key] if isinstance(space, gym.spaces.Dict) else space
        size = spaces.flat_size(part)
        picture = _picture(key, part, begin, view)
        found += [picture] if picture is not None else []
        begin += size
    return found


def _picture(key: str, part: gym.Space[object], begin: int, view: View) -> Picture | None:
    try:
        image = spaces.image_of(part)
    except InputError:
        return None  # no picture: its numbers are told one by one
    if min(image.height, image.width) < SMALLEST:
        return None
    shape = (image.height, image.width, image.channels)
    order = shape if image.layout == "hwc" else (image.channels, image.height, image.width)
    coordinates = np.indices(order).reshape(3, -1)
    y, x = coordinates[:2] if image.layout == "hwc" else coordinates[1:]
    grid = min(image.height, MOST_CELLS), min(image.width, MOST_CELLS)
    patches = y * grid[0] // image.height * grid[1] + x * grid[1] // image.width
    places = begin + np.arange(len(patches))
    if view.indices is not None:
        picked = np.asarray(view.indices)
        inside = np.flatnonzero((picked >= begin) & (picked < begin + len(patches)))
        places, patches = inside, patches[picked[inside] - begin]
    return Picture(key, image.height, image.width, places, patches, grid) if len(places) else None


def looked(policy: NumpyPolicy, rows: Rows, picture: Picture) -> Looked | None:
    """The map of one picture over visited states, the first ones of a policy with memory; None where nothing moves the action."""
    cells = picture.grid[0] * picture.grid[1]
    answer = policy.blueprint.multiply_adds + COPIED * rows.flat.shape[1]
    affordable = int(BUDGET / (answer * (cells + 1)))
    count = max(FEWEST_STATES, min(MOST_STATES, affordable))
    seen = rows.first_of(count) if policy.initial_state(1) else rows.spread_over(count)
    order = np.argsort(picture.patches, kind="stable")
    inside = np.split(picture.places[order], np.searchsorted(picture.patches[order], np.arange(1, cells)))
    usual = rows.flat.mean(axis=0, dtype=np.float64).astype(np.float32)

    def occluded(state: Floats) -> Iterator[Floats]:
        step = max(1, min(BLOCK, NUMBERS // len(state)))
        for begin in range(0, cells, step):
            hidden = inside[begin : begin + step]
            many = np.repeat(state[None], len(hidden), axis=0)
            for row, places in zip(many, hidden, strict=True):
                row[places] = usual[places]
            yield many

    found = influences(policy, seen, occluded, _changed)
    total = found.sum()
    if not total > 0:
        return None
    shares = (found / total).reshape(picture.grid)
    return Looked(picture.key, picture.height, picture.width, tuple(map(tuple, shares.tolist())), len(seen.flat))


def _changed(said: Reals) -> Reals:
    """[cells] by how much answers [1 + cells, F] differ from the first, the true one."""
    return np.asarray(np.abs(said[1:] - said[:1]).sum(axis=1))


def maps(policy: NumpyPolicy, rows: Rows) -> dict[str, Looked]:
    """By key of the observation, the maps of all pictures that a policy sees and that move its action."""
    blueprint = policy.blueprint
    found = {one.key: looked(policy, rows, one) for one in pictures(blueprint.spec.observation_space, blueprint.view)}
    return {key: one for key, one in found.items() if one is not None}


def numbers(space: gym.Space[object], view: View) -> NDArray[np.int64]:
    """[n] places of the flat observation that belong to no picture."""
    inside = [one.places for one in pictures(space, view)]
    every = np.arange(spaces.flat_size(space, view))
    return np.setdiff1d(every, np.concatenate(inside)) if inside else every
