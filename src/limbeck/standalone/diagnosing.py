"""`limbeck diagnose`: a run's student is played, probes are trained beside it, and the cause of its shortfall is named."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym

from limbeck import (
    blueprints,
    identity,
    machine,
    proof,
    recipes,
    rollout,
    runs,
    seeding,
    settings,
    spaces,
    storage,
    tasks,
)
from limbeck.contracts import Array, Mode, Policy, Task, Teacher
from limbeck.dataset import Dataset, open_dataset
from limbeck.errors import InputError, StorageError, printable, unknown
from limbeck.proof import diagnosis
from limbeck.proof.blindness import Blindness, sees_all
from limbeck.proof.diagnosis import REST, RUNGS, Probe, Returns, Verdict
from limbeck.proof.eprocess import Reals
from limbeck.runs import RECIPE, RESULT, Run, Tell
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import Recipe
from limbeck.stages import learn, stopping
from limbeck.stages.opening import open_both
from limbeck.stages.scene import Scene
from limbeck.stages.views import student_view, teacher_view
from limbeck.standalone import probing
from limbeck.standalone.disagreeing import Asked, on_rows
from limbeck.students.family import Family
from limbeck.students.grammar import MemberSpec, parse
from limbeck.tasks import RecordedTask
from limbeck.teachers import verification
from limbeck.teachers.demonstrations import DemonstratedPolicy

EPISODES, MOST_STEPS = 40, 10_000  # episodes of each policy; fewer where they would take more environment steps
FEWEST = 8
ROWS_AS_EPISODES = 1000  # of a labelled set, whose episodes are one row each, and of recordings


@dataclass(frozen=True)
class Bill:
    """What a diagnosis cost."""

    env_steps: int
    gradient_steps: int
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """Why a student falls short, with the numbers it was read from."""

    member: str
    task: str
    cause: diagnosis.Cause
    reason: str
    remedy: str
    parts: Mapping[str, float]  # of the shortfall, by cause, as shares of (expected - random)
    sure: float  # share of the resampled seeds that name this cause
    retention: float
    low: float  # 95 % interval
    high: float
    episodes: int
    returns: Mapping[str, float]  # mean return by who played: student, teacher, random, and the probes
    expected: float | None  # return that the teacher should reach
    expected_from: str
    disagreement: Mapping[str, float]  # with the teacher, on: training, teacher, student (states driven by)
    unit: str  # of the disagreement: "choices", or "action range"
    hidden: str  # what the student cannot see of the teacher's reasons, in words
    bill: Bill
    notes: Sequence[str] = ()

    @property
    def ladder(self) -> list[tuple[str, float, str]]:
        """(who played, mean return, the cause whose part ends there), from the student up; random play last."""
        rows = [(PLAYERS["student"], self.returns["student"], "")]
        rows += [(PLAYERS[name], self.returns[name], cause) for name, cause in RUNGS.items() if name in self.returns]
        rows.append((PLAYERS["teacher"], self.returns["teacher"], REST))
        most = max(mean for who, mean in self.returns.items() if who != "random")
        expected = most if self.expected is None else max(most, self.expected)
        rows.append(("expected, or best seen", expected, "weak teacher"))
        return [*rows, (PLAYERS["random"], self.returns["random"], "")]


@dataclass(frozen=True)
class _Case:
    """What is diagnosed: a student of a run, with its teacher on its task."""

    here: Scene  # the run as its stages see it, with the diagnosis's own seed
    member: MemberSpec
    student: Policy
    data: Dataset

    @property
    def recipe(self) -> Recipe:
        return self.here.run.recipe

    @property
    def task(self) -> Task:
        return self.here.task

    @property
    def teacher(self) -> Teacher:
        return self.here.teacher

    @property
    def mode(self) -> Mode:
        return self.here.mode

    @property
    def seed(self) -> int:
        return self.here.seed

    @property
    def plays(self) -> bool:
        """Whether fresh states can be had."""
        return not isinstance(self.task, RecordedTask) and self.task.proof_episodes is None


@tasks.own_limit()
def diagnose(run: str, episodes: int | None, expect: float | None, seed: int | None, tell: Tell) -> Diagnosis:
    """`limbeck diagnose RUN[:MEMBER]`: works on a finished run, and on one whose rounds have begun."""
    _refuse_numbers(episodes, expect)
    begin = time.perf_counter()
    case = _open(run, seed)
    with machine.steady(case.recipe.threads):
        played = _Played(case, episodes, tell)
        trained = probing.train(played.ground(), _trials(case))
        for name, policy in trained.policies.items():
            played.play(name, policy)
        expected, source = _expected(case, expect)
        probes: dict[Probe, Reals] = {name: played.returns[name] for name in trained.policies}
        base = [played.returns[who] for who in ("student", "teacher", "random")]
        returns = Returns(base[0], base[1], base[2], probes, expected)
        verdict = diagnosis.decide(returns, case.recipe.prove.retain, case.seed)
        hidden = _blindness(case)
    bill = Bill(played.env_steps + trained.env_steps, trained.gradient_steps, time.perf_counter() - begin)
    return _told(case, verdict, played, (expected, source), hidden, bill)


def _told(
    case: _Case, verdict: Verdict, played: _Played, expected: tuple[float | None, str], hidden: Blindness, bill: Bill
) -> Diagnosis:
    return Diagnosis(
        case.member.name, case.task.name, verdict.cause, verdict.reason, diagnosis.REMEDIES[verdict.cause],
        verdict.parts, verdict.sure, verdict.retention, verdict.low, verdict.high, len(played.seeds),
        {who: float(values.mean()) for who, values in played.returns.items()}, *expected, played.disagreement,
        "choices" if case.teacher.policy.head.discrete else "action range",
        proof.gap_in_words(hidden, case.member.architecture.recurrent) or hidden.reason, bill, _notes(case),
    )  # fmt: skip


def _notes(case: _Case) -> tuple[str, ...]:
    if case.plays:
        return ()
    what = "recordings" if isinstance(case.task, RecordedTask) else "a labelled set"
    return (
        f"{what} cannot be played: no probe had fresh data, so a lack of data cannot be told from what is unexplained",
    )


# ---------------------------------------------------------------- what is diagnosed


def _refuse_numbers(episodes: int | None, expect: float | None) -> None:
    if episodes is not None and not FEWEST <= episodes <= 100_000:
        raise InputError(f"--episodes was given {episodes}, allowed {FEWEST} to 100000. Fewer tell nothing.")
    if expect is not None and not math.isfinite(expect):
        raise InputError(f"--expect was given {expect}, allowed any finite return.")


def _open(run: str, seed: int | None) -> _Case:
    folder, name = _place(run)
    values = recipes.read(folder / RECIPE)
    recipe = settings.recipe_from(values)
    asked = recipe if seed is None else settings.recipe_from({**values, "seed": seed})  # in the recipe's range
    task, teacher = open_both(recipe)
    if not _same(recipe.teacher_sha256, identity.of_teacher(teacher)):
        raise StorageError(
            f"{printable(recipe.teacher)} or its normaliser is no longer what {printable(folder)} was made from. Restore it, or distill it into another folder."
        )
    if isinstance(teacher.policy, DemonstratedPolicy):
        raise InputError(
            f"the teacher of {printable(folder)} is a recording: it can neither play nor label new states, so nothing tells "
            "its students' mistakes apart. What it knows is in the run's report; distill from a policy to diagnose."
        )
    here = _scene(folder, recipe, task, teacher)
    member, student = _student(here, name)
    data = open_dataset(folder / "dataset", task.name)
    if not data.rows:
        raise InputError(f"{printable(folder)} holds no collected rows yet. Let its first round finish, then diagnose.")
    return _Case(replace(here, run=replace(here.run, recipe=asked)), member, student, data)


def _scene(folder: Path, recipe: Recipe, task: Task, teacher: Teacher) -> Scene:
    """The run for stages that only read it; what its verification measured is measured again on the diagnosis's seeds."""
    verified = folder / "records" / "verify.json"
    mode: Mode = storage.read_json(verified)["mode"] if verified.is_file() else "greedy"
    run = Run(folder, recipe, {}, lambda *_: None)
    return Scene(run, task, teacher, mode, math.nan, math.nan, math.nan, {})


def _same(stored: str | None, found: str) -> bool:
    """Whether this is the run's teacher; of one whose answers vary from call to call nothing can be said."""
    return stored in (None, found) or (str(stored).startswith("varies-") and found.startswith("varies-"))


def _place(run: str) -> tuple[Path, str | None]:
    """RUN or RUN:MEMBER; a folder whose own name holds a colon is a folder."""
    if (Path(run) / RECIPE).is_file():
        return Path(run), None
    text, colon, name = run.rpartition(":")
    if colon and (Path(text) / RECIPE).is_file():
        return Path(text), name
    raise InputError(
        f"{printable(run)} is no run: it holds no {RECIPE}. Allowed: the folder of a run, or RUN:MEMBER, such as runs/demo:mlp-8-s0."
    )


def _student(here: Scene, name: str | None) -> tuple[MemberSpec, NumpyPolicy]:
    """The member as it was saved, or as the newest checkpoint has it. By default the largest that was not proved."""
    folder = here.run.folder
    members = {member.name: member for member in parse(here.run.recipe.students)}
    saved = {path.parent.name: path for path in (folder / "students").glob("*/policy.safetensors")}
    trained = _under_way(here)
    there = set(saved) | {member.name for member in trained.members}
    known = [one for one in members if one in there]
    if not known:
        raise InputError(f"{printable(folder)} holds no student yet. Let its first round finish, then diagnose.")
    if name is not None and name not in known:
        raise unknown("member", name, known)
    member = members[name if name is not None else _short(folder, known)]
    if member.name in saved:
        return member, NumpyPolicy(blueprints.load(saved[member.name])[0])
    return member, NumpyPolicy(trained.blueprint(member.name, here.task.name))


def _under_way(here: Scene) -> Family:
    """The family as the run itself would judge it after its newest checkpoint; nobody without one.

    Of trees and rules that is the newest iterate: the best of all is only found when the run ends."""
    arrays = _checkpoint(here.run.folder)
    if not arrays:
        return Family({}, {}, [])
    family = learn.new_family(here)
    family.from_arrays(arrays)
    judged = stopping.evaluated(family, keep_best=here.run.recipe.imitate.keep_best)
    judged.settle()
    return judged


def _checkpoint(folder: Path) -> Mapping[str, Array]:
    """The newest whole checkpoint of the rounds; nothing is removed, for the run may be under way."""
    for path in sorted((folder / "checkpoints").glob("round-[0-9]*.safetensors"), reverse=True):
        try:
            return runs.load_one(path)[0]
        except (InputError, StorageError):
            continue  # damaged, or being replaced: the one before it is whole
    return {}


def _short(folder: Path, known: Sequence[str]) -> str:
    """The member that asks for a diagnosis: the first in the run's order that is not proved, else the last."""
    if not (folder / RESULT).is_file():
        return known[0]
    reported = [(one["name"], one["proof"]) for one in storage.read_json(folder / RESULT)["members"]]
    listed = [(name, found) for name, found in reported if name in known]
    short = [name for name, found in listed if found is None or found["verdict"] != "proved"]
    return short[0] if short else listed[-1][0] if listed else known[0]


def _expected(case: _Case, given: float | None) -> tuple[float | None, str]:
    """What the teacher should reach, and who says so."""
    if given is not None:
        return given, "--expect"
    if case.recipe.verify.expect is not None:
        return case.recipe.verify.expect, "verify.expect"
    if isinstance(case.task, RecordedTask):
        return None, ""
    said = [(verification.stated_return(case.teacher.info), "stated by the teacher")]
    said.append((_threshold(case.recipe), "Gymnasium's reward threshold"))  # an unfinished teacher states what it is
    known = [(value, source) for value, source in said if value is not None]
    return max(known) if known else (None, "")


def _threshold(recipe: Recipe) -> float | None:
    """The return at which the environment counts as solved, where its registry says so of just this environment."""
    if recipe.env is None or recipe.task.wrappers or recipe.task.kwargs:
        return None
    try:
        threshold = gym.spec(recipe.env).reward_threshold
    except gym.error.Error:
        return None  # not an environment of Gymnasium's registry: nothing is stated
    return None if threshold is None else float(threshold)


def _trials(case: _Case) -> list[probing.Trial]:
    own, seen = student_view(case.recipe, case.task, case.teacher), teacher_view(case.recipe, case.teacher)
    remembers = bool(case.teacher.policy.initial_state(1)) and seen.history == 1
    alike = sees_all(own, seen, case.member.architecture.recurrent, remembers)
    space, agents = case.task.spec.observation_space, case.task.spec.agents
    image = spaces.has_image(space, seen, agents)
    return probing.trials(
        case.member.architecture, own, None if alike else seen, remembers=remembers, image=image, plays=case.plays
    )


def _blindness(case: _Case) -> Blindness:
    """What of the teacher's answers the student's view tells, on the run's own rows."""
    if case.task.spec.agents > 1:
        return Blindness(reason="not measured: a team")
    return proof.blindness_of(
        case.data, case.task.spec, case.teacher.policy.head, student_view(case.recipe, case.task, case.teacher),
        teacher_view(case.recipe, case.teacher), student_remembers=case.member.architecture.recurrent,
        teacher_remembers=bool(case.teacher.policy.initial_state(1)), run_seed=case.seed,
    )  # fmt: skip


# ---------------------------------------------------------------- play


class _Played:
    """Everybody's returns on the same seeds, and how often the student disagrees with its teacher where."""

    def __init__(self, case: _Case, episodes: int | None, tell: Tell) -> None:
        self._case, self._tell = case, tell
        self.returns: dict[str, Reals] = {}
        self.env_steps = 0
        self.seeds = self._seeds(FEWEST if episodes is None else episodes)
        student, teacher, usual = case.student, case.teacher.policy, EPISODES if case.plays else ROWS_AS_EPISODES
        if episodes is None:  # FEWEST episodes say how long the teacher's are
            steps = rollout.play(teacher, case.task, self.seeds, mode=case.mode, run_seed=case.seed).env_steps
            self.env_steps += steps
            self.seeds = self._seeds(max(FEWEST, min(usual, int(MOST_STEPS * len(self.seeds) / max(steps, 1)))))
        on_own, on_teachers = Asked(teacher, student.head), Asked(student, teacher.head)
        self.play("student", student, on_own)
        begin = self.env_steps
        self.play("teacher", teacher, on_teachers)
        self._teacher_steps = (self.env_steps - begin) / len(self.seeds)
        self.play("random", None)
        stored = on_rows(case.student, case.teacher.policy.head, case.data)
        self.disagreement = {"training": stored, "teacher": on_teachers.mean(), "student": on_own.mean()}

    def _seeds(self, count: int) -> list[int]:
        most = self._case.task.proof_episodes
        return [seeding.episode_seed(self._case.seed, "diagnose", i) for i in range(min(count, most or count))]

    def play(self, who: str, policy: Policy | None, watch: Asked | None = None) -> None:
        mode = "uniform" if policy is None else self._case.mode if who == "teacher" else "greedy"
        found = rollout.play(policy, self._case.task, self.seeds, mode=mode, run_seed=self._case.seed, watch=watch)
        self.returns[who], self.env_steps = found.returns, self.env_steps + found.env_steps
        self._tell("diagnose", f"{PLAYERS[who]}: return {found.returns.mean():.4g}")

    def ground(self) -> probing.Ground:
        case = self._case
        spent = (case.data.rows, case.recipe.imitate.gradient_steps * case.data.rounds)
        return probing.Ground(case.here, self._teacher_steps, case.data, spent)


PLAYERS = {
    "student": "the student", "teacher": "the teacher", "random": "random play", "again": "trained again",
    "data": "+ fresh data", "larger": "+ a larger network", "view": "+ the teacher's view",
}  # fmt: skip
