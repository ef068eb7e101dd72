"""What all stages of a run share: the verified teacher on its task, and the counters of its rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.contracts import Evaluation, Mode, Task, Teacher
from limbeck.recordings import Recordings
from limbeck.reporting.reading import build
from limbeck.runs import Run
from limbeck.stages.opening import records_of
from limbeck.tasks import RecordedTask
from limbeck.teachers import verification
from limbeck.teachers.demonstrations import DemonstratedPolicy


@dataclass(frozen=True)
class Scene:
    """What all stages of a run share."""

    run: Run
    task: Task
    teacher: Teacher
    mode: Mode  # the teacher's better mode
    teacher_mean: float
    random_mean: float
    teacher_steps: float  # mean episode length
    evaluations: Mapping[str, Evaluation]
    records: Recordings | None = None  # what is imitated on instead of play

    @property
    def seed(self) -> int:
        return self.run.recipe.seed

    def retention(self, mean_return: float) -> float:
        """(mean - random) / (teacher - random), the estimate used for choosing, never for claims."""
        return (mean_return - self.random_mean) / max(self.teacher_mean - self.random_mean, 1e-9)


def verify(run: Run, task: Task, teacher: Teacher) -> Scene:
    """Play the teacher in both modes and at random; stop with a diagnosis if it is not what it should be.

    Recordings cannot play: as a teacher they are worth the returns they hold."""
    records = records_of(run.recipe, task, teacher)
    held = teacher.policy.records if isinstance(teacher.policy, DemonstratedPolicy) else None

    def compute() -> dict[str, Any]:
        if held is not None and not isinstance(task, RecordedTask):
            found = verification.of_recordings(held, task, run.recipe.verify, run.recipe.seed)
        else:
            run.tell("verify", f"playing the teacher on {task.name}")
            stated = verification.stated_return(teacher.info) if not isinstance(task, RecordedTask) else None
            found = verification.verify(teacher, task, run.recipe.verify, run.recipe.seed, stated)
        return {"evaluations": found.evaluations, "mode": found.mode, "notes": found.notes}

    record = run.record("verify", compute)
    evaluations = {key: build(Evaluation, value, key) for key, value in record["evaluations"].items()}
    for key, e in evaluations.items():
        who = "random play" if key == "random" else f"teacher, {key}"
        run.tell("verify", f"{who}: return {e.mean:.4g} [{e.low:.4g}, {e.high:.4g}] over {e.episodes} episodes")
    for note in record["notes"]:
        run.tell("verify", note)
    best = evaluations[record["mode"]]
    return Scene(
        run,
        task,
        teacher,
        record["mode"],
        best.mean,
        evaluations["random"].mean,
        best.env_steps / best.episodes,
        evaluations,
        records,
    )


@dataclass
class Progress:
    """Counters that travel in the checkpoint."""

    round: int = 0  # rounds finished
    rounds: int = 0  # rounds in all; 0 while a time limit has not become a number yet
    temperature: float = 1.0
    gap: float = 1.0  # mean spread of the action values that losses were given, over the rows so far
    collection_steps: int = 0
    teacher_queries: int = 0
    gradient_steps: int = 0  # times members trained
    critic_fits: int = 0  # times the critic's members
    race_steps: int = 0
    seconds: float = 0.0
    driver: str = ""  # what collect.driver=auto decided
    fresh: dict[str, list[float]] = field(default_factory=dict)  # member -> loss on each round's new student states
    taught: dict[str, list[float]] = field(default_factory=dict)  # member -> loss on the teacher's states, with auto
    best: dict[str, int] = field(default_factory=dict)  # member -> its best validated round
    stopped: str = ""  # why the remaining rounds were skipped
