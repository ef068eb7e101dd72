"""What all losses share: the guard against rows that do not fit, and the few operations on rows that are easy to get wrong."""

from __future__ import annotations

import torch

TINY = 1e-12  # a row this short has no direction


def check_rows(student: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`rows` unchanged if its shape ends the student's; ValueError for [B] against [B, 1] and the like."""
    if student.ndim < rows.ndim or student.shape[student.ndim - rows.ndim :] != rows.shape:
        raise ValueError(
            f"label rows of shape {tuple(rows.shape)} do not fit student rows of shape {tuple(student.shape)}"
        )
    return rows


def log_softmax_columns(rows: torch.Tensor) -> torch.Tensor:
    """[..., B, A] logits -> [..., A, B] log-probabilities over A.

    With the batch innermost the processor's vectors are full; over a last axis of four actions torch takes twenty
    times as long, and that was most of a gradient step of a stack.
    """
    return torch.log_softmax(rows.transpose(-1, -2).contiguous(), -2)


def per_row(scalar: torch.Tensor) -> torch.Tensor:
    """A hyper-parameter that multiplies values per row: [] stays, one for each member [K, 1, 1, 1] -> [K, 1, 1]."""
    return scalar if scalar.ndim == 0 else scalar.squeeze(-1)


def centred(rows: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """[..., A] minus its mean over the allowed actions; actions that are not allowed become 0.

    >>> centred(torch.tensor([1.0, 3.0, -1e8]), torch.tensor([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    if allowed is None:
        return rows - rows.mean(-1, keepdim=True)
    kept = torch.where(allowed, rows, 0.0)
    mean = kept.sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(allowed, rows - mean, 0.0)


def per_action(errors: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """[..., A] -> [...], the mean over the allowed actions; the others have no error."""
    return errors.mean(-1) if allowed is None else errors.sum(-1) / allowed.sum(-1).clamp_min(1)


def unit(rows: torch.Tensor) -> torch.Tensor:
    """[..., F] at Euclidean length 1; a row of zeros stays zero, and has no gradient.

    Published code divides by max(length, 1e-12) instead: a row of zeros, such as the difference of two equal rows, then
    passes its gradient on 1e12 times too large.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).norm(dim=-1).round(decimals=4).tolist()
    [1.0, 0.0]
    """
    square = rows.square().sum(-1, keepdim=True)
    alive = square > TINY**2
    return torch.where(alive, rows * torch.where(alive, square, 1.0).rsqrt(), 0.0)
