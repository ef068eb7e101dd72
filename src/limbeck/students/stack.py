"""K students of one shape trained as one: their weights are the rows of a matrix theta [K, P].

A member's row depends on its own loss alone, so a member trained in the stack equals the same member trained alone
(to float rounding). Rows are dropped when a race is lost, cloned when a student branches.
A student is stem[task] -> trunk -> head[task]; the usual run has one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from limbeck import seeding
from limbeck.contracts import Blueprint, Dense, Floats, Gru, Head, Layer, Normaliser, Spec, View
from limbeck.students.grammar import Architecture, MemberSpec

ACTIVATE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "leaky_relu": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "hardtanh": functional.hardtanh,
}


@dataclass(frozen=True)
class Port:
    """What a task feeds a student and expects of it."""

    spec: Spec
    view: View
    head: Head  # of the student
    inputs: int  # O times history


class Stack:
    """The layout of theta for one architecture on some tasks, and the forward pass over all its rows."""

    def __init__(self, architecture: Architecture, ports: Mapping[str, Port]) -> None:
        self.architecture, self.ports = architecture, dict(ports)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for i, port in enumerate(ports.values()):
            self._layout(i, port)
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self._index = {task: i for i, task in enumerate(ports)}

    @property
    def parameters(self) -> int:
        """P."""
        return sum(self._sizes)

    def _layout(self, i: int, port: Port) -> None:
        width, widths = port.inputs, self.architecture.widths
        if self.architecture.kind == "gru":
            hidden = widths[0]
            self.shapes |= {f"stem{i}.weight": (width, 3 * hidden), f"stem{i}.bias": (3 * hidden,)}
            self.shapes |= {"trunk0.weight": (hidden, 3 * hidden), "trunk0.bias": (3 * hidden,)}
            width = hidden
        else:
            for layer, size in enumerate(widths):
                name = f"stem{i}" if layer == 0 else f"trunk{layer}"
                self.shapes |= {f"{name}.weight": (width, size), f"{name}.bias": (size,)}
                width = size
        self.shapes |= {f"head{i}.weight": (width, port.head.width), f"head{i}.bias": (port.head.width,)}

    def initial(self, members: list[MemberSpec], run_seed: int) -> torch.Tensor:
        """theta [K, P]: uniform in +-1/sqrt(fan in), zero bias, a small head; a function of each member's name alone."""
        rows = []
        for member in members:
            rng = seeding.generator(run_seed, "train", *member.name.encode())
            parts = []
            for name, shape in self.shapes.items():
                bound = (0.1 if name.startswith("head") else 1.0) / math.sqrt(shape[0])
                parts.append(rng.uniform(-bound, bound, shape).reshape(-1) if len(shape) == 2 else np.zeros(shape[0]))
            rows.append(np.concatenate(parts))
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def forward(self, theta: torch.Tensor, task: str, inputs: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
        """theta [K, P], inputs [T, B, O], first [T, B] -> [K, T, B, W]. Memoryless students ignore `first`."""
        members, (time, batch, width) = theta.shape[0], inputs.shape
        named = self._named(theta)
        i = self._index[task]
        if self.architecture.recurrent:
            if first is None:
                raise ValueError("a recurrent student needs `first`")
            hidden = self._gru(named, i, inputs, first)
        else:
            hidden = inputs.reshape(1, time * batch, width).expand(members, -1, -1)
            for layer in range(len(self.architecture.widths)):
                hidden = ACTIVATE[self.architecture.activation](
                    _affine(named, f"stem{i}" if layer == 0 else f"trunk{layer}", hidden)
                )
        return _affine(named, f"head{i}", hidden).reshape(members, time, batch, -1)

    def _named(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = torch.split(theta, self._sizes, dim=1)  # its backward is one concatenation
        return {
            name: part.view(len(theta), *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _gru(
        self, named: Mapping[str, torch.Tensor], i: int, inputs: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        members, (time, batch, width) = len(named["trunk0.bias"]), inputs.shape
        flat = inputs.reshape(1, time * batch, width).expand(members, -1, -1)
        from_x = _affine(named, f"stem{i}", flat).reshape(members, time, batch, -1)
        hidden = inputs.new_zeros(members, batch, self.architecture.widths[0])
        outputs = []
        for t in range(time):
            hidden = hidden * (~first[t])[None, :, None]
            from_h = _affine(named, "trunk0", hidden)
            (xr, xz, xn), (hr, hz, hn) = from_x[:, t].chunk(3, -1), from_h.chunk(3, -1)
            update = torch.sigmoid(xz + hz)
            new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            hidden = (1 - update) * new + update * hidden
            outputs.append(hidden)
        return torch.stack(outputs, dim=1).reshape(members, time * batch, -1)

    def freeze(self, row: Floats, task: str, normaliser: Normaliser | None, name: str) -> Blueprint:
        """One member on one task as plain arrays."""
        port, i = self.ports[task], self._index[task]
        arrays, position = {}, 0
        for (key, shape), size in zip(self.shapes.items(), self._sizes, strict=True):
            arrays[key] = np.array(
                row[position : position + size].reshape(shape), np.float32
            )  # a copy: training goes on
            position += size
        layers: list[Layer] = []
        if self.architecture.recurrent:
            layers.append(
                Gru(arrays[f"stem{i}.weight"], arrays["trunk0.weight"], arrays[f"stem{i}.bias"], arrays["trunk0.bias"])
            )
        else:
            for layer in range(len(self.architecture.widths)):
                key = f"stem{i}" if layer == 0 else f"trunk{layer}"
                layers.append(Dense(arrays[f"{key}.weight"], arrays[f"{key}.bias"], self.architecture.activation))
        layers.append(Dense(arrays[f"head{i}.weight"], arrays[f"head{i}.bias"]))
        return Blueprint(port.spec, port.head, tuple(layers), port.view, normaliser, name=name)


def _affine(named: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """[K, N, in] -> [K, N, out]."""
    return torch.baddbmm(named[f"{name}.bias"][:, None, :], x, named[f"{name}.weight"])
