"""The records that stages hand to each other and the protocols of the plug-ins.

Letters used in every shape: B batch (or slots), T time, O flat observation, A actions, W width of a head's
parameter row, K stacked students, N stored rows. Everything here is numpy and plain Python; torch begins in
`students/`, `losses/` and above.
"""

from __future__ import annotations

from limbeck.contracts.blueprint import Blueprint, Normaliser
from limbeck.contracts.layers import (
    ACTIVATIONS,
    LAYERS,
    Conv,
    Dense,
    Gru,
    Gsde,
    Layer,
    Lstm,
    Norm,
    Parallel,
    Pool,
    Shared,
    chain_problem,
    layer_arrays,
    memory_of,
    windows,
)
from limbeck.contracts.learning import Batch, BatchLoss, LossEntry, PointLoss, TrainableLoss
from limbeck.contracts.play import Bounds, Episodes, Lanes, SeedSource, Step, Task
from limbeck.contracts.policies import (
    Array,
    Floats,
    Head,
    HeadKind,
    Mode,
    Observation,
    Policy,
    PolicyOutput,
    Spec,
    State,
    View,
)
from limbeck.contracts.results import (
    Artifact,
    Bill,
    Evaluation,
    Latency,
    MemberReport,
    Proof,
    RunResult,
    Teacher,
    TeacherInfo,
    Verdict,
)

__all__ = [
    "ACTIVATIONS",
    "LAYERS",
    "Array",
    "Artifact",
    "Batch",
    "BatchLoss",
    "Bill",
    "Blueprint",
    "Bounds",
    "Conv",
    "Dense",
    "Episodes",
    "Evaluation",
    "Floats",
    "Gru",
    "Gsde",
    "Head",
    "HeadKind",
    "Lanes",
    "Latency",
    "Layer",
    "LossEntry",
    "Lstm",
    "MemberReport",
    "Mode",
    "Norm",
    "Normaliser",
    "Observation",
    "Parallel",
    "PointLoss",
    "Policy",
    "PolicyOutput",
    "Pool",
    "Proof",
    "RunResult",
    "SeedSource",
    "Shared",
    "Spec",
    "State",
    "Step",
    "Task",
    "Teacher",
    "TeacherInfo",
    "TrainableLoss",
    "Verdict",
    "View",
    "chain_problem",
    "layer_arrays",
    "memory_of",
    "windows",
]
