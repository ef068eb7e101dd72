"""A decision tree drawn as a tree: questions in boxes, yes to the left, actions at the leaves, shares of visits beneath.

Every leaf has a column of its own and a question stands above the middle of its columns. Written as SVG directly, with
the page's colours as variables and every name escaped, so that no library is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Blueprint, Floats, Tree
from limbeck.reporting import naming, words
from limbeck.runtimes.numpy import leaf_of

MOST_LEAVES = 64  # a larger tree is no picture that anybody reads
LEAF, ROW, MARGIN = 112, 78, 12  # pixels from leaf to leaf, from row to row, around
FONT, LETTER, HIGH = 12.0, 6.4, 26  # pixels: of the text, of one letter about, of a box
Reals = NDArray[np.float64]
ACTIONS = ("s0", "s2", "s3", "s5", "s4", "s6", "s1", "s7")  # colours of the actions, by their number


@dataclass(frozen=True)
class Drawing:
    """A tree as SVG, and what it is in words."""

    svg: str  # "" where the tree is too large to be drawn
    words: str
    leaves: int
    visits: int  # states behind the shares, 0 where none are told


def drawing(blueprint: Blueprint, visited: Floats | None = None) -> Drawing | None:
    """The tree of a policy that is one; None for other policies. `visited` [N, inputs] are rows the student met itself."""
    if len(blueprint.layers) != 1 or not isinstance(blueprint.layers[0], Tree):
        return None
    tree = blueprint.layers[0]
    names = naming.input_names(blueprint)
    answers = [_answer(blueprint, row) for row in tree.rows]
    used = sorted({~child for pair in tree.children for child in pair if child < 0})
    told = f"{words.plural(len(used), 'leaf').replace('leafs', 'leaves')}, at most {words.plural(tree.depth, 'question')} to an answer"
    if len(used) > MOST_LEAVES:
        return Drawing("", f"{told}: more than {MOST_LEAVES} leaves are not drawn", len(used), 0)
    questions = [question(tree, s, names) for s in range(len(tree.reads))]
    rows = np.zeros((0, tree.width), np.float32) if visited is None else visited
    shares = visits(tree, rows) if len(rows) else None
    return Drawing(_svg(questions, answers, shares, layout(tree), told), told, len(used), len(rows))


def question(tree: Tree, split: int, names: Sequence[str]) -> str:
    """What a split asks: a number against a threshold, or a weighted sum of several.

    >>> stump = Tree(np.array([], np.float32), np.array([0.5], np.float32), np.array([[2], [0]], np.float32),
    ...              ((1,),), ((-1, -2),), width=2, says=3)
    >>> question(stump, 0, ["position", "angle"])
    'angle ≤ 0.5'
    """
    places = tree.reads[split]
    weight = tree.terms.weight[: len(places), split]
    parts = [
        f"{'−' if w < 0 else '+'} {'' if abs(w) == 1 else words.number(abs(float(w))) + '·'}{names[place]}"
        for place, w in zip(places, weight, strict=True)
    ]
    left = " ".join(parts).removeprefix("+ ").replace("− ", "−", 1 if parts[0][0] == "−" else 0)
    return f"{left} ≤ {words.number(float(tree.threshold[split])).replace('-', '−')}"


def visits(tree: Tree, rows: Floats) -> Reals:
    """[L] share of the rows [N, width] that end at every leaf.

    >>> stump = Tree(np.array([], np.float32), np.array([0.5], np.float32), np.array([[2], [0]], np.float32),
    ...              ((1,),), ((-1, -2),), width=2, says=3)
    >>> visits(stump, np.array([[0, 0], [0, 1], [9, 1], [0, np.nan]], np.float32)).tolist()
    [0.25, 0.75]
    """
    return np.bincount(leaf_of(tree, rows), minlength=len(tree.leaves)) / len(rows)


def _answer(blueprint: Blueprint, row: Floats) -> str:
    executed = distributions.act(blueprint.head, row[None]).reshape(-1)
    if not blueprint.head.discrete:
        return ", ".join(words.number(float(v)).replace("-", "−") for v in executed)
    said = ", ".join(str(int(v)) for v in executed)
    return naming.action_name(blueprint.spec.name, said)


# ---------------------------------------------------------------- laying out


@dataclass(frozen=True)
class Node:
    """A question (at >= 0) or a leaf (below 0) where it stands, in pixels; a leaf that two questions share stands twice."""

    at: int
    x: float
    y: float
    columns: int  # leaves below it, or 1
    below: tuple[Node, ...] = ()  # yes, no


def layout(tree: Tree, at: int = 0, column: int = 0, depth: int = 0) -> Node:
    """The tree below `at`, a node in the middle of its columns: so wide each may be, and no two nodes ever overlap."""
    y = MARGIN + HIGH / 2 + depth * ROW
    if at < 0:
        return Node(at, MARGIN + (column + 0.5) * LEAF, y, 1)
    yes = layout(tree, tree.children[at][0], column, depth + 1)
    no = layout(tree, tree.children[at][1], column + yes.columns, depth + 1)
    wide = yes.columns + no.columns
    return Node(at, MARGIN + (column + wide / 2) * LEAF, y, wide, (yes, no))


def nodes(root: Node) -> Iterator[Node]:
    yield root
    for child in root.below:
        yield from nodes(child)


def _svg(questions: Sequence[str], answers: Sequence[str], shares: Reals | None, root: Node, told: str) -> str:
    wide, high = 2 * MARGIN + LEAF * root.columns, max(n.y for n in nodes(root)) + HIGH / 2 + 20 + MARGIN
    kinds = {answer: ACTIONS[i % len(ACTIONS)] for i, answer in enumerate(sorted(set(answers)))}
    parts = [_edge(node, child, i == 0) for node in nodes(root) for i, child in enumerate(node.below)]
    for node in nodes(root):
        if node.at >= 0:
            parts.append(_question(node, questions[node.at]))
        else:
            answer = answers[~node.at]
            parts.append(_leaf(node, answer, kinds[answer], None if shares is None else float(shares[~node.at])))
    return (
        f'<svg class="tree" role="img" aria-label="{escape(f"Decision tree: {told}")}" viewBox="0 0 {wide} {high:.0f}" '
        f'width="{wide}" height="{high:.0f}">{"".join(parts)}</svg>'
    )


def _edge(parent: Node, child: Node, yes: bool) -> str:
    top, bottom = parent.y + HIGH / 2, child.y - HIGH / 2
    middle = (top + bottom) / 2
    line = f'<path d="M{parent.x:.1f} {top:.1f}V{middle:.1f}H{child.x:.1f}V{bottom:.1f}" fill="none" stroke="var(--muted)" stroke-width="1.2"/>'
    return line + _text(
        child.x + (-6 if yes else 6), middle + 15, "yes" if yes else "no", "muted", "end" if yes else "start", 11
    )


def _question(node: Node, text: str) -> str:
    asked, sign, threshold = text.rpartition(" ≤ ")
    tail = sign + threshold
    short = _cut(asked, node.columns * LEAF - 26 - LETTER * len(tail)) + tail
    half = min(LETTER * len(short) / 2 + 9, node.columns * LEAF / 2 - 4)
    box = f'<rect x="{node.x - half:.1f}" y="{node.y - HIGH / 2:.1f}" width="{2 * half:.1f}" height="{HIGH}" rx="5" fill="var(--panel)" stroke="var(--muted)"/>'
    return f"<g><title>{escape(text)}</title>{box}{_text(node.x, node.y + 4.5, short, 'ink')}</g>"


def _leaf(node: Node, answer: str, colour: str, share: float | None) -> str:
    short = _cut(answer, LEAF - 22)
    half = LEAF / 2 - 4
    box = f'<rect x="{node.x - half:.1f}" y="{node.y - HIGH / 2:.1f}" width="{2 * half:.1f}" height="{HIGH}" rx="13" fill="var(--paper)" stroke="var(--{colour})" stroke-width="1.8"/>'
    below = (
        ""
        if share is None
        else _text(node.x, node.y + HIGH / 2 + 15, words.percent(round(share, 3)), "muted", size=11.5)
    )
    return f"<g><title>{escape(answer)}</title>{box}{_text(node.x, node.y + 4.5, short, colour)}{below}</g>"


def _text(x: float, y: float, text: str, colour: str, anchor: str = "middle", size: float = FONT) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="var(--{colour})">{escape(text)}</text>'


def _cut(text: str, pixels: float) -> str:
    most = max(int(pixels / LETTER), 3)
    return text if len(text) <= most else text[: most - 1] + "…"
