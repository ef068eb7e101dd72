"""Trees and sparse layers: by hand, saved and loaded, and bit for bit the same in numpy, C and ONNX, on thresholds too."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces as S

from limbeck import blueprints, exporters, seeding, spaces
from limbeck.contracts import Blueprint, Dense, Floats, HeadKind, Layer, Policy, Shared, Sparse, Spec, Tree, View
from limbeck.errors import InputError
from limbeck.exporters import c, golden
from limbeck.runtimes.numpy import NumpyPolicy, leaf_of

WIDTH, BOX = 5, S.Box(-3, 3, (5,), np.float32)
RNG = seeding.generator(3, "train", 91)
EMPTY = np.zeros(0, np.float32)


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def policy(*layers: Layer, action_space: S.Space = S.Discrete(3), kind: HeadKind | None = None) -> Blueprint:
    made = Blueprint(Spec(BOX, action_space, "a task"), spaces.head_for(action_space, kind), layers, View())
    blueprints.check(made)
    return made


def drawn_tree(splits: int, says: int, most: int, labelled: bool) -> Tree:
    """A random shape with thresholds and weights on halves, so that sums often lie on a threshold."""
    children: list[list[int]] = [[0, 0] for _ in range(splits)]
    ends = [(0, 0), (0, 1)]
    for split in range(1, splits):
        parent, side = ends.pop(int(RNG.integers(len(ends))))
        children[parent][side] = split
        ends += [(split, 0), (split, 1)]
    for leaf, (parent, side) in enumerate(ends):
        children[parent][side] = ~leaf
    reads = tuple(tuple(RNG.permutation(WIDTH)[: RNG.integers(1, most + 1)].tolist()) for _ in range(splits))
    weight = RNG.choice([-1.5, -1.0, 0.5, 1.0, 0.1], sum(len(r) for r in reads if len(r) > 1))
    leaves = RNG.integers(says, size=(len(ends), 1)) if labelled else RNG.normal(size=(len(ends), says))
    threshold = RNG.integers(-4, 5, splits) / 2
    pairs = tuple((a, b) for a, b in children)
    return Tree(floats(*weight), floats(*threshold), leaves.astype(np.float32), reads, pairs, WIDTH, says)


def drawn_sparse(says: int) -> Sparse:
    reads = tuple(tuple(RNG.permutation(WIDTH)[: RNG.integers(0, 4)].tolist()) for _ in range(says))
    biased = tuple(range(0, says, 2))
    weight = RNG.normal(size=sum(map(len, reads)))
    return Sparse(floats(*weight), floats(*RNG.normal(size=len(biased))), reads, biased, WIDTH)


CASES = {
    "stump": policy(drawn_tree(1, 3, 1, True)),
    "never asks": policy(Tree(EMPTY, floats(0), floats(2)[:, None], ((0,),), ((-1, -1),), WIDTH, 3)),
    "labels": policy(drawn_tree(15, 3, 1, True)),
    "rows": policy(drawn_tree(15, 3, 1, False)),
    "oblique": policy(drawn_tree(12, 3, 4, True)),
    "tables": policy(drawn_tree(90, 3, 1, True)),
    "oblique tables": policy(drawn_tree(120, 3, 3, False)),
    "continuous": policy(drawn_tree(9, 2, 2, False), action_space=S.Box(-1, 1, (2,), np.float32)),
    "one number": policy(drawn_tree(4, 1, 1, False), action_space=S.Box(-1, 1, (1,), np.float32)),
    "bits": policy(drawn_tree(6, 4, 1, False), action_space=S.MultiBinary(4)),
    "sparse": policy(drawn_sparse(3)),
    "silent": policy(Sparse(EMPTY, EMPTY, ((), (), ()), (), WIDTH)),
    "shared": policy(Shared((Dense(np.eye(1, 2, dtype=np.float32), floats(0, 0.5)), Tree(
        floats(1, -1), floats(0.5, 0), floats(0, 1, 1, 0, 2, 2).reshape(3, 2), ((0, 1), (1,)), ((-1, 1), (-2, -3)), 2, 2)), WIDTH),
        Sparse(floats(1, 2, -1), floats(0.25), ((0, 9), (3,), ()), (2,), 2 * WIDTH)),
}  # fmt: skip


def observations(rows: int = 600) -> Floats:
    """Halves, which meet thresholds, then any numbers, then some that are none."""
    x = (RNG.integers(-8, 9, (rows, WIDTH)) / 2).astype(np.float32)
    x[rows // 2 :] += RNG.normal(size=(rows - rows // 2, WIDTH)).astype(np.float32)
    x[0, 0], x[1, 1], x[2], x[3] = np.nan, np.inf, -np.inf, np.nan
    return x


def said(played: Policy, x: Floats) -> Floats:
    return played(x, played.initial_state(len(x)), np.ones(len(x), bool)).params


def test_tree_by_hand() -> None:
    """x1 <= 0.5 ? 2 : (x0 - x2 <= 0 ? 0 : 1); on a threshold left, NaN right."""
    tree = Tree(floats(1, -1), floats(0.5, 0), floats(2, 0, 1)[:, None], ((1,), (0, 2)), ((-1, 1), (-2, -3)), 3, 3)
    nan = np.nan
    x = np.array(
        [[9, 0.5, 0], [0, 0.6, 0], [1, 0.6, 1], [1.5, 9, 1], [0, nan, 1], [nan, 1, 0], [3, -9, nan]], np.float32
    )
    assert leaf_of(tree, x).tolist() == [0, 1, 1, 2, 1, 2, 0]
    assert tree.rows[leaf_of(tree, x)].argmax(axis=1).tolist() == [2, 0, 0, 1, 0, 1, 2]
    assert (tree.parameters, tree.depth, tree.multiply_adds) == (2 + 2 + 3, 2, 2)


def test_sparse_by_hand() -> None:
    rule = Sparse(floats(2, 1, -3), floats(0.5), ((), (2, 3), (0,)), (2,), 4)
    assert rule.offset.tolist() == [0, 0, 0.5]
    made = Blueprint(Spec(S.Box(-9, 9, (4,), np.float32), S.Discrete(3), "t"), spaces.head_for(S.Discrete(3)), (rule,))
    assert said(NumpyPolicy(made), floats(1, 7, 2, 3)[None]).tolist() == [[0, 7, -2.5]]
    assert made.parameters == 4


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "target", [name for name in exporters.targets() if name not in ("sb3", "onnx_int8")]
)  # no trees
def test_targets_agree_bit_for_bit(name: str, target: str, tmp_path: Path) -> None:
    """Tables, ifs and nodes against numpy: the leaf is the same wherever a sum lies on a threshold."""
    if exporters.missing(target):
        pytest.skip(exporters.missing(target))
    made, x = CASES[name], observations()[4 * (name == "shared") :]  # a dense layer warns of numbers that are none
    first = np.zeros(len(x), bool)
    first[0] = True
    exporters.export(made, tmp_path, [target], golden.label(NumpyPolicy(made), x[4:40], first[:36]))
    if target in ("c", "wasm"):  # their guard reads 0 where a number is not finite
        x = np.where(np.isfinite(x), x, np.float32(0))
    wanted, given = said(NumpyPolicy(made), x), said(exporters.load(tmp_path, target), x)
    assert np.array_equal(given, wanted, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    made, x = CASES[name], observations(50)[4:]
    blueprints.save(made, tmp_path / "policy.safetensors")
    found, _ = blueprints.load(tmp_path / "policy.safetensors")
    assert found.parameters == made.parameters
    assert np.array_equal(said(NumpyPolicy(found), x), said(NumpyPolicy(made), x), equal_nan=True)


@pytest.mark.parametrize("name", ["oblique", "oblique tables", "tables", "shared", "silent", "one number"])
def test_strict_compilers(name: str, tmp_path: Path) -> None:
    if c.missing():
        pytest.skip(f"{c.missing()}: apt-get install gcc libc6-dev")
    c.export(CASES[name], tmp_path)
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99", "-Wconversion", "-Wno-sign-conversion", "-c"]
    (tmp_path / "policy.c").write_text('#define LIMBECK_IMPLEMENTATION\n#include "policy.h"\n')
    done = subprocess.run(["cc", *flags, "policy.c", "-o", "policy.o"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_small_trees_are_ifs_and_large_ones_tables() -> None:
    nested, tables = (c.generate(CASES[name])[0] for name in ("labels", "tables"))
    assert nested.count("if (x[") == 15
    assert "while (node >= 0)" in tables
    assert "if (x[" not in tables


SOUND = Tree(floats(1, -1), floats(0.5, 0), floats(2, 0, 1)[:, None], ((1,), (0, 2)), ((-1, 1), (-2, -3)), WIDTH, 3)
WRONG = {
    "a loop": replace(SOUND, children=((-1, 1), (1, -3))),
    "an orphan": replace(SOUND, children=((-1, -2), (-2, -3))),
    "a child that is not there": replace(SOUND, children=((-1, 7), (-2, -3))),
    "a leaf that is not there": replace(SOUND, children=((-1, 1), (-2, -9))),
    "a place outside of the row": replace(SOUND, reads=((1,), (0, WIDTH))),
    "a split that reads nothing": replace(SOUND, reads=((1,), ())),
    "a label that is none": replace(SOUND, leaves=floats(2, 0, 3)[:, None]),
    "half a label": replace(SOUND, leaves=floats(2, 0, 0.5)[:, None]),
    "a weight too many": replace(SOUND, weight=floats(1, 2, 3)),
    "a threshold too few": replace(SOUND, threshold=floats(1)),
    "rows of another width": replace(SOUND, leaves=np.zeros((3, 2), np.float32)),
    "a bias twice": Sparse(floats(1), floats(1, 1), ((0,), (), ()), (0, 0), WIDTH),
    "a bias outside": Sparse(floats(1), floats(1), ((0,), (), ()), (3,), WIDTH),
    "a weight without a place": Sparse(floats(1, 2), EMPTY, ((0,), (), ()), (), WIDTH),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_layers_are_refused(name: str, tmp_path: Path) -> None:
    """From a file, where anybody may have written it."""
    made = replace(CASES["labels"], layers=(WRONG[name],))
    blueprints.save(made, tmp_path / "policy.safetensors")
    with pytest.raises(InputError):
        blueprints.load(tmp_path / "policy.safetensors")
