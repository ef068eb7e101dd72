"""What flows through a Keras model while its layers are read: shapes, layers so far, scaling that waits to be folded.

Layers that scale and shift (Rescaling, Normalization, BatchNormalization at inference) are folded into their
neighbours in float64; what cannot be folded becomes a diagonal layer of its own. Below stand the checks of options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from limbeck.contracts import Array, Conv, Dense, Layer, Norm, Normaliser
from limbeck.errors import InputError, printable
from limbeck.teachers.keras_config import Entry

ACTIVATIONS = {
    "linear": "identity", "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "elu": "elu", "gelu": "gelu",
    "silu": "silu", "swish": "silu", "softplus": "softplus", "softmax": "softmax",
}  # fmt: skip


class Variables(Protocol):
    """Where the numbers of layers are."""

    def read(self, entry: Entry, wanted: Mapping[str, tuple[int, ...]], inner: str = "") -> dict[str, Array]:
        """The variables of a layer by name, in Keras' order, each of the shape given."""
        ...


@dataclass
class Flow:
    """The layers so far, and what flows out of them."""

    file: str
    variables: Variables
    shape: tuple[int, ...]  # (n,) or (height, width, channels)
    layout: Literal["hwc", "chw"] = "hwc"  # of the picture in the observation
    sequence: bool = False  # steps of an episode flow one by one, with memory in between
    stateful: bool = False  # the model keeps its memory between calls
    normaliser: Normaliser | None = None
    ended: bool = False  # a softmax was met: nothing but the end may follow
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of several inputs in the row

    def __post_init__(self) -> None:
        self.layers: list[Layer] = []
        self.pending: tuple[Array, Array] | None = None  # x -> factor * x + shift, over the last axis

    def wrong(self, entry: Entry, why: str) -> InputError:
        return InputError(
            f"{printable(self.file)}: layer {printable(entry.name, 60)!r} ({printable(entry.kind, 40)}): {why}. Save the model without it, or pass the model as a callable in Python."
        )

    # ---------------------------------------------------------------- scaling

    def affine(self, factor: Array, shift: Array) -> None:
        """What flows becomes factor * x + shift."""
        last = self.layers[-1] if self.layers else None
        if self.pending is not None:
            self.pending = self.pending[0] * factor, self.pending[1] * factor + shift
        elif isinstance(last, (Dense, Conv)) and last.activation == "identity" and last.bias.size == factor.size:
            self.layers[-1] = replace(last, weight=last.weight * factor, bias=last.bias * factor + shift)
        else:
            self.pending = factor, shift

    def flush(self) -> None:
        """Make what is pending a layer of its own."""
        if self.pending is not None:
            factor, shift = self.pending
            self.pending = None
            self.diagonal(factor, shift)

    def diagonal(self, factor: Array, shift: Array, activation: str = "identity") -> None:
        """A layer that treats every channel or number by itself."""
        if len(self.shape) == 3:
            size = self.shape[:2]
            self.layers.append(
                Conv(np.diag(factor)[None, None], shift, size, activation=activation, layout=self.first())
            )
        else:
            self.layers.append(Dense(np.diag(factor), shift, activation))

    def first(self) -> Literal["hwc", "chw"]:
        """How a picture lies that enters the next layer."""
        return self.layout if not self.layers else "hwc"

    def laid_out(self) -> None:
        """Bring a picture with channels first into our order, where the next layer is no convolution."""
        if not self.layers and self.layout == "chw" and len(self.shape) == 3:
            self.diagonal(np.ones(self.shape[2]), np.zeros(self.shape[2]))

    def absorbed(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """Weights [..., in, out] that do to x what they did to the pending factor * x + shift."""
        if self.pending is None:
            return weight, bias
        factor, shift = self.pending
        self.pending = None
        return weight * factor[:, None], bias + (shift @ weight.reshape(-1, *weight.shape[-2:])).sum(axis=0)

    # ---------------------------------------------------------------- activations

    def activate(self, entry: Entry, stated: Any) -> None:
        word = ACTIVATIONS.get(stated) if isinstance(stated, str) else None
        if word is None:
            raise self.wrong(entry, f"activation {printable(stated, 60)} is not read; allowed {', '.join(ACTIVATIONS)}")
        if word == "softmax":
            if len(self.shape) != 1:
                raise self.wrong(entry, "a softmax over pictures")
            self.ended = True
        elif word != "identity":
            self.apply(word)

    def apply(self, word: str) -> None:
        last = self.layers[-1] if self.layers else None
        if self.pending is None and isinstance(last, (Dense, Conv, Norm)) and last.activation == "identity":
            self.layers[-1] = replace(last, activation=word)
            return
        factor, shift = self.pending or (np.ones(self.shape[-1]), np.zeros(self.shape[-1]))
        self.pending = None
        self.diagonal(factor, shift, word)


# ---------------------------------------------------------------- options


def whole(flow: Flow, entry: Entry, key: str, limit: int = 2**16) -> int:
    """A whole number above 0."""
    value = entry.config.get(key)
    if type(value) is not int or not 0 < value <= limit:
        raise flow.wrong(entry, f"{key} is {printable(value, 40)}")
    return value


def pair(flow: Flow, entry: Entry, key: str, default: Any = None) -> tuple[int, int]:
    """Two whole numbers, of which one may stand for both."""
    value = entry.config.get(key, default)
    value = default if value is None else value
    value = [value, value] if type(value) is int else value
    value = [value[0], 1] if isinstance(value, list) and len(value) == 1 else value
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or any(type(n) is not int or not 0 < n <= 2**12 for n in value)
    ):
        raise flow.wrong(entry, f"{key} is {printable(value, 40)}")
    return value[0], value[1]


def number(flow: Flow, entry: Entry, key: str, default: float) -> float:
    """A finite number."""
    value = entry.config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise flow.wrong(entry, f"{key} is {printable(value, 40)}")
    return float(value)


def flag(flow: Flow, entry: Entry, key: str, default: bool) -> bool:
    """True or False."""
    value = entry.config.get(key, default)
    if not isinstance(value, bool):
        raise flow.wrong(entry, f"{key} is {printable(value, 40)}")
    return value


def vector(flow: Flow, entry: Entry, value: Any, size: int) -> Array:
    """[size] numbers from a configuration: one for all, or a (nested) list of them."""
    try:
        flat = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise flow.wrong(entry, f"{printable(value, 60)} where numbers belong") from error
    if flat.size not in (1, size) or not np.isfinite(flat).all():
        raise flow.wrong(entry, f"{flat.size} numbers where {size} are needed")
    return np.broadcast_to(flat, (size,)).copy()


def last_axis(flow: Flow, entry: Entry, default: Any = -1) -> None:
    """Raises InputError for a layer that works along another axis than the last."""
    axis = entry.config.get("axis", default)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    rank = len(flow.shape) + (1 if flow.sequence else 0)
    if axis not in (-1, rank):
        raise flow.wrong(entry, f"axis {printable(axis, 40)}, only the last one is read")
