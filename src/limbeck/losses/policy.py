"""Losses between distributions over discrete actions. Rows in, one value per row out; nothing is reduced or detached here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from limbeck.contracts import Head, LossEntry
from limbeck.losses.shapes import check_rows, log_softmax_columns

Labels = Mapping[str, torch.Tensor]


def kl_forward(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL(teacher || student) in nats, summed over independent choices: Rusu et al. 2015 (arXiv:1511.06295), tau = 1.

    student [..., W] logits, labels["params"] [B, W] logits or log-probabilities -> [..., B], never negative.

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.7, .3]]).log()
    >>> round(kl_forward(q, {"params": p}, Head("categorical", (2,))).item(), 6)
    0.025732
    """
    teacher = check_rows(student, labels["params"])
    if head.kind == "bernoulli":
        p = torch.sigmoid(teacher)
        on = functional.logsigmoid(teacher) - functional.logsigmoid(student)
        off = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
        return (p * on + (1 - p) * off).sum(-1)
    sizes = list(head.sizes) if head.kind == "multicategorical" else [student.shape[-1]]
    pairs = zip(torch.split(teacher, sizes, -1), torch.split(student, sizes, -1), strict=True)
    return (
        torch.stack([_categorical(t, s) for t, s in pairs]).sum(0) if len(sizes) > 1 else _categorical(teacher, student)
    )


def _categorical(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    log_p, log_q = log_softmax_columns(teacher), log_softmax_columns(student)
    return (log_p.exp() * (log_p - log_q)).sum(-2)


def kd(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), Hinton et al. 2015 (arXiv:1503.02531), tau in labels["temperature"].

    The logits are divided, on both sides, never the probabilities; tau^2 keeps the gradient's size, whatever tau is.
    student [..., A] logits, labels["params"] [B, A] logits or Q-values -> [..., B], never negative.

    >>> import torch
    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> round(kd(student, {"params": teacher, "temperature": torch.tensor(2.0)}, Head("categorical", (2,))).item(), 4)
    0.4438
    """
    teacher, tau = check_rows(student, labels["params"]), labels["temperature"]
    return tau**2 * _categorical(teacher / tau, student / tau)


def cross_entropy_hard(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """-log q(y) for the hard label y = labels["hard"], the task's own answer, summed over independent choices.

    One choice: y [B] indices; several: y [B, m] indices; labels of 0 or 1 (bernoulli): y [B, L], the binary
    cross-entropy of each. Not a divergence: at equality it is -log p(y). student [..., W] -> [..., B].
    """
    check_rows(student, labels["params"])
    hard = labels["hard"]
    if head.kind == "bernoulli":
        on = check_rows(student, hard).to(student.dtype)
        return -(on * functional.logsigmoid(student) + (1 - on) * functional.logsigmoid(-student)).sum(-1)
    if head.kind == "multicategorical":
        if hard.shape[-1:] != (len(head.sizes),):
            raise ValueError(f"hard labels of shape {tuple(hard.shape)} do not fit {len(head.sizes)} choices")
        groups = torch.split(student, list(head.sizes), -1)
        return torch.stack([_surprise(rows, hard[..., i]) for i, rows in enumerate(groups)]).sum(0)
    return _surprise(student, hard)


def _surprise(student: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    log_q = functional.log_softmax(student, -1)
    index = hard.expand(log_q.shape[:-1]).unsqueeze(-1)
    return -log_q.gather(-1, index).squeeze(-1)


LOSSES = {
    "kl": LossEntry(kl_forward, "point", frozenset({"logits"}), ("categorical", "multicategorical", "bernoulli"), True),
    "kd": LossEntry(kd, "point", frozenset({"logits", "temperature"}), ("categorical", "q"), True),
    "cross_entropy": LossEntry(
        cross_entropy_hard, "point", frozenset({"hard"}), ("categorical", "q", "bernoulli", "multicategorical"), False
    ),
}
