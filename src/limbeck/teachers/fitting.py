"""Where a network's input lies in the task's observation, for files that state their shapes but no spaces.

A vector must have as many numbers as the task gives. A picture may lie with its channels first or last, and may be a
stack of frames that the task gives singly: then the view's history stacks them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
from gymnasium import spaces

from limbeck.contracts import HeadKind, Spec, View
from limbeck.errors import InputError, printable
from limbeck.spaces import MASK, check_view, flat_size
from limbeck.teachers import stated

Order = Literal["hwc", "chw"]


@dataclass(frozen=True)
class Sight:
    """A view, and for pictures how they lie in the rows that it gives."""

    view: View
    size: tuple[int, int] = (1, 1)  # height, width
    layout: Order = "hwc"
    notes: tuple[str, ...] = ()


def vector(spec: Spec, size: int, given: View | None, history: int = 1) -> Sight:
    """The view that gives a network `size` numbers, `history` steps together. Raises InputError where none does."""
    view = View(keys=given.keys, indices=given.indices) if given is not None else View()
    view = replace(view, history=history, padding=given.padding if given is not None else "first")
    notes: tuple[str, ...] = ()
    space = spec.observation_space
    if isinstance(space, spaces.Dict) and view.keys is None and flat_size(space, view) * history != size:
        key = _only(spec, [k for k, part in space.spaces.items() if k != MASK and _width(part) * history == size], size)
        view, notes = replace(view, keys=(key,)), (f"the teacher sees {key!r} of the observation",)
    check_view(space, view)
    offered = flat_size(space, view) * history
    if offered != size:
        raise stated.differ([f"the teacher sees {size} numbers, the task gives {offered}"], spec)
    return Sight(view, notes=notes)


def image(
    spec: Spec, channels: int, given: View | None, size: tuple[int, int] | None = None, order: Order | None = None
) -> Sight:
    """The view that gives a network a picture of so many channels. `order` says how the task's picture lies, where its
    shape leaves that open."""
    space = spec.observation_space
    if given is not None and given.indices is not None:
        raise InputError("a picture cannot be seen through indices. Drop the indices; keys are allowed.")
    if not isinstance(space, spaces.Dict):
        sights = _pictures(space, channels, size, order)
        notes: tuple[str, ...] = ()
    else:
        keys = given.keys if given is not None and given.keys else tuple(k for k in space.spaces if k != MASK)
        found = {k: s for k in keys if k in space.spaces if (s := _pictures(space[k], channels, size, order))}
        key = _only(spec, list(found), f"a picture of {channels} channels")
        sights = [replace(s, view=replace(s.view, keys=(key,))) for s in found[key]]
        notes = (f"the teacher sees {key!r} of the observation",)
    if not sights:
        wanted = f"{size[0]}x{size[1]} with {channels} channels" if size else f"of {channels} channels"
        raise stated.differ([f"the teacher sees a picture {wanted}, the task gives {stated.shape_of(space)}"], spec)
    if len(sights) > 1:
        raise InputError(
            f"{stated.shape_of(space)} may have its {channels} channels first or last. Say which: --architecture 'obs hwc > ...' or 'obs chw > ...'."
        )
    check_view(space, sights[0].view)
    return replace(sights[0], notes=(*notes, *sights[0].notes))


def _pictures(space: gym.Space[Any], channels: int, size: tuple[int, int] | None, order: Order | None) -> list[Sight]:
    """The ways in which a space is, or by a history becomes, a picture of so many channels."""
    shape = getattr(space, "shape", None)
    if not isinstance(space, (spaces.Box, spaces.MultiBinary)) or shape is None or len(shape) not in (2, 3):
        return []
    readings: list[tuple[int, int, int, Order]] = []
    if len(shape) == 2:
        readings.append((shape[0], shape[1], 1, "hwc"))
    else:
        readings += [(shape[0], shape[1], shape[2], "hwc"), (shape[1], shape[2], shape[0], "chw")]
        readings = [r for r in readings if order in (None, r[3])]
    readings = [r for r in readings if size in (None, (r[0], r[1]))]
    exact = [Sight(View(), (h, w), lies) for h, w, c, lies in readings if c == channels]
    if exact:
        return exact
    stacked = []
    for height, width, count, lies in readings:
        if count < channels and channels % count == 0 and (count == 1 or lies == "chw") and min(height, width) > count:
            frames = channels // count
            note = f"the teacher sees {frames} frames, the task gives one: they are stacked here"
            stacked.append(Sight(View(history=frames), (height, width), "chw", (note,)))
    return stacked


def _only(spec: Spec, keys: list[str], wanted: object) -> str:
    if len(keys) != 1:
        problem = "no entry fits" if not keys else f"{printable(' and '.join(keys))} fit"
        raise InputError(
            f"the teacher sees {wanted if isinstance(wanted, str) else f'{wanted} numbers'}, {printable(spec.name)} offers {stated.shape_of(spec.observation_space)}: {problem}. "
            "Name the entry with --options teacher_keys=NAME."
        )
    return keys[0]


def _width(space: gym.Space[Any]) -> int:
    try:
        return flat_size(space)
    except InputError:
        return -1


# ---------------------------------------------------------------- actions

DISCRETE: dict[type, HeadKind] = {
    spaces.Discrete: "categorical", spaces.MultiDiscrete: "multicategorical", spaces.MultiBinary: "bernoulli",
}  # fmt: skip


def discrete_kind(space: gym.Space[Any]) -> HeadKind | None:
    """The head that reads logits in this action space, None for continuous ones."""
    return next((kind for kind_of, kind in DISCRETE.items() if isinstance(space, kind_of)), None)


def actions(space: gym.Space[Any]) -> int:
    """Numbers of one continuous action."""
    return int(math.prod(space.shape or ()))
