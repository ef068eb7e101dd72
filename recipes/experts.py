"""Scripted teachers: rules that see more than a student will, named in recipes as `recipes.experts:NAME`.

MiniGrid's memory task shows a key or a ball in the first room; at the end of a hall the same object must be chosen.
`memory_sN` sees the whole grid of size N (wrapper full_grid) and could walk straight to the right end. Then nobody who
sees only the agent's own view could ever learn from it: in three of four starts (size 7) the first object lies
behind the agent and is never looked at. So this expert turns and looks first. It remembers that it has looked.
`straight_sN` is the same expert without the look: what it knows cannot be learnt from the agent's view.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from limbeck.contracts import Head, Observation, PolicyOutput, Spec, State

WALL, KEY, BALL, AGENT = 2, 5, 6, 10  # MiniGrid's object numbers
LEFT, RIGHT, FORWARD = 0, 1, 2  # its actions
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # its directions: east, south, west, north
VIEW = 7  # the agent's own view: it stands in the middle of the last row
SURE = 20.0  # nats between the chosen action and every other one


class MemoryExpert:
    """Looks at the object of the first room, then walks the shortest way to its like. [B, 7] logits."""

    def __init__(self, size: int, look: bool = True) -> None:
        own = spaces.Box(0, 255, (VIEW, VIEW, 3), np.uint8)
        whole = spaces.Box(0, 255, (size, size, 3), np.uint8)
        observed = spaces.Dict({"direction": spaces.Discrete(4), "full": whole, "image": own})
        self._spec = Spec(observed, spaces.Discrete(7), f"MiniGrid-MemoryS{size}-v0")
        self._head, self._look = Head("categorical", (7,), start=(0,)), look

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def head(self) -> Head:
        return self._head

    def initial_state(self, batch: int) -> State:
        return {"looked": np.zeros(batch, bool)}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        if not isinstance(obs, dict) or "full" not in obs:
            raise ValueError("the memory expert needs the whole grid: put full_grid into task.wrappers")
        looked = state["looked"] & ~first
        params = np.full((len(first), 7), -SURE, np.float32)
        for row, (grid, image) in enumerate(zip(np.asarray(obs["full"]), np.asarray(obs["image"]), strict=True)):
            looked[row] |= not self._look or sees_first_object(grid, image)
            params[row, next_action(grid, bool(looked[row]))] = 0.0
        return PolicyOutput(params, {"looked": looked})


def sees_first_object(grid: NDArray[Any], image: NDArray[Any]) -> bool:
    """Whether the first room's object is in the agent's own view [7, 7, 3] now."""
    x, y, direction = agent_of(grid)
    cue = (1, grid.shape[1] // 2 - 1)
    (fx, fy), (rx, ry) = AHEAD[direction], AHEAD[(direction + 1) % 4]
    dx, dy = cue[0] - x, cue[1] - y
    column, row = VIEW // 2 + dx * rx + dy * ry, VIEW - 1 - (dx * fx + dy * fy)
    return 0 <= column < VIEW and 0 <= row < VIEW and bool(image[column, row, 0] == grid[(*cue, 0)])


def next_action(grid: NDArray[Any], looked: bool) -> int:
    """The first action of a shortest way: to where the first object is seen, or to the end that shows its like."""
    x, y, direction = agent_of(grid)
    middle = grid.shape[1] // 2
    goals = _ends(grid) if looked else ((2, middle, 2),)  # before the object, facing west
    free = (grid[:, :, 0] != WALL) & (grid[:, :, 0] != KEY) & (grid[:, :, 0] != BALL)
    return _ways(free.tobytes(), grid.shape[0], grid.shape[1], goals).get((x, y, direction), FORWARD)


def agent_of(grid: NDArray[Any]) -> tuple[int, int, int]:
    """Column, row and direction of the agent; the middle of the first room, facing east, where a grid has none."""
    found = np.argwhere(grid[:, :, 0] == AGENT)
    if not len(found):
        return 1, grid.shape[1] // 2, 0
    x, y = (int(v) for v in found[0])
    return x, y, int(grid[x, y, 2]) % 4


def _ends(grid: NDArray[Any]) -> tuple[tuple[int, int, int], ...]:
    """Where the episode ends well, from whichever direction: beside the object that is like the first room's."""
    middle = grid.shape[1] // 2
    wanted = grid[1, middle - 1, 0]
    for x in range(2, grid.shape[0]):
        for y, beside in ((middle - 2, middle - 1), (middle + 2, middle + 1)):
            if wanted in (KEY, BALL) and 0 <= y < grid.shape[1] and grid[x, y, 0] == wanted:
                return tuple((x, beside, direction) for direction in range(4))
    return ()


@lru_cache(maxsize=256)
def _ways(free: bytes, width: int, height: int, goals: tuple[tuple[int, int, int], ...]) -> dict[tuple[int, int, int], int]:  # fmt: skip
    """The first action of a shortest way to `goals` from every (column, row, direction), searched backwards."""
    open_ = np.frombuffer(free, bool).reshape(width, height)
    ways: dict[tuple[int, int, int], int] = {}
    reached, line = set(goals), deque(goals)
    while line:
        x, y, direction = line.popleft()
        dx, dy = AHEAD[direction]
        before = [((x, y, (direction + 1) % 4), LEFT), ((x, y, (direction - 1) % 4), RIGHT)]
        if 0 <= x - dx < width and 0 <= y - dy < height and open_[x - dx, y - dy]:
            before.append(((x - dx, y - dy, direction), FORWARD))
        for place, action in before:
            if place not in reached:
                reached.add(place)
                ways[place] = action
                line.append(place)
    return ways


memory_s7, memory_s9, memory_s11, memory_s13 = (MemoryExpert(size) for size in (7, 9, 11, 13))
straight_s7, straight_s13 = MemoryExpert(7, look=False), MemoryExpert(13, look=False)
