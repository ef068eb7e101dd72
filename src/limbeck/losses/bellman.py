"""Regression on Bellman targets with the fixed teacher, Q(s, a) = r + gamma max Q_T: one step of improvement over it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from limbeck.contracts import Head, LossEntry
from limbeck.losses.shapes import check_rows

DELTA = 1.0  # in reward units, as DQN clips its error (Mnih et al. 2015)


def bellman(student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head, mask: torch.Tensor) -> torch.Tensor:
    """Mean Huber(Q_S(s, a) - y; 1) over the rows whose target is known, in reward units.

    y = labels["target"] [T, B] = sum_{k<n} gamma^k r + gamma^n max_a Q_T, a = labels["action"] [T, B] int64 what was done,
    labels["known"] [T, B] 1 where y could be made; the others do not count, also not in the mean. The teacher is fixed, so
    this is plain regression without a moving target. A student of this loss alone states Q in reward units with nothing
    removed per row: its head is "q". Beside it imitate with `kd`, which divides both sides by tau (QDagger, Agarwal et
    al. 2022, arXiv:2206.01626); losses of another unit, such as `q_kl`, are refused. Smallest batch 1.
    student [K, T, B, A], mask [T, B] -> [K]; no divergence.

    >>> import torch
    >>> labels = {"target": torch.tensor([[3., 0.]]), "action": torch.tensor([[1, 0]]), "known": torch.tensor([[1., 0.]])}
    >>> bellman(torch.tensor([[[[9., 1.], [5., 5.]]]]), labels, Head("q", (2,)), torch.ones(1, 2)).tolist()
    [1.5]
    """
    action = check_rows(student[..., 0], labels["action"]).expand(student.shape[:-1])
    said = student.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    target = check_rows(said, labels["target"]).expand_as(said)
    counts = mask * check_rows(said, labels["known"])
    rows = functional.huber_loss(said, target, reduction="none", delta=DELTA)
    return torch.where(counts > 0, rows * counts, 0.0).sum((-2, -1)) / counts.sum().clamp_min(1.0)


LOSSES = {"bellman": LossEntry(bellman, "batch", frozenset({"q", "next", "reward"}), ("q",), False)}
