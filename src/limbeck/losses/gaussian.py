"""Losses for continuous actions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn import functional

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.distributions import LOG_STD_RANGE, PRE_TANH_LIMIT
from limbeck.losses.shapes import check_rows

Labels = Mapping[str, torch.Tensor]
HUBER_DELTA = 0.1  # in units of half the action range
NLL_LOG_STD = (-5.0, LOG_STD_RANGE[1])  # the likelihood of a fixed action grows without bound as a spread goes to 0
MEAN_WEIGHT = 0.01  # keeps a gradient where clip or tanh are flat (methods.md 1.5)


def gaussian_kl(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL(teacher || student) of diagonal Gaussians, summed over dimensions, closed form.

    sum_i log(s_S / s_T) + (s_T^2 + (m_T - m_S)^2) / (2 s_S^2) - 1/2; student [..., 2n] and labels["params"] [B, 2n]
    hold means and log standard deviations -> [..., B].
    """
    return _kl(student, check_rows(student, labels["params"]))


def squashed_kl(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL between tanh-squashed Gaussians: exactly that of the pre-tanh Gaussians, because both share the bijection.

    Teacher means are clamped to +-3, beyond which tanh is flat and one saturated dimension would outweigh the rest;
    a student equal to the clamped teacher has loss 0. student [..., 2n] -> [..., B].
    """
    mean, log_std = check_rows(student, labels["params"]).chunk(2, -1)
    clamped = torch.cat([mean.clamp(-PRE_TANH_LIMIT, PRE_TANH_LIMIT), log_std], -1)
    return _kl(student, clamped)


def _kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    (mean_s, log_s), (mean_t, log_t) = student.chunk(2, -1), teacher.chunk(2, -1)
    log_s, log_t = log_s.clamp(*LOG_STD_RANGE), log_t.clamp(*LOG_STD_RANGE)
    ratio = ((2 * (log_t - log_s)).exp() + ((mean_t - mean_s) * (-log_s).exp()) ** 2) / 2
    return (log_s - log_t + ratio - 0.5).sum(-1)


def gaussian_nll(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """-log N(m_T; m_S, s_S), the teacher's mean action under the student's Gaussian, in nats, summed over dimensions.

    sum_i log s_S + (m_T - m_S)^2 / (2 s_S^2) + log(2 pi) / 2, with log s_S kept above -5. Squashed: of the pre-tanh values,
    teacher means clamped to +-3; tanh adds a constant. Not a divergence, and negative where the student is sure.
    student [..., 2n], labels["params"] [B, 2n] -> [..., B].

    >>> import torch
    >>> rows = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.5, -1.0]])
    >>> round(gaussian_nll(rows[0], {"params": rows[1]}, Head("gaussian", (1,))).item(), 4)  # (1 + log 2 pi) / 2
    1.4189
    """
    mean = check_rows(student, labels["params"]).chunk(2, -1)[0]
    if head.kind == "squashed":
        mean = mean.clamp(-PRE_TANH_LIMIT, PRE_TANH_LIMIT)
    mean_s, log_s = student.chunk(2, -1)
    log_s = log_s.clamp(*NLL_LOG_STD)
    return (log_s + ((mean - mean_s) * (-log_s).exp()) ** 2 / 2 + math.log(2 * math.pi) / 2).sum(-1)


def executed_huber(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """Huber distance of the actions the environment would receive, summed over dimensions, in half ranges of the action.

    Huber(e(m_S) - e(m_T); 0.1) + 0.01 Huber(m_S - clip(m_T); 0.1), where e clips (gaussian, deterministic heads) or
    squashes (squashed, tanh heads). student [..., n or 2n] and labels["params"] [B, n or 2n], of which the means count.
    """
    student, teacher = means(student, labels, head)
    if head.kind in ("squashed", "tanh"):
        near = teacher.clamp(-PRE_TANH_LIMIT, PRE_TANH_LIMIT)
        executed, wanted, raw = torch.tanh(student), torch.tanh(teacher), student - near
    else:
        low, high, half = _range(head, student)
        executed, wanted = student.clamp(low, high) / half, teacher.clamp(low, high) / half
        raw = (student - teacher.clamp(low, high)) / half
    return (_huber(executed - wanted) + MEAN_WEIGHT * _huber(raw)).sum(-1)


def means(student: torch.Tensor, labels: Labels, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of both sides, [..., n] and [B, n], also of a student that states standard deviations."""
    n = sum(head.sizes)
    said = student[..., :n]
    return said, check_rows(said, labels["params"][..., :n])


def executed(said: torch.Tensor, head: Head) -> torch.Tensor:
    """[..., n] means or pre-tanh means -> the actions the environment receives, as `distributions.execute` has them.

    >>> executed(torch.tensor([0.0, 9.0]), Head("tanh", (2,), (0.0, 0.0), (4.0, 4.0))).tolist()
    [2.0, 4.0]
    """
    low, high, half = _range(head, said)
    if head.kind in ("squashed", "tanh"):
        return low + (torch.tanh(said) + 1) * half
    return said.clamp(low, high)


def _range(head: Head, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[n] low, high and half range; 1 where the action is unbounded."""
    n = sum(head.sizes)
    low = like.new_tensor(head.low or [-torch.inf] * n)
    high = like.new_tensor(head.high or [torch.inf] * n)
    half = torch.where(torch.isfinite(high - low), (high - low) / 2, 1.0)
    return low, high, half


def _huber(difference: torch.Tensor) -> torch.Tensor:
    return (
        functional.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=HUBER_DELTA)
        / HUBER_DELTA
    )


CONTINUOUS: tuple[HeadKind, ...] = ("gaussian", "squashed", "deterministic", "tanh")
LOSSES = {
    "gaussian_kl": LossEntry(gaussian_kl, "point", frozenset({"gaussian"}), ("gaussian",), True),
    "squashed_kl": LossEntry(squashed_kl, "point", frozenset({"squashed"}), ("squashed",), True),
    "gaussian_nll": LossEntry(gaussian_nll, "point", frozenset({"gaussian"}), ("gaussian", "squashed"), False),
    "executed_huber": LossEntry(executed_huber, "point", frozenset({"action"}), CONTINUOUS, True),
}
