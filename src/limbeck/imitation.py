"""The imitation loop: gradient steps of the whole family on the data set. It knows no environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import losses, objective, seeding
from limbeck.batches import DROPOUT, OF_MEMBER, Draw, Pace, Preference, Regularising, preference
from limbeck.contracts import Batch, Head, HeadKind
from limbeck.objective import Term
from limbeck.students import together
from limbeck.students.family import Family, Rows
from limbeck.tables import Frames, Table, normaliser_of, table

__all__ = [
    "Frames",
    "Pace",
    "Regularising",
    "Table",
    "cosine",
    "disagreements",
    "imitate",
    "normaliser_of",
    "table",
    "worst_inputs",
]

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
SCAN = 4096  # rows per forward pass where all are looked at
WARM_UP = 0.3  # share of the rounds over which the adversarial radius grows from a quarter

ASSISTANT: dict[HeadKind, str] = {  # how far a student is from a larger one, by the students' head
    **losses.AUTO, "categorical": "kl", "gaussian": "gaussian_kl", "squashed": "squashed_kl",
}  # fmt: skip
Drop = Callable[[torch.Tensor], torch.Tensor]


def cosine(begin: float, end: float, share: float) -> float:
    """Learning rate at `share` (0..1) of the run.

    >>> cosine(1.0, 0.0, 0.5)
    0.5
    """
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def imitate(
    family: Family, tables: Mapping[str, Table], terms: Sequence[Term], pace: Pace, round_number: int, run_seed: int
) -> dict[str, float]:
    """`pace.gradient_steps` Adam steps of every member, tasks in turn; the mean loss of each member over the round."""
    names = list(tables)
    for rows in family.stacks:
        if rows.stack.architecture.precision:
            for name, data in tables.items():
                seen = _all_inputs(data, rows.stack.pixels)
                rows.stack.see(rows.theta, name, seen, fresh=rows.steps == 0)
    sums = {id(rows): torch.zeros(len(rows.members)) for rows in family.stacks}
    draws = [
        Draw(family, recurrent, pixels, run_seed, round_number)
        for recurrent in (False, True)
        for pixels in (False, True)
    ]
    drops = {id(rows): _dropout(pace, run_seed, round_number) for rows in family.stacks}
    if pace.priority:
        for draw in draws:
            draw.preferences = {name: _preferred(draw, tables[name], terms, pace) for name in names if draw.stacks}
    order = (lambda rows: -rows.stack.bits) if pace.assistant else None  # an assistant speaks before its students
    groups = {id(draw): together.group(draw.stacks, run_seed, round_number, order) for draw in draws}
    taken = dict.fromkeys(sums, 0)
    for step in range(pace.gradient_steps):
        data = tables[names[step % len(names)]]
        for draw in draws:
            if draw.stacks:
                batch = draw.batch(data, family.ports[data.task], pace)
                above = _assistants(pace, family.ports[data.task].head, data.head, terms)
                for group in groups[id(draw)]:
                    for rows, weight in group.active():
                        loss, gradient = _gradient(rows, batch, data.head, terms, pace, drops[id(rows)], above)
                        sums[id(rows)] += loss
                        taken[id(rows)] += 1
                        group.take(rows, gradient, weight)
                    for rows, gradient in group.gradients():
                        _step(rows, gradient, pace)
    for group in (group for found in groups.values() for group in found):
        group.agree()
    return {
        member.name: float(sums[id(rows)][k] / max(taken[id(rows)], 1))
        for rows in family.stacks
        for k, member in enumerate(rows.members)
    }


def _gradient(
    rows: Rows, batch: Batch, head: Head, terms: Sequence[Term], pace: Pace, drop: Drop | None, above: Assistants | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses [K] of all members of a stack on one minibatch, and their gradients [K, P]."""
    extra, batch = pace.regularising, _with_own(rows, batch)
    theta = rows.theta.requires_grad_()
    maps = any(term.layer.startswith("conv") for term in terms)
    seen = rows.stack.look(theta, batch.task, batch.inputs, batch.first, maps=maps, drop=drop)
    inside = objective.Inside(seen.hidden, seen.own)
    loss = objective.evaluate(terms, seen.params, batch, head, pace.share, inside, rows.tuned)
    total = loss
    if extra.adversarial:
        total = loss + extra.adversarial * _nearby(rows, theta, batch, head, terms, pace)
    if above is not None:
        total = total + above.lesson(rows, seen.params, batch)
    (gradient,) = torch.autograd.grad(total.sum(), theta)  # a sum, so that the members' gradients stay apart
    rows.theta = theta.detach()
    return loss.detach(), gradient


def _all_inputs(data: Table, pixels: bool) -> torch.Tensor:
    """[n, O * H] every row; of pictures, which stay in their files, some."""
    if isinstance(data.inputs, torch.Tensor):
        return data.inputs
    return data.gather(torch.linspace(0, data.rows - 1, min(SCAN, data.rows)).long(), pixels)


def _with_own(rows: Rows, batch: Batch) -> Batch:
    """Labels that are one member's own, "NAME of MEMBER" [T, B], as NAME [K, T, B] of the stack's members."""
    names = {key.split(OF_MEMBER)[0] for key in batch.labels if OF_MEMBER in key}
    own = {
        name: torch.stack([batch.labels[f"{name}{OF_MEMBER}{member.name}"] for member in rows.members])
        for name in names
    }
    return replace(batch, labels={**batch.labels, **own}) if own else batch


def _step(rows: Rows, gradient: torch.Tensor, pace: Pace) -> None:
    """One Adam step (Kingma & Ba 2015) of all members of a stack along their clipped gradients [K, P].

    Weight decay is decoupled (AdamW: Loshchilov & Hutter 2019), so it does not pass through the moments."""
    extra = pace.regularising
    if rows.held is not None:
        gradient = gradient * rows.held
    norm = gradient.norm(dim=1, keepdim=True)
    gradient.mul_((pace.gradient_clip / norm.clamp_min(1e-12)).clamp_max(1.0))
    rows.steps += 1
    rows.mean.lerp_(gradient, 1 - ADAM_BETAS[0])
    rows.square.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
    correction = math.sqrt(1 - ADAM_BETAS[1] ** rows.steps)
    scale = rows.square.sqrt().add_(ADAM_EPS * correction)
    if extra.weight_decay:
        decay = extra.weight_decay if rows.held is None else extra.weight_decay * rows.held
        rows.theta.mul_(1 - pace.learning_rate * decay)
    rows.theta.addcdiv_(rows.mean, scale, value=-pace.learning_rate * correction / (1 - ADAM_BETAS[0] ** rows.steps))
    if extra.average:
        _average(rows, extra.average)


class Assistants:
    """What larger students say of a minibatch, for the next smaller ones: teacher assistants (Mirzadeh et al. 2020,
    arXiv:1902.03393) beside the teacher, whose labels all sizes keep."""

    def __init__(self, weight: float, head: Head, values: Sequence[Term] = ()) -> None:
        """`values`: what students of a Q teacher are trained by; their rows are compared as logits Q / tau then."""
        self.weight, self.values = weight, values
        self.head = replace(head, kind="categorical") if values else head
        self.terms = (Term(ASSISTANT[self.head.kind], 1.0),)
        self.said: list[tuple[int, torch.Tensor]] = []  # stored bits and rows [K, T, B, W]

    def lesson(self, rows: Rows, params: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[K] weight * KL(assistant || student), 0 for the largest; then the stack speaks to smaller ones itself.

        Member k learns from member k of the next larger stack, around and around where that has fewer. The assistant
        is a label: no gradient enters it."""
        size = rows.stack.bits
        params = objective.as_logits(self.values, params, batch.labels) if self.values else params
        larger = min((one for one in self.said if one[0] > size), key=lambda one: one[0], default=None)
        self.said.append((size, params.detach()))
        if larger is None:
            return params.new_zeros(len(params))
        spoken = larger[1][torch.arange(len(params)) % len(larger[1])]
        labels = {key: value for key, value in batch.labels.items() if key == "allowed"} | {"params": spoken}
        return self.weight * objective.evaluate(self.terms, params, replace(batch, labels=labels), self.head)


def _assistants(pace: Pace, head: Head, teacher: Head, terms: Sequence[Term]) -> Assistants | None:
    return Assistants(pace.assistant, head, terms if teacher.kind == "q" else ()) if pace.assistant else None


def _average(rows: Rows, decay: float) -> None:
    """The running mean of the weights, beginning short: min(decay, (1 + n) / (10 + n)) after n steps, or the first,
    random weights would still be in it after a short run."""
    kept = rows.beside.setdefault("average", rows.theta.clone())
    kept.lerp_(rows.theta, 1 - min(decay, (1 + rows.steps) / (10 + rows.steps)))


def _dropout(pace: Pace, run_seed: int, round_number: int) -> Drop | None:
    """Inverted dropout (Srivastava et al. 2014). All members of a stack lose the same units and every stack draws from a
    stream that begins alike, so that a member in the stack still equals the member alone."""
    lost = pace.regularising.dropout
    if not lost:
        return None
    rng = seeding.generator(run_seed, "train", round_number, DROPOUT)

    def drop(hidden: torch.Tensor) -> torch.Tensor:
        kept = torch.from_numpy(rng.random(hidden.shape[1:], dtype=np.float32) >= lost)
        return hidden * kept / (1 - lost)

    return drop


# ---------------------------------------------------------------- the worst input nearby


def _nearby(
    rows: Rows, theta: torch.Tensor, batch: Batch, head: Head, terms: Sequence[Term], pace: Pace
) -> torch.Tensor:
    """[K] max_{|d| <= radius} KL(teacher(s) || student(s + d)), each member at its own worst inputs, one after another:
    the stack shares its inputs, so this costs a pass per member and ascent."""
    extra, measure = pace.regularising, (objective.measure(terms, head),)
    radius = extra.radius * min(1.0, 0.25 + 0.75 * pace.share / WARM_UP)
    found = []
    for k in range(len(theta)):
        one = theta[k : k + 1]
        inputs = worst_inputs(rows, k, batch, head, measure[0], radius, extra.ascents)
        said = rows.stack.look(one, batch.task, inputs, batch.first, maps=False).params
        found.append(objective.evaluate(measure, said, batch, head)[0])
    return torch.stack(found)


def worst_inputs(
    rows: Rows, k: int, batch: Batch, head: Head, measure: Term, radius: float, ascents: int
) -> torch.Tensor:
    """[T, B, O] inputs of member `k` within `radius` of the batch's in every number, after `ascents` steps of projected
    gradient ascent on the loss (Madry et al. 2018, arXiv:1706.06083); with one step the fast gradient sign method."""
    weights, moved = rows.theta[k : k + 1].detach(), torch.zeros_like(batch.inputs)
    length = min(radius, 2.5 * radius / ascents)
    for _ in range(ascents):
        inputs = (batch.inputs + moved).requires_grad_()
        said = rows.stack.look(weights, batch.task, inputs, batch.first, maps=False).params
        loss = objective.evaluate((measure,), said, batch, head)
        (gradient,) = torch.autograd.grad(loss.sum(), inputs)
        moved = (moved + length * gradient.sign()).clamp(-radius, radius)
    return (batch.inputs + moved).detach()


# ---------------------------------------------------------------- how far students are from the teacher, row by row


def disagreements(rows: Rows, data: Table, measure: Term, which: torch.Tensor) -> torch.Tensor:
    """[K, n] `objective.measure` of every member of a stack on the rows `which` [n] of a table.

    Recurrent students read the rows' episodes from their beginnings, side by side."""
    with torch.no_grad():
        if rows.stack.architecture.recurrent:
            return _along(rows, data, measure, which)
        parts = [which[begin : begin + SCAN][None] for begin in range(0, len(which), SCAN)]
        return torch.cat([_compared(rows, data, measure, at, None)[:, 0] for at in parts], dim=1)


def _along(rows: Rows, data: Table, measure: Term, which: torch.Tensor) -> torch.Tensor:
    begins = torch.nonzero(data.first)[:, 0]
    episode = torch.searchsorted(begins, which, right=True) - 1
    chosen, column = torch.unique(episode, return_inverse=True)
    ends = torch.cat([begins[1:], torch.tensor([data.rows])])
    steps = torch.arange(int((ends - begins)[chosen].max()))[:, None]
    at = torch.minimum(begins[chosen] + steps, ends[chosen] - 1)  # [T, E], the last row repeated
    return _compared(rows, data, measure, at, data.first[at])[:, which - begins[episode], column]


def _compared(rows: Rows, data: Table, measure: Term, at: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
    """[K, T, B] of the rows `at` [T, B]."""
    labels = {key: column[at] for key, column in data.labels.items()} | dict(data.scalars)
    batch = Batch(data.task, data.gather(at, rows.stack.pixels), first, None, labels)
    said = rows.stack.look(rows.theta, data.task, batch.inputs, first, maps=False).params
    return objective.each_row(measure, said, batch, data.head)


def _preferred(draw: Draw, data: Table, terms: Sequence[Term], pace: Pace) -> Preference:
    """Minibatches are shared, so a row's disagreement is the mean over all members that take them."""
    which = torch.arange(data.rows) if data.training is None else data.training.long()
    measure = objective.measure(terms, data.head)
    parts = [disagreements(rows, data, measure, which).double() for rows in draw.stacks]
    mean: NDArray[np.float64] = torch.cat(parts).mean(0).clamp_min(0.0).numpy()
    return preference(mean, which.numpy(), pace.priority, pace.share)
