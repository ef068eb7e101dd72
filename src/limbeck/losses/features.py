"""Losses that compare one hidden layer of the student with one of the teacher, row by row: `NAME@STUDENT_LAYER=TEACHER_LAYER`.

labels["feature"] [T, B, ...] is the teacher's layer, [C, height, width] per row where it is a picture. The student's arrives
as [K, T, B, F], a convolution's as height x width x channels; what its sides were, the flat row no longer says, so the
losses on pictures keep that as a tensor without elements among their own, whose shape is the layer's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch.nn import functional

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.errors import InputError
from limbeck.losses.shapes import unit
from limbeck.losses.value import projected

Labels = Mapping[str, torch.Tensor]
Own = Mapping[str, torch.Tensor]
Shape = tuple[int, ...]
SIDES = "sides"  # [K, height, width, channels, 0]


def check_feature(student: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
    """`feature` [T, B, ...] unchanged if it belongs to the rows of student [K, T, B, F]; ValueError otherwise."""
    if student.ndim != 4 or feature.ndim < 3 or feature.shape[:2] != student.shape[1:3]:
        raise ValueError(
            f"a teacher's layer of shape {tuple(feature.shape)} does not fit a student's of shape {tuple(student.shape)}"
        )
    return feature


# ---------------------------------------------------------------- hint


def hint(student: torch.Tensor, labels: Labels, head: Head, own: Own) -> torch.Tensor:
    """Mean squared difference of r(h_S) and h_T, FitNets (Romero et al. 2015, arXiv:1412.6550), eq. 3; published weight 100.

    r is the loss's own linear regressor: between two pictures a 1 x 1 convolution after both were averaged down to the
    smaller size, else a matrix on flat rows. It has no normalisation, which would tie rows of a batch together, and no ReLU.
    student [K, T, B, F], labels["feature"] [T, B, ...] -> [K, T, B]. No divergence: its zero depends on r.
    """
    feature = check_feature(student, labels["feature"])
    if SIDES not in own:
        return (projected(student, own) - feature.flatten(2)).square().mean(-1)
    mine, theirs = _pictures(student, feature, own[SIDES])  # [K, T, B, c, h, w], [T, B, C, h, w]
    mixed = torch.einsum("ktbchw,kcd->ktbdhw", mine, own["weight"]) + own["bias"][:, None, None, :, None, None]
    return (mixed - theirs).square().mean((-3, -2, -1))


def _hint_owns(layer: Shape, teacher: Shape) -> dict[str, Shape]:
    if len(layer) == 3 and len(teacher) == 3:
        return {"weight": (layer[2], teacher[0]), "bias": (teacher[0],), SIDES: (*layer, 0)}
    return {"weight": (math.prod(layer), math.prod(teacher)), "bias": (math.prod(teacher),)}


# ---------------------------------------------------------------- attention


def attention(student: torch.Tensor, labels: Labels, head: Head, own: Own) -> torch.Tensor:
    """Mean squared difference of the two normalised attention maps, Zagoruyko & Komodakis 2017 (arXiv:1612.03928), p = 2.

    A map is the mean over channels of the squared activations, at Euclidean length 1 over its pixels, as mdistiller's AT has
    it, published weight 1000; of two sizes the larger picture is averaged down first (adaptive average pooling, each side on
    its own). Zero when the maps agree, whatever the channels. student [K, T, B, F] -> [K, T, B].
    """
    mine, theirs = _pictures(student, check_feature(student, labels["feature"]), own[SIDES])
    return (_map(mine) - _map(theirs)).square().mean(-1)


def _map(pictures: torch.Tensor) -> torch.Tensor:
    """[..., C, height, width] -> [..., height * width] of length 1."""
    return unit(pictures.square().mean(-3).flatten(-2))


def _attention_owns(layer: Shape, teacher: Shape) -> dict[str, Shape]:
    if len(layer) != 3 or len(teacher) != 3:
        what = [" x ".join(map(str, shape)) for shape in (layer, teacher)]
        raise InputError(
            f"loss 'attention' compares pictures; the student's layer is {what[0]}, the teacher's {what[1]}. "
            "Needed: convolutions on both sides (conv0, conv1 ...). For flat layers use hint, similarity or cka."
        )
    return {SIDES: (*layer, 0)}


# ---------------------------------------------------------------- pictures of two sizes


def _pictures(student: torch.Tensor, feature: torch.Tensor, sides: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, T, B, c, h, w] of the student and [T, B, C, h, w] of the teacher, each side the smaller of the two."""
    height, width, channels = sides.shape[1:4]
    mine = student.reshape(*student.shape[:3], height, width, channels).movedim(-1, -3)
    size = min(height, feature.shape[-2]), min(width, feature.shape[-1])
    return _shrunk(mine, size), _shrunk(feature, size)


def _shrunk(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    small = functional.adaptive_avg_pool2d(pictures.flatten(0, -4), size)
    return small.reshape(*pictures.shape[:-2], *size)


HEADS = get_args(HeadKind)
NEEDS = frozenset({"features"})
LOSSES = {
    "hint": LossEntry(hint, "trainable", NEEDS, HEADS, False, reads="hidden", owns=_hint_owns),
    "attention": LossEntry(attention, "trainable", NEEDS, HEADS, True, reads="hidden", owns=_attention_owns),
}
