"""The tensors of a state dict as layers: torch's shapes and orders turned into those of `contracts.layers`.

torch keeps a linear layer's weight as [out, in], a convolution's as [out, in, kh, kw], flattens pictures channels
first and stacks gates along the first axis; here it is the other way round each time. Every tensor that is used is
remembered, so that a layout can refuse a file in which some are left over: they would belong to another network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from limbeck.contracts import Array, Conv, Dense, Floats, Gru, Layer, Lstm, Norm
from limbeck.errors import InputError, printable

MAX_MODULES, MAX_NAME = 2000, 256
Grid = tuple[int, int, int]  # height, width, channels


class Tensors:
    """The arrays of a state dict by name, and which of them have a place."""

    def __init__(self, arrays: Mapping[str, Array], name: str) -> None:
        self.arrays, self.name, self.used = arrays, name, set[str]()
        for key, array in arrays.items():
            if not key.isprintable() or len(key) > MAX_NAME:
                raise InputError(
                    f"{printable(name)}: {printable(key, 60)!r} is no name of a tensor. Save the teacher again."
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = int((~np.isfinite(array)).sum())
                raise InputError(
                    f"{printable(name)}: {printable(key)} holds {bad} NaN or infinite numbers of {array.size}. Take an earlier checkpoint."
                )

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def take(self, key: str, dims: int | None = None) -> Array:
        """A tensor in float64, with so many dimensions. Raises InputError where it is missing or of another kind."""
        if key not in self.arrays:
            raise InputError(f"{printable(self.name)}: tensor {printable(key)} is missing. {self.contents()}")
        array = self.arrays[key]
        if array.dtype.kind not in "fiu" or 0 in array.shape or (dims is not None and array.ndim != dims):
            raise InputError(
                f"{printable(self.name)}: {printable(key)} is {array.dtype}{list(array.shape)}, needed {dims} dimensions of numbers. Save the teacher again."
            )
        self.used.add(key)
        return array.astype(np.float64)

    def has_weight(self, prefix: str, dims: int) -> bool:
        return f"{prefix}.weight" in self.arrays and self.arrays[f"{prefix}.weight"].ndim == dims

    def modules(self) -> list[str]:
        """What stands before `.weight` or `.weight_ih_l0`, in the file's order."""
        found = dict.fromkeys(key.rsplit(".", 1)[0] for key in self.arrays if re.search(r"\.weight(_ih_l0)?$", key))
        if len(found) > MAX_MODULES:
            raise InputError(f"{printable(self.name)} holds {len(found)} layers, allowed {MAX_MODULES}.")
        return list(found)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.arrays[key].shape)

    def leftover(self) -> list[str]:
        return [key for key in self.arrays if key not in self.used]

    def contents(self, limit: int = 12) -> str:
        """The tensors with their shapes, for a message."""
        shown = [f"{printable(key, 60)} {list(a.shape)}" for key, a in list(self.arrays.items())[:limit]]
        more = f" and {len(self.arrays) - limit} more" if len(self.arrays) > limit else ""
        return f"It holds: {', '.join(shown) or 'nothing'}{more}."

    # ---------------------------------------------------------------- layers

    def bias(self, prefix: str, count: int, name: str = "bias") -> Array:
        """[count], zeros for layers saved without one."""
        if f"{prefix}.{name}" not in self.arrays:
            return np.zeros(count)
        return self._fitting(f"{prefix}.{name}", (count,))

    def dense(self, prefix: str, activation: str = "identity", divide: float = 1.0, grid: Grid | None = None) -> Dense:
        """A linear layer. `grid` says that it sees a flattened picture, channels first as torch flattens it."""
        weight = self.take(f"{prefix}.weight", 2)
        if grid is not None and weight.shape[1] == grid[0] * grid[1] * grid[2]:
            height, width, channels = grid
            weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(weight), -1)
        return Dense(floats(weight.T / divide), floats(self.bias(prefix, len(weight))), activation)

    def conv(
        self, prefix: str, size: tuple[int, int], stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0),
        activation: str = "relu", layout: Any = "hwc", divide: float = 1.0,
    ) -> Conv:  # fmt: skip
        """A convolution over a picture of `size`; its padding is the same on both sides."""
        weight = self.take(f"{prefix}.weight", 4)
        around = (padding[0], padding[0], padding[1], padding[1])
        kernel = floats(weight.transpose(2, 3, 1, 0) / divide)
        drawn = Conv(kernel, floats(self.bias(prefix, len(weight))), size, stride, around, activation, layout)
        if problem := drawn.problem():
            raise InputError(
                f"{printable(self.name)}: {printable(prefix)}: {problem}. Give the pictures it was made for."
            )
        return drawn

    def norm(self, prefix: str, activation: str = "identity", epsilon: float = 1e-5) -> Norm:
        weight = self.take(f"{prefix}.weight", 1)
        return Norm(floats(weight), floats(self.bias(prefix, weight.size)), epsilon, activation)

    def recurrent(self, prefix: str, kind: str | None = None) -> tuple[Layer, ...]:
        """The layers of a torch GRU or LSTM; which of the two its shapes say."""
        layers: list[Layer] = []
        while f"{prefix}.weight_ih_l{len(layers)}" in self.arrays:
            layers.append(self._recurrent(prefix, f"l{len(layers)}", kind))
        if not layers:
            raise InputError(
                f"{printable(self.name)}: tensor {printable(prefix)}.weight_ih_l0 is missing. {self.contents()}"
            )
        odd = [key for key in self.arrays if key.startswith(f"{prefix}.") and key not in self.used]
        if odd:
            raise InputError(
                f"{printable(self.name)}: {printable(odd[0])} has no place in a one-way GRU or LSTM (bidirectional or projected ones are not read)."
            )
        return tuple(layers)

    def _recurrent(self, prefix: str, level: str, kind: str | None) -> Layer:
        from_x, from_h = (self.take(f"{prefix}.weight_{part}_{level}", 2) for part in ("ih", "hh"))
        size, gates = from_h.shape[1], from_h.shape[0]
        found = {3 * size: "gru", 4 * size: "lstm"}.get(gates)
        if found is None or from_x.shape[0] != gates or kind not in (None, found):
            raise InputError(
                f"{printable(self.name)}: {printable(prefix)} has {gates} gate rows for a memory of {size}: it is no {kind or 'GRU or LSTM'}."
            )
        bias_x, bias_h = (self.bias(prefix, gates, f"bias_{part}_{level}") for part in ("ih", "hh"))
        if found == "gru":
            return Gru(floats(from_x.T), floats(from_h.T), floats(bias_x), floats(bias_h))
        return Lstm(floats(from_x.T), floats(from_h.T), floats(bias_x + bias_h))

    def mlp(self, prefix: str, activation: str) -> tuple[Layer, ...]:
        """Linear layers 0, 2, 4 ... of a torch Sequential with the activation between them."""
        found = [re.fullmatch(rf"{re.escape(prefix)}\.(\d{{1,4}})\.(weight|bias)", key) for key in self.arrays]
        indices = sorted({int(m.group(1)) for m in found if m})
        if not indices or indices != list(range(0, 2 * len(indices), 2)):
            raise InputError(
                f"{printable(self.name)}: {prefix} has layers at {indices} where 0, 2, 4 ... are expected: it is no plain MLP. State the network with --architecture."
            )
        words = [activation] * (len(indices) - 1) + ["identity"]
        return tuple(self.dense(f"{prefix}.{i}", word) for i, word in zip(indices, words, strict=True))

    def _fitting(self, key: str, shape: tuple[int, ...]) -> Array:
        array = self.take(key)
        if array.shape != shape:
            raise InputError(
                f"{printable(self.name)}: {printable(key)} has shape {list(array.shape)}, needed {list(shape)}."
            )
        return array


def floats(array: Array) -> Floats:
    """float32, contiguous. Raises InputError for numbers that float32 cannot hold."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(narrow).all():
        raise InputError("weights of more than 3e38 cannot be held in float32. Take an earlier checkpoint.")
    return narrow


def with_constant(last: Dense, constant: Array) -> Dense:
    """The layer with outputs appended that do not depend on its input: a Gaussian's log standard deviations."""
    if constant.size != last.outputs:
        raise InputError(f"{constant.size} standard deviations for {last.outputs} actions. Save the teacher again.")
    weight = np.concatenate([last.weight, np.zeros_like(last.weight)], axis=1)
    return Dense(weight, np.concatenate([last.bias, floats(constant.reshape(-1))]), last.activation)


def side_by_side(left: Dense, right: Dense) -> Dense:
    """Two layers on the same input as one, with the outputs of both."""
    return Dense(np.concatenate([left.weight, right.weight], axis=1), np.concatenate([left.bias, right.bias]))
