"""The teacher's value as an auxiliary lesson: a linear head on a hidden layer, which export leaves behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch.nn import functional

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.losses.shapes import check_rows

DELTA = 1.0  # in spreads of the teacher's value


def value(
    student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head, own: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Huber(w h + b - (V_T - mean) / scale; 1), where h is a hidden layer of the student; usual weight 0.5.

    labels["value"] [T, B] in the teacher's units, labels["value_mean"] and labels["value_scale"] [] of the first round.
    It shapes the hidden layer alone (an auxiliary task, as in actor-critics with a shared body); w and b are the loss's
    own. student [K, T, B, F], own "weight" [K, F, 1], "bias" [K, 1] -> [K, T, B].
    """
    said = projected(student, own)[..., 0]
    wanted = (check_rows(said, labels["value"]) - labels["value_mean"]) / labels["value_scale"]
    return functional.huber_loss(said, wanted.expand_as(said), reduction="none", delta=DELTA)


def projected(student: torch.Tensor, own: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[K, T, B, F] by the members' own weights [K, F, G] and biases [K, G] -> [K, T, B, G]."""
    members, time, batch, width = student.shape
    rows = student.reshape(members, time * batch, width)
    return torch.baddbmm(own["bias"][:, None], rows, own["weight"]).reshape(members, time, batch, -1)


def _owned(layer: tuple[int, ...], teacher: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"weight": (math.prod(layer), 1), "bias": (1,)}


LOSSES = {
    "value": LossEntry(value, "trainable", frozenset({"value"}), get_args(HeadKind), False, reads="hidden", owns=_owned)
}
