"""The layers a policy is made of, as plain arrays on flat rows: every layer takes [B, inputs] and gives [B, outputs].

Images are rows too: a `Conv` says how its flat input is laid out and always gives height x width x channels, so that
dense layers, branches and heads never ask. Each layer states its sizes, its work and what is wrong with it; saving,
checking, exporting and running walk over these statements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np

from limbeck.contracts.policies import Floats
from limbeck.contracts.quantised import WHOLE, Quantise, Quantised, QuantisedConv, QuantisedGru, Readout, levels_problem
from limbeck.contracts.recurrent import Gru, Lstm
from limbeck.contracts.trees import Sparse, Tree
from limbeck.contracts.windowing import window_problem, windows

ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid", "elu", "leaky_relu", "gelu", "silu", "hardtanh", "softplus")
Layout = Literal["hwc", "chw"]


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ weight + bias)."""

    weight: Floats  # [in, out]
    bias: Floats  # [out]
    activation: str = "identity"
    kind: ClassVar[str] = "dense"

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def multiply_adds(self) -> int:
        return int(self.weight.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (self.inputs, self.outputs), "bias": (self.outputs,)}

    def problem(self) -> str:
        return _activation_problem(self.activation)


@dataclass(frozen=True)
class Conv:
    """y[i, j] = activation(sum over kernel and channels of x * weight + bias), cross-correlation as in torch and Keras.

    A 1-D convolution over a history of H vectors is one of size (H, 1) whose channels are the vector's numbers.
    """

    weight: Floats  # [kernel height, kernel width, in channels, out channels]
    bias: Floats  # [out channels]
    size: tuple[int, int]  # height, width of the input
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # zeros added at the top, bottom, left, right
    activation: str = "identity"
    layout: Layout = "hwc"  # of the flat input; the output is always hwc
    kind: ClassVar[str] = "conv"

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return windows(self.size, self.weight.shape[:2], self.stride, self.padding)

    @property
    def inputs(self) -> int:
        return int(self.size[0] * self.size[1] * self.weight.shape[2])

    @property
    def outputs(self) -> int:
        return int(math.prod(self.out_size) * self.weight.shape[3])

    @property
    def multiply_adds(self) -> int:
        return int(math.prod(self.out_size) * self.weight.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": self.weight.shape, "bias": self.weight.shape[3:]}

    def problem(self) -> str:
        if self.weight.ndim != 4:
            return f"a convolution's weight has shape {self.weight.shape}, not [kh, kw, in, out]"
        if self.layout not in ("hwc", "chw"):
            return f"unknown layout {self.layout!r}"
        return window_problem(self.size, self.weight.shape[:2], self.stride, self.padding) or _activation_problem(
            self.activation
        )


@dataclass(frozen=True)
class Pool:
    """The largest or the mean number of each window and channel; hwc in, hwc out."""

    size: tuple[int, int]  # height, width of the input
    channels: int
    window: tuple[int, int]
    stride: tuple[int, int]
    method: Literal["max", "mean"] = "max"
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right; padded places never count
    kind: ClassVar[str] = "pool"

    @property
    def out_size(self) -> tuple[int, int]:
        return windows(self.size, self.window, self.stride, self.padding)

    @property
    def inputs(self) -> int:
        return self.size[0] * self.size[1] * self.channels

    @property
    def outputs(self) -> int:
        return math.prod(self.out_size) * self.channels

    @property
    def multiply_adds(self) -> int:
        return 0

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {}

    def problem(self) -> str:
        if self.method not in ("max", "mean") or self.channels < 1:
            return f"a pooling layer of method {self.method!r} and {self.channels} channels"
        top, bottom, left, right = self.padding
        if max(top, bottom) >= self.window[0] or max(left, right) >= self.window[1]:
            return f"padding {self.padding} that fills whole windows of {self.window}"
        return window_problem(self.size, self.window, self.stride, self.padding)


@dataclass(frozen=True)
class Norm:
    """Layer normalisation: y = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias over the row (arXiv:1607.06450)."""

    weight: Floats  # [n]
    bias: Floats  # [n]
    epsilon: float = 1e-5
    activation: str = "identity"
    kind: ClassVar[str] = "norm"

    @property
    def inputs(self) -> int:
        return int(self.weight.size)

    @property
    def outputs(self) -> int:
        return int(self.weight.size)

    @property
    def multiply_adds(self) -> int:
        return int(self.weight.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (self.inputs,), "bias": (self.inputs,)}

    def problem(self) -> str:
        return _activation_problem(self.activation) or ("" if self.epsilon > 0 else "epsilon must be positive")


@dataclass(frozen=True)
class Gsde:
    """The last layer of a policy with state-dependent exploration (gSDE, arXiv:2005.05719): [mean, log std] of a Gaussian.

    mean = clip(x @ weight + bias, -limit, limit), log std = log(x^2 @ spread^2 + epsilon) / 2.
    """

    weight: Floats  # [in, n]
    bias: Floats  # [n]
    spread: Floats  # [in, n] standard deviation of the exploration matrix
    limit: float = math.inf
    epsilon: float = 1e-6
    kind: ClassVar[str] = "gsde"

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def outputs(self) -> int:
        return 2 * int(self.weight.shape[1])

    @property
    def multiply_adds(self) -> int:
        return int(self.weight.size + self.spread.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": self.weight.shape, "bias": self.weight.shape[1:], "spread": self.weight.shape}

    def problem(self) -> str:
        return "" if self.weight.ndim == 2 and self.epsilon > 0 and self.limit > 0 else "a gSDE layer out of range"


@dataclass(frozen=True)
class Parallel:
    """Branches over stretches of the row, their outputs side by side: the extractors of a Dict observation."""

    branches: tuple[tuple[Layer, ...], ...]
    spans: tuple[tuple[int, int], ...]  # begin, end of each branch's stretch; an empty branch passes it through
    width: int  # of the input row
    kind: ClassVar[str] = "parallel"

    @property
    def inputs(self) -> int:
        return self.width

    @property
    def outputs(self) -> int:
        return sum(
            branch[-1].outputs if branch else end - begin
            for branch, (begin, end) in zip(self.branches, self.spans, strict=True)
        )

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for branch in self.branches for layer in branch)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {}

    def problem(self) -> str:
        if len(self.branches) != len(self.spans):
            return f"{len(self.branches)} branches over {len(self.spans)} stretches"
        for branch, (begin, end) in zip(self.branches, self.spans, strict=True):
            if not 0 <= begin < end <= self.width:
                return f"a branch over {begin} to {end} of {self.width} numbers"
            if branch and branch[-1].kind in ("quantise", *WHOLE):
                return "a branch of quantised layers without a readout layer at its end: branches join real numbers"
            if problem := chain_problem(branch, end - begin, None):
                return problem
            if any(memory_of(branch)):
                return "a branch with memory; put recurrent layers after the branches"
        return ""


@dataclass(frozen=True)
class Shared:
    """The same layers for each of `count` equal stretches of the row: one network that acts for many agents."""

    layers: tuple[Layer, ...]
    count: int
    kind: ClassVar[str] = "shared"

    @property
    def inputs(self) -> int:
        return self.count * self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return self.count * self.layers[-1].outputs

    @property
    def multiply_adds(self) -> int:
        return self.count * sum(layer.multiply_adds for layer in self.layers)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {}

    def problem(self) -> str:
        if self.count < 1 or not self.layers:
            return "a shared network without layers or agents"
        if any(memory_of(self.layers)):
            return "a shared network with memory"
        return chain_problem(self.layers, self.layers[0].inputs, None)


Layer = (
    Dense | Conv | Pool | Norm | Gru | Lstm | Gsde | Parallel | Shared | Tree | Sparse
    | Quantise | Quantised | QuantisedConv | QuantisedGru | Readout
)  # fmt: skip
_ALL = (
    Dense, Conv, Pool, Norm, Gru, Lstm, Gsde, Parallel, Shared, Tree, Sparse,
    Quantise, Quantised, QuantisedConv, QuantisedGru, Readout,
)  # fmt: skip
LAYERS: Mapping[str, type[Layer]] = {c.kind: c for c in _ALL}


# ---------------------------------------------------------------- walking


def layer_arrays(layer: Layer) -> tuple[Floats, ...]:
    """All stored numbers of a layer, those of the layers inside it included, in the order they are stored."""
    if isinstance(layer, Parallel):
        return tuple(a for branch in layer.branches for inner in branch for a in layer_arrays(inner))
    if isinstance(layer, Shared):
        return tuple(a for inner in layer.layers for a in layer_arrays(inner))
    return tuple(getattr(layer, f.name) for f in fields(layer) if isinstance(getattr(layer, f.name), np.ndarray))


def memory_of(layers: Sequence[Layer], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name and size of every vector that a chain of layers carries from step to step: `gru0`, `lstm1.h`, `lstm1.c`."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Gru | QuantisedGru):
            yield f"{prefix}{layer.kind}{i}", layer.size
        elif isinstance(layer, Lstm):
            yield f"{prefix}lstm{i}.h", layer.size
            yield f"{prefix}lstm{i}.c", layer.size


def chain_problem(layers: Sequence[Layer], size: int, outputs: int | None) -> str:
    """What does not fit in a chain of layers that takes rows of `size` and gives rows of `outputs`; empty: nothing."""
    for layer in layers:
        for name, shape in layer.wanted().items():
            array: Floats = getattr(layer, name)
            if array.ndim != len(shape) or array.shape != shape or 0 in shape:
                return f"the {layer.kind} layer's {name} has shape {array.shape}, allowed {shape}"
        if problem := layer.problem():
            return problem
        if layer.inputs != size:
            return f"a {layer.kind} layer takes {layer.inputs} numbers where {size} arrive"
        size = layer.outputs
    if problem := levels_problem(layers):
        return problem
    if outputs is not None and layers and size != outputs:
        return f"the last layer gives {size} numbers where {outputs} are needed"
    return ""


def _activation_problem(name: str) -> str:
    return "" if name in ACTIVATIONS else f"unknown activation {name!r}, allowed {', '.join(ACTIVATIONS)}"
