"""The family: every member of every size over the same batches, in one stack per architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from limbeck.contracts import Array, Blueprint, Floats, Normaliser
from limbeck.students.grammar import MemberSpec
from limbeck.students.port import Port
from limbeck.students.stack import Stack


@dataclass
class Rows:
    """The surviving members of one stack with their weights and Adam's two moments, one row each."""

    stack: Stack
    members: list[MemberSpec]
    theta: torch.Tensor  # [K, P]
    mean: torch.Tensor  # [K, P] Adam's first moment
    square: torch.Tensor  # [K, P] Adam's second moment
    steps: int = 0
    tuned: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # factors [K] on weights and temperature, `objective.evaluate`


@dataclass
class Family:
    """K students on the same tasks. A single student is a family of one."""

    ports: Mapping[str, Port]
    normalisers: dict[str, Normaliser]  # by task, fixed by the first round's observations
    stacks: list[Rows]

    @property
    def members(self) -> list[MemberSpec]:
        return [member for rows in self.stacks for member in rows.members]

    def blueprint(self, name: str, task: str) -> Blueprint:
        """One member on one task, frozen."""
        rows, k = self._find(name)
        return rows.stack.freeze(rows.theta[k].detach().numpy(), task, self.normalisers.get(task), name)

    def keep(self, names: Iterable[str]) -> None:
        """Drop every member not named; empty stacks go."""
        wanted = set(names)
        for rows in self.stacks:
            index = [k for k, member in enumerate(rows.members) if member.name in wanted]
            rows.members = [rows.members[k] for k in index]
            rows.tuned = {key: factors[index].clone() for key, factors in rows.tuned.items()}
            rows.theta, rows.mean, rows.square = (
                tensor[index].clone() for tensor in (rows.theta, rows.mean, rows.square)
            )
        self.stacks = [rows for rows in self.stacks if rows.members]

    def row(self, name: str) -> Floats:
        """[P] weights of one member's policy, a copy."""
        rows, k = self._find(name)
        return rows.theta[k, : rows.stack.parameters].detach().numpy().copy()

    def put(self, name: str, weights: Floats) -> None:
        """Replace the weights of one member."""
        rows, k = self._find(name)
        rows.theta[k, : rows.stack.parameters] = torch.from_numpy(np.asarray(weights, np.float32))

    def stack_of(self, name: str) -> Stack:
        return self._find(name)[0].stack

    def _find(self, name: str) -> tuple[Rows, int]:
        for rows in self.stacks:
            for k, member in enumerate(rows.members):
                if member.name == name:
                    return rows, k
        raise KeyError(name)

    # ------------------------------------------------ checkpoints

    def to_arrays(self) -> dict[str, Array]:
        """Everything that training continues from."""
        arrays: dict[str, Array] = {}
        for rows in self.stacks:
            for k, member in enumerate(rows.members):
                arrays[f"{member.name}/theta"] = rows.theta[k].detach().numpy()
                arrays[f"{member.name}/mean"], arrays[f"{member.name}/square"] = (
                    rows.mean[k].numpy(),
                    rows.square[k].numpy(),
                )
            arrays[f"{rows.members[0].name}/steps"] = np.array([rows.steps])
        for task, normaliser in self.normalisers.items():
            arrays[f"normaliser/{task}/mean"], arrays[f"normaliser/{task}/scale"] = normaliser.mean, normaliser.scale
        return arrays

    def from_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Take over a checkpoint: members that are not in it were dropped before it was written."""
        self.keep(name for name in (m.name for m in self.members) if f"{name}/theta" in arrays)
        for rows in self.stacks:
            for key, tensor in (("theta", rows.theta), ("mean", rows.mean), ("square", rows.square)):
                for k, member in enumerate(rows.members):
                    tensor[k] = torch.from_numpy(np.array(arrays[f"{member.name}/{key}"]))
            rows.steps = int(arrays[f"{rows.members[0].name}/steps"][0])
        self.normalisers = {
            task: Normaliser(np.array(arrays[f"normaliser/{task}/mean"]), np.array(arrays[f"normaliser/{task}/scale"]))
            for task in self.ports
            if f"normaliser/{task}/mean" in arrays
        }


def build(
    members: Sequence[MemberSpec],
    ports: Mapping[str, Port],
    run_seed: int,
    owned: Callable[[Stack], Mapping[str, tuple[int, ...]]] | None = None,
) -> Family:
    """Fresh members, one stack per architecture, in the order of first mention.

    `owned`: a stack's students -> shapes of the losses' own parameters (`objective.owned`).
    """
    stacks = []
    for architecture in dict.fromkeys(member.architecture for member in members):
        mine = [member for member in members if member.architecture == architecture]
        stack = Stack(architecture, ports)
        if owned is not None:
            stack = Stack(architecture, ports, owned(stack))
        theta = stack.initial(mine, run_seed)
        stacks.append(Rows(stack, mine, theta, torch.zeros_like(theta), torch.zeros_like(theta)))
    return Family(dict(ports), {}, stacks)
