"""Losses of image classification on the logits, for teachers with at least three actions; with two they have nothing to say.

The rank of bad actions rarely matters to a return, so expect little of them where KL does well (methods.md 1.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.distributions import FORBIDDEN
from limbeck.losses.policy import kl_summand, over_choices
from limbeck.losses.shapes import TINY, centred, check_rows, per_row, unit

Labels = Mapping[str, torch.Tensor]
STANDARD_TEMPERATURE = 2.0  # of z-scores, as published: they have no scale of their own


def dkd(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """tau^2 (TCKD + b NCKD), Zhao et al. 2022 (arXiv:2203.08679), eq. 7; the target is the teacher's greedy action.

    TCKD is the KL of "the target or not", NCKD that among the other actions, which KL itself weighs by the teacher's doubt
    1 - p_target; b = labels["dkd_beta"] does instead (published 8 at tau = 4; 1 for policies). With two actions NCKD is 0.
    student [..., A], labels["params"] [B, A], tau = labels["temperature"] -> [..., B], never negative.
    """
    teacher, tau = check_rows(student, labels["params"]), labels["temperature"]
    target = torch.zeros_like(teacher).scatter_(-1, teacher.argmax(-1, keepdim=True), 1.0) > 0
    both = [(rows / tau).log_softmax(-1) for rows in (teacher, student)]
    on = [torch.where(target, rows, 0.0).sum(-1) for rows in both]  # log p of the target
    off = [torch.where(target, FORBIDDEN, rows) for rows in both]
    doubt = [rows.logsumexp(-1) for rows in off]  # log (1 - p) of it
    among = [rows.log_softmax(-1) for rows in off]
    target_part = on[0].exp() * (on[0] - on[1]) + doubt[0].exp() * (doubt[0] - doubt[1])
    other_part = (among[0].exp() * (among[0] - among[1])).sum(-1)
    return per_row(tau) ** 2 * (target_part + labels["dkd_beta"] * other_part)


def standardised(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL of standardised logits, Sun et al. 2024 (arXiv:2403.01427): z -> (z - mean) / std per row, then kd at tau = 2.

    Published weight 9; a constant row stays 0, without the published 1e-7 in the divisor and its steep slope. The spread of a row's Q or logits says how much its choice matters, and this deletes it: weigh rows
    again, or use it where every state matters alike. With two actions every row becomes the same.
    student [..., A], labels["params"] [B, A] -> [..., B], never negative.
    """
    allowed = labels.get("allowed")
    teacher = _standard(check_rows(student, labels["params"]), allowed)
    rows = over_choices(
        _standard(student, allowed) / STANDARD_TEMPERATURE, teacher / STANDARD_TEMPERATURE, head, kl_summand
    )
    return STANDARD_TEMPERATURE**2 * rows


def _standard(rows: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """z-scores over the allowed actions, by the unbiased spread; the others stay forbidden."""
    freedom = (
        rows.new_tensor(rows.shape[-1] - 1) if allowed is None else (allowed.sum(-1, keepdim=True) - 1).clamp_min(1)
    )
    scored = unit(centred(rows, allowed)) * freedom.to(rows.dtype).sqrt()
    return scored if allowed is None else torch.where(allowed, scored, FORBIDDEN)


def dist(student: torch.Tensor, labels: Labels, head: Head, mask: torch.Tensor) -> torch.Tensor:
    """tau^2 ((1 - r_inter) + (1 - r_intra)), Huang et al. 2022 (arXiv:2205.10536), eq. 8-10, both parts weighed 1 as published.

    r_inter: mean over rows of Pearson's correlation between p and q over the actions; r_intra: mean over actions of that
    over the batch's rows. What is constant on the teacher's side correlates with nothing and is left out. With two actions
    r_inter is +-1 and has no gradient. Smallest useful batch 256. student [K, T, B, A], mask [T, B] -> [K].
    """
    teacher, tau = check_rows(student, labels["params"]), labels["temperature"]
    q = (student / tau).softmax(-1).flatten(1, 2)  # [K, N, A]
    p = (teacher / tau).softmax(-1).reshape(-1, *q.shape[1:]).expand_as(q)
    counts = mask.reshape(-1, 1).expand(q.shape[1:])  # [N, A], 1 where an allowed action of an unmasked row stands
    if "allowed" in labels:
        counts = counts * labels["allowed"].reshape(-1, q.shape[-1])
    return tau.reshape(-1) ** 2 * (_uncorrelated(p, q, counts) + _uncorrelated(p.mT, q.mT, counts.mT))


def _uncorrelated(p: torch.Tensor, q: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[K, M, N] and what of it counts, 0 or 1 [M, N] -> [K]: 1 - Pearson's r along N, mean over M."""
    number = counts.sum(-1, keepdim=True).clamp_min(1.0)
    centre = [(x - (x * counts).sum(-1, keepdim=True) / number) * counts for x in (p, q)]
    varied = centre[0].square().sum(-1) > TINY
    correlation = (unit(centre[0]) * unit(centre[1])).sum(-1)
    return ((1 - correlation) * varied).sum(-1) / varied.sum(-1).clamp_min(1)


HEADS: tuple[HeadKind, ...] = ("categorical", "q")
LOSSES = {
    "dkd": LossEntry(dkd, "point", frozenset({"logits", "temperature", "many_actions"}), HEADS, True),
    "standardised": LossEntry(standardised, "point", frozenset({"logits", "many_actions"}), HEADS, True),
    "dist": LossEntry(dist, "batch", frozenset({"logits", "temperature", "many_actions"}), HEADS, True),
}
