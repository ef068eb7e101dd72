"""Adapters and masks: what of a student is trained where its weights were inherited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbeck import seeding
from limbeck.contracts import Floats
from limbeck.errors import InputError, printable
from limbeck.students.grammar import MemberSpec
from limbeck.students.stack import Stack

DOWN, UP = "adapter/down/", "adapter/up/"
APART = 256  # ends a counter made of a name's bytes, which are below it


@dataclass(frozen=True)
class Adapters:
    """W + down @ up for dense weights W that stay as they are (Hu et al. 2021, arXiv:2106.09685).

    `up` begins at zero, so that a student begins as what it inherited. The factor alpha / r of the paper is 1: Adam's
    step does not depend on a gradient's scale.
    """

    stack: Stack  # plain
    rank: int
    adapted: tuple[str, ...]  # weights of `stack`

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The plain row's tensors, then each adapter's two: rank x (in + out) numbers."""
        shapes = dict(self.stack.trained)
        for name in self.adapted:
            width, size = self.stack.shapes[name]
            shapes |= {f"{DOWN}{name}": (width, self.rank), f"{UP}{name}": (self.rank, size)}
        return shapes

    def plain(self, theta: torch.Tensor) -> torch.Tensor:
        """[K, Q] -> [K, P + own], the adapters added to what they adapt."""
        shapes = self.shapes
        parts = torch.split(theta, [math.prod(shape) for shape in shapes.values()], dim=1)
        named = dict(zip(shapes, parts, strict=True))
        rows = []
        for name in self.stack.trained:
            part = named[name]
            if name in self.adapted:
                down, up = (named[f"{side}{name}"].view(-1, *shapes[f"{side}{name}"]) for side in (DOWN, UP))
                part = part + torch.bmm(down, up).flatten(1)
            rows.append(part)
        return torch.cat(rows, dim=1)

    def fresh(self, member: MemberSpec, run_seed: int) -> Floats:
        rng = seeding.generator(run_seed, "train", *member.name.encode(), APART)
        parts = [self.stack.fresh(member, run_seed)]
        for name, shape in list(self.shapes.items())[len(self.stack.trained) :]:
            bound = 1.0 / math.sqrt(shape[0]) if name.startswith(DOWN) else 0.0
            parts.append(rng.uniform(-bound, bound, math.prod(shape)).astype(np.float32))
        return np.concatenate(parts)


def adapted(stack: Stack, task: str, rank: int, frozen: Sequence[str]) -> Stack:
    """The stack with an adapter of `rank` on every dense weight and the head, except the layers that stay frozen."""
    if stack.architecture.rank or stack.architecture.precision or stack.architecture.kind not in ("mlp", "linear"):
        raise InputError(
            f"imitate.adapt adds products to whole dense layers; student {stack.architecture.spec!r} has others. "
            "Allowed: mlp and linear students without a rank or a width of weights of their own."
        )
    names = tuple(f"{begin}.weight" for layer, begin in stack.names(task).items() if layer not in frozen)
    sizes = [stack.shapes[name] for name in names]
    if sizes and all(rank * (width + size) >= width * size for width, size in sizes):
        largest = max((width * size - 1) // (width + size) for width, size in sizes)
        allowed = f"r1 to r{largest}" if largest else "none here"
        raise InputError(
            f"imitate.adapt = r{rank} makes no layer of student {stack.architecture.spec!r} smaller: a product of that rank has "
            f"rank x (in + out) numbers, at least as many as in x out. Allowed: {allowed}; else drop it, and the layers are trained whole."
        )
    plain = Stack(stack.architecture, stack.ports, stack.owned)
    return Stack(stack.architecture, stack.ports, stack.owned, Adapters(plain, rank, names))


def held(stack: Stack, task: str, frozen: Sequence[str]) -> torch.Tensor | None:
    """[Q] what gradients are multiplied by: 0 where numbers stay as they are, None where all are trained."""
    adapters = isinstance(stack.weave, Adapters)
    if not frozen and not adapters:
        return None
    layers = stack.names(task)
    for layer in frozen:
        if layer not in layers:
            raise InputError(
                f"imitate.freeze: student {stack.architecture.spec!r} has no layer {printable(layer)!r}. "
                f"Allowed for it: {', '.join(layers)}."
            )
    still = tuple(f"{layers[layer]}." for layer in frozen)
    parts = []
    for name, shape in stack.trained.items():
        own = name.rpartition("/")[2] if stack.architecture.whole else name
        fixed = own in stack.shapes and (adapters or own.startswith(still))
        parts.append(torch.full((math.prod(shape),), 0.0 if fixed else 1.0))
    return torch.cat(parts)
