"""The records that stages hand to each other and the protocols of the plug-ins.

Letters used in every shape: B batch (or slots), T time, O flat observation, A actions, W width of a head's
parameter row, K stacked students, N stored rows. Everything here is numpy and plain Python; torch begins in
`students/`, `losses/` and above.
"""

from __future__ import annotations

from limbeck.contracts.blueprint import ACTIVATIONS, Blueprint, Dense, Gru, Layer, Normaliser, layer_arrays
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
    "Array",
    "Artifact",
    "Batch",
    "BatchLoss",
    "Bill",
    "Blueprint",
    "Bounds",
    "Dense",
    "Episodes",
    "Evaluation",
    "Floats",
    "Gru",
    "Head",
    "HeadKind",
    "Lanes",
    "Latency",
    "Layer",
    "LossEntry",
    "MemberReport",
    "Mode",
    "Normaliser",
    "Observation",
    "PointLoss",
    "Policy",
    "PolicyOutput",
    "Proof",
    "RunResult",
    "SeedSource",
    "Spec",
    "State",
    "Step",
    "Task",
    "Teacher",
    "TeacherInfo",
    "TrainableLoss",
    "Verdict",
    "View",
    "layer_arrays",
]
