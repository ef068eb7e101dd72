"""Weights out of a dense policy: its important neurons, refitted to what they were connected to, as a student's beginning.

Neurons are ranked by mean |activation| x |outgoing weight| on collected states (Minitron, arXiv:2407.14679). What a kept
neuron read from dropped ones is put back by least squares on the same states, layer by layer (ThiNet, arXiv:1707.06342;
He et al. 2017, arXiv:1707.06168); a layer as a product of rank r is the best one of that rank there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.contracts import Blueprint, Dense, Floats, Head, Normaliser, View
from limbeck.errors import InputError
from limbeck.students import nested
from limbeck.students.activations import ACTIVATE
from limbeck.students.grammar import Architecture
from limbeck.students.port import Port
from limbeck.students.stack import Stack

Doubles = NDArray[np.float64]
RIDGE = 1e-4  # of the mean square of a layer's inputs: keeps least squares sound where neurons say the same
CAUTIOUS_RIDGE = 1e-2  # where neurons are nearly alike, or weights below are shared: large weights that cancel break


@dataclass(frozen=True)
class Affine:
    """x @ weight + bias in float64."""

    weight: Doubles  # [in, out]
    bias: Doubles  # [out]

    def __call__(self, x: Doubles) -> Doubles:
        return x @ self.weight + self.bias

    @staticmethod
    def fit(x: Doubles, wanted: Doubles, share: float = RIDGE) -> Affine:
        """Least squares from x [N, in] onto wanted [N, out]."""
        mean, goal = x.mean(0), wanted.mean(0)
        centred = x - mean
        square = centred.T @ centred
        ridge = share * max(float(np.trace(square)) / len(square), 1e-12)
        weight = np.linalg.solve(square + ridge * np.eye(len(square)), centred.T @ (wanted - goal))
        return Affine(weight, goal - mean @ weight)


@dataclass(frozen=True)
class Source:
    """A dense policy that weights are taken from."""

    layers: tuple[Dense, ...]  # hidden ones, then the head; no two are linear one after the other
    view: View
    normaliser: Normaliser | None
    head: Head
    name: str  # in words

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(layer.outputs for layer in self.layers[:-1])


def source_of(blueprint: Blueprint | None, name: str) -> Source:
    """Raises InputError for a policy that is not dense layers and nothing else."""
    kinds = [] if blueprint is None else [layer.kind for layer in blueprint.layers]
    if blueprint is None or any(not isinstance(layer, Dense) for layer in blueprint.layers):
        found = f"its layers are {', '.join(kinds)}" if kinds else "its layers are not known"
        raise InputError(
            f"imitate.inherit: {name} has no weights to cut a student from: {found}. Allowed: policies of dense layers."
        )
    layers: list[Dense] = []
    for layer in blueprint.layers:
        if not isinstance(layer, Dense):
            continue
        if layers and layers[-1].activation == "identity":  # two linear layers are one
            before = layers.pop()
            layer = Dense(before.weight @ layer.weight, before.bias @ layer.weight + layer.bias, layer.activation)
        layers.append(layer)
    if layers[-1].activation != "identity":
        raise InputError(
            f"imitate.inherit: {name} ends in {layers[-1].activation}, and students end in a linear layer. "
            "Drop imitate.inherit."
        )
    return Source(tuple(layers), blueprint.view, blueprint.normaliser, blueprint.head, name)


def check(source: Source, architecture: Architecture, port: Port) -> None:
    """Raise InputError where a student of this shape and port cannot be cut out of the source."""
    start = f"imitate.inherit: student {architecture.spec!r} cannot be cut out of {source.name}"
    widths, most = architecture.whole or architecture.widths, source.widths
    if architecture.kind not in ("linear", "mlp", "nested") or port.agents > 1:
        raise InputError(f"{start}: it is not dense layers alone, for one agent. Allowed: linear, mlp and nested.")
    if len(widths) > len(most) or any(mine > its for mine, its in zip(widths, most, strict=False)):
        shape = "x".join(map(str, most)) or "none"
        raise InputError(f"{start}, whose hidden layers are {shape}. Allowed: as many or fewer, as wide or narrower.")
    other = {layer.activation for layer in source.layers[: len(widths)]} - {architecture.activation}
    if other:
        raise InputError(
            f"{start}: its activation is {architecture.activation}, theirs {', '.join(sorted(other))}. "
            f"Write it with :{min(other)}."
        )
    seen = (source.view.keys, source.view.indices, source.view.history, source.view.padding)
    if seen != (port.view.keys, port.view.indices, port.view.history, port.view.padding):
        raise InputError(
            f"{start}: it does not see what {source.name} sees. Give both the same keys, indices and history."
        )
    if source.layers[0].inputs != port.inputs or not _says(source.head, port.head):
        raise InputError(
            f"{start}: {source.name} takes {source.layers[0].inputs} numbers and says {source.head.kind} {source.head.sizes}, "
            f"the student takes {port.inputs} and says {port.head.kind} {port.head.sizes}."
        )


def _says(source: Head, wanted: Head) -> bool:
    """Whether the first numbers of a source's row are a student's row."""
    kinds = {"q": "categorical", "deterministic": "gaussian", "tanh": "squashed"}
    alike = kinds.get(source.kind, source.kind) == kinds.get(wanted.kind, wanted.kind)
    return alike and source.sizes == wanted.sizes and source.width >= wanted.width


@dataclass(frozen=True)
class Material:
    """The source as a student's inputs meet it."""

    inputs: Doubles  # [N, O * H] as students take them
    layers: tuple[Affine, ...]  # the first one takes these inputs, the last one says a student's row
    activation: str
    before: tuple[Doubles, ...]  # [N, width] of each layer before its activation; the last is what is said


def material(source: Source, port: Port, normaliser: Normaliser, inputs: Floats, scale: float) -> Material:
    """The source rewritten for inputs [N, O * H] that students see; `scale` times its row is theirs (1 / tau of a Q teacher).

    With students' inputs x = (o - m) / s and the source's (o - m') / s', its first layer becomes diag(s / s') W with
    b + (m - m') / s' W. A limit of its normaliser is left out.
    """
    layers = [Affine(layer.weight.astype(np.float64), layer.bias.astype(np.float64)) for layer in source.layers]
    mean, spread = (np.tile(a.astype(np.float64), port.view.history) for a in (normaliser.mean, normaliser.scale))
    its = source.normaliser
    its_mean = np.tile(its.mean.astype(np.float64), port.view.history) if its is not None else np.zeros_like(mean)
    its_spread = np.tile(its.scale.astype(np.float64), port.view.history) if its is not None else np.ones_like(mean)
    first = layers[0]
    layers[0] = Affine(
        first.weight * (spread / its_spread)[:, None], first.bias + ((mean - its_mean) / its_spread) @ first.weight
    )
    last = layers[-1]
    layers[-1] = Affine(scale * last.weight[:, : port.says], scale * last.bias[: port.says])
    activation = source.layers[0].activation
    x, before = inputs.astype(np.float64), []
    for n, layer in enumerate(layers):
        before.append(layer(x))
        x = _activated(source.layers[n].activation, before[-1])
    return Material(inputs.astype(np.float64), tuple(layers), activation, tuple(before))


def importance(given: Material, layer: int) -> Doubles:
    """[width] mean |activation| x L1 norm of the outgoing weights of each neuron of a hidden layer."""
    said = np.abs(_activated(given.activation, given.before[layer])).mean(0)
    return np.asarray(said * np.abs(given.layers[layer + 1].weight).sum(1), np.float64)


def orders(given: Material, depth: int, rng: np.random.Generator | None) -> tuple[NDArray[np.int64], ...]:
    """Which neurons of each hidden layer go first: by importance, or drawn with probabilities like it (Gumbel's trick)."""
    found = []
    for layer in range(depth):
        score = np.log(importance(given, layer) + 1e-12)
        if rng is not None:
            score = score + rng.gumbel(size=len(score))
        found.append(np.argsort(-score, kind="stable"))
    return tuple(found)


def cut(stack: Stack, task: str, given: Material, order: tuple[NDArray[np.int64], ...]) -> dict[str, Floats]:
    """The policy's tensors of one member: the first neurons of each layer's order, refitted where some are missing."""
    x, widths = given.inputs, stack.architecture.widths
    arrays: dict[str, Floats] = {}
    names, whole = stack.names(task), True  # whether all neurons that a layer read are there
    read = np.arange(x.shape[1])
    for n, width in enumerate(widths):
        kept = order[n][:width]
        full, wanted = given.layers[n], given.before[n][:, kept]
        layer = (
            Affine(full.weight[np.ix_(read, kept)], full.bias[kept])
            if whole
            else Affine.fit(x, wanted, CAUTIOUS_RIDGE if stack.architecture.rank else RIDGE)
        )
        x = _activated(stack.architecture.activation, _put(arrays, stack, names[f"dense{n}"], layer, x))
        whole = whole and width == full.weight.shape[1] and not stack.factorised(names[f"dense{n}"])
        read = kept
    whole = whole and len(widths) == len(given.layers) - 1
    last = given.layers[-1]
    ridge = CAUTIOUS_RIDGE if stack.architecture.rank else RIDGE
    head = Affine(last.weight[read], last.bias) if whole else Affine.fit(x, given.before[-1], ridge)
    _put(arrays, stack, names["head"], head, x)
    return arrays


def cut_nest(nest: nested.Nest, task: str, given: Material, order: tuple[NDArray[np.int64], ...]) -> Floats:
    """[Q] of a nested network: the widest is cut as any student, the narrower take its leading rows and columns with
    biases and heads fitted to what is missing."""
    widest = nest.stacks[0]
    arrays = cut(widest, task, given, order)
    widths: dict[str, Mapping[str, Floats]] = {nested.label(widest): arrays}
    for stack in nest.stacks[1:]:
        x, names = given.inputs, stack.names(task)
        mine: dict[str, Floats] = {}
        for n, width in enumerate(stack.architecture.widths):
            weight = arrays[f"{names[f'dense{n}']}.weight"].astype(np.float64)[: x.shape[1], :width]
            wanted = given.before[n][:, order[n][:width]]
            bias = (wanted - x @ weight).mean(0)
            x = _activated(
                stack.architecture.activation, _put(mine, stack, names[f"dense{n}"], Affine(weight, bias), x)
            )
        _put(mine, stack, names["head"], Affine.fit(x, given.before[-1], CAUTIOUS_RIDGE), x)
        widths[nested.label(stack)] = mine
    return nest.pack(widths)


def _put(arrays: dict[str, Floats], stack: Stack, name: str, layer: Affine, x: Doubles) -> Doubles:
    """Writes a layer, as a product where the stack has one, and gives what it says of x before its activation.

    Of all products of rank r, x W V V^T with V the first r right singular vectors of the centred x W is nearest to x W.
    """
    if stack.factorised(name):
        rank = stack.shapes[f"{name}.weight"][0]
        said = x @ layer.weight
        values, right = np.linalg.svd(said - said.mean(0), full_matrices=False)[1:]
        basis = right[:rank].T  # [out, r]
        spread = np.maximum(values[:rank], 1e-3 * values[0]) / len(x) ** 0.5  # between the factors all have spread 1
        arrays[f"{name}.down.weight"] = (layer.weight @ basis / spread).astype(np.float32)
        arrays[f"{name}.down.bias"] = np.zeros(rank, np.float32)
        missing = (said - said @ basis @ basis.T).mean(0)
        layer = Affine(layer.weight @ basis @ basis.T, layer.bias + missing)
        arrays[f"{name}.weight"] = (basis * spread).T.astype(np.float32)
    else:
        arrays[f"{name}.weight"] = layer.weight.astype(np.float32)
    arrays[f"{name}.bias"] = layer.bias.astype(np.float32)
    return layer(x)


def _activated(name: str, x: Doubles) -> Doubles:
    if name == "identity":
        return x
    return np.asarray(ACTIVATE[name](torch.from_numpy(x)).numpy(), np.float64)
