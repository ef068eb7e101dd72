"""Distillation as a true gradient: an error now also counts for the states it leads to.

Student-driven KL leaves out how the student's actions move its own state distribution, and is in general the gradient of
nothing (Czarnecki et al. 2019, arXiv:1902.02186). Their expected entropy regularised form is a gradient. Here it is that of
the excess cost J_b = E_{pi_S}[sum_t gamma^t (c(s_t) - b)] with b, the member's mean cost in the round, held constant:

    grad J_b = E_{pi_S}[ sum_t gamma^t (grad c(s_t) + grad log pi_S(a_t | s_t) sum_{k > t} gamma^{k - t} (c(s_k) - b)) ]

b is no baseline: where actions change how long an episode lasts, it changes the gradient, and is meant to. Costs are never
negative, so without it (J_0, Czarnecki's objective) the cheapest student is one that ends its episodes; with it a step is
good or bad as it costs less or more than the student's average, as in average-cost problems. Where all episodes have one
length, grad J_b = grad J_0. Rows count alike in training, without gamma^t, as policy gradients are used.

The first part is analytic. The second needs what came after, which only rows of the student's own episodes know:

label            shape               content
said             [T, B] int64        a_t, the action index that was drawn
log_behaviour    [T, B]              log mu(a_t | s_t) of the policy it was drawn from; pi_S when the episode was played
to_go            [T, B] or           sum_{k > t} gamma^{k - t} (c(s_k) - b) to the end of the episode, c by `cost` under the member
                 [K, T, B]           that drove when it drove, b its mean over the member's rows of the round; a constant. 0 where
                                     another drove: such a row knows nothing of this member's future
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from limbeck.contracts import Head, LossEntry
from limbeck.losses.policy import surprise
from limbeck.losses.shapes import check_rows, log_softmax_columns

Labels = Mapping[str, torch.Tensor]
CLIP = 0.2  # of the importance ratio, as in PPO (Schulman et al. 2017, arXiv:1707.06347): rows outlive the policy that played


def cost(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """c(s) = -sum_a pi_S(a) log pi_T(a), expected over the actions: student [..., A] logits -> [..., B] nats.

    pi_T is softmax(params), of action values softmax(Q / labels["temperature"]).

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.5, .5]]).log()
    >>> round(cost(q, {"params": p}, Head("categorical", (2,))).item(), 4)  # -(ln .8 + ln .2) / 2
    0.9163
    """
    teacher = check_rows(student, labels["params"])
    teacher = teacher / labels["temperature"] if head.kind == "q" else teacher
    return -(log_softmax_columns(student).exp() * log_softmax_columns(teacher)).sum(-2)


def entropy_regularised(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """c(s) + min-max clipped ratio * to_go, whose gradient is that of J_b where the student still is the policy that played.

    ratio = pi_S(a) / mu(a); the larger of ratio * to_go and clip(ratio, 0.8, 1.2) * to_go counts, so a row stops pushing
    once the student has moved far enough from mu (PPO's bound, for costs). student [..., A] -> [..., B]; a value of
    either sign, no divergence.
    """
    ratio = (-surprise(student, labels["said"]) - labels["log_behaviour"]).exp()
    to_go = labels["to_go"]
    if to_go.shape != ratio.shape:
        to_go = check_rows(ratio, to_go)
    check_rows(ratio, labels["log_behaviour"])
    return cost(student, labels, head) + torch.maximum(ratio * to_go, ratio.clamp(1 - CLIP, 1 + CLIP) * to_go)


LOSSES = {
    "entropy_regularised": LossEntry(
        entropy_regularised, "point", frozenset({"logits", "own_rollout", "soft_q"}), ("categorical", "q"), False
    )
}
