"""The table of losses, and which one a teacher gets when nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from limbeck.contracts import Head, HeadKind, LossEntry
from limbeck.errors import InputError, unknown
from limbeck.losses import (
    bellman,
    contrast,
    costs,
    critic,
    features,
    gaps,
    gaussian,
    logits,
    policy,
    q,
    relations,
    reward,
    value,
    weights,
)

__all__ = [
    "ANNEAL",
    "AUTO",
    "CONSTANTS",
    "LOSSES",
    "UNITS",
    "Unit",
    "bellman",
    "choose",
    "contrast",
    "costs",
    "critic",
    "features",
    "fitting",
    "gaps",
    "gaussian",
    "logits",
    "policy",
    "q",
    "relations",
    "reward",
    "spelled",
    "student_head",
    "value",
    "weights",
]

LOSSES: dict[str, LossEntry] = {
    **policy.LOSSES, **gaps.LOSSES, **costs.LOSSES, **logits.LOSSES,
    **q.LOSSES, **bellman.LOSSES,
    **gaussian.LOSSES, **critic.LOSSES,
    **value.LOSSES, **features.LOSSES, **relations.LOSSES, **contrast.LOSSES,
}  # fmt: skip
AUTO: dict[HeadKind, str] = {
    "categorical": "kl",  # docs/results.md, all but halfcheetah: rows "student, kl"
    "multicategorical": "kl",  # these and q without a row of their own: the same loss in their form
    "bernoulli": "kl",
    "q": "q_kl",
    "gaussian": "executed_huber",  # docs/results.md, halfcheetah: row "student, regress", level with "student, kl"
    "squashed": "executed_huber",
    "deterministic": "executed_huber",
    "tanh": "executed_huber",
}
TOWARDS_CRITIC = "1>0*executed_huber + 0>1*critic_guided"
ANNEAL: dict[HeadKind, str] = {
    "categorical": "1>0*kl + 0>1*regret",
    "q": "1>0*q_kl + 0>1*regret",
    "gaussian": TOWARDS_CRITIC,
    "squashed": TOWARDS_CRITIC,
    "deterministic": TOWARDS_CRITIC,
    "tanh": TOWARDS_CRITIC,
}
Unit = Literal["temperature", "reward", "gap"]
UNITS: dict[str, Unit] = {  # what students of a Q teacher state Q in: tau, as it is, its mean gap; other losses fix no scale
    "q_kl": "temperature", "kl_gap": "temperature", "entropy_regularised": "temperature",
    "kd": "reward", "dkd": "reward", "dist": "reward", "bellman": "reward",
    "q_mse": "gap", "q_huber": "gap",
}  # fmt: skip
MANY = 3  # actions from which "many_actions" is met
CONSTANTS = ("beta", "gap_power", "dkd_beta")  # fields of a recipe's `imitate` that are labels [] of the same name


def spelled(text: str, head: Head) -> str:
    """A recipe's `imitate.loss` with the names that stand for sums written out."""
    if text != "anneal":
        return text
    if head.kind not in ANNEAL:
        raise InputError(
            f"loss 'anneal' ends in the regret of one choice or of a continuous action; this teacher is {head.kind}. "
            f"Allowed here: {', '.join(fitting(head))}."
        )
    return ANNEAL[head.kind]


def fitting(head: Head) -> list[str]:
    """Names of the losses that serve a teacher's head."""
    return [name for name, entry in LOSSES.items() if head.kind in entry.heads and not _too_few(entry, head)]


def _too_few(entry: LossEntry, head: Head) -> bool:
    return "many_actions" in entry.needs and max(head.sizes) < MANY


def choose(name: str, head: Head) -> str:
    """The loss's name for a teacher's head; refuses a loss that needs what this teacher does not have.

    >>> choose("auto", Head("q", (4,)))
    'q_kl'
    """
    if name == "auto":
        return AUTO[head.kind]
    if name == "anneal":
        raise InputError(
            f"loss 'anneal' stands for the whole sum {spelled(name, head)!r} and is no term of one. Write it alone, or write that sum out."
        )
    if name not in LOSSES:
        raise unknown("loss", name, ["auto", "anneal", *LOSSES])
    entry = LOSSES[name]
    if head.kind not in entry.heads:
        raise InputError(
            f"loss {name!r} needs a teacher with {', '.join(sorted(entry.needs))} (a head of kind {' or '.join(entry.heads)}); "
            f"this one is {head.kind}. "
            f"Allowed here: {', '.join(fitting(head))}."
        )
    if _too_few(entry, head):
        raise InputError(
            f"loss {name!r} needs a teacher with at least {MANY} actions; this one has {max(head.sizes)}, between which it "
            f"cannot tell more than KL does. Allowed here: {', '.join(fitting(head))}."
        )
    return name


def student_head(names: Sequence[str], teacher: Head) -> Head:
    """The head a student gets: the teacher's own family, without what deployment drops.

    Q teachers and policies give logits; continuous teachers give means (squashed ones stay squashed), with standard
    deviations only where a loss among `names` trains them. Bellman targets alone train action values as such.

    >>> student_head(["bellman"], Head("q", (4,))).kind
    'q'
    """
    kind: HeadKind = teacher.kind
    if teacher.kind == "q":
        kind = "q" if any("next" in LOSSES[name].needs for name in names) else "categorical"
    elif not teacher.discrete and not any({"gaussian", "squashed"} & LOSSES[name].needs for name in names):
        kind = "tanh" if teacher.kind in ("squashed", "tanh") else "deterministic"
    return Head(kind, teacher.sizes, teacher.low, teacher.high, teacher.start, teacher.shape)
