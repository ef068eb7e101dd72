"""The table of losses, and which one a teacher gets when nobody says."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.errors import InputError, unknown
from limbeck.losses import gaussian, policy, q, weights

__all__ = [
    "ANNEAL",
    "AUTO",
    "LOSSES",
    "choose",
    "fitting",
    "gaussian",
    "policy",
    "q",
    "spelled",
    "student_head",
    "weights",
]

LOSSES: dict[str, LossEntry] = {**policy.LOSSES, **q.LOSSES, **gaussian.LOSSES}
AUTO: dict[HeadKind, str] = {
    "categorical": "kl",
    "multicategorical": "kl",
    "bernoulli": "kl",
    "q": "q_kl",
    "gaussian": "executed_huber",
    "squashed": "executed_huber",
    "deterministic": "executed_huber",
    "tanh": "executed_huber",
}


ANNEAL: dict[HeadKind, str] = {
    "categorical": "1>0*kl + 0>1*regret",
    "q": "1>0*q_kl + 0>1*regret",
}


def spelled(text: str, head: Head) -> str:
    """A recipe's `imitate.loss` with the names that stand for sums written out."""
    if text != "anneal":
        return text
    if head.kind not in ANNEAL:
        raise InputError(
            f"loss 'anneal' ends in regret over a list of actions; this teacher is {head.kind}. "
            f"Allowed here: {', '.join(fitting(head))}."
        )
    return ANNEAL[head.kind]


def fitting(head: Head) -> list[str]:
    """Names of the losses that serve a teacher's head."""
    return [name for name, entry in LOSSES.items() if head.kind in entry.heads]


def choose(name: str, head: Head) -> str:
    """The loss's name for a teacher's head; refuses a loss that needs what this teacher does not have.

    >>> choose("auto", Head("q", (4,)))
    'q_kl'
    """
    if name == "auto":
        return AUTO[head.kind]
    if name not in LOSSES:
        raise unknown("loss", name, ["auto", "anneal", *LOSSES])
    entry = LOSSES[name]
    if head.kind not in entry.heads:
        raise InputError(
            f"loss {name!r} needs a teacher with {', '.join(sorted(entry.needs))}; this one is {head.kind}. "
            f"Allowed here: {', '.join(fitting(head))}."
        )
    return name


def student_head(names: Sequence[str], teacher: Head) -> Head:
    """The head a student gets: the teacher's own family, without what deployment drops.

    Q teachers and policies give logits; continuous teachers give means (squashed ones stay squashed), with standard
    deviations only where a loss among `names` trains them.
    """
    kind: HeadKind = teacher.kind
    if teacher.kind == "q":
        kind = "categorical"
    elif not teacher.discrete and not any({"gaussian", "squashed"} & LOSSES[name].needs for name in names):
        kind = "tanh" if teacher.kind in ("squashed", "tanh") else "deterministic"
    return Head(kind, teacher.sizes, teacher.low, teacher.high, teacher.start, teacher.shape)
