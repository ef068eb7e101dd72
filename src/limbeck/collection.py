"""Who drives and who labels: one round of play becomes one shard of the data set.

Lanes are dealt among the members. The teacher labels every visited state once: in one batch after the round where it
has no memory, step by step where it has. A round is a pure function of (members, round number, run seed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, seeding, tasks
from limbeck.contracts import Array, Floats, Head, Mode, Observation, Policy, State, Step, Task
from limbeck.dataset import FEATURE, observation_columns
from limbeck.recordings import Recordings
from limbeck.rollout import uniform

LABEL_BATCH = 4096
TEACHER, STUDENT, RANDOM, BLEND, RECORDED = 0, 1, 2, 3, 4  # column `driver`


@dataclass(frozen=True)
class Plan:
    """How one round is driven."""

    steps: int  # environment steps, all lanes together
    lanes: int
    driver: Literal["teacher", "student", "beta", "trb"]
    lmbda: float = 1.0  # share of the lanes that are not the teacher's, where students drive (named as in TRL)
    beta: float = 0.0  # probability that the teacher acts, for driver "beta"
    trust: float = 0.0  # nats of KL(behaviour || student), for driver "trb"
    random_share: float = 0.0  # of the teacher's actions
    teacher_mode: Mode = "greedy"
    temperature: float = 1.0  # tau of a Q teacher: trb blends towards softmax(Q / tau)
    unit: float | None = None  # of its students, whose rows are Q / unit; None: the temperature
    student_mode: Mode = "greedy"
    members: tuple[
        int, ...
    ] = ()  # the students' numbers: stores columns `member` (-1: the teacher) and `student/params`


@dataclass(frozen=True)
class Collected:
    """One round's rows, lane by lane in time order, and what it cost."""

    columns: dict[str, Array]
    env_steps: int
    teacher_queries: int


def collect(
    task: Task, teacher: Policy, students: Sequence[Policy], plan: Plan, round_number: int, run_seed: int
) -> Collected:
    """Play at most `plan.steps` environment steps, one per lane at least; where students drive, they
    take turns at the lanes of all rounds, but for those that `shared` leaves to the teacher."""
    count = task.max_lanes or plan.lanes
    streams = [seeding.generator(run_seed, "collect", round_number, lane) for lane in range(count)]
    lanes = task.lanes(
        count, lambda lane: seeding.episode_seed(run_seed, "collect", int(streams[lane].integers(2**27))), stream=True
    )
    driving = _Driving(teacher, students, plan, count, round_number, run_seed)
    recorder = _Recorder(count)
    try:
        step, taken = lanes.start(), 0
        while taken + count <= max(plan.steps, count):  # never beyond the plan, but for the one step of each lane
            said, driver, labels = driving.act(step)
            answers = lanes.answers()
            executed = distributions.execute(driving.head, said)
            after = lanes.step(executed)
            recorder.add(step, after, said, executed, driver, labels, answers)
            taken += int(after.alive.sum())
            step = after
    finally:
        lanes.close()
    columns = recorder.columns()
    if plan.members:
        columns["member"] = driving.members[recorder.lanes()]
    if driving.labels_later:
        columns |= _label(teacher, columns, task)
    return Collected(columns, taken, len(columns["first"]))


def recorded(task: Task, records: Recordings, rows: NDArray[np.int64], teacher: Policy) -> Collected:
    """The teacher's labels on recorded steps instead of played ones; `rows` are whole episodes, one after another."""
    columns = observation_columns(tasks.take_rows(records.obs, rows))
    first = records.first[rows] | np.concatenate([[True], np.diff(rows) != 1])
    columns |= {"reward": records.reward[rows], "terminated": records.terminated[rows], "first": first}
    columns |= {"truncated": records.truncated[rows], "seed": np.full(len(rows), -1, np.int64)}
    columns["driver"] = np.full(len(rows), RECORDED, np.uint8)
    columns |= _label(teacher, columns, task) if not teacher.initial_state(1) else _label_along(teacher, columns, task)
    said = distributions.said(teacher.head, columns["teacher/params"])
    executed = distributions.execute(teacher.head, said)
    columns |= {"action": said, "executed": executed if records.action is None else records.action[rows]}
    return Collected(columns, 0, len(rows))


def answers_of(teacher: Policy, records: Recordings, task: Task) -> Array:
    """[N, ...] what the teacher would do at every recorded step, as the environment would receive it."""
    columns = observation_columns(records.obs) | {"first": records.first}
    labels = _label(teacher, columns, task) if not teacher.initial_state(1) else _label_along(teacher, columns, task)
    return distributions.act(teacher.head, labels["teacher/params"])


def shared(count: int, round_number: int, lmbda: float) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """[count] whether students drive the lane, `lmbda` of all lanes of all rounds spread evenly over both, and [count] how
    many lanes they had before it, by which they take turns.

    >>> shared(4, 1, 0.5)[0].tolist(), shared(4, 1, 0.5)[1].tolist()
    ([False, True, False, True], [2, 2, 3, 3])
    """
    turn = np.arange(count) + round_number * count
    before = np.floor(turn * lmbda + 1e-9).astype(np.int64)
    return np.floor((turn + 1) * lmbda + 1e-9) > before, before


class _Driving:
    """Turns observations into said actions, carrying the memory of whoever needs it."""

    def __init__(
        self, teacher: Policy, students: Sequence[Policy], plan: Plan, count: int, round_number: int, run_seed: int
    ) -> None:
        self._teacher, self._students, self._plan = teacher, students, plan
        self._rng = seeding.generator(run_seed, "collect", round_number, -1)
        self._teacher_state = teacher.initial_state(count)
        student_drives = plan.driver != "teacher"
        self._alone, turns = shared(count, round_number, plan.lmbda)  # lanes that are not the teacher's
        self.labels_later = not self._teacher_state and plan.driver == "student" and bool(self._alone.all())
        self.head = students[0].head if student_drives and students else teacher.head
        dealt = [int(turn) % len(students) for turn in turns] if student_drives else []
        self._groups = [(students[k], np.flatnonzero(np.array(dealt) == k)) for k in sorted(set(dealt))]
        self._states: list[State] = [policy.initial_state(len(rows)) for policy, rows in self._groups]
        numbers = [plan.members[k] for k in dealt] if plan.members and dealt else [-1] * count
        self.members = np.where(self._alone, numbers, -1).astype(np.int64)
        self._count = count

    def act(self, step: Step) -> tuple[Array, NDArray[np.uint8], dict[str, Array] | None]:
        """Said actions [B, ...], who drove [B], and the teacher's labels if they were needed now."""
        labels, teacher_params = None, None
        if not self.labels_later:
            output = self._teacher(step.obs, self._teacher_state, step.first)
            self._teacher_state, teacher_params = output.state, output.params
            labels = label_columns(self._teacher.head, output.params, output.value, output.features)
        if self._plan.driver == "teacher":
            return (*self._teacher_says(step, teacher_params), labels)
        params = self._student_params(step)
        if self._plan.members:
            labels = (labels or {}) | {"student/params": params}
        driver = np.full(self._count, STUDENT, np.uint8)
        if self._plan.driver == "trb" and teacher_params is not None:
            said, driver[:] = self._blend(params, teacher_params), BLEND
            take = ~self._alone
        else:
            said = distributions.said(self.head, params, self._plan.student_mode, self._rng)
            take = ~self._alone
            if self._plan.driver == "beta":
                take = take | (self._rng.random(self._count) < self._plan.beta)
        if teacher_params is not None and (self._plan.driver == "beta" or not self._alone.all()):
            taught = distributions.said(self._teacher.head, teacher_params, self._plan.teacher_mode, self._rng)
            said[take], driver[take] = to_head(self._teacher.head, self.head, taught)[take], TEACHER
        return said, driver, labels

    def _teacher_says(self, step: Step, params: Floats | None) -> tuple[Array, NDArray[np.uint8]]:
        assert params is not None
        said = distributions.said(self.head, params, self._plan.teacher_mode, self._rng)
        driver = np.full(self._count, TEACHER, np.uint8)
        if self._plan.random_share:
            take = self._rng.random(self._count) < self._plan.random_share
            if take.any():
                masks = tasks.allowed_actions(step.obs, self.head)
                allowed = [None] * self._count if masks is None else list(masks)
                drawn = np.concatenate([uniform(self.head, self._rng, row) for row in allowed])
                said[take], driver[take] = distributions.said_for(self.head, drawn)[take], RANDOM
        return said, driver

    def _student_params(self, step: Step) -> Floats:
        params = np.empty((self._count, self.head.width), np.float32)
        for i, (policy, rows) in enumerate(self._groups):
            output = policy(tasks.take_rows(step.obs, rows), self._states[i], step.first[rows])
            self._states[i], params[rows] = output.state, output.params
        return params

    def _blend(self, student: Floats, teacher: Floats) -> Array:
        """Trust-region blending (arXiv:2605.31159): mu ~ student^(1-a) teacher^a with the largest a whose KL(mu || student) <= trust."""
        if not self.head.discrete:
            n = sum(self.head.sizes)
            raw = to_head(self._teacher.head, self.head, distributions.said(self._teacher.head, teacher))
            return student[:, :n] + trusted_shift(raw - student[:, :n], self._plan.trust, self.head)
        wanted, head = distributions.canonical(self._teacher.head, teacher)[0], self.head
        if self._teacher.head.kind == "q":
            tau, unit = self._plan.temperature, self._plan.unit
            wanted, head = wanted / np.float32(tau), replace(head, kind="categorical")
            student = student if unit is None else student * np.float32(unit / tau)
        mixed = trusted_logits(head, student, wanted, self._plan.trust)
        return distributions.said(head, mixed, "sampled", self._rng)


def trusted_logits(head: Head, student: Floats, teacher: Floats, trust: float) -> Floats:
    """Logits of the blend, [B, W], by bisection on a for every row."""
    low, high = np.zeros((len(student), 1), np.float32), np.ones((len(student), 1), np.float32)
    within = distributions.kl(head, teacher, student) <= trust
    for _ in range(20):
        middle = (low + high) / 2
        fits = (distributions.kl(head, student + middle * (teacher - student), student) <= trust)[:, None]
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    share = np.where(within[:, None], np.float32(1), low)
    return (student + share * (teacher - student)).astype(np.float32)


def trusted_shift(difference: Floats, trust: float, head: Head) -> Floats:
    """For points read as Gaussians of standard deviation a tenth of the action range (1 if unbounded):
    KL = |a d|^2 / (2 s^2) <= trust, so a = min(1, s sqrt(2 trust) / |d|)."""
    low, high = distributions.bounds(head)
    spread = np.where(np.isfinite(high - low), np.where(np.isfinite(high - low), high - low, 0) / 10, 1)
    if head.kind in ("squashed", "tanh"):
        spread = np.full_like(spread, 0.2)
    distance = np.linalg.norm(difference / spread, axis=1, keepdims=True)
    share = np.minimum(1.0, np.sqrt(2 * trust) / np.maximum(distance, 1e-12))
    return (share * difference).astype(np.float32)


def to_head(teacher: Head, student: Head, said: Array) -> Array:
    """A teacher's said action in the student's terms: the same, but for pre-tanh values, which are clipped to where tanh is
    not yet flat. Bounds of the executed action are left to `execute`."""
    if teacher.kind in ("squashed", "tanh") and student.kind in ("squashed", "tanh"):
        return np.clip(said, -distributions.PRE_TANH_LIMIT, distributions.PRE_TANH_LIMIT)
    return said


def label_columns(
    head: Head, params: Floats, value: Floats | None, features: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The stored form of the teacher's answer: canonical rows, V where the teacher states one, layers it was asked to show."""
    rows, top = distributions.canonical(head, params)
    columns: dict[str, Array] = {"teacher/params": rows}
    columns |= {f"{FEATURE}/{layer}": shown.astype(np.float32) for layer, shown in (features or {}).items()}
    if (stated := top if top is not None else value) is not None:
        columns["teacher/value"] = stated.astype(np.float32)
    return columns


def _label(teacher: Policy, columns: dict[str, Array], task: Task) -> dict[str, Array]:
    """Labels of a memoryless teacher for all rows in large batches."""
    obs = _observations(columns)
    rows, parts = len(columns["first"]), []
    for begin in range(0, rows, LABEL_BATCH):
        part = slice(begin, min(begin + LABEL_BATCH, rows))
        output = teacher(tasks.take_rows(obs, part), {}, columns["first"][part])
        parts.append(label_columns(teacher.head, output.params, output.value, output.features))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _label_along(teacher: Policy, columns: dict[str, Array], task: Task) -> dict[str, Array]:
    """Labels of a teacher with memory: every episode from its first row on, all of them side by side."""
    begins = np.flatnonzero(columns["first"])
    ends = np.append(begins[1:], len(columns["first"]))
    obs, state = _observations(columns), teacher.initial_state(len(begins))
    params: Floats | None = None
    values: Floats | None = None
    shown: dict[str, Array] = {}
    for step in range(int((ends - begins).max())):
        rows = np.minimum(begins + step, ends - 1)
        output = teacher(tasks.take_rows(obs, rows), state, np.full(len(begins), step == 0))
        state, going = output.state, begins + step < ends
        if params is None:
            params = np.zeros((len(columns["first"]), output.params.shape[1]), np.float32)
            values = None if output.value is None else np.zeros(len(params), np.float32)
        params[rows[going]] = output.params[going]
        if values is not None and output.value is not None:
            values[rows[going]] = output.value[going]
        for layer, part in output.features.items():
            whole = shown.setdefault(layer, np.zeros((len(params), *part.shape[1:]), np.float32))
            whole[rows[going]] = part[going]
    assert params is not None
    return label_columns(teacher.head, params, values, shown)


def _observations(columns: dict[str, Array]) -> Observation:
    names = [name for name in columns if name == "obs" or name.startswith("obs/")]
    return columns["obs"] if names == ["obs"] else {name[4:]: columns[name] for name in names}


class _Recorder:
    """Keeps what was seen and done, then lays it out lane by lane without the reset rows."""

    def __init__(self, count: int) -> None:
        self._rows: list[dict[str, Array]] = []
        self._count = count
        self._broken = np.ones(count, bool)  # the next stored row of the lane has no stored predecessor

    def add(
        self,
        before: Step,
        after: Step,
        said: Array,
        executed: Array,
        driver: NDArray[np.uint8],
        labels: dict[str, Array] | None,
        answers: NDArray[np.int64] | None,
    ) -> None:
        columns = observation_columns(before.obs) | (labels or {})
        columns |= {"action": said, "executed": executed, "driver": driver, "reward": after.reward.astype(np.float32)}
        columns |= {"terminated": after.terminated, "truncated": after.truncated, "seed": before.seeds}
        columns |= {"first": before.first | self._broken, "alive": after.alive}
        if answers is not None:
            columns["hard"] = answers
        self._rows.append(columns)
        self._broken = ~after.alive

    def lanes(self) -> NDArray[np.int64]:
        """[N] the lane of every row of `columns`."""
        alive = np.stack([row["alive"] for row in self._rows])  # [T, lanes]
        return np.repeat(np.arange(self._count), alive.sum(axis=0))

    def columns(self) -> dict[str, Array]:
        stacked = {
            key: np.swapaxes(np.stack([row[key] for row in self._rows]), 0, 1) for key in self._rows[0]
        }  # [lanes, T, ...]
        keep = stacked.pop("alive").reshape(-1)
        return {key: np.ascontiguousarray(value.reshape(-1, *value.shape[2:])[keep]) for key, value in stacked.items()}
