"""How often two policies disagree: on steps while one of them plays, and on stored rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from limbeck import distributions, rollout, tasks
from limbeck.contracts import Floats, Head, Policy, State
from limbeck.dataset import Dataset
from limbeck.proof.agreement import compare
from limbeck.proof.eprocess import Reals

ROWS = 4000  # stored rows on which student and teacher are compared


@dataclass
class Asked:
    """Asks another policy about each step that somebody takes, its memory carried along."""

    other: Policy
    head: Head  # of who plays
    state: State | None = None
    rows: list[Reals] = field(default_factory=list)

    def __call__(self, frame: rollout.Frame) -> None:
        if self.state is None:
            self.state = self.other.initial_state(len(frame.first))
        output = self.other(frame.obs, self.state, frame.first)
        self.state = output.state
        self.rows.append(_different(self.other.head, output.params, self.head, frame.params)[frame.alive])

    def mean(self) -> float:
        return float(np.concatenate(self.rows).mean())


def _different(one: Head, params: Floats, other: Head, said: Floats) -> Reals:
    """[B] 0 or 1 of choices, or the mean difference of continuous actions in units of their range."""
    left, right = distributions.act(one, params), distributions.act(other, said)
    measured = compare(one, params, left, other, said, right)
    return 1 - measured["agreement"] if one.discrete else measured["action_difference"]


def on_rows(student: Policy, head: Head, data: Dataset) -> float:
    """The student's disagreement with the stored answers on the first ROWS rows of the run, episode by episode."""
    begins = np.cumsum([0, *(len(shard["first"]) for shard in data.shards)])
    few = Dataset(data.folder, data.task, data.shards[: int(np.searchsorted(begins, ROWS))])
    labels, first = few.column("teacher/params")[:ROWS], np.array(few.first()[:ROWS])
    obs, state = few.observations(), student.initial_state(1)
    if not state:
        said = student(tasks.take_rows(obs, slice(0, len(first))), {}, first).params
        return float(_different(head, labels, student.head, said).mean())
    params = np.empty((len(first), student.head.width), np.float32)
    for i in range(len(first)):
        output = student(tasks.take_rows(obs, slice(i, i + 1)), state, first[i : i + 1])
        state, params[i] = output.state, output.params[0]
    return float(_different(head, labels, student.head, params).mean())
