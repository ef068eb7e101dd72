"""K students of one shape trained as one: their weights are the rows of a matrix theta [K, P].

A member's row depends on its own loss alone, so a member trained in the stack equals the same member trained alone
(to float rounding). Rows are dropped when a race is lost, cloned when a student branches.
A student is stem[task] -> trunk -> head[task]; the usual run has one task. What depends on a task's input is its stem:
the convolutions and the first dense layer, or a GRU's weights on its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from limbeck import blueprints, seeding
from limbeck.contracts import Blueprint, Dense, Floats, Gru, Layer, Normaliser, Shared
from limbeck.contracts.quantised import storage_bits
from limbeck.errors import InputError
from limbeck.students import quantised
from limbeck.students.activations import ACTIVATE
from limbeck.students.convolution import Front, front_of
from limbeck.students.grammar import Architecture, MemberSpec, layer_widths
from limbeck.students.port import Port, check_port
from limbeck.students.weave import Weave

__all__ = ["Port", "Seen", "Stack"]


@dataclass(frozen=True)
class Seen:
    """A forward pass with what lies inside."""

    params: torch.Tensor  # [K, T, B, W]
    hidden: Mapping[str, torch.Tensor]  # layer -> [K, T, B, F]; "last" is what the head reads
    own: Mapping[str, torch.Tensor]  # the losses' own parameters, name -> [K, ...]


class Stack:
    """The layout of theta for one architecture on some tasks, and the forward pass over all its rows.

    A row of theta is the policy's P numbers, then the losses' own (`owned`), which freezing leaves behind; with a
    `weave` it is the numbers that such rows are made from (nested widths, adapters).
    """

    def __init__(
        self,
        architecture: Architecture,
        ports: Mapping[str, Port],
        owned: Mapping[str, tuple[int, ...]] | None = None,
        weave: Weave | None = None,
    ) -> None:
        self.architecture, self.ports, self.owned = architecture, dict(ports), dict(owned or {})
        self.weave = weave
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._fronts: list[Front | None] = []
        for i, port in enumerate(ports.values()):
            check_port(port, architecture)
            self._fronts.append(front_of(architecture, port.spec.observation_space, port.view, port.row, port.agents))
            self._layout(i, port)
        if architecture.rank and not any(name.endswith(".down.weight") for name in self.shapes):
            raise _nothing_smaller(architecture)
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self._index = {task: i for i, task in enumerate(ports)}

    @property
    def parameters(self) -> int:
        """P, of the policy alone."""
        return sum(self._sizes)

    def hidden_shapes(self, task: str) -> dict[str, tuple[int, ...]]:
        """The hidden layers that losses may read: (F,) of a dense layer or a memory, (height, width, channels) of a convolution."""
        front, port = self._fronts[self._index[task]], self.ports[task]
        shapes: dict[str, tuple[int, ...]] = {}
        if front is not None:
            shapes |= {f"conv{n}": (*layer.out_size, layer.filters) for n, layer in enumerate(front.layers)}
        shapes |= {f"dense{n}": (width,) for n, width in enumerate(self.architecture.widths)}
        if self.architecture.memory:
            shapes["memory"] = (self.architecture.memory,)
        last = front.outputs if front is not None else port.row
        last = self.architecture.memory or (self.architecture.widths[-1] if self.architecture.widths else last)
        return {**shapes, "last": (last,)}

    @property
    def bits(self) -> int:
        """Of the stored numbers, weights and the few beside them: what makes one student larger than another."""
        chains = [self.chain(i) for i in range(len(self.ports))] if self.architecture.precision else []
        links = [link for chain in chains for link in chain.links]
        widths = {name: storage_bits(link.width) for link in links for name in link.weights}
        return sum(size * widths.get(name, 32) for name, size in zip(self.shapes, self._sizes, strict=True))

    @property
    def pixels(self) -> bool:
        """Whether inputs arrive as `port.scaled` says, the image divided by a constant, instead of normalised number by number."""
        return self.architecture.kind == "cnn"

    def _layout(self, i: int, port: Port) -> None:
        front, width, memory = self._fronts[i], port.row, self.architecture.memory
        if front is not None:
            self.shapes |= front.shapes(f"stem{i}")
            width = front.outputs
        for layer, size in enumerate(self.architecture.widths):
            self.shapes |= _layer(_name(i, layer), width, size, self.architecture.rank)
            width = size
        if memory:
            self.shapes |= _dense(_name(i, len(self.architecture.widths)), width, 3 * memory)
            self.shapes |= _dense("memory", memory, 3 * memory)
            width = memory
        self.shapes |= _dense(f"head{i}", width, port.says)
        if self.architecture.precision:
            self.shapes |= self.chain(i).shapes(self.shapes)

    def initial(self, members: list[MemberSpec], run_seed: int) -> torch.Tensor:
        """theta [K, P]: uniform in +-1/sqrt(fan in), zero bias, a small head; a function of each member's name alone."""
        fresh = self.fresh if self.weave is None else self.weave.fresh
        return torch.from_numpy(np.stack([fresh(member, run_seed) for member in members]))

    def fresh(self, member: MemberSpec, run_seed: int) -> Floats:
        """[P + own] where a member begins."""
        rng = seeding.generator(run_seed, "train", *member.name.encode())
        parts = []
        for name, shape in {**self.shapes, **self.owned}.items():
            bound = (0.1 if name.startswith("head") else 1.0) / math.sqrt(math.prod(shape[:-1]))
            parts.append(rng.uniform(-bound, bound, shape).reshape(-1) if len(shape) > 1 else np.zeros(shape[0]))
        return self._begun(np.concatenate(parts).astype(np.float32), quantised.FRESH)

    def _begun(self, row: Floats, reach: float) -> Floats:
        """A row [P, ...] with the numbers beside weights and biases filled in, where there are any."""
        if self.architecture.precision:
            with torch.no_grad():
                named = self._policy(row)
                for i in range(len(self.ports)):
                    quantised.begin(self.chain(i), named, reach)
        return row

    def plain(self, theta: torch.Tensor) -> torch.Tensor:
        """Trained numbers [K, Q] -> [K, P + own], the rows of the policies they stand for."""
        return theta if self.weave is None else self.weave.plain(theta)

    @property
    def trained(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a row of theta, in order."""
        return {**self.shapes, **self.owned} if self.weave is None else dict(self.weave.shapes)

    def chain(self, i: int) -> quantised.Chain:
        """The layers of students in whole numbers on the task number `i`."""
        front, row = self._fronts[i], list(self.ports.values())[i].row
        links = []
        for n, convolution in enumerate(() if front is None else front.layers):
            layout = "hwc" if n or front is None else front.layout
            links.append(quantised.Link(f"stem{i}.conv{n}", convolution.activation, convolution, layout))
        for layer in range(len(self.architecture.widths)):
            name = _name(i, layer)
            links += [quantised.Link(f"{name}.down", "identity")] if self.factorised(name) else []
            links.append(quantised.Link(name, self.architecture.activation))
        if self.architecture.recurrent:
            links.append(quantised.Link(_name(i, len(self.architecture.widths)), "tanh", memory="memory"))
        links.append(quantised.Link(f"head{i}", ""))
        widths = layer_widths(self.architecture.precision, len(links))
        links = [replace(link, width=width) for link, width in zip(links, widths, strict=True)]
        if front is None:
            return quantised.Chain(f"inputs{i}", tuple(links), row, row)
        ranges, scale = (1, front.scale) if self.pixels else (front.layers[0].channels, 0.0)
        return quantised.Chain(f"inputs{i}", tuple(links), row, ranges, scale)

    def see(self, theta: torch.Tensor, task: str, rows: torch.Tensor, *, fresh: bool) -> None:
        """Find the ranges of students in whole numbers on rows [N, in], in place: of the inputs, and where no gradient
        step was taken yet (`fresh`) of the layers."""
        if not self.architecture.precision:
            return
        with torch.no_grad():
            named, chain = self._named(theta), self.chain(self._index[task])
            rows = rows.reshape(-1, self.ports[task].row)
            quantised.see_inputs(chain, named, rows)
            if fresh:
                some = np.linspace(0, len(rows) - 1, min(quantised.SAMPLE, len(rows))).astype(np.int64)
                quantised.see_layers(chain, named, rows[torch.from_numpy(some)])

    def names(self, task: str) -> dict[str, str]:
        """Hidden dense layers and the head, as losses and recipes name them, and how theta's tensors of each begin."""
        i = self._index[task]
        return {**{f"dense{n}": _name(i, n) for n in range(len(self.architecture.widths))}, "head": f"head{i}"}

    def factorised(self, name: str) -> bool:
        """Whether a dense layer is a product of two: `name`.down, then `name`."""
        return f"{name}.down.weight" in self.shapes

    def pack(self, arrays: Mapping[str, Floats]) -> Floats:
        """The policy's tensors by name -> [P]."""
        if not self.architecture.precision:
            return np.concatenate([np.asarray(arrays[name], np.float32).reshape(-1) for name in self.shapes])
        given = {name: arrays[name] if name in arrays else np.zeros(shape) for name, shape in self.shapes.items()}
        return self._begun(
            np.concatenate([np.asarray(a, np.float32).reshape(-1) for a in given.values()]), quantised.LEAST
        )

    def unpack(self, row: Floats) -> dict[str, Floats]:
        """[P] -> the policy's tensors by name."""
        return {name: part[0].numpy().copy() for name, part in self._policy(np.array(row, np.float32)).items()}

    def forward(self, theta: torch.Tensor, task: str, inputs: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
        """theta [K, P + own], inputs [T, B, O], first [T, B] -> [K, T, B, W]. Memoryless students ignore `first`."""
        return self.look(theta, task, inputs, first, maps=False).params

    def look(
        self,
        theta: torch.Tensor,
        task: str,
        inputs: torch.Tensor,
        first: torch.Tensor | None,
        *,
        maps: bool = True,
        drop: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Seen:
        """The forward pass with its hidden layers; `maps`: those of the convolutions too, which costs a copy;
        `drop` is applied to what each dense layer says, [K, N, F]."""
        members, (time, batch, _) = theta.shape[0], inputs.shape
        named = self._named(theta)
        i = self._index[task]
        front, depth = self._fronts[i], len(self.architecture.widths)
        rows = inputs.reshape(time * batch * self.ports[task].agents, -1)
        seen: dict[str, torch.Tensor] = {}
        if self.architecture.precision:
            params, given = quantised.forward(self.chain(i), named, rows, first, drop)
            seen = {f"conv{n}": given[f"stem{i}.conv{n}"] for n in range(len(front.layers) if front else 0)}
            seen |= {f"dense{n}": given[_name(i, n)] for n in range(depth)}
            if self.architecture.recurrent:
                seen["memory"] = given[_name(i, depth)]
            seen["last"] = list(seen.values())[-1] if seen else rows[None].expand(members, -1, -1)
            shaped = {name: value.reshape(members, time, batch, -1) for name, value in seen.items()}
            own = {name: named[name] for name in self.owned}
            return Seen(params.reshape(members, time, batch, -1), shaped, own)
        if front is None:
            hidden = rows[None].expand(members, -1, -1)  # [K, N, F]
        else:
            hidden = front.forward(named, f"stem{i}", rows, seen if maps else None)
        for layer in range(depth):
            name = _name(i, layer)
            if self.architecture.rank and self.factorised(name):
                hidden = _affine(named, f"{name}.down", hidden)
            hidden = ACTIVATE[self.architecture.activation](_affine(named, name, hidden))
            hidden = hidden if drop is None else drop(hidden)
            seen[f"dense{layer}"] = hidden
        if self.architecture.recurrent:
            if first is None:
                raise ValueError("a recurrent student needs `first`")
            hidden = self._gru(named, _affine(named, _name(i, depth), hidden), first)
            seen["memory"] = hidden
        seen["last"] = hidden
        params = _affine(named, f"head{i}", hidden).reshape(members, time, batch, -1)
        shaped = {name: value.reshape(members, time, batch, -1) for name, value in seen.items()}
        return Seen(params, shaped, {name: named[name] for name in self.owned})

    def _named(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        theta = self.plain(theta)
        shapes = {**self.shapes, **self.owned}
        parts = torch.split(
            theta, [math.prod(shape) for shape in shapes.values()], dim=1
        )  # its backward is one concatenation
        return {name: part.view(len(theta), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def _policy(self, row: Floats) -> dict[str, torch.Tensor]:
        """The policy's tensors of one row [P, ...], each [1, ...], in its memory."""
        parts = torch.split(torch.from_numpy(row)[None, : self.parameters], self._sizes, dim=1)
        return {n: part.view(1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _gru(self, named: Mapping[str, torch.Tensor], gates: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """The input's part of all gates [K, T * B, 3H], first [T, B] -> [K, T * B, H]."""
        members, (time, batch) = len(gates), first.shape
        from_x = gates.reshape(members, time, batch, -1)
        hidden = gates.new_zeros(members, batch, self.architecture.memory)
        outputs = []
        for t, now in enumerate(from_x.unbind(1)):  # slices would each have a gradient as large as all of them
            hidden = hidden * (~first[t])[None, :, None]
            from_h = _affine(named, "memory", hidden)
            (xr, xz, xn), (hr, hz, hn) = now.chunk(3, -1), from_h.chunk(3, -1)
            update = torch.sigmoid(xz + hz)
            new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            hidden = (1 - update) * new + update * hidden
            outputs.append(hidden)
        return torch.stack(outputs, dim=1).reshape(members, time * batch, -1)

    def freeze(self, row: Floats, task: str, normaliser: Normaliser | None, name: str) -> Blueprint:
        """One member on one task as plain arrays. Of a student of images the scale of the pixels is folded in already."""
        port, i = self.ports[task], self._index[task]
        if self.architecture.precision:
            return self._frozen_whole(row, i, normaliser, name)
        if self.weave is not None:
            row = self.plain(torch.from_numpy(np.asarray(row)[None]))[0].numpy()
        arrays, position = {}, 0
        for (key, shape), size in zip(self.shapes.items(), self._sizes, strict=True):
            arrays[key] = np.array(
                row[position : position + size].reshape(shape), np.float32
            )  # a copy: training goes on
            position += size
        front, depth = self._fronts[i], len(self.architecture.widths)
        if self.pixels and front is not None:
            normaliser = self._folded(arrays, i, front, normaliser)
        layers: list[Layer] = [] if front is None else front.freeze(arrays, f"stem{i}")
        for layer in range(depth):
            key = _name(i, layer)
            if self.factorised(key):
                layers.append(Dense(arrays[f"{key}.down.weight"], arrays[f"{key}.down.bias"]))
            layers.append(Dense(arrays[f"{key}.weight"], arrays[f"{key}.bias"], self.architecture.activation))
        if self.architecture.recurrent:
            key = _name(i, depth)
            layers.append(
                Gru(arrays[f"{key}.weight"], arrays["memory.weight"], arrays[f"{key}.bias"], arrays["memory.bias"])
            )
        layers.append(Dense(arrays[f"head{i}.weight"], arrays[f"head{i}.bias"]))
        if port.agents > 1:
            layers = [Shared(tuple(layers), port.agents)]
        return Blueprint(port.spec, port.head, tuple(layers), port.view, normaliser, name=name)

    def _frozen_whole(self, row: Floats, i: int, normaliser: Normaliser | None, name: str) -> Blueprint:
        """The normaliser goes into the quantiser, except where the zeros before an episode's start are normalised ones;
        the scale of pixels is in it already."""
        port, normaliser = list(self.ports.values())[i], None if self.pixels else normaliser
        stays = normaliser is not None and (
            math.isfinite(normaliser.clip) or (port.view.history > 1 and port.view.padding == "zero")
        )
        named = self._policy(np.array(row, np.float32))
        layers: tuple[Layer, ...] = tuple(quantised.freeze(self.chain(i), named, None if stays else normaliser))
        if port.agents > 1:
            layers = (Shared(layers, port.agents),)
        return Blueprint(port.spec, port.head, layers, port.view, normaliser if stays else None, name=name)

    def _folded(
        self, arrays: dict[str, Floats], i: int, front: Front, normaliser: Normaliser | None
    ) -> Normaliser | None:
        """What is left of the normaliser once the numbers beside an image have been folded into the layer that reads them."""
        if normaliser is None or not front.beside:
            return None
        places, read = front.passed()
        mean, scale = normaliser.mean[places], normaliser.scale[places]
        if not blueprints.foldable(mean, scale):
            kept = Normaliser(np.zeros_like(normaliser.mean), np.ones_like(normaliser.scale))
            kept.mean[places], kept.scale[places] = mean, scale
            return kept
        key = _name(i, 0) if self.architecture.widths or self.architecture.memory else f"head{i}"
        key = f"{key}.down" if self.factorised(key) else key
        weight, bias = arrays[f"{key}.weight"], arrays[f"{key}.bias"]
        weight[read], arrays[f"{key}.bias"] = blueprints.absorbed(weight[read], bias, mean, scale)
        return None


def _name(i: int, layer: int) -> str:
    """The first layer after the convolutions reads a task's own numbers, the others are shared by all tasks."""
    return f"stem{i}" if layer == 0 else f"trunk{layer}"


def _layer(name: str, width: int, size: int, rank: int) -> dict[str, tuple[int, ...]]:
    """A dense layer, or two without an activation between them where `rank` (0: none) makes them fewer numbers."""
    if not rank or rank * (width + size + 1) >= width * size:
        return _dense(name, width, size)
    return {**_dense(f"{name}.down", width, rank), **_dense(name, rank, size)}


def _nothing_smaller(architecture: Architecture) -> InputError:
    return InputError(
        f"student {architecture.spec!r}: no dense layer becomes smaller as a product of rank {architecture.rank}. "
        "Allowed: ranks below in x out / (in + out + 1) of some layer before the head; else leave the rank away."
    )


def _dense(name: str, width: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width, size), f"{name}.bias": (size,)}


def _affine(named: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """[K, N, in] -> [K, N, out]."""
    return torch.baddbmm(named[f"{name}.bias"][:, None, :], x, named[f"{name}.weight"])
