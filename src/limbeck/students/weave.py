"""How a stack's rows are made from the numbers that are trained, where the two are not the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from limbeck.contracts import Floats
from limbeck.students.grammar import MemberSpec


class Weave(Protocol):
    """Trained numbers [K, Q] -> rows [K, P + own] of a plain stack, differentiable."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The trained tensors in the order in which a trained row holds them; Q is their sum."""
        ...

    def plain(self, theta: torch.Tensor) -> torch.Tensor:
        """[K, Q] -> [K, P + own]."""
        ...

    def fresh(self, member: MemberSpec, run_seed: int) -> Floats:
        """[Q] where a member begins."""
        ...
