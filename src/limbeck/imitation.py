"""The imitation loop: gradient steps of the whole family on the data set. It knows no environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbeck import objective, seeding, spaces
from limbeck.contracts import Batch, Floats, Head, Normaliser
from limbeck.dataset import Dataset, history_rows
from limbeck.objective import Term
from limbeck.students.family import Family, Rows
from limbeck.students.stack import Port

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Table:
    """A task's data set as tensors, view and normaliser applied: what minibatches are gathered from."""

    task: str
    inputs: torch.Tensor  # [N, O * H]
    first: torch.Tensor  # [N] bool
    labels: Mapping[str, torch.Tensor]  # "params" [N, W], "hard" [N]
    scalars: Mapping[str, torch.Tensor]  # "temperature" []
    head: Head  # the teacher's

    @property
    def rows(self) -> int:
        return int(self.inputs.shape[0])


def normaliser_of(dataset: Dataset, port: Port) -> Normaliser:
    """Mean and standard deviation of the flat observations seen so far; 1 where a number never changed."""
    flat = spaces.flatten(dataset.observations(), port.spec.observation_space, port.view).astype(np.float64)
    spread = flat.std(axis=0)
    return Normaliser(flat.mean(axis=0).astype(np.float32), np.where(spread > 1e-6, spread, 1.0).astype(np.float32))


def table(dataset: Dataset, port: Port, teacher_head: Head, normaliser: Normaliser, temperature: float) -> Table:
    """Everything collected so far, ready to be gathered from."""
    flat = spaces.flatten(dataset.observations(), port.spec.observation_space, port.view)
    flat = (flat - normaliser.mean) / normaliser.scale
    first = np.asarray(dataset.first())
    if port.view.history > 1:
        flat = flat[history_rows(first, port.view.history)].reshape(len(flat), -1)
    labels = {"params": torch.from_numpy(np.array(dataset.column("teacher/params")))}
    if dataset.has("hard"):
        labels["hard"] = torch.from_numpy(np.array(dataset.column("hard")))
    scalars = {"temperature": torch.tensor(temperature)}
    return Table(
        dataset.task,
        torch.from_numpy(flat.astype(np.float32)),
        torch.from_numpy(np.array(first)),
        labels,
        scalars,
        teacher_head,
    )


@dataclass(frozen=True)
class Pace:
    """How a round's gradient steps are taken."""

    gradient_steps: int
    batch: int  # rows; sequences of recurrent students count all their rows
    learning_rate: float
    gradient_clip: float  # of each member's own gradient norm
    sequence: int = 32
    burn_in: int = 8


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
    rng = seeding.generator(run_seed, "train", round_number, 0)
    names = list(tables)
    losses = {id(rows): torch.zeros(len(rows.members)) for rows in family.stacks}
    memoryless = [rows for rows in family.stacks if not rows.stack.architecture.recurrent]
    recurrent = [rows for rows in family.stacks if rows.stack.architecture.recurrent]
    for step in range(pace.gradient_steps):
        data = tables[names[step % len(names)]]
        for group, draw in ((memoryless, _rows), (recurrent, _sequences)):
            if group:
                batch = draw(data, family.ports[data.task], pace, rng)
                for rows in group:
                    losses[id(rows)] += _descend(rows, batch, data.head, terms, pace)
    return {
        member.name: float(losses[id(rows)][k] / pace.gradient_steps)
        for rows in family.stacks
        for k, member in enumerate(rows.members)
    }


def _descend(rows: Rows, batch: Batch, head: Head, terms: Sequence[Term], pace: Pace) -> torch.Tensor:
    """One Adam step (Kingma & Ba 2015) of all members of a stack; their losses [K] before it."""
    theta = rows.theta.requires_grad_()
    loss = objective.evaluate(terms, rows.stack.forward(theta, batch.task, batch.inputs, batch.first), batch, head)
    (gradient,) = torch.autograd.grad(loss.sum(), theta)  # a sum, so that the members' gradients stay apart
    rows.theta = theta.detach()
    norm = gradient.norm(dim=1, keepdim=True)
    gradient.mul_((pace.gradient_clip / norm.clamp_min(1e-12)).clamp_max(1.0))
    rows.steps += 1
    rows.mean.lerp_(gradient, 1 - ADAM_BETAS[0])
    rows.square.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
    correction = math.sqrt(1 - ADAM_BETAS[1] ** rows.steps)
    scale = rows.square.sqrt().add_(ADAM_EPS * correction)
    rows.theta.addcdiv_(rows.mean, scale, value=-pace.learning_rate * correction / (1 - ADAM_BETAS[0] ** rows.steps))
    return loss.detach()


def _rows(data: Table, port: Port, pace: Pace, rng: np.random.Generator) -> Batch:
    """Single rows drawn uniformly: [1, B]."""
    index = torch.from_numpy(rng.integers(data.rows, size=pace.batch, dtype=np.int32))
    labels = {key: column.index_select(0, index)[None] for key, column in data.labels.items()}
    inputs = _noisy(data.inputs.index_select(0, index)[None], port, rng)
    return Batch(data.task, inputs, None, None, {**labels, **data.scalars})


def _sequences(data: Table, port: Port, pace: Pace, rng: np.random.Generator) -> Batch:
    """Stretches of consecutive rows, [T, B]; rows before a memory could have warmed up do not count."""
    time = min(pace.sequence, data.rows)
    begin = torch.from_numpy(rng.integers(data.rows - time + 1, size=max(1, pace.batch // time)))
    index = begin + torch.arange(time)[:, None]
    first = data.first[index].clone()
    known = torch.cummax(
        first.int(), 0
    ).values.bool()  # an episode began inside the stretch: the memory is exact from there
    first[0] = True
    mask = (known | (torch.arange(time)[:, None] >= min(pace.burn_in, time - 1))).float()
    labels = {key: column[index] for key, column in data.labels.items()}
    return Batch(data.task, _noisy(data.inputs[index], port, rng), first, mask, {**labels, **data.scalars})


def _noisy(inputs: torch.Tensor, port: Port, rng: np.random.Generator) -> torch.Tensor:
    """The view's observation noise, in units of the normalised observation."""
    if not port.view.noise:
        return inputs
    noise: Floats = rng.standard_normal(inputs.shape).astype(np.float32)
    return inputs + port.view.noise * torch.from_numpy(noise)
