"""The states on a student's own path where it differs most from its teacher, costliest first, each with a picture.

The student plays a few episodes on seeds of their own while the teacher is asked about every state. What a step costs is
the teacher's own judgement where there is one (`stages.critics`), else a divergence. The chosen states are then visited
again with a camera: a pure function of the seeds, so the same states return, and where they do not, nothing is shown.
A drawing that fails ends the pictures, not the play.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import distributions, rollout, seeding, spaces, storage, tasks
from limbeck.contracts import Array, Disagreement, Floats, Head, MemberReport, Observation, Policy, State, Task
from limbeck.errors import EnvironmentFault, printable
from limbeck.proof.agreement import compare
from limbeck.proof.regret import Judge
from limbeck.reporting import pictures, video
from limbeck.reporting.reading import build
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import critics
from limbeck.stages.choosing import Chosen
from limbeck.stages.proving import Proved, unprovable
from limbeck.stages.scene import Scene

FOLDER = "gallery"
APART = 25  # steps between two states of one episode that are shown: neighbours look alike
MOST_STEPS = 1000  # of an episode
ROWS = 256  # episodes of a labelled set, which are one row each
NUMBERS = 64  # of an observation that are kept where it is no picture
SHARE, STATES, NATS = "share of the action's range", "actions", "nats"


def collect(here: Scene, chosen: Sequence[Chosen], proved: Proved) -> dict[str, list[Disagreement]]:
    """The galleries of the members that the recipe asks for, by name; their files are in the run's folder gallery/."""
    if here.run.recipe.report.gallery == "off" or unprovable(here) is not None:
        return {}
    found = {}
    for one in _shown(here, chosen, proved):
        name = one.member.name

        def compute(one: Chosen = one) -> dict[str, Any]:
            here.run.tell("report", f"looking for the states where {one.member.name} differs most from the teacher")
            return _gallery(here, one)

        record = here.run.record(f"gallery-{name}", compute)
        found[name] = [build(Disagreement, row, "disagreement") for row in record["disagreements"]]
    return found


def filled(members: Sequence[MemberReport], found: Mapping[str, Sequence[Disagreement]]) -> list[MemberReport]:
    """The members with their galleries."""
    return [replace(member, disagreements=tuple(found.get(member.name, ()))) for member in members]


def _shown(here: Scene, chosen: Sequence[Chosen], proved: Proved) -> list[Chosen]:
    """All members, or the two worth looking at: the smallest proved one and the first that is not proved."""
    if here.run.recipe.report.gallery == "all":
        return list(chosen)
    verdicts = [(one, proved.proofs.get(one.member.name)) for one in chosen]
    able = [one for one, proof in verdicts if proof is not None and proof.verdict == "proved"][-1:]
    return able + [one for one, proof in verdicts if proof is not None and proof.verdict != "proved"][:1]


def _gallery(here: Scene, one: Chosen) -> dict[str, Any]:
    """One member's record: the disagreements, and the environment steps that they took to find."""
    settings, task = here.run.recipe.report, here.task
    count = settings.gallery_episodes if task.proof_episodes is None else ROWS
    seeds = [seeding.episode_seed(here.seed, "gallery", i) for i in range(count)]
    student = NumpyPolicy(one.blueprint)
    watcher = Differences(here.teacher.policy, student.head, critics.judge(here), critics.own_source(here.teacher))
    most = MOST_STEPS if task.proof_episodes is None and task.max_lanes is None else None
    played = rollout.play(student, task, seeds, run_seed=here.seed, most=most, watch=watcher)
    states = _costliest(watcher.found, settings.gallery_frames)
    visit = Visit(student, task, here.run.folder / FOLDER / one.member.name, here.seed)
    shown, steps = visit.all(states, seeds, watcher.unit)
    told = {
        "member": one.member.name, "episodes": count, "states": watcher.states, "different": watcher.different, "unit": watcher.unit,
        "reason": visit.reason, "observations": visit.observations,
    }  # fmt: skip
    storage.write_json(here.run.folder / FOLDER / f"{one.member.name}.json", told)
    return {"disagreements": shown, "other_steps": played.env_steps + steps}


# ---------------------------------------------------------------- finding


@dataclass(frozen=True)
class Seen:
    """A step of the student that the teacher would not have taken."""

    episode: int
    step: int
    cost: float
    teacher: tuple[float, ...]  # executed actions
    student: tuple[float, ...]


@dataclass
class Differences:
    """Asks the teacher about each step that the student takes, its memory carried along, and keeps what differs."""

    teacher: Policy
    head: Head  # of the student
    judge: Judge | None
    source: str | None  # of the teacher's own action values
    state: State | None = None
    unit: str = ""
    states: int = 0
    different: int = 0
    found: list[Seen] = field(default_factory=list)
    steps: dict[int, int] = field(default_factory=dict)  # episode -> steps taken

    def __call__(self, frame: rollout.Frame) -> None:
        if self.state is None:
            self.state = self.teacher.initial_state(len(frame.first))
        output = self.teacher(frame.obs, self.state, frame.first)
        self.state = output.state
        own = output.action if output.action is not None else distributions.act(self.teacher.head, output.params)
        rows = np.flatnonzero(frame.alive)
        if not len(rows):
            return
        cost = self._cost(frame, output.params, output.value, own)
        for row in rows:
            episode = int(frame.indices[row])
            step = self.steps.get(episode, 0)
            self.steps[episode] = step + 1
            wanted, taken = _numbers(own[row]), _numbers(frame.actions[row])
            self.states += 1
            self.different += wanted != taken
            if wanted != taken and np.isfinite(cost[row]) and cost[row] > 0:
                self.found.append(Seen(episode, step, float(cost[row]), wanted, taken))

    def _cost(self, frame: rollout.Frame, params: Floats, value: Floats | None, own: Array) -> Array:
        """[B] what the student's actions lose, in `unit`: the best measure that teacher and student allow."""
        measured = compare(self.teacher.head, params, own, self.head, frame.params, frame.actions)
        if self.judge is not None:
            self.unit = f"return ({self.judge.source})"
            return self.judge.cost(frame.obs, params, value, frame.actions)
        if "regret" in measured and self.source is not None:
            self.unit = f"return ({self.source})"
            return measured["regret"]
        if "kl" in measured:
            self.unit = NATS
            return measured["kl"]
        if "action_difference" in measured:
            self.unit = SHARE
            return measured["action_difference"]
        self.unit = STATES
        return 1 - measured["agreement"]


def _numbers(action: Array) -> tuple[float, ...]:
    return tuple(float(v) for v in np.asarray(action).reshape(-1))


def _costliest(found: Sequence[Seen], count: int) -> list[Seen]:
    """The costliest states, none within APART steps of a costlier one of its episode; of equals the earliest.

    >>> [s.step for s in _costliest([Seen(0, i, i / 10, (), ()) for i in range(30)], 3)]
    [29, 4]
    """
    kept: list[Seen] = []
    for seen in sorted(found, key=lambda s: (-s.cost, s.episode, s.step)):
        if len(kept) == count:
            break
        if all(seen.episode != other.episode or abs(seen.step - other.step) >= APART for other in kept):
            kept.append(seen)
    return kept


# ---------------------------------------------------------------- visiting again


@dataclass
class Film:
    """What a camera found."""

    wanted: set[int]  # steps
    frames: dict[int, video.Picture] = field(default_factory=dict)
    steps: int = 0  # begun, also one that the environment broke off
    cameras: int = 0
    broken: str = ""  # why there are no more pictures


@dataclass
class Visit:
    """Plays chosen episodes again up to the chosen states, with a camera where the task can draw."""

    student: Policy
    task: Task
    stem: Path  # path of the pictures without number and suffix
    run_seed: int
    reason: str = ""  # why there are no pictures
    observations: list[dict[str, Any]] = field(default_factory=list)

    def all(self, states: Sequence[Seen], seeds: Sequence[int], unit: str) -> tuple[list[Disagreement], int]:
        """The disagreements in the order of the states, and the environment steps it took."""
        shown: dict[Seen, Disagreement] = {}
        steps = 0
        for episode in sorted({s.episode for s in states}):
            here = {s.step: s for s in states if s.episode == episode}
            reached, taken = self._again(episode, seeds[episode], here)
            steps += taken
            for step, (obs, picture) in reached.items():
                number = states.index(here[step])
                if picture is None and not isinstance(obs, dict):
                    picture = pictures.of_observation(obs[0], getattr(self.task, "image", None))
                file = self._store(number, picture)
                shown[here[step]] = _told(here[step], seeds[episode], unit, file)
                self._keep(number, seeds[episode], step, obs, file)
        self.observations.sort(key=lambda row: row["number"])
        return [shown[s] for s in states if s in shown], steps

    def _again(
        self, episode: int, seed: int, states: Mapping[int, Seen]
    ) -> tuple[dict[int, tuple[Observation, video.Picture | None]], int]:
        """step -> (observation, picture) of the states that came back, and the steps taken."""
        film = Film(set(states))
        found: dict[int, Observation] = {}
        steps = itertools.count()

        def watch(frame: rollout.Frame) -> None:
            row = int(np.flatnonzero(frame.alive)[0]) if frame.alive.any() else -1
            if row >= 0 and (step := next(steps)) in states and _numbers(frame.actions[row]) == states[step].student:
                found[step] = tasks.copy_observation(tasks.take_rows(frame.obs, slice(row, row + 1)))

        def play(task: Task) -> int:
            return rollout.play(
                self.student, task, [seed], run_seed=self.run_seed, slots=1, number=episode, most=max(states) + 1, watch=watch
            ).env_steps  # fmt: skip

        try:
            taken = play(self._filmed(film))
        except EnvironmentFault as error:
            if not film.cameras:
                raise
            self.reason = f"with a camera, {error}"
            film.frames.clear()
            found.clear()
            steps = itertools.count()
            taken = film.steps + play(self.task)
        self.reason = self.reason or film.broken
        return {step: (obs, film.frames.get(step)) for step, obs in found.items()}, taken

    def _filmed(self, film: Film) -> Task:
        """The task with a camera, until one could not draw."""
        if not self.reason:
            try:
                return filmed(self.task, film)
            except video.CannotDraw as error:
                self.reason = str(error)
        return self.task

    def _store(self, number: int, picture: video.Picture | None) -> str:
        """Name of the picture's file inside the run, "" where there is none."""
        if picture is None:
            return ""
        try:
            content = pictures.jpeg(picture)
        except video.CannotDraw as error:
            self.reason = str(error)
            return ""
        path = self.stem.with_name(f"{self.stem.name}-{number}.jpg")
        storage.write_bytes(path, content)
        return f"{FOLDER}/{path.name}"

    def _keep(self, number: int, seed: int, step: int, obs: Observation, file: str) -> None:
        flat = spaces.flatten(obs, self.task.spec.observation_space)[0]
        numbers = [float(v) for v in flat[:NUMBERS]]
        self.observations.append({"number": number, "seed": seed, "step": step, "size": len(flat), "numbers": numbers, "picture": file})  # fmt: skip


class Lens(gym.Wrapper[Any, Any, Any, Any]):
    """Takes a picture of the first episode before the wanted steps."""

    def __init__(self, env: gym.Env[Any, Any], film: Film) -> None:
        super().__init__(env)
        self._film, self._step = film, -1
        film.cameras += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        first = self.env.reset(seed=seed, options=options)
        if self._step < 0:
            self._look()
        return first

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._film.steps += 1
        told = self.env.step(action)
        self._look()
        return told

    def _look(self) -> None:
        self._step += 1
        film = self._film
        if film.broken or self._step not in film.wanted or self._step in film.frames:
            return
        try:
            film.frames[self._step] = video.frame_of(self.env)
        except video.CannotDraw as error:
            film.broken = str(error)
        except Exception as error:  # any environment may fail to draw in its own way; the words reach the page
            film.broken = f"the environment cannot draw: {type(error).__name__} {printable(error)}"


def filmed(task: Task, film: Film) -> Task:
    """The task with a camera around its environment, which fills `film`. Raises CannotDraw."""
    if not isinstance(task, tasks.EnvTask):
        raise video.CannotDraw(f"{printable(task.name)} is not made of single environments that could be drawn")
    video.drawing_env(task).close()  # what cannot be made to draw is told apart from a play that breaks
    return replace(task, make=lambda: Lens(video.drawing_env(task), film), pool=None)


def _told(seen: Seen, seed: int, unit: str, file: str) -> Disagreement:
    return Disagreement(seed, seen.step, _words(seen.teacher), _words(seen.student), seen.cost, unit, file)


def _words(action: tuple[float, ...]) -> str:
    """
    >>> _words((2.0,)), _words((0.123456, -1.0))
    ('2', '0.123, -1')
    """
    return ", ".join(f"{value:.3g}" for value in action)
