"""Agreement, KL and regret on the student's own states: what a return cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from limbeck import distributions, rollout
from limbeck.contracts import OWN, Array, Floats, Head, Observation, Policy, State, Task
from limbeck.proof.eprocess import Reals
from limbeck.proof.regret import Judge, Tally

RANDOM_KINDS = ("categorical", "multicategorical", "bernoulli", "gaussian", "squashed")


@dataclass(frozen=True)
class Fidelity:
    """Means over the states that the student visited.

    agreement          share of states with the same greedy action (discrete)
    action_difference  mean |executed difference| in units of the action range; of 1 where there is none (continuous)
    kl                 KL(teacher || student) in nats, where both heads describe distributions of one kind
    weighted_agreement  agreement with each state weighted by what the worst action would cost there (VIPER's weight, Bastani
                       et al. 2018): by the judge, else max Q - min Q of a teacher whose head is q; one choice among several
    regret             V_T - Q_T(s, a_S) in units of reward: by the judge, else max Q - Q of the teacher's own where its head is q
    """

    values: Mapping[str, float]
    states: int
    env_steps: int
    sources: Mapping[str, str] = field(default_factory=dict)  # regret -> what it is made of
    predicted: Reals | None = None  # [N] sum_t gamma^t regret of each episode, with a judge
    returns: Reals | None = None  # [N] the student's discounted returns, with a judge


def fidelity(
    student: Policy, teacher: Policy, task: Task, seeds: Sequence[int], judge: Judge | None = None
) -> Fidelity:
    """Play the student greedily on `seeds` (of stage "fidelity") and let the teacher watch every state.

    The teacher's memory follows the student's episodes, so recurrent teachers and histories are asked properly.
    """
    watcher = Watcher(student.head, teacher, judge=judge)
    if judge is not None:
        watcher.predicted, watcher.rewards = (Tally(judge.gamma, len(seeds)) for _ in range(2))
    played = rollout.play(student, task, seeds, watch=watcher)
    columns = {name: np.concatenate(rows) for name, rows in watcher.measured.items()}
    stakes = columns.pop("stakes", None)
    means = {name: float(column.mean()) for name, column in columns.items()}
    if stakes is not None and stakes.sum() > 0:
        means["weighted_agreement"] = float(stakes @ columns["agreement"] / stakes.sum())
    sources = {"regret": judge.source if judge is not None else OWN} if "regret" in means else {}
    tallies = (watcher.predicted, watcher.rewards)
    return Fidelity(
        means, played.env_steps, played.env_steps, sources, *(None if t is None else t.sums for t in tallies)
    )


@dataclass
class Watcher:
    """Asks the teacher about each vector step that the student takes."""

    head: Head  # of the student
    teacher: Policy
    state: State | None = None
    measured: dict[str, list[Reals]] = field(default_factory=dict)
    judge: Judge | None = None
    predicted: Tally | None = None
    rewards: Tally | None = None

    def __call__(self, frame: rollout.Frame) -> None:
        rows = frame.alive
        params, acted, values = self._ask(frame.obs, frame.first)
        found = compare(
            self.teacher.head, params[rows], acted[rows], self.head, frame.params[rows], frame.actions[rows]
        )
        if self.judge is not None and self.predicted is not None and self.rewards is not None:
            found["regret"] = self.judge.cost(frame.obs, params, values, frame.actions)[rows]
            found |= self._stakes(frame.obs, params, values, rows)
            self.predicted.add(frame, found["regret"])
            self.rewards.add(frame, frame.reward[rows])
        for name, each in found.items():
            self.measured.setdefault(name, []).append(each)

    def _stakes(self, obs: Observation, params: Floats, values: Floats | None, rows: Array) -> dict[str, Reals]:
        """What the worst action would cost by the judge, of one choice among several."""
        head = self.teacher.head
        if self.judge is None or head.kind not in ("categorical", "q"):
            return {}
        one = np.ones(len(params), np.int64)
        said = [distributions.execute(head, action * one) for action in range(head.sizes[0])]
        costs = np.stack([self.judge.cost(obs, params, values, acted)[rows] for acted in said])
        return {"stakes": np.maximum(costs.max(axis=0), 0.0)}

    def _ask(self, obs: Observation, first: Array) -> tuple[Floats, Array, Floats | None]:
        """Rows, greedy executed actions and values of the teacher, its memory carried along."""
        if self.state is None:
            self.state = self.teacher.initial_state(len(first))
        output = self.teacher(obs, self.state, first)
        self.state = output.state
        own = output.action if output.action is not None else distributions.act(self.teacher.head, output.params)
        return output.params, own, output.value


def compare(
    teacher_head: Head, labels: Floats, taught: Array, student_head: Head, said: Floats, acted: Array
) -> dict[str, Reals]:
    """Measures of B states from the teacher's rows [B, W] and executed actions, and the student's.

    Only what the heads allow is in the result.
    """
    count = len(labels)
    left, right = taught.reshape(count, -1), acted.reshape(count, -1)
    measures: dict[str, Reals] = {}
    if teacher_head.discrete:
        measures["agreement"] = (left == right).all(axis=1).astype(np.float64)
    else:
        measures["action_difference"] = _in_ranges(teacher_head, left, right)
    same = (teacher_head.kind, teacher_head.sizes) == (student_head.kind, student_head.sizes)
    if same and teacher_head.kind in RANDOM_KINDS:
        measures["kl"] = distributions.kl(teacher_head, labels, said)
    if teacher_head.kind == "q":
        chosen = right[:, :1] - np.asarray(teacher_head.start or 0)
        wide = labels.astype(np.float64)
        measures["stakes"] = np.ptp(wide, axis=1)
        measures["regret"] = wide.max(axis=1) - np.take_along_axis(wide, chosen.astype(np.int64), axis=1)[:, 0]
    return measures


def _in_ranges(head: Head, left: Array, right: Array) -> Reals:
    low, high = (bound.astype(np.float64) for bound in distributions.bounds(head))
    finite = np.isfinite(low) & np.isfinite(high) & (high > low)
    scale = np.where(finite, np.where(finite, high, 1) - np.where(finite, low, 0), 1.0)
    return (np.abs(left.astype(np.float64) - right) / scale).mean(axis=1)
