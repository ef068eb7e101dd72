"""Convolutions of a stack: one call for all members, their layers when frozen, and the numbers that pass them by.

The first convolution shares its input among the members, so it is one convolution with K times the filters; the later
ones are one grouped convolution. Measured on one core this beats unfolding and batched products for every size tried.
Layers give height x width x channels, as `contracts.Conv` does, so a readout's weights freeze as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional

from limbeck import spaces
from limbeck.contracts import Array, Conv, Floats, Layer, Parallel, View, windows
from limbeck.contracts.layers import Layout
from limbeck.errors import InputError
from limbeck.students.activations import ACTIVATE
from limbeck.students.grammar import EXAMPLES, Architecture


@dataclass(frozen=True)
class Convolution:
    """One layer: sizes in the order of an image's height and width."""

    size: tuple[int, int]  # of its input
    channels: int  # of its input
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    activation: str

    @property
    def out_size(self) -> tuple[int, int]:
        return windows(self.size, self.kernel, self.stride, (0, 0, 0, 0))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of its weight, as in `contracts.Conv`."""
        return (*self.kernel, self.channels, self.filters)


@dataclass(frozen=True)
class Front:
    """All convolutions of one architecture on one task's input row, and where in the row their image lies."""

    layers: tuple[Convolution, ...]
    begin: int
    end: int
    width: int  # of the input row
    layout: Layout
    scale: float  # numbers of the image arrive divided by it, and are not when frozen

    @property
    def beside(self) -> int:
        """How many numbers pass by."""
        return self.width - (self.end - self.begin)

    @property
    def features(self) -> int:
        """How many numbers the convolutions make."""
        return math.prod(self.layers[-1].out_size) * self.layers[-1].filters

    @property
    def outputs(self) -> int:
        return self.features + self.beside

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """The tensors of theta, in order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for n, layer in enumerate(self.layers):
            shapes |= {f"{prefix}.conv{n}.weight": layer.shape, f"{prefix}.conv{n}.bias": (layer.filters,)}
        return shapes

    def forward(
        self,
        named: Mapping[str, torch.Tensor],
        prefix: str,
        rows: torch.Tensor,
        seen: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Rows [N, width] that all members share -> [K, N, outputs]; into `seen` goes what each convolution gives, [K, N, F]."""
        first, count = self.layers[0], len(rows)
        image = rows[:, self.begin : self.end]
        if self.layout == "chw":
            hidden = image.reshape(count, first.channels, *first.size).contiguous(memory_format=torch.channels_last)
        else:
            hidden = image.reshape(count, *first.size, first.channels).permute(0, 3, 1, 2)
        members = len(named[f"{prefix}.conv0.weight"])
        for n, layer in enumerate(self.layers):
            weight = named[f"{prefix}.conv{n}.weight"].permute(0, 4, 3, 1, 2).reshape(-1, layer.channels, *layer.kernel)
            bias = named[f"{prefix}.conv{n}.bias"].reshape(-1)
            hidden = functional.conv2d(hidden, weight, bias, layer.stride, groups=members if n else 1)
            if layer.activation != "identity":
                hidden = ACTIVATE[layer.activation](hidden)
            if seen is not None:
                seen[f"conv{n}"] = _flat(hidden, members, layer.filters)
        made = _flat(hidden, members, self.layers[-1].filters)
        if not self.beside:
            return made
        before, after = (x.expand(members, -1, -1) for x in (rows[:, : self.begin], rows[:, self.end :]))
        return torch.cat([before, made, after], dim=2)

    def freeze(self, arrays: Mapping[str, Floats], prefix: str) -> list[Layer]:
        """The same as layers for rows whose image is not scaled."""
        convolutions: list[Layer] = []
        for n, layer in enumerate(self.layers):
            weight = arrays[f"{prefix}.conv{n}.weight"]
            if n == 0:
                weight = (weight.astype(np.float64) / self.scale).astype(np.float32)
            convolutions.append(
                Conv(
                    weight, arrays[f"{prefix}.conv{n}.bias"], layer.size, layer.stride,
                    activation=layer.activation, layout=self.layout if n == 0 else "hwc",
                )
            )  # fmt: skip
        if not self.beside:
            return convolutions
        branches = [((), (0, self.begin)), (tuple(convolutions), (self.begin, self.end)), ((), (self.end, self.width))]
        branches = [(branch, (a, b)) for branch, (a, b) in branches if a < b]
        return [Parallel(tuple(b for b, _ in branches), tuple(span for _, span in branches), self.width)]

    def passed(self) -> tuple[Array, Array]:
        """The places of the numbers that pass by: in the input row, and in the output row."""
        places = np.concatenate([np.arange(self.begin), np.arange(self.end, self.width)])
        return places, np.where(places < self.begin, places, places + self.outputs - self.width)


def _flat(maps: torch.Tensor, members: int, filters: int) -> torch.Tensor:
    """[N, K * filters, height, width] -> [K, N, height * width * filters]."""
    count = len(maps)
    return maps.reshape(count, members, filters, *maps.shape[2:]).permute(1, 0, 3, 4, 2).reshape(members, count, -1)


def front_of(architecture: Architecture, space: gym.Space[Any], view: View, width: int, agents: int) -> Front | None:
    """What a convolutional student does with input rows of `width`; None for other students.

    Raises InputError where the view has no picture or history for it, or a kernel is larger than what it slides over.
    """
    if architecture.kind == "conv1d":
        if view.history < 2:
            raise InputError(
                f"student {architecture.spec!r} convolves over a history, and the view's history is {view.history}. "
                "Set history to at least the first kernel, or use mlp."
            )
        size, channels, kernel_width = (view.history, 1), width // view.history, 1
        begin, end, scale = 0, width, 1.0
        layout: Layout = "hwc"
    elif architecture.kind == "cnn":
        image = spaces.image_of(space, view, agents)
        size, channels, kernel_width = (image.height, image.width), image.channels, 0
        begin, end, layout, scale = image.begin, image.end, image.layout, image.scale
    else:
        return None
    layers: list[Convolution] = []
    for entry in architecture.filters:
        kernel = (entry.kernel, kernel_width or entry.kernel)
        if kernel[0] > size[0] or kernel[1] > size[1]:
            raise _too_large(architecture, entry.spec, size)
        stride = (entry.stride, 1 if kernel_width else entry.stride)
        layers.append(Convolution(size, channels, entry.count, kernel, stride, architecture.activation))
        size, channels = layers[-1].out_size, entry.count
    if architecture.compact:
        layers.append(Convolution(size, channels, architecture.compact, (1, 1), (1, 1), "identity"))
    if architecture.precision and end - begin < width:
        raise _beside(architecture, width - (end - begin))
    return Front(tuple(layers), begin, end, width, layout, scale)


def _beside(architecture: Architecture, count: int) -> InputError:
    plain = replace(architecture, precision="")
    return InputError(
        f"student {architecture.spec!r}: {count} numbers lie beside the picture, and whole numbers have no layer that passes "
        f"them by. Pick the picture alone with keys, or use {plain.spec}."
    )


def _too_large(architecture: Architecture, entry: str, size: tuple[int, int]) -> InputError:
    along = f"{size[0]} steps" if architecture.kind == "conv1d" else f"{size[0]} x {size[1]} numbers"
    mend = "a longer history, " if architecture.kind == "conv1d" else ""
    return InputError(
        f"student {architecture.spec!r}: the kernel of {entry} is larger than the {along} that reach it. "
        f"Use {mend}a smaller kernel or smaller strides before it. Allowed: {EXAMPLES}."
    )
