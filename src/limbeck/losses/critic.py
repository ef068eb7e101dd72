"""The regret of continuous actions, by the teacher's critic: what moving the action away from the teacher's gains or costs.

The critic itself is no part of the loss: its derivatives at the teacher's executed greedy action a_T are labels, so that
a gradient step asks nobody. In the units of executed actions and of reward:

label            shape           content
critic_grad      [T, B, n]       dQ_T / da at a_T
critic_hess      [T, B, n]       diagonal of d^2 Q_T / da^2 at a_T, clipped to at most 0 (0: first order alone)
critic_scale     []              1 / mean |Q_T - mean Q_T| over the data set: TD3+BC has mean |Q|, but Q's level says nothing
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from limbeck.contracts import Head, LossEntry
from limbeck.losses.gaussian import CONTINUOUS, executed, executed_huber, means
from limbeck.losses.shapes import check_rows

Labels = Mapping[str, torch.Tensor]
PULL = 2.5  # of the critic against the anchor, Fujimoto & Gu 2021 (arXiv:2106.06860), eq. 5


def critic_guided(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """executed_huber - 2.5 scale (g d + d H d / 2), d = a_S - a_T: TD3+BC with the critic's second-order expansion.

    a_S, a_T are executed actions, clipped or squashed; g = labels["critic_grad"], H = labels["critic_hess"], the scale is
    labels["critic_scale"]. The Huber anchors a_S where the expansion holds. For the last part of training, on the student's
    own states: critics extrapolate badly (methods.md 1.5). Of either sign, no divergence.
    student [..., n or 2n] -> [..., B].
    """
    said, teacher = means(student, labels, head)
    gradient = check_rows(said, labels["critic_grad"])
    curvature = check_rows(said, labels["critic_hess"])
    moved = executed(said, head) - executed(teacher, head)
    gain = (gradient * moved + curvature * moved.square() / 2).sum(-1)
    return executed_huber(student, labels, head) - PULL * labels["critic_scale"] * gain


LOSSES = {"critic_guided": LossEntry(critic_guided, "point", frozenset({"action", "critic"}), CONTINUOUS, False)}
