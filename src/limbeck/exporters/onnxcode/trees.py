"""Trees and sparse layers as plain ONNX nodes: all splits at once, then one step down per level.

Sums are chains of Mul and Add in the order of every other runtime, so that a number that lies on a threshold goes the
same way; TreeEnsemble has no sums, and Gemm adds in an order of its own.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import Sparse, Terms, Tree
from limbeck.exporters.onnxcode.graph import Graph


def sparse(x: str, name: str, layer: Sparse, graph: Graph) -> str:
    """[N, W] sums and biases."""
    total = sums(x, name, layer.terms, graph)
    return graph.node("Add", [graph.constant(f"bias_{name}", layer.offset), total], name)


def tree(x: str, name: str, layer: Tree, graph: Graph) -> str:
    """[N, W] what the leaf says that each row reaches. Leaf l is node S + l, its own child on both sides."""
    splits, leaves = len(layer.threshold), len(layer.leaves)
    total = sums(x, name, layer.terms, graph)
    left = graph.node("LessOrEqual", [total, graph.constant(f"threshold_{name}", layer.threshold)], f"{name}_left")
    pairs = np.array([[c if c >= 0 else splits + ~c for c in pair] for pair in layer.children], np.int64)
    pairs = np.concatenate([pairs, np.arange(splits, splits + leaves)[:, None].repeat(2, axis=1)])
    sides = [graph.constant(f"{name}_child_{side}", pairs[:, side]) for side in (0, 1)]
    last = graph.constant(f"{name}_last", np.array(splits - 1, np.int64))
    roots = [graph.constant(f"{name}_root_{side}", pairs[0, side]) for side in (0, 1)]
    node = graph.node("Where", [graph.slice(left, 0, 1, f"{name}_first"), *roots], f"{name}_node0")
    for level in range(1, layer.depth):
        asked = graph.node("Min", [node, last], f"{name}_asked{level}")
        goes = graph.node("GatherElements", [left, asked], f"{name}_goes{level}", axis=1)
        nexts = [graph.node("Gather", [side, node], f"{side}_{level}") for side in sides]
        node = graph.node("Where", [goes, *nexts], f"{name}_node{level}")
    rows = np.concatenate([np.zeros((splits, layer.says), np.float32), layer.rows])
    said = graph.node("Gather", [graph.constant(f"leaves_{name}", rows), node], f"{name}_row", axis=0)
    return graph.reshape(said, (-1, layer.says), name)


def sums(x: str, name: str, terms: Terms, graph: Graph) -> str:
    """[N, S] sums of a few terms, added one after the other."""
    if terms.filled:
        pads = graph.constant("pad_one_column", np.array([0, 0, 0, 1], np.int64))
        x = graph.node("Pad", [x, pads, graph.number(0.0)], f"{name}_filled")
    total = ""
    for k, (place, weight) in enumerate(zip(terms.place, terms.weight, strict=True)):
        part = graph.node("Gather", [x, graph.constant(f"place_{name}_{k}", place)], f"{name}_read{k}", axis=1)
        if not (weight == 1).all():
            part = graph.node("Mul", [part, graph.constant(f"weight_{name}_{k}", weight)], f"{name}_term{k}")
        total = graph.node("Add", [total, part], f"{name}_sum{k}") if total else part
    return total
