"""Students cut out of a dense policy: exact where nothing is lost, least squares where something is."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces as gs

from limbeck.contracts import Blueprint, Conv, Dense, Head, Normaliser, Spec, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students import inheritance
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack

TASK, INPUTS, ACTIONS, ROWS = "toy", 5, 3, 600
SPEC = Spec(gs.Box(-9, 9, (INPUTS,), np.float32), gs.Discrete(ACTIONS), TASK)
PORT = Port(SPEC, View(), Head("categorical", (ACTIONS,), start=(0,)), INPUTS)
RNG = np.random.default_rng(0)
OBS = (2 + 1.5 * RNG.normal(size=(ROWS, INPUTS))).astype(np.float32)
SEEN = Normaliser(OBS.mean(0), OBS.std(0))  # of the students
X = (OBS - SEEN.mean) / SEEN.scale


def dense(width, size, activation="tanh", seed=1):
    rng = np.random.default_rng([seed, width, size])
    weight, bias = rng.normal(size=(width, size)) / width**0.5, 0.1 * rng.normal(size=size)
    return Dense(weight.astype(np.float32), bias.astype(np.float32), activation)


def teacher(widths=(16, 12), head=None, **other):
    sizes = [INPUTS, *widths]
    layers = [dense(a, b, seed=n) for n, (a, b) in enumerate(zip(sizes, widths, strict=False))]
    return Blueprint(SPEC, head or PORT.head, (*layers, dense(sizes[-1], ACTIONS, "identity")), **other)


def given(blueprint, scale=1.0):
    return inheritance.material(inheritance.source_of(blueprint, "the teacher"), PORT, SEEN, X, scale)


def born(text, blueprint, scale=1.0, rng=None):
    """The first answers of a student that inherits, and its frozen self."""
    family = families.build(parse([text]), {TASK: PORT}, 0)
    family.normalisers[TASK] = SEEN
    rows, material = family.stacks[0], given(blueprint, scale)
    order = inheritance.orders(material, len(rows.stack.architecture.widths), rng)
    family.put(rows.members[0].name, rows.stack.pack(inheritance.cut(rows.stack, TASK, material, order)))
    return said(family.blueprint(rows.members[0].name, TASK))


def said(blueprint):
    return NumpyPolicy(blueprint)(OBS, {}, np.ones(ROWS, bool)).params


@pytest.mark.parametrize("normaliser", [None, Normaliser(np.full(5, 0.3, np.float32), np.full(5, 1.7, np.float32))])
@pytest.mark.parametrize("rng", [None, 7])
def test_a_student_as_wide_as_the_teacher_is_the_teacher(normaliser, rng):
    blueprint = teacher(normaliser=normaliser)
    mine = born("mlp:16x12:tanh", blueprint, rng=None if rng is None else np.random.default_rng(rng))
    assert np.allclose(mine, said(blueprint), atol=2e-5)


def test_neurons_that_do_nothing_are_the_first_to_go():
    blueprint = teacher()
    first, second, head = blueprint.layers
    weight = second.weight.copy()
    weight[::2] = 0.0  # eight of sixteen are read by nobody
    dead = head.weight.copy()
    dead[:6] = 0.0
    blueprint = replace(blueprint, layers=(first, replace(second, weight=weight), replace(head, weight=dead)))
    material = given(blueprint)
    order = inheritance.orders(material, 2, None)
    assert set(order[0][:8]) == set(range(1, 16, 2))
    assert set(order[1][:6]) == set(range(6, 12))
    assert np.allclose(born("mlp:8x6:tanh", blueprint), said(blueprint), atol=2e-3)


def test_importance_is_mean_activation_times_outgoing_weight():
    blueprint = teacher((4,))
    layer, head = blueprint.layers
    z = np.tanh(OBS @ layer.weight + layer.bias)
    wanted = np.abs(z).mean(0) * np.abs(head.weight).sum(1)
    assert np.allclose(inheritance.importance(given(blueprint), 0), wanted, rtol=1e-4)


def test_refitting_loses_less_than_cutting():
    blueprint = teacher((32, 32))
    material = given(blueprint)
    order = inheritance.orders(material, 2, None)
    first, second, head = blueprint.layers
    a, b = order[0][:12], order[1][:12]
    hidden = np.tanh(OBS @ first.weight[:, a] + first.bias[a])
    cut = np.tanh(hidden @ second.weight[np.ix_(a, b)] + second.bias[b]) @ head.weight[b] + head.bias
    refitted = born("mlp:12x12:tanh", blueprint)
    assert ((refitted - said(blueprint)) ** 2).mean() < 0.5 * ((cut - said(blueprint)) ** 2).mean()


def test_least_squares_is_what_numpy_finds():
    fitted = inheritance.Affine.fit(X.astype(float), OBS[:, :2].astype(float) ** 2)
    wanted = np.linalg.lstsq(np.c_[X, np.ones(ROWS)], OBS[:, :2].astype(float) ** 2, rcond=None)[0]
    assert np.allclose(fitted(X), np.c_[X, np.ones(ROWS)] @ wanted, atol=2e-3)


def test_a_linear_student_is_the_teachers_linear_part():
    blueprint = teacher()
    wanted = np.c_[X, np.ones(ROWS)] @ np.linalg.lstsq(np.c_[X, np.ones(ROWS)], said(blueprint), rcond=None)[0]
    assert np.allclose(born("linear", blueprint), wanted, atol=2e-3)


def test_a_factorised_layer_loses_what_its_last_singular_values_hold():
    """Eckart and Young 1936: the squared error of the best rank r is the sum of the squared singular values after r."""
    blueprint = teacher((16,))
    stack = Stack(parse(["mlp:16:r2:tanh"])[0].architecture, {TASK: PORT})
    material = given(blueprint)
    arrays = inheritance.cut(stack, TASK, material, (np.arange(16),))
    before = X @ arrays["stem0.down.weight"] @ arrays["stem0.weight"] + arrays["stem0.bias"]
    wanted = OBS @ blueprint.layers[0].weight + blueprint.layers[0].bias
    values = np.linalg.svd(wanted - wanted.mean(0), compute_uv=False)
    assert ((before - wanted) ** 2).sum() == pytest.approx((values[2:] ** 2).sum(), rel=1e-3)


def test_values_become_logits_by_the_temperature():
    blueprint = teacher(head=Head("q", (ACTIONS,), start=(0,)))
    assert np.allclose(born("mlp:16x12:tanh", blueprint, scale=1 / 0.25), said(blueprint) / 0.25, atol=1e-4)


def test_two_linear_layers_are_one():
    blueprint = teacher()
    first, _, head = blueprint.layers
    split = replace(blueprint, layers=(first, dense(16, 3, "identity"), dense(3, 12), head))
    assert inheritance.source_of(split, "x").widths == (16, 12)
    assert np.allclose(born("mlp:16x12:tanh", split), said(split), atol=2e-5)


def test_a_nested_student_begins_as_the_teacher_too():
    blueprint = teacher()
    family = families.build(parse(["nested:16x12:tanh"]), {TASK: PORT}, 0)
    family.normalisers[TASK] = SEEN
    material = given(blueprint)
    row = inheritance.cut_nest(family.stacks[0].stack.weave, TASK, material, inheritance.orders(material, 2, None))
    for rows in family.stacks:
        rows.theta[0] = torch_row(row)
    errors = [((said(family.blueprint(m.name, TASK)) - said(blueprint)) ** 2).mean() for m in family.members]
    spread = said(blueprint).var()
    assert errors[0] < 1e-8
    assert errors == sorted(errors)
    assert errors[1] < spread


def torch_row(row):
    import torch

    return torch.from_numpy(row)


@pytest.mark.parametrize(("text", "words"), [
    ("mlp:20x12:tanh", "hidden layers are 16x12"), ("mlp:8x8x8:tanh", "as many or fewer"), ("mlp:8x8", "Write it with :tanh"),
    ("gru:8", "dense layers alone"), ("nested:8:relu", "Write it with :tanh"),
])  # fmt: skip
def test_a_student_that_cannot_be_cut_out_is_refused(text, words):
    source = inheritance.source_of(teacher(), "the teacher")
    with pytest.raises(InputError, match=words):
        inheritance.check(source, parse([text])[0].architecture, PORT)


@pytest.mark.parametrize(("port", "words"), [
    (replace(PORT, view=View(history=2)), "does not see"), (replace(PORT, view=View(indices=(0, 1))), "does not see"),
    (replace(PORT, head=Head("categorical", (4,))), r"says categorical \(4,\)"),
    (replace(PORT, head=Head("deterministic", (3,))), "says deterministic"),
])  # fmt: skip
def test_another_view_or_head_is_refused(port, words):
    source = inheritance.source_of(teacher(), "the teacher")
    with pytest.raises(InputError, match=words):
        inheritance.check(source, parse(["mlp:8:tanh"])[0].architecture, port)


def test_a_teacher_without_dense_layers_is_refused():
    with pytest.raises(InputError, match="not known"):
        inheritance.source_of(None, "the teacher")
    picture = Conv(np.zeros((1, 1, 1, 2), np.float32), np.zeros(2, np.float32), (5, 1))
    with pytest.raises(InputError, match="its layers are conv, dense"):
        inheritance.source_of(Blueprint(SPEC, PORT.head, (picture, dense(10, 3, "identity"))), "the teacher")
    with pytest.raises(InputError, match="ends in tanh"):
        inheritance.source_of(Blueprint(SPEC, PORT.head, (dense(5, 3),)), "the teacher")
