"""Nested widths: one set of weights, of which every narrower student is a slice."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import imitation, objective
from limbeck.contracts import Dense, Head, Spec, View
from limbeck.errors import InputError
from limbeck.imitation import Pace, Table
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students import nested, together
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.testing import check_policy

TASK, INPUTS, ACTIONS = "toy", 5, 3
TERMS = objective.mixture("kl", 0.0)


def port():
    spec = Spec(gs.Box(-3, 3, (INPUTS,), np.float32), gs.Discrete(ACTIONS), TASK)
    return Port(spec, View(), Head("categorical", (ACTIONS,), start=(0,)), INPUTS)


def toy(rows=500):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, INPUTS)).astype(np.float32)
    logits = (3 * np.tanh(x @ rng.normal(size=(INPUTS, ACTIONS)))).astype(np.float32)
    labels = {"params": torch.from_numpy(logits - logits.mean(1, keepdims=True))}
    head = Head("categorical", (ACTIONS,))
    return Table(TASK, torch.from_numpy(x), torch.zeros(rows, dtype=torch.bool), labels, {}, head)


def pace(steps=30):
    return Pace(gradient_steps=steps, batch=64, learning_rate=3e-3, gradient_clip=1.0)


def build(text="nested:32x16@2", keep=None):
    members = [m for m in parse([text]) if keep is None or m.name in keep]
    return families.build(members, {TASK: port()}, 3)


def train(family, rounds=range(2)):
    return [imitation.imitate(family, {TASK: toy()}, TERMS, pace(), number, 3) for number in rounds][-1]


def test_the_names_are_the_widths():
    assert [m.name for m in parse(["nested:32x16@2"])] == [
        f"nested-32x16-w{w}-s{s}" for w in (32, 16, 8) for s in (0, 1)
    ]  # the next would be 4x2, below four
    assert [m.architecture.spec for m in parse(["nested:12:tanh", "nested:64x64:w16"])] == [
        "nested:12:w12:tanh", "nested:12:w6:tanh", "nested:64x64:w16",
    ]  # fmt: skip
    assert parse(["nested:64x64:w16"])[0] == parse(["nested:64x64"])[2]


@pytest.mark.parametrize(("text", "words"), [
    ("nested", "needs its sizes"), ("nested:64x64:w20", "w64, w32, w16, w8, w4"), ("nested:8:relu:tanh", "no width"),
    ("nested:0", "from 1 to"), ("nested:8:r4", "takes no rank"), ("nested:64x64:w16:r4", "takes no rank"), ("nested:64x64:w", "Allowed there: a width such as w16, relu, tanh"),
])  # fmt: skip
def test_what_is_no_nested_student_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse([text])


def test_every_width_is_exactly_a_slice_of_the_widest():
    family = build()
    train(family)
    for seed in (0, 1):
        whole = [
            layer for layer in family.blueprint(f"nested-32x16-w32-s{seed}", TASK).layers if isinstance(layer, Dense)
        ]
        for width in (16, 8):
            cut = family.blueprint(f"nested-32x16-w{width}-s{seed}", TASK)
            for mine, its in zip(cut.layers[:-1], whole[:-1], strict=True):
                assert np.array_equal(mine.weight, its.weight[: mine.inputs, : mine.outputs])
                assert not np.array_equal(mine.bias, its.bias[: mine.outputs]), "biases are each width's own"


def test_a_members_file_holds_its_slice_alone():
    family, alone = build(), families.build(parse(["mlp:16x8", "mlp:8x4"]), {TASK: port()}, 0)
    for width, name in ((16, "mlp-16x8-s0"), (8, "mlp-8x4-s0")):
        cut, plain = family.blueprint(f"nested-32x16-w{width}-s0", TASK), alone.blueprint(name, TASK)
        assert (cut.parameters, cut.multiply_adds) == (plain.parameters, plain.multiply_adds)


def test_what_is_trained_is_what_is_frozen():
    family = build()
    train(family)
    for rows in family.stacks:
        x = toy().inputs[:40]
        said = rows.stack.forward(rows.theta, TASK, x[None], None)[:, 0]
        for k, member in enumerate(rows.members):
            policy = NumpyPolicy(family.blueprint(member.name, TASK))
            check_policy(policy)
            played = policy(x.numpy(), policy.initial_state(40), np.ones(40, bool)).params
            assert np.allclose(played, said[k].detach(), atol=1e-5)


def test_the_gradient_is_the_weighted_sum_over_the_widths():
    family = build("nested:16x16@1")
    losses, theta = [], family.stacks[0].theta.clone().requires_grad_()
    rows = family.stacks
    data = toy()
    for one in rows:
        said = one.stack.forward(theta, TASK, data.inputs[None], None)
        target = data.labels["params"].log_softmax(-1)
        losses.append((target.exp() * (target - said[:, 0].log_softmax(-1))).sum(-1).mean())
    sizes = np.array([one.stack.parameters for one in rows], float)
    weights = sizes**-0.5 / (sizes**-0.5).sum()
    (wanted,) = torch.autograd.grad(sum(w * loss for w, loss in zip(weights, losses, strict=True)), theta)
    (group,) = together.group(rows, 3, 0)
    for one, weight in group.active():  # three widths: all of them
        (gradient,) = torch.autograd.grad(losses_of(one, data).sum(), one.theta)
        group.take(one, gradient, weight)
    found = list(group.gradients())
    assert len(found) == 3
    for _, gradient in found:
        assert torch.allclose(gradient, wanted, atol=1e-6)


def losses_of(rows, data):
    theta = rows.theta.requires_grad_()
    said = rows.stack.forward(theta, TASK, data.inputs[None], None)
    target = data.labels["params"].log_softmax(-1)
    return (target.exp() * (target - said[:, 0].log_softmax(-1))).sum(-1).mean(-1)


def test_a_step_trains_both_ends_and_two_between():
    rng = np.random.default_rng(1)
    drawn = [nested.sandwich(7, rng) for _ in range(400)]
    assert all(len(step) == 4 and step[0] == 0 and step[-1] == 6 for step in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=7)[1:6]  # 400 draws of 2 of 5: mean 160, deviation 9.8
    assert abs(counts - 160).max() < 5 * 9.8


def test_the_bill_counts_the_widths_that_steps_train(monkeypatch):
    """Five widths of two networks: every step descends the losses of four of them."""
    family = families.build(parse(["nested:64x64@2", "mlp:4@3"]), {TASK: port()}, 3)
    taken, gradient = [], imitation._gradient

    def counted(rows, *rest):
        taken.append(len(rows.members))
        return gradient(rows, *rest)

    monkeypatch.setattr(imitation, "_gradient", counted)
    train(family, [1])
    assert together.updates(family.stacks, 3, 1, 30) == sum(taken) == 30 * (4 * 2 + 3)


def test_weights_fall_with_the_root_of_the_parameters():
    stacks = [rows.stack for rows in build().stacks]
    weights = nested.weights(stacks)
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] / weights[1] == pytest.approx((stacks[1].parameters / stacks[0].parameters) ** 0.5)


def test_all_widths_learn():
    family = build("nested:32x16")
    before = train(family, range(1))
    after = train(family, range(1, 8))
    assert all(after[name] < 0.5 * before[name] for name in before)


def test_a_network_does_not_depend_on_its_neighbours():
    together_, alone = build(), build(keep=[f"nested-32x16-w{w}-s1" for w in (32, 16, 8)])
    train(together_), train(alone)
    for width in (32, 16, 8):
        name = f"nested-32x16-w{width}-s1"
        assert np.allclose(together_.row(name), alone.row(name), atol=2e-5)


def test_widths_can_be_dropped_apart():
    family = build()
    train(family, range(1))
    left = ["nested-32x16-w32-s0", "nested-32x16-w16-s1", "nested-32x16-w8-s0"]
    kept = {name: family.row(name) for name in left}
    family.keep(left)
    assert [m.name for m in family.members] == left
    assert all(np.array_equal(family.row(name), row) for name, row in kept.items())
    train(family, range(1, 3))
    widest, narrow = (family.blueprint(f"nested-32x16-w{w}-s0", TASK).layers[0] for w in (32, 8))
    assert np.array_equal(widest.weight[:, :8], narrow.weight), "those of one seed are still one network"


def test_a_checkpoint_continues_bit_for_bit():
    whole, first, second = build(), build(), build()
    train(whole, range(3))
    train(first, range(1))
    second.from_arrays({key: array.copy() for key, array in first.to_arrays().items()})
    train(second, range(1, 3))
    assert all(np.array_equal(whole.row(m.name), second.row(m.name)) for m in whole.members)


def test_once_settled_members_are_on_their_own():
    family = build()
    train(family, range(1))
    before = {m.name: family.blueprint(m.name, TASK) for m in family.members}
    with pytest.raises(ValueError, match="settle"):
        family.put("nested-32x16-w8-s0", family.row("nested-32x16-w8-s0"))
    family.settle()
    for name, blueprint in before.items():
        for mine, its in zip(family.blueprint(name, TASK).layers, blueprint.layers, strict=True):
            assert np.array_equal(mine.weight, its.weight)
    family.put("nested-32x16-w8-s0", family.row("nested-32x16-w8-s0") + 1)
    assert np.array_equal(family.blueprint("nested-32x16-w32-s0", TASK).layers[0].weight, before["nested-32x16-w32-s0"].layers[0].weight)  # fmt: skip
