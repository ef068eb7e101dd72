"""What of a task's observation a teacher sees: found by comparing the space it was trained on with the task's.

A teacher trained on a plain Box may stand before a task that offers a Dict (the state beside the pixels, an action
mask beside the observation), one trained on stacked frames before a task that gives them singly, one trained on
channels first before images with channels last. These are one question, answered once here for every format: which
view makes the row that the task gives into the row that the network was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from limbeck.contracts import Spec, View
from limbeck.errors import InputError, printable
from limbeck.spaces import MASK, check_view, flat_size
from limbeck.teachers import stated

__all__ = ["MASK", "keys_of", "transposition", "view_on"]

MAX_STACK = 64  # frames: beyond it, a wider observation is another observation, not a stack
Order = NDArray[np.int64]


@dataclass(frozen=True)
class _Fit:
    """How one part of the task's observation becomes what the teacher takes there."""

    order: Order | None = None  # where in the task's flat part each number of the teacher's lies; None: as it is
    history: int = 1
    padding: Literal["first", "zero"] = "first"
    notes: tuple[str, ...] = ()


def view_on(theirs: Spec, view: View, task: Spec, given: View | None) -> tuple[View, tuple[str, ...]]:
    """The view of a policy made for `theirs` on the task's observation, and notes. Raises InputError where none fits.

    The row that the view makes is the row of `theirs`, number for number: images are transposed by indices, frame
    stacks are kept as history. `given` is what the user says it sees: its keys, indices and mask win over what would
    be found, its keys standing for the teacher's own in their order.
    """
    if given is not None:
        view = replace(view, mask=given.mask or view.mask)
    keys = given.keys if given is not None else None
    problems = stated.action_problems(theirs.action_space, task.action_space)
    notes: tuple[str, ...] = ()
    if given is not None and given.indices is not None:
        seen = replace(view, keys=keys or view.keys, indices=given.indices)
    elif isinstance(task.observation_space, spaces.Dict):
        seen, notes, problem = _in_dict(theirs.observation_space, view, task, keys)
        problems = [problem, *problems] if problem else problems
    else:
        seen, notes, problem = _in_one(theirs.observation_space, view, task.observation_space)
        problems = [problem, *problems] if problem else problems
    if problems:
        raise stated.differ(problems, task)
    check_view(task.observation_space, seen)
    return seen, notes


def transposition(theirs: gym.Space[Any], offered: gym.Space[Any]) -> Order | None:
    """Where in the task's flat image each number of the teacher's lies, if the two are one image with its channels
    first here and last there; None otherwise.

    >>> transposition(spaces.Box(0, 1, (2, 1, 3)), spaces.Box(0, 1, (1, 3, 2)))
    array([0, 2, 4, 1, 3, 5])
    """
    if not isinstance(theirs, spaces.Box) or not isinstance(offered, spaces.Box):
        return None
    if len(theirs.shape) != 3 or len(offered.shape) != 3 or theirs.shape == offered.shape:
        return None
    for axes in ((2, 0, 1), (1, 2, 0)):
        if tuple(offered.shape[axis] for axis in axes) == theirs.shape:
            return _places(offered).transpose(axes).reshape(-1)
    return None


def keys_of(space: spaces.Dict, view: View) -> tuple[str, ...]:
    """The entries that a policy with this view sees, in its order."""
    return view.keys if view.keys is not None else tuple(sorted(k for k in space.spaces if k != view.mask))


# ---------------------------------------------------------------- a task that offers one thing, and one that offers many


def _in_one(theirs: gym.Space[Any], view: View, offered: gym.Space[Any]) -> tuple[View, tuple[str, ...], str]:
    """(view, notes, problem) on an observation that is no Dict."""
    if isinstance(theirs, spaces.Dict):  # of which the policy may see one entry only
        keys = keys_of(theirs, view)
        if len(keys) != 1:
            return view, (), stated.shapes_differ(theirs, offered)
        theirs, view = theirs[keys[0]], replace(view, keys=None)
    fit = _fit(theirs, offered)
    if fit is None or (fit.history > 1 and view.history > 1):
        return view, (), stated.shapes_differ(theirs, offered)
    return _applied(view, fit.order, fit), fit.notes, ""


def _in_dict(
    theirs: gym.Space[Any], view: View, task: Spec, given: tuple[str, ...] | None
) -> tuple[View, tuple[str, ...], str]:
    """(view, notes, problem) on a Dict observation."""
    offered = task.observation_space
    assert isinstance(offered, spaces.Dict)
    if not isinstance(theirs, spaces.Dict):
        return _one_of_dict(theirs, view, task, given)
    mine = keys_of(theirs, view)
    keys = given or mine
    if len(keys) != len(mine) or not set(keys) <= set(offered.spaces):
        return view, (), f"observation keys: teacher {printable(list(mine), 200)}, task {sorted(offered.spaces)}"
    fits = [_fit(theirs[a], offered[b]) for a, b in zip(mine, keys, strict=True)]
    if any(fit is None or fit.history > 1 for fit in fits):
        return view, (), stated.shapes_differ(theirs, offered)
    found = [fit for fit in fits if fit is not None]
    order = _joined([offered[key] for key in keys], [fit.order for fit in found])
    unseen = sorted(set(offered.spaces) - set(keys) - {view.mask, MASK})
    notes = tuple(note for fit in found for note in fit.notes)
    if unseen:
        notes += (f"the teacher does not see {', '.join(map(repr, unseen))} of the observation",)
    return _applied(replace(view, keys=keys), order, _Fit()), notes, ""


def _one_of_dict(
    theirs: gym.Space[Any], view: View, task: Spec, given: tuple[str, ...] | None
) -> tuple[View, tuple[str, ...], str]:
    """The entry, or all entries laid flat, that a teacher of one observation sees of a Dict."""
    offered = task.observation_space
    assert isinstance(offered, spaces.Dict)
    unknown = [key for key in given or () if key not in offered.spaces]
    if unknown:
        check_view(offered, View(keys=given))
    if given is None or len(given) == 1:
        keys = given or _entries_that_fit(theirs, offered)
        if len(keys) == 1:
            seen, notes, problem = _in_one(theirs, replace(view, keys=None), offered[keys[0]])
            return replace(seen, keys=keys), (f"the teacher sees {keys[0]!r} of the observation", *notes), problem
        if len(keys) > 1:
            raise _not_one(theirs, task, f"{' and '.join(keys)} fit")
    keys = given or tuple(k for k in offered.spaces if k not in (view.mask, MASK))
    size = flat_size(offered, View(keys=keys)) if keys else 0
    if isinstance(theirs, spaces.Box) and theirs.shape == (size,):
        return replace(view, keys=keys), (f"the teacher sees {', '.join(map(repr, keys))} as one flat row",), ""
    raise _not_one(theirs, task, "no entry fits")


def _entries_that_fit(theirs: gym.Space[Any], offered: spaces.Dict) -> tuple[str, ...]:
    """Entries of exactly the teacher's shape; only without one those that fit transposed, flattened or stacked."""
    fits = {key: _fit(theirs, space) for key, space in offered.spaces.items() if key != MASK}
    same = tuple(key for key in fits if stated.shape_of(offered[key]) == stated.shape_of(theirs))
    return same or tuple(key for key, fit in fits.items() if fit is not None)


def _not_one(theirs: gym.Space[Any], task: Spec, problem: str) -> InputError:
    return InputError(
        f"the teacher sees {printable(stated.shape_of(theirs), 200)}, {printable(task.name)} offers "
        f"{stated.shape_of(task.observation_space)}: {problem}. Name the entry with --options teacher_keys=NAME."
    )


def _applied(view: View, order: Order | None, fit: _Fit) -> View:
    """The view with the order of its flat row and its history changed."""
    if order is not None:
        own = order if view.indices is None else order[list(view.indices)]
        view = replace(view, indices=tuple(int(i) for i in own))
    return replace(view, history=fit.history, padding=fit.padding) if fit.history > 1 else view


def _joined(parts: Sequence[gym.Space[Any]], orders: Sequence[Order | None]) -> Order | None:
    """The order of the parts' rows laid end to end."""
    if all(order is None for order in orders):
        return None
    sizes = [flat_size(part) for part in parts]
    begins = np.cumsum([0, *sizes[:-1]])
    return np.concatenate(
        [
            begin + (np.arange(size) if order is None else order)
            for begin, size, order in zip(begins, sizes, orders, strict=True)
        ]
    )


# ---------------------------------------------------------------- one part


def _fit(theirs: gym.Space[Any], offered: gym.Space[Any]) -> _Fit | None:
    """How `offered` becomes `theirs`, None if it cannot."""
    if stated.shape_of(theirs) == stated.shape_of(offered):
        return _Fit(notes=stated.bounds_note(theirs, offered))
    if not isinstance(theirs, spaces.Box) or not isinstance(offered, spaces.Box):
        return None
    if (order := transposition(theirs, offered)) is not None:
        first = theirs.shape[0] == offered.shape[2]
        note = f"the teacher was trained on this image with its channels {'first' if first else 'last'}"
        return _Fit(None if _in_line(order) else order, notes=(note, *stated.bounds_note(theirs, offered)))
    if len(theirs.shape) == 1 and theirs.shape[0] == math.prod(offered.shape):
        note = f"the teacher sees the observation of shape {offered.shape} as one flat row"
        return _Fit(notes=(note, *stated.bounds_note(theirs, offered)))
    return _stack(theirs, offered)


def _stack(theirs: spaces.Box, offered: spaces.Box) -> _Fit | None:
    """The teacher's observation as a stack of n of the task's, oldest first; None if it is none."""
    (mine, single), order = (theirs.shape, offered.shape), None
    count, padding = _frames(mine, single), "zero"
    if not count and mine[1:] == single:  # a new axis of frames, as gymnasium's FrameStackObservation makes it
        count, padding = mine[0], "first"
    if not count and len(single) == 3:  # channels last, stacked, then transposed by Stable-Baselines3
        count = _frames(mine, (single[2], single[0], single[1]))
        turned = _places(offered).transpose(2, 0, 1).reshape(-1)
        order = None if _in_line(turned) else turned
    if not count and len(mine) == 1 and len(single) > 1:
        count = _frames(mine, (math.prod(single),))
    if not 2 <= count <= MAX_STACK or not _stacked_bounds(theirs, offered, count):
        return None
    before = "zeros" if padding == "zero" else "copies of it"
    note = f"the teacher sees the last {count} observations, and before an episode's first one {before}: it was trained on a frame stack"
    return _Fit(order, count, "zero" if padding == "zero" else "first", (note,))


def _frames(stacked: tuple[int, ...], single: tuple[int, ...]) -> int:
    """How many times `single` lies along the first axis of `stacked`, 0 if it does not."""
    if len(stacked) != len(single) or not single or stacked[1:] != single[1:] or stacked[0] % single[0]:
        return 0
    return stacked[0] // single[0]


def _stacked_bounds(theirs: spaces.Box, offered: spaces.Box, count: int) -> bool:
    """Whether the stack declares each bound of the single frame `count` times, in whatever order; unbounded ones may."""
    if np.isinf(theirs.low).all() and np.isinf(theirs.high).all():
        return True
    pairs = ((theirs.low, offered.low), (theirs.high, offered.high))
    return all(stated.close(np.sort(a.reshape(-1)), np.sort(np.repeat(b.reshape(-1), count))) for a, b in pairs)


def _places(space: spaces.Box) -> Order:
    return np.arange(math.prod(space.shape)).reshape(space.shape)


def _in_line(order: Order) -> bool:
    return bool((order == np.arange(order.size)).all())
