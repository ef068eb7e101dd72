"""How hard a tree or a rule is to follow by hand: proxies for simulatability (Lipton, "The mythos of model
interpretability", CACM 2018; counts as in VIPER, Bastani et al. 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Blueprint, Floats, Sparse, Tree
from limbeck.runtimes.numpy import leaf_of


def simplicity(blueprint: Blueprint, inputs: Floats | None, formula: str = "") -> dict[str, float]:
    """Counts of a policy of one tree or rule; {} for others.

    `inputs` [N, I] are rows that the layer read in visited states (None: none are known).

    depth           questions on the longest path (trees)
    leaves, splits  of the tree
    mean questions  asked per decision, over the visited states
    numbers read    different places of the input that any question or sum looks at
    numbers seen    places of the input
    terms           weights that are multiplied or added (rules)
    formula length  characters of the policy in words, where it has words
    """
    layer = blueprint.layers[0] if len(blueprint.layers) == 1 else None
    if not isinstance(layer, Tree | Sparse):
        return {}
    read = {place for places in layer.reads for place in places}
    found = {"numbers read": float(len(read)), "numbers seen": float(layer.width)}
    if isinstance(layer, Tree):
        found |= {"depth": float(layer.depth), "leaves": float(len(layer.leaves)), "splits": float(len(layer.reads))}
        if inputs is not None and len(inputs):
            found["mean questions"] = float(questions(layer)[leaf_of(layer, inputs)].mean())
    else:
        found["terms"] = float(sum(map(len, layer.reads)) + len(layer.biased))
    if formula:
        found["formula length"] = float(len(formula))
    return found


def questions(tree: Tree) -> NDArray[np.float64]:
    """[L] questions asked on the way to every leaf; the mean over ways where a leaf has several parents."""
    asked = np.zeros(len(tree.children))
    total, ways = np.zeros(len(tree.leaves)), np.zeros(len(tree.leaves))
    for split, pair in enumerate(tree.children):
        for child in pair:
            if child >= 0:
                asked[child] = asked[split] + 1
            else:
                total[~child] += asked[split] + 1
                ways[~child] += 1
    return np.asarray(total / np.maximum(ways, 1))
