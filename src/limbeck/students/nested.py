"""Nested widths (Matryoshka): one set of weights whose leading rows and columns are every narrower network.

W[:in, :out] is shared by all widths; each width has its own biases, head and losses' own parameters, because shared ones
are where slimmable networks fail (Yu et al. 2019, arXiv:1812.08928). All widths learn from the teacher itself; a step
trains the widest, the narrowest and two between them (the sandwich rule of Yu & Huang 2019, arXiv:1903.05134).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbeck import seeding
from limbeck.contracts import Floats
from limbeck.students.grammar import MemberSpec
from limbeck.students.stack import Stack

BETWEEN = 2  # widths of a step beside the widest and the narrowest


@dataclass(frozen=True)
class Nest:
    """What makes one width's rows from the numbers of the whole network; one per width, all on the same numbers."""

    stacks: tuple[Stack, ...]  # plain, widest first
    mine: int  # which of them this weave makes rows for

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shared weights by their names, then each width's own as "w16/head0.weight"."""
        shapes = {name: shape for name, shape in self.stacks[0].shapes.items() if shared(name)}
        for stack in self.stacks:
            own = {name: shape for name, shape in stack.trained.items() if not shared(name)}
            shapes |= {f"{label(stack)}/{name}": shape for name, shape in own.items()}
        return shapes

    def plain(self, theta: torch.Tensor) -> torch.Tensor:
        """[K, Q] -> [K, P + own] of this width."""
        named = self.split(theta)
        stack = self.stacks[self.mine]
        parts = []
        for name, shape in stack.trained.items():
            part = named[name][:, : shape[0], : shape[1]] if shared(name) else named[f"{label(stack)}/{name}"]
            parts.append(part.reshape(len(theta), -1))
        return torch.cat(parts, dim=1)

    def split(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        """[K, Q] -> the trained tensors, each [K, ...]."""
        parts = torch.split(theta, [math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.view(len(theta), *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def fresh(self, member: MemberSpec, run_seed: int) -> Floats:
        """The same for all widths of one seed: that of the widest network, and of each width what is its own."""
        widest = MemberSpec(net_of(member), self.stacks[0].architecture, member.seed)
        arrays = _named(self.stacks[0], self.stacks[0].fresh(widest, run_seed))
        named = {name: array for name, array in arrays.items() if shared(name)}
        for stack in self.stacks:
            alone = MemberSpec(f"{net_of(member)}/{label(stack)}", stack.architecture, member.seed)
            own = _named(stack, stack.fresh(alone, run_seed))
            named |= {f"{label(stack)}/{name}": array for name, array in own.items() if not shared(name)}
        return np.concatenate([named[name].reshape(-1) for name in self.shapes])

    def pack(self, widths: Mapping[str, Mapping[str, Floats]]) -> Floats:
        """The policies' tensors by width's label and name -> [Q], the losses' own at zero; shared ones are the widest's."""
        wanted = {name: widths[label(self.stacks[0])][name] for name in self.stacks[0].shapes if shared(name)}
        for stack in self.stacks:
            mine = widths[label(stack)]
            wanted |= {f"{label(stack)}/{name}": mine[name] for name in stack.shapes if not shared(name)}
        return np.concatenate(
            [
                np.asarray(wanted.get(name, np.zeros(shape)), np.float32).reshape(-1)
                for name, shape in self.shapes.items()
            ]
        )


def shared(name: str) -> bool:
    """Whether all widths read a tensor: weights before the head."""
    return name.endswith(".weight") and name.startswith(("stem", "trunk"))


def label(stack: Stack) -> str:
    """Of a width: w16."""
    return f"w{stack.architecture.widths[0]}"


def net_of(member: MemberSpec) -> str:
    """The network a member is a slice of, its name.

    >>> from limbeck.students.grammar import parse
    >>> net_of(parse(["nested:8x8"])[1])
    'nested-8x8-s0'
    """
    architecture = member.architecture
    return member.name.replace(f"-w{architecture.widths[0]}", "", 1) if architecture.whole else member.name


def weights(stacks: Sequence[Stack]) -> list[float]:
    """Of the widths' losses in one step: 1 / sqrt(parameters), their sum 1."""
    given = [1.0 / math.sqrt(stack.parameters) for stack in stacks]
    return [weight / sum(given) for weight in given]


def sandwich(count: int, rng: np.random.Generator) -> list[int]:
    """Which of `count` widths, widest first, a step trains: both ends and two between them.

    >>> sandwich(3, np.random.default_rng(0))
    [0, 1, 2]
    """
    between = rng.permutation(np.arange(1, max(count - 1, 1)))[:BETWEEN]
    return sorted({0, *map(int, between), count - 1})


def stream(run_seed: int, round_number: int, net: str) -> np.random.Generator:
    """Of a network's sandwiches in one round."""
    return seeding.generator(run_seed, "train", round_number, 1, *net.encode())


def _named(stack: Stack, row: Floats) -> dict[str, Floats]:
    begins = np.cumsum([0, *(math.prod(shape) for shape in stack.trained.values())])
    return {
        name: row[begin : begin + math.prod(shape)].reshape(shape)
        for (name, shape), begin in zip(stack.trained.items(), begins[:-1], strict=True)
    }
