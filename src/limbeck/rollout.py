"""play(policy, task, seeds): the only way a policy meets a task outside collection; environment steps are counted here.

Results are a function of the seeds alone. A matrix product may round differently in another row or for another batch
size, and one flipped bit can change a chaotic episode, so a policy is always called with blocks of BLOCK rows and
seed number i always sits in row i mod BLOCK: the number of parallel slots changes nothing, nor does playing the seeds
in several calls that say by `number` where each begins. That holds where the slots divide BLOCK or are a multiple of
it, as all that `play` chooses do; a ready-made vector environment of another size is a layout of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, seeding, spaces, tasks
from limbeck.contracts import Array, Episodes, Floats, Head, Mode, Observation, Policy, State, Step, Task
from limbeck.errors import EnvironmentFault

BLOCK = 16
MAX_EPISODE_STEPS = 1_000_000  # an episode that never ends is a fault of the environment, not a reason to wait for ever


@dataclass(frozen=True)
class Frame:
    """One vector step as a watcher sees it; rows with `alive` False are to be ignored."""

    obs: Observation  # [B, ...] before the step
    first: NDArray[np.bool_]  # [B]
    params: Floats  # [B, W]
    actions: Array  # [B, ...] executed
    alive: NDArray[np.bool_]  # [B]
    indices: NDArray[np.int64]  # [B] position of the row's seed in `seeds`
    reward: NDArray[np.float64]  # [B]
    terminated: NDArray[np.bool_]  # [B] the step ended the episode by its own rules
    truncated: NDArray[np.bool_]  # [B] the step ended it by a time limit
    after: Step  # what the step gave; its `obs` belongs to the next episode where it ended one


def play(
    policy: Policy | None,
    task: Task,
    seeds: Sequence[int],
    *,
    mode: Mode | Literal["uniform"] = "greedy",
    run_seed: int = 0,
    slots: int = 64,
    number: int = 0,
    most: int | None = None,
    watch: Callable[[Frame], None] | None = None,
) -> Episodes:
    """One episode per seed; returns and lengths in the order of `seeds`. `policy` None plays uniformly at random.

    `number` is the place of the first seed in a longer list that is played in several calls. `most` leaves every
    episode after so many steps; there must be a lane for every seed then.

    Raises EnvironmentFault when the environment raises, hangs, returns numbers that are not finite or never ends.
    """
    wanted = len(seeds) if most is None else 2 * len(seeds) - 1  # rounded down, or so that there is one for every seed
    slots = task.max_lanes or _power_of_two(min(slots, wanted))
    if most is not None and len(seeds) > slots:
        raise ValueError(f"{len(seeds)} episodes cannot be left after {most} steps in {slots} lanes")
    seating = _Seating(seeds, slots, number)
    lanes = task.lanes(slots, seating.next_seed)
    actor = _Actor(policy, task, slots, mode, run_seed)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    try:
        step = lanes.start()
        sitting = seating.sitting.copy()
        while ((step.seeds >= 0).any() or seating.waiting) and (most is None or lengths.max(initial=0) < most):
            params, actions = actor.act(step.obs, step.first, sitting + number, step.seeds)
            before, first = step.obs, step.first
            step = lanes.step(actions)
            rows = step.alive
            returns[sitting[rows]] += step.reward[rows]
            lengths[sitting[rows]] += 1
            if watch is not None:
                ends = (step.terminated, step.truncated)
                watch(Frame(before, first, params, actions, step.alive, sitting, step.reward, *ends, step))
            if lengths.max(initial=0) > MAX_EPISODE_STEPS:
                raise EnvironmentFault(
                    f"{task.name}: an episode passed {MAX_EPISODE_STEPS:,} steps without ending. Give the environment a time limit."
                )
            sitting = seating.sitting.copy()
    finally:
        lanes.close()
    return Episodes(task.name, np.asarray(seeds, np.int64), returns, lengths)


class _Seating:
    """Which seed sits where: lane l serves the seeds number i with i mod m = l mod m, m = min(slots, BLOCK)."""

    def __init__(self, seeds: Sequence[int], slots: int, number: int) -> None:
        self._seeds, self._modulus = seeds, min(slots, BLOCK)
        self._queues = [
            deque(range((residue - number) % self._modulus, len(seeds), self._modulus))
            for residue in range(self._modulus)
        ]
        self.sitting = (
            np.arange(slots) - number
        ) % self._modulus  # lanes that never get a seed keep a row of their own

    @property
    def waiting(self) -> bool:
        return any(self._queues)

    def next_seed(self, lane: int) -> int | None:
        queue = self._queues[lane % self._modulus]
        if not queue:
            return None
        self.sitting[lane] = queue.popleft()
        return int(self._seeds[self.sitting[lane]])


class _Actor:
    """Calls the policy in blocks and turns rows into executed actions with one random stream per episode."""

    def __init__(self, policy: Policy | None, task: Task, slots: int, mode: str, run_seed: int) -> None:
        self._policy, self._slots, self._mode, self._run_seed = policy, slots, mode, run_seed
        self._head: Head = policy.head if policy is not None else spaces.head_for(task.spec.action_space)
        self._blocks = -(-slots // BLOCK)
        self._state: list[State] = (
            [policy.initial_state(BLOCK) for _ in range(self._blocks)] if policy is not None else []
        )
        self._streams: list[np.random.Generator | None] = [None] * slots

    def act(
        self, obs: Observation, first: NDArray[np.bool_], numbers: NDArray[np.int64], seeds: NDArray[np.int64]
    ) -> tuple[Floats, Array]:
        params, actions = self._answers(obs, first, numbers)
        if self._mode == "greedy":
            return params, actions
        for lane in np.flatnonzero(first):
            self._streams[lane] = seeding.generator(self._run_seed, self._mode, int(seeds[lane]))
        masks = tasks.allowed_actions(obs, self._head) if self._mode == "uniform" else None
        rows = [
            self._draw(params[lane : lane + 1], self._streams[lane], None if masks is None else masks[lane])
            for lane in range(self._slots)
        ]
        return params, distributions.execute(self._head, np.concatenate(rows))

    def _draw(self, params: Floats, stream: np.random.Generator | None, allowed: NDArray[np.bool_] | None) -> Array:
        if stream is None:  # an idle lane: its action is ignored
            return distributions.said(self._head, params)
        if self._mode == "uniform":
            return uniform(self._head, stream, allowed)
        return distributions.said(self._head, params, "sampled", stream)

    def _answers(self, obs: Observation, first: NDArray[np.bool_], numbers: NDArray[np.int64]) -> tuple[Floats, Array]:
        """Rows and greedy executed actions, those that the policy computed itself where it does."""
        params = np.zeros((self._slots, self._head.width), np.float32)
        actions = distributions.act(self._head, params)
        if self._policy is None:
            return params, actions
        for block in range(self._blocks):
            lanes = np.arange(block * BLOCK, min((block + 1) * BLOCK, self._slots))
            rows = numbers[lanes] % BLOCK if BLOCK % self._slots == 0 else lanes % BLOCK
            gather = np.zeros(BLOCK, np.int64)
            gather[rows] = lanes
            fresh = np.ones(BLOCK, bool)
            fresh[rows] = first[lanes]
            output = self._policy(tasks.take_rows(obs, gather), self._state[block], fresh)
            self._state[block] = output.state
            params[lanes] = output.params[rows]
            own = output.action if output.action is not None else distributions.act(self._head, output.params)
            actions[lanes] = own[rows]
        return params, actions


def uniform(head: Head, rng: np.random.Generator, allowed: NDArray[np.bool_] | None = None) -> Array:
    """[1, ...] one said action, uniform over the action space, or over what `allowed` [W] leaves of its lists; standard
    normal where it has no bounds. A list of which nothing is allowed (an idle lane's) is drawn from whole."""
    n = sum(head.sizes)
    match head.kind:
        case "categorical" | "q":
            return np.array([_one_of(head.sizes[0], rng, allowed)])
        case "multicategorical":
            groups = [None] * len(head.sizes) if allowed is None else np.split(allowed, np.cumsum(head.sizes)[:-1])
            return np.array([[_one_of(size, rng, group) for size, group in zip(head.sizes, groups, strict=True)]])
        case "bernoulli":
            return rng.integers(2, size=(1, n))
    low, high = distributions.bounds(head)
    finite = np.isfinite(low) & np.isfinite(high)
    drawn = np.where(
        finite, rng.random(n) * np.where(finite, high - low, 0) + np.where(finite, low, 0), rng.standard_normal(n)
    )
    return drawn.astype(np.float32)[None]


def _one_of(size: int, rng: np.random.Generator, allowed: NDArray[np.bool_] | None) -> int:
    if allowed is None or not allowed.any():
        return int(rng.integers(size))
    return int(np.flatnonzero(allowed)[rng.integers(int(allowed.sum()))])


def _power_of_two(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)
