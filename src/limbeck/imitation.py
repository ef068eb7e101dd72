"""The imitation loop: gradient steps of the whole family on the data set. It knows no environment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import objective, seeding, spaces
from limbeck.contracts import Array, Batch, Floats, Head, Normaliser, Observation, View
from limbeck.dataset import OBS, Dataset, history_rows
from limbeck.objective import Term
from limbeck.students.family import Family, Rows
from limbeck.students.port import Port, scaled
from limbeck.tasks import take_rows

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
CHUNK = 1 << 19  # numbers that are floats at once while statistics are taken: they fit a processor's cache


@dataclass(frozen=True)
class Table:
    """A task's data set as minibatches are gathered from it."""

    task: str
    inputs: torch.Tensor | Frames  # [N, O * H] view, normaliser and history applied; or frames, to which they will be
    first: torch.Tensor  # [N] bool
    labels: Mapping[str, torch.Tensor]  # "params" [N, W], "hard" [N], "allowed" [N, W] bool
    scalars: Mapping[str, torch.Tensor]  # "temperature" []
    head: Head  # the teacher's

    @property
    def rows(self) -> int:
        return len(self.first)

    def gather(self, index: torch.Tensor, pixels: bool) -> torch.Tensor:
        """Rows [...] -> inputs [..., O * H]; `pixels` as in `students.Stack`."""
        if isinstance(self.inputs, Frames):
            return self.inputs.gather(index, pixels)
        return self.inputs.index_select(0, index) if index.ndim == 1 else self.inputs[index]


@dataclass(frozen=True)
class Frames:
    """Observations as they lie in the files, each once: minibatches are gathered, converted and scaled from them.

    A frame of bytes stays bytes: 100,000 of 84 x 84 are 0.7 GB in the page cache, as floats with a history of four
    they would be 11 GB of memory.
    """

    shards: tuple[Observation, ...]  # one per round, mapped
    begins: NDArray[np.int64]  # [rounds + 1] first row of each round
    port: Port
    normaliser: Normaliser
    pixels: Normaliser | None  # for convolutional students; None where the view has no image for them
    history: NDArray[np.int64] | None  # [N, H] as `history_rows`

    def gather(self, index: torch.Tensor, pixels: bool) -> torch.Tensor:
        """[...] row numbers -> [..., O * H] float32, oldest frame first."""
        normaliser = self.pixels if pixels else self.normaliser
        if normaliser is None:
            raise ValueError("a convolutional student on observations without an image")
        wanted = index.numpy().reshape(-1)
        rows = wanted if self.history is None else self.history[wanted].reshape(-1)
        flat = torch.from_numpy(self._flat(rows))
        if normaliser.mean.any():
            flat.sub_(torch.from_numpy(normaliser.mean))
        flat.div_(torch.from_numpy(normaliser.scale))
        if self.history is not None:
            flat = flat.reshape(len(wanted), self.port.view.history, -1)
            if self.port.view.padding == "zero":
                flat[torch.from_numpy(_missing(wanted, self.history[wanted]))] = 0.0
        return flat.reshape(*index.shape, -1)

    def _flat(self, rows: NDArray[np.int64]) -> Floats:
        """[N] row numbers of all rounds -> [N, O] float32."""
        space, view = self.port.spec.observation_space, self.port.view
        shard = np.searchsorted(self.begins, rows, side="right") - 1
        flat = np.empty((len(rows), spaces.flat_size(space, view)), np.float32)
        for number in np.unique(shard):
            mine = np.flatnonzero(shard == number)
            flat[mine] = spaces.flatten(take_rows(self.shards[number], rows[mine] - self.begins[number]), space, view)
        return flat


def _missing(rows: NDArray[np.int64], history: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N, H] places of rows' histories [N, H] that lie before their episode's start."""
    steps = np.arange(history.shape[1] - 1, -1, -1)
    found: NDArray[np.bool_] = history != rows[:, None] - steps
    return found


def _stays_in_files(dataset: Dataset, port: Port) -> bool:
    """Bytes would grow fourfold as floats, and images wait for either of two scalings; other floats are prepared once."""
    seen = _seen(dataset.shards[0], port.view)
    parts = seen.values() if isinstance(seen, dict) else [seen]
    return any(part.dtype.itemsize == 1 for part in parts) or spaces.has_image(
        port.spec.observation_space, port.view, port.agents
    )


def _seen(shard: Mapping[str, Array], view: View) -> Observation:
    """A round's observations, without the keys that the view does not name."""
    if OBS in shard:
        return shard[OBS]
    keys = [name[len(OBS) + 1 :] for name in shard if name.startswith(f"{OBS}/")]
    return {key: shard[f"{OBS}/{key}"] for key in keys if key in (view.keys or keys) and key != view.mask}


def _chunks(dataset: Dataset, port: Port) -> Iterator[Floats]:
    """All flat observations [n, O], some rows at a time."""
    many = max(1, CHUNK // (port.inputs // port.view.history))
    for shard in dataset.shards:
        seen, rows = _seen(shard, port.view), len(shard["first"])
        for begin in range(0, rows, many):
            part = take_rows(seen, slice(begin, min(begin + many, rows)))
            yield spaces.flatten(part, port.spec.observation_space, port.view)


def normaliser_of(dataset: Dataset, port: Port) -> Normaliser:
    """Mean and standard deviation of the flat observations seen so far; 1 where a number never changed.

    Many agents share one network and so one normaliser: its numbers are of all agents' rows, once per agent.
    """
    if _stays_in_files(dataset, port):
        mean, spread = _moments(dataset, port)
    else:
        flat = spaces.flatten(dataset.observations(), port.spec.observation_space, port.view).astype(np.float64)
        flat = flat.reshape(len(flat) * port.agents, -1)
        mean, spread = flat.mean(axis=0), flat.std(axis=0)
    mean, scale = np.tile(mean, port.agents), np.tile(np.where(spread > 1e-6, spread, 1.0), port.agents)
    return Normaliser(mean.astype(np.float32), scale.astype(np.float32))


def _moments(dataset: Dataset, port: Port) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation in one pass, about the first row, so that nothing cancels."""
    about = next(_chunks(dataset, port)).reshape(-1, port.row // port.view.history)[0].astype(np.float64)
    count, total, square = 0, np.zeros_like(about), np.zeros_like(about)
    for chunk in _chunks(dataset, port):
        rows = chunk.reshape(-1, len(about)) - about
        count, total, square = count + len(rows), total + rows.sum(axis=0), square + np.einsum("no,no->o", rows, rows)
    mean = total / count
    return about + mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))


def table(
    dataset: Dataset,
    port: Port,
    teacher_head: Head,
    normaliser: Normaliser,
    temperature: float,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Table:
    """Everything collected so far, ready to be gathered from.

    `extra`: what losses need beyond the teacher's rows, one per row of the data set ("advantage" [N, A] ...) or, without
    dimensions, one for all ("gap" ...)."""
    first = np.asarray(dataset.first())
    labels = {"params": torch.from_numpy(np.array(dataset.column("teacher/params")))}
    if dataset.has("hard"):
        labels["hard"] = torch.from_numpy(np.array(dataset.column("hard")))
    if port.view.mask is not None:
        allowed = np.asarray(dataset.column(f"{OBS}/{port.view.mask}"))
        labels["allowed"] = torch.from_numpy(allowed.reshape(len(allowed), -1) > 0)
    scalars = {"temperature": torch.tensor(temperature)}
    for name, value in (extra or {}).items():
        (labels if value.ndim else scalars)[name] = value
    inputs = (_frames if _stays_in_files(dataset, port) else _prepared)(dataset, port, first, normaliser)
    return Table(dataset.task, inputs, torch.from_numpy(np.array(first)), labels, scalars, teacher_head)


def _frames(dataset: Dataset, port: Port, first: NDArray[np.bool_], normaliser: Normaliser) -> Frames:
    counts = [len(shard["first"]) for shard in dataset.shards]
    image = spaces.has_image(port.spec.observation_space, port.view, port.agents)
    return Frames(
        tuple(_seen(shard, port.view) for shard in dataset.shards),
        np.cumsum([0, *counts]),
        port,
        normaliser,
        scaled(normaliser, port) if image else None,
        history_rows(first, port.view.history) if port.view.history > 1 else None,
    )


def _prepared(dataset: Dataset, port: Port, first: NDArray[np.bool_], normaliser: Normaliser) -> torch.Tensor:
    flat = spaces.flatten(dataset.observations(), port.spec.observation_space, port.view)
    flat = (flat - normaliser.mean) / normaliser.scale
    if port.view.history > 1:
        index = history_rows(first, port.view.history)
        flat = flat[index]
        if port.view.padding == "zero":
            flat[_missing(np.arange(len(index)), index)] = 0.0
        flat = flat.reshape(len(flat), -1)
    return torch.from_numpy(flat.astype(np.float32))


@dataclass(frozen=True)
class Pace:
    """How a round's gradient steps are taken."""

    gradient_steps: int
    batch: int  # rows; sequences of recurrent students count all their rows
    learning_rate: float
    gradient_clip: float  # of each member's own gradient norm
    sequence: int = 32
    burn_in: int = 8
    share: float = 0.0  # of the rounds that are over: what scheduled weights depend on


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
    losses = {id(rows): torch.zeros(len(rows.members)) for rows in family.stacks}
    draws = [
        _Draw(family, recurrent, pixels, run_seed, round_number)
        for recurrent in (False, True)
        for pixels in (False, True)
    ]
    for step in range(pace.gradient_steps):
        data = tables[names[step % len(names)]]
        for draw in draws:
            if draw.stacks:
                batch = (_sequences if draw.recurrent else _rows)(data, family.ports[data.task], pace, draw)
                for rows in draw.stacks:
                    losses[id(rows)] += _descend(rows, batch, data.head, terms, pace)
    return {
        member.name: float(losses[id(rows)][k] / pace.gradient_steps)
        for rows in family.stacks
        for k, member in enumerate(rows.members)
    }


class _Draw:
    """Stacks that take the same minibatches. Each kind draws from a stream of its own that begins alike, so that no
    member's minibatches depend on which other kinds are in the family."""

    def __init__(self, family: Family, recurrent: bool, pixels: bool, run_seed: int, round_number: int) -> None:
        self.recurrent, self.pixels = recurrent, pixels
        self.rng = seeding.generator(run_seed, "train", round_number, 0)
        self.stacks = [
            rows
            for rows in family.stacks
            if (rows.stack.architecture.recurrent, rows.stack.pixels) == (recurrent, pixels)
        ]


def _descend(rows: Rows, batch: Batch, head: Head, terms: Sequence[Term], pace: Pace) -> torch.Tensor:
    """One Adam step (Kingma & Ba 2015) of all members of a stack; their losses [K] before it."""
    theta = rows.theta.requires_grad_()
    maps = any(term.layer.startswith("conv") for term in terms)
    seen = rows.stack.look(theta, batch.task, batch.inputs, batch.first, maps=maps)
    inside = objective.Inside(seen.hidden, seen.own)
    loss = objective.evaluate(terms, seen.params, batch, head, pace.share, inside, rows.tuned)
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


def _rows(data: Table, port: Port, pace: Pace, draw: _Draw) -> Batch:
    """Single rows drawn uniformly: [1, B]."""
    index = torch.from_numpy(draw.rng.integers(data.rows, size=pace.batch, dtype=np.int32))
    labels = {key: column.index_select(0, index)[None] for key, column in data.labels.items()}
    inputs = _noisy(data.gather(index, draw.pixels)[None], port, draw.rng)
    return Batch(data.task, inputs, None, None, {**labels, **data.scalars})


def _sequences(data: Table, port: Port, pace: Pace, draw: _Draw) -> Batch:
    """Stretches of consecutive rows, [T, B]; rows before a memory could have warmed up do not count."""
    time = min(pace.sequence, data.rows)
    begin = torch.from_numpy(draw.rng.integers(data.rows - time + 1, size=max(1, pace.batch // time)))
    index = begin + torch.arange(time)[:, None]
    first = data.first[index].clone()
    known = torch.cummax(
        first.int(), 0
    ).values.bool()  # an episode began inside the stretch: the memory is exact from there
    first[0] = True
    mask = (known | (torch.arange(time)[:, None] >= min(pace.burn_in, time - 1))).float()
    labels = {key: column[index] for key, column in data.labels.items()}
    return Batch(
        data.task, _noisy(data.gather(index, draw.pixels), port, draw.rng), first, mask, {**labels, **data.scalars}
    )


def _noisy(inputs: torch.Tensor, port: Port, rng: np.random.Generator) -> torch.Tensor:
    """The view's observation noise, in units of the inputs: standard deviations, of an image's range for convolutions."""
    if not port.view.noise:
        return inputs
    noise: Floats = rng.standard_normal(inputs.shape).astype(np.float32)
    return inputs + port.view.noise * torch.from_numpy(noise)
