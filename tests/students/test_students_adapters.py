"""What of inherited students is trained: frozen layers keep their bits, adapters begin at nothing and stay of their rank."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import imitation, objective
from limbeck.contracts import Head, Spec, View
from limbeck.errors import InputError
from limbeck.imitation import Pace, Table
from limbeck.students import adapters
from limbeck.students import family as families
from limbeck.students.family import Trained
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack

TASK, INPUTS, ACTIONS = "toy", 5, 3
PORT = Port(
    Spec(gs.Box(-3, 3, (INPUTS,), np.float32), gs.Discrete(ACTIONS), TASK),
    View(), Head("categorical", (ACTIONS,), start=(0,)), INPUTS,
)  # fmt: skip


def trained(text, what, rounds=2, decay=0.0, owned=None):
    family = families.build(parse([text]), {TASK: PORT}, 3, owned, what)
    before = {m.name: family.blueprint(m.name, TASK) for m in family.members}
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, INPUTS)).astype(np.float32)
    labels = {"params": torch.from_numpy((x @ rng.normal(size=(INPUTS, ACTIONS))).astype(np.float32))}
    table = Table(TASK, torch.from_numpy(x), torch.zeros(300, dtype=torch.bool), labels, {}, PORT.head)
    pace = Pace(20, 64, 1e-2, 1.0, regularising=imitation.Regularising(weight_decay=decay))
    for number in range(rounds):
        imitation.imitate(family, {TASK: table}, objective.mixture("kl", 0.0), pace, number, 3)
    return family, before


@pytest.mark.parametrize("text", ["mlp:16x16@2", "mlp:32x32:r3@2", "nested:16x16"])
def test_frozen_layers_keep_their_bits(text):
    family, before = trained(text, Trained(("dense1",)), decay=0.1)
    for name, was in before.items():
        now = family.blueprint(name, TASK)
        whole = len(now.layers) == 3
        stays = [1] if whole else [2, 3]
        for n, (a, b) in enumerate(zip(was.layers, now.layers, strict=True)):
            same = np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
            assert same == (n in stays), f"layer {n} of {name}"


def test_an_adapted_student_begins_as_it_was():
    _, before = trained("mlp:16x16@2", Trained(rank=2), rounds=0)
    plain = families.build(parse(["mlp:16x16@2"]), {TASK: PORT}, 3)
    for name, was in before.items():
        for a, b in zip(was.layers, plain.blueprint(name, TASK).layers, strict=True):
            assert np.array_equal(a.weight, b.weight)
            assert np.array_equal(a.bias, b.bias)


def test_only_products_of_the_rank_are_added():
    family, before = trained("mlp:16x16@2", Trained(rank=2))
    for name, was in before.items():
        for a, b in zip(was.layers, family.blueprint(name, TASK).layers, strict=True):
            assert np.array_equal(a.bias, b.bias)
            values = np.linalg.svd(b.weight.astype(float) - a.weight, compute_uv=False)
            assert values[1] > 1e-4
            assert all(values[2:] < 1e-6)


def test_rank_times_in_plus_out_numbers_are_trained():
    family, _ = trained("mlp:16x16", Trained(rank=2), rounds=0)
    layers = [(5, 16), (16, 16), (16, 3)]
    assert int(family.stacks[0].held.sum()) == sum(2 * (a + b) for a, b in layers)
    start = family.stacks[0].theta.clone()
    after, _ = trained("mlp:16x16", Trained(rank=2))
    changed = (after.stacks[0].theta != start)[0]
    assert torch.equal(changed, after.stacks[0].held > 0)


def test_frozen_layers_have_no_adapter():
    family, before = trained("mlp:16x16", Trained(("dense0", "head"), 2))
    same = [
        np.array_equal(a.weight, b.weight)
        for a, b in zip(before["mlp-16x16-s0"].layers, family.blueprint("mlp-16x16-s0", TASK).layers, strict=True)
    ]
    assert same == [True, False, True]


def test_settling_merges_what_was_trained():
    family, _ = trained("mlp:16x16", Trained(rank=2))
    before = family.blueprint("mlp-16x16-s0", TASK)
    family.settle()
    assert family.stacks[0].stack.weave is None
    assert family.stacks[0].theta.shape[1] == family.stacks[0].stack.parameters
    for a, b in zip(before.layers, family.blueprint("mlp-16x16-s0", TASK).layers, strict=True):
        assert np.array_equal(a.weight, b.weight)


def test_a_checkpoint_holds_the_adapters():
    family, _ = trained("mlp:16x16", Trained(rank=2))
    other = families.build(parse(["mlp:16x16"]), {TASK: PORT}, 3, None, Trained(rank=2))
    other.from_arrays({key: array.copy() for key, array in family.to_arrays().items()})
    assert np.array_equal(family.row("mlp-16x16-s0"), other.row("mlp-16x16-s0"))


def test_layers_that_are_not_there_are_refused():
    stack = Stack(parse(["mlp:8"])[0].architecture, {TASK: PORT})
    with pytest.raises(InputError, match=r"no layer 'dense1'\. Allowed for it: dense0, head"):
        adapters.held(stack, TASK, ("dense1",))
    with pytest.raises(InputError, match="Allowed: mlp and linear"):
        adapters.adapted(Stack(parse(["nested:8"])[0].architecture, {TASK: PORT}), TASK, 2, ())
