"""Where an image lies in a row, what a port refuses, and the sizes of convolutional students against closed forms."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch.nn import functional

from limbeck import spaces
from limbeck.contracts import Head, Spec, View
from limbeck.errors import InputError
from limbeck.students.grammar import parse
from limbeck.students.stack import Port, Stack

ATARI = gs.Box(0, 255, (84, 84, 4), np.uint8)
GREY = gs.Box(0, 255, (84, 84), np.uint8)
TWO = gs.Dict({"left": GREY, "right": GREY})
KEYED = gs.Dict({"a": gs.Discrete(3), "image": gs.Box(0, 1, (3, 7, 9), np.float32), "z": gs.MultiBinary(2)})


def port(space, view=View(), action=None, kind=None, agents=1):
    action = action or gs.Discrete(4)
    head = spaces.head_for(action, kind)
    return Port(Spec(space, action, "toy"), view, head, spaces.flat_size(space, view) * view.history, agents)


def stack(text, *args, **kwargs):
    return Stack(parse([text])[0].architecture, {"toy": port(*args, **kwargs)})


@pytest.mark.parametrize(
    ("space", "view", "wanted"),
    [
        (ATARI, View(), (0, 28224, 84, 84, 4, "hwc", 255.0)),
        (gs.Box(0, 255, (4, 84, 84), np.uint8), View(), (0, 28224, 84, 84, 4, "chw", 255.0)),
        (GREY, View(history=4), (0, 28224, 84, 84, 4, "chw", 255.0)),
        (gs.Box(0, 255, (3, 8, 8), np.uint8), View(history=2), (0, 384, 8, 8, 6, "chw", 255.0)),
        (gs.MultiBinary((10, 10, 6)), View(), (0, 600, 10, 10, 6, "hwc", 1.0)),
        (gs.Box(0, 1, (10, 10, 10), np.bool_), View(), (0, 1000, 10, 10, 10, "hwc", 1.0)),
        (gs.Box(-np.inf, np.inf, (5, 5), np.float32), View(), (0, 25, 5, 5, 1, "hwc", 1.0)),
        (gs.Box(-8, 2, (5, 5), np.float32), View(), (0, 25, 5, 5, 1, "hwc", 8.0)),
        (KEYED, View(), (3, 192, 7, 9, 3, "chw", 1.0)),
        (KEYED, View(keys=("z", "image")), (2, 191, 7, 9, 3, "chw", 1.0)),
    ],
)
def test_where_the_image_lies(space, view, wanted):
    assert spaces.image_of(space, view) == spaces.Image(*wanted)


@pytest.mark.parametrize(
    ("text", "space", "view", "words"),
    [
        ("cnn:4k3", gs.Box(-1, 1, (8,), np.float32), View(), "sees no picture"),
        ("cnn:4k3", TWO, View(), "sees 2 pictures ('left', 'right')"),
        ("cnn:4k3", KEYED, View(keys=("a",)), "sees no picture"),
        ("cnn:4k3", GREY, View(indices=(1, 2, 3)), "Drop the indices"),
        ("cnn:4k3", ATARI, View(history=2), "Put channels first"),
        ("cnn:4k3", KEYED, View(history=2), "Pick the picture alone with keys"),
        ("cnn:4k85", GREY, View(), "the kernel of 4k85 is larger than the 84 x 84 numbers"),
        ("cnn:4k8s8-4k11", GREY, View(), "the kernel of 4k11 is larger than the 10 x 10 numbers"),
        ("conv1d:4k3", gs.Box(-1, 1, (8,), np.float32), View(), "Set history to at least the first kernel"),
        ("conv1d:4k3", gs.Box(-1, 1, (8,), np.float32), View(history=2), "larger than the 2 steps"),
    ],
)
def test_a_view_without_what_a_student_convolves_is_refused(text, space, view, words):
    with pytest.raises(InputError) as caught:
        stack(text, space, view)
    assert words in str(caught.value)


def test_the_sizes_of_a_compact_readout():
    """methods.md's Breakout student: 4 filters of 8x8 on 4 planes, 8 of 4x4 on 4, two 9x9 maps into 24, 24 into A."""
    made = stack("cnn:4k8s4-8k4s2:cp2-24", ATARI)
    sizes = [4 * 8 * 8 * 4 + 4, 4 * 4 * 4 * 8 + 8, 8 * 2 + 2, 9 * 9 * 2 * 24 + 24, 24 * 4 + 4]
    assert made.parameters == sum(sizes)
    assert stack("cnn:4k8s4-8k4s2:24", ATARI).parameters == sum(sizes) - 18 + 9 * 9 * 6 * 24


def test_a_compact_readout_is_linear_and_the_rest_is_not():
    made = stack("cnn:3k3:cp2-4:tanh", gs.Box(0, 1, (5, 5), np.float32))
    theta = made.initial(list(parse(["cnn:3k3:cp2-4:tanh"])), 0)
    layers = made.freeze(theta[0].numpy(), "toy", None, "m").layers
    assert [layer.activation for layer in layers] == ["tanh", "identity", "tanh", "identity"]
    x, shapes = torch.rand(1, 7, 25), list(made.shapes)
    parts = list(torch.split(theta, [int(np.prod(s)) for s in made.shapes.values()], dim=1))
    parts[shapes.index("stem0.conv1.weight")] = -parts[shapes.index("stem0.conv1.weight")]
    parts[shapes.index("stem0.weight")] = -parts[shapes.index("stem0.weight")]
    turned = made.forward(torch.cat(parts, dim=1), "toy", x, None)
    assert torch.allclose(made.forward(theta, "toy", x, None), turned, atol=1e-6)


def test_initial_weights_of_a_convolution_are_uniform_in_its_fan_in_and_a_function_of_the_name():
    made, members = stack("cnn:32k8s4:16", ATARI), parse(["cnn:32k8s4:16@3"])
    theta = made.initial(list(members), 5)
    first = theta[:, : 8 * 8 * 4 * 32]
    assert first.abs().max().item() == pytest.approx(1 / 16, rel=1e-3)
    assert first.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.02)
    assert torch.equal(made.initial([members[2]], 5)[0], theta[2])


def test_two_members_convolve_as_two_plain_networks():
    made = stack("cnn:3k3s2-4k2:5", gs.Box(0, 1, (2, 9, 8), np.float32))
    theta = made.initial(list(parse(["cnn:3k3s2-4k2:5@2"])), 0) + 0.05
    x = torch.rand(6, 144)
    said = made.forward(theta, "toy", x[None], None)[:, 0]
    for row, out in zip(theta, said, strict=True):
        parts = dict(zip(made.shapes, torch.split(row, [int(np.prod(s)) for s in made.shapes.values()]), strict=True))
        named = {key: part.reshape(made.shapes[key]) for key, part in parts.items()}
        hidden = x.reshape(6, 2, 9, 8)
        for n, stride in ((0, 2), (1, 1)):
            weight = named[f"stem0.conv{n}.weight"].permute(3, 2, 0, 1)
            hidden = functional.relu(functional.conv2d(hidden, weight, named[f"stem0.conv{n}.bias"], stride))
        hidden = hidden.permute(0, 2, 3, 1).reshape(6, -1)
        hidden = functional.relu(hidden @ named["stem0.weight"] + named["stem0.bias"])
        assert torch.allclose(out, hidden @ named["head0.weight"] + named["head0.bias"], atol=1e-5)


def test_tasks_of_other_image_sizes_share_what_follows_the_first_dense_layer():
    ports = {"a": port(GREY), "b": port(gs.Box(0, 255, (40, 50, 3), np.uint8), action=gs.Discrete(2))}
    made = Stack(parse(["cnn:4k8s4:16x8"])[0].architecture, ports)
    assert [name for name in made.shapes if name.startswith("trunk")] == ["trunk1.weight", "trunk1.bias"]
    theta = made.initial(list(parse(["cnn:4k8s4:16x8@2"])), 0)
    assert made.forward(theta, "a", torch.rand(1, 5, 84 * 84), None).shape == (2, 1, 5, 4)
    assert made.forward(theta, "b", torch.rand(1, 5, 6000), None).shape == (2, 1, 5, 2)


@pytest.mark.parametrize(
    ("text", "space", "view", "action", "kind", "words"),
    [
        ("gru:4", gs.Box(-1, 1, (3, 4), np.float32), View(), gs.MultiBinary(3), None, "keeps memory"),
        ("mlp:4", gs.Box(-1, 1, (3, 4), np.float32), View(history=2), gs.MultiBinary(3), None, "history 1"),
        ("mlp:4", gs.Box(-1, 1, (3, 4), np.float32), View(), gs.Discrete(3), None, "do not divide among 3"),
        ("mlp:4", gs.Box(-1, 1, (3, 4), np.float32), View(), gs.MultiDiscrete([2, 3, 2]), None, "do not divide"),
        ("mlp:4", gs.Box(-1, 1, (2, 4), np.float32), View(), gs.MultiBinary(3), None, "do not divide"),
        ("mlp:4", gs.Box(-1, 1, (3, 4), np.float32), View(), gs.Box(-1, 1, (3,), np.float32), "gaussian", "do not divide"),
        ("mlp:4", gs.Dict({"a": gs.MultiBinary(3), "b": gs.MultiBinary(3)}), View(), gs.MultiBinary(3), None, "agent by agent"),
    ],
)  # fmt: skip
def test_agents_that_cannot_share_a_network_are_refused(text, space, view, action, kind, words):
    with pytest.raises(InputError) as caught:
        stack(text, space, view, action, kind, agents=3)
    assert words in str(caught.value)


@pytest.mark.parametrize("action", [gs.Discrete(4), gs.Box(-1, 1, (3,), np.float32)])
def test_a_mask_that_does_not_fit_the_head_is_refused(action):
    space = gs.Dict({"x": gs.Box(-1, 1, (2,), np.float32), "legal": gs.MultiBinary(3)})
    with pytest.raises(InputError, match="one number per action of a discrete head"):
        stack("linear", space, View(mask="legal"), action)
    assert isinstance(stack("linear", space, View(mask="legal"), gs.Discrete(3)).ports["toy"].head, Head)
