"""CART (Breiman et al. 1984) by scikit-learn, as plain nodes.

Regression on one-hot rows has the Gini impurity of classification: sum_c p_c (1 - p_c) is the sum of the columns'
variances. So one regressor of several outputs grows trees for every kind of action.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.contracts import Floats
from limbeck.errors import InputError


@dataclass
class Nodes:
    """A tree while it is grown and pruned; node 0 is the root."""

    reads: list[tuple[int, ...]] = field(default_factory=list)  # () for leaves
    weights: list[tuple[float, ...]] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    children: list[tuple[int, int]] = field(default_factory=list)  # (-1, -1) for leaves
    value: list[Floats] = field(default_factory=list)  # [W] weighted mean of the targets
    cost: list[float] = field(default_factory=list)  # what the node would lose as a leaf, times its rows' weight

    def add(self, value: Floats, cost: float) -> int:
        """A leaf; its number."""
        self.reads.append(())
        self.weights.append(())
        self.threshold.append(0.0)
        self.children.append((-1, -1))
        self.value.append(value)
        self.cost.append(cost)
        return len(self.cost) - 1

    def split(self, node: int, reads: tuple[int, ...], weights: tuple[float, ...], threshold: float) -> None:
        """The split of a node whose children are the next two that are added."""
        self.reads[node], self.weights[node], self.threshold[node] = reads, weights, threshold
        self.children[node] = (len(self.cost), len(self.cost) + 1)


@dataclass(frozen=True)
class Bounds:
    """How far a tree may grow."""

    leaves: int | None
    depth: int | None
    fewest_rows: int = 5  # that a leaf rests on


def regressor(bounds: Bounds, seed: int) -> Any:
    """A fresh scikit-learn tree."""
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError as error:
        raise InputError('trees need scikit-learn. Install it: pip install "limbeck[trees]".') from error
    return DecisionTreeRegressor(
        max_depth=bounds.depth,
        max_leaf_nodes=bounds.leaves,
        min_samples_leaf=bounds.fewest_rows,
        random_state=seed,
    )


def missing() -> str:
    """What this machine lacks for trees, in words; empty when nothing."""
    import importlib.util

    return "" if importlib.util.find_spec("sklearn") else 'scikit-learn: pip install "limbeck[trees]"'


def grow(x: Floats, y: Floats, weight: Floats, bounds: Bounds, seed: int) -> Nodes:
    """A tree on rows x [N, I] with targets y [N, W] and weights [N]. Ties between splits are broken by `seed`."""
    found = regressor(bounds, seed).fit(x, y, sample_weight=weight).tree_
    nodes = Nodes()
    values = found.value.reshape(found.node_count, -1)
    for node in range(found.node_count):
        value = values[node].astype(np.float32)
        nodes.add(value, float(found.impurity[node]) * y.shape[1] * float(found.weighted_n_node_samples[node]))
        if found.children_left[node] >= 0:
            nodes.reads[node], nodes.weights[node] = (int(found.feature[node]),), (1.0,)
            nodes.threshold[node] = float(found.threshold[node])
            nodes.children[node] = (int(found.children_left[node]), int(found.children_right[node]))
    return nodes


def stump(x: Floats, y: Floats, weight: Floats, fewest_rows: int, seed: int) -> tuple[int, float, float] | None:
    """(column, threshold, impurity that is lost) of the best single split; None where no split helps."""
    nodes = grow(x, y, weight, Bounds(None, 1, fewest_rows), seed)
    if nodes.children[0] == (-1, -1):
        return None
    left, right = nodes.children[0]
    return nodes.reads[0][0], nodes.threshold[0], nodes.cost[0] - nodes.cost[left] - nodes.cost[right]
