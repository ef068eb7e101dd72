"""Counts of a tree and a rule drawn by hand."""

import gymnasium as gym
import numpy as np
from proof_cases import labelled_task, network

from limbeck.contracts import Blueprint, Sparse, Spec, Tree
from limbeck.proof.simplicity import questions, simplicity
from limbeck.spaces import head_for

SPEC = Spec(gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(2))
# x1 <= 0 ? leaf 0 : (x3 <= 0.5 ? (x1 <= 0.9 ? leaf 1 : leaf 0) : leaf 1)
TREE = Tree(
    np.array([], np.float32), np.array([0.0, 0.5, 0.9], np.float32), np.array([[0], [1]], np.float32),
    ((1,), (3,), (1,)), ((-1, 1), (2, -2), (-2, -1)), width=4, says=2,
)  # fmt: skip


def of(layer, inputs=None, formula=""):
    return simplicity(Blueprint(SPEC, head_for(SPEC.action_space), (layer,)), inputs, formula)


def test_a_tree_drawn_by_hand():
    assert TREE.problem() == ""
    assert of(TREE, formula="if it rains") == {
        "numbers read": 2.0, "numbers seen": 4.0, "depth": 3.0, "leaves": 2.0, "splits": 3.0, "formula length": 11.0,
    }  # fmt: skip
    one_leaf_each = Tree(TREE.weight, TREE.threshold, np.array([[0], [1], [0], [1]], np.float32), TREE.reads,
                         ((-1, 1), (2, -4), (-2, -3)), 4, 2)  # fmt: skip
    assert questions(one_leaf_each).tolist() == [1.0, 3.0, 3.0, 2.0]
    rows = np.array([[0, -1, 0, 0], [0, -1, 0, 0], [0, 0.5, 0, 0], [0, 0.5, 0, 0.9]], np.float32)
    assert of(one_leaf_each, rows)["mean questions"] == (1 + 1 + 3 + 2) / 4


def test_a_rule_counts_its_terms():
    rule = Sparse(np.array([2, 1], np.float32), np.array([0.5], np.float32), ((), (2, 3)), (1,), width=4)
    assert of(rule) == {"numbers read": 2.0, "numbers seen": 4.0, "terms": 3.0}


def test_networks_have_none():
    assert simplicity(network(labelled_task(100)).blueprint, None) == {}
