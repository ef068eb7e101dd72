"""Stacks that take their gradient steps together: each alone, but the widths of nested networks as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from limbeck.students import nested
from limbeck.students.family import Rows


class Together:
    """One stack, or all widths of one nested architecture, widest first: every width holds its networks' numbers, takes
    the sum of all widths' gradients and so stays the same network."""

    def __init__(self, stacks: Sequence[Rows], run_seed: int, round_number: int) -> None:
        self.stacks = list(stacks)
        self.nested = bool(stacks[0].stack.architecture.whole) and stacks[0].stack.weave is not None
        self._rng: np.random.Generator | None = None
        if self.nested and len(stacks) > 1:
            whole = "x".join(map(str, stacks[0].stack.architecture.whole))
            self._rng = nested.stream(run_seed, round_number, f"{whole}-{stacks[0].stack.architecture.activation}")
        self._found: list[tuple[Rows, torch.Tensor]] = []

    def active(self) -> list[tuple[Rows, float]]:
        """The stacks that this step trains, and the weights of their losses."""
        if self._rng is None:
            return [(rows, 1.0) for rows in self.stacks]
        chosen = [self.stacks[i] for i in nested.sandwich(len(self.stacks), self._rng)]
        return list(zip(chosen, nested.weights([rows.stack for rows in chosen]), strict=True))

    def take(self, rows: Rows, gradient: torch.Tensor, weight: float) -> None:
        """The gradient [K, Q] of one stack's losses."""
        self._found.append((rows, gradient if weight == 1.0 else gradient * weight))

    def gradients(self) -> Iterator[tuple[Rows, torch.Tensor]]:
        """What each stack descends along, once all were taken."""
        found, self._found = self._found, []
        if not self.nested:
            yield from found
            return
        total = torch.zeros(1 + max(m.seed for rows in self.stacks for m in rows.members), found[0][1].shape[1])
        for rows, gradient in found:
            total.index_add_(0, _seeds(rows), gradient)
        for rows in self.stacks:
            yield rows, total[_seeds(rows)]

    def agree(self) -> None:
        """After a round: the widths of one network hold the same bits (a processor rounds rows of other stacks otherwise)."""
        if not self.nested:
            return
        first: dict[int, tuple[Rows, int]] = {}
        for rows in self.stacks:
            for k, member in enumerate(rows.members):
                leader, at = first.setdefault(member.seed, (rows, k))
                pairs = [(rows.theta, leader.theta), (rows.mean, leader.mean), (rows.square, leader.square)]
                if "average" in rows.beside:
                    pairs.append((rows.beside["average"], leader.beside["average"]))
                for mine, its in pairs:
                    mine[k] = its[at]


def group(
    stacks: Sequence[Rows], run_seed: int, round_number: int, order: Callable[[Rows], int] | None = None
) -> list[Together]:
    """Stacks as they come, or by `order`; those of one nested architecture together, at the place of the first."""
    stacks = list(stacks) if order is None else sorted(stacks, key=order)
    groups: dict[object, list[Rows]] = {}
    for rows in stacks:
        architecture = rows.stack.architecture
        key = (architecture.whole, architecture.activation) if architecture.whole else id(rows)
        groups.setdefault(key, []).append(rows)
    return [
        Together(sorted(found, key=lambda rows: -rows.stack.parameters), run_seed, round_number)
        for found in groups.values()
    ]


def updates(stacks: Sequence[Rows], run_seed: int, round_number: int, steps: int) -> int:
    """Losses of members that `steps` steps of a round descend: of many nested widths a step takes four."""
    groups = group(stacks, run_seed, round_number)
    return sum(len(rows.members) for _ in range(steps) for one in groups for rows, _ in one.active())


def _seeds(rows: Rows) -> torch.Tensor:
    return torch.tensor([member.seed for member in rows.members])
