"""What losses take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    # "advantage" [T, B, A] Q_T - V_T, "feature:LAYER" [T, B, ...], "target" [T, B] with "action" [T, B] and "known" [T, B]
    # scalars: "temperature", "gap" (mean spread of the advantages), "beta" ...


class PointLoss(Protocol):
    """[..., W] student rows against [B, W] label rows -> one value per row [..., B]. Never reduces, never detaches."""

    def __call__(self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor: ...


class BatchLoss(Protocol):
    """A function of a whole masked batch -> scalar per member [...]; states its smallest batch. One with parameters of
    its own takes them, `own` as trainable losses do, before the mask."""

    def __call__(
        self, student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head, mask: torch.Tensor
    ) -> torch.Tensor: ...


class TrainableLoss(Protocol):
    """A point loss with parameters of its own (projector, value head). They lie in the members' rows of theta behind
    the policy's, so that Adam, clipping, dropping and checkpoints know no exception; freezing leaves them behind."""

    def __call__(
        self,
        student: torch.Tensor,
        labels: Mapping[str, torch.Tensor],
        head: Head,
        own: Mapping[str, torch.Tensor],  # name -> [K, ...]
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class LossEntry:
    """A row of the table LOSSES: the function, what it needs, and which teacher heads it serves."""

    fn: Callable[..., torch.Tensor]
    kind: Literal["point", "batch", "trainable"]
    needs: frozenset[str]  # of: logits, q, gaussian, squashed, action, temperature, value, regret (action values: the
    # teacher's own or fitted), critic (differentiable in the action), features, next, reward, hard, many_actions,
    # soft_q (of Q teachers alone: softmax(Q / temperature))
    heads: tuple[HeadKind, ...]  # teacher heads it accepts
    divergence: bool  # zero when both sides agree
    reads: Literal["params", "hidden"] = "params"  # what of the student: its rows [..., W], or a hidden layer [..., F]
    owns: Callable[[tuple[int, ...], tuple[int, ...]], Mapping[str, tuple[int, ...]]] | None = None
    # shapes of one student layer and one teacher layer -> shapes of the loss's own parameters; every trainable loss has it
