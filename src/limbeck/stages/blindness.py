"""What the students of a run cannot know of their teacher: measured on the run's own data, said where it matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from limbeck import proof
from limbeck.dataset import open_dataset
from limbeck.proof import Blindness
from limbeck.reporting.reading import build
from limbeck.stages.choosing import Chosen
from limbeck.stages.scene import Scene
from limbeck.stages.views import student_view, teacher_view


def measured(here: Scene, chosen: Sequence[Chosen]) -> dict[str, Blindness]:
    """By kind of student, "recurrent" or "memoryless" (its history apart): what its view lets it know.

    Costs nothing where the student sees all that the teacher sees, else some seconds, once per run.
    """
    kinds = {"recurrent" if one.member.architecture.recurrent else "memoryless" for one in chosen}
    found = {}
    for kind in sorted(kinds):

        def compute(kind: str = kind) -> dict[str, object]:
            return {"blindness": asdict(_measure(here, kind == "recurrent"))}

        record = here.run.record(f"blindness-{kind}", compute)
        found[kind] = build(Blindness, record["blindness"], "blindness")
    return found


def _measure(here: Scene, recurrent: bool) -> Blindness:
    spec, teacher = here.task.spec, here.teacher
    if spec.agents > 1:
        return Blindness(reason="not measured: a team")
    sees = teacher_view(here.run.recipe, teacher)
    return proof.blindness_of(
        open_dataset(here.run.folder / "dataset", here.task.name), spec, teacher.policy.head,
        student_view(here.run.recipe, here.task, teacher), sees, student_remembers=recurrent,
        teacher_remembers=bool(teacher.policy.initial_state(1)), run_seed=here.seed,
    )  # fmt: skip


def notes(here: Scene, chosen: Sequence[Chosen]) -> tuple[str, ...]:
    """The gaps that were found, in words, each told as well."""
    said = []
    for kind, found in measured(here, chosen).items():
        if found.reason.startswith("not measured"):
            here.run.tell("report", f"what {kind} students cannot know was {found.reason}")
        if text := proof.gap_in_words(found, kind == "recurrent"):
            here.run.tell("report", text)
            said.append(text)
    return tuple(said)
