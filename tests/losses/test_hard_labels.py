"""The task's own answers as labels: one choice, several choices, several yes-or-no labels, against torch's functions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from limbeck.contracts import Batch, Head
from limbeck.losses import LOSSES
from limbeck.objective import evaluate, mixture

ENTROPY = LOSSES["cross_entropy"].fn


def rows(width, count=30, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)) * 3)


def test_several_labels_are_the_sum_of_binary_cross_entropies():
    logits, hard = rows(4), (rows(4, seed=1) > 0).long()
    wanted = functional.binary_cross_entropy_with_logits(logits, hard.double(), reduction="none").sum(-1)
    assert torch.allclose(ENTROPY(logits, {"params": logits, "hard": hard}, Head("bernoulli", (4,))), wanted)


def test_several_choices_are_the_sum_of_cross_entropies():
    logits, head = rows(5), Head("multicategorical", (2, 3))
    hard = torch.stack([rows(2, seed=1).argmax(-1), rows(3, seed=2).argmax(-1)], -1)
    wanted = functional.cross_entropy(logits[:, :2], hard[:, 0], reduction="none")
    wanted = wanted + functional.cross_entropy(logits[:, 2:], hard[:, 1], reduction="none")
    assert torch.allclose(ENTROPY(logits, {"params": logits, "hard": hard}, head), wanted)


def test_labels_of_the_wrong_shape_are_refused():
    logits = rows(4)
    with pytest.raises(ValueError, match="do not fit"):
        ENTROPY(logits, {"params": logits, "hard": torch.ones(30, 1)}, Head("bernoulli", (4,)))
    with pytest.raises(ValueError, match="2 choices"):
        ENTROPY(logits, {"params": logits, "hard": torch.ones(30, 3).long()}, Head("multicategorical", (2, 2)))


@pytest.mark.parametrize("head", [Head("bernoulli", (4,)), Head("multicategorical", (2, 2)), Head("categorical", (4,))])
def test_a_stack_of_members_takes_batches_as_training_gives_them(head):
    """[K, T, B, W] students against [T, B, ...] labels: what imitation gathers."""
    student = torch.stack([rows(4, 12).reshape(1, 12, 4), rows(4, 12, seed=3).reshape(1, 12, 4)])
    hard = {"bernoulli": (12, 4), "multicategorical": (12, 2), "categorical": (12,)}[head.kind]
    labels = {"params": rows(4, 12, seed=4)[None], "hard": torch.ones(1, *hard, dtype=torch.int64)}
    batch = Batch("toy", student[0], None, None, labels)
    values = evaluate(mixture("kl", 0.4), student, batch, head)
    alone = torch.cat([evaluate(mixture("kl", 0.4), member[None], batch, head) for member in student])
    assert values.shape == (2,)
    assert torch.allclose(values, alone)
