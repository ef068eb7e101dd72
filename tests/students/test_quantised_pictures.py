"""Convolutions in whole numbers: trained as they are frozen, to the bit; one range of all pixels; exact on every machine."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from scipy.signal import correlate

from limbeck import blueprints, imitation, objective, spaces
from limbeck.contracts import Head, Normaliser, Quantise, QuantisedConv, Readout, Shared, Spec, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students import quantised, quantised_parts
from limbeck.students.convolution import Convolution
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.testing import check_policy

TASK = "toy"
BYTES = gs.Box(0, 255, (9, 8, 2), np.uint8)
HEAD = Head("categorical", (3,), start=(0,))
TEXTS = (
    "cnn:4k3:8:int8",
    "cnn:4k3s2-3k2:tanh:int4",
    "cnn:4k3:cp2-8:hardtanh:int8",
    "cnn:3k2:ternary",
    "cnn:4k3:8x8:r2:int2",
)


def port(space=BYTES, view=View(), agents=1):
    head = HEAD if agents == 1 else Head("multicategorical", (3,) * agents, start=(0,) * agents, shape=(agents,))
    acts = gs.Discrete(3) if agents == 1 else gs.MultiDiscrete([3] * agents)
    inputs = spaces.flat_size(space, view) * view.history
    return Port(Spec(space, acts, TASK, agents), view, head, inputs, agents)


def pictures(count, space=BYTES, seed=0):
    return np.random.default_rng(seed).integers(0, 256 if space.dtype == np.uint8 else 2, (count, *space.shape)).astype(space.dtype)  # fmt: skip


def taught(texts, raw, its, scale, steps=20):
    """A family after some gradient steps towards answers that a picture's corners decide, and the rows it saw."""
    rows = torch.from_numpy(raw.reshape(len(raw), -1).astype(np.float32) / np.float32(scale))
    wanted = torch.stack([part.mean(1) for part in rows.chunk(3, 1)], 1)
    labels = {"params": (40 * wanted).log_softmax(-1)}
    table = imitation.Table(TASK, rows, torch.zeros(len(rows), dtype=torch.bool), labels, {}, HEAD)
    family = families.build(parse(texts), {TASK: its}, 0)
    losses = imitation.imitate(family, {TASK: table}, objective.mixture("kl", 0.0), imitation.Pace(steps, 64, 1e-2, 1.0), 0, 0)  # fmt: skip
    return family, rows, losses


def layers_of(family, name):
    return family.blueprint(name, TASK).layers


# ---------------------------------------------------------------- what is trained is what is frozen


@pytest.mark.parametrize(
    "space", [BYTES, gs.Box(0, 255, (2, 9, 8), np.uint8), gs.Box(0, 1, (9, 8, 2), np.bool_)], ids=str
)
def test_what_is_trained_is_what_is_frozen(space):
    scale, raw = (255 if space.dtype == np.uint8 else 1), pictures(150, space)
    family, rows, _ = taught([f"{text}@2" for text in TEXTS], raw, port(space), scale, 5)
    family.normalisers[TASK] = Normaliser(
        np.full(144, 3, np.float32), np.full(144, 7, np.float32)
    )  # of others: not read
    for stack in family.stacks:
        said = stack.stack.forward(stack.theta, TASK, rows[None], None)[:, 0]
        for k, member in enumerate(stack.members):
            blueprint = family.blueprint(member.name, TASK)
            blueprints.check(blueprint)
            assert blueprint.normaliser is None
            assert (blueprint.layers[0].kind, blueprint.layers[1].kind) == ("quantise", "quantised_conv")
            policy = NumpyPolicy(blueprint)
            params = policy(raw, {}, np.ones(len(raw), bool)).params
            assert np.array_equal(params, said[k].numpy()), member.name
    check_policy(policy)


def test_frames_behind_each_other_are_one_picture():
    space, view = gs.Box(0, 255, (9, 8), np.uint8), View(history=3)
    raw = pictures(6, space)
    stacked = np.stack([np.stack([raw[max(t - 2, 0)], raw[max(t - 1, 0)], raw[t]]) for t in range(6)])
    family, rows, _ = taught(["cnn:4k3:8:int8"], stacked, port(space, view), 255, 5)
    (stack,) = family.stacks
    blueprint = family.blueprint("cnn-4k3-8-int8-s0", TASK)
    assert blueprint.layers[1].layout == "chw"
    policy = NumpyPolicy(blueprint)
    state, params = policy.initial_state(1), []
    for t, frame in enumerate(raw):
        out = policy(frame[None], state, np.array([t == 0]))
        state, params = out.state, [*params, out.params[0]]
    assert np.array_equal(params, stack.stack.forward(stack.theta, TASK, rows[None], None)[0, 0].numpy())


@pytest.mark.parametrize("text", ["conv1d:6k3s2-4k2:8:int8", "conv1d:6k3:tanh:int4"])
def test_a_history_has_one_range_per_number(text):
    view, space = View(history=7), gs.Box(-9, 9, (5,), np.float32)
    rng = np.random.default_rng(1)
    raw = (rng.standard_normal((300, 35)) * np.tile([1, 2, 3, 1, 1], 7)).astype(np.float32)
    family, rows, _ = taught([text], raw, port(space, view), 1, 5)
    (stack,), name = family.stacks, family.members[0].name
    quantiser = layers_of(family, name)[0]
    low, high = (np.clip(end(raw.reshape(-1, 5), 0), -8, 8) for end in (np.min, np.max))
    assert quantiser.times == 7
    assert np.allclose(quantiser.offset, (low + high) / 2, atol=1e-6)
    assert np.allclose(quantiser.scale, 254 / (high - low), rtol=1e-6)
    history = raw[:12].reshape(12, 7, 5)
    policy = NumpyPolicy(family.blueprint(name, TASK))
    state = policy.initial_state(12)
    for t in range(7):
        out = policy(history[:, t], state, np.full(12, t == 0))
        state = out.state
    assert np.array_equal(out.params, stack.stack.forward(stack.theta, TASK, rows[None, :12], None)[0, 0].numpy())


def test_a_team_shares_one_network_of_pictures():
    space = gs.Box(0, 255, (2, 9, 8, 2), np.uint8)
    its, raw = port(space, agents=2), pictures(20, space)
    family = families.build(parse(["cnn:4k3:8:int8"]), {TASK: its}, 0)
    (stack,) = family.stacks
    rows = torch.from_numpy(raw.reshape(20, -1).astype(np.float32) / 255)
    stack.stack.see(stack.theta, TASK, rows, fresh=True)
    blueprint = family.blueprint("cnn-4k3-8-int8-s0", TASK)
    assert isinstance(blueprint.layers[0], Shared)
    said = stack.stack.forward(stack.theta, TASK, rows[None], None)[0, 0].numpy()
    assert np.array_equal(NumpyPolicy(blueprint)(raw, {}, np.ones(20, bool)).params, said)


# ---------------------------------------------------------------- numbers by hand


def test_one_range_of_all_pixels_by_hand():
    """Of bytes from 0 to 255: offset 127.5, 254 levels over 255 steps; of a picture of 51 and 204 alone the range between."""
    raw = pictures(80)
    raw[0, 0, 0], raw[1, 8, 7] = 0, 255
    family, _, _ = taught(["cnn:4k3:8:int8"], raw, port(), 255, 1)
    quantiser, convolution = layers_of(family, "cnn-4k3-8-int8-s0")[:2]
    assert (quantiser.offset.tolist(), quantiser.times) == ([127.5], 144)
    assert quantiser.scale[0] == pytest.approx(254 / 255, rel=1e-6)
    assert (convolution.size, convolution.window, convolution.out_size) == ((9, 8), (3, 3), (7, 6))
    family, _, _ = taught(["cnn:4k3:8:int8"], np.where(raw > 99, 204, 51).astype(np.uint8), port(), 255, 1)
    quantiser = layers_of(family, "cnn-4k3-8-int8-s0")[0]
    assert quantiser.offset[0] == pytest.approx(127.5, rel=1e-6)
    assert quantiser.scale[0] == pytest.approx(254 / 153, rel=1e-6)


def test_sums_are_those_of_scipy_whichever_way(monkeypatch):
    """Products of 8-bit numbers, correlated in 64-bit integers; both ways of computing them, for shared and own pictures."""
    layer, rng = Convolution((9, 8), 3, 4, (3, 2), (2, 1), "relu"), np.random.default_rng(2)
    weight = rng.integers(-127, 128, (2, 3, 2, 3, 4))
    for shared in (1, 2):
        x = rng.integers(-127, 128, (shared, 20, 9, 8, 3))
        wanted = np.stack([[sum(np.stack([correlate(picture[..., c], weight[k, ..., c, f], "valid")[::2] for f in range(4)], -1) for c in range(3))
                            for picture in x[min(k, shared - 1)]] for k in range(2)])  # fmt: skip
        rows, kernels = (torch.from_numpy(a.astype(np.float32)) for a in (x.reshape(shared, 20, -1), weight.reshape(2, -1, 4)))  # fmt: skip
        for exact in (True, False):
            monkeypatch.setattr(quantised_parts, "_is_exact", lambda *_, exact=exact: exact)
            found = quantised_parts.convolved(rows, kernels, layer)
            assert np.array_equal(found.numpy().reshape(wanted.shape), wanted)


def test_a_library_that_rounds_is_found_out(monkeypatch):
    """Sums as Winograd's products give them, a little off, are not used."""
    layer = Convolution((9, 8), 3, 4, (3, 3), (1, 1), "relu")
    rough = quantised_parts.convolved_at_once
    monkeypatch.setattr(quantised_parts, "convolved_at_once", lambda *given: rough(*given) * (1 + 2.0**-20))
    quantised_parts._is_exact.cache_clear()
    x = torch.from_numpy(np.random.default_rng(3).integers(-127, 128, (1, 20, 216)).astype(np.float32))
    found = quantised_parts.convolved(x, torch.full((2, 27, 4), 77.0), layer)
    quantised_parts._is_exact.cache_clear()
    assert torch.equal(found, torch.round(found))


def test_a_library_that_rounds_many_pictures_alone_is_found_out(monkeypatch):
    """Another algorithm for large batches: each number of pictures is tried out, and once."""
    layer, tried = Convolution((9, 8), 3, 4, (3, 3), (1, 1), "relu"), []
    plain = quantised_parts.convolved_at_once

    def rough(x, weight, layer):
        tried.append(x.shape[1])
        return plain(x, weight, layer) * (1 + 2.0**-20 if x.shape[1] >= 200 else 1)

    monkeypatch.setattr(quantised_parts, "convolved_at_once", rough)
    quantised_parts._is_exact.cache_clear()
    x = torch.from_numpy(np.random.default_rng(3).integers(-127, 128, (1, 256, 216)).astype(np.float32))
    for count in (20, 256, 20, 256):
        found = quantised_parts.convolved(x[:, :count], torch.full((2, 27, 4), 77.0), layer)
        assert torch.equal(found, torch.round(found)), count
    quantised_parts._is_exact.cache_clear()
    assert tried == [20, 20, 256, 20]  # tried and used, tried and not used, used again


def test_gradients_are_nearly_those_in_real_numbers():
    """Straight through every rounding: the same direction as of the same weights in float, at eight bits."""
    raw = pictures(64)
    _, rows, _ = taught(["cnn:4k3:8:int8"], raw, port(), 255, 1)
    stacks = [Stack(parse([text])[0].architecture, {TASK: port()}) for text in ("cnn:4k3:8", "cnn:4k3:8:int8")]
    theta = stacks[0].initial(parse(["cnn:4k3:8"]), 0)
    other = torch.from_numpy(stacks[1].pack(stacks[0].unpack(theta[0].numpy())))[None].clone()
    stacks[1].see(other, TASK, rows, fresh=True)
    found = []
    for stack, weights in zip(stacks, (theta, other), strict=True):
        said = stack.forward(weights.requires_grad_(), TASK, rows[None], None)
        (gradient,) = torch.autograd.grad((said * torch.tensor([1.0, -2.0, 0.5])).sum(), weights)
        found.append(stack.unpack(gradient[0].numpy()))
    for name, wanted in found[0].items():
        mine = found[1][name]
        assert (wanted * mine).sum() > 0.99 * np.linalg.norm(wanted) * np.linalg.norm(mine), name
    assert (found[1]["inputs0.low"] == 0).all()


# ---------------------------------------------------------------- as other members


def test_it_learns_and_shows_its_layers():
    bright = np.random.default_rng(8).random((300, 3)).repeat(3, 1)[:, :, None, None]  # of each third of the rows
    raw = (pictures(300) * bright).astype(np.uint8)
    family, rows, last = taught(["cnn:4k3:8:int8", "cnn:4k3:8:int4"], raw, port(), 255, 60)
    first = taught(["cnn:4k3:8:int8", "cnn:4k3:8:int4"], raw, port(), 255, 1)[2]
    assert all(last[name] < 0.5 * first[name] for name in first), "clipped at their first numbers they stayed above 0.7"
    stack = family.stacks[0]
    seen = stack.stack.look(stack.theta, TASK, rows[None, :5], None).hidden
    assert {name: tuple(value.shape) for name, value in seen.items()} == {"conv0": (1, 1, 5, 168), "dense0": (1, 1, 5, 8), "last": (1, 1, 5, 8)}  # fmt: skip
    assert {name: int(np.prod(shape)) for name, shape in stack.stack.hidden_shapes(TASK).items()} == {"conv0": 168, "dense0": 8, "last": 8}  # fmt: skip


@pytest.mark.parametrize("text", ["cnn:4k3-4k3:cp2-8", "cnn:6k2s2:16x8:tanh"])
def test_inherited_weights_are_those_of_the_float_student(text):
    raw = pictures(300)
    plain, rows, _ = taught([text], raw, port(), 255, 40)
    (member,) = parse([f"{text}:int8"])
    family = families.build([member], {TASK: port()}, 0)
    stack = family.stacks[0].stack
    family.put(member.name, stack.pack(plain.stacks[0].stack.unpack(plain.row(plain.members[0].name))))
    stack.see(family.stacks[0].theta, TASK, rows, fresh=True)
    its, mine = (f.stacks[0].stack.forward(f.stacks[0].theta, TASK, rows[None], None)[0, 0] for f in (plain, family))
    assert (mine - its).abs().mean() < 0.03 * its.std(), "eight bits, before any further training"


def test_a_member_in_the_stack_is_the_member_alone():
    raw = pictures(100)
    together, alone = (taught([text], raw, port(), 255, 6)[0] for text in ("cnn:4k3:8:int8@2", "cnn:4k3:8:int8"))
    assert np.allclose(together.row("cnn-4k3-8-int8-s0"), alone.row("cnn-4k3-8-int8-s0"), atol=1e-4)


def test_bytes_are_those_of_packed_numbers():
    family = families.build(parse(["cnn:4k3:8:int8", "cnn:4k3:8:int4"]), {TASK: port()}, 0)
    weights = (4 * 18, 168 * 8, 8 * 3)
    beside = 2 * 4 + 6 * 4 + 6 * 8 + 8 * 3  # one offset and scale; bias, multiplier, shift; bias and scale
    found = [quantised.weight_bytes(family.blueprint(member.name, TASK)) for member in family.members]
    assert found == [sum(weights) + beside, sum(weights) // 2 + beside]
    kinds = [type(layer) for layer in layers_of(family, "cnn-4k3-8-int8-s0")]
    assert (kinds[:2], kinds[-1]) == ([Quantise, QuantisedConv], Readout)


def test_numbers_beside_a_picture_are_refused_in_one_line():
    space = gs.Dict({"image": BYTES, "speed": gs.Box(-1, 1, (3,), np.float32)})
    with pytest.raises(InputError, match=r"3 numbers lie beside the picture.* with keys, or use cnn:4k3:8") as refusal:
        Stack(parse(["cnn:4k3:8:int8"])[0].architecture, {TASK: port(space)})
    assert "\n" not in str(refusal.value)
    Stack(parse(["cnn:4k3:8:int8"])[0].architecture, {TASK: port(space, View(keys=("image",)))})
    with pytest.raises(InputError, match="reads 25,600 numbers, more than its sums can hold"):
        Stack(parse(["cnn:4k5:int8"])[0].architecture, {TASK: port(gs.Box(0, 255, (84, 84, 3), np.uint8))})
