"""What actions are worth to a teacher, and where that knowledge is from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from limbeck.contracts.policies import Observation

if TYPE_CHECKING:
    import torch

EXACT, OWN, FITTED = "exact", "teacher's critic", "fitted"  # every regret says which of them it is made of


@runtime_checkable
class Critic(Protocol):
    """Q_T(s, a) of a teacher with continuous actions, in the units of reward that it was trained on."""

    def __call__(self, obs: Observation, action: torch.Tensor) -> torch.Tensor:
        """B observations and executed actions [B, n] -> [B], differentiable in the action."""
        ...
