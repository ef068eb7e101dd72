"""The border between an environment and its task: whatever an environment gives becomes one array or one flat Dict.

Policies here read numbers by key, so Tuples and nested Dicts become a flat Dict ("0", "1", "a/b"), and text is left
behind, which the task's notes say. An action mask becomes the entry "action_mask" wherever the environment keeps it:
in its observation (PettingZoo), in a method `action_masks()` (sb3-contrib), or in its info.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from limbeck.contracts import Array, Head, Observation, Spec
from limbeck.errors import InputError

MASK = "action_mask"
OBSERVATION = "observation"
INFO_KEYS = ("action_mask", "action_masks")
NUMBERS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Border:
    """How the observations of an environment, single or batched, become what the task's spec says."""

    paths: tuple[tuple[str, Path], ...] | None = None  # key -> where it lies; None: the observation is as it should be
    mask: Literal["", "method", "info"] = ""  # where an action mask comes from that the observation does not hold
    info_key: str = ""

    def row(self, raw: Any, info: Mapping[str, Any], method: Callable[[], Any] | None = None) -> Any:
        """What the policy may look at after one call of reset or step."""
        obs = raw if self.paths is None else {key: _walk(raw, path) for key, path in self.paths}
        if not self.mask:
            return obs
        mask = method() if self.mask == "method" and method is not None else info[self.info_key]
        named = dict(obs) if isinstance(obs, dict) else {OBSERVATION: obs}
        return named | {MASK: np.asarray(mask, np.int8)}

    def mask_method(self, env: gym.Env[Any, Any]) -> Callable[[], Any] | None:
        """The method of `env` that says which actions are allowed, where the mask comes from there."""
        return env.get_wrapper_attr("action_masks") if self.mask == "method" else None

    @property
    def plain(self) -> bool:
        return self.paths is None and not self.mask


def simple_space(space: gym.Space[Any]) -> tuple[gym.Space[Any], Border, tuple[str, ...]]:
    """The space as one array or a flat Dict, the border that leads there, and notes on what was left behind.

    Raises InputError for parts that are neither numbers nor text, and where nothing but text is left.

    >>> nested = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2), spaces.Text(5)])})
    >>> simple, border, notes = simple_space(nested)
    >>> sorted(simple.spaces), notes[0][:25]
    (['a/0'], "the text 'a/1' is left ou")
    """
    if isinstance(space, NUMBERS):
        return space, Border(), ()
    kept: dict[str, gym.Space[Any]] = {}
    paths: list[tuple[str, Path]] = []
    notes: list[str] = []
    for path, leaf in _leaves(space, ()):
        key = "/".join(str(part) for part in path)
        if _is_text(leaf):
            notes.append(f"the text {key!r} is left out: no policy here reads text" if key else "text")
        elif not isinstance(leaf, NUMBERS):
            raise InputError(
                f"the observation's part {key!r} is a {type(leaf).__name__} space, which is not supported. Allowed: Box, Discrete, MultiDiscrete, MultiBinary, Text, and Dict and Tuple of these."
            )
        elif key in kept:
            raise InputError(f"two parts of the observation would be called {key!r}. Rename one.")
        else:
            kept[key] = leaf
            paths.append((key, path))
    if not kept:
        raise InputError(
            f"the observation {space} holds text alone, which no policy here reads. Use another environment."
        )
    if isinstance(space, spaces.Dict) and not notes and all(len(path) == 1 for _, path in paths):
        return space, Border(), ()
    return spaces.Dict(kept), Border(tuple(paths)), tuple(notes)


def with_mask(
    space: gym.Space[Any], border: Border, actions: gym.Space[Any], source: Literal["method", "info"], info_key: str
) -> tuple[gym.Space[Any], Border, tuple[str, ...]]:
    """Add the mask that `action_masks()` or an entry of info offers, where the actions can be masked."""
    offered = "its method action_masks()" if source == "method" else f"info[{info_key!r}]"
    width = mask_width(actions)
    if width is None:
        return space, border, (f"{offered} is ignored: only Discrete and MultiDiscrete actions are masked",)
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION: space}
    parts[MASK] = spaces.MultiBinary(width)
    note = f"{offered} is the observation's entry {MASK!r}" + (
        "" if isinstance(space, spaces.Dict) else f", beside {OBSERVATION!r}"
    )
    return spaces.Dict(parts), Border(border.paths, source, info_key), (note,)


def mask_width(actions: gym.Space[Any]) -> int | None:
    """W: numbers of an action mask; None where actions are not chosen from lists."""
    if isinstance(actions, spaces.Discrete):
        return int(actions.n)
    return int(actions.nvec.sum()) if isinstance(actions, spaces.MultiDiscrete) else None


def holds_mask(spec: Spec) -> bool:
    """Whether the task's observation says which actions are allowed."""
    space = spec.observation_space
    if not isinstance(space, spaces.Dict) or MASK not in space.spaces:
        return False
    return int(np.prod(space[MASK].shape or ())) == mask_width(spec.action_space)


def allowed_actions(obs: Observation, head: Head) -> NDArray[np.bool_] | None:
    """[B, W] which actions are allowed; None where the observation does not say."""
    if not isinstance(obs, dict) or MASK not in obs or head.kind not in ("categorical", "q", "multicategorical"):
        return None
    mask = obs[MASK].reshape(len(obs[MASK]), -1)
    return np.asarray(mask > 0, bool) if mask.shape[1] == head.width else None


def _leaves(space: gym.Space[Any], path: Path) -> Iterator[tuple[Path, gym.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for place, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, place))
    else:
        yield path, space


def _is_text(space: gym.Space[Any]) -> bool:
    """MiniGrid's missions are spaces of their own kind whose dtype is str."""
    return isinstance(space, spaces.Text) or (space.dtype is not None and np.dtype(space.dtype).kind == "U")


def _walk(raw: Any, path: Path) -> Array:
    for part in path:
        raw = raw[part]
    return raw
