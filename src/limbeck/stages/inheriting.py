"""Students that begin as what another policy knows, and which of their numbers are trained then."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck import blueprints, imitation, objective, seeding, storage
from limbeck.contracts import Task, Teacher
from limbeck.errors import InputError, printable
from limbeck.imitation import Table
from limbeck.objective import Term
from limbeck.settings import ImitateSettings, Recipe
from limbeck.stages.scene import Scene
from limbeck.stages.views import port_of
from limbeck.students import adapters, inheritance, nested
from limbeck.students.family import Family, Rows, Trained
from limbeck.students.grammar import MemberSpec, parse
from limbeck.students.inheritance import Source
from limbeck.students.stack import Stack

TEACHER = "teacher"
STATES = 4096  # collected rows, at most, that importance and least squares are taken on
ORDER = 257  # ends the counter of a member's order of neurons


def trained(settings: ImitateSettings) -> Trained | None:
    """What the recipe trains of inherited students; None: everything."""
    if not settings.freeze and settings.adapt is None:
        return None
    return Trained(settings.freeze, _rank(settings.adapt))


def _rank(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"r[1-9][0-9]{0,3}", text):
        raise InputError(
            f"imitate.adapt = {printable(text)!r} is not understood. Allowed: r and a rank from 1 to 9999, such as r4."
        )
    return int(text[1:])


def refuse(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    """Raise InputError for students that cannot inherit, and for layers that cannot stay or be adapted."""
    settings, wanted = recipe.imitate, trained(recipe.imitate)
    if settings.inherit is None:
        if wanted is not None:
            key = "adapt" if settings.adapt is not None else "freeze"
            raise InputError(
                f"imitate.{key} keeps inherited weights, and nothing is inherited: random numbers would stay. "
                "Add imitate.inherit=teacher (or a policy.safetensors)."
            )
        return
    source, port = _source(settings.inherit, teacher), port_of(recipe, task, teacher)
    for architecture in dict.fromkeys(member.architecture for member in parse(recipe.students)):
        inheritance.check(source, architecture, port)
        stack = Stack(architecture, {task.name: port})
        if wanted is not None:
            held = adapters.held(stack, task.name, wanted.frozen)
            if wanted.rank:
                held = adapters.held(
                    adapters.adapted(stack, task.name, wanted.rank, wanted.frozen), task.name, wanted.frozen
                )
            if held is not None and not held.any():
                raise InputError(
                    f"imitate.freeze = {', '.join(wanted.frozen)}: nothing of student {architecture.spec!r} would be trained. "
                    f"Its layers are {', '.join(stack.names(task.name))}. Leave one out."
                )


def _source(inherit: str, teacher: Teacher) -> Source:
    if inherit == TEACHER:
        return inheritance.source_of(teacher.blueprint, "the teacher")
    path = Path(inherit)
    if not os.path.isfile(path):  # false, not an error, for names that no file system takes
        raise InputError(
            f"imitate.inherit: no file {printable(inherit)!r}. Allowed: teacher, or the policy.safetensors of a run's student."
        )
    return inheritance.source_of(blueprints.load(path)[0], printable(path.name))


def begin(here: Scene, family: Family, table: Table) -> None:
    """Before the first gradient step: every member takes its weights from the source, by what the collected states say.

    What was inherited is recorded, so that a first round that is played again begins with the same."""
    recipe = here.run.recipe
    inherit = recipe.imitate.inherit
    if inherit is None:
        return
    source = _source(inherit, here.teacher)
    which = torch.from_numpy(np.linspace(0, table.rows - 1, min(STATES, table.rows)).astype(np.int64))
    port, task = family.ports[here.task.name], here.task.name
    terms = objective.parse(recipe.imitate.loss, table.head)
    scale = _scale(terms, table) if source.head.kind == "q" else 1.0
    inputs = table.gather(which, pixels=False).reshape(len(which), -1).numpy()
    given = inheritance.material(source, port, family.normalisers[task], inputs, scale)
    for rows in family.stacks:
        for k, member in enumerate(rows.members):
            weights = _weights(here, rows, member, given)
            _refuse_short(source, rows, member, len(weights))
            rows.theta[k, : len(weights)] = torch.from_numpy(weights)
    measure = objective.measure(terms, table.head)

    def compute() -> dict[str, Any]:
        digest = here.teacher.info.sha256 if inherit == TEACHER else storage.sha256(Path(inherit))
        apart = {
            member.name: float(mean)
            for rows in family.stacks
            for member, mean in zip(
                rows.members, imitation.disagreements(rows, table, measure, which).mean(1), strict=True
            )
        }
        return {"inherit": inherit, "sha256": digest, measure.name: apart}

    record = here.run.record("inherit", compute)
    if inherit != TEACHER and record["sha256"] != storage.sha256(Path(inherit)):
        raise InputError(
            f"imitate.inherit: {printable(inherit)!r} changed since this run began (SHA-256 {record['sha256']}). Put that file back."
        )
    apart = record[measure.name].values()
    here.run.tell(
        "inherit", f"{len(family.members)} members begin as {source.name}, {measure.name} {min(apart):.4f} to {max(apart):.4f} from the teacher"
    )  # fmt: skip


def _refuse_short(source: Source, rows: Rows, member: MemberSpec, length: int) -> None:
    """A row of another length would be read in the wrong places."""
    nest = isinstance(rows.stack.weave, nested.Nest)  # its row is the whole network's, the losses' own included
    wanted = rows.theta.shape[1] if nest else rows.stack.parameters
    if length != wanted:
        raise InputError(
            f"imitate.inherit: {length:,} numbers were cut out of {source.name} for {member.name}, which has {wanted:,}. "
            "Allowed: as many hidden layers or fewer, as wide or narrower."
        )


def _scale(terms: Sequence[Term], table: Table) -> float:
    """What action values are multiplied by to be the rows of students of these terms."""
    tau = float(table.scalars["temperature"])
    return 1.0 / objective.unit(terms, tau, float(table.scalars.get("gap", tau)))


def _weights(here: Scene, rows: Rows, member: MemberSpec, given: inheritance.Material) -> Any:
    """The policy's numbers of one member: seed 0 takes the most important neurons, other seeds draw them."""
    architecture, weave, task = member.architecture, rows.stack.weave, here.task.name
    depth = len(architecture.widths)
    rng = seeding.generator(here.seed, "train", *nested.net_of(member).encode(), ORDER) if member.seed else None
    order = inheritance.orders(given, depth, rng)
    if isinstance(weave, nested.Nest):
        return inheritance.cut_nest(weave, task, given, order)
    stack = weave.stack if isinstance(weave, adapters.Adapters) else rows.stack
    return stack.pack(inheritance.cut(stack, task, given, order))
