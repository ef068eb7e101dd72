"""What a policy sees and says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium as gym

Array = NDArray[Any]
Floats = NDArray[np.float32]
Observation = Array | dict[str, Array]  # leading axis B; a dict for Dict spaces
State = dict[str, Array]  # policy memory, leading axis B; {} for memoryless policies
HeadKind = Literal["categorical", "multicategorical", "bernoulli", "q", "gaussian", "squashed", "deterministic", "tanh"]
Mode = Literal["greedy", "sampled"]


def head_kind(word: str) -> HeadKind:
    """A word as a kind of head. Raises ValueError for any other.

    >>> head_kind("q")
    'q'
    """
    for kind in get_args(HeadKind):
        if kind == word:
            return kind
    raise ValueError(f"{word!r} is no kind of head")


@dataclass(frozen=True)
class Spec:
    """What a task offers: Gymnasium spaces and the task's name.

    With `agents` above 1 the observation has one row per agent, [agents, ...], and the action one entry (or n) per agent.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    name: str = "task"
    agents: int = 1


@dataclass(frozen=True)
class View:
    """What of the observation a policy sees: a pure function applied inside the policy.

    `keys` picks entries of a Dict observation in that order (None: all but the mask, sorted); `indices` picks from the
    flat vector (None: all); `history` concatenates the last H flat vectors, oldest first; at an episode's start the
    places before it hold the first vector again, or zeros with `padding` "zero" (as frame stacks of Stable-Baselines3
    and ale-py do); `noise` adds Gaussian noise of that standard deviation during training only; `mask` is the key of
    the Dict entry that says which actions are allowed (1) and which not (0).
    """

    keys: tuple[str, ...] | None = None
    indices: tuple[int, ...] | None = None
    history: int = 1
    noise: float = 0.0
    padding: Literal["first", "zero"] = "first"
    mask: str | None = None


@dataclass(frozen=True)
class Head:
    """How to read a row of W numbers as a distribution over actions.

    kind             row of W numbers                                 executed action
    categorical      A logits                                         argmax + start
    q                A action values                                  argmax + start
    multicategorical sum(sizes) logits                                argmax of each group + start
    bernoulli        n logits                                         logit > 0
    gaussian         n means, n log standard deviations               clip(mean, low, high)
    squashed         n pre-tanh means, n log standard deviations      low + (tanh(mean) + 1) / 2 (high - low)
    deterministic    n means                                          clip(mean, low, high)
    tanh             n pre-tanh means                                 low + (tanh(mean) + 1) / 2 (high - low)
    """

    kind: HeadKind
    sizes: tuple[int, ...]  # (A,), or (A1, A2, ...) for multicategorical, or (n,)
    low: tuple[float, ...] = ()  # [n] bounds of the executed action, continuous kinds only (may be infinite)
    high: tuple[float, ...] = ()
    start: tuple[int, ...] = ()  # offset of each discrete action, as Gymnasium's Discrete(start=...)
    shape: tuple[int, ...] = ()  # shape of one action as the environment wants it

    @property
    def width(self) -> int:
        """W: how many numbers describe one distribution."""
        return sum(self.sizes) * (2 if self.kind in ("gaussian", "squashed") else 1)

    @property
    def discrete(self) -> bool:
        return self.kind in ("categorical", "q", "multicategorical", "bernoulli")

    @property
    def bounded(self) -> bool:
        return bool(self.low) and all(math.isfinite(v) for v in (*self.low, *self.high))


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says about a batch of observations."""

    params: Floats  # [B, W], read by the policy's head
    state: State  # memory after this step
    value: Floats | None = None  # [B], the policy's own estimate of the return to come
    action: Array | None = None  # [B, ...] executed greedy action where the policy computes it itself (artefacts)
    features: Mapping[str, Array] = field(default_factory=dict)  # layer -> [B, ...], of the layers it was asked to show


@runtime_checkable
class Policy(Protocol):
    """Teachers, students and reloaded artefacts alike. Speaks numpy."""

    @property
    def spec(self) -> Spec: ...

    @property
    def head(self) -> Head: ...

    def initial_state(self, batch: int) -> State:
        """Memory for B fresh rows."""
        ...

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        """One step for B rows; rows with `first` forget their memory before they look."""
        ...
