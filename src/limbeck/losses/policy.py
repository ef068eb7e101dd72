"""Losses between distributions over discrete actions. Rows in, one value per row out; nothing is reduced or detached here.

The mixture lambda CE + (1 - lambda) KL is no loss of its own: `objective.mixture` adds `cross_entropy` to any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn import functional

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.losses.shapes import centred, check_rows, log_softmax_columns, per_action, per_row

Labels = Mapping[str, torch.Tensor]
Summand = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of log p and log q, the teacher's and the student's


def over_choices(student: torch.Tensor, teacher: torch.Tensor, head: Head, summand: Summand) -> torch.Tensor:
    """sum_a summand(log p_a, log q_a) over all actions of all independent choices: [..., B, W] and [B, W] -> [..., B]."""
    if head.kind == "bernoulli":
        on = summand(functional.logsigmoid(teacher), functional.logsigmoid(student))
        off = summand(functional.logsigmoid(-teacher), functional.logsigmoid(-student))
        return (on + off).sum(-1)
    if head.kind != "multicategorical":
        return summand(log_softmax_columns(teacher), log_softmax_columns(student)).sum(-2)
    sizes = list(head.sizes)
    pairs = zip(torch.split(teacher, sizes, -1), torch.split(student, sizes, -1), strict=True)
    return torch.stack([summand(log_softmax_columns(t), log_softmax_columns(s)).sum(-2) for t, s in pairs]).sum(0)


def kl_summand(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return log_p.exp() * (log_p - log_q)


def _reverse(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return log_q.exp() * (log_q - log_p)


def _jensen_shannon(beta: float, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)


def kl_forward(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL(teacher || student) in nats, summed over independent choices: Rusu et al. 2015 (arXiv:1511.06295), tau = 1.

    student [..., W] logits, labels["params"] [B, W] logits or log-probabilities -> [..., B], never negative.

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.7, .3]]).log()
    >>> round(kl_forward(q, {"params": p}, Head("categorical", (2,))).item(), 6)
    0.025732
    """
    return over_choices(student, check_rows(student, labels["params"]), head, kl_summand)


def kl_reverse(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """KL(student || teacher) in nats, mode-seeking: Gu et al. 2023, MiniLLM (arXiv:2306.08543).

    Its gradient on an action's logit carries the student's own probability as a factor, so where the student is surely
    wrong it learns nothing: for students late in training, never from scratch. student [..., W] -> [..., B].

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.7, .3]]).log()
    >>> round(kl_reverse(q, {"params": p}, Head("categorical", (2,))).item(), 6)
    0.028168
    """
    return over_choices(student, check_rows(student, labels["params"]), head, _reverse)


def js(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q, p the teacher's.

    Agarwal et al. 2023, GKD (arXiv:2306.13649), eq. 1, with b = labels["beta"] in [0, 1] and its ends as TRL's
    `generalized_jsd_loss` has them: 0 is KL(teacher || student), 1 is KL(student || teacher). The formula itself goes to 0
    at both ends (divided by b or 1 - b it would go to these), so b = 0 is no limit of small b. Bounded by log 2.
    student [..., W] logits -> [..., B].

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.7, .3]]).log()
    >>> labels = {"params": p, "beta": torch.tensor(0.5)}
    >>> round(js(q, labels, Head("categorical", (2,))).item(), 6)
    0.006702
    """
    teacher, beta = check_rows(student, labels["params"]), float(labels["beta"])
    summand: Summand = partial(_jensen_shannon, beta) if 0 < beta < 1 else (_reverse if beta else kl_summand)
    return over_choices(student, teacher, head, summand)


def kd(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), Hinton et al. 2015 (arXiv:1503.02531), tau in labels["temperature"].

    The logits are divided, on both sides, never the probabilities; tau^2 keeps the gradient's size, whatever tau is.
    student [..., A] logits, labels["params"] [B, A] logits or Q-values -> [..., B], never negative. tau [] is one for
    all, [K, 1, 1, 1] one for each member.

    >>> import torch
    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> round(kd(student, {"params": teacher, "temperature": torch.tensor(2.0)}, Head("categorical", (2,))).item(), 4)
    0.4438
    """
    teacher, tau = check_rows(student, labels["params"]), labels["temperature"]
    return per_row(tau) ** 2 * over_choices(student / tau, teacher / tau, head, kl_summand)


def nll(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """-log q(argmax z_T): the teacher's greedy action as a hard label, summed over independent choices.

    Plain behavioural cloning of the action; not a divergence, at equality it is -log max p. student [..., W] -> [..., B].

    >>> import torch
    >>> p, q = torch.tensor([[.8, .2]]).log(), torch.tensor([[.7, .3]]).log()
    >>> round(nll(q, {"params": p}, Head("categorical", (2,))).item(), 4)  # -ln .7
    0.3567
    """
    teacher = check_rows(student, labels["params"])
    return cross_entropy_hard(student, {"params": teacher, "hard": _greedy(teacher, head)}, head)


def _greedy(teacher: torch.Tensor, head: Head) -> torch.Tensor:
    """The most probable answer to each choice, in the form of hard labels."""
    if head.kind == "bernoulli":
        return (teacher > 0).long()
    if head.kind == "multicategorical":
        return torch.stack([rows.argmax(-1) for rows in torch.split(teacher, list(head.sizes), -1)], -1)
    return teacher.argmax(-1)


def cross_entropy_hard(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """-log q(y) for the hard label y = labels["hard"], the task's own answer, summed over independent choices.

    One choice: y [B] indices; several: y [B, m] indices; labels of 0 or 1 (bernoulli): y [B, L], the binary
    cross-entropy of each. Not a divergence: at equality it is -log p(y). student [..., W] -> [..., B].
    """
    check_rows(student, labels["params"])
    hard = labels["hard"]
    if head.kind == "bernoulli":
        on = check_rows(student, hard).to(student.dtype)
        return -(on * functional.logsigmoid(student) + (1 - on) * functional.logsigmoid(-student)).sum(-1)
    if head.kind == "multicategorical":
        if hard.shape[-1:] != (len(head.sizes),):
            raise ValueError(f"hard labels of shape {tuple(hard.shape)} do not fit {len(head.sizes)} choices")
        groups = torch.split(student, list(head.sizes), -1)
        return torch.stack([surprise(rows, hard[..., i]) for i, rows in enumerate(groups)]).sum(0)
    return surprise(student, hard)


def surprise(student: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """-log q(index): [..., B, A] logits and [B] indices -> [..., B]."""
    log_q = functional.log_softmax(student, -1)
    wanted = check_rows(log_q[..., 0], index).expand(log_q.shape[:-1]).unsqueeze(-1)
    return -log_q.gather(-1, wanted).squeeze(-1)


CHOICES: tuple[HeadKind, ...] = ("categorical", "multicategorical", "bernoulli")


def logit_mse(student: torch.Tensor, labels: Labels, head: Head) -> torch.Tensor:
    """Mean over actions of (z_S - mean z_S - (z_T - mean z_T))^2 on logits, Ba & Caruana 2014 (arXiv:1312.6184).

    The limit of kd at a high temperature. The row's mean, which no probability depends on, is removed on both sides, over
    the allowed actions. student [..., A], labels["params"] [B, A] -> [..., B], 0 where the probabilities agree.

    >>> import torch
    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 5.0]])
    >>> logit_mse(student, {"params": teacher}, Head("categorical", (2,))).item()
    1.0
    """
    allowed = labels.get("allowed")
    error = centred(student, allowed) - centred(check_rows(student, labels["params"]), allowed)
    return per_action(error.square(), allowed)


LOSSES = {
    "logit_mse": LossEntry(logit_mse, "point", frozenset({"logits"}), ("categorical",), True),
    "kl": LossEntry(kl_forward, "point", frozenset({"logits"}), CHOICES, True),
    "kl_reverse": LossEntry(kl_reverse, "point", frozenset({"logits"}), CHOICES, True),
    "js": LossEntry(js, "point", frozenset({"logits"}), CHOICES, True),
    "kd": LossEntry(kd, "point", frozenset({"logits", "temperature"}), ("categorical", "q"), True),
    "nll": LossEntry(nll, "point", frozenset({"logits"}), (*CHOICES, "q"), False),
    "cross_entropy": LossEntry(
        cross_entropy_hard, "point", frozenset({"hard"}), ("categorical", "q", "bernoulli", "multicategorical"), False
    ),
}
