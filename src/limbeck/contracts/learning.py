"""What losses take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from limbeck.contracts.policies import Head, HeadKind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Tensors of one gradient step for one task. Memoryless students get T = 1."""

    task: str
    inputs: torch.Tensor  # [T, B, O] view applied, history gathered, normalised (pixels scaled)
    first: torch.Tensor | None  # [T, B] bool; None for single rows, which memoryless students take
    mask: torch.Tensor | None  # [T, B] float, 1 where the row counts; None: all do
    labels: Mapping[str, torch.Tensor]  # "params" [T, B, W] float32, "value" [T, B], "hard" [T, B] int64 ...


class PointLoss(Protocol):
    """[..., W] student rows against [B, W] label rows -> one value per row [..., B]. Never reduces, never detaches."""

    def __call__(self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor: ...


class BatchLoss(Protocol):
    """A function of a whole masked batch -> scalar per member [...]; states its smallest batch."""

    def __call__(
        self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head, mask: torch.Tensor
    ) -> torch.Tensor: ...


class TrainableLoss(Protocol):
    """A loss that owns parameters (projector, temperature, discriminator), dropped at export."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def __call__(self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor: ...


@dataclass(frozen=True)
class LossEntry:
    """A row of the table LOSSES: the function, what it needs, and which teacher heads it serves."""

    fn: Callable[..., torch.Tensor]
    kind: Literal["point", "batch", "trainable"]
    needs: frozenset[str]  # of: logits, q, gaussian, squashed, action, value, critic, features, next, reward, hard
    heads: tuple[HeadKind, ...]  # teacher heads it accepts
    divergence: bool  # zero when both sides agree
