"""Small trees and rules in words: the text, evaluated on its own, does what the policy in numpy does."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces as gs

from limbeck import distributions, seeding
from limbeck.contracts import Blueprint, Dense, Floats, Head, Normaliser, Sparse, Spec, Tree, View
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students.trees import formulas, growth
from limbeck.students.trees.targets import examples

ROWS, WIDE = 400, 5
DISCRETE = {n: Head("categorical", (n,), start=(3,)) for n in (2, 4)}
BOUNDED, SQUASHED = (Head(kind, (2,), (-1.0, -2.0), (1.0, 0.5), shape=(2,)) for kind in ("deterministic", "tanh"))


def rng(*counters: int) -> np.random.Generator:
    return seeding.generator(4, "train", 58, *counters)


def policy(layer: object, head: Head, view: View = View()) -> Blueprint:
    space = gs.Discrete(sum(head.sizes)) if head.discrete else gs.Box(-1, 1, (2,), np.float32)
    return Blueprint(Spec(gs.Box(-9, 9, (WIDE,), np.float32), space), head, (layer,), view)


def played(blueprint: Blueprint, x: Floats) -> np.ndarray:
    found = NumpyPolicy(blueprint)(x, {}, np.zeros(len(x), bool)).params
    return distributions.act(blueprint.head, found).reshape(len(x), -1)


def read(text: str, x: Floats, head: Head) -> list[float]:
    """What a reader of the text would do at x: arithmetic and comparisons as Python has them."""

    def value(part: str) -> float:
        return float(eval(part, {"x": x.astype(float), "tanh": math.tanh}))

    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    if text.startswith("if "):
        asked, _, rest = text[3:].partition(" then ")
        depth = 0
        for at, sign in enumerate(rest):
            depth += (sign == "(") - (sign == ")")
            if not depth and rest[at:].startswith(" else "):
                break
        return read(rest[:at] if value(asked) else rest[at + 6 :], x, head)
    if two := re.fullmatch(r"action (\d+) where (.+), else action (\d+)", text):
        return [float(two[1] if value(two[2]) else two[3])]
    if "largest" in text:
        listed = [part.split(": ") for part in text.partition("first: ")[2].split(", ")]
        return [float(max(listed, key=lambda pair: value(pair[1]))[0])]
    if leaf := re.fullmatch(r"action (\d+)", text):
        return [float(leaf[1])]
    found = []
    for part in re.split(r"[;,] (?=action\[)", text):
        said, _, within = part.partition(" = ")[2].partition(", kept within ")
        low, high = map(float, within.split(" to ")) if within else (-math.inf, math.inf)
        found.append(min(max(value(said), low), high))
    return found


def rule(head: Head, seed: int, ternary: bool = False) -> Sparse:
    draw = rng(seed)
    reads = tuple(tuple(sorted(draw.choice(WIDE, int(draw.integers(0, 4)), replace=False))) for _ in range(head.width))
    reads = tuple(tuple(int(p) for p in places) for places in reads)
    count = sum(map(len, reads))
    weight = draw.choice([-1.0, 1.0], count) if ternary else draw.normal(size=count)
    biased = () if ternary else (head.width - 1,)
    return Sparse(weight.astype(np.float32), draw.normal(size=len(biased)).astype(np.float32), reads, biased, WIDE)


@pytest.mark.parametrize("head", [*DISCRETE.values(), BOUNDED, SQUASHED], ids=lambda h: f"{h.kind}{h.width}")
@pytest.mark.parametrize("seed", range(6))
def test_a_rules_text_does_what_the_rule_does(head: Head, seed: int) -> None:
    blueprint = policy(rule(head, seed, ternary=seed % 2 == 1), head)
    check(blueprint, rng(seed, 1).normal(size=(ROWS, WIDE)).astype(np.float32))


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("head", [*DISCRETE.values(), BOUNDED, SQUASHED], ids=lambda h: f"{h.kind}{h.width}")
def test_a_trees_text_does_what_the_tree_does(head: Head, oblique: bool) -> None:
    x = rng(7, oblique).normal(size=(ROWS, WIDE)).astype(np.float32)
    params = (x @ rng(8).normal(size=(WIDE, head.width))).astype(np.float32)
    rows = examples(x, params, head, head, np.ones(len(x), np.float32))
    check(policy(growth.tree(rows, 8, 0, oblique, 1), head), x)


def check(blueprint: Blueprint, x: Floats) -> None:
    text = formulas.formula(blueprint)
    assert text
    wanted = played(blueprint, x)
    mine = np.array([read(text, row, blueprint.head) for row in x])
    if not blueprint.head.discrete:
        assert np.mean(np.abs(mine - wanted).max(1) < 1e-5) > 0.99, text
        return
    assert np.mean(mine == wanted) > 0.99, text  # float64 rounds otherwise where two numbers are nearly alike
    flipped = np.array([read(text, -row, blueprint.head) for row in x])
    assert len(np.unique(wanted)) == 1 or np.mean(flipped == wanted) < 0.99, "the text depends on x"


def test_the_words() -> None:
    stump = Tree(
        np.float32([]), np.float32([0.1, 2]), np.float32([[1], [0], [1]]), ((3,), (0,)), ((1, -3), (-1, -2)), WIDE, 2
    )
    head = Head("categorical", (2,))
    assert (
        formulas.formula(policy(stump, head))
        == "if x[3] <= 0.1 then (if x[0] <= 2 then action 1 else action 0) else action 1"
    )
    assert formulas.formula(policy(replace(stump, leaves=np.float32([[1], [1], [1]])), head)) == "action 1"
    picked = policy(replace(stump, width=4), head, View(indices=(4, 3, 2, 1)))
    assert formulas.formula(picked).startswith("if x[1] <= 0.1 then (if x[4] <= 2")


def test_others_have_no_formula() -> None:
    head = DISCRETE[2]
    plain = policy(rule(head, 1), head)
    assert formulas.formula(plain)
    many = Sparse(np.ones(17, np.float32), np.float32([]), ((), (0, 1, 2, 3) * 4 + (0,)), (), WIDE)
    dense = Dense(np.ones((WIDE, 2), np.float32), np.zeros(2, np.float32))
    one = np.zeros(WIDE, np.float32)
    others = [
        replace(plain, view=View(history=2)), replace(plain, layers=(many,)), replace(plain, layers=(dense,)),
        replace(plain, normaliser=Normaliser(one, one + 1)), replace(plain, head=Head("bernoulli", (2,))),
        replace(plain, spec=replace(plain.spec, observation_space=gs.Discrete(WIDE))),
    ]  # fmt: skip
    assert [formulas.formula(other) for other in others] == [""] * len(others)
