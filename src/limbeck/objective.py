"""The only place that weighs, schedules, masks and reduces losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from limbeck.contracts import Batch, Head
from limbeck.losses import LOSSES


@dataclass(frozen=True)
class Term:
    """One loss and its weight."""

    name: str
    weight: float


def mixture(name: str, hard_weight: float) -> tuple[Term, ...]:
    """(1 - lambda) loss + lambda CE(hard label): the canonical form of distillation with labels; lambda in [0, 1]."""
    terms = (Term(name, 1.0 - hard_weight), Term("cross_entropy", hard_weight))
    return tuple(term for term in terms if term.weight > 0)


def evaluate(terms: Sequence[Term], student: torch.Tensor, batch: Batch, head: Head) -> torch.Tensor:
    """student [K, T, B, W] -> [K]: the weighted mean over unmasked rows, each member on its own.

    The mean does not depend on the batch's size, and a member's value does not depend on the others.
    """
    weighted = [term.weight * _reduce(term.name, student, batch, head) for term in terms]
    return weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum(0)


def _reduce(name: str, student: torch.Tensor, batch: Batch, head: Head) -> torch.Tensor:
    """One loss, unweighted -> [K]."""
    entry, mask = LOSSES[name], batch.mask
    if entry.kind != "point":
        whole = mask if mask is not None else student.new_ones(student.shape[1:3])
        return entry.fn(student, batch.labels, head, whole)
    rows = entry.fn(student, batch.labels, head)
    if mask is None:
        return rows.mean((-2, -1))
    return (rows * (mask / mask.sum().clamp_min(1.0))).sum((-2, -1))
