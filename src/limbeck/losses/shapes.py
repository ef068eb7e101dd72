"""What all losses share: the guard against rows that do not fit, and a softmax that is fast for few actions."""

from __future__ import annotations

import torch


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
