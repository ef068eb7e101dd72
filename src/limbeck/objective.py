"""The only place that weighs, schedules, masks and reduces losses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from limbeck import losses
from limbeck.contracts import Batch, Head
from limbeck.distributions import FORBIDDEN
from limbeck.errors import InputError, printable
from limbeck.losses import LOSSES, UNITS, Unit

Number = TypeVar("Number", float, torch.Tensor)
LAST = "last"  # the hidden layer before the head, whatever its name


@dataclass(frozen=True)
class Term:
    """One loss and its weight: constant, or linear from `weight` at the first round to `final` at the last."""

    name: str
    weight: float
    final: float | None = None
    layer: str = LAST  # the student's hidden layer, for losses that read one
    source: str = ""  # the teacher's layer, for losses on features
    unit: Unit | None = None  # of a Q teacher's student, for what `measure` gives; None: what the loss itself takes

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
    _refuse(text, terms, head)
    return tuple(terms)


def _refuse(text: str, terms: Sequence[Term], head: Head) -> None:
    weights = [weight for term in terms for weight in (term.at(0.0), term.at(1.0))]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise InputError(
            f"imitate.loss = {printable(text)!r} has a negative weight or one beyond all numbers. Allowed: 0 and above, finite."
        )
    if len({t.key for t in terms}) < len(terms):
        raise InputError(f"imitate.loss = {printable(text)!r} names a loss twice. Add their weights.")
    for when, share in (("at the first round", 0.0), ("at the last round", 1.0)):
        if not any(term.at(share) > 0 and LOSSES[term.name].reads == "params" for term in terms):
            raise InputError(
                f"imitate.loss = {printable(text)!r} does not look at what the student does {when}. "
                "Add a loss on its answers that counts then, such as kl."
            )
    _refuse_units(text, terms, head)
    for term in terms:
        featured = "features" in LOSSES[term.name].needs
        if featured != bool(term.source):
            wanted = f"{term.name}@STUDENT_LAYER=TEACHER_LAYER" if featured else term.name
            raise InputError(
                f"imitate.loss: {term.name!r} is written {wanted}. Student layers: conv0, dense0, ..., last."
            )


def _refuse_units(text: str, terms: Sequence[Term], head: Head) -> None:
    """A student's numbers have one unit: what brings them to Q / tau takes them away from Q."""
    stated = {UNITS[term.name]: term.name for term in terms if term.name in UNITS}
    if head.kind == "q" and len(stated) > 1:
        said = {"temperature": "Q / temperature", "reward": "Q", "gap": "Q / mean gap"}
        units = ", ".join(f"{name} trains {said[unit]}" for unit, name in stated.items())
        raise InputError(
            f"imitate.loss = {printable(text)!r} asks one student for its numbers in several units: {units}. "
            "Allowed: losses of one unit; beside bellman imitate with kd."
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


def each_row(term: Term, student: torch.Tensor, batch: Batch, head: Head) -> torch.Tensor:
    """student [K, T, B, W] -> [K, T, B]: a point loss on the student's rows, neither weighed nor reduced."""
    if head.discrete and "allowed" in batch.labels:
        student, batch = _masked(student, batch)
    return LOSSES[term.name].fn(_read(term, student, batch.labels), batch.labels, head)


def measure(terms: Sequence[Term], head: Head) -> Term:
    """What rows are compared by whatever is trained: KL over actions, else the first divergence in use with a value per row.

    Never negative, and 0 where student and teacher agree; of a Q teacher's student in the unit that its losses train.

    >>> measure((Term("bellman", 1.0),), Head("q", (4,)))
    Term(name='q_kl', weight=1.0, final=None, layer='last', source='', unit='reward')
    """
    if head.kind == "q":
        return Term(losses.AUTO["q"], 1.0, unit=unit_of(terms))
    if not head.discrete:
        for term in terms:
            entry = LOSSES[term.name]
            if entry.kind == "point" and entry.reads == "params" and entry.divergence:
                return Term(term.name, 1.0)
    return Term(losses.AUTO[head.kind], 1.0)


def unit_of(terms: Sequence[Term]) -> Unit:
    """What students of a Q teacher state Q in; where no term fixes a scale, as if they were trained by q_kl."""
    return next((found for term in terms if (found := term.unit or UNITS.get(term.name))), "temperature")


def unit(terms: Sequence[Term], temperature: Number, gap: Number) -> Number:
    """The Q that a student's number 1 stands for: its rows are Q / unit.

    >>> [unit((Term(name, 1.0),), 0.5, 4.0) for name in ("q_kl", "kd", "q_mse")]
    [0.5, 1.0, 4.0]
    """
    kind = unit_of(terms)
    return gap if kind == "gap" else temperature if kind == "temperature" else temperature**0


def as_logits(terms: Sequence[Term], rows: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Rows [..., A] of a Q teacher's student of these terms, as the logits Q / tau of its actions."""
    tau = labels["temperature"]
    return rows if unit_of(terms) == "temperature" else rows * (unit(terms, tau, labels.get("gap", tau)) / tau)


def _masked(student: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
    allowed = batch.labels["allowed"]
    params = torch.where(allowed, batch.labels["params"], FORBIDDEN)
    return torch.where(allowed, student, FORBIDDEN), replace(batch, labels={**batch.labels, "params": params})


def _read(term: Term, student: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return student if term.unit is None else as_logits((term,), student, labels)


def _reduce(term: Term, student: torch.Tensor, batch: Batch, head: Head, inside: Inside) -> torch.Tensor:
    """One loss, unweighted -> [K]."""
    entry, mask = LOSSES[term.name], batch.mask
    labels = batch.labels
    if term.source:
        labels = {**labels, "feature": labels[f"feature:{term.source}"]}
    said = _read(term, student, labels) if entry.reads == "params" else inside.hidden[term.layer]
    prefix = f"{term.key}/"
    own = {name[len(prefix) :]: value for name, value in inside.own.items() if name.startswith(prefix)}
    arguments = (said, labels, head) if entry.owns is None else (said, labels, head, own)
    if entry.kind == "batch":
        return entry.fn(*arguments, mask if mask is not None else student.new_ones(student.shape[1:3]))
    rows = entry.fn(*arguments)
    if mask is None:
        return rows.mean((-2, -1))
    return (rows * (mask / mask.sum().clamp_min(1.0))).sum((-2, -1))
