"""Keras models: `.keras` (a zip of config.json and model.weights.h5) and the older `.h5`.

Keras itself is never called and never imported: the configuration is read as plain JSON against a list of layers, the
weights by h5py under checks of our own. What is code (Lambda, a layer of someone's package) is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from limbeck.contracts import Array, Dense, HeadKind, Layer, Spec, Teacher, TeacherInfo, View, head_kind
from limbeck.errors import InputError, printable
from limbeck.hdf5 import MAGIC
from limbeck.spaces import flat_size
from limbeck.teachers import fitting, keras_config, keras_layers, keras_store, layouts
from limbeck.teachers.archive import Archive
from limbeck.teachers.files import File, Given, info
from limbeck.teachers.keras_config import Entry, Model
from limbeck.teachers.keras_flow import Flow, Variables
from limbeck.teachers.layouts import Drawn

SUFFIXES = (".keras", ".h5", ".hdf5")
MAX_CONFIG = 16 * 2**20


def recognises(file: File) -> bool:
    if file.archive is not None:
        return keras_layers.is_keras(file.archive)
    return file.content.startswith(MAGIC)


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "architecture", "trust")
    spec = given.needs_spec(file)
    with _opened(file) as (model, variables):
        drawn = _drawn(model, variables, spec, given, file.name)
    return layouts.teacher(drawn, file, given, "keras")


def inspect(file: File) -> TeacherInfo:
    with _opened(file) as (model, variables):
        drawn = _drawn(model, variables, None, Given(), file.name)
    return info(file, "keras", drawn.algorithm, {**layouts.shape(drawn), **drawn.facts}, (), drawn.notes)


# ---------------------------------------------------------------- the two containers


@contextmanager
def _opened(file: File) -> Iterator[tuple[Model, Variables]]:
    """The model that the file states, and where its numbers are."""
    if file.archive is not None:
        model = keras_config.parse(_member(file.archive, keras_layers.CONFIG), file.name)
        content = file.archive.read(keras_layers.WEIGHTS)
        with keras_store.opened(content, f"{file.name}: {keras_layers.WEIGHTS}") as store:
            yield model, _Numbered(store, file.name)
        return
    with keras_store.opened(file.content, file.name) as store:
        config = store.text("model_config")
        if config is None:
            raise InputError(
                f"{printable(file.name)} holds weights without a configuration. Save the whole model with model.save('x.keras')."
            )
        yield keras_config.parse(config, file.name), _Named(store, file.name)


def _member(archive: Archive, member: str) -> bytes:
    if archive.size(member) > MAX_CONFIG:
        raise archive.refused(f"member {member!r} unpacks to {archive.size(member):,} bytes")
    return archive.read(member)


class _Numbered:
    """model.weights.h5: variables by number, in folders by class."""

    def __init__(self, store: keras_store.Store, name: str) -> None:
        self._store, self._name = store, name

    def read(self, entry: Entry, wanted: Mapping[str, tuple[int, ...]], inner: str = "") -> dict[str, Array]:
        for root in ("layers", "_layer_checkpoint_dependencies"):  # the second one until Keras 2.12
            folder = "/".join(part for part in (root, entry.folder, inner, "vars") if part)
            held = [path for path in self._store.paths if path.startswith(f"{folder}/")]
            if held:
                break
        if len(held) != len(wanted):
            raise InputError(
                f"{printable(self._name)}: layer {printable(entry.name, 60)!r} ({entry.kind}) has {len(held)} variables, its configuration needs {len(wanted)}. Save the model again."
            )
        return {key: self._store.read(f"{folder}/{i}", shape) for i, (key, shape) in enumerate(wanted.items())}


class _Named:
    """The older .h5: variables by name, in folders by layer."""

    def __init__(self, store: keras_store.Store, name: str) -> None:
        self._store, self._name = store, name

    def read(self, entry: Entry, wanted: Mapping[str, tuple[int, ...]], inner: str = "") -> dict[str, Array]:
        folder = f"model_weights/{entry.name}/"
        found: dict[str, str] = {}
        for path in self._store.paths:
            if path.startswith(folder):
                found.setdefault(path.rsplit("/", 1)[1].removesuffix(":0"), path)
        if set(found) != set(wanted):
            raise InputError(
                f"{printable(self._name)}: layer {printable(entry.name, 60)!r} ({entry.kind}) has the variables {printable(sorted(found), 100)}, its configuration needs {sorted(wanted)}. Save the model again."
            )
        return {key: self._store.read(found[key], shape) for key, shape in wanted.items()}


# ---------------------------------------------------------------- the network


def _drawn(model: Model, variables: Variables, spec: Spec | None, given: Given, name: str) -> Drawn:
    sight, shape, sequence = _sight(model, spec, given, name)
    policy = _flow(variables, name, shape, sight, sequence, model)
    layers = keras_layers.build(policy, model.chains[0])
    kind, layers, notes = _head(policy, layers, spec, given, name)
    values: tuple[Layer, ...] = ()
    if len(model.chains) == 2:
        critic = _flow(variables, name, shape, sight, sequence, model)
        values = keras_layers.build(critic, model.chains[1])
        if critic.shape != (1,) or (critic.normaliser is not policy.normaliser and not _same(critic, policy)):
            raise InputError(
                f"{printable(name)}: its second output gives {critic.shape}, a value is one number. Save a model of the policy alone."
            )
        notes = (*notes, "its first output is the policy, its second the value")
    facts = {"model": model.name, "input_shape": list(shape)}
    return Drawn(
        f"Keras {model.kind}", kind, layers, values, sight.view, policy.normaliser, (*sight.notes, *notes), facts
    )


def _same(left: Flow, right: Flow) -> bool:
    a, b = left.normaliser, right.normaliser
    return a is not None and b is not None and bool((a.mean == b.mean).all() and (a.scale == b.scale).all())


def _flow(
    variables: Variables, name: str, shape: tuple[int, ...], sight: fitting.Sight, sequence: bool, model: Model
) -> Flow:
    stateful = sequence and model.input_shape[0] == 1
    ends = np.cumsum([n or 0 for n, *_ in model.inputs.values()])
    spans = {
        key: (int(end) - int(size[0] or 0), int(end))
        for (key, size), end in zip(model.inputs.items(), ends, strict=True)
    }
    return Flow(name, variables, shape, sight.layout, sequence, stateful, spans=spans if len(spans) > 1 else {})


def _sight(model: Model, spec: Spec | None, given: Given, name: str) -> tuple[fitting.Sight, tuple[int, ...], bool]:
    """How the observation lies, the shape that flows in, and whether it is a sequence of observations."""
    shape = model.input_shape
    if len(model.inputs) > 1:
        return _entries(model, spec, given, name), (shape[0] or 0,), False
    recurrent = any(isinstance(link, Entry) and link.kind in ("GRU", "LSTM") for link in model.chains[0])
    last = shape[-1]
    assert last is not None
    if len(shape) == 2 and recurrent:
        if shape[0] not in (None, 1):
            raise InputError(
                f"{printable(name)}: its memory sees windows of {shape[0]} observations and starts afresh with each. Allowed: input (None, {last}), or stateful=True with (1, {last})."
            )
        return _vector(spec, last, given), (last,), True
    fixed = tuple(n for n in shape if n is not None)
    if len(fixed) != len(shape):
        raise InputError(f"{printable(name)}: its input has the open shape {shape}. Save a model with a fixed one.")
    if len(fixed) == 1:
        return _vector(spec, last, given), fixed, False
    if len(fixed) == 3:
        seen = (
            fitting.Sight(View(), fixed[:2])
            if spec is None
            else fitting.image(spec, last, given.view, (fixed[0], fixed[1]))
        )
        return seen, fixed, False
    steps = fixed[0]
    if spec is None:
        return fitting.Sight(View(history=steps)), (steps, 1, last), False
    whole = spec.observation_space.shape == fixed  # the task itself gives the history
    return fitting.vector(spec, steps * last, given.view, 1 if whole else steps), (steps, 1, last), False


def _entries(model: Model, spec: Spec | None, given: Given, name: str) -> fitting.Sight:
    """The entries of a Dict observation that several inputs take: those of the same names, or those the user names."""
    if spec is None:
        return fitting.Sight(View())
    keys = given.view.keys if given.view is not None and given.view.keys is not None else tuple(model.inputs)
    space = spec.observation_space
    sizes = [flat_size(space[k]) if isinstance(space, spaces.Dict) and k in space.spaces else 0 for k in keys]
    if sizes != [shape[0] for shape in model.inputs.values()]:
        theirs = ", ".join(f"{printable(k, 40)}: {shape[0]}" for k, shape in model.inputs.items())
        raise InputError(
            f"{printable(name)} takes {theirs}; the task offers {printable(space, 200)}. Name the entries in that order with --options teacher_keys=NAME."
        )
    return fitting.Sight(View(keys=keys))


def _vector(spec: Spec | None, size: int, given: Given) -> fitting.Sight:
    return fitting.vector(spec, size, given.view) if spec is not None else fitting.Sight(View())


def _head(
    flow: Flow, layers: tuple[Layer, ...], spec: Spec | None, given: Given, name: str
) -> tuple[HeadKind, tuple[Layer, ...], tuple[str, ...]]:
    """(kind, layers, notes). The rows of a softmax are read as the logits before it: the same distribution."""
    if len(flow.shape) != 1:
        raise InputError(
            f"{printable(name)}: its output is a picture of {flow.shape}. Flatten it and add a Dense layer."
        )
    kind = _stated_kind(given, name)
    space = spec.action_space if spec is not None else None
    width, discrete = flow.shape[0], fitting.discrete_kind(space) if space is not None else None
    if flow.ended:
        if kind not in (None, "categorical") or (space is not None and discrete != "categorical"):
            raise InputError(
                f"{printable(name)} ends in a softmax, which fits one choice of {width}. Allowed: a Discrete task, without --kind."
            )
        return "categorical", layers, ("its probabilities are read as the logits before the softmax",)
    if space is not None and discrete is None:
        kind = kind or ("gaussian" if width == 2 * fitting.actions(space) else "deterministic")
    notes: tuple[str, ...] = ()
    if kind is None:
        kind = discrete or "categorical"
        notes = (
            (f"its linear output is read as {kind} logits; say --kind q if they are action values",)
            if kind == "categorical"
            else ()
        )
    return kind, _stripped(kind, layers, space), notes


def _stripped(kind: HeadKind, layers: tuple[Layer, ...], space: gym.Space[Any] | None) -> tuple[Layer, ...]:
    """Heads that squash by themselves take the numbers before the network's own squashing."""
    last = layers[-1] if layers else None
    own = {"tanh": "tanh", "bernoulli": "sigmoid"}.get(kind)
    if own is not None and isinstance(last, Dense) and last.activation == own:
        return (*layers[:-1], replace(last, activation="identity"))
    return layers


def _stated_kind(given: Given, name: str) -> HeadKind | None:
    if given.kind == "probabilities":
        return "categorical"
    if given.kind is not None and given.kind not in get_args(HeadKind):
        raise InputError(
            f"--kind {printable(given.kind)} for {printable(name)}. Allowed: {', '.join(get_args(HeadKind))}."
        )
    return None if given.kind is None else head_kind(given.kind)
