"""How much of the teacher's answers cannot be known from what a student sees: the imitation gap, before it costs a proof.

A teacher may act on what its student never sees. Then no training helps, and a low return alone does not say so. Two
small networks of one size are fitted to the teacher's stored answers, one on the student's view and one on the
teacher's, and tested on episodes that neither saw. What the second predicts and the first does not is the gap. The
second is the yardstick: a teacher that is merely hard to fit is hard for both, and equal views differ by nothing.

A gap is named only if it is beyond doubt that more rows would not close it:
- the error that the first network would still lose with more rows is taken off, judged by its error with half of them
  and supposing that errors fall at least as 1 / sqrt(rows);
- what is left must exceed MATERIAL by DOUBT standard errors, taken over stretches of play, not rows. With STRETCHES or
  more of them a false alarm has a probability below 1 %.
What no network of this size finds in so many rows counts as hidden: a view that is scrambled (the parity of many bits)
looks like one that lacks something. That is the limit of the claim, and why few rows claim nothing.
Memory is asked about in the same way: the view now, three earlier ones, and the mean, least and largest since the
episode began. That is a summary: a memory may do better, so students with memory are not judged by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from limbeck import distributions, seeding, spaces
from limbeck.contracts import Array, Floats, Head, Observation, Spec, View
from limbeck.dataset import Dataset, history_rows
from limbeck.proof.eprocess import Reals

ROWS, POOL = 16_000, 32_000  # rows that are fitted and tested on; newest rows they are drawn from
STRETCH, STRETCHES = 128, 24  # rows of play that count as one; fewest stretches that are held out
MOST_INPUTS = 2500  # of a network; wider views are not measured
MATERIAL = {"choices": 0.01, "variance": 0.005}  # share of the answers that is worth a word
DOUBT = 3.0  # standard errors
REMAINING = 2.5  # 1 / (sqrt(2) - 1): error still to lose, in units of what doubling the rows has lost
LEAST_ROWS = 2000  # fewer do not tell what is hard to learn from what cannot be learnt
LAGS = (1, 2, 4)
HIDDEN, BATCH, STEPS, RATE, CHECKED = 64, 256, 2000, 3e-3, 100
PATIENCE = 6  # checks without a better one


@dataclass(frozen=True)
class Blindness:
    """What a view lets a student know of its teacher's answers, as shares of them.

    `unit` is "choices" (greedy actions of discrete heads) or "variance" (of executed continuous actions).
    """

    unit: Literal["choices", "variance"] = "choices"
    imitable: float = 1.0  # at best, from this view
    low: float = 1.0  # 95 % interval; its upper end supposes more rows
    high: float = 1.0
    with_memory: float = 1.0  # at best, from this view and its whole past
    fires: bool = False
    rows: int = 0
    stretches: int = 0  # held out
    reason: str = ""  # why nothing was measured, or need be


def sees_all(student: View, teacher: View, student_remembers: bool, teacher_remembers: bool) -> bool:
    """Whether the student is given all that the teacher is, so that there is nothing to measure."""
    if teacher_remembers and not student_remembers:
        return False
    if student.indices is not None:
        same = student.keys == teacher.keys and teacher.indices is not None
        parts = same and set(student.indices) >= set(teacher.indices or ())
    else:
        parts = student.keys is None or (teacher.keys is not None and set(student.keys) >= set(teacher.keys))
    return parts and (student_remembers or student.history >= teacher.history)


def measure(dataset: Dataset, spec: Spec, head: Head, student: View, teacher: View, *, student_remembers: bool = False,
            teacher_remembers: bool = False, run_seed: int = 0) -> Blindness:  # fmt: skip
    """The gap between `student`'s view and `teacher`'s on a run's own data; seconds, whatever the run's size.

    `head` is the teacher's. Views are as in `contracts.View`; who remembers is given its whole past as well.
    """
    unit: Literal["choices", "variance"] = "choices" if head.discrete else "variance"
    if sees_all(student, teacher, student_remembers, teacher_remembers):
        return Blindness(unit, reason="the student sees all that the teacher sees")
    if student_remembers:
        return Blindness(unit, reason="not measured: a memory may hold more than any summary of the past tells")
    play = _Play.of(dataset, spec, run_seed)
    if len(play.rows) < LEAST_ROWS:
        return Blindness(
            unit, reason=f"not measured: {len(play.rows):,} rows were collected, {LEAST_ROWS:,} are needed"
        )
    held_out = len(play.held_out_stretches)
    if held_out < STRETCHES:
        return Blindness(
            unit, reason=f"not measured: {held_out} stretches of play were held out, {STRETCHES} are needed"
        )
    own, memory = play.inputs(student, remembers=False), play.inputs(student, remembers=True)
    full = play.inputs(teacher, teacher_remembers)
    if own is None or full is None:
        return Blindness(unit, reason=f"not measured: a view has more than {MOST_INPUTS:,} numbers")
    answers = play.answers(head)
    yardstick = _fit(full, answers, head, play, play.fitted, run_seed)
    gap = _gap(own, answers, head, play, yardstick, run_seed)
    fires = gap.left - DOUBT * gap.left_error > MATERIAL[unit]
    asked = fires and memory is not None
    remembered = _gap(memory, answers, head, play, yardstick, run_seed) if asked and memory is not None else gap
    least = min(gap.plain, max(gap.left, 0.0))
    return Blindness(
        unit,
        imitable=1 - max(least, 0.0),
        low=max(0.0, 1 - max(gap.plain + 1.96 * gap.plain_error, 0.0)),
        high=min(1.0, 1 - (gap.left - 1.96 * gap.left_error)),
        with_memory=1 - max(min(least, remembered.left), 0.0),
        fires=fires,
        rows=len(play.rows),
        stretches=held_out,
    )


def sentence(found: Blindness, student_remembers: bool) -> str:
    """The gap in words, with what would mend it; "" where none was found."""
    if not found.fires:
        return ""
    what = "of its choices" if found.unit == "choices" else "of the variance of its actions"
    gap, memory = 1 - found.imitable, found.with_memory - found.imitable
    if student_remembers or memory < 0.25 * gap:
        mend = "let it see more with keys or indices"
    elif memory < 0.75 * gap:
        mend = f"with memory at least about {_percent(found.with_memory)}: give it a longer history or a gru, or let it see more with keys or indices"
    else:
        mend = f"with memory at least about {_percent(found.with_memory)}: give it a longer history or a gru"
    return (
        f"irreducible gap: the teacher acts on what this student cannot see: at best about {_percent(found.imitable)} {what} can be imitated "
        f"from this view (95 % interval {100 * found.low:.1f} to {_percent(found.high)}, {found.rows:,} rows); {mend}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# ---------------------------------------------------------------- the rows


@dataclass(frozen=True)
class _Play:
    """The newest rows of a data set, and which of them are fitted and tested on."""

    observations: Observation
    params: Floats  # [N, W] the teacher's answers
    first: NDArray[np.bool_]  # [N]
    spec: Spec
    rows: NDArray[np.int64]  # [n] drawn
    stretch: NDArray[np.int64]  # [n] stretch of play that each drawn row belongs to
    held_out_stretches: NDArray[np.int64]
    fitted: NDArray[np.int64]  # places in `rows`
    tested: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, spec: Spec, run_seed: int) -> _Play:
        """Whole rounds, newest first, until there are POOL rows; a third of the stretches is held out."""
        counts = np.cumsum([len(shard["first"]) for shard in reversed(dataset.shards)])
        enough = int(np.searchsorted(counts, POOL)) + 1
        shards = dataset.shards[max(0, len(counts) - enough) :]
        newest = Dataset(dataset.folder, dataset.task, shards, [])
        first = np.array(newest.first())
        first[np.cumsum([0, *(len(shard["first"]) for shard in shards[:-1])])] = True
        rng = seeding.generator(run_seed, "fidelity", len(first))
        rows = np.sort(rng.permutation(len(first))[:ROWS])
        whole = np.cumsum((np.arange(len(first)) - _begins(first)) % STRETCH == 0)
        stretch = whole[rows]
        shuffled = rng.permutation(np.unique(stretch))
        held_out = shuffled[: len(shuffled) // 3]
        tested = np.isin(stretch, held_out)
        return cls(newest.observations(), np.array(newest.column("teacher/params")), first, spec, rows, stretch, held_out,
                   np.flatnonzero(~tested), np.flatnonzero(tested))  # fmt: skip

    def inputs(self, view: View, remembers: bool) -> Floats | None:
        """[n, I] what a view gives at the drawn rows, with its past if it `remembers`; None where that is too much."""
        width, space = spaces.flat_size(self.spec.observation_space, view), self.spec.observation_space
        columns = width * (view.history + (len(LAGS) + 3 if remembers else 0))
        if columns > MOST_INPUTS:
            return None
        flat = spaces.flatten(self.observations, space, view)
        parts = [flat[history_rows(self.first, view.history)[self.rows]].reshape(len(self.rows), -1)]
        return np.concatenate([*parts, *self._past(flat)], axis=1) if remembers else parts[0]

    def _past(self, flat: Floats) -> list[Floats]:
        begins = _begins(self.first)
        lagged = [flat[np.maximum(self.rows - lag, begins[self.rows])] for lag in LAGS]
        mean, least, most = np.empty_like(flat), np.empty_like(flat), np.empty_like(flat)
        edges = [*np.flatnonzero(self.first), len(flat)]
        for a, b in pairwise(edges):
            mean[a:b] = np.cumsum(flat[a:b], axis=0, dtype=np.float64) / np.arange(1, b - a + 1)[:, None]
            least[a:b], most[a:b] = np.minimum.accumulate(flat[a:b]), np.maximum.accumulate(flat[a:b])
        return [*lagged, mean[self.rows], least[self.rows], most[self.rows]]

    def answers(self, head: Head) -> Array:
        """[n, m] greedy choices, or executed continuous actions in units of their spread."""
        params = self.params[self.rows]
        if head.discrete:
            return distributions.said(head, params).reshape(len(params), -1)
        actions = distributions.act(head, params).reshape(len(params), -1).astype(np.float64)
        spread = actions.std(axis=0)
        moving = spread > 1e-6  # a number that never changes is known to everybody
        return ((actions - actions.mean(axis=0)) / np.where(moving, spread, 1.0))[:, moving].astype(np.float32)


def _begins(first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] the first row of each row's episode."""
    begins: NDArray[np.int64] = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    return begins


# ---------------------------------------------------------------- the gap


@dataclass(frozen=True)
class _Gap:
    plain: float  # excess error of the student's network with all rows
    plain_error: float  # standard error
    left: float  # less what more rows would still take off
    left_error: float


def _gap(inputs: Floats, answers: Array, head: Head, play: _Play, yardstick: _Missed, run_seed: int) -> _Gap:
    all_rows = _fit(inputs, answers, head, play, play.fitted, run_seed)
    kinds = np.unique(play.stretch[play.fitted])
    half = seeding.generator(run_seed, "fidelity", len(kinds)).permutation(kinds)[: len(kinds) // 2]
    half_rows = _fit(inputs, answers, head, play, play.fitted[np.isin(play.stretch[play.fitted], half)], run_seed)
    plain, gained = all_rows.wrong - yardstick.wrong, half_rows.unsure - all_rows.unsure
    left = plain - REMAINING * gained if gained.mean() > 0 else plain
    stretch = play.stretch[play.tested]
    return _Gap(
        float(plain.mean()), _standard_error(plain, stretch), float(left.mean()), _standard_error(left, stretch)
    )


def _standard_error(values: Reals, stretch: NDArray[np.int64]) -> float:
    """Of the mean of [n] values whose stretches are independent and whose rows are not."""
    _, places = np.unique(stretch, return_inverse=True)
    sums = np.bincount(places, values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)) / len(values))


@dataclass(frozen=True)
class _Missed:
    """What a fitted network gets wrong of the tested answers, [tested] each."""

    wrong: Reals  # share of the choices, or squared error
    unsure: Reals  # 1 - probability of the choice; blind guessing keeps it where it is, learning lowers it


def _fit(inputs: Floats, answers: Array, head: Head, play: _Play, fitted: NDArray[np.int64], run_seed: int) -> _Missed:
    """A network fitted on the rows `fitted`, as it was when it predicted best what it had not seen."""
    mean, spread = inputs[fitted].mean(axis=0), inputs[fitted].std(axis=0)
    scaled = np.clip((inputs - mean) / np.where(spread > 1e-6, spread, 1.0), -10, 10).astype(np.float32)
    judge = np.isin(play.stretch, np.unique(play.stretch[fitted])[::6])  # every sixth stretch says when to stop
    learnt, judged = fitted[~judge[fitted]], fitted[judge[fitted]]
    seen, wanted = torch.from_numpy(scaled), torch.from_numpy(np.array(answers))
    network = _Network(inputs.shape[1], head, wanted.shape[1], run_seed)
    rng = seeding.generator(run_seed, "fidelity", inputs.shape[1], len(fitted))
    best, since, kept = np.inf, 0, [p.detach().clone() for p in network.parameters]
    optimiser = torch.optim.Adam(network.parameters, lr=RATE)
    for step in range(STEPS):
        rows = torch.from_numpy(learnt[rng.integers(len(learnt), size=BATCH)])
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        gradient = torch.autograd.grad(network.loss(seen[rows], wanted[rows]), network.parameters)
        for parameter, slope in zip(network.parameters, gradient, strict=True):
            parameter.grad = slope
        optimiser.step()
        if step % CHECKED == CHECKED - 1:
            with torch.no_grad():
                now = float(network.loss(seen[judged], wanted[judged]))
            since += 1
            if now < best:
                best, since, kept = now, 0, [p.detach().clone() for p in network.parameters]
            if since == PATIENCE:
                break
    network.parameters = kept
    with torch.no_grad():
        return network.missed(seen[play.tested], wanted[play.tested])


class _Network:
    """Two hidden layers of HIDDEN; for every choice its logits, or one number per number of the answer."""

    def __init__(self, width: int, head: Head, numbers: int, run_seed: int) -> None:
        self.discrete = head.discrete
        self.sizes = [2] * numbers if head.kind == "bernoulli" else list(head.sizes)
        outputs = sum(self.sizes) if head.discrete else numbers
        rng = seeding.generator(run_seed, "fidelity", width, outputs)
        self.parameters: list[torch.Tensor] = []
        for into, out in ((width, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, outputs)):
            weight = rng.standard_normal((into, out)) * np.sqrt(2 / max(into, 1))
            self.parameters += [torch.tensor(weight, dtype=torch.float32), torch.zeros(out)]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def _outputs(self, rows: torch.Tensor) -> torch.Tensor:
        w0, b0, w1, b1, w2, b2 = self.parameters
        return torch.relu(torch.relu(rows @ w0 + b0) @ w1 + b1) @ w2 + b2

    def _choices(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(self._outputs(rows), self.sizes, dim=1)

    def loss(self, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if not self.discrete:
            return functional.mse_loss(self._outputs(rows), wanted)
        losses = [functional.cross_entropy(logits, wanted[:, n]) for n, logits in enumerate(self._choices(rows))]
        return torch.stack(losses).mean()

    def missed(self, rows: torch.Tensor, wanted: torch.Tensor) -> _Missed:
        if not self.discrete:
            squares = ((self._outputs(rows) - wanted) ** 2).mean(dim=1).double().numpy()
            return _Missed(squares, squares)
        pairs = [(logits, wanted[:, n]) for n, logits in enumerate(self._choices(rows))]
        wrong = [(logits.argmax(dim=1) != right).double() for logits, right in pairs]
        unsure = [1 - torch.softmax(logits.double(), 1).gather(1, right[:, None])[:, 0] for logits, right in pairs]
        return _Missed(torch.stack(wrong).mean(dim=0).numpy(), torch.stack(unsure).mean(dim=0).numpy())
