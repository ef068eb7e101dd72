"""One guard for all losses: label rows must be the student's rows, or broadcasting would average the wrong pairs."""

from __future__ import annotations

import torch


def check_rows(student: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`rows` unchanged if its shape ends the student's; ValueError for [B] against [B, 1] and the like."""
    if student.ndim < rows.ndim or student.shape[student.ndim - rows.ndim :] != rows.shape:
        raise ValueError(
            f"label rows of shape {tuple(rows.shape)} do not fit student rows of shape {tuple(student.shape)}"
        )
    return rows
