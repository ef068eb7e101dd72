"""The folder of a search, shared by all its processes: what was begun, by whom it is held, what is next.

    search.json     what is searched: teacher, task, space, budgets     study.journal  the study (or --storage sqlite:///FILE)
    teacher/        its verification                                    latency/       measured steps, where asked for
    passes/0000/    pass.json, rungs, students, result.json             final/         the proved front: a run folder
    front.json      the result                                          *.lock         held by living processes only

The passes' own files are the truth; the study is what the sampler learns from and is brought up to them (`settle`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import identity, recipes, runs, storage
from limbeck.contracts import Bill
from limbeck.errors import InputError, StorageError, printable
from limbeck.scale import claims, passes, space, speed
from limbeck.scale.claims import Claim
from limbeck.scale.passes import Candidate, Pass
from limbeck.scale.sampling import JOURNAL, Book
from limbeck.scale.space import Space
from limbeck.stages import scene
from limbeck.stages.scene import Scene

SEARCH, LOCK, TEACHER, FRONT, FINAL = "search.json", "search.lock", "teacher", "front.json", "final"
ATTEMPTS, FAILED = "attempts.json", "failed.json"
MOST_ATTEMPTS = 3  # deaths in the same pass after which it is left alone
TRIES = 100  # proposals of one pass that may be ruled out
SEEDS = 2  # of one architecture in one pass: a proposal made again is another seed
POLL_SECONDS = 0.5
STOP_RULES = ("trials", "env_steps")  # may be raised while nothing is proved: they choose nothing


@dataclass(frozen=True)
class Study:
    """An open search."""

    folder: Path
    here: Scene
    space: Space
    book: Book

    @property
    def lock(self) -> Path:
        return self.folder / LOCK


@dataclass(frozen=True)
class Work:
    """A pass that this process holds."""

    plan: Pass
    claim: Claim


def open_study(folder: Path, found: Space, tell: runs.Tell) -> Study:
    """Create the folder, or check that it holds this search; verify the teacher, once for all processes."""
    _refuse_foreign(folder, found.settings.storage)
    with claims.held(folder / LOCK):
        storage.probe_writable(folder)
        wanted = _identity(found)
        if (folder / SEARCH).exists():
            _refuse_other(folder, wanted)
        new = not (folder / SEARCH).exists()
        task = identity.of_task(found.task)
        if (folder / TEACHER).exists():  # of a search that ended early: another's is refused before a data base is made
            runs.open_run(folder / TEACHER, found.recipe, lambda stage, text: None, task)
        book = Book(
            folder, found.settings.storage, found.settings.sampler, found.settings.population, found.recipe.seed
        )
        known = {c.trial for p in passes.plans(folder) for c in p.candidates}
        held = {trial.number for trial in book.trials()}
        if (new and held) or not known <= held:
            raise StorageError(
                f"the study in {printable(found.settings.storage)} is not the one of {folder}. Choose another --storage or --out."
            )
        here = scene.verify(runs.open_run(folder / TEACHER, found.recipe, tell, task), found.task, found.teacher)
        _refuse_budgets(found, here, folder)
        if new:
            storage.write_json(folder / SEARCH, wanted)
    return Study(folder, here, found, book)


def next_work(study: Study) -> Work | None:
    """A pass to train: one whose holder died, else a new one; None when the search is over. Waits for other holders."""
    told = False
    while True:
        with claims.held(study.lock):
            settle(study)
            if (work := _adopt(study) or _begin(study)) is not None:
                _count_attempt(study, work.plan, 1)
                return work
            if not _open(study):
                return None
        if not told:
            study.here.run.tell("search", "the last passes are held by other processes; waiting for them")
            told = True
        time.sleep(POLL_SECONDS)


def interrupted(study: Study, work: Work) -> None:
    """The process was asked to stop: not a failure of the pass."""
    _count_attempt(study, work.plan, -1)


def settle(study: Study) -> None:
    """Bring the study up to what the passes' files say. Under the search's lock."""
    plans, ended = passes.plans(study.folder), {f.number: f for f in passes.finished(study.folder)}
    begun = {number for p in plans for number in (*(c.trial for c in p.candidates), *p.refused)}
    study.book.drop_strays(begun)
    open_trials = {trial.number for trial in study.book.trials() if trial.state == "running"}
    for plan in plans:
        for number in open_trials & set(plan.refused):
            study.book.end(number, "refused")
        mine = {c.trial for c in plan.candidates} & open_trials
        if plan.number in ended:
            for outcome in ended[plan.number].outcomes:
                if outcome.trial in mine:
                    study.book.tell(outcome.trial, outcome.size_bytes, outcome.mean_return)
            _tidy(passes.folder_of(study.folder, plan.number))
        elif _failed(study, plan):
            for number in sorted(mine):
                study.book.end(number, "failed")


def _tidy(place: Path) -> None:
    """What a process killed at the very end of a pass left; one that lives does it itself."""
    if (claim := claims.take(place / passes.LOCK)) is not None:
        passes.tidy(place)
        claim.release()


def spent(study: Study) -> Bill:
    """The bill of all finished passes."""
    return passes.total([f.bill for f in passes.finished(study.folder)])


# ---------------------------------------------------------------- claiming


def _open(study: Study) -> list[Pass]:
    ended = {f.number for f in passes.finished(study.folder)}
    return [p for p in passes.plans(study.folder) if p.number not in ended and not _failed(study, p)]


def _failed(study: Study, plan: Pass) -> bool:
    return (passes.folder_of(study.folder, plan.number) / FAILED).exists()


def _adopt(study: Study) -> Work | None:
    """A begun pass that nobody holds: its process died, and it goes on from its checkpoints."""
    for plan in _open(study):
        place = passes.folder_of(study.folder, plan.number)
        claim = claims.take(place / passes.LOCK)
        if claim is None:
            continue
        deaths = _attempts(place)
        if deaths < MOST_ATTEMPTS:
            if deaths:
                study.here.run.tell(
                    "search", f"pass {plan.number + 1} was left by a process that died; it goes on here"
                )
            return Work(plan, claim)
        storage.write_json(place / FAILED, {"attempts": deaths})
        claim.release()
        numbers = ", ".join(str(c.trial) for c in plan.candidates)
        study.here.run.tell(
            "search", f"pass {plan.number + 1} ended {deaths} processes and is left alone: trials {numbers} failed"
        )
        settle(study)
    return None


def _attempts(place: Path) -> int:
    return int(storage.read_json(place / ATTEMPTS)["attempts"]) if (place / ATTEMPTS).exists() else 0


def _count_attempt(study: Study, plan: Pass, change: int) -> None:
    place = passes.folder_of(study.folder, plan.number)
    storage.write_json(place / ATTEMPTS, {"attempts": _attempts(place) + change})


def _begin(study: Study) -> Work | None:
    """A new pass, if the budgets of trials and steps leave room for one."""
    settings, plans = study.space.settings, passes.plans(study.folder)
    planned = sum(len(p.candidates) for p in plans if not _failed(study, p))
    count = min(settings.population, settings.trials - planned)
    if count <= 0:
        return None
    number = len(plans)
    like = Pass(number, next(space.corners(study.space)), (Candidate(0, "linear", 0),) * count)
    if settings.env_steps is not None:
        expected = sum(_expected(study, p) for p in (*_open(study), like))
        if spent(study).env_steps + expected > settings.env_steps:
            return None
    place = passes.folder_of(study.folder, number)
    claim = claims.take(place / passes.LOCK)
    assert claim is not None  # nobody else begins passes under the search's lock
    plan = _drawn(study, number, count)
    storage.write_json(place / passes.PLAN, plan)
    study.here.run.tell(
        "search", f"pass {number + 1}: {plan.method.words}; {len(plan.candidates)} candidates of {_range(plan)} bytes"
    )
    return Work(plan, claim)


def _range(plan: Pass) -> str:
    sizes = [c.size_bytes for c in plan.candidates]
    return f"{min(sizes):,} to {max(sizes):,}"


def _expected(study: Study, plan: Pass) -> int:
    settings = study.space.settings
    return passes.steps_expected(study.here, plan, settings.rungs, settings.keep)


def _drawn(study: Study, number: int, count: int) -> Pass:
    """The sampler's proposals: one method, and architectures for it. The first pass has the recipe's own method."""
    found = study.space
    fixed: Mapping[str, Any] = found.default() if number == 0 else {}
    method: space.Method | None = None
    refused: list[int] = []
    candidates: list[Candidate] = []
    while len(candidates) < count and len(refused) < TRIES:
        asked = study.book.ask(fixed)
        drawn = space.draw_method(found, asked)
        full = {c.spec for c in candidates if sum(c.spec == other.spec for other in candidates) >= SEEDS}
        within = {path: spec for path, spec in found.within(drawn).items() if spec not in full}
        if not within and candidates:  # the space is small, and every student of it is in the pass
            refused.append(asked.number)
            break
        spec = space.draw_student(within, found.students, found.settings.activations, asked)
        if spec is None or _slow(study, spec, drawn):
            refused.append(asked.number)
            continue
        method, fixed = drawn, space.answers(found, drawn)
        candidates.append(Candidate(asked.number, spec, dict(found.sizes(drawn).values())[spec]))
    if method is None:
        raise InputError(
            f"{TRIES} proposals in a row were over the budgets. Allow more with --max-bytes or --max-latency, or narrow the search with --students."
        )
    return Pass(number, method, tuple(candidates), tuple(refused))


def _slow(study: Study, spec: str, method: space.Method) -> bool:
    most = study.space.settings.max_latency
    if most is None:
        return False
    return _seconds(study.space, study.folder, spec, method) > most


def _seconds(found: Space, folder: Path, spec: str, method: space.Method) -> float:
    """Of one step, by all that a method changes of a student's shape: the frames it sees, the numbers it says."""
    shape = f"{spec}-h{method.history}-o{found.port(method).says}"
    return speed.seconds_of(folder, shape, lambda: found.blueprint(spec, method))


# ---------------------------------------------------------------- refusals


def _refuse_budgets(found: Space, here: Scene, folder: Path) -> None:
    settings, method = found.settings, next(space.corners(found))
    if settings.max_latency is not None:
        spec = min(found.sizes(method).values(), key=lambda pair: (pair[1], pair[0]))[0]
        taken = _seconds(found, folder, spec, method)
        if taken > settings.max_latency:
            raise InputError(
                f"no student of the search is as fast as {1e6 * settings.max_latency:g} us; the smallest, {spec}, takes {1e6 * taken:.3g} us here. Allow more with --max-latency."
            )
    if settings.env_steps is not None:
        _refuse_few_steps(found, "about", here.teacher_steps)


def refuse_before_play(found: Space) -> None:
    """The budgets that no teacher has to be played for, told before a folder is made."""
    if found.settings.max_latency is not None:
        speed.refuse_without_compiler()
    if found.settings.env_steps is not None:
        _refuse_few_steps(found, "at least", 1.0)


def _refuse_few_steps(found: Space, how: str, episode_steps: float) -> None:
    settings = found.settings
    members = min(settings.population, settings.trials)
    needed = passes.steps_of(found.recipe, members, episode_steps, settings.rungs, settings.keep)
    if settings.env_steps is not None and needed > settings.env_steps:
        raise InputError(
            f"env_steps = {settings.env_steps:,} is less than one pass takes, {how} {needed:,}. Allow that many, or make passes smaller with search.population, search.rungs or collect.steps."
        )


def _identity(found: Space) -> dict[str, Any]:
    """What must agree for a folder to be continued."""
    settings = {k: v for k, v in storage.plain(found.settings).items() if k not in STOP_RULES}
    plain: dict[str, Any] = storage.plain(
        {
            "recipe": found.recipe, "task": identity.of_task(found.task), "search": settings,
            "students": found.students, "losses": found.losses, "histories": found.histories,
        }
    )  # fmt: skip
    return plain


def _refuse_other(folder: Path, wanted: dict[str, Any]) -> None:
    changed = recipes.changed_keys(storage.read_table(folder / SEARCH), wanted)
    if changed:
        raise StorageError(
            f"{folder} holds another search: {', '.join(changed)} differ{'s' * (len(changed) == 1)}. Choose another --out, or the same settings to continue."
        )


def _refuse_foreign(folder: Path, kept_in: str) -> None:
    """Refuse a folder that holds other things than a search, before anything in it is touched."""
    ours = {LOCK, TEACHER, storage.PROBE, "latency", JOURNAL, Path(kept_in).name, f"{Path(kept_in).name}-journal"}
    if not folder.exists():
        return
    try:
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in ours and not storage.is_aside(p))
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}. Choose another --out.") from error
    if foreign and not (folder / SEARCH).exists():  # asked last: another process may be making it
        raise StorageError(
            f"{folder} is not empty and holds no search, but {printable(foreign[0])!r}. Choose another --out."
        )
