"""What a run hands to people: evaluations, proofs, artefacts, the bill."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.contracts.blueprint import Blueprint
from limbeck.contracts.critics import Critic
from limbeck.contracts.play import Bounds
from limbeck.contracts.policies import Mode, Policy

NO_ENVIRONMENT = "no environment"  # begins the reason of a verdict where nothing could be proved
NO_PLAYER = "the teacher is a recording, which cannot play the student's episodes"
Verdict = Literal["proved", "not proved", "undecided"]


def confidence(alpha: float) -> str:
    """1 - alpha in words, rounded down: no text claims more than was shown.

    >>> confidence(0.05), confidence(0.0333), confidence(0.05 / 3), confidence(1e-6)
    ('95 %', '96.67 %', '98.33 %', '99.99 %')
    """
    return f"{math.floor(1e4 * (1 - alpha) + 1e-6) / 100:g} %"


@dataclass(frozen=True)
class Bill:
    """What a run cost. Environment steps are counted in rollout.py and nowhere else."""

    verify_steps: int = 0  # playing the teacher before distillation, random play for the floor
    collection_steps: int = 0
    race_steps: int = 0
    polish_steps: int = 0
    proof_steps: int = 0
    teacher_queries: int = 0  # labels: observations of the data set that the teacher answered
    gradient_steps: int = 0  # optimiser steps times members trained
    seconds: float = 0.0  # of all stages, the video included; drawing the page, well under a second, is not
    peak_memory_bytes: int = 0
    other_steps: int = 0  # golden sequences of the artefacts, the video
    critic_fits: int = 0  # least-squares fits of a critic times its members; they take no gradient steps
    critic_steps: int = 0  # playing the teacher where a fitted critic's error was measured
    stress_steps: int = 0  # teacher and student under disturbances

    @property
    def env_steps(self) -> int:
        """All environment steps of the run."""
        chosen = self.verify_steps + self.collection_steps + self.race_steps + self.polish_steps
        return chosen + self.proof_steps + self.critic_steps + self.stress_steps + self.other_steps


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
    chosen_late: bool = False  # retain or alpha was chosen with episodes seen: only the bound for all retentions proves
    sources: Mapping[str, str] = field(default_factory=dict)  # regret -> exact, teacher's critic or fitted (error e)

    @property
    def episodes(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Device:
    """What an artefact costs on one microcontroller, built and run in an emulator: instructions are not cycles."""

    name: str  # cortex-m0, cortex-m3, cortex-m4f, cortex-m7, rv32
    flash_bytes: int  # code, constants and what it needs of libm
    ram_bytes: int  # static memory and the policy's state
    stack_bytes: int  # of one step
    instructions: int  # of one step, the median over golden rows
    tools: str  # compiler and emulator with their versions


@dataclass(frozen=True)
class Artifact:
    """One exported target in one folder."""

    target: str
    folder: Path
    files: tuple[str, ...]
    size_bytes: int  # of the file that ships
    compiled: bool  # False: written, not proved here
    note: str = ""
    devices: Sequence[Device] = ()


@dataclass(frozen=True)
class Latency:
    """Seconds of one step at batch 1, measured on the machine named in run.json."""

    p50_seconds: float
    p99_seconds: float
    calls: int


@dataclass(frozen=True)
class Rate:
    """A measure in 0..1 with its 95 % interval, of so many rows; `interval` says how it was made."""

    value: float
    low: float
    high: float
    rows: int
    interval: str  # "wilson" or "bootstrap"


@dataclass(frozen=True)
class Stressed:
    """How teacher and student play under one disturbance, on the same seeds."""

    disturbance: str  # a name of limbeck.proof.DISTURBANCES, or "none"
    level: float
    unit: str  # of the level, in words: "standard deviations", "steps", "share of steps"
    teacher: float  # mean return
    student: float
    # (S - R) / (T - R) with T and S under the disturbance. R is random play in the same world: the shifted one where a
    # physical constant is shifted, else the undisturbed one, since random play does not look
    retention: float
    low: float  # 95 %, paired bootstrap over episodes
    high: float
    episodes: int
    env_steps: int
    seed: int | None = None  # of the episodes and draws; None: not written down


@dataclass(frozen=True)
class Disagreement:
    """One state on the student's own path where teacher and student want different things."""

    seed: int
    step: int
    teacher_action: str
    student_action: str
    cost: float  # what the student's action loses by the teacher's values; divergence where no value is known
    unit: str  # "return (fitted)", "return (exact)", "nats"
    picture: str = ""  # file inside the run, "" where nothing is drawn


@dataclass(frozen=True)
class Looked:
    """Which parts of a picture move a policy's action: shares of influence on a coarse grid over the picture."""

    key: str  # of the observation, "" where it has none
    height: int  # of the picture, in pixels
    width: int
    shares: tuple[tuple[float, ...], ...]  # [rows, columns] from the top left; the sum is 1
    states: int  # visited ones, over which the influence is the mean


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
    formula: str = ""  # what a small tree or rule does, in words; "" for others
    stressed: Sequence[Stressed] = ()
    tails: Mapping[str, Rate] = field(default_factory=dict)  # returns: iqm, worst 5 %, worst 1 %, superiority ...
    disagreements: Sequence[Disagreement] = ()  # costliest first
    simplicity: Mapping[str, float] = field(default_factory=dict)  # of trees and rules: depth, leaves, path, numbers
    saliency: Mapping[str, float] = field(default_factory=dict)  # number of the observation -> share of the influence
    lineage: Sequence[str] = ()  # of compressed members: the member it came from, then each step: "prune 0.5"
    looks: Mapping[str, Looked] = field(default_factory=dict)  # by key of the observation: where in its pictures


@dataclass(frozen=True)
class RunResult:
    """Everything a finished run tells: what result.json holds and the report is drawn from."""

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
    command: str  # what to type to get this run again
    notes: Sequence[str] = ()
    scores: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)  # of labelled sets: who -> measure
    # bound of the probability that one or more claims of the family are false; None: nothing was tested, or not written down
    family: float | None = None


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
    critic: Critic | None = None  # its own Q(s, a), where its actions are continuous and its file holds one
    exact: bool = False  # its action values are Q of its own policy exactly, as after value iteration
