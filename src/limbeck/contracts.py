"""The records that stages hand to each other and the protocols of the plug-ins.

Letters used in every shape: B batch (or slots), T time, O flat observation, A actions, W width of a head's
parameter row, K stacked students, N stored rows. Everything here is numpy and plain Python; torch begins in
`students/`, `losses/` and above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium as gym
    import torch

Array = NDArray[Any]
Floats = NDArray[np.float32]
Observation = Array | dict[str, Array]  # leading axis B; a dict for Dict spaces
State = dict[str, Array]  # policy memory, leading axis B; {} for memoryless policies
HeadKind = Literal["categorical", "multicategorical", "bernoulli", "q", "gaussian", "squashed", "deterministic", "tanh"]
Mode = Literal["greedy", "sampled"]
Verdict = Literal["proved", "not proved", "undecided"]


# ---------------------------------------------------------------- what a policy sees and says


@dataclass(frozen=True)
class Spec:
    """What a task offers: Gymnasium spaces and the task's name."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    name: str = "task"


@dataclass(frozen=True)
class View:
    """What of the observation a policy sees: a pure function applied inside the policy.

    `keys` picks entries of a Dict observation in that order (None: all, sorted); `indices` picks from the flat
    vector (None: all); `history` concatenates the last H flat vectors, oldest first, the first one repeated at an
    episode's start; `noise` adds Gaussian noise of that standard deviation during training only.
    """

    keys: tuple[str, ...] | None = None
    indices: tuple[int, ...] | None = None
    history: int = 1
    noise: float = 0.0


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
    features: Mapping[str, Array] = field(default_factory=dict)
    action: Array | None = None  # [B, ...] executed greedy action where the policy computes it itself (artefacts)


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


# ---------------------------------------------------------------- a policy as plain data


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ weight + bias)."""

    weight: Floats  # [in, out]
    bias: Floats  # [out]
    activation: str = "identity"


@dataclass(frozen=True)
class Gru:
    """Gated recurrent unit, torch's convention: gates reset, update, new stacked along the last axis.

    r = sigmoid(x Wr + br + h Ur + cr), z = sigmoid(x Wz + bz + h Uz + cz),
    n = tanh(x Wn + bn + r * (h Un + cn)), h' = (1 - z) n + z h (Cho et al. 2014, arXiv:1406.1078, as in torch.nn.GRU).
    """

    weight_x: Floats  # [in, 3H]
    weight_h: Floats  # [H, 3H]
    bias_x: Floats  # [3H]
    bias_h: Floats  # [3H]

    @property
    def size(self) -> int:
        return int(self.weight_h.shape[0])


Layer = Dense | Gru
ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid", "elu", "leaky_relu", "gelu", "silu", "hardtanh")


@dataclass(frozen=True)
class Normaliser:
    """x -> clip((x - mean) / scale, -clip, clip), on the flat observation before history."""

    mean: Floats  # [O]
    scale: Floats  # [O]
    clip: float = math.inf


@dataclass(frozen=True)
class Blueprint:
    """A whole deterministic policy as plain arrays: what is saved, exported, run and proved.

    observation -> view (keys, indices) -> normaliser -> history -> layers -> head.
    Students freeze into one, SB3 MLP teachers load as one, exporters write it, runtimes run it.
    """

    spec: Spec
    head: Head
    layers: tuple[Layer, ...]
    view: View = View()
    normaliser: Normaliser | None = None
    value_layers: tuple[Layer, ...] = ()  # the teacher's critic on the same input; never exported
    name: str = "policy"

    @property
    def parameters(self) -> int:
        """Stored numbers of the deployed policy, normaliser included, critic not."""
        arrays = [a for layer in self.layers for a in layer_arrays(layer)]
        if self.normaliser is not None:
            arrays += [self.normaliser.mean, self.normaliser.scale]
        return sum(int(a.size) for a in arrays)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one step."""
        return sum(int(a.size) for layer in self.layers for a in layer_arrays(layer) if a.ndim == 2)


def layer_arrays(layer: Layer) -> tuple[Floats, ...]:
    """The arrays of a layer in the order they are stored."""
    if isinstance(layer, Dense):
        return (layer.weight, layer.bias)
    return (layer.weight_x, layer.weight_h, layer.bias_x, layer.bias_h)


# ---------------------------------------------------------------- where a policy plays


@dataclass(frozen=True)
class Step:
    """One vector step. Rows with `alive` False were a reset or an idle slot: no transition took place there, and the
    observation they were taken from must not be stored."""

    obs: Observation  # [B, ...] after the step: what the policy sees next
    reward: NDArray[np.float64]  # [B]
    terminated: NDArray[np.bool_]  # [B]
    truncated: NDArray[np.bool_]  # [B]
    alive: NDArray[np.bool_]  # [B] a transition took place in this row
    first: NDArray[np.bool_]  # [B] `obs` begins a new episode in this row
    seeds: NDArray[np.int64]  # [B] seed of the episode that `obs` belongs to; -1 where the slot is idle or unseeded
    final_obs: Observation | None = None  # [B, ...] last observation of the episodes that ended here, where known


class Lanes(Protocol):
    """B environments stepped together. Every episode starts from a seed that `seeds` hands out, where that is possible."""

    @property
    def count(self) -> int: ...

    def start(self) -> Step:
        """Reset all lanes; `alive` is all False, `first` all True (idle lanes False)."""
        ...

    def step(self, actions: Array) -> Step:
        """One step in every lane; the actions of idle lanes are ignored."""
        ...

    def answers(self) -> NDArray[np.int64] | None:
        """[B] the right said action for the current observations, where the task knows it (labelled sets)."""
        ...

    def close(self) -> None: ...


SeedSource = Callable[[int], int | None]  # lane -> seed of its next episode, None: stay idle


@dataclass(frozen=True)
class Bounds:
    """Floor and ceiling of the return, fixed before a proof on seeds of their own."""

    floor: float
    ceiling: float
    source: str  # how they were fixed, in words


class Task(Protocol):
    """What a policy is judged on: an environment, or a labelled set as one-step episodes."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Spec: ...

    @property
    def bounds(self) -> Bounds | None:
        """Floor and ceiling of the return where the task knows them; None: they are measured before a proof."""
        ...

    @property
    def has_answers(self) -> bool:
        """Whether the task knows the right action for every observation (labelled sets)."""
        ...

    @property
    def max_lanes(self) -> int | None:
        """A fixed number of lanes (a ready-made vector environment), or None."""
        ...

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        """B lanes. Every episode starts from a seed of its own; with `stream` only each lane's first one must."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Returns by seed, in the order of the seeds asked for."""

    task: str
    seeds: NDArray[np.int64]  # [N]
    returns: NDArray[np.float64]  # [N], undiscounted
    lengths: NDArray[np.int64]  # [N], environment steps

    @property
    def env_steps(self) -> int:
        return int(self.lengths.sum())


# ---------------------------------------------------------------- losses


@dataclass(frozen=True)
class Batch:
    """Tensors of one gradient step for one task. Memoryless students get T = 1."""

    task: str
    inputs: torch.Tensor  # [T, B, O] view applied, history gathered, not normalised
    first: torch.Tensor | None  # [T, B] bool; None for single rows, which memoryless students take
    mask: torch.Tensor | None  # [T, B] float, 1 where the row counts; None: all do
    labels: Mapping[str, torch.Tensor]  # "params" [T, B, W] float32, "value" [T, B], "hard" [T, B] int64 ...


class PointLoss(Protocol):
    """[..., W] student rows against [B, W] label rows -> one value per row [..., B]. Never reduces, never detaches."""

    def __call__(self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor: ...


class BatchLoss(Protocol):
    """A function of a whole masked batch -> scalar per member [...]; states its smallest batch."""

    def __call__(
        self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head, mask: torch.Tensor
    ) -> torch.Tensor: ...


class TrainableLoss(Protocol):
    """A loss that owns parameters (projector, temperature, discriminator), dropped at export."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def __call__(self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor: ...


@dataclass(frozen=True)
class LossEntry:
    """A row of the table LOSSES: the function, what it needs, and which teacher heads it serves."""

    fn: Callable[..., torch.Tensor]
    kind: Literal["point", "batch", "trainable"]
    needs: frozenset[str]  # of: logits, q, gaussian, squashed, action, value, critic, features, next, reward, hard
    heads: tuple[HeadKind, ...]  # teacher heads it accepts
    divergence: bool  # zero when both sides agree


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Bill:
    """What a run cost. Environment steps are counted in rollout.py and nowhere else."""

    verify_steps: int = 0  # playing the teacher before distillation, random play for the floor
    collection_steps: int = 0
    race_steps: int = 0
    polish_steps: int = 0
    proof_steps: int = 0
    teacher_queries: int = 0  # observations labelled
    gradient_steps: int = 0  # optimiser steps times members trained
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def env_steps(self) -> int:
        return self.verify_steps + self.collection_steps + self.race_steps + self.polish_steps + self.proof_steps

    def plus(self, **amounts: float) -> Bill:
        """A new bill with the amounts added; the peak of memory is a maximum, not a sum."""
        peak = max(self.peak_memory_bytes, int(amounts.pop("peak_memory_bytes", 0)))
        return replace(self, peak_memory_bytes=peak, **{k: getattr(self, k) + v for k, v in amounts.items()})


@dataclass(frozen=True)
class Evaluation:
    """A policy's return on a task with a confidence interval (95 %, bootstrap over episodes)."""

    policy: str
    mode: Mode
    mean: float
    low: float
    high: float
    episodes: int
    env_steps: int
    returns: tuple[float, ...] = ()


@dataclass(frozen=True)
class Proof:
    """The verdict on one member, with everything needed to continue it."""

    task: str
    member: str
    played_by: str  # "c", "onnx", "numpy": the artefact that took the actions
    retain: float  # r
    alpha: float
    verdict: Verdict
    reason: str
    bounds: Bounds
    seed_stream: str
    seeds: tuple[int, ...]
    student_returns: tuple[float, ...]
    teacher_returns: tuple[float, ...]
    random_returns: tuple[float, ...]
    log_wealth: float
    retention: float  # point estimate (mean S - mean R) / (mean T - mean R)
    retention_low: float  # anytime-valid lower bound at level 1 - alpha
    env_steps: int
    fidelity: Mapping[str, float] = field(default_factory=dict)  # agreement, kl, regret on the student's own states

    @property
    def episodes(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Artifact:
    """One exported target in one folder."""

    target: str
    folder: Path
    files: tuple[str, ...]
    size_bytes: int  # of the file that ships
    compiled: bool  # False: written, not proved here
    note: str = ""


@dataclass(frozen=True)
class Latency:
    """Seconds of one step at batch 1, measured on the machine named in run.json."""

    p50_seconds: float
    p99_seconds: float
    calls: int


@dataclass(frozen=True)
class MemberReport:
    """One row of the result: a family member, what it is, what it keeps, what it costs."""

    name: str
    spec: str
    seed: int
    parameters: int
    size_bytes: int
    multiply_adds: int
    proof: Proof | None
    latency: Mapping[str, Latency]
    artifacts: Sequence[Artifact]
    polished: bool = False


@dataclass(frozen=True)
class RunResult:
    """Everything a finished (or incomplete) run tells: what result.json holds and the report is drawn from."""

    task: str
    teacher: TeacherInfo
    evaluations: Mapping[str, Evaluation]  # "greedy", "sampled" (where the head has randomness), "random"
    mode: Mode  # the teacher's better mode
    retain: float
    alpha: float
    members: Sequence[MemberReport]  # largest first
    bill: Bill
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    complete: bool
    command: str  # what to type to get this run again
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class TeacherInfo:
    """What a teacher file turned out to be."""

    path: str
    format: str  # "sb3", "limbeck", "torch", "callable"
    algorithm: str
    sha256: str
    stated: Mapping[str, Any] = field(default_factory=dict)  # what the file says in the open
    unread: tuple[str, ...] = ()  # entries that hold code or pickles we did not open
    notes: tuple[str, ...] = ()  # what was assumed or checked


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher: its policy and where it came from."""

    policy: Policy
    info: TeacherInfo
    blueprint: Blueprint | None = None  # None for torch modules and callables
