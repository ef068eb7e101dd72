"""Dense layers as products of two: counted truly, frozen as what they are."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck.contracts import Head, Spec, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.testing import check_policy

TASK = "toy"


def port(inputs=5, actions=3):
    spec = Spec(gs.Box(-3, 3, (inputs,), np.float32), gs.Discrete(actions), TASK)
    return Port(spec, View(), Head("categorical", (actions,), start=(0,)), inputs)


def test_the_name_states_the_rank():
    member = parse(["mlp:64x64:r8:tanh"])[0]
    assert (member.name, member.architecture.spec) == ("mlp-64x64-r8-tanh-s0", "mlp:64x64:r8:tanh")
    assert parse(["mlp:64x64:tanh:r8"])[0] == member, "in either order"
    assert parse(["cnn:4k3:64:r8"])[0].architecture.rank == 8


def test_parameters_are_those_of_the_factors():
    stack = Stack(parse(["mlp:64x32:r4"])[0].architecture, {TASK: port(inputs=20)})
    first, second = (20 * 4 + 4) + (4 * 64 + 64), (64 * 4 + 4) + (4 * 32 + 32)
    assert stack.parameters == first + second + (32 * 3 + 3)
    family = families.build(parse(["mlp:64x32:r4"]), {TASK: port(inputs=20)}, 0)
    assert family.blueprint("mlp-64x32-r4-s0", TASK).parameters == stack.parameters
    assert len(family.blueprint("mlp-64x32-r4-s0", TASK).layers) == 5


def test_layers_that_would_grow_stay_whole():
    stack = Stack(parse(["mlp:64x64:r8"])[0].architecture, {TASK: port(inputs=5)})
    assert stack.shapes["stem0.weight"] == (5, 64), "8 x (5 + 64 + 1) is more than 5 x 64"
    assert stack.shapes["trunk1.down.weight"] == (64, 8)


def test_a_rank_that_saves_nothing_is_refused():
    with pytest.raises(InputError, match="no dense layer becomes smaller"):
        Stack(parse(["mlp:8:r8"])[0].architecture, {TASK: port()})
    with pytest.raises(InputError, match="from 1 to"):
        parse(["mlp:8:r0"])


@pytest.mark.parametrize("text", ["mlp:32x32:r3", "mlp:32x32:r3:tanh"])
def test_what_is_trained_is_what_is_frozen(text):
    family = families.build(parse([f"{text}@2"]), {TASK: port()}, 1)
    rows, x = family.stacks[0], torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(0))
    rows.theta += 0.1  # no bias is zero
    said = rows.stack.forward(rows.theta, TASK, x, None)[:, 0]
    for k, member in enumerate(rows.members):
        policy = NumpyPolicy(family.blueprint(member.name, TASK))
        check_policy(policy)
        assert np.allclose(policy(x[0].numpy(), {}, np.ones(40, bool)).params, said[k], atol=1e-4)


def test_a_layer_is_the_product():
    family = families.build(parse(["mlp:32x32:r3"]), {TASK: port()}, 1)
    *_, down, up, _ = family.blueprint("mlp-32x32-r3-s0", TASK).layers
    assert np.linalg.matrix_rank(down.weight @ up.weight) == 3
    assert (down.activation, up.activation) == ("identity", "relu")
