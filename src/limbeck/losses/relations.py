"""Losses that compare how the rows of a minibatch relate to each other in a hidden layer of each side.

The two layers may have any widths, and nothing is projected. `NAME@STUDENT_LAYER=TEACHER_LAYER`; student [K, T, B, F],
labels["feature"] [T, B, ...], mask [T, B] -> [K]. Masked rows are in no relation. Zero when both sides relate alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch.nn import functional

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.losses.features import check_feature
from limbeck.losses.shapes import TINY, unit

Labels = Mapping[str, torch.Tensor]
GROUP = 64  # rows whose distances and angles are compared: the published batch; there are GROUP^3 angles
DISTANCE, ANGLE = 25.0, 50.0  # published weights of RKD's two parts


def similarity(student: torch.Tensor, labels: Labels, head: Head, mask: torch.Tensor) -> torch.Tensor:
    """||G_S - G_T||^2 / b^2, G the row-normalised products of all pairs of rows: Tung & Mori 2019 (arXiv:1907.09682), eq. 4.

    As mdistiller's SP has it; published weight 3000. Smallest useful batch 64.
    """
    mine, theirs, counts = counted_rows(student, labels, mask)
    grams = [unit(x @ x.mT) for x in (mine * counts[:, None], theirs * counts[:, None])]
    return (grams[0] - grams[1]).square().sum((-2, -1)) / counts.sum().clamp_min(1.0) ** 2


def relational(student: torch.Tensor, labels: Labels, head: Head, mask: torch.Tensor) -> torch.Tensor:
    """25 distance + 50 angle, Park et al. 2019, RKD (arXiv:1904.05068), eq. 4-7; the published weights are inside, so weigh it 1.

    Huber(.; 1) between the distances of all pairs, each in units of its side's mean, and between the cosines of the angles of
    all triples; means over b^2 and b^3 with the degenerate ones among them, as mdistiller's RKD has them. Rows are taken in
    groups of 64 in their order (there are b^3 angles), so the value does not depend on the order within a batch of up to 64.
    """
    mine, theirs, counts = counted_rows(student, labels, mask)
    mine, theirs, counts = (_grouped(x, dim) for x, dim in ((mine, 1), (theirs, 0), (counts, 0)))  # [K, G, n, F] ...
    pairs = counts[:, :, None] * counts[:, None, :]
    distances = [_distances(x, pairs) for x in (mine, theirs)]
    angles = [_angles(x) for x in (mine, theirs)]
    far = _huber(distances[0] - distances[1]) * pairs
    turned = _huber(angles[0] - angles[1]) * pairs[:, :, :, None] * counts[:, None, None, :]
    size = counts.sum(-1)
    return DISTANCE * far.sum((-3, -2, -1)) / (size**2).sum().clamp_min(1.0) + ANGLE * turned.sum((-4, -3, -2, -1)) / (
        size**3
    ).sum().clamp_min(1.0)


def cka(student: torch.Tensor, labels: Labels, head: Head, mask: torch.Tensor) -> torch.Tensor:
    """1 - linear CKA, ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred layers: Kornblith et al. 2019 (arXiv:1905.00414), eq. 3.

    Blind to rotations and to the scale of either side. Between 0 and 1; 1, without a gradient, where a side is constant.
    Smallest useful batch 64.
    """
    mine, theirs, counts = counted_rows(student, labels, mask)
    grams = []
    for x in (mine, theirs):
        mean = (x * counts[:, None]).sum(-2, keepdim=True) / counts.sum().clamp_min(1.0)
        kept = (x - mean) * counts[:, None]
        grams.append((kept @ kept.mT).flatten(-2))
    return 1 - (unit(grams[0]) * unit(grams[1])).sum(-1)


# ---------------------------------------------------------------- rows


def counted_rows(
    student: torch.Tensor, labels: Labels, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[K, N, F], [N, F'] and whether each of the N = T * B rows counts [N]; the others are zeros."""
    feature = check_feature(student, labels["feature"])
    if mask.shape != feature.shape[:2]:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit rows of shape {tuple(feature.shape[:2])}")
    counts = (mask.reshape(-1) > 0).to(student.dtype)
    alive = counts[:, None] > 0
    return (
        torch.where(alive, student.flatten(1, 2), 0.0),
        torch.where(alive, feature.flatten(0, 1).flatten(1), 0.0),
        counts,
    )


def _grouped(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Axis `dim` of N rows as two, [groups, rows of a group]; the last group is filled with zeros that do not count."""
    count = x.shape[dim]
    size = min(GROUP, count)
    groups = -(-count // size)
    if groups * size > count:
        shape = list(x.shape)
        shape[dim] = groups * size - count
        x = torch.cat([x, x.new_zeros(shape)], dim)
    return x.reshape(*x.shape[:dim], groups, size, *x.shape[dim + 1 :])


def _distances(x: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """[..., n, F] -> [..., n, n] Euclidean distances in units of their mean over the counted pairs that lie apart."""
    square = (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
    apart = square > TINY
    length = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
    counted = apart * pairs
    mean = (length * counted).sum((-2, -1), keepdim=True) / counted.sum((-2, -1), keepdim=True).clamp_min(1.0)
    return length / mean.clamp_min(TINY)


def _angles(x: torch.Tensor) -> torch.Tensor:
    """[..., n, F] -> [..., n, n, n] cosines at each row of the angle between each two others."""
    towards = unit(x.unsqueeze(-3) - x.unsqueeze(-2))
    return towards @ towards.mT


def _huber(difference: torch.Tensor) -> torch.Tensor:
    return functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")


HEADS = get_args(HeadKind)
NEEDS = frozenset({"features"})
LOSSES = {
    "similarity": LossEntry(similarity, "batch", NEEDS, HEADS, True, reads="hidden"),
    "relational": LossEntry(relational, "batch", NEEDS, HEADS, True, reads="hidden"),
    "cka": LossEntry(cka, "batch", NEEDS, HEADS, True, reads="hidden"),
}
