"""The table of losses, and which one a teacher gets when nobody says."""

from __future__ import annotations

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.errors import InputError, unknown
from limbeck.losses import gaussian, policy, q, weights

__all__ = ["AUTO", "LOSSES", "choose", "gaussian", "policy", "q", "student_head", "weights"]

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


def choose(name: str, head: Head) -> str:
    """The loss's name for a teacher's head; refuses a loss that needs what this teacher does not have.

    >>> choose("auto", Head("q", (4,)))
    'q_kl'
    """
    if name == "auto":
        return AUTO[head.kind]
    if name not in LOSSES:
        raise unknown("loss", name, ["auto", *LOSSES])
    entry = LOSSES[name]
    if head.kind not in entry.heads:
        fitting = [k for k, e in LOSSES.items() if head.kind in e.heads]
        raise InputError(
            f"loss {name!r} needs a teacher with {', '.join(sorted(entry.needs))}; this one is {head.kind}. Allowed here: {', '.join(fitting)}."
        )
    return name


def student_head(name: str, teacher: Head) -> Head:
    """The head a student gets: the teacher's own family, without what deployment drops.

    Q teachers and policies give logits; continuous teachers give means (squashed ones stay squashed), with standard
    deviations only where the loss trains them.
    """
    kind: HeadKind = teacher.kind
    if teacher.kind == "q":
        kind = "categorical"
    elif name == "executed_huber":
        kind = "tanh" if teacher.kind in ("squashed", "tanh") else "deterministic"
    return Head(kind, teacher.sizes, teacher.low, teacher.high, teacher.start, teacher.shape)
