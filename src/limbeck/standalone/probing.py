"""Probes: fresh students, each with one remedy more than the one before it, trained briefly beside a finished run.

All of them learn with the teacher's default loss and the same number of gradient steps, at least a student's of the
run; of a tree or a rule the probe is grown, as in a run, and the larger one is a network. Who gets fresh data drives for
it in turn, and all learn from the same rows: the run's own and the fresh ones. Nothing is written into the run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from limbeck import collection, imitation, losses, objective, spaces
from limbeck.contracts import Array, Policy, Task, View
from limbeck.dataset import Dataset, open_dataset
from limbeck.objective import Term
from limbeck.proof.diagnosis import Probe
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import growing
from limbeck.stages.scene import Scene
from limbeck.students import family as families
from limbeck.students.family import Family
from limbeck.students.grammar import Architecture, Filters, MemberSpec
from limbeck.students.stack import Port

ROUNDS, BATCH = 10, 512
LEAST, MOST = (
    (20_000, 2400),
    (80_000, 9600),
)  # environment steps and gradient steps of all rounds; between them the run's
EPISODES = 4  # of the teacher's, at least, that a round of fresh data is long
MOST_STORED = 20_000  # rows of the run that are learnt from again
FIRST_ROUND = 1 << 20  # numbers the rounds of fresh data, far from those of any run
RATE, FINAL_RATE, CLIP = 3e-3, 3e-4, 1.0
WIDTH = 64  # least of a larger network


@dataclass(frozen=True)
class Trial:
    """What one probe is."""

    name: Probe
    architecture: Architecture
    view: View
    fresh: bool  # learns from fresh data too, and drives for it


@dataclass(frozen=True)
class Ground:
    """What all probes of a diagnosis share."""

    here: Scene  # the run
    teacher_steps: float  # mean length of an episode
    stored: Dataset  # the run's rows
    spent: tuple[int, int]  # environment steps and gradient steps that the run's students were given

    @property
    def task(self) -> Task:
        return self.here.task

    @property
    def teacher(self) -> Policy:
        return self.here.teacher.policy

    @property
    def run_seed(self) -> int:
        return self.here.seed

    def per_round(self) -> tuple[int, int]:
        """Environment steps and gradient steps of one round: a probe gets what a student of the run got, within bounds."""
        steps, gradient = (
            min(max(a, low), high) // ROUNDS for a, low, high in zip(self.spent, LEAST, MOST, strict=True)
        )
        return max(steps, round(EPISODES * self.teacher_steps)), gradient


@dataclass(frozen=True)
class Trained:
    """The probes as policies, and what they cost."""

    policies: Mapping[Probe, Policy]
    env_steps: int
    gradient_steps: int


def trials(
    architecture: Architecture, student: View, teacher: View | None, *, remembers: bool, image: bool, plays: bool
) -> list[Trial]:
    """The rungs that exist here, lowest first.

    `teacher`: the teacher's view where it sees more than the student, or `remembers` more; None: it does not. `image`:
    its view holds one. Fresh data only where the task `plays`.
    """
    wide = larger(architecture)
    found = [Trial("again", architecture, student, False)]
    if plays:
        found.append(Trial("data", architecture, student, True))
    found.append(Trial("larger", wide, student, plays))
    if teacher is not None:
        if wide.kind in ("cnn", "conv1d") and not image:
            wide = Architecture("mlp", (WIDTH, WIDTH))
        if remembers and not wide.recurrent:
            wide = Architecture("gru", memory=WIDTH)
        seen = replace(teacher, history=max(student.history, teacher.history), noise=0.0, mask=student.mask)
        found.append(Trial("view", wide, seen, plays))
    return found


def larger(architecture: Architecture) -> Architecture:
    """A network of the same kind that is wide enough not to be what is missing.

    >>> larger(Architecture("linear")).spec, larger(Architecture("mlp", (48,))).spec
    ('mlp:64x64', 'mlp:96x96')
    """
    width = max(WIDTH, 2 * max(architecture.widths, default=0))
    if architecture.filters:
        filters = tuple(Filters(max(16, 2 * f.count), f.kernel, f.stride) for f in architecture.filters)
        memory = max(WIDTH, 2 * architecture.memory) if architecture.memory else 0
        return replace(architecture, filters=filters, widths=(2 * width,), compact=0, memory=memory, precision="")
    if architecture.recurrent:
        return Architecture("gru", memory=max(WIDTH, 2 * architecture.memory))
    return Architecture("mlp", (width, width), architecture.activation)


def train(ground: Ground, wanted: Sequence[Trial]) -> Trained:
    """All probes, round by round: whoever drives collects, everybody learns."""
    trainees = [_Trainee(ground, trial) for trial in wanted]
    drivers = [trainee for trainee in trainees if trainee.trial.fresh]
    stored, steps = _newest(ground.stored), 0
    terms = objective.parse("auto", ground.teacher.head)
    temperature = _temperature(ground, stored)
    with tempfile.TemporaryDirectory() as folder:
        fresh = open_dataset(Path(folder), ground.task.name)
        for number in range(ROUNDS):
            if drivers:
                taken = _collected(ground, [one.policy() for one in drivers] if number else [], number)
                fresh.add(number, taken.columns, {})
                steps += taken.env_steps
            both = Dataset(fresh.folder, ground.task.name, [*stored.shards, *fresh.shards])
            for one in trainees:
                one.learn(both if one.trial.fresh else stored, terms, temperature, number)
        policies: dict[Probe, Policy] = {one.trial.name: one.policy() for one in trainees}
    stepped = sum(not trial.architecture.grown for trial in wanted)
    return Trained(policies, steps, ROUNDS * ground.per_round()[1] * stepped)


class _Trainee:
    """One probe while it learns."""

    def __init__(self, ground: Ground, trial: Trial) -> None:
        self.trial, self._ground = trial, ground
        task, head = ground.task, ground.teacher.head
        said = losses.student_head([term.name for term in objective.parse("auto", head)], head)
        inputs = spaces.flat_size(task.spec.observation_space, trial.view) * trial.view.history
        self._port = Port(task.spec, trial.view, said, inputs, task.spec.agents)
        member = MemberSpec(f"probe-{trial.name}", trial.architecture, 0)
        self._family: Family = families.build([member], {task.name: self._port}, ground.run_seed)
        self._table: imitation.Table | None = None

    def policy(self) -> Policy:
        return NumpyPolicy(self._family.blueprint(self._family.members[0].name, self._ground.task.name))

    def learn(self, data: Dataset, terms: Sequence[Term], temperature: float, number: int) -> None:
        name, ground = self._ground.task.name, self._ground
        if number == 0:
            self._family.normalisers[name] = imitation.normaliser_of(data, self._port)
        if self._table is None or self.trial.fresh:  # what is stored stays what it is
            normaliser = self._family.normalisers[name]
            self._table = imitation.table(data, self._port, ground.teacher.head, normaliser, temperature)
        share = number / (ROUNDS - 1)
        pace = imitation.Pace(
            ground.per_round()[1], BATCH, imitation.cosine(RATE, FINAL_RATE, share), CLIP, share=share
        )
        imitation.imitate(self._family, {name: self._table}, terms, pace, number, ground.run_seed)
        growing.round_of(ground.here, self._family, data, self._table, number)  # a tree or rule: its newest is played


def _collected(ground: Ground, students: Sequence[Policy], number: int) -> collection.Collected:
    """A round of fresh data: the teacher's at first, then the probes' own, one after the other."""
    steps = ground.per_round()[0]
    lanes = max(1, min(16, round(steps / max(ground.teacher_steps, 1.0))))
    plan = collection.Plan(steps, lanes, "student" if students else "teacher", teacher_mode=ground.here.mode)
    return collection.collect(ground.task, ground.teacher, students, plan, FIRST_ROUND + number, ground.run_seed)


def _newest(data: Dataset) -> Dataset:
    """The newest rows of a run, MOST_STORED at most; a long round is cut."""
    shards: list[dict[str, Array]] = []
    left = MOST_STORED
    for shard in reversed(data.shards):
        if left > 0:
            shards.insert(0, {key: column[:left] for key, column in shard.items()})
            left -= len(shards[0]["first"])
    return Dataset(data.folder, data.task, shards)


def _temperature(ground: Ground, data: Dataset) -> float:
    if ground.teacher.head.kind != "q":
        return 1.0
    rows = torch.from_numpy(np.array(data.column("teacher/params")))
    return losses.q.entropy_temperature(rows, ground.here.run.recipe.imitate.entropy_target)
