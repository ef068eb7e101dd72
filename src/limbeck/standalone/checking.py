"""`limbeck check`: every backend of every target, against the golden rows and in closed loop.

In closed loop the backend takes the actions, episode after episode on fixed seeds, and the reference answers the same
observations beside it. So a difference counts where it arises, on the backend's own path: a chaotic environment cannot
turn a last digit into another verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from limbeck import blueprints, exporters, rollout, seeding, spaces, tasks
from limbeck.contracts import Device, Policy, Task
from limbeck.errors import InputError, LimbeckError, printable
from limbeck.exporters import NOT_RUN, CheckRow, replaying
from limbeck.exporters.contract import Contract
from limbeck.runtimes import emulated, shadow
from limbeck.runtimes.emulated import EmulatedPolicy
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.standalone.folders import artifacts, run_of, task_of, weights

MOST_EPISODES = 1000
MOST_STEPS = 1000  # of one episode
LEAST_STEPS = 50
INSTRUCTIONS = 5e8  # that an emulator carries out for one backend: a second or two
FIRST_SEED = 2**20  # of the golden stream, far behind the episodes that gave the golden rows


@dataclass(frozen=True)
class Loop:
    """A backend that played, and the reference on the same seeds."""

    episodes: int
    steps: int  # at most MOST_STEPS of an episode, fewer on an emulated part that is slow
    actions_equal: float  # share of steps at which both take the same action
    ok: bool  # and all others are close calls
    mean_return: float
    reference_return: float
    reference: str  # who that is, in words


@dataclass(frozen=True)
class Checked(CheckRow):
    """One backend: its golden rows, its closed loop, and what it costs on a microcontroller."""

    member: str = ""
    loop: Loop | None = None
    unplayed: str = ""  # why there is no loop
    device: Device | None = None


def check(folder: Path, env: str | None, episodes: int) -> list[Checked]:
    """One artefact folder, or a run's own files and then all its artefacts. `env` stands in for the stored environment.

    Raises InputError for changed files, for an environment that was named and does not fit, and where no backend can run.
    """
    if not 0 <= episodes <= MOST_EPISODES:
        raise InputError(f"--episodes {episodes} is out of range. Allowed: 0 (no closed loop) to {MOST_EPISODES:,}.")
    found, whole = artifacts(folder)
    rows = [row for one in found for row in _checked(one, env, episodes, one.name if whole else "")]
    reasons = dict.fromkeys(row.note.removeprefix(NOT_RUN) for row in rows if row.note.startswith(NOT_RUN))
    if all(row.note.startswith(NOT_RUN) for row in rows):
        raise InputError(
            f"no backend of {printable(folder)} can run here: {'; '.join(reasons) or 'it holds none'}. Install what is missing, or export another target."
        )
    return rows


def _checked(folder: Path, env: str | None, episodes: int, member: str) -> list[Checked]:
    rows, contract = exporters.check(folder), exporters.contract.read(folder)
    sound = {row.target for row in rows if row.ok}
    stage = _staged(folder, contract, env, episodes, sound)
    return [_looped(folder, contract, row, stage, member) for row in rows]


def _looped(folder: Path, contract: Contract, row: CheckRow, stage: _Stage, member: str) -> Checked:
    """The row of a backend, with what it does in closed loop and costs where it can run; one that breaks has failed."""
    given = {one.name: getattr(row, one.name) for one in fields(CheckRow)} | {"member": member}
    if row.ok is None:
        return Checked(**given)
    try:
        loop, device = _played(folder, contract, row, stage)
    except InputError as error:
        return Checked(**{**given, "ok": False, "note": str(error)})
    if loop is not None and row.target not in replaying.LOSSY:
        given["ok"] = row.ok and loop.ok
    return Checked(**given, loop=loop, unplayed=stage.why, device=device)


def _played(folder: Path, contract: Contract, row: CheckRow, stage: _Stage) -> tuple[Loop | None, Device | None]:
    backend = next(one for one in exporters.backends(folder, row.target) if one.name == row.backend)
    policy, device, most = backend.load(), None, MOST_STEPS
    try:
        if isinstance(policy, EmulatedPolicy):
            device = _measured(policy, folder, row, contract)
            asked = 2 * max(stage.episodes, 1) * max(device.instructions, 1)  # an idle row beside the one that plays
            most = int(np.clip(INSTRUCTIONS / asked, LEAST_STEPS, MOST_STEPS))
        return (None if stage.why else stage.play(f"{row.target} {row.backend}", policy, most)), device
    finally:
        if isinstance(policy, EmulatedPolicy):
            policy.close()


def _measured(policy: EmulatedPolicy, folder: Path, row: CheckRow, contract: Contract) -> Device:
    golden = replaying.load(folder / replaying.FILE)
    flat = spaces.input_rows(golden.obs, contract.spec.observation_space, contract.view)
    return emulated.measure(policy, folder / row.target, row.backend, flat, golden.first)


# ---------------------------------------------------------------- the closed loop


@dataclass
class _Stage:
    """The task, the seeds and the reference that all backends of one artefact share."""

    task: Task | None
    why: str  # nothing is played, in words; empty when it is
    episodes: int
    reference: Policy | None = None  # None: the first backend that plays
    name: str = ""
    _rewards: list[list[float]] = field(default_factory=list)  # of the reference, step by step in every episode

    def play(self, who: str, policy: Policy, most: int) -> Loop:
        if self.reference is None:
            self.reference, self.name = policy, who
        if not self._rewards:
            self._rewards = [self._rewards_of(number) for number in range(self.episodes)]
        beside = [_Beside(self.reference) for _ in range(self.episodes)]
        returns = [_episode(policy, self._task, number, most, one.watch) for number, one in enumerate(beside)]
        wanted = [sum(rewards[:most]) for rewards in self._rewards]
        steps = sum(one.steps for one in beside)
        return Loop(self.episodes, steps, sum(one.same for one in beside) / max(steps, 1), all(one.ok for one in beside),
                    float(np.mean(returns)), float(np.mean(wanted)), self.name)  # fmt: skip

    def _rewards_of(self, number: int) -> list[float]:
        rewards: list[float] = []

        def watch(frame: rollout.Frame) -> None:
            if frame.alive[0]:
                rewards.append(float(frame.reward[0]))

        assert self.reference is not None
        _episode(self.reference, self._task, number, MOST_STEPS, watch)
        return rewards

    @property
    def _task(self) -> Task:
        assert self.task is not None
        return self.task


class _Beside:
    """The reference, led along the path that another policy takes through one episode."""

    def __init__(self, reference: Policy) -> None:
        self._reference, self._state = reference, reference.initial_state(1)
        self.steps = self.same = 0
        self.ok = True

    def watch(self, frame: rollout.Frame) -> None:
        if not frame.alive[0]:
            return
        output = self._reference(frame.obs, self._state, frame.first)
        self._state = output.state
        head = self._reference.head
        same = not shadow.differs(shadow.executed(output, head), frame.actions)[0]
        self.steps += 1
        self.same += same
        self.ok &= bool(same or replaying.close_calls(head, output.params)[0])


def _episode(policy: Policy, task: Task, number: int, most: int, watch: Callable[[rollout.Frame], None]) -> float:
    """The return of one episode in one lane, left after `most` steps."""
    seed = seeding.episode_seed(0, "golden", FIRST_SEED + number)
    played = rollout.play(policy, task, [seed], slots=1, number=number, most=most, watch=watch)
    return float(played.returns[0])


# ---------------------------------------------------------------- what is played against what


def _staged(folder: Path, contract: Contract, env: str | None, episodes: int, sound: Collection[str]) -> _Stage:
    """`sound`: the targets that repeat their golden rows, of which one may be the reference."""
    if not episodes:
        return _Stage(None, "no episodes asked for", 0)
    try:
        task = task_of(contract.spec, run_of(folder), env)
    except LimbeckError as error:
        if env is not None:
            raise
        return _Stage(None, f"no environment: {error}", 0)
    if isinstance(task, tasks.RecordedTask):
        return _Stage(None, "no environment: the run imitated recordings", 0)
    if (path := weights(folder, sound)) is None:
        return _Stage(task, "", episodes)
    return _Stage(task, "", episodes, NumpyPolicy(blueprints.load(path)[0]), "numpy")


def failed(rows: Sequence[CheckRow]) -> bool:
    """Whether a backend disagrees; one that cannot run here does not."""
    return any(row.ok is False for row in rows)
