"""What the names inside a weights file say: one layout per file, and this folder is their registry.

A layout has `recognises(value)`, true for what its program saved and for nothing else, and
`draw(value, spec, given, name)`, which turns it into layers. `value` is what the file holds: names with arrays, alone
or in tables, lists and tuples of plain data.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from limbeck import blueprints, spaces
from limbeck.contracts import (
    Array,
    Blueprint,
    Head,
    HeadKind,
    Layer,
    Normaliser,
    Observation,
    PolicyOutput,
    Spec,
    State,
    Teacher,
    View,
    chain_problem,
)
from limbeck.errors import InputError, printable
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teachers import files, normaliser, stated
from limbeck.teachers.files import File, Given

MAX_NAMES, MAX_DEPTH = 10_000, 6


@dataclass(frozen=True)
class Drawn:
    """A network that was made out of a file, before it meets a task."""

    algorithm: str
    kind: HeadKind
    layers: tuple[Layer, ...]
    value_layers: tuple[Layer, ...] = ()
    view: View = View()
    normaliser: Normaliser | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    atoms: Array | None = None  # [N] returns that N logits per action spread over (C51); the layers end in A*N logits


class Layout(Protocol):
    """What a file of this folder provides."""

    def recognises(self, value: Any) -> bool: ...

    def draw(self, value: Any, spec: Spec | None, given: Given, name: str) -> Drawn:
        """The network. `spec` None: as far as that goes without a task. Raises InputError for what does not fit."""
        ...


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")


def of(value: Any) -> tuple[str, Layout] | None:
    """The layout that knows these names, None where none does."""
    for name in names():
        module = cast(Layout, importlib.import_module(f"{__name__}.{name}"))
        if module.recognises(value):
            return name, module
    return None


def activation(given: Given, assumed: str, where: str) -> tuple[str, str]:
    """(activation, note) of a file that names none: the user's word, else the program's own."""
    if given.architecture is not None:
        return given.architecture, f"the file names no activation: {given.architecture}, because --architecture says so"
    return (
        assumed,
        f"the file names no activation: {assumed} is assumed, as in {where}; --architecture tanh, elu ... names another",
    )


def state_dict(value: Any) -> dict[str, Array] | None:
    """The value if it is names with arrays, else None."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    ):
        return value
    return None


def flattened(value: Any, name: str) -> dict[str, Array]:
    """All arrays in tables, lists and tuples, under names joined by dots; an optimiser's own are left out."""
    found: dict[str, Array] = {}
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    opened: set[int] = set()  # a table may hold itself
    while todo:
        path, part, depth = todo.pop()
        if isinstance(part, np.ndarray) and path:
            found[path] = part
        elif isinstance(part, (dict, list, tuple)) and depth < MAX_DEPTH and id(part) not in opened:
            opened.add(id(part))
            pairs = list(part.items()) if isinstance(part, dict) else list(enumerate(part))
            kept = [(str(k), v) for k, v in pairs if isinstance(k, (str, int)) and "optim" not in str(k).lower()]
            todo += [(f"{path}.{k}" if path else k, v, depth + 1) for k, v in reversed(kept)]
        if len(found) + len(todo) > MAX_NAMES:
            raise InputError(f"{printable(name)} holds more than {MAX_NAMES} entries. Save the policy's weights alone.")
    return found


# ---------------------------------------------------------------- meeting the task


def teacher(drawn: Drawn, file: File, given: Given, format_: str) -> Teacher:
    """The network as a policy that acts in the task."""
    spec = given.needs_spec(file)
    drawn = _with_statistics(drawn, spec, given)
    head = spaces.head_for(spec.action_space, drawn.kind)
    about = files.info(file, format_, drawn.algorithm, dict(drawn.facts), (), drawn.notes)
    blueprint = Blueprint(
        spec, head, drawn.layers, drawn.view, drawn.normaliser, drawn.value_layers, Path(file.name).stem
    )
    if drawn.atoms is not None:
        return Teacher(ExpectedValues(blueprint, drawn.atoms), replace(about, stated={**shape(drawn), **about.stated}))
    try:
        blueprints.check(blueprint)
    except InputError as error:
        raise stated.differ([str(error).split(": ")[0]], spec) from error
    return files.rebuilt(blueprint, about)


def _with_statistics(drawn: Drawn, spec: Spec, given: Given) -> Drawn:
    """With the normaliser that the user gave beside the file."""
    if given.normaliser is None:
        return drawn
    if drawn.normaliser is not None:
        raise InputError("--normaliser was given, but the teacher has its normaliser inside. Drop --normaliser.")
    beside = files.read(Path(given.normaliser))
    found = normaliser.read(beside.content, beside.name, spec.observation_space, drawn.view)
    if found.gain is not None and (found.gain != 1).any():
        raise InputError(
            f"{printable(beside.name)} normalises a part of the observation only. Allowed here: statistics of all that the teacher sees."
        )
    used = (f"observations are normalised by {printable(beside.name)}",) if found.normaliser is not None else ()
    kept = tuple(note for note in drawn.notes if "--normaliser" not in note)
    return replace(drawn, normaliser=found.normaliser, notes=(*kept, *found.notes, *used))


def shape(drawn: Drawn) -> dict[str, Any]:
    """What a reader wants to know of a network that has met no task yet."""
    nowhere = Blueprint(Spec(_NOWHERE, _NOWHERE), spaces.head_for(_NOWHERE), drawn.layers, View(), drawn.normaliser)
    return {**files.shape_facts(nowhere), "head": drawn.kind, "memory": any(hasattr(x, "memory") for x in drawn.layers)}


_NOWHERE = spaces.from_json({"type": "Box", "shape": [1], "dtype": "float32", "low": -1.0, "high": 1.0})


class ExpectedValues:
    """A distributional Q-network: A rows of N logits, each a distribution over the same N returns (C51,
    arXiv:1707.06887). What it says are the expected returns [B, A]."""

    def __init__(self, blueprint: Blueprint, atoms: Array, captured: Sequence[str] = ()) -> None:
        self._logits = NumpyPolicy(blueprint, captured)
        if not blueprint.layers or blueprint.layers[-1].outputs != blueprint.head.width * atoms.size:
            raise stated.differ([f"{blueprint.layers[-1].outputs} logits over {atoms.size} returns"], blueprint.spec)
        if problem := chain_problem(
            blueprint.layers, spaces.flat_size(blueprint.spec.observation_space, blueprint.view), None
        ):
            raise stated.differ([problem], blueprint.spec)
        self._atoms = atoms.astype(np.float32)

    def capturing(self, layers: Sequence[str]) -> ExpectedValues:
        """The same, which shows these layers of its network."""
        return ExpectedValues(self.network, self._atoms, layers)

    @property
    def network(self) -> Blueprint:
        """What computes the logits of the distributions."""
        return self._logits.blueprint

    @property
    def spec(self) -> Spec:
        return self._logits.spec

    @property
    def head(self) -> Head:
        return self._logits.head

    def initial_state(self, batch: int) -> State:
        return self._logits.initial_state(batch)

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        said = self._logits(obs, state, first)
        logits = said.params.reshape(len(said.params), -1, self._atoms.size)
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        expected = (weights @ self._atoms) / weights.sum(axis=2)
        return PolicyOutput(expected.astype(np.float32), said.state, said.value, features=said.features)
