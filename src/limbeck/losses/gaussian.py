"""Losses for continuous actions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from limbeck.contracts import Head, LossEntry
from limbeck.distributions import LOG_STD_RANGE, PRE_TANH_LIMIT
from limbeck.losses.shapes import check_rows

Labels = Mapping[str, torch.Tensor]
HUBER_DELTA = 0.1  # in units of half the action range
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


def executed_huber(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """Huber distance of the actions the environment would receive, summed over dimensions, in half ranges of the action.

    Huber(e(m_S) - e(m_T); 0.1) + 0.01 Huber(m_S - clip(m_T); 0.1), where e clips (gaussian, deterministic heads) or
    squashes (squashed, tanh heads). student [..., n] means; labels["params"] [B, n or 2n], of which the means count.
    """
    n = sum(head.sizes)
    teacher = check_rows(student, labels["params"][..., :n])
    if head.kind in ("squashed", "tanh"):
        near = teacher.clamp(-PRE_TANH_LIMIT, PRE_TANH_LIMIT)
        executed, wanted, raw = torch.tanh(student), torch.tanh(teacher), student - near
    else:
        low, high, half = _range(head, student)
        executed, wanted = student.clamp(low, high) / half, teacher.clamp(low, high) / half
        raw = (student - teacher.clamp(low, high)) / half
    return (_huber(executed - wanted) + MEAN_WEIGHT * _huber(raw)).sum(-1)


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


LOSSES = {
    "gaussian_kl": LossEntry(gaussian_kl, "point", frozenset({"gaussian"}), ("gaussian",), True),
    "squashed_kl": LossEntry(squashed_kl, "point", frozenset({"squashed"}), ("squashed",), True),
    "executed_huber": LossEntry(
        executed_huber, "point", frozenset({"action"}), ("gaussian", "squashed", "deterministic", "tanh"), True
    ),
}
