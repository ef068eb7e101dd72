"""Trees as trees: every question and answer stands once and apart, and the shares are those of walking down by hand."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import reporting_samples as samples

from limbeck import seeding
from limbeck.contracts import Blueprint, Dense, Head, Spec, Tree, View
from limbeck.reporting import naming, trees


def grown(leaves: int) -> Tree:
    """A random binary tree of so many leaves over eight numbers."""
    rng = seeding.generator(3, "train", leaves)
    children: list[list[int]] = [[-1, -2]]
    ends = [(0, 0), (0, 1)]  # (split, side) of every leaf
    while len(ends) < leaves:
        split, side = ends.pop(int(rng.integers(len(ends))))
        children.append([0, 0])
        children[split][side] = len(children) - 1
        ends += [(len(children) - 1, 0), (len(children) - 1, 1)]
    for number, (split, side) in enumerate(ends):
        children[split][side] = ~number
    reads = tuple((int(rng.integers(8)),) for _ in children)
    threshold = rng.normal(size=len(children)).astype(np.float32)
    labels = rng.integers(4, size=(leaves, 1)).astype(np.float32)
    return Tree(np.array([], np.float32), threshold, labels, reads, tuple(map(tuple, children)), 8, 4)


def walked(tree: Tree, row: np.ndarray) -> int:
    """The leaf of one row, question by question."""
    at = 0
    while at >= 0:
        at = tree.children[at][0 if row[tree.reads[at][0]] <= tree.threshold[at] else 1]
    return ~at


def test_shares_are_those_of_walking_down() -> None:
    tree = grown(20)
    rows = seeding.generator(4, "train").normal(size=(300, 8)).astype(np.float32)
    counted = Counter(walked(tree, row) for row in rows)
    assert trees.visits(tree, rows).tolist() == [counted[i] / 300 for i in range(20)]


def test_no_two_nodes_of_a_large_tree_overlap_and_all_stand_inside() -> None:
    tree = grown(trees.MOST_LEAVES)
    drawn = trees.drawing(samples.tree_policy(tree), None)
    assert drawn is not None
    root = ElementTree.fromstring(drawn.svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    boxes = [tuple(float(r.get(k, "nan")) for k in ("x", "y", "width", "height")) for r in root.iter("rect")]
    assert len(boxes) == 2 * trees.MOST_LEAVES - 1
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert x + w <= width
        assert y + h <= height
        for other, top, wide, high in boxes[:i]:
            assert x + w <= other or other + wide <= x or y + h <= top or top + high <= y


def test_the_picture_says_what_the_tree_does() -> None:
    rows = np.zeros((4, 8), np.float32)
    rows[:, 4] = (0.0, 0.0, 1.0, 1.0)  # two go left
    rows[3, 3] = 9.0
    drawn = trees.drawing(samples.tree_policy(), rows)
    assert drawn is not None
    texts = [t.text for t in ElementTree.fromstring(drawn.svg).iter("text")]
    assert {"angle ≤ 0.1", "y velocity ≤ 0.25", "main engine"} <= set(texts)
    titles = [t.text for t in ElementTree.fromstring(drawn.svg).iter("title")]
    assert "0.5·y − angular velocity ≤ −0.04" in titles  # an oblique question in full
    assert [t for t in texts if t and t.endswith("%")] == ["0 %", "50 %", "25 %", "25 %"]
    assert drawn.words == "4 leaves, at most 2 questions to an answer"
    assert drawn.visits == 4


def test_more_leaves_than_anybody_reads_are_counted_and_not_drawn() -> None:
    drawn = trees.drawing(samples.tree_policy(grown(trees.MOST_LEAVES + 1)))
    assert drawn is not None
    assert drawn.svg == ""
    assert "65 leaves" in drawn.words


def test_other_policies_are_no_trees() -> None:
    dense = Dense(np.zeros((8, 4), np.float32), np.zeros(4, np.float32))
    spec = samples.tree_policy().spec
    assert trees.drawing(Blueprint(spec, Head("categorical", (4,)), (dense,))) is None


def test_hostile_keys_are_text() -> None:
    key = samples.HOSTILE[6]
    space = gym.spaces.Dict({key: gym.spaces.Box(-1, 1, (8,), np.float32)})
    policy = Blueprint(Spec(space, gym.spaces.Discrete(4), "t"), Head("categorical", (4,)), (samples.TREE,))
    drawn = trees.drawing(policy)
    assert drawn is not None
    tags = {element.tag for element in ElementTree.fromstring(drawn.svg).iter()}
    assert tags == {"svg", "g", "path", "rect", "text", "title"}
    assert re.search("&lt;script&gt;", drawn.svg)


def test_names_follow_the_view() -> None:
    space = gym.spaces.Box(-1, 1, (4,), np.float32)
    tree = samples.TREE
    policy = Blueprint(
        Spec(space, gym.spaces.Discrete(4), "CartPole-v1"),
        Head("categorical", (4,)),
        (tree,),
        View(indices=(2, 0), history=2),
    )
    assert naming.input_names(policy) == [
        "pole angle, 1 step ago",
        "cart position, 1 step ago",
        "pole angle",
        "cart position",
    ]
