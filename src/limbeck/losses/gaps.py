"""Losses that know what an error costs: weights by the gap between actions, and the expected regret itself.

The gap of a state is max_a Q - min_a Q, the criticality of VIPER (Bastani et al. 2018, arXiv:1805.08328): where it is
small every action is as good. labels["advantage"] [B, A] is A_T = Q_T - V_T in reward units, of the teacher's own action
values or of a critic fitted to it; labels["gap"] [] is the mean gap over the data set, in the same units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from limbeck.contracts import Head, LossEntry
from limbeck.losses.policy import kl_forward
from limbeck.losses.q import q_kl
from limbeck.losses.shapes import check_rows, log_softmax_columns

Labels = Mapping[str, torch.Tensor]
WEIGHTS = (0.1, 10.0)  # of a state, in mean gaps: none is forgotten, none outweighs the rest (methods.md 1.3)


def kl_gap(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL weighed by how much the choice matters: clip(gap / mean gap, 0.1, 10)^power KL, power in labels["gap_power"].

    The KL is `kl` for policies and `q_kl` for action values. student [..., A] logits -> [..., B], never negative.

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.7, .3]]).log()
    >>> labels = {"params": p, "advantage": torch.tensor([[1., -3.]]), "gap": torch.tensor(2.), "gap_power": torch.tensor(1.)}
    >>> round(kl_gap(q, labels, Head("categorical", (2,))).item(), 6)  # twice the mean gap: twice the KL
    0.051464
    """
    divergence = q_kl if head.kind == "q" else kl_forward
    advantage = check_rows(student, labels["advantage"])
    weight = _weight(_spread(advantage, labels.get("allowed")) / labels["gap"], labels["gap_power"])
    return weight * divergence(student, labels, head)


def kl_surrogate_gap(student: torch.Tensor, labels: Labels, head: Head, mask: torch.Tensor) -> torch.Tensor:
    """The same where no action values are known, with VIPER's surrogate max_a log p - min_a log p as the gap.

    Under a maximum-entropy policy log p = (Q - V) / temperature, so it is the gap in other units; its mean is taken over
    the minibatch's unmasked rows. Needs 64 rows for that mean. student [K, T, B, A], mask [T, B] -> [K], never negative.
    """
    teacher = check_rows(student, labels["params"])
    log_p = log_softmax_columns(teacher).transpose(-1, -2)
    gap = _spread(log_p, labels.get("allowed"))
    mean = (gap * mask).sum() / mask.sum().clamp_min(1.0)
    weight = _weight(gap / mean.clamp_min(torch.finfo(gap.dtype).tiny), labels["gap_power"])
    rows = weight * kl_forward(student, labels, head)
    return torch.where(mask > 0, rows * mask, 0.0).sum((-2, -1)) / mask.sum().clamp_min(1.0)


def regret(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """Expected regret -sum_a pi_S(a) A_T(a) in mean gaps: what a step by the student costs, Ross & Bagnell 2014 (arXiv:1406.5979).

    By the performance-difference lemma (Kakade & Langford 2002) its mean over the student's own states is the loss of
    return, J(pi_T) - J(pi_S) = E[regret * gap] / (1 - gamma), where A_T is exact; on other states it is not. Divided by
    labels["gap"], weight 1 is the factor 1 / mean gap of methods.md 1.3, and times `gap` it is in reward units again.
    Below 0 where the student improves on the teacher, so no divergence. student [..., A] logits -> [..., B].

    >>> import torch
    >>> labels = {"advantage": torch.tensor([[0., -3.]]), "gap": torch.tensor(2.)}
    >>> regret(torch.tensor([[.75, .25]]).log(), labels, Head("q", (2,))).item()
    0.375
    """
    advantage = check_rows(student, labels["advantage"])
    probability = log_softmax_columns(student).exp()
    return -(probability * advantage.transpose(-1, -2)).sum(-2) / labels["gap"]


def _spread(values: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """[..., A] -> [...] largest minus smallest of the allowed actions."""
    if allowed is None:
        return values.amax(-1) - values.amin(-1)
    top, bottom = torch.where(allowed, values, -torch.inf).amax(-1), torch.where(allowed, values, torch.inf).amin(-1)
    return top - bottom


def _weight(gap: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    return gap.clamp(*WEIGHTS) ** power


LOSSES = {
    "kl_gap": LossEntry(kl_gap, "point", frozenset({"logits", "regret", "soft_q"}), ("categorical", "q"), True),
    "kl_surrogate_gap": LossEntry(kl_surrogate_gap, "batch", frozenset({"logits"}), ("categorical",), True),
    "regret": LossEntry(regret, "point", frozenset({"regret"}), ("categorical", "q"), False),
}
