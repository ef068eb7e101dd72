"""Chosen members made smaller step by step: pruned, factorised, quantised, each time fine-tuned on the stored rows.

`compress: [prune: 0.5, quantise: int4]` makes two new members of every one that can take both steps. Each inherits the
weights of the one before (`students.inheritance`), imitates the teacher as the family did, and is exported and proved like
any other; on return it is not polished. Gradient steps and plays are on the bill; a finished step leaves a checkpoint.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from limbeck import runs, storage
from limbeck.contracts import Floats, Task, Teacher
from limbeck.dataset import open_dataset
from limbeck.errors import InputError, nearest, printable
from limbeck.imitation import Table
from limbeck.runs import Run
from limbeck.settings import Recipe
from limbeck.stages import choosing, driving, finetuning, learn, rollouts
from limbeck.stages.choosing import Chosen
from limbeck.stages.scene import Progress, Scene
from limbeck.stages.views import port_of
from limbeck.students import family as families
from limbeck.students import inheritance
from limbeck.students.family import Family
from limbeck.students.grammar import (
    MAX_NAME,
    MIXED,
    PRECISIONS,
    WHOLE_ACTIVATIONS,
    WHOLE_KINDS,
    Architecture,
    MemberSpec,
    parse,
)
from limbeck.students.stack import Stack

STEPS = ("prune", "low_rank", "quantise")
EXAMPLE = "compress: [prune: 0.5, quantise: int4]"
NARROWING = ("int8", "mixed4", "int4", "mixed2", "int2", "ternary")  # widths of weights, from wide to narrow
STATES = 4096  # collected rows, at most, on which neurons are ranked and layers refitted


@dataclass(frozen=True)
class Step:
    """One step of compression."""

    kind: str  # one of STEPS
    share: float = 0.0  # of each hidden layer's neurons that prune takes away
    rank: int = 0
    width: str = ""

    @property
    def words(self) -> str:
        """As a recipe has it: "prune 0.5"."""
        return f"{self.kind} {self.width or self.rank or format(self.share, 'g')}"

    @property
    def suffix(self) -> str:
        """Of the new member's name."""
        return self.width or (f"r{self.rank}" if self.rank else f"prune{self.share:g}")

    def apply(self, architecture: Architecture) -> Architecture | str:
        """What becomes of an architecture, or why it cannot take the step."""
        if architecture.kind not in (*WHOLE_KINDS, "nested"):
            return f"it is no network: {architecture.kind}"
        plain = replace(architecture, kind="mlp", whole=()) if architecture.kind == "nested" else architecture
        if self.kind == "quantise":
            if architecture.activation not in WHOLE_ACTIVATIONS:
                return f"whole numbers have no {architecture.activation}, only {', '.join(WHOLE_ACTIVATIONS)}"
            if architecture.kind == "linear" and self.width in MIXED:
                return f"it is one layer, of which {self.width} would be int8"
            if architecture.precision == self.width:
                return f"its weights are {self.width} already"
            if architecture.precision and NARROWING.index(self.width) < NARROWING.index(architecture.precision):
                return f"its weights are {architecture.precision} already, which is narrower: {' > '.join(NARROWING)}"
            return replace(plain, precision=self.width)
        if plain.kind not in ("linear", "mlp"):
            return f"it is no dense network: {plain.kind}"
        if architecture.precision:
            return f"its weights are {architecture.precision} already: quantise is the last step"
        if not architecture.widths:
            return "it has no hidden layer"
        if architecture.rank:
            return "its layers are products already: prune comes before low_rank, which comes once"
        if self.kind == "low_rank":
            return replace(plain, rank=self.rank)
        widths = tuple(max(1, math.ceil(size * (1 - self.share) - 1e-9)) for size in architecture.widths)
        return replace(plain, widths=widths) if widths != architecture.widths else "no neuron goes at this share"


def steps_of(texts: Sequence[str]) -> tuple[Step, ...]:
    """The steps of a recipe's `compress`. Raises InputError for what is none.

    >>> [step.suffix for step in steps_of(["prune 0.5", "low_rank=8", "quantise int4"])]
    ['prune0.5', 'r8', 'int4']
    """
    return tuple(_step(text) for text in texts)


def _step(text: str) -> Step:
    kind, _, value = re.sub(r"\s*[ =:]\s*", " ", text.strip()).partition(" ")
    if kind not in STEPS:
        raise _bad(text, f"unknown step {printable(kind)!r}{nearest(kind, STEPS)}")
    if kind == "quantise":
        if value not in PRECISIONS:
            raise _bad(
                text, f"unknown width {printable(value)!r}{nearest(value, PRECISIONS)} Widths: {', '.join(PRECISIONS)}."
            )
        return Step(kind, width=value)
    if kind == "low_rank":
        if not re.fullmatch(r"[1-9][0-9]{0,3}", value):
            raise _bad(text, f"{printable(value)!r} is no rank from 1 to 9999.")
        return Step(kind, rank=int(value))
    share = float(value) if re.fullmatch(r"[0-9]*\.?[0-9]+", value) else -1.0
    if not 0.0 < share < 1.0:
        raise _bad(text, f"{printable(value)!r} is no share of the neurons above 0 and below 1.")
    return Step(kind, share=share)


def _bad(text: str, why: str) -> InputError:
    return InputError(f"compress: {printable(text)!r}: {why} Allowed: {', '.join(STEPS)}, such as {EXAMPLE}.")


# ---------------------------------------------------------------- refusals


def refuse(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    """Raise InputError for steps that no student can take, and members that there are not."""
    steps, port = steps_of(recipe.compress), port_of(recipe, task, teacher)
    if not steps:
        if recipe.compression.members:
            raise InputError(
                f"compression.members names members, and compress has no step. Give one, such as {EXAMPLE}."
            )
        return
    if rollouts.wanted(learn.terms_of(recipe, teacher.policy.head)):
        raise InputError(
            f"compress imitates on stored rows, and imitate.loss = {printable(recipe.imitate.loss)!r} needs the members' own play. "
            "Drop one of them."
        )
    members = parse(recipe.students)
    names = [member.name for member in members]
    for name in recipe.compression.members:
        if name not in names:
            raise InputError(
                f"compression.members: no member {printable(name)!r}{nearest(name, names)} Allowed: {', '.join(names)}."
            )
    found = {member.name: _refusal(member, steps, task, port) for member in members}
    for name in recipe.compression.members:
        if found[name]:
            raise InputError(
                f"compress: {name} cannot take {', '.join(recipe.compress)}: {found[name]}. Drop it, or the step."
            )
    if all(found.values()):
        raise InputError(
            f"compress: no student can take {', '.join(recipe.compress)}. {names[0]}: {found[names[0]]}. "
            f"Allowed: {', '.join(WHOLE_KINDS)} and nested students to quantise, which comes last; prune and low_rank need mlp "
            "or nested."
        )


def _refusal(member: MemberSpec, steps: Sequence[Step], task: Task, port: Any) -> str:
    """Why a member cannot take all steps; "" if it can."""
    architecture, name = member.architecture, member.name
    for step in steps:
        after = step.apply(architecture)
        if isinstance(after, str):
            return f"{step.words}: {after}"
        if step.kind != "quantise" and port.agents > 1:
            return f"{step.words}: one network serves {port.agents} agents"
        name = f"{name}-{step.suffix}"
        if len(name) > MAX_NAME:
            return f"{step.words}: its name would be longer than a folder's may be ({MAX_NAME})"
        try:
            Stack(after, {task.name: port})
        except InputError as error:
            why = str(error).split(". Allowed")[0].removeprefix(f"student {after.spec!r}: ")
            return f"{step.words}: {why.partition(', or use')[0].rstrip('.')}"  # another student is no step's remedy
        architecture = after
    return ""


# ---------------------------------------------------------------- the stage


@dataclass(frozen=True)
class _Line:
    """A member and what its weights are at this step."""

    one: Chosen
    stack: Stack
    row: Floats  # [P] of the policy


def compress(here: Scene, family: Family, chosen: Sequence[Chosen], done: Progress) -> tuple[list[Chosen], Progress]:
    """The chosen members and their compressed descendants, largest first, and the progress with what these cost."""
    recipe = here.run.recipe
    steps = steps_of(recipe.compress)
    if not steps:
        return list(chosen), done
    task, port = here.task, family.ports[here.task.name]
    lines: list[_Line] = []
    for one in chosen:
        name = one.member.name
        if recipe.compression.members and name not in recipe.compression.members:
            continue
        if why := _refusal(one.member, steps, task, port):
            here.run.tell("compress", f"{name} is left as it is: {why}")
            continue
        lines.append(_Line(one, family.stack_of(name), family.row(name)))
    compressed = {line.one.member.name for line in lines}
    for name in dict.fromkeys(recipe.compression.members):  # in the recipe's order
        if name not in compressed:
            here.run.tell("compress", f"{name} was not chosen, so it is not compressed")
    if not lines:
        return list(chosen), done
    table, done = _table(here, family, done)
    everyone = list(chosen)
    for number, step in enumerate(steps):
        lines, done = _one_step(here, family, lines, step, number, table, done)
        everyone += [line.one for line in lines]
    return choosing.by_size(everyone), done


def _table(here: Scene, family: Family, done: Progress) -> tuple[Table, Progress]:
    """All rows that the family learned from."""
    shards = sum(driving.plays(here, number) for number in range(done.round))
    data = open_dataset(here.run.folder / "dataset", here.task.name, shards)
    return learn.table_of(here, family, data, learn.terms_for(here), done, done.temperature)


def _one_step(
    here: Scene, family: Family, lines: Sequence[_Line], step: Step, number: int, table: Table, done: Progress
) -> tuple[list[_Line], Progress]:
    """The next member of every line: its weights inherited, fine-tuned, and scored where the others were."""
    run, task, settings = here.run, here.task.name, here.run.recipe.compression
    members = [_next(line.one.member, step) for line in lines]
    after = families.build(members, family.ports, here.seed, learn.owned_by(here))
    after.normalisers = dict(family.normalisers)
    stage = f"compress-{number}"

    def compute() -> dict[str, Any]:
        for line, member in zip(lines, members, strict=True):
            after.put(member.name, _inherited(line, after.stack_of(member.name), task, family, table))
        run.tell("compress", f"{step.words}: {len(members)} members, {settings.gradient_steps} gradient steps each")
        first, whole = done.round + number * finetuning.PARTS, step.kind == "quantise"
        losses = finetuning.tuned(here, after, table, first, whole=whole)
        rows = {member.name: after.row(member.name) for member in members}
        runs.save_checkpoint(run.folder, stage, 0, rows, {"step": step.words})
        scores, steps = choosing.scored(here, after, "select", 0, run.recipe.race.final_episodes)
        return {
            "losses": losses,
            "scores": scores,
            "race_steps": steps,
            "gradient_steps": settings.gradient_steps * len(members),
        }

    record = run.record(stage, compute)
    found = runs.load_checkpoint(run.folder, stage, run.tell)
    if found is None:  # the record stands, its checkpoint is damaged: the same again, and both on the bill
        record = _again(run, stage, record, compute)
        found = runs.load_checkpoint(run.folder, stage, run.tell)
    assert found is not None
    made = []
    for line, member in zip(lines, members, strict=True):
        row, score = np.array(found[1][member.name], np.float32), float(record["scores"][member.name])
        after.put(member.name, row)
        lineage = (*(line.one.lineage or (line.one.member.name,)), step.words)
        one = Chosen(member, after.blueprint(member.name, task), score, lineage=lineage)
        made.append(_Line(one, after.stack_of(member.name), row))
        run.tell(
            "compress", f"{member.name}: return {score:.4g}, about {100 * here.retention(score):.0f} % of the teacher"
        )
    return made, replace(
        done,
        gradient_steps=done.gradient_steps + int(record["gradient_steps"]),
        race_steps=done.race_steps + int(record["race_steps"]),
    )


def _again(run: Run, stage: str, record: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record of a step that is computed a second time: what both cost."""
    begin = time.perf_counter()
    made = {**compute(), "seconds": time.perf_counter() - begin}
    spent = {key: made[key] + record[key] for key in ("race_steps", "gradient_steps", "seconds")}
    value: dict[str, Any] = storage.plain({**made, **spent})
    storage.write_json(run.folder / "records" / f"{stage}.json", value)
    return value


def _next(member: MemberSpec, step: Step) -> MemberSpec:
    architecture = step.apply(member.architecture)
    assert isinstance(architecture, Architecture)
    return MemberSpec(f"{member.name}-{step.suffix}", architecture, member.seed)


def _inherited(line: _Line, stack: Stack, task: str, family: Family, table: Table) -> Floats:
    """[P] the next member's weights: the same ones under another width, else cut out of the member before."""
    before = line.stack
    if before.architecture.widths == stack.architecture.widths and before.architecture.rank == stack.architecture.rank:
        return stack.pack(before.unpack(line.row))
    port, normaliser = family.ports[task], family.normalisers[task]
    source = inheritance.source_of(
        before.freeze(line.row, task, normaliser, line.one.member.name), line.one.member.name
    )
    which = torch.from_numpy(np.linspace(0, table.rows - 1, min(STATES, table.rows)).astype(np.int64))
    inputs = table.gather(which, pixels=False).reshape(len(which), -1).numpy()
    given = inheritance.material(source, port, normaliser, inputs, 1.0)
    order = inheritance.orders(given, len(stack.architecture.widths), None)
    return stack.pack(inheritance.cut(stack, task, given, order))
