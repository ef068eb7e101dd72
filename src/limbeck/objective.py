"""The only place that weighs, schedules, masks and reduces losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from limbeck.contracts import Batch, Head
from limbeck.distributions import FORBIDDEN
from limbeck.losses import LOSSES


@dataclass(frozen=True)
class Term:
    """One loss and its weight."""

    name: str
    weight: float


def mixture(name: str, hard_weight: float, scale: float = 1.0) -> tuple[Term, ...]:
    """scale ((1 - h) loss + h CE(hard label)): the canonical form of distillation with labels; h in [0, 1]."""
    terms = (Term(name, scale * (1.0 - hard_weight)), Term("cross_entropy", scale * hard_weight))
    return tuple(term for term in terms if term.weight > 0)


def evaluate(terms: Sequence[Term], student: torch.Tensor, batch: Batch, head: Head) -> torch.Tensor:
    """student [K, T, B, W] -> [K]: the weighted mean over unmasked rows, each member on its own.

    The mean does not depend on the batch's size, and a member's value does not depend on the others. Where labels say
    which actions are "allowed", no loss sees the others: they have probability 0 on both sides and no gradient.
    """
    if head.discrete and "allowed" in batch.labels:
        student, batch = _masked(student, batch)
    weighted = [term.weight * _reduce(term.name, student, batch, head) for term in terms]
    return weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum(0)


def _masked(student: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
    allowed = batch.labels["allowed"]
    params = torch.where(allowed, batch.labels["params"], FORBIDDEN)
    return torch.where(allowed, student, FORBIDDEN), replace(batch, labels={**batch.labels, "params": params})


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
