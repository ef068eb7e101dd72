"""Activations of students in torch, by the names that blueprints use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

ACTIVATE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "leaky_relu": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "hardtanh": functional.hardtanh,
    "softplus": functional.softplus,
}
