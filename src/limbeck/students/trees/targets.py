"""What trees and rules learn from: rows, what the teacher answers there, and how much it matters.

VIPER (arXiv:1805.08328) draws states in proportion to max_a Q - min_a Q, what the worst action costs; where the
teacher has no Q, to the same spread of its log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Array, Floats, Head

SATURATED = 0.995  # of tanh: beyond it the pre-tanh mean grows without the action changing


@dataclass(frozen=True)
class Examples:
    """Rows to grow on."""

    x: Floats  # [N, I] raw inputs of the student
    y: Floats  # [N, W] one-hot answers of every list, bits, or standardised continuous actions
    weight: Floats  # [N]
    head: Head  # of the student
    mean: Floats  # [I] of the inputs
    scale: Floats  # [I] their spread
    centre: Floats  # [W] what was taken off continuous actions
    spread: Floats  # [W] and what they were divided by; 0 and 1 of the others

    def __len__(self) -> int:
        return len(self.x)


def examples(x: Floats, params: Floats, teacher: Head, student: Head, weight: Floats) -> Examples:
    """From the teacher's rows `params` [N, W of the teacher]: its greedy answers as the student's head says them."""
    y = answers(params, teacher, student)
    centre, spread = np.zeros(y.shape[1], np.float32), np.ones(y.shape[1], np.float32)
    if not student.discrete:
        centre, spread = y.mean(axis=0), y.std(axis=0)
        spread = np.where(spread > 1e-6, spread, np.float32(1))
        y = (y - centre) / spread
    scale = x.std(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.where(scale > 1e-6, scale, np.float32(1))
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Examples(x, y.astype(np.float32), weight.astype(np.float32), student, mean, scale, centre, spread)


def answers(params: Floats, teacher: Head, student: Head) -> Floats:
    """[N, W] what the student should say: 1 for the chosen entry of every list; bits; tanh of means, means."""
    if student.discrete:
        said = distributions.said(teacher, params)
        if student.kind == "bernoulli":
            return said.astype(np.float32)
        columns = said.reshape(len(said), -1)
        ones = [np.eye(n, dtype=np.float32)[columns[:, k]] for k, n in enumerate(student.sizes)]
        return np.concatenate(ones, axis=1)
    n = sum(student.sizes)
    if student.kind in ("squashed", "tanh"):
        params = np.concatenate([np.tanh(params[:, :n]), params[:, n:]], axis=1)
    else:
        low, high = distributions.bounds(student)
        params = np.concatenate([np.clip(params[:, :n], low, high), params[:, n:]], axis=1)
    return params[:, : student.width]


def row_of(examples: Examples, value: Floats) -> Floats:
    """[..., W] what a student says for a mean of targets [..., W]: shares of every list, bits about 0, means."""
    head = examples.head
    if head.kind == "bernoulli":
        return value - np.float32(0.5)
    if head.discrete:
        return value
    row = value * examples.spread + examples.centre
    if head.kind in ("squashed", "tanh"):
        n = sum(head.sizes)
        means = np.arctanh(np.clip(row[..., :n], -SATURATED, SATURATED))
        row = np.concatenate([means, row[..., n:]], axis=-1)
    return row


def gaps(head: Head, params: Floats, advantage: Array | None, allowed: NDArray[np.bool_] | None) -> Floats:
    """[N] what the worst choice costs: max Q - min Q, or max log p - min log p summed over lists; 1 of continuous actions.

    `advantage` [N, A], where it is known, stands before the teacher's own rows; actions not `allowed` do not count.

    >>> gaps(Head("q", (3,)), np.array([[0.0, -1.0, -4.0]], np.float32), None, None).tolist()
    [4.0]
    """
    if not head.discrete:
        return np.ones(len(params), np.float32)
    if advantage is not None:
        return _spread(advantage, allowed)
    if head.kind == "bernoulli":
        return np.abs(params).sum(axis=1)
    total = np.zeros(len(params), np.float32)
    ends = np.cumsum(head.sizes)[:-1]
    marks = np.split(allowed, ends, axis=1) if allowed is not None else [None] * len(head.sizes)
    for group, mark in zip(distributions.groups(head, params), marks, strict=True):
        total += _spread(group, mark)
    return total


def _spread(rows: Array, allowed: Array | None) -> Floats:
    if allowed is None:
        return np.asarray(rows.max(axis=1) - rows.min(axis=1), np.float32)
    high = np.where(allowed, rows, -np.inf).max(axis=1)
    low = np.where(allowed, rows, np.inf).min(axis=1)
    return np.where(np.isfinite(high - low), high - low, 0.0).astype(np.float32)


def resampled(given: Examples, gap: Floats, count: int, rng: np.random.Generator) -> Examples:
    """`count` rows drawn with replacement in proportion to `gap`, each row once with how often it was drawn as weight."""
    total = float(gap.sum(dtype=np.float64))
    share = gap.astype(np.float64) / total if total > 0 else np.full(len(gap), 1 / len(gap))
    drawn = rng.multinomial(count, share / share.sum())
    rows = np.flatnonzero(drawn)
    return replace(given, x=given.x[rows], y=given.y[rows], weight=drawn[rows].astype(np.float32))
