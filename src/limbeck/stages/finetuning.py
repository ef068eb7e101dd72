"""A compressed member imitates the teacher again, on the rows that the family learned from.

Whole numbers take two halves. In the first some weights jump between two neighbours to the end (Nagel et al. 2022,
arXiv:2203.11086), and the loss jumps with them. So the best weights met stay, and in the second half biases and ranges
are fitted to them. Measured on CartPole, KL without and with halves: at int4 mlp:16x16 .00082 and .00074, conv1d:8k3:16
.00093 and .00072; at int8, where neighbours are close, .00042 and .00052, .00028 and .00031, with the
same returns; on Pendulum int4 keeps 98.9 % where the int8 it inherits from had no halves, 99.2 % where it had (one seed each).
Memories learn for longer, so all of their numbers are trained to the end: gru:8 at int4 .0029, with halves .0048.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from limbeck import imitation, objective
from limbeck.imitation import Table
from limbeck.objective import Term
from limbeck.stages import learn
from limbeck.stages.scene import Scene
from limbeck.students.family import Family, Rows

STATES = 4096  # collected rows, at most, by which weights are told apart
ROOM = 1 << 22  # input numbers of all members in one forward pass: 4,096 rows of 1,024, 148 of four pictures of 84 x 84
SETTLED = 0.01  # share of the learning rate that training ends with: weights on the border of two numbers come to rest
PARTS = 16  # of the gradient steps, each at its own learning rate


def tuned(here: Scene, family: Family, table: Table, first: int, *, whole: bool) -> dict[str, float]:
    """Imitation on the stored rows, at a learning rate that falls; the mean losses of the last part.

    `whole`: the members compute in whole numbers. `first` is a round's number that no other play or training has: minibatches
    are drawn by it."""
    steps = here.run.recipe.compression.gradient_steps
    rounds = range(first, first + min(PARTS, steps))
    losses: dict[str, float] = {}
    for memory in (False, True):
        some = replace(family, stacks=[rows for rows in family.stacks if rows.stack.architecture.recurrent == memory])
        if some.stacks:
            halves = whole and not memory and len(rounds) > 1
            losses |= (_in_halves if halves else _imitated)(here, some, table, rounds, steps)
    return losses


def _in_halves(here: Scene, family: Family, table: Table, rounds: range, steps: int) -> dict[str, float]:
    """All numbers, then those beside the best weights met."""
    half, best = len(rounds) // 2, _Best(table, objective.measure(learn.terms_for(here), table.head))
    _imitated(here, family, table, rounds[:half], steps // 2, best)
    best.put_back(family)
    for rows in family.stacks:
        rows.held = beside_weights(rows)
        rows.mean *= rows.held  # else momentum would go on moving the weights
    losses = _imitated(here, family, table, rounds[half:], steps - steps // 2, best)
    best.put_back(family)
    return losses


def _imitated(
    here: Scene, family: Family, table: Table, rounds: range, steps: int, best: _Best | None = None
) -> dict[str, float]:
    """Gradient steps in as many parts as there are `rounds`, each at its own rate; the mean losses of the last."""
    imitate, settings = here.run.recipe.imitate, here.run.recipe.compression
    terms, parts = learn.terms_for(here), len(rounds)
    losses: dict[str, float] = {}
    for part, number in enumerate(rounds):
        count = steps * (part + 1) // parts - steps * part // parts
        rate = imitation.cosine(settings.learning_rate, SETTLED * settings.learning_rate, part / max(parts - 1, 1))
        pace = imitation.Pace(
            count, imitate.batch, rate, imitate.gradient_clip, imitate.sequence, imitate.burn_in, share=1.0
        )
        losses = imitation.imitate(family, {here.task.name: table}, terms, pace, number, here.seed)
        if best is not None:
            best.see(family)
    return losses


def beside_weights(rows: Rows) -> torch.Tensor:
    """[P + own] 1 for biases, ranges and the losses' own numbers, 0 for weights."""
    shapes = {**rows.stack.shapes, **rows.stack.owned}
    parts = [torch.full((math.prod(shape),), float(not name.endswith(".weight"))) for name, shape in shapes.items()]
    return torch.cat(parts)


# ---------------------------------------------------------------- which weights were best


@dataclass(frozen=True)
class _Best:
    """Of every stack the weights of each member that came closest to the teacher on the same rows."""

    table: Table
    measure: Term
    weights: dict[int, torch.Tensor] = field(default_factory=dict)  # of a stack, by its place
    distances: dict[int, torch.Tensor] = field(default_factory=dict)  # [K]

    def see(self, family: Family) -> None:
        for place, rows in enumerate(family.stacks):
            parts = passes(rows, self.table, family.ports[self.table.task].inputs)
            found = torch.cat([imitation.disagreements(rows, self.table, self.measure, at) for at in parts], 1).mean(1)
            if place not in self.weights:
                self.weights[place], self.distances[place] = rows.theta.clone(), found
            better = found < self.distances[place]
            self.weights[place][better], self.distances[place][better] = rows.theta[better], found[better]

    def put_back(self, family: Family) -> None:
        for place, rows in enumerate(family.stacks):
            rows.theta = self.weights[place].clone()


def passes(rows: Rows, table: Table, inputs: int) -> list[torch.Tensor]:
    """Numbers of the rows that a stack is judged by, evenly spaced, one forward pass after another; `inputs`: of a row."""
    room = max(1, ROOM // (inputs * len(rows.members)))
    return list(torch.split(torch.linspace(0, table.rows - 1, min(STATES, table.rows)).long(), room))
