"""Environments that show more, or less, of the same state: what teacher and student see side by side, under two keys.

Everything a wrapper adds is a new entry of a Dict; nothing is taken away, so one task serves a teacher that sees all
and students that see part of it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from limbeck import spaces as rows
from limbeck.contracts import Array, View
from limbeck.errors import InputError
from limbeck.tasks.border import MASK, OBSERVATION, simple_space

Env = gym.Env[Any, Any]
MOVING = {  # class of the environment: positions of the observation that are velocities
    "CartPoleEnv": (1, 3), "PendulumEnv": (2,), "MountainCarEnv": (1,), "Continuous_MountainCarEnv": (1,),
    "AcrobotEnv": (4, 5), "LunarLander": (2, 3, 5), "LunarLanderContinuous": (2, 3, 5),
}  # fmt: skip
MOVING_PARTS = ("qvel", "cvel", "ten_velocity")  # of gymnasium's `observation_structure`


class Visible(gym.ObservationWrapper[Any, Any, Any]):
    """Dict{"observation": all, "visible": the positions in `places`}."""

    def __init__(self, env: Env, places: tuple[int, ...]) -> None:
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, spaces.Box)
        self._places = list(places)
        part = spaces.Box(full.low[self._places], full.high[self._places], dtype=full.dtype.type)
        self.observation_space = spaces.Dict({OBSERVATION: full, "visible": part})

    def observation(self, observation: Any) -> dict[str, Any]:
        return {OBSERVATION: observation, "visible": observation[self._places]}


def without_velocity(env: Env) -> tuple[int, ...] | None:
    """Positions of the observation that are no velocities; None where it is not known which are."""
    space, inner = env.observation_space, env.unwrapped
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return None
    moving = MOVING.get(type(inner).__name__)
    if moving is None:
        moving = _moving_in_mujoco(inner, space.shape[0])
    if not moving or max(moving) >= space.shape[0]:
        return None
    return tuple(i for i in range(space.shape[0]) if i not in moving)


def _moving_in_mujoco(inner: Any, width: int) -> tuple[int, ...]:
    """v5 says how its observation is made up; v4 is positions, less those left out, and then all velocities."""
    structure = getattr(inner, "observation_structure", None)
    if structure is not None:
        parts = {name: size for name, size in structure.items() if not name.startswith("skipped")}
        if sum(parts.values()) != width:
            return ()
        ends = np.cumsum(list(parts.values())).tolist()
        return tuple(
            i
            for (name, size), end in zip(parts.items(), ends, strict=True)
            if name in MOVING_PARTS
            for i in range(end - size, end)
        )
    model = getattr(inner, "model", None)
    if model is None or not hasattr(inner, "_exclude_current_positions_from_observation"):
        return ()
    left_out = int(model.nq + model.nv) - width
    fits = 0 < left_out <= 2 if inner._exclude_current_positions_from_observation else left_out == 0
    return tuple(range(int(model.nq) - left_out, width)) if fits else ()


class Pixels(gym.ObservationWrapper[Any, Any, Any]):
    """Dict{"state": the observation, "pixels": the picture}, or one entry more where the observation is a Dict."""

    def __init__(self, env: Env, shape: tuple[int, int, int]) -> None:
        super().__init__(env)
        self._shape = shape
        inner = env.observation_space
        parts = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {"state": inner}
        self.observation_space = spaces.Dict(parts | {"pixels": spaces.Box(0, 255, shape, np.uint8)})

    def observation(self, observation: Any) -> dict[str, Any]:
        frame = np.asarray(self.env.render())
        parts = dict(observation) if isinstance(observation, dict) else {"state": observation}
        return parts | {"pixels": shrink(frame, self._shape)}


def shrink(frame: Array, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] as [height, width, 1 or 3]: each pixel is the mean of the block it stands for, grey by
    ITU-R BT.601's weights.

    >>> shrink(np.full((4, 6, 3), 200, np.uint8), (2, 3, 1)).tolist()
    [[[200], [200], [200]], [[200], [200], [200]]]
    """
    height, width, channels = shape
    if frame.shape[0] < height or frame.shape[1] < width:
        raise InputError(f"the picture is {frame.shape[0]} x {frame.shape[1]}; {height} x {width} would be larger.")
    picture = frame[..., :3].astype(np.float64)
    if channels == 1:
        picture = picture @ np.array([[0.299], [0.587], [0.114]])
    for axis, size in ((0, height), (1, width)):
        starts = np.arange(size) * picture.shape[axis] // size
        counts = np.diff(np.append(starts, picture.shape[axis]))
        picture = np.add.reduceat(picture, starts, axis) / counts.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


class FullGrid(gym.ObservationWrapper[Any, Any, Any]):
    """Dict{"image": the agent's own view, "direction", "full": the whole grid with the agent in it [W, H, 3] uint8}."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        world: Any = env.unwrapped
        inner = env.observation_space
        if not isinstance(inner, spaces.Dict):
            raise InputError("the wrapper 'full_grid' needs MiniGrid's own Dict observation. Name it first.")
        size: tuple[int, int] = (world.width, world.height)
        whole = spaces.Box(0, 255, (*size, 3), dtype=np.uint8)
        self.observation_space = spaces.Dict({**inner.spaces, "full": whole})

    def observation(self, observation: Any) -> dict[str, Any]:
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

        world: Any = self.env.unwrapped
        whole = world.grid.encode()
        whole[tuple(world.agent_pos)] = OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], world.agent_dir
        return {**observation, "full": whole}


class IdealState(gym.Wrapper[Any, Any, Any, Any]):
    """The observation of a recommender, and "ideal": the user's true taste, recent topics and boredom, [3 topics]."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        world: Any = env.unwrapped
        inner = env.observation_space
        if not isinstance(inner, spaces.Dict):
            raise InputError("the wrapper 'ideal_state' needs SARDINE's own Dict observation. Name it first.")
        ideal = spaces.Box(0.0, 1.0, (3 * world.num_topics,), np.float32)
        self.observation_space = spaces.Dict({**inner.spaces, "ideal": ideal})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return {**obs, "ideal": np.asarray(info["user_state"], np.float32)}, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return {**obs, "ideal": np.asarray(info["user_state"], np.float32)}, reward, terminated, truncated, info


class Flat(gym.ObservationWrapper[Any, Any, Any]):
    """One float32 vector: entries sorted by name, discrete ones one-hot, text left out; an action mask stays apart."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._space, self._border, _ = simple_space(env.observation_space)
        parts = self._space.spaces if isinstance(self._space, spaces.Dict) else {}
        self._masked = MASK in parts
        self._view = View(mask=MASK if self._masked else None)
        width = rows.flat_size(self._space, self._view)
        flat = spaces.Box(*self._bounds(width), dtype=np.float32)
        self.observation_space = spaces.Dict({OBSERVATION: flat, MASK: parts[MASK]}) if self._masked else flat

    def observation(self, observation: Any) -> Any:
        parts = self._border.row(observation, {})
        batch = (
            {k: np.asarray(v)[None] for k, v in parts.items()} if isinstance(parts, dict) else np.asarray(parts)[None]
        )
        flat = rows.flatten(batch, self._space, self._view)[0]
        return {OBSERVATION: flat, MASK: parts[MASK]} if self._masked else flat

    def _bounds(self, width: int) -> tuple[Array, Array]:
        parts = (
            [self._space[k] for k in sorted(self._space.spaces) if k != self._view.mask]
            if isinstance(self._space, spaces.Dict)
            else [self._space]
        )
        low = [p.low.reshape(-1) if isinstance(p, spaces.Box) else np.zeros(rows.flat_size(p)) for p in parts]
        high = [p.high.reshape(-1) if isinstance(p, spaces.Box) else np.ones(rows.flat_size(p)) for p in parts]
        return np.concatenate(low).astype(np.float32), np.concatenate(high).astype(np.float32)
