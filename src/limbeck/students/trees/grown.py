"""Grown members of the family: every round leaves an iterate, and the best of all of them is chosen by return."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from limbeck.contracts import Array, Blueprint, Sparse, Tree
from limbeck.errors import InputError
from limbeck.runtimes.numpy import leaf_of
from limbeck.students.grammar import Architecture, MemberSpec
from limbeck.students.port import Port
from limbeck.students.trees import cart, growth, numbers, rules
from limbeck.students.trees.numbers import Grown
from limbeck.students.trees.targets import Examples

MOST_INPUTS = 4096


@dataclass
class Grove:
    """The surviving members of one grown architecture on one task."""

    architecture: Architecture
    task: str
    port: Port
    members: list[MemberSpec]
    iterates: dict[str, list[Grown]] = field(default_factory=dict)  # by member: one per round, the newest last
    pool: dict[str, list[Grown]] = field(default_factory=dict)  # by member: other candidates of the newest round

    def current(self, name: str) -> Grown:
        """The newest iterate; before the first round, what says nothing."""
        return self.iterates[name][-1] if self.iterates.get(name) else silent(self.architecture, self.port)

    def candidates(self, name: str) -> list[Grown]:
        """All that may be chosen for a member, each once, the newest first."""
        found: dict[bytes, Grown] = {}
        for layer in [*reversed(self.iterates.get(name, [])), *self.pool.get(name, [])]:
            found.setdefault(b"".join(a.tobytes() for a in numbers.to_arrays(layer).values()), layer)
        return list(found.values())

    def grow(self, member: MemberSpec, examples: Examples, seed: int, keep: int) -> float:
        """One more iterate from weighted rows; its weighted loss on them."""
        wanted = self.architecture
        if wanted.kind in ("rule", "ternary"):
            found = rules.search(examples, wanted.numbers, wanted.kind == "ternary", keep)
            layer: Grown = found[0].layer
            loss = found[0].loss
            self.pool[member.name] = [one.layer for one in found[1:]]
        else:
            tree = growth.tree(examples, wanted.leaves, wanted.depth, wanted.kind == "oblique", seed)
            layer, loss = tree, rules.loss_of(examples, tree.rows[leaf_of(tree, examples.x)])
        self.iterates.setdefault(member.name, []).append(layer)
        return loss

    def choose(self, name: str, layer: Grown) -> None:
        """Settle on one candidate: the others are forgotten."""
        self.iterates[name], self.pool[name] = [layer], []

    def freeze(self, layer: Grown, name: str) -> Blueprint:
        """A member as plain arrays. Leaves become labels where one greedy answer is all that is ever asked of them."""
        port = self.port
        if isinstance(layer, Tree) and port.head.kind in ("categorical", "q") and port.view.mask is None:
            layer = replace(layer, leaves=layer.leaves.argmax(axis=1)[:, None].astype(np.float32))
        return Blueprint(port.spec, port.head, (layer,), port.view, None, name=name)

    # ------------------------------------------------ checkpoints

    def to_arrays(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for member in self.members:
            for kind, kept in (("iterate", self.iterates), ("pool", self.pool)):
                for n, layer in enumerate(kept.get(member.name, [])):
                    prefix = f"{member.name}/{kind}{n}"
                    arrays |= {f"{prefix}/{key}": value for key, value in numbers.to_arrays(layer).items()}
        return arrays

    def from_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Take over a checkpoint: members without an iterate in it were dropped before it was written."""
        self.members = [m for m in self.members if f"{m.name}/iterate0/numbers" in arrays]
        for kind, kept in (("iterate", self.iterates), ("pool", self.pool)):
            kept.clear()
            for member in self.members:
                pattern = re.compile(re.escape(f"{member.name}/{kind}") + r"(\d+)/(\w+)")
                parts: dict[int, dict[str, Array]] = {}
                for key, value in arrays.items():
                    if match := pattern.fullmatch(key):
                        parts.setdefault(int(match[1]), {})[match[2]] = np.array(value)
                kept[member.name] = [numbers.from_arrays(parts[n]) for n in sorted(parts)]


def silent(architecture: Architecture, port: Port) -> Grown:
    """What a member is before it has seen anything: all zeros."""
    says, none = port.says, np.zeros(0, np.float32)
    if architecture.kind in ("rule", "ternary"):
        return Sparse(none, none, ((),) * says, (), port.row)
    rows = np.zeros((1, says), np.float32)
    return Tree(none, np.zeros(1, np.float32), rows, ((0,),), ((-1, -1),), port.row, says)


def check(architecture: Architecture, port: Port) -> None:
    """Refuse observations and heads that trees and rules do not serve."""
    space, spec = port.spec.observation_space, architecture.spec
    if port.inputs > MOST_INPUTS:
        raise InputError(
            f"student {spec!r} asks about single numbers, and the observation {space} has {port.inputs:,} of them with its "
            f"history. Allowed: up to {MOST_INPUTS:,}; pick some with keys and indices, or choose cnn or mlp."
        )
    if port.agents > 1:
        raise InputError(
            f"student {spec!r} serves one agent, the task has {port.agents}. Allowed for many agents: linear, mlp, cnn."
        )
    if architecture.kind in ("tree", "oblique") and (lacks := cart.missing()):
        raise InputError(f"student {spec!r} needs {lacks}.")
