"""The only place that weighs, schedules, masks and reduces losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from limbeck import losses
from limbeck.contracts import Batch, Head
from limbeck.distributions import FORBIDDEN
from limbeck.errors import InputError, printable
from limbeck.losses import LOSSES

LAST = "last"  # the hidden layer before the head, whatever its name


@dataclass(frozen=True)
class Term:
    """One loss and its weight: constant, or linear from `weight` at the first round to `final` at the last."""

    name: str
    weight: float
    final: float | None = None
    layer: str = LAST  # the student's hidden layer, for losses that read one
    source: str = ""  # the teacher's layer, for losses on features

    def at(self, share: float) -> float:
        """The weight at `share` (0 to 1) of the rounds.

        >>> Term("kl", 1.0, 0.0).at(0.25)
        0.75
        """
        return (
            self.weight if self.final is None else self.weight + (self.final - self.weight) * min(max(share, 0.0), 1.0)
        )

    @property
    def key(self) -> str:
        """Names the term's own parameters in theta."""
        return f"{self.name}@{self.layer}={self.source}" if self.source else self.name


@dataclass(frozen=True)
class Inside:
    """What some losses read of a student beside its rows."""

    hidden: Mapping[str, torch.Tensor] = field(default_factory=dict)  # layer -> [K, T, B, F]
    own: Mapping[str, torch.Tensor] = field(default_factory=dict)  # "TERM/NAME" -> [K, ...]


_TERM = re.compile(
    r"(?:(?P<begin>[0-9.eE+-]+)(?:>(?P<end>[0-9.eE+-]+))?\*)?(?P<name>\w+)(?:@(?P<layer>\w+)=(?P<source>[\w.]+))?"
)


def parse(text: str, head: Head) -> tuple[Term, ...]:
    """The terms of a recipe's `imitate.loss` for a teacher's head.

    A sum such as `kl + 0.5*value`, `1>0*kl + 0>1*regret` (weights run linearly over the rounds) or
    `kl + 100*hint@dense0=policy.2` (the student's layer = the teacher's). `auto` and `anneal` are names for what suits
    the head. Raises InputError for anything else, before anything runs.

    >>> [(t.name, t.weight, t.final) for t in parse("1>0*kl + 0>1*regret", Head("categorical", (4,)))]
    [('kl', 1.0, 0.0), ('regret', 0.0, 1.0)]
    """
    terms: list[Term] = []
    for part in re.split(r"\s\+\s", losses.spelled(text.strip(), head)):
        found = _TERM.fullmatch(part.strip().replace(" ", ""))
        try:
            if found is None:
                raise ValueError(part)
            begin = 1.0 if found["begin"] is None else float(found["begin"])
            end = None if found["end"] is None else float(found["end"])
        except ValueError as error:
            raise InputError(
                f"imitate.loss: {printable(part)!r} is not understood. Allowed: sums of NAME, WEIGHT*NAME, BEGIN>END*NAME, "
                "and NAME@STUDENT_LAYER=TEACHER_LAYER for features, such as 'kl + 0.5*value'."
            ) from error
        name = losses.choose(found["name"], head)
        terms.append(Term(name, begin, end, found["layer"] or LAST, found["source"] or ""))
    _refuse(text, terms)
    return tuple(terms)


def _refuse(text: str, terms: Sequence[Term]) -> None:
    if any(min(t.weight, t.weight if t.final is None else t.final) < 0 for t in terms):
        raise InputError(f"imitate.loss = {printable(text)!r} has a negative weight. Allowed: 0 and above.")
    if len({t.key for t in terms}) < len(terms):
        raise InputError(f"imitate.loss = {printable(text)!r} names a loss twice. Add their weights.")
    if not any(max(t.weight, t.final or 0.0) > 0 and LOSSES[t.name].reads == "params" for t in terms):
        raise InputError(
            f"imitate.loss = {printable(text)!r} never looks at what the student does. Add a loss on its answers, such as kl."
        )
    for term in terms:
        featured = "features" in LOSSES[term.name].needs
        if featured != bool(term.source):
            wanted = f"{term.name}@STUDENT_LAYER=TEACHER_LAYER" if featured else term.name
            raise InputError(
                f"imitate.loss: {term.name!r} is written {wanted}. Student layers: conv0, dense0, ..., last."
            )


def mixture(terms: str | Sequence[Term], hard_weight: float, scale: float = 1.0) -> tuple[Term, ...]:
    """scale ((1 - h) loss + h CE(hard label)): the canonical form of distillation with labels; h in [0, 1]."""
    given = (Term(terms, 1.0),) if isinstance(terms, str) else tuple(terms)
    teacher = scale * (1.0 - hard_weight)
    weighed = [
        replace(t, weight=teacher * t.weight, final=None if t.final is None else teacher * t.final) for t in given
    ]
    weighed.append(Term("cross_entropy", scale * hard_weight))
    return tuple(term for term in weighed if max(term.weight, term.final or 0.0) > 0)


def owned(
    terms: Sequence[Term],
    hidden: Mapping[str, tuple[int, ...]],
    features: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Shapes of the terms' own parameters for a student whose hidden layers have the shapes `hidden`.

    `features`: the shapes of the teacher's layers. Raises InputError for a layer that a side does not have.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for term in terms:
        entry = LOSSES[term.name]
        if entry.reads == "hidden" and term.layer not in hidden:
            raise InputError(
                f"imitate.loss: no student layer {printable(term.layer)!r}. This student has: {', '.join(hidden)}."
            )
        if entry.owns is not None:
            wanted = entry.owns(hidden[term.layer], features.get(term.source, ()))
            shapes |= {f"{term.key}/{name}": shape for name, shape in wanted.items()}
    return shapes


def evaluate(
    terms: Sequence[Term],
    student: torch.Tensor,
    batch: Batch,
    head: Head,
    share: float = 0.0,
    inside: Inside | None = None,
    tuned: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """student [K, T, B, W] -> [K]: the weighted mean over unmasked rows, each member on its own.

    The mean does not depend on the batch's size, and a member's value does not depend on the others. Where labels say
    which actions are "allowed", no loss sees the others: they have probability 0 on both sides and no gradient.
    `share` is how much of the rounds is over, `tuned` [K] factors on terms' weights (by key) and on "temperature".
    """
    inside, tuned = inside or Inside(), tuned or {}
    if head.discrete and "allowed" in batch.labels:
        student, batch = _masked(student, batch)
    if "temperature" in tuned:
        hotter = batch.labels["temperature"] * tuned["temperature"]
        batch = replace(batch, labels={**batch.labels, "temperature": hotter[:, None, None, None]})
    weighted = []
    for term in terms:
        weight = term.at(share) * tuned.get(term.key, 1.0)
        if isinstance(weight, torch.Tensor) or weight > 0:
            weighted.append(weight * _reduce(term, student, batch, head, inside))
    return weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum(0)


def _masked(student: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
    allowed = batch.labels["allowed"]
    params = torch.where(allowed, batch.labels["params"], FORBIDDEN)
    return torch.where(allowed, student, FORBIDDEN), replace(batch, labels={**batch.labels, "params": params})


def _reduce(term: Term, student: torch.Tensor, batch: Batch, head: Head, inside: Inside) -> torch.Tensor:
    """One loss, unweighted -> [K]."""
    entry, mask = LOSSES[term.name], batch.mask
    labels = batch.labels
    if term.source:
        labels = {**labels, "feature": labels[f"feature:{term.source}"]}
    said = student if entry.reads == "params" else inside.hidden[term.layer]
    if entry.kind == "batch":
        whole = mask if mask is not None else student.new_ones(student.shape[1:3])
        return entry.fn(said, labels, head, whole)
    if entry.kind == "trainable":
        prefix = f"{term.key}/"
        own = {name[len(prefix) :]: value for name, value in inside.own.items() if name.startswith(prefix)}
        rows = entry.fn(said, labels, head, own)
    else:
        rows = entry.fn(said, labels, head)
    if mask is None:
        return rows.mean((-2, -1))
    return (rows * (mask / mask.sum().clamp_min(1.0))).sum((-2, -1))
