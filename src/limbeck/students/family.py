"""The family: every member of every size over the same batches, in one stack per architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from limbeck.contracts import Array, Blueprint, Floats, Normaliser
from limbeck.students import adapters, nested
from limbeck.students.grammar import Architecture, MemberSpec
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.students.trees import numbers
from limbeck.students.trees.grown import Grove


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
    beside: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # "average", "best": other weights [K, P] that are kept
    held: torch.Tensor | None = (
        None  # [P] what gradients are multiplied by: 0 where numbers stay; None: all are trained
    )


@dataclass
class Family:
    """K students on the same tasks. A single student is a family of one."""

    ports: Mapping[str, Port]
    normalisers: dict[str, Normaliser]  # by task, fixed by the first round's observations
    stacks: list[Rows]
    groves: list[Grove] = field(default_factory=list)  # members that are grown instead of trained

    @property
    def members(self) -> list[MemberSpec]:
        return [member for group in self.sizes for member in group]

    @property
    def sizes(self) -> list[list[MemberSpec]]:
        """The members of every architecture, trained ones first."""
        return [rows.members for rows in self.stacks] + [grove.members for grove in self.groves]

    def blueprint(self, name: str, task: str) -> Blueprint:
        """One member on one task, frozen."""
        if (grove := self.grove_of(name)) is not None:
            return grove.freeze(grove.current(name), name)
        rows, k = self._find(name)
        return rows.stack.freeze(rows.theta[k].detach().numpy(), task, self.normalisers.get(task), name)

    def keep(self, names: Iterable[str]) -> None:
        """Drop every member not named; empty stacks go."""
        wanted = set(names)
        for rows in self.stacks:
            index = [k for k, member in enumerate(rows.members) if member.name in wanted]
            rows.members = [rows.members[k] for k in index]
            rows.tuned = {key: factors[index].clone() for key, factors in rows.tuned.items()}
            rows.beside = {key: weights[index].clone() for key, weights in rows.beside.items()}
            rows.theta, rows.mean, rows.square = (
                tensor[index].clone() for tensor in (rows.theta, rows.mean, rows.square)
            )
        self.stacks = [rows for rows in self.stacks if rows.members]
        for grove in self.groves:
            grove.members = [member for member in grove.members if member.name in wanted]
        self.groves = [grove for grove in self.groves if grove.members]

    def row(self, name: str) -> Floats:
        """[P] weights of one member's policy, a copy."""
        if (grove := self.grove_of(name)) is not None:
            return numbers.flat(grove.current(name))
        rows, k = self._find(name)
        return rows.stack.plain(rows.theta[k : k + 1])[0, : rows.stack.parameters].detach().numpy().copy()

    def put(self, name: str, weights: Floats) -> None:
        """Replace the weights of one member."""
        if (grove := self.grove_of(name)) is not None:
            grove.choose(name, numbers.put(grove.current(name), weights))
            return
        rows, k = self._find(name)
        if rows.stack.weave is not None:
            raise ValueError(f"{name} shares its numbers with others: settle the family first")
        rows.theta[k, : rows.stack.parameters] = torch.from_numpy(np.asarray(weights, np.float32))

    def stack_of(self, name: str) -> Stack:
        return self._find(name)[0].stack

    def grove_of(self, name: str) -> Grove | None:
        """Where a grown member stands; None for trained ones."""
        return next((grove for grove in self.groves if any(m.name == name for m in grove.members)), None)

    def _find(self, name: str) -> tuple[Rows, int]:
        for rows in self.stacks:
            for k, member in enumerate(rows.members):
                if member.name == name:
                    return rows, k
        raise KeyError(name)

    def settle(self) -> None:
        """After the last round: nested widths part, adapters are added to what they adapt. Each member is its own row."""
        for rows in self.stacks:
            stack = rows.stack
            if stack.weave is not None:
                rows.theta = stack.plain(rows.theta).detach().clone()
                rows.beside = {key: stack.plain(weights).clone() for key, weights in rows.beside.items()}
                rows.mean, rows.square = torch.zeros_like(rows.theta), torch.zeros_like(rows.theta)
                rows.stack, rows.held = Stack(stack.architecture, stack.ports, stack.owned), None

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
                arrays |= {
                    f"{member.name}/tuned/{key}": factors[k : k + 1].numpy() for key, factors in rows.tuned.items()
                }
                arrays |= {f"{member.name}/beside/{key}": weights[k].numpy() for key, weights in rows.beside.items()}
            arrays[f"{rows.members[0].name}/steps"] = np.array([rows.steps])
        for grove in self.groves:
            arrays |= grove.to_arrays()
        for task, normaliser in self.normalisers.items():
            arrays[f"normaliser/{task}/mean"], arrays[f"normaliser/{task}/scale"] = normaliser.mean, normaliser.scale
        return arrays

    def from_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Take over a checkpoint: members that are not in it were dropped before it was written."""
        self.keep(
            name
            for name in (m.name for m in self.members)
            if f"{name}/theta" in arrays or f"{name}/iterate0/numbers" in arrays
        )
        for grove in self.groves:
            grove.from_arrays(arrays)
        for rows in self.stacks:
            for key, tensor in (("theta", rows.theta), ("mean", rows.mean), ("square", rows.square)):
                for k, member in enumerate(rows.members):
                    tensor[k] = torch.from_numpy(np.array(arrays[f"{member.name}/{key}"]))
            for key, factors in rows.tuned.items():
                for k, member in enumerate(rows.members):
                    factors[k] = float(arrays[f"{member.name}/tuned/{key}"][0])
            prefix = f"{rows.members[0].name}/beside/"
            for key in (name[len(prefix) :] for name in arrays if name.startswith(prefix)):
                kept = [np.array(arrays[f"{member.name}/beside/{key}"]) for member in rows.members]
                rows.beside[key] = torch.from_numpy(np.stack(kept))
            rows.steps = int(arrays[f"{rows.members[0].name}/steps"][0])
        self.normalisers = {
            task: Normaliser(np.array(arrays[f"normaliser/{task}/mean"]), np.array(arrays[f"normaliser/{task}/scale"]))
            for task in self.ports
            if f"normaliser/{task}/mean" in arrays
        }


@dataclass(frozen=True)
class Trained:
    """What of inherited students is trained."""

    frozen: tuple[str, ...] = ()  # layers that stay as they are: dense0, ..., head
    rank: int = 0  # of adapters on the other layers, which then stay too; 0: the layers themselves are trained


def build(
    members: Sequence[MemberSpec],
    ports: Mapping[str, Port],
    run_seed: int,
    owned: Callable[[Stack], Mapping[str, tuple[int, ...]]] | None = None,
    trained: Trained | None = None,
) -> Family:
    """Fresh members, one stack per architecture, in the order of first mention.

    `owned`: a stack's students -> shapes of the losses' own parameters (`objective.owned`). `trained`: None for all.
    """
    stacks, groves = [], []
    for architecture in dict.fromkeys(member.architecture for member in members):
        mine = [member for member in members if member.architecture == architecture]
        if architecture.grown:
            groves += [Grove(architecture, task, port, list(mine)) for task, port in ports.items()]
            continue
        stack, held = _stack(architecture, ports, owned), None
        if architecture.whole:
            widths = tuple(_stack(one, ports, owned) for one in architecture.nest)
            stack.weave = nested.Nest(widths, architecture.nest.index(architecture))
        if trained is not None:
            task = next(iter(ports))
            stack = adapters.adapted(stack, task, trained.rank, trained.frozen) if trained.rank else stack
            held = adapters.held(stack, task, trained.frozen)
        theta = stack.initial(mine, run_seed)
        stacks.append(Rows(stack, mine, theta, torch.zeros_like(theta), torch.zeros_like(theta), held=held))
    return Family(dict(ports), {}, stacks, groves)


def _stack(
    architecture: Architecture,
    ports: Mapping[str, Port],
    owned: Callable[[Stack], Mapping[str, tuple[int, ...]]] | None,
) -> Stack:
    stack = Stack(architecture, ports)
    return stack if owned is None else Stack(architecture, ports, owned(stack))
