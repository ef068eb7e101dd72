"""Layers that people can read: a decision tree, and a linear map of a few numbers.

Which inputs are read and where a branch leads is structure, written into the description as whole numbers; weights,
thresholds and leaves are the stored numbers that count as parameters. Sums are taken in the order in which the inputs
are named, so that every runtime rounds alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts.policies import Floats

Reads = tuple[tuple[int, ...], ...]
MOST_READ = 2**24  # splits, leaves or terms: what needs more is a mistake or an attack


@dataclass(frozen=True)
class Terms:
    """Several sums of few terms as rectangles: sum s is the sum over k of weight[k, s] * x[place[k, s]], in this order.

    A place equal to the number of inputs stands for a zero: shorter sums are filled up with it.
    """

    place: NDArray[np.int64]  # [F, S]
    weight: Floats  # [F, S]
    filled: bool  # whether some places stand for a zero


@dataclass(frozen=True)
class Tree:
    """A binary decision tree: at split s go left where sum_k w_k x[reads[s][k]] <= threshold[s], else right (NaN: right).

    A split that reads one number compares that number itself and stores no weight. A child c >= 0 is another split,
    c < 0 the leaf ~c. A leaf is a row of `says` numbers, or where `leaves` has one column a label: the row that is 1 in
    that place and 0 elsewhere. One split x[0] <= 0 with both children at leaf 0 is the tree that never asks.

    >>> stump = Tree(np.array([], np.float32), np.array([0.5], np.float32), np.array([[2], [0]], np.float32),
    ...              ((1,),), ((-1, -2),), width=2, says=3)
    >>> stump.parameters, stump.depth, stump.problem()
    (3, 1, '')
    """

    weight: Floats  # [E] of the splits that read several numbers, split after split
    threshold: Floats  # [S]
    leaves: Floats  # [L, says] rows, or [L, 1] labels
    reads: Reads  # [S] places of the input row
    children: tuple[tuple[int, int], ...]  # [S] left, right; splits come before the splits below them
    width: int  # of the input row
    says: int  # W
    kind: ClassVar[str] = "tree"

    @property
    def inputs(self) -> int:
        return self.width

    @property
    def outputs(self) -> int:
        return self.says

    @property
    def labelled(self) -> bool:
        """Whether leaves are labels, one number each."""
        return self.leaves.shape[1] == 1 and self.says > 1

    @property
    def parameters(self) -> int:
        return int(self.weight.size + self.threshold.size + self.leaves.size)

    @property
    def multiply_adds(self) -> int:
        """Of the longest path."""
        return max(self._paths(lambda s: len(self.reads[s]) if len(self.reads[s]) > 1 else 0))

    @property
    def depth(self) -> int:
        """Questions on the longest path."""
        return max(self._paths(lambda s: 1))

    def _paths(self, cost: Callable[[int], int]) -> list[int]:
        """Cost of the path to every leaf's parent."""
        total, ends = [0] * len(self.children), []
        for split, pair in enumerate(self.children):
            total[split] += cost(split)
            ends.append(total[split])
            for child in pair:
                if child >= 0:
                    total[child] = total[split]
        return ends

    @cached_property
    def terms(self) -> Terms:
        """The sums of all splits; a split that reads one number has weight 1."""
        weights, at = [], 0
        for places in self.reads:
            many = len(places) if len(places) > 1 else 0
            weights.append(self.weight[at : at + many] if many else np.ones(1, np.float32))
            at += many
        return terms(self.reads, weights, self.width)

    @cached_property
    def rows(self) -> Floats:
        """[L, W] what every leaf says."""
        if not self.labelled:
            return self.leaves
        return np.eye(self.says, dtype=np.float32)[self.leaves[:, 0].astype(np.int64)]

    def wanted(self) -> dict[str, tuple[int, ...]]:
        leaves = 1 + max(~child for pair in self.children for child in pair) if self.children else 0
        return {"threshold": (len(self.reads),), "leaves": (leaves, self.leaves.shape[-1])}

    def problem(self) -> str:
        splits, leaves = len(self.reads), len(self.leaves)
        if not 0 < splits == len(self.children) or not 0 < max(splits, leaves, self.width, self.says) <= MOST_READ:
            return f"a tree of {splits} splits with {len(self.children)} pairs of children and {leaves} leaves"
        if any(not s < child < splits for s, pair in enumerate(self.children) for child in pair if child >= 0):
            return "a tree whose splits do not come before the splits below them"
        if sorted(child for pair in self.children for child in pair if child >= 0) != list(range(1, splits)):
            return "a tree in which a split has no parent or several"
        if self.leaves.ndim != 2 or self.leaves.shape[1] not in (1, self.says):
            return f"a tree whose leaves have shape {self.leaves.shape}, not [L, {self.says}] or [L, 1]"
        if self.labelled and not (np.isin(self.leaves, np.arange(self.says))).all():
            return f"a tree whose labels are not whole numbers from 0 to {self.says - 1}"
        stored = sum(len(places) for places in self.reads if len(places) > 1)
        return _reads_problem(self.reads, self.width, 1) or _weight_problem(self.weight, stored)


@dataclass(frozen=True)
class Sparse:
    """y[o] = bias[o] + sum_k w_k x[reads[o][k]], with the few weights and biases that are not zero.

    >>> rule = Sparse(np.array([2, 1], np.float32), np.array([], np.float32), ((), (2, 3)), (), width=4)
    >>> rule.parameters, rule.outputs, rule.problem()
    (2, 2, '')
    """

    weight: Floats  # [E] output after output
    bias: Floats  # [len(biased)]
    reads: Reads  # [W] places of the input row that each output reads
    biased: tuple[int, ...]  # outputs that have a bias
    width: int  # of the input row
    kind: ClassVar[str] = "sparse"

    @property
    def inputs(self) -> int:
        return self.width

    @property
    def outputs(self) -> int:
        return len(self.reads)

    @property
    def parameters(self) -> int:
        return int(self.weight.size + self.bias.size)

    @property
    def multiply_adds(self) -> int:
        return int(self.weight.size)

    @cached_property
    def terms(self) -> Terms:
        sizes = np.cumsum([len(places) for places in self.reads])[:-1]
        return terms(self.reads, np.split(self.weight, sizes), self.width)

    @cached_property
    def offset(self) -> Floats:
        """[W] biases, zeros included."""
        full = np.zeros(self.outputs, np.float32)
        full[list(self.biased)] = self.bias
        return full

    def wanted(self) -> dict[str, tuple[int, ...]]:
        return {}

    def problem(self) -> str:
        if not 0 < self.width <= MOST_READ or not self.reads:
            return f"a sparse layer from {self.width} to {len(self.reads)} numbers"
        if self.bias.shape != (len(self.biased),) or sorted(set(self.biased) & set(range(self.outputs))) != sorted(
            self.biased
        ):
            return f"a sparse layer with biases {self.bias.shape} at outputs {self.biased[:8]}"
        stored = sum(map(len, self.reads))
        return _reads_problem(self.reads, self.width, 0) or _weight_problem(self.weight, stored)


def terms(reads: Reads, weights: Sequence[Floats], width: int) -> Terms:
    """Sums of different lengths as rectangles."""
    longest = max(1, *map(len, reads))
    place = np.full((longest, len(reads)), width, np.int64)
    weight = np.zeros((longest, len(reads)), np.float32)
    for s, (places, values) in enumerate(zip(reads, weights, strict=True)):
        place[: len(places), s], weight[: len(places), s] = places, values
    return Terms(place, weight, bool((place == width).any()))


def _reads_problem(reads: Reads, width: int, fewest: int) -> str:
    for places in reads:
        if len(places) < fewest or any(not 0 <= place < width for place in places):
            return f"a sum over the places {places[:8]} of {width} numbers"
    return ""


def _weight_problem(weight: Floats, stored: int) -> str:
    return "" if weight.shape == (stored,) else f"weights of shape {weight.shape} where {stored} are read"
