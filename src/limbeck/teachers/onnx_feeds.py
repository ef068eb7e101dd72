"""What an ONNX model's inputs get of the task's observation: the entry, the layout of pictures, frame stacks, the type."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Floats, Observation, Spec, State, View
from limbeck.errors import InputError, printable
from limbeck.spaces import MASK
from limbeck.teachers import fitting, stated
from limbeck.teachers.normaliser import Normalising
from limbeck.teachers.onnx_ports import Port, batch_axis


@dataclass(frozen=True)
class Feed:
    """One input and how its numbers are made."""

    port: Port
    space: gym.Space[Any]  # of the task
    view: View
    shape: tuple[int, ...]  # of one row in the input, without the batch
    picture: tuple[int, int, int] | None = None  # the row is a picture [height, width, channels] or, with `first`, of
    first: bool = False  # [channels, height, width]; the input wants it the other way
    whole: bool = False  # the input takes the numbers of a Discrete or MultiDiscrete observation themselves
    divide: float = 1.0
    normalising: Normalising | None = None
    notes: tuple[str, ...] = ()

    @property
    def memory(self) -> tuple[str, int] | None:
        """Name and width of the frames that are kept, None without a stack."""
        if self.view.history == 1:
            return None
        return f"frames {self.port.name}", (self.view.history - 1) * spaces.flat_size(self.space, self.view)

    def rows(self, obs: Observation, state: State, first: NDArray[np.bool_], after: State) -> Array:
        """The input for B rows, the batch where the model wants it; the frames to keep go into `after`."""
        if self.whole:
            key = self.view.keys[0] if self.view.keys else None
            raw = np.asarray(obs[key] if isinstance(obs, dict) and key is not None else obs)
            return self._placed(raw.reshape(len(first), *self.shape))
        x = self._normalised(spaces.flatten(obs, self.space, self.view))
        if (kept := self.memory) is not None:
            fresh = np.tile(x, self.view.history - 1) if self.view.padding == "first" else np.float32(0)
            x = np.concatenate([np.where(first[:, None], fresh, state[kept[0]]), x], axis=1)
            after[kept[0]] = x[:, -kept[1] :]
        if self.picture is not None:
            x = x.reshape(-1, *self.picture).transpose(0, *((2, 3, 1) if self.first else (3, 1, 2)))
        return self._placed(x.reshape(len(first), *self.shape))

    def _normalised(self, x: Floats) -> Floats:
        if self.divide != 1:
            x = x / np.float32(self.divide)
        found = self.normalising
        if found is None or found.normaliser is None:
            return x
        norm = found.normaliser
        x = np.clip((x - norm.mean) / norm.scale, -norm.clip, norm.clip)
        return (x if found.gain is None else x * found.gain).astype(np.float32)

    def _placed(self, x: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(x, 0, batch_axis(self.port)), self.port.dtype)


def feeds(seen: tuple[Port, ...], spec: Spec, given: View | None, name: str) -> tuple[Feed, ...]:
    """One feed per input. Raises InputError where an input cannot be fed from this task."""
    if len(seen) == 1:
        return (_typed(_feed(seen[0], spec, given), name),)
    space = spec.observation_space
    if not isinstance(space, gym_spaces.Dict):
        raise InputError(
            f"{printable(name)} takes {', '.join(map(str, seen))}, {printable(spec.name)} offers one observation, {stated.shape_of(space)}. Allowed: one input for it; memory under names such as h_in and h_out."
        )
    found = []
    for port in seen:
        key = _key(port, space, name)
        one = replace(spec, observation_space=gym_spaces.Dict({key: space[key]}))
        found.append(_typed(_feed(port, one, View(keys=(key,))), name))
    return tuple(replace(feed, space=space) for feed in found)


def _key(port: Port, space: gym_spaces.Dict, name: str) -> str:
    """The entry of the same name."""
    plain = {key: re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_") for key in space.spaces}
    wanted = MASK if port.plain in ("mask", "masks", "action_masks", "legal_actions") else port.plain
    keys = [key for key, text in plain.items() if key == port.name] or [
        k for k, text in plain.items() if text == wanted
    ]
    if len(keys) != 1:
        raise InputError(
            f"{printable(name)} takes {port}, the observation has {', '.join(map(repr, space.spaces))}. Allowed: inputs named like its entries."
        )
    return keys[0]


def _feed(port: Port, spec: Spec, given: View | None) -> Feed:
    axis, space = batch_axis(port), spec.observation_space
    dims = tuple(d for i, d in enumerate(port.dims) if i != axis)
    entry = _entry(space, given)
    if isinstance(entry, (gym_spaces.Discrete, gym_spaces.MultiDiscrete)) and port.dtype.kind in "iu":
        count = 1 if isinstance(entry, gym_spaces.Discrete) else entry.nvec.size
        shape = _closed(dims, count)
        if math.prod(shape) != count:
            raise stated.differ(
                [f"the teacher's {port} takes {math.prod(shape)} numbers, the task gives {count}"], spec
            )
        return Feed(port, space, View(keys=_keys(space, given)), shape, whole=True)
    if len(dims) == 3 and (picture := _picture(port, dims, spec, given)) is not None:
        return picture
    if dims and not isinstance(dims[-1], int):
        offered = spaces.flat_size(space, given or View())
        dims = (*dims[:-1], offered) if math.prod(d for d in dims[:-1] if isinstance(d, int)) == 1 else dims
    shape = tuple(d if isinstance(d, int) else 1 for d in dims)
    sight = fitting.vector(spec, math.prod(shape), given, given.history if given is not None else 1)
    return Feed(port, space, sight.view, shape, notes=sight.notes)


def _closed(dims: tuple[int | str | None, ...], count: int) -> tuple[int, ...]:
    """The shape of a row with its open dimensions filled."""
    known = math.prod(d for d in dims if isinstance(d, int))
    opened = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    return tuple(
        d if isinstance(d, int) else (count // max(known, 1) if i == opened[-1] else 1) for i, d in enumerate(dims)
    )


def _entry(space: gym.Space[Any], given: View | None) -> gym.Space[Any]:
    keys = _keys(space, given)
    return space[keys[0]] if isinstance(space, gym_spaces.Dict) and keys else space


def _keys(space: gym.Space[Any], given: View | None) -> tuple[str, ...] | None:
    """The one entry that is meant: named by the user, or the only one."""
    if not isinstance(space, gym_spaces.Dict):
        return None
    keys = given.keys if given is not None and given.keys else tuple(k for k in space.spaces if k != MASK)
    return keys if len(keys) == 1 and keys[0] in space.spaces else None


def _picture(port: Port, dims: tuple[int | str | None, ...], spec: Spec, given: View | None) -> Feed | None:
    """The feed of an input of three axes where the task gives pictures, None where it gives none."""
    space = spec.observation_space
    entries = space.spaces.values() if isinstance(space, gym_spaces.Dict) else [space]
    pictures = [e for e in entries if len(e.shape or ()) in (2, 3)]
    if not pictures:
        return None
    if any(e.shape == dims for e in pictures):
        shape = tuple(d for d in dims if isinstance(d, int))
        sight = fitting.vector(spec, math.prod(shape), given)
        return Feed(port, space, sight.view, shape, notes=(*sight.notes, *_scale_note(space, sight.view, port)))
    found: list[Feed] = []
    problems: list[InputError] = []
    for wants, (c, h, w) in {"chw": dims, "hwc": (dims[2], dims[0], dims[1])}.items():
        if not isinstance(c, int):
            continue
        try:
            sight = fitting.image(spec, c, given, (h, w) if isinstance(h, int) and isinstance(w, int) else None)
        except InputError as error:
            problems.append(error)
            continue
        height, width = sight.size
        lies_first = sight.layout == "chw"
        picture = None
        if sight.layout != wants:
            picture = (c, height, width) if lies_first else (height, width, c)
        shape = (c, height, width) if wants == "chw" else (height, width, c)
        notes = (*sight.notes, *_scale_note(space, sight.view, port))
        found.append(Feed(port, space, sight.view, shape, picture, lies_first, notes=notes))
    if len(found) != 1:
        if problems and not found:
            raise problems[0]
        raise stated.differ([f"the teacher takes {port}, the task gives {stated.shape_of(space)}"], spec)
    return found[0]


def _scale_note(space: gym.Space[Any], view: View, port: Port) -> tuple[str, ...]:
    entry = space[view.keys[0]] if isinstance(space, gym_spaces.Dict) and view.keys else space
    if port.dtype.kind != "f" or not isinstance(entry, gym_spaces.Box) or float(np.max(entry.high)) != 255:
        return ()
    return (
        "its picture goes in as the task gives it, 0 to 255; say --architecture obs/255 if it was trained on 0 to 1",
    )


def _typed(feed: Feed, name: str) -> Feed:
    """Refuse inputs of whole numbers for observations that are none."""
    if feed.whole or feed.port.dtype.kind == "f":
        return feed
    entry = _entry(feed.space, feed.view)
    fits = isinstance(entry, gym_spaces.Box) and entry.dtype.kind in "iu" and np.can_cast(entry.dtype, feed.port.dtype)
    if not (fits or isinstance(entry, (gym_spaces.MultiBinary, gym_spaces.Discrete, gym_spaces.MultiDiscrete))):
        raise InputError(
            f"{printable(name)} takes {feed.port}, the task gives {stated.described(entry)}. Allowed: an input of float numbers."
        )
    return feed
