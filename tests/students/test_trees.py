"""Trees: VIPER's draws, growth and pruning against trees planted in the data, checkpoints, real runs that resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as S

import limbeck
from limbeck import runs, seeding, settings, spaces
from limbeck.contracts import Blueprint, Dense, Floats, Head, Normaliser, Spec, Tree, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy, leaf_of
from limbeck.stages import growing, learn, scene
from limbeck.stages.opening import open_both
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.trees import cart, grown, growth, numbers, rules, targets
from limbeck.students.trees.cart import Nodes
from limbeck.students.trees.grown import Grove
from limbeck.students.trees.targets import Examples

FOUR = Head("categorical", (4,))
MEANS = Head("deterministic", (2,), (-2.0, -2.0), (2.0, 2.0), (), (2,))


def rng(*counters: int) -> np.random.Generator:
    return seeding.generator(1, "train", 55, *counters)


def planted(x: Floats, action: np.ndarray, weight: Floats | None = None) -> Examples:
    """Rows whose teacher is certain of `action`."""
    params = np.where(np.eye(4, dtype=bool)[action], 0.0, -5.0).astype(np.float32)
    return targets.examples(x, params, FOUR, FOUR, np.ones(len(x), np.float32) if weight is None else weight)


# ---------------------------------------------------------------- what matters how much


def test_gaps_are_vipers() -> None:
    """max Q - min Q; of policies max log p - min log p (Bastani et al. 2018, `get_predicted_rewards` in their code)."""
    q = np.array([[0.0, -1.0, -4.0], [-2.0, 0.0, 0.0]], np.float32)
    assert targets.gaps(Head("q", (3,)), q, None, None).tolist() == [4, 2]
    allowed = np.array([[True, True, False], [False, True, False]])
    assert targets.gaps(Head("q", (3,)), q, None, allowed).tolist() == [1, 0]
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    assert targets.gaps(Head("categorical", (3,)), np.log(p), None, None) == pytest.approx([np.log(7)])
    lists = Head("multicategorical", (2, 3))
    assert targets.gaps(lists, np.array([[0, -1, 0, -2, -3]], np.float32), None, None).tolist() == [4]
    advantage = np.array([[0.0, -7.0, -1.0]], np.float32)
    assert targets.gaps(Head("categorical", (3,)), np.log(p), advantage, None).tolist() == [7]
    assert targets.gaps(MEANS, np.ones((2, 2), np.float32), None, None).tolist() == [1, 1]


def test_rows_are_drawn_in_proportion_to_their_gap() -> None:
    """Counts are multinomial: each within five standard deviations of n p, and none where nothing is at stake."""
    gap = rng(1).gamma(1.0, size=300).astype(np.float32)
    gap[::7] = 0
    given = planted(np.arange(300, dtype=np.float32)[:, None], np.zeros(300, int))
    drawn = targets.resampled(given, gap, 200_000, rng(2))
    counts = np.zeros(300)
    counts[drawn.x[:, 0].astype(int)] = drawn.weight
    share = gap / gap.sum(dtype=np.float64)
    assert counts.sum() == 200_000
    assert (counts[::7] == 0).all()
    assert (np.abs(counts - 200_000 * share) <= 5 * np.sqrt(200_000 * share * (1 - share)) + 1e-9).all()


# ---------------------------------------------------------------- growth


def test_a_planted_tree_is_found_again() -> None:
    x = rng(3).uniform(-1, 1, (4000, 3)).astype(np.float32)
    action = np.where(x[:, 1] <= 0.25, np.where(x[:, 0] <= -0.5, 3, 0), np.where(x[:, 2] <= 0.0, 2, 1))
    tree = growth.tree(planted(x, action), leaves=4, depth=0, oblique=False, seed=0)
    assert len(tree.leaves) == 4
    assert (tree.rows[leaf_of(tree, x)].argmax(axis=1) == action).mean() == 1.0
    assert tree.threshold[0] == pytest.approx(0.25, abs=2e-3)  # 4,000 uniform rows lie 5e-4 apart
    assert tree.problem() == ""


def test_a_tree_agrees_with_scikit_learn_on_every_row() -> None:
    """The same splits from another implementation of the comparison: thresholds survive the step to float32."""
    x = np.round(rng(4).normal(size=(3000, 4)), 2).astype(np.float32)  # many equal numbers
    action = (4 * rng(5).random(3000)).astype(int)
    given, bounds = planted(x, action), cart.Bounds(60, None)
    nodes = cart.grow(given.x, given.y, given.weight, bounds, 0)
    reference = cart.regressor(bounds, 0).fit(given.x, given.y, sample_weight=given.weight).predict(x)
    tree = growth.layer_of(nodes, given)
    assert np.allclose(tree.rows[leaf_of(tree, x)], reference, atol=1e-6)


def test_oblique_splits_find_a_difference() -> None:
    x = (rng(6).normal(size=(3000, 4)) * [1, 10, 0.1, 1]).astype(np.float32)
    action = np.where(x[:, 0] - x[:, 1] / 10 <= 0.3, 0, 2)
    oblique, plain = (growth.tree(planted(x, action), 2, 0, o, 0) for o in (True, False))
    agree = [(t.rows[leaf_of(t, x)].argmax(axis=1) == action).mean() for t in (oblique, plain)]
    assert agree[0] > 0.99 > 0.85 > agree[1]
    assert oblique.reads == ((0, 1),)
    assert oblique.weight[1] / oblique.weight[0] == pytest.approx(-0.1, rel=0.05)


def test_bounds_are_kept() -> None:
    x, action = rng(7).normal(size=(2000, 5)).astype(np.float32), rng(8).integers(4, size=2000)
    for oblique in (False, True):
        assert len(growth.tree(planted(x, action), 7, 0, oblique, 0).leaves) <= 7
        assert growth.tree(planted(x, action), 0, 3, oblique, 0).depth <= 3


def test_a_teacher_of_one_action_gives_a_tree_that_never_asks() -> None:
    x = rng(9).normal(size=(100, 2)).astype(np.float32)
    tree = growth.tree(planted(x, np.full(100, 3)), 8, 0, False, 0)
    assert (len(tree.leaves), tree.children, tree.problem()) == (1, ((-1, -1),), "")


def test_continuous_actions_are_means_of_leaves() -> None:
    x = rng(10).uniform(-1, 1, (2000, 2)).astype(np.float32)
    params = np.where(x[:, :1] <= 0, [[-1.0, 5.0]], [[0.5, 1.0]]).astype(np.float32)  # 5 is executed as 2
    given = targets.examples(x, params, MEANS, MEANS, np.ones(2000, np.float32))
    tree = growth.tree(given, 2, 0, False, 0)
    assert tree.rows[leaf_of(tree, floats([-0.5, 0], [0.5, 0]))] == pytest.approx(
        np.array([[-1, 2], [0.5, 1]]), abs=1e-5
    )
    squashed = replace(MEANS, kind="tanh")
    given = targets.examples(x, params / 4, squashed, squashed, np.ones(2000, np.float32))
    tree = growth.tree(given, 2, 0, False, 0)
    assert np.allclose(tree.rows[leaf_of(tree, floats([-0.5, 0]))], [[-0.25, 1.25]], atol=1e-3)


def floats(*rows: list[float]) -> Floats:
    return np.array(rows, np.float32)


def test_the_weakest_link_is_cut_first() -> None:
    """Costs by hand: root 10, its children 4 and 3, the left one's leaves 1 and 1, the right one's 0 and 2.5.

    The right split gains (3 - 2.5) / 1, the left (4 - 2) / 1, both and the root (10 - 4.5) / 3."""
    nodes = Nodes()
    for cost in (10, 4, 3, 1, 1, 0, 2.5):
        nodes.add(np.zeros(2, np.float32), cost)
    nodes.children[:3] = [(1, 2), (3, 4), (5, 6)]
    growth.prune(nodes, 4)
    assert nodes.children[2] == (5, 6)
    growth.prune(nodes, 3)
    assert nodes.children[:3] == [(1, 2), (3, 4), (-1, -1)]
    growth.prune(nodes, 2)
    assert nodes.children[:3] == [(1, 2), (-1, -1), (-1, -1)]


def test_float32_thresholds_send_every_float32_where_float64_ones_did() -> None:
    values = rng(11).normal(size=1000)
    below = growth.below(values)
    assert (below <= values).all()
    assert (np.nextafter(below, np.float32(np.inf)) > values).all()


# ---------------------------------------------------------------- numbers


def drawn(oblique: bool) -> Tree:
    x, action = rng(12).normal(size=(1500, 3)).astype(np.float32), rng(13).integers(4, size=1500)
    return growth.tree(planted(x, action), 9, 0, oblique, 0)


@pytest.mark.parametrize(
    "layer", [drawn(False), drawn(True), rules.layer_from(np.diag([1.0, 0, 2]), np.array([0, 3.0, 0]))]
)
def test_numbers_there_and_back(layer: numbers.Grown) -> None:
    again = numbers.from_arrays(numbers.to_arrays(layer))
    assert type(again) is type(layer)
    assert numbers.to_arrays(again).keys() == numbers.to_arrays(layer).keys()
    assert all(
        np.array_equal(a, b)
        for a, b in zip(numbers.to_arrays(again).values(), numbers.to_arrays(layer).values(), strict=True)
    )
    moved = numbers.put(layer, numbers.flat(layer) + 1)
    assert numbers.flat(moved) == pytest.approx(numbers.flat(layer) + 1)
    assert moved.problem() == ""
    scale = numbers.scales(layer, Normaliser(np.zeros(3, np.float32), floats([1, 10, 100])[0]), FOUR)
    assert scale.shape == numbers.flat(layer).shape
    assert (scale > 0).all()


def test_scales_follow_the_spread_of_the_inputs() -> None:
    """A threshold moves by its input's spread; weights so that spread times step is the same for all inputs."""
    tree = Tree(
        floats([2, 0.5])[0], floats([0, 0])[0], np.eye(3, dtype=np.float32), ((1,), (0, 2)), ((-1, 1), (-2, -3)), 3, 3
    )
    spread = Normaliser(np.zeros(3, np.float32), floats([3, 7, 4])[0])
    scale = numbers.scales(tree, spread, FOUR)
    assert scale[:2] == pytest.approx([4 / 3, 4 / 4])  # mean of |2 * 3| and |0.5 * 4| over each spread
    assert scale[2:4] == pytest.approx([7, np.hypot(6, 2)])


# ---------------------------------------------------------------- members and families


def test_grammar_of_trees() -> None:
    assert [m.name for m in parse(["tree:leaves=16@2", "oblique:depth=3", "rule:3", "ternary:5"])] == [
        "tree-leaves16-s0", "tree-leaves16-s1", "oblique-depth3-s0", "rule-3-s0", "ternary-5-s0",
    ]  # fmt: skip
    for bad in (
        "tree",
        "tree:16",
        "tree:leaves=1",
        "tree:depth=13",
        "oblique:leaf=3",
        "rule",
        "rule:0",
        "rule:x",
        "ternary:1:2",
    ):
        with pytest.raises(InputError, match="tree:leaves=16"):
            parse([bad])


def test_labels_only_where_nothing_else_is_asked() -> None:
    """Under an action mask the second best counts, so leaves stay rows."""
    space = S.Dict({"mask": S.MultiBinary(4), "x": S.Box(-1, 1, (3,), np.float32)})
    head = spaces.head_for(S.Discrete(4))
    for view, columns in ((View(), 1), (View(mask="mask"), 4)):
        box = space["x"] if view.mask is None else space
        port = Port(Spec(box, S.Discrete(4), "t"), view, head, 3)
        grove = families.build(parse(["tree:leaves=4"]), {"t": port}, 0).groves[0]
        assert grove.freeze(drawn(False), "name").layers[0].leaves.shape[1] == columns


def test_what_trees_cannot_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    head = spaces.head_for(S.Discrete(2))
    tree, rule = (member.architecture for member in parse(["tree:depth=3", "rule:3"]))
    picture = Port(Spec(S.Box(0, 255, (84, 84), np.uint8), S.Discrete(2), "t"), View(), head, 84 * 84)
    with pytest.raises(InputError, match=r"7,056.*up to 4,096"):
        grown.check(tree, picture)
    choices = spaces.head_for(S.MultiDiscrete([2, 2]))
    team = Port(Spec(S.Box(-1, 1, (2, 3), np.float32), S.MultiDiscrete([2, 2]), "t", 2), View(), choices, 6, 2)
    with pytest.raises(InputError, match="serves one agent, the task has 2"):
        grown.check(rule, team)
    single = Port(Spec(S.Box(-1, 1, (3,), np.float32), S.Discrete(2), "t"), View(), head, 3)
    monkeypatch.setattr(cart, "missing", lambda: 'scikit-learn: pip install "limbeck[trees]"')
    with pytest.raises(InputError, match=r"limbeck\[trees\]"):
        grown.check(tree, single)
    grown.check(rule, single)  # rules need none


def test_checkpoints_hold_every_iterate() -> None:
    x, action = rng(14).normal(size=(600, 4)).astype(np.float32), rng(15).integers(4, size=600)
    space = S.Box(-9, 9, (4,), np.float32)
    port = Port(Spec(space, S.Discrete(4), "t"), View(), spaces.head_for(S.Discrete(4)), 4)
    texts = ["tree:leaves=5@2", "rule:4", "mlp:4"]
    first, second = (families.build(parse(texts), {"t": port}, 0) for _ in range(2))
    for round_number in range(3):
        for grove in first.groves:
            for member in grove.members:
                grove.grow(member, planted(x, action), round_number, 4)
    first.keep(["tree-leaves5-s1", "rule-4-s0", "mlp-4-s0"])
    second.from_arrays(first.to_arrays())
    assert [m.name for m in second.members] == [m.name for m in first.members]
    assert len(second.groves[0].iterates["tree-leaves5-s1"]) == 3
    for name in ("tree-leaves5-s1", "rule-4-s0"):
        a, b = (NumpyPolicy(f.blueprint(name, "t"))(x, {}, np.ones(600, bool)).params for f in (first, second))
        assert np.array_equal(a, b)
    assert first.to_arrays().keys() == second.to_arrays().keys()


# ---------------------------------------------------------------- whole runs


QUICK = [
    "imitate.rounds=3", "imitate.gradient_steps=20", "collect.steps=512", "verify.episodes=8", "verify.random_episodes=8", "race.rounds=2",
    "race.episodes=2", "race.final_episodes=4", "grow.final_episodes=8", "grow.samples=2000", "grow.keep=4", "prove.max_episodes=32",
    "prove.bound_episodes=10", "prove.bound_steps=1000", "polish.generations=2", "polish.pairs=2", "polish.episodes=2",
    "polish.validation_episodes=4", "polish.validate_every=1", "export.golden_steps=32", "export.targets=onnx,c,numpy",
]  # fmt: skip
MIXED = ["tree:leaves=3@2", "oblique:leaves=2", "rule:3", "mlp:4"]


def leaning() -> Blueprint:
    """A teacher for CartPole: the sign of 2 theta + theta_dot, with its certainty (methods.md section 5)."""
    env = gym.make("CartPole-v1")
    weight = np.zeros((4, 2), np.float32)
    weight[2:, 1] = 20, 10
    spec = Spec(env.observation_space, env.action_space, "CartPole-v1")
    return Blueprint(spec, spaces.head_for(env.action_space), (Dense(weight, np.zeros(2, np.float32)),))


class Killed(Exception):
    pass


def grown_family(folder: Path) -> dict[str, np.ndarray]:
    """Rounds and the race of iterates, without what comes after; continues what lies in the folder."""
    values = {"teacher": "python:leaning", "env": "CartPole-v1", "students": MIXED}
    recipe = settings.recipe_from(settings.with_options(values, QUICK))
    task, teacher = open_both(recipe, None, NumpyPolicy(leaning()))
    here = scene.verify(runs.open_run(folder, recipe, lambda stage, text: None, {}), task, teacher)
    family, _ = learn.imitate_rounds(here)
    growing.settle(here, family)
    return family.to_arrays()


def test_rounds_and_races_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of a round and again while iterates race."""
    whole = grown_family(tmp_path / "whole")
    grow, race, calls = Grove.grow, growing._race, []

    def dying_grow(self: Grove, *given: object) -> float:
        calls.append("grow")
        if calls.count("grow") == 7:
            raise Killed
        return grow(self, *given)

    def dying_race(here: scene.Scene, grove: Grove) -> dict[str, object]:
        calls.append("race")
        if calls.count("race") == 2:
            raise Killed
        return race(here, grove)

    monkeypatch.setattr(Grove, "grow", dying_grow)
    monkeypatch.setattr(growing, "_race", dying_race)
    for _ in range(2):
        with pytest.raises(Killed):
            grown_family(tmp_path / "killed")
    again = grown_family(tmp_path / "killed")
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[key], whole[key]) for key in whole)
    assert sum(key.endswith("iterate0/numbers") for key in whole) == 3  # one winner of each grown size


@pytest.mark.slow
def test_a_mixed_family_from_end_to_end(tmp_path: Path) -> None:
    """Grown and trained members in one run: exported, proved, on one page; grown ones have no stack behind them."""
    done = limbeck.distill(leaning_policy(), "CartPole-v1", students=MIXED, out=tmp_path / "run", options=QUICK)
    assert {m.name.split("-")[0] for m in done.members} == {"tree", "oblique", "rule", "mlp"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(member.name in page for member in done.members)
    assert all(
        row.ok is not False for m in done.members for row in limbeck.check(tmp_path / "run" / "artifacts" / m.name)
    )


@pytest.mark.slow
def test_pendulum_gets_a_regression_tree(tmp_path: Path) -> None:
    """Continuous actions end to end, with polish of leaves and thresholds."""
    teacher = Path(__file__).parents[2] / "recipes" / "teachers" / "pendulum.safetensors"
    done = limbeck.distill(
        teacher, "Pendulum-v1", students=["oblique:leaves=6", "rule:3"], out=tmp_path / "run", options=QUICK
    )
    assert {m.name for m in done.members} == {"oblique-leaves6-s0", "rule-3-s0"}
    assert next(m for m in done.members if m.name == "rule-3-s0").parameters <= 3


def leaning_policy() -> NumpyPolicy:
    return NumpyPolicy(leaning())
