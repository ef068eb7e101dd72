"""Minibatches: which rows a gradient step takes, and how their inputs are disturbed on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import seeding
from limbeck.contracts import Batch, Floats
from limbeck.students.family import Family
from limbeck.students.port import Port
from limbeck.tables import Table

PRIORITY_FLOOR = 1e-3  # added to a row's disagreement, so that every row can be drawn
CORRECTION = (0.4, 1.0)  # exponent of the importance weights, first and last round (Schaul et al. 2016)
INDEX, SHIFT, DROPOUT = 0, 2, 3  # streams of a round
OF_MEMBER = " of "  # in the name of a label that is one member's own: "to_go of mlp-8-s0"


@dataclass(frozen=True)
class Regularising:
    """What keeps students from learning their rows by heart; all of it off by default."""

    shift: int = 0  # pixels that pictures move by at most
    weight_decay: float = 0.0  # decoupled: times the learning rate (Loshchilov & Hutter 2019)
    dropout: float = 0.0  # probability that a number of a hidden dense layer is 0
    adversarial: float = 0.0  # weight of the loss at the worst input nearby
    radius: float = 0.05  # of that neighbourhood, in units of the inputs
    ascents: int = 3  # gradient steps towards the worst input
    average: float = 0.0  # decay of the running mean of the weights


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
    priority: float = 0.0  # exponent of a row's disagreement in its probability; 0: all rows alike
    regularising: Regularising = Regularising()
    assistant: float = 0.0  # weight of the divergence from the next larger student of the family


@dataclass(frozen=True)
class Preference:
    """Probabilities of rows, and the weights that take them back out of the loss."""

    rows: NDArray[np.int64]  # [n] row numbers
    cumulative: NDArray[np.float64]  # [n] of the probabilities, the last is 1
    weights: torch.Tensor  # [n] (n P)^-b


def preference(disagreement: NDArray[np.float64], rows: NDArray[np.int64], exponent: float, share: float) -> Preference:
    """P(s) ~ (disagreement + 0.001)^exponent with importance weights (n P)^-b, b from 0.4 to 1 over the rounds: prioritised
    replay (Schaul et al. 2016, arXiv:1511.05952) with KL(teacher || student) in the place of the TD error.

    disagreement [n] of the rows [n], nats, never negative; share 0..1 of the rounds that are over.

    >>> one = preference(np.array([0.0, 0.999]), np.arange(2), 1.0, 1.0)
    >>> one.cumulative.round(4).tolist(), [round(w, 3) for w in one.weights.tolist()]
    ([0.001, 1.0], [500.5, 0.501])
    """
    likely = (disagreement + PRIORITY_FLOOR) ** exponent
    likely = likely / likely.sum()
    cumulative = np.cumsum(likely)
    correction = CORRECTION[0] + (CORRECTION[1] - CORRECTION[0]) * min(max(share, 0.0), 1.0)
    weights = (len(likely) * likely) ** -correction
    return Preference(rows, cumulative / cumulative[-1], torch.from_numpy(weights.astype(np.float32)))


class Draw:
    """Stacks that take the same minibatches. Each kind draws from a stream of its own that begins alike, so that no
    member's minibatches depend on which other kinds are in the family."""

    def __init__(self, family: Family, recurrent: bool, pixels: bool, run_seed: int, round_number: int) -> None:
        self.recurrent, self.pixels = recurrent, pixels
        self.rng = seeding.generator(run_seed, "train", round_number, INDEX)
        self.shifts = seeding.generator(run_seed, "train", round_number, SHIFT)
        self.preferences: dict[str, Preference] = {}  # by task
        self.stacks = [
            rows
            for rows in family.stacks
            if (rows.stack.architecture.recurrent, rows.stack.pixels) == (recurrent, pixels)
        ]

    def batch(self, data: Table, port: Port, pace: Pace) -> Batch:
        """The next minibatch."""
        return (sequences if self.recurrent else rows)(data, port, pace, self)


def rows(data: Table, port: Port, pace: Pace, draw: Draw) -> Batch:
    """Single rows [1, B], drawn uniformly or, where the draw has a preference for the task, by it."""
    preferred, mask = draw.preferences.get(data.task), None
    if preferred is not None:
        places = np.searchsorted(preferred.cumulative, draw.rng.random(pace.batch), side="right")
        index = torch.from_numpy(preferred.rows[places].astype(np.int32))
        chosen = preferred.weights[torch.from_numpy(places)]
        mask = (chosen / chosen.mean())[None]  # the objective divides by their sum
    elif data.training is not None:
        index = data.training[torch.from_numpy(draw.rng.integers(len(data.training), size=pace.batch))]
    else:
        index = torch.from_numpy(draw.rng.integers(data.rows, size=pace.batch, dtype=np.int32))
    labels = {key: column.index_select(0, index)[None] for key, column in data.labels.items()}
    inputs = _noisy(data.gather(index, draw.pixels, _shifts(pace, draw, pace.batch))[None], port, draw.rng)
    return Batch(data.task, inputs, None, mask, {**labels, **data.scalars})


def sequences(data: Table, port: Port, pace: Pace, draw: Draw) -> Batch:
    """Stretches of consecutive rows, [T, B]; rows before a memory could have warmed up and held-out rows do not count."""
    time = min(pace.sequence, data.rows)
    begin = torch.from_numpy(draw.rng.integers(data.rows - time + 1, size=max(1, pace.batch // time)))
    index = begin + torch.arange(time)[:, None]
    first = data.first[index].clone()
    known = torch.cummax(
        first.int(), 0
    ).values.bool()  # an episode began inside the stretch: the memory is exact from there
    first[0] = True
    counts = known | (torch.arange(time)[:, None] >= min(pace.burn_in, time - 1))
    mask = (counts if data.held is None else counts & ~data.held[index]).float()
    labels = {key: column[index] for key, column in data.labels.items()}
    shift = _shifts(pace, draw, len(begin))  # the same along a stretch, as for stacked frames
    moves = None if shift is None else np.broadcast_to(shift, (time, *shift.shape))
    inputs = _noisy(data.gather(index, draw.pixels, moves), port, draw.rng)
    return Batch(data.task, inputs, first, mask, {**labels, **data.scalars})


def _shifts(pace: Pace, draw: Draw, count: int) -> NDArray[np.int64] | None:
    """[count, 2] whole pixels in -shift..shift, None where pictures stay."""
    most = pace.regularising.shift
    return draw.shifts.integers(-most, most + 1, size=(count, 2)) if most else None


def _noisy(inputs: torch.Tensor, port: Port, rng: np.random.Generator) -> torch.Tensor:
    """The view's observation noise, in units of the inputs: standard deviations, of an image's range for convolutions."""
    if not port.view.noise:
        return inputs
    noise: Floats = rng.standard_normal(inputs.shape).astype(np.float32)
    return inputs + port.view.noise * torch.from_numpy(noise)
