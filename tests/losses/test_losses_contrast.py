"""The contrastive loss against closed forms, torch's cross-entropy, and the bound that it is made for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck import objective
from limbeck.contracts import Head
from limbeck.errors import InputError
from limbeck.losses import LOSSES
from limbeck.losses.contrast import TEMPERATURE, WIDTH
from limbeck.testing import check_loss, evaluated

HEAD, ENTRY = Head("categorical", (3,)), LOSSES["contrastive"]


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def plain(student, teacher):
    """Embeddings that are the layers themselves, filled up with zeros."""
    return {
        "student_weight": torch.eye(student, WIDTH).double(), "student_bias": torch.zeros(WIDTH).double(),
        "teacher_weight": torch.eye(teacher, WIDTH).double(), "teacher_bias": torch.zeros(WIDTH).double(),
    }  # fmt: skip


def value(student, teacher, own=None, mask=None):
    own = plain(student.shape[-1], teacher.shape[-1]) if own is None else own
    return evaluated(ENTRY, HEAD, {"feature": teacher}, student, own, mask)


def test_rows_that_agree_and_are_orthogonal_leave_a_log_sum_exp():
    """s_ii = 1 / tau and s_ij = 0: each anchor's loss is log(1 + (n - 1) e^(-1 / tau)), and there are two of a row."""
    for n in (2, 4, 64):
        rows = 7 * torch.eye(n, 70).double()  # of any length
        assert value(rows, 3 * rows).item() == pytest.approx(2 * math.log1p((n - 1) * math.exp(-1 / TEMPERATURE)))


def test_a_pair_that_belongs_together_and_points_apart():
    """Two rows, the partners of which are each other's: s_ii = 0, s_ij = 1 / tau, so 2 log(1 + e^(1 / tau))."""
    rows = torch.eye(2, 5).double()
    assert value(rows, rows.flip(0)).item() == pytest.approx(2 * math.log1p(math.exp(1 / TEMPERATURE)))


def test_rows_that_cannot_be_told_apart_say_nothing():
    """The bound log n - loss / 2 on the mutual information is 0 where every row is alike."""
    rows = torch.ones(50, 6).double()
    assert value(rows, rows).item() == pytest.approx(2 * math.log(50))
    assert value(torch.zeros(50, 6).double(), normal(50, 6)).item() == pytest.approx(2 * math.log(50))  # dead units


def test_torch_says_the_same():
    """torch.nn.functional: linear, normalize, cross_entropy with row i as the class of row i."""
    functional = torch.nn.functional
    own = {k: normal(*s, seed=i) for i, (k, s) in enumerate(ENTRY.owns((5,), (2, 3, 2)).items())}
    student, teacher = normal(40, 5, seed=8), normal(40, 2, 3, 2, seed=9)
    sides = [
        functional.normalize(functional.linear(rows, own[f"{side}_weight"].T, own[f"{side}_bias"]), dim=-1)
        for side, rows in (("student", student), ("teacher", teacher.flatten(1)))
    ]
    scores, at = sides[0] @ sides[1].T / 0.07, torch.arange(40)
    wanted = functional.cross_entropy(scores, at) + functional.cross_entropy(scores.T, at)
    assert value(student, teacher, own).item() == pytest.approx(wanted.item(), rel=1e-9)


def test_masked_rows_are_no_anchors_and_no_negatives():
    student, teacher = normal(20, 5, seed=1), normal(20, 4, seed=2)
    mask = (torch.arange(20) % 3 > 0).double()
    kept = mask > 0
    assert value(student, teacher, mask=mask).item() == pytest.approx(value(student[kept], teacher[kept]).item())
    assert value(student, teacher, mask=torch.zeros(20)).item() == 0
    assert value(student, teacher, mask=(torch.arange(20) == 4).double()).item() == 0  # one row is easily told


def test_the_bound_stays_below_the_mutual_information():
    """Gaussian layers of one unit with correlation r know -log(1 - r^2) / 2 of each other: 0.83 nats at r = .9.

    Trained embeddings, then fresh rows; log n - loss / 2 of 40 batches of 64 has a standard error of about 0.01."""
    r, steps, n = 0.9, 100, 64
    torch.manual_seed(0)
    own = {k: (torch.randn(s) * (0.3 if len(s) > 1 else 1)).requires_grad_() for k, s in ENTRY.owns((2,), (2,)).items()}
    optimiser = torch.optim.Adam(own.values(), 0.01)

    def loss():
        x, noise = torch.randn(n), torch.randn(n)
        y = r * x + math.sqrt(1 - r * r) * noise
        # On the unit sphere only directions count, so a constant beside the unit keeps its size.
        return value(torch.stack([x, torch.ones(n)], 1), torch.stack([y, torch.ones(n)], 1), own)

    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    with torch.no_grad():
        bound = math.log(n) - np.mean([loss().item() for _ in range(40)]) / 2
    assert 0.6 < bound < -math.log(1 - r * r) / 2 + 0.05


def test_a_loss_that_lets_masked_rows_be_negatives_is_caught():
    def unmasked(student, labels, head, own, mask):
        return ENTRY.fn(student, labels, head, own, torch.ones_like(mask))

    with pytest.raises(AssertionError, match="counts masked rows"):
        check_loss(replace(ENTRY, fn=unmasked), HEAD)


def test_a_layer_is_named_on_both_sides():
    with pytest.raises(InputError, match="'contrastive' is written contrastive@STUDENT_LAYER=TEACHER_LAYER"):
        objective.parse("kl + contrastive", HEAD)
    with pytest.raises(InputError, match="does not look at what the student does"):
        objective.parse("contrastive@last=net", HEAD)
    with pytest.raises(InputError, match=r"no student layer 'conv0'\. This student has: last"):
        objective.owned(objective.parse("kl + contrastive@conv0=net", HEAD), {"last": (8,)}, {"net": (5,)})
