"""The contrastive loss: which of a minibatch's teacher rows belongs to this student row? `contrastive@STUDENT_LAYER=TEACHER_LAYER`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.distributions import FORBIDDEN
from limbeck.losses.relations import counted_rows
from limbeck.losses.shapes import unit

Labels = Mapping[str, torch.Tensor]
Own = Mapping[str, torch.Tensor]
Shape = tuple[int, ...]
WIDTH, TEMPERATURE = 128, 0.07  # of the space in which both sides meet: CRD's published feat_dim and nce_t


def contrastive(student: torch.Tensor, labels: Labels, head: Head, own: Own, mask: torch.Tensor) -> torch.Tensor:
    """Contrastive representation distillation over a minibatch: InfoNCE both ways; published weight 0.8.

    With g(x) = (W x + b) / |W x + b| in 128 dimensions, one for each side, and s_ij = g_S(S_i)'g_T(T_j) / 0.07 it is
    mean_i [-log softmax_j(s_ij)]_i + mean_j [-log softmax_i(s_ij)]_j: van den Oord et al. 2018 (arXiv:1807.03748), eq. 4, with
    the student's row as the anchor among teacher rows, and the reverse. Embeddings, temperature and the sum over both anchors
    are those of CRD (Tian et al. 2020, arXiv:1910.10699, and the authors' code). CRD draws 16,384 negatives from a memory
    bank of past embeddings of the whole data set and asks the binary question (noise-contrastive estimation) of each; here
    the negatives are the other rows of the minibatch, as they are now, and nothing is remembered between steps.

    student [K, T, B, F], labels["feature"] [T, B, ...], mask [T, B] -> [K]. With n rows, log n - loss / 2 is a lower bound of
    the mutual information of the two layers (in the mean over minibatches). No divergence: rows alike on the teacher's side
    keep it above 0. Masked rows are no anchors and no negatives. Smallest useful batch 64.

    >>> rows, same = torch.eye(4, 128).double(), torch.eye(128)[None].double()  # four rows that agree, orthogonal
    >>> own = {"student_weight": same, "teacher_weight": same, "student_bias": same[:, 0] * 0, "teacher_bias": same[:, 0] * 0}
    >>> loss = contrastive(rows[None, None], {"feature": rows[None]}, Head("q", (2,)), own, torch.ones(1, 4))
    >>> round(loss.item(), 8)  # 2 log(1 + 3 exp(-1 / 0.07))
    3.75e-06
    """
    mine, theirs, counts = counted_rows(student, labels, mask)
    scores = _embedded(mine, own, "student") @ _embedded(theirs, own, "teacher").mT / TEMPERATURE  # [K, N, N]
    found = [
        torch.where(counts > 0, x, FORBIDDEN).log_softmax(-1).diagonal(dim1=-2, dim2=-1) for x in (scores, scores.mT)
    ]
    return -((found[0] + found[1]) * counts).sum(-1) / counts.sum().clamp_min(1.0)


def _embedded(rows: torch.Tensor, own: Own, side: str) -> torch.Tensor:
    """[K, N, F] or [N, F] by the members' own weights [K, F, 128] and biases [K, 128] -> [K, N, 128] of length 1."""
    return unit(rows @ own[f"{side}_weight"] + own[f"{side}_bias"][:, None])


def _owned(layer: Shape, teacher: Shape) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for side, shape in (("student", layer), ("teacher", teacher)):
        shapes |= {f"{side}_weight": (math.prod(shape), WIDTH), f"{side}_bias": (WIDTH,)}
    return shapes


LOSSES = {
    "contrastive": LossEntry(
        contrastive, "batch", frozenset({"features"}), get_args(HeadKind), False, reads="hidden", owns=_owned
    )
}
