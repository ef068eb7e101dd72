"""What a search looks through: architectures as paths of small choices, and methods of imitation.

Bytes are exact arithmetic on the frozen student, so every architecture of the space is weighed before anything is
trained, and the sampler is only ever offered what still leads to one within the budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from limbeck import blueprints, losses, spaces
from limbeck.contracts import Blueprint, Task, Teacher
from limbeck.errors import InputError, printable, unknown
from limbeck.scale.paths import FAMILIES, Route, paths
from limbeck.settings import ExportSettings, Recipe, SearchSettings
from limbeck.spaces import Image
from limbeck.stages import refusals
from limbeck.stages.views import port_of, student_view
from limbeck.students.grammar import parse
from limbeck.students.stack import Port, Stack
from limbeck.tasks import RecordedTask

USUAL = (
    "kl",
    "kl_reverse",
    "nll",
    "q_kl",
    "q_huber",
    "executed_huber",
    "gaussian_kl",
    "gaussian_nll",
)  # as far as they
# fit the teacher: they need nothing but its rows, so no pass pays for more than play
Driver = Literal["student", "teacher", "beta", "trb"]
Sizes = dict[Route, tuple[str, int]]  # path of choices -> spec, bytes


class Draw(Protocol):
    """Whoever answers the choices: a trial of the study."""

    def choice(self, name: str, options: Sequence[str]) -> str: ...
    def whole(self, name: str, low: int, high: int) -> int: ...
    def real(self, name: str, low: float, high: float) -> float: ...


@dataclass(frozen=True)
class Method:
    """How a pass imitates."""

    loss: str
    driver: Driver
    learning_rate: float
    polish: bool
    history: int

    @property
    def words(self) -> str:
        polish = ", polish" if self.polish else ""
        frames = f", history {self.history}" if self.history > 1 else ""
        return f"{self.loss}, {self.driver} drives, rate {self.learning_rate:.2g}{polish}{frames}"


@dataclass(frozen=True)
class Space:
    """The whole search space on one task."""

    recipe: Recipe
    task: Task
    teacher: Teacher
    settings: SearchSettings
    losses: tuple[str, ...]
    histories: tuple[int, ...]
    students: tuple[str, ...]  # families and exact students
    drivers: Mapping[str, tuple[Driver, ...]] = field(default_factory=dict)  # by loss: those that a run accepts with it
    left_out: tuple[str, ...] = ()  # what a run refuses, and why, in words
    known: dict[tuple[int, str], Sizes] = field(default_factory=dict, repr=False, compare=False)
    why: dict[str, str] = field(default_factory=dict, repr=False, compare=False)  # student or family -> first refusal

    @property
    def _image(self) -> Image | None:
        """The picture that students see, where they see one."""
        space, agents = self.task.spec.observation_space, self.task.spec.agents
        view = student_view(self.recipe, self.task, self.teacher)
        return spaces.image_of(space, view, agents) if spaces.has_image(space, view, agents) else None

    def port(self, method: Method) -> Port:
        """What the task feeds a method's students and expects of them."""
        return port_of(self.recipe_for(method), self.task, self.teacher)

    def blueprint(self, spec: str, method: Method) -> Blueprint:
        """The frozen student before training: its size and speed are those of the trained one."""
        return _blueprint(self.task, self.port(method), spec)

    def recipe_for(self, method: Method) -> Recipe:
        """The recipe with a method put in; the final learning rate keeps its share of the first."""
        imitate, share = self.recipe.imitate, method.learning_rate / self.recipe.imitate.learning_rate
        return replace(
            self.recipe, history=method.history, collect=replace(self.recipe.collect, driver=method.driver),
            imitate=replace(imitate, loss=method.loss, learning_rate=method.learning_rate,
                            final_learning_rate=imitate.final_learning_rate * share),
            polish=replace(self.recipe.polish, enabled=method.polish),
        )  # fmt: skip

    def run_for(self, method: Method, students: Sequence[str], rounds: int) -> Recipe:
        """The run that one rung is: the search drops candidates between rungs, no race within one."""
        recipe = self.recipe_for(method)
        return replace(recipe, students=tuple(students), imitate=replace(recipe.imitate, rounds=rounds),
                       race=replace(recipe.race, rounds=()))  # fmt: skip

    def driver_choice(self, loss: str) -> tuple[str, tuple[Driver, ...]]:
        """Name and values of the choice of a driver: a sampler's lists may not change, so a shorter one has its own name."""
        served = self.drivers[loss]
        return ("driver" if served == self.settings.drivers else f"driver.{loss}"), served

    def within(self, method: Method) -> dict[Route, str]:
        """Every architecture within the budget of bytes: its path of choices and its spec."""
        sizes = self.sizes(method)
        most = self.settings.max_bytes
        return {path: spec for path, (spec, size) in sizes.items() if most is None or size <= most}

    def sizes(self, method: Method) -> Sizes:
        """Every architecture that a run of this method would accept, with its bytes."""
        key = (method.history, method.loss)  # all of a method that architectures depend on
        if key not in self.known:
            found, port = {}, self.port(method)
            for path, spec in paths(self.students, self.settings, self._image):
                refused = self._refusal(method, spec)
                if refused:
                    self.why.setdefault(str(path[0][1]), refused)
                else:
                    found[path] = (spec, blueprints.stored_bytes(_blueprint(self.task, port, spec)))
            self.known[key] = found
        return self.known[key]

    def _refusal(self, method: Method, spec: str) -> str:
        """Why a run of this student alone is refused, whoever drives; "" if some driver does.

        Recordings are the method's affair: reading them once for each of a thousand architectures takes minutes."""
        first = ""
        for driver in self.settings.drivers:
            recipe = self.run_for(replace(method, driver=driver), (spec,), self.settings.rungs[-1])
            recipe = replace(recipe, data=None if recipe.env is not None else recipe.data, export=ExportSettings(()))
            try:
                refusals.refuse(recipe, self.task, self.teacher)
                return ""
            except InputError as error:
                first = first or str(error)
        return first

    def default(self) -> dict[str, str | float]:
        """The recipe's own method as answers to `method`, as far as the space holds it."""
        recipe, loss = self.recipe, own_loss(self.recipe, self.teacher)
        low, high = self.settings.learning_rates
        driver, served = self.driver_choice(loss if loss in self.losses else self.losses[0])
        wanted: dict[str, tuple[str, bool]] = {
            "loss": (loss, loss in self.losses),
            driver: (recipe.collect.driver, recipe.collect.driver in served),
            "polish": (_yes(recipe.polish.enabled), recipe.polish.enabled in self.settings.polish),
            "history": (str(recipe.history), recipe.history in self.histories),
        }
        found: dict[str, str | float] = {name: value for name, (value, there) in wanted.items() if there}
        rate = recipe.imitate.learning_rate
        return {**found, "learning_rate": rate} if low <= rate <= high else found


def space_of(recipe: Recipe, task: Task, teacher: Teacher, settings: SearchSettings) -> Space:
    """The space that the settings span here; refuses what this task or teacher cannot serve, and budgets nothing fits."""
    _refuse_company(recipe)
    chosen = settings.drivers if settings.drivers != SearchSettings().drivers else ()
    if isinstance(task, RecordedTask):
        settings, chosen = replace(settings, polish=(False,), drivers=("teacher",)), ()  # nobody plays
    remembers = bool(teacher.policy.initial_state(1))
    histories = settings.histories or tuple(
        dict.fromkeys((recipe.history, *[4] * (remembers and task.spec.agents == 1)))
    )
    image = spaces.has_image(task.spec.observation_space, student_view(recipe, task, teacher), task.spec.agents)
    usual = ("cnn:*",) if image else ("linear", "mlp:*")
    students = settings.students or (*usual, *["gru:*"] * (remembers and task.spec.agents == 1))
    for activation in settings.activations:
        parse([f"mlp:2:{activation}"])  # refused by its own name, not by the first loss that is tried with it
    for student in students:
        if "*" in student and student not in FAMILIES:
            raise unknown("family of students", student, FAMILIES)
        if student not in FAMILIES and len(parse([student])) != 1:
            raise InputError(
                f"student {printable(student)!r} stands for several. Allowed: {', '.join(FAMILIES)}, or one student such as mlp:8x8."
            )
        if student not in FAMILIES and parse([student])[0].architecture.grown:
            raise InputError(
                f"student {printable(student)!r} is grown from collected rows: its bytes are not known before, and a pass is gradient steps. "
                f"Allowed in a search: {', '.join(FAMILIES)}, or exact students of these kinds; limbeck distill compares trees and rules of several sizes."
            )
        if student == "cnn:*" and not image:
            raise InputError(
                f"cnn:* needs an image, which the students of {task.name} do not see. Allowed here: linear, mlp:*, gru:*."
            )
    named = _losses(recipe, teacher, settings)
    found = _served(Space(recipe, task, teacher, settings, named, histories, students), chosen)
    _refuse_impossible(found)
    return found


def _refuse_company(recipe: Recipe) -> None:
    """What a student learns from others beside it would make a candidate's return its company's."""
    given = [name for name in ("assistant", "population") if getattr(recipe.imitate, name)]
    if given:
        raise InputError(
            f"imitate.{given[0]} lets a family's members learn from each other, and each pass of a search draws other members: a candidate's "
            "return would depend on its company. Drop it here, and use it in limbeck distill with the students that were found."
        )


def _served(space: Space, chosen: Sequence[str]) -> Space:
    """The space without what a run refuses: methods at each of their rungs, families without a single student.

    What was asked for by name (`chosen` drivers, losses, students, the recipe's own loss) is refused instead."""
    drivers: dict[str, tuple[Driver, ...]] = {}
    refused: dict[tuple[str, str], str] = {}
    for loss in space.losses:
        found = {driver: _method_refusal(space, loss, driver) for driver in space.settings.drivers}
        drivers[loss] = tuple(driver for driver, why in found.items() if not why)
        refused |= {(loss, driver): why for driver, why in found.items() if why}
    for loss in space.losses if space.settings.losses else space.losses[:1]:  # the first one is the recipe's own
        if not drivers[loss]:
            raise InputError(f"loss {printable(loss)!r} cannot be searched: {refused[loss, space.settings.drivers[0]]}")
    for driver in chosen:
        if not any(driver in served for served in drivers.values()):
            raise InputError(f"driver {driver} cannot be searched: {refused[space.losses[0], driver]}")
    begun = {path[0][1] for (_, loss), sizes in space.known.items() if drivers[loss] for path in sizes}
    for student in space.settings.students:
        if student not in begun:
            raise InputError(f"student {printable(student)!r} cannot be searched: {space.why[student]}")
    alike: dict[tuple[str, str], list[str]] = {}
    for (loss, driver), why in refused.items():
        alike.setdefault((driver, why), []).append(loss)
    lines = [f"{', '.join(names)} with {driver} driving: {why}" for (driver, why), names in alike.items()]
    lines += [f"{student}: {space.why[student]}" for student in space.students if student not in begun]
    return replace(
        space, losses=tuple(loss for loss in space.losses if drivers[loss]), drivers=drivers, left_out=tuple(lines),
        students=tuple(student for student in space.students if student in begun),
    )  # fmt: skip


def _method_refusal(space: Space, loss: str, driver: Driver) -> str:
    """Why a run with this loss and driver is refused at some rung; "" if it never is."""
    for history in space.histories:
        method = Method(loss, driver, space.recipe.imitate.learning_rate, False, history)
        try:
            sizes = space.sizes(method)
            if not sizes:
                return next(iter(space.why.values()))
            for rounds in space.settings.rungs:
                run = space.run_for(method, (next(iter(sizes.values()))[0],), rounds)
                refusals.refuse(run, space.task, space.teacher)
        except InputError as error:
            return str(error)
    return ""


def _losses(recipe: Recipe, teacher: Teacher, settings: SearchSettings) -> tuple[str, ...]:
    """The losses asked for; or the recipe's, and those that fit the teacher and need nothing beyond its rows."""
    head = teacher.policy.head
    if settings.losses:
        return tuple(losses.choose("auto", head) if loss == "auto" else loss for loss in dict.fromkeys(settings.losses))
    first = own_loss(recipe, teacher)
    plain = [name for name in USUAL if name in losses.fitting(head)]
    annealed = ["anneal"] if head.kind == "q" else []
    return tuple(dict.fromkeys((first, *plain, *annealed)))


def own_loss(recipe: Recipe, teacher: Teacher) -> str:
    """The recipe's loss, "auto" by its name."""
    loss = recipe.imitate.loss
    return losses.choose(loss, teacher.policy.head) if loss == "auto" else loss


def _refuse_impossible(space: Space) -> None:
    """A budget of bytes that no architecture keeps, saying the smallest there is."""
    sizes = [pair for method in corners(space) for pair in space.sizes(method).values()]
    spec, smallest = min(sizes, key=lambda pair: (pair[1], pair[0]))
    most = space.settings.max_bytes
    if most is not None and smallest > most:
        raise InputError(
            f"no student of the search fits into {most:,} bytes; the smallest, {spec}, has {smallest:,}. "
            f"Allow {smallest:,} bytes or more, or other students with --students."
        )


def corners(space: Space) -> Iterator[Method]:
    """One method for each thing that decides a student's size: frames seen, and what the loss trains of the head."""
    for history, loss in itertools.product(space.histories, space.losses):
        yield Method(loss, space.drivers[loss][0], space.recipe.imitate.learning_rate, False, history)


# ---------------------------------------------------------------- drawing


def draw_method(space: Space, draw: Draw) -> Method:
    """A method, choice by choice."""
    low, high = space.settings.learning_rates
    loss = draw.choice("loss", space.losses)
    name, served = space.driver_choice(loss)
    drivers: dict[str, Driver] = {driver: driver for driver in served}
    return Method(
        loss,
        drivers[draw.choice(name, list(drivers))],
        draw.real("learning_rate", low, high),
        draw.choice("polish", [_yes(value) for value in space.settings.polish]) == "yes",
        int(draw.choice("history", [str(n) for n in space.histories])),
    )


def answers(space: Space, method: Method) -> dict[str, str | float]:
    """What `draw_method` has to be answered to draw this method again."""
    return {"loss": method.loss, space.driver_choice(method.loss)[0]: method.driver, "learning_rate": method.learning_rate,
            "polish": _yes(method.polish), "history": str(method.history)}  # fmt: skip


def draw_student(
    within: Mapping[Route, str], students: Sequence[str], activations: Sequence[str], draw: Draw
) -> str | None:
    """A spec within the budget, choice by choice; None where the answers lead to none (a family that does not fit at all).

    Numbers are drawn between the least and the most that still lead to a student; names always from the whole list,
    because a sampler's lists may not change.
    """
    lists = {"student": students, "activation": activations}
    open_paths, depth = dict(within), 0
    while open_paths:
        done = [spec for path, spec in open_paths.items() if len(path) == depth]
        if done:
            return done[0]
        name = next(iter(open_paths))[depth][0]
        values = [path[depth][1] for path in open_paths]
        if isinstance(values[0], str):
            taken: int | str = draw.choice(name, lists[name])
        else:
            numbers = [value for value in values if isinstance(value, int)]
            taken = draw.whole(name, min(numbers), max(numbers))
        open_paths = {path: spec for path, spec in open_paths.items() if path[depth] == (name, taken)}
        depth += 1
    return None


def _blueprint(task: Task, port: Port, spec: str) -> Blueprint:
    stack = Stack(parse([spec])[0].architecture, {task.name: port})
    return blueprints.fold(stack.freeze(np.zeros(stack.parameters, np.float32), task.name, None, "candidate"))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
