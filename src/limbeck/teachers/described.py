"""Weights and a line that says how to compute with them: the tensors of a state dict put where `--architecture` says.

The grammar stands in `architecture`. Without such a line, `suggested` guesses one from the shapes for the error
message; a guess is never used by itself.
"""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from limbeck.contracts import Dense, HeadKind, Layer, Pool, Spec, head_kind
from limbeck.errors import InputError, printable
from limbeck.teachers import architecture, fitting
from limbeck.teachers.architecture import Architecture, Step
from limbeck.teachers.files import Given
from limbeck.teachers.layouts import Drawn
from limbeck.teachers.tensors import Grid, Tensors, side_by_side, with_constant

_DIMS = {"conv": 4, "dense": 2, "head": 2, "norm": 1}


def draw(tensors: Tensors, text: str, spec: Spec, given: Given) -> Drawn:
    """The network of the tensors that `text` describes. Raises InputError that names the step that does not fit."""
    stated = architecture.parse(text)
    order = _Order(tensors)
    sight, divide = _input(stated, order, spec, given)
    trunk = _Chain(order, sight, divide)
    for step in stated.steps[:-1]:
        trunk.add(step)
    body = tuple(trunk.layers)
    kind, last = _head(stated.steps[-1], trunk, spec, given)
    values: tuple[Layer, ...] = ()
    if stated.value:
        chain = _Chain(order, sight, divide)
        if not stated.value_apart:
            chain.layers, chain.grid, chain.flat, chain.count = list(body), trunk.grid, trunk.flat, trunk.count
            chain.divide = trunk.divide
        for step in stated.value:
            chain.add(step)
        values = tuple(chain.layers)
    _no_leftover(tensors, stated)
    return Drawn(
        "described weights",
        kind,
        (*body, last),
        values,
        sight.view,
        None,
        sight.notes,
        {"architecture": printable(text)},
    )


def _no_leftover(tensors: Tensors, stated: Architecture) -> None:
    left = [k for k in tensors.leftover() if not any(fnmatch.fnmatchcase(k, pattern) for pattern in stated.ignored)]
    if left:
        shown = ", ".join(f"{printable(k, 60)} {list(tensors.shape(k))}" for k in left[:6])
        raise InputError(
            f"--architecture leaves {len(left)} tensors of {printable(tensors.name)} without a place: {shown}. "
            "Add the steps they belong to, name them with @NAME, or say '; ignore PATTERN'."
        )


class _Order:
    """The layers of a file in order, and which of them are taken."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.modules = tensors.modules()
        self.taken: set[str] = set()

    def next(self, step: Step) -> str:
        """The layer that a step is about: the one it names, or the first that is free."""
        if step.name is not None:
            if step.name not in self.modules:
                raise step.wrong(f"the file has no layer {printable(step.name, 60)!r}. {self.tensors.contents()}")
            found: str | None = step.name
        else:
            found = next((m for m in self.modules if m not in self.taken), None)
        if found is None:
            raise step.wrong(f"no layer is left for it. {self.tensors.contents()}")
        recurrent = f"{found}.weight_ih_l0" in self.tensors
        if recurrent != (step.word in ("gru", "lstm")) or (
            not recurrent and not self.tensors.has_weight(found, _DIMS[step.word])
        ):
            shape = list(self.tensors.shape(f"{found}.weight{'_ih_l0' if recurrent else ''}"))
            raise step.wrong(
                f"the layer for it is {printable(found, 60)} {shape}, which is no {step.word}. Name the right one with @NAME. {self.tensors.contents()}"
            )
        self.taken.add(found)
        return found

    def peek(self, steps: tuple[Step, ...]) -> tuple[Step, tuple[int, ...]] | None:
        """The first step with weights, and their shape; nothing is taken."""
        for step in steps:
            if step.word in architecture.NAMED:
                before = set(self.taken)
                found = self.next(step)
                self.taken = before
                key = f"{found}.weight_ih_l0" if step.word in ("gru", "lstm") else f"{found}.weight"
                return step, self.tensors.shape(key)
        return None


def _input(stated: Architecture, order: _Order, spec: Spec, given: Given) -> tuple[fitting.Sight, float]:
    """How the observation lies, and what it is divided by."""
    said = {step.word: step for step in stated.steps if step.word in ("obs", "divide", "history")}
    for step in stated.steps[len(said) :]:
        if step.word in said:
            raise step.wrong("obs, divide and history come first, each once")
    divide = said["divide"].number if "divide" in said else 1.0
    frames = int(said["history"].number or 1) if "history" in said else 1
    peeked = order.peek(stated.steps)
    assert peeked is not None  # the head has weights
    first, shape = peeked
    if first.word != "conv":
        return fitting.vector(spec, int(shape[-1]), given.view, frames), float(divide or 1)
    lies: Literal["hwc", "chw"] | None = None
    if "obs" in said:
        lies = "hwc" if said["obs"].choice == "hwc" else "chw"
    sight = fitting.image(spec, int(shape[1]), given.view, order=lies)
    if "history" in said and sight.view.history != frames:
        raise said["history"].wrong(f"the pictures need a history of {sight.view.history}")
    return sight, float(divide or 1)


class _Chain:
    """Layers laid one after another. Between them flows a picture of hwc, or a row of numbers."""

    def __init__(self, order: _Order, sight: fitting.Sight, divide: float) -> None:
        self.order, self.tensors, self.sight, self.divide = order, order.tensors, sight, divide
        self.layers: list[Layer] = []
        self.grid: Grid | None = None  # of the picture that flows; None for rows
        self.flat: Grid | None = None  # of a picture flattened channels first, until a layer has seen it
        self.count: int | None = None

    def add(self, step: Step) -> None:
        match step.word:
            case "conv":
                self._conv(step)
            case "pool":
                self._pool(step)
            case "flatten":
                self._flatten(step)
            case "dense" | "norm" | "gru" | "lstm":
                self._row(step)

    def _push(self, layer: Layer) -> None:
        self.layers.append(layer)
        self.count, self.divide = layer.outputs, 1.0

    def _conv(self, step: Step) -> None:
        if self.layers and self.grid is None:
            raise step.wrong("a convolution after the picture was flattened")
        prefix = self.order.next(step)
        size = self.grid[:2] if self.grid is not None else self.sight.size
        layout = "hwc" if self.grid is not None else self.sight.layout
        stride, pad = step.whole("stride", 1), step.whole("pad", 0)
        out, channels, kh, kw = self.tensors.shape(f"{prefix}.weight")
        _agree(step, "channels", step.number, out)
        if step.window not in (None, (kh, kw)):
            raise step.wrong(f"{printable(prefix)} has a window of {kh}x{kw}")
        if self.grid is not None and channels != self.grid[2]:
            raise step.wrong(f"{printable(prefix)} takes {channels} channels where {self.grid[2]} arrive")
        conv = self.tensors.conv(prefix, size, (stride, stride), (pad, pad), _activation(step), layout, self.divide)
        self._push(conv)
        self.grid = (*conv.out_size, out)

    def _pool(self, step: Step) -> None:
        if self.grid is None or step.window is None:
            raise step.wrong("there is no picture here to pool; a picture begins with conv")
        stride, pad = step.option("stride"), step.whole("pad", 0)
        steps = (step.whole("stride", 1),) * 2 if stride is not None else step.window
        if pad and step.choice == "mean":
            raise step.wrong("padding and mean do not go together: programs differ in whether they count the padding")
        method: Literal["max", "mean"] = "max" if step.choice == "max" else "mean"
        pool = Pool(self.grid[:2], self.grid[2], step.window, steps, method, (pad, pad, pad, pad))
        if problem := pool.problem():
            raise step.wrong(problem)
        self._push(pool)
        self.grid = (*pool.out_size, self.grid[2])

    def _flatten(self, step: Step) -> None:
        if self.layers and self.grid is None:
            raise step.wrong("there is no picture here to flatten")
        self.flat, self.grid = (self.grid if step.choice != "hwc" else None), None

    def _row(self, step: Step) -> None:
        if self.grid is not None:
            raise step.wrong("a picture arrives; put 'flatten' before it")
        prefix = self.order.next(step)
        layers = self._made(step, prefix)
        arrives = self.count if self.layers else layers[0].inputs
        if layers[0].inputs != arrives:
            hint = "; is a stride, a pad or a pool missing before it?" if self.flat is not None else ""
            raise step.wrong(f"{printable(prefix)} takes {layers[0].inputs} numbers where {arrives} arrive{hint}")
        _agree(step, "units", step.number, layers[-1].outputs)
        for layer in layers:
            self._push(layer)
        self.flat = None

    def _made(self, step: Step, prefix: str) -> tuple[Layer, ...]:
        if step.word in ("gru", "lstm", "norm") and (self.flat is not None or self.divide != 1.0):
            raise step.wrong(
                f"a flattened picture or a division before {step.word} is not read; a dense layer must stand between"
            )
        if step.word in ("gru", "lstm"):
            return self.tensors.recurrent(prefix, step.word)
        if step.word == "norm":
            return (self.tensors.norm(prefix, _activation(step), _positive(step, "eps", 1e-5)),)
        return (self.tensors.dense(prefix, _activation(step), self.divide, self.flat),)


def _head(step: Step, chain: _Chain, spec: Spec, given: Given) -> tuple[HeadKind, Layer]:
    kind = _kind(step, spec, given)
    if chain.grid is not None:
        raise step.wrong("a picture arrives; put 'flatten' before the head")
    prefix = chain.order.next(step)
    last = chain.tensors.dense(prefix, divide=chain.divide, grid=chain.flat)
    if chain.layers and last.inputs != chain.count:
        raise step.wrong(f"{printable(prefix)} takes {last.inputs} numbers where {chain.count} arrive")
    _agree(step, "outputs", step.number, last.outputs)
    spread = step.option("log_std")
    if spread is None:
        return kind, last
    if kind not in ("gaussian", "squashed"):
        raise step.wrong(f"log_std goes with gaussian and squashed, the head is {kind}")
    return kind, _with_spread(step, last, spread, chain)


def _with_spread(step: Step, last: Dense, spread: str, chain: _Chain) -> Dense:
    tensors = chain.tensors
    if spread in tensors:
        numbers = tensors.take(spread).reshape(-1)
    elif tensors.has_weight(spread, 2):
        chain.order.taken.add(spread)
        other = tensors.dense(spread, divide=chain.divide, grid=chain.flat)
        if other.weight.shape != last.weight.shape:
            raise step.wrong(
                f"{printable(spread)} is {list(other.weight.shape)}, the means are {list(last.weight.shape)}"
            )
        return side_by_side(last, other)
    else:
        numbers = np.full(last.outputs, _positive(step, "log_std", 0.0, signed=True))
    return with_constant(last, numbers)


def _kind(step: Step, spec: Spec, given: Given) -> HeadKind:
    stated = None if step.choice is None else head_kind(step.choice)
    if given.kind is not None:
        if given.kind not in architecture._KINDS or stated not in (None, given.kind):
            raise InputError(
                f"--kind {printable(given.kind)} with 'head {stated or ''}'. Allowed: one of them; kinds are {', '.join(architecture._KINDS)}."
            )
        stated = head_kind(given.kind)
    return stated or fitting.discrete_kind(spec.action_space) or "deterministic"


def _activation(step: Step) -> str:
    return "identity" if step.choice in (None, "none") else step.choice


def _agree(step: Step, what: str, said: float | None, found: int) -> None:
    if said is not None and int(said) != found:
        raise step.wrong(f"the tensor has {found} {what}")


def _positive(step: Step, key: str, default: float, signed: bool = False) -> float:
    text = step.option(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not -1e6 < value < 1e6 or (value <= 0 and not signed):
        raise step.wrong(f"{key}={printable(text, 60)} is neither a tensor of the file nor a fitting number")
    return value


# ---------------------------------------------------------------- a guess


def suggested(tensors: Tensors, action_space: gym.Space[Any] | None) -> str | None:
    """A line that may describe the tensors, None where they are no plain chain. Activations are guessed.

    Heads are the linear layers that all see what the last hidden layer gives; the one with one output is the value.
    """
    steps: list[str] = []
    heads: list[tuple[str, int]] = []
    width: int | None = None
    for prefix in tensors.modules():
        if f"{prefix}.weight_ih_l0" in tensors:
            gates, width = tensors.shape(f"{prefix}.weight_ih_l0")[0], None
            if f"{prefix}.weight_hh_l0" not in tensors:
                return None
            width = tensors.shape(f"{prefix}.weight_hh_l0")[-1]
            steps.append(f"{'gru' if gates == 3 * width else 'lstm'} @{prefix}")
        elif tensors.has_weight(prefix, 4) and not heads:
            steps.append(f"conv relu @{prefix}")
        elif tensors.has_weight(prefix, 1):
            steps.append(f"norm @{prefix}")
        elif tensors.has_weight(prefix, 2):
            out, takes = tensors.shape(f"{prefix}.weight")
            if heads and takes == heads[-1][1] and takes != width:
                return None
            if width is not None and takes == width and _is_head(tensors, prefix, width):
                heads.append((prefix, out))
                continue
            if heads or (width is not None and takes != width):
                return None
            if steps and steps[-1].startswith("conv"):
                steps.append("flatten")
            steps.append(f"dense relu @{prefix}")
            width = out
        else:
            return None
    return _line(steps, heads, action_space)


def _is_head(tensors: Tensors, prefix: str, width: int) -> bool:
    """Whether a linear layer stands last, or beside the last one: two heads of which one gives the value."""
    modules = tensors.modules()
    after = modules[modules.index(prefix) + 1 :]
    if len(after) != 1:
        return not after
    if not tensors.has_weight(after[0], 2):
        return False
    (out, _), (other, takes) = (tensors.shape(f"{m}.weight") for m in (prefix, after[0]))
    return takes == width and 1 in (out, other)


def _line(steps: list[str], heads: list[tuple[str, int]], action_space: gym.Space[Any] | None) -> str | None:
    values = [name for name, out in heads if out == 1]
    policies = [name for name, out in heads if out != 1] or values[:1]
    if not policies or any(ord(c) < 33 or c in ";>" for name, _ in heads for c in name) or len(heads) > 2:
        return None
    kind = (fitting.discrete_kind(action_space) or "deterministic") if action_space is not None else "categorical"
    value = [f" ; value @{name}" for name in values if name not in policies]
    return " > ".join([*steps, f"head {kind} @{policies[0]}"]) + "".join(value)
