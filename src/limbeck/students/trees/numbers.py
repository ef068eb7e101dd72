"""The stored numbers of a tree or rule as one flat row, for what polishes them; structure stays as it was grown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from limbeck.contracts import Array, Floats, Head, Normaliser, Sparse, Tree

Grown = Tree | Sparse
SHARE_SCALE = 0.5  # of the shares that leaves hold for actions from a list
_STORED = {"tree": ("weight", "threshold", "leaves"), "sparse": ("weight", "bias")}


def flat(layer: Grown) -> Floats:
    """[P] weights, thresholds or biases, leaves."""
    return np.concatenate([getattr(layer, key).reshape(-1) for key in _STORED[layer.kind]]).astype(np.float32)


def put(layer: Grown, row: Floats) -> Grown:
    """The layer with other numbers [P]."""
    arrays, at = {}, 0
    for key in _STORED[layer.kind]:
        old = getattr(layer, key)
        arrays[key] = np.array(row[at : at + old.size], np.float32).reshape(old.shape)
        at += old.size
    return cast(Grown, replace(cast(Any, layer), **arrays))


def scales(layer: Grown, normaliser: Normaliser | None, head: Head) -> Floats:
    """[P] how far each number must move to matter: thresholds in spreads of what they are compared with, weights so
    that every input weighs alike, leaves in spreads of what they say."""
    spread = np.ones(layer.width) if normaliser is None else np.asarray(normaliser.scale, np.float64)
    spread = np.tile(spread, layer.width // len(spread))
    if isinstance(layer, Sparse):
        stretch = np.concatenate([*(spread[list(places)] for places in layer.reads), np.zeros(0)])
        typical = max(float(np.abs(layer.weight * stretch).mean()), 1e-6) if len(stretch) else 1.0
        return np.concatenate([typical / stretch, np.full(layer.bias.size, typical)]).astype(np.float32)
    weights, thresholds, at = [np.zeros(0)], [], 0
    for places in layer.reads:
        stretch = spread[list(places)]
        if len(places) == 1:
            thresholds.append(float(stretch[0]))
            continue
        sizes = np.abs(layer.weight[at : at + len(places)]) * stretch
        at += len(places)
        weights.append(sizes.mean() / stretch)
        thresholds.append(float(np.sqrt((sizes**2).sum())))
    says = SHARE_SCALE if head.discrete else np.maximum(layer.leaves.std(axis=0), 0.05 * np.abs(layer.leaves).max())
    leaves = np.broadcast_to(np.maximum(says, 1e-3), layer.leaves.shape).reshape(-1)
    return np.concatenate([*weights, np.array(thresholds), leaves]).astype(np.float32)


# ---------------------------------------------------------------- checkpoints


def to_arrays(layer: Grown) -> dict[str, Array]:
    """Structure and numbers, to be read by `from_arrays`."""
    arrays: dict[str, Array] = {
        "numbers": flat(layer),
        "read": np.array([place for places in layer.reads for place in places], np.int64),
        "counts": np.array([len(places) for places in layer.reads], np.int64),
        "width": np.array([layer.width], np.int64),
    }
    if isinstance(layer, Sparse):
        return {**arrays, "biased": np.array(layer.biased, np.int64)}
    return {**arrays, "children": np.array(layer.children, np.int64), "leaves": np.array(layer.leaves.shape, np.int64)}


def from_arrays(arrays: Mapping[str, Array]) -> Grown:
    """The layer that `to_arrays` took apart."""
    ends = np.cumsum(arrays["counts"])[:-1]
    reads = tuple(tuple(part.tolist()) for part in np.split(np.asarray(arrays["read"]), ends))
    width, total = int(arrays["width"][0]), np.array(arrays["numbers"], np.float32)
    if "biased" in arrays:
        biased = tuple(np.asarray(arrays["biased"]).tolist())
        stored = total.size - len(biased)
        return Sparse(total[:stored], total[stored:], reads, biased, width)
    leaves, says = (int(v) for v in arrays["leaves"])
    children = cast(tuple[tuple[int, int], ...], tuple(map(tuple, np.asarray(arrays["children"]).tolist())))
    many = sum(len(places) for places in reads if len(places) > 1)
    split = many + len(reads)
    return Tree(total[:many], total[many:split], total[split:].reshape(leaves, says), reads, children, width, says)
