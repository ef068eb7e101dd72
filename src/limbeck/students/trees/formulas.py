"""Small trees and rules in words: what they do with an observation x, to be read, checked and argued with."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces as gs

from limbeck import distributions
from limbeck.contracts import Blueprint, Floats, Head, Sparse, Tree

MOST_LEAVES, MOST_NUMBERS = 8, 16  # longer ones are not read, they are run
_CHOICES, _SIZES = ("categorical", "q"), ("deterministic", "tanh")


def formula(blueprint: Blueprint) -> str:
    """What a policy of one small tree or rule does, where x[i] is the observation's number i.

    "" for other policies, for those of more than 8 leaves or 16 numbers, and where x[i] has no such meaning (a history,
    entries of a Dict, an action mask). Numbers are whole float32s in their shortest spelling: nothing is rounded.

    >>> from limbeck.contracts import Spec
    >>> spec = Spec(gs.Box(-1, 1, (4,), np.float32), gs.Discrete(2))
    >>> ternary = Sparse(np.ones(3, np.float32), np.zeros(0, np.float32), ((), (1, 2, 3)), (), width=4)
    >>> formula(Blueprint(spec, Head("categorical", (2,)), (ternary,)))
    'action 1 where x[1] + x[2] + x[3] > 0, else action 0'
    """
    space, view, head = blueprint.spec.observation_space, blueprint.view, blueprint.head
    plain = isinstance(space, gs.Box) and len(space.shape) == 1 and blueprint.normaliser is None
    seen = view.keys is None and view.history == 1 and view.mask is None
    if not plain or not seen or len(blueprint.layers) != 1 or head.kind not in (*_CHOICES, *_SIZES):
        return ""
    layer, wide = blueprint.layers[0], int(np.prod(space.shape or ()))
    names = [f"x[{i}]" for i in view.indices or range(wide)]
    if isinstance(layer, Tree) and len(layer.leaves) <= MOST_LEAVES:
        return _branch(layer, head, names, 0)
    if isinstance(layer, Sparse) and layer.parameters <= MOST_NUMBERS:
        return _rule(layer, head, names)
    return ""


def _branch(tree: Tree, head: Head, names: list[str], at: int) -> str:
    """The part of the tree below a split, or a leaf (below 0); questions that decide nothing are left out."""
    if at < 0:
        return _answer(tree.rows[~at], head)
    left, right = (_branch(tree, head, names, child) for child in tree.children[at])
    if left == right:
        return left
    weight = tree.terms.weight[: len(tree.reads[at]), at]
    asked = f"{_sum(names, tree.reads[at], weight, 0.0)} <= {_number(tree.threshold[at])}"
    left, right = (f"({part})" if part.startswith("if ") else part for part in (left, right))
    return f"if {asked} then {left} else {right}"


def _answer(row: Floats, head: Head) -> str:
    """What one leaf makes the environment receive."""
    executed = distributions.act(head, row[None]).reshape(-1)
    if head.kind in _CHOICES:
        return f"action {int(executed[0])}"
    return ", ".join(f"action[{i}] = {_number(value)}" for i, value in enumerate(executed))


def _rule(rule: Sparse, head: Head, names: list[str]) -> str:
    weight, offset = rule.terms.weight, rule.offset
    sums = [_sum(names, places, weight[: len(places), o], float(offset[o])) for o, places in enumerate(rule.reads)]
    if head.kind in _CHOICES:
        first = int(head.start[0]) if head.start else 0
        if len(sums) == 2:
            return f"action {first + 1} where {sums[1]} > {sums[0]}, else action {first}"
        listed = ", ".join(f"{first + n}: {text}" for n, text in enumerate(sums))
        return f"the action whose number is largest, of equals the first: {listed}"
    low, high = distributions.bounds(head)
    parts = []
    for i, text in enumerate(sums):
        begin, end = _number(low[i]), _number(high[i])
        if head.kind == "tanh":
            parts.append(f"action[{i}] = {begin} + ({end} - {begin}) * (tanh({text}) + 1) / 2")
        else:
            parts.append(f"action[{i}] = {text}" + (f", kept within {begin} to {end}" if head.low else ""))
    return "; ".join(parts)


def _sum(names: list[str], places: tuple[int, ...], weight: Floats, offset: float) -> str:
    """
    >>> _sum(["x[0]", "x[1]"], (0, 1), np.float32([-1, 0.1]), 2.5)
    '-x[0] + 0.1*x[1] + 2.5'
    """
    signed = [(float(w), names[place]) for place, w in zip(places, weight, strict=True) if w]
    parts = [("-" if w < 0 else "+", name if abs(w) == 1 else f"{_number(abs(w))}*{name}") for w, name in signed]
    parts += [("-" if offset < 0 else "+", _number(abs(offset)))] * bool(offset)
    text = " ".join(f"{sign} {part}" for sign, part in parts)
    return text.removeprefix("+ ").replace("- ", "-", text.startswith("- ")) or "0"


def _number(value: float) -> str:
    """The shortest text that reads back as the same float32.

    >>> _number(np.float32(0.1)), _number(-2.0)
    ('0.1', '-2')
    """
    return repr(float(str(np.float32(value)))).removesuffix(".0")
