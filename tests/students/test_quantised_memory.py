"""Gated memories in whole numbers: sequences to the bit, gradients through time, memories that are kept whole."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import blueprints, imitation, objective, spaces
from limbeck.contracts import Head, QuantisedGru, Spec, View
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students import quantised
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.testing import check_policy

TASK = "toy"
NUMBERS = gs.Box(-9, 9, (4,), np.float32)
PIXELS = gs.Box(0, 255, (6, 6, 1), np.uint8)
HEAD = Head("categorical", (2,), start=(0,))


def port(space=NUMBERS, view=View()):
    return Port(Spec(space, gs.Discrete(2), TASK), view, HEAD, spaces.flat_size(space, view) * view.history)


def begun(text, its, rows, spread=3.0):
    """A member with large random weights whose ranges are seen."""
    family = families.build(parse([text]), {TASK: its}, 0)
    (stack,) = family.stacks
    weights = torch.randn(stack.theta.shape, generator=torch.Generator().manual_seed(5))
    stack.theta += spread / 10 * weights
    stack.stack.see(stack.theta, TASK, rows, fresh=True)
    return family, stack


def starts(time, batch, seed=0):
    first = np.random.default_rng(seed).random((time, batch)) < 0.15
    first[0] = True
    return first


def played(policy, raw, first):
    """[T, B, W] what a policy says of sequences [T, B, ...]."""
    state, said = policy.initial_state(first.shape[1]), []
    for frame, new in zip(raw, first, strict=True):
        out = policy(frame, state, new)
        state, said = out.state, [*said, out.params]
    return np.stack(said)


# ---------------------------------------------------------------- what is trained is what is frozen


@pytest.mark.parametrize(("text", "space"), [
    ("gru:9:int8", NUMBERS), ("gru:9:int4", NUMBERS), ("gru:5:ternary", NUMBERS), ("gru:5:int2", NUMBERS),
    ("cnn:3k3:8-gru6:int8", PIXELS), ("cnn:3k3:gru6:tanh:int4", PIXELS),
])  # fmt: skip
def test_sequences_are_those_of_the_frozen_policy(text, space):
    rng, first = np.random.default_rng(1), starts(40, 7)
    raw = rng.integers(0, 256, (40, 7, *space.shape)).astype(np.uint8) if space is PIXELS else rng.normal(0, 2, (40, 7, 4)).astype(np.float32)  # fmt: skip
    rows = torch.from_numpy(raw.reshape(40, 7, -1).astype(np.float32) / np.float32(255 if space is PIXELS else 1))
    family, stack = begun(text, port(space), rows)
    blueprint = family.blueprint(family.members[0].name, TASK)
    blueprints.check(blueprint)
    policy = NumpyPolicy(blueprint)
    check_policy(policy)
    said = stack.stack.forward(stack.theta, TASK, rows, torch.from_numpy(first))[0].detach().numpy()
    assert np.array_equal(played(policy, raw, first), said)
    assert len(np.unique(said)) > 100, "and they say something"


def test_a_history_before_the_memory():
    """conv1d, then a memory: the frames before an episode's start are its first one."""
    view, first = View(history=4), starts(20, 3)
    raw = np.random.default_rng(2).normal(0, 2, (20, 3, 4)).astype(np.float32)
    rows = np.zeros((20, 3, 16), np.float32)
    for b in range(3):
        past = []
        for t in range(20):
            past = [raw[t, b]] * 4 if first[t, b] else [*past[1:], raw[t, b]]
            rows[t, b] = np.concatenate(past)
    family, stack = begun("conv1d:5k2:8-gru6:int8", port(NUMBERS, view), torch.from_numpy(rows))
    said = stack.stack.forward(stack.theta, TASK, torch.from_numpy(rows), torch.from_numpy(first))[0].detach().numpy()
    assert np.array_equal(played(NumpyPolicy(family.blueprint(family.members[0].name, TASK)), raw, first), said)


def test_a_step_by_hand():
    """Update gate shut off (z = 0) and a reset gate open at 0: m' = 128 round(127 tanh(a / 512)) in plain Python."""
    family, stack = begun("gru:1:int8", port(), torch.zeros(2, 4).index_fill_(0, torch.tensor([1]), 4.0), 0.0)
    row = {name: np.zeros_like(value) for name, value in stack.stack.unpack(family.row("gru-1-int8-s0")).items()}
    row["inputs0.low"][:], row["inputs0.high"][:] = -1.0, 1.0
    row["stem0.weight"][0], row["stem0.bias"][:] = [0, 0, 1.0], [0, -50.0, 0]
    family.put("gru-1-int8-s0", stack.stack.pack(row))
    policy = NumpyPolicy(family.blueprint("gru-1-int8-s0", TASK))
    for x in (-1.0, 0.25, 0.7):
        level = int(np.floor(x * 127 + 0.5))
        fine = int(np.floor(level / 127 * 512 + 0.5))
        value = round(127 * np.tanh(((fine + 8) >> 4) / 32))
        raw = np.array([[x, 0, 0, 0]], np.float32)
        state = policy(raw, policy.initial_state(1), np.ones(1, bool)).state
        assert abs(float(next(iter(state.values()))[0, 0]) - 128 * value) <= 128, "its multiplier has eight bits"
        seen = stack.stack.look(stack.theta, TASK, torch.from_numpy(raw)[None], torch.ones(1, 1, dtype=torch.bool))
        assert round(float(seen.hidden["memory"][0, 0, 0, 0]) * 127) * 128 == float(next(iter(state.values()))[0, 0])


def test_a_memory_is_kept_whole():
    """With its update gate open a memory is the same after a thousand steps: 256 / 256 of it stays."""
    rows = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (1000, 1, 4)).astype(np.float32))
    family, stack = begun("gru:3:int8", port(), rows)
    row = stack.stack.unpack(family.row("gru-3-int8-s0"))
    row["stem0.weight"][:, 3:6], row["memory.weight"][:, 3:6] = 0, 0
    row["stem0.weight"][0, 3:6], row["stem0.bias"][3:6] = 3.0, 0.0
    family.put("gru-3-int8-s0", stack.stack.pack(row))
    stack.stack.see(stack.theta, TASK, rows, fresh=True)
    raw = rows.numpy().copy()
    raw[0, 0, 0], raw[1:, 0, 0] = -3.0, 3.0  # written once, then held
    first = torch.zeros(1000, 1, dtype=torch.bool).index_fill_(0, torch.tensor([0]), True)
    memory = stack.stack.look(stack.theta, TASK, torch.from_numpy(raw), first).hidden["memory"][0, :, 0]
    assert torch.equal(memory[-1], memory[1])
    assert (memory[1] != 0).any()


# ---------------------------------------------------------------- gradients


def test_gradients_through_time_are_nearly_those_in_real_numbers():
    """Of the same weights in float, from the end of a sequence back to its beginning."""
    rng = np.random.default_rng(4)
    rows, first = torch.from_numpy(rng.normal(0, 1, (12, 16, 4)).astype(np.float32)), torch.from_numpy(starts(12, 16))
    stacks = [Stack(parse([text])[0].architecture, {TASK: port()}) for text in ("gru:8", "gru:8:int8")]
    theta = 2 * stacks[0].initial(parse(["gru:8"]), 0)
    other = torch.from_numpy(stacks[1].pack(stacks[0].unpack(theta[0].numpy())))[None].clone()
    stacks[1].see(other, TASK, rows, fresh=True)
    found, inputs = [], []
    for stack, weights in zip(stacks, (theta, other), strict=True):
        given = rows.clone().requires_grad_()
        said = stack.forward(weights.requires_grad_(), TASK, given, first)
        gradient, of_inputs = torch.autograd.grad((said[0, -1] * torch.tensor([1.0, -2.0])).sum(), [weights, given])
        found.append(stack.unpack(gradient[0].numpy()))
        inputs.append(of_inputs.numpy())
    for name, wanted in found[0].items():
        mine = found[1][name]
        assert (wanted * mine).sum() > 0.98 * np.linalg.norm(wanted) * np.linalg.norm(mine), name
    assert (inputs[0] * inputs[1]).sum() > 0.98 * np.linalg.norm(inputs[0]) * np.linalg.norm(inputs[1])
    begin = np.cumsum(first.numpy()[::-1], 0)[::-1] - first.numpy()  # episodes that begin later
    assert (inputs[1][begin > 0] == 0).all(), "nothing comes back through an episode's start"


def test_it_learns_to_remember():
    """Which of two numbers was larger three steps ago, said at every step: nothing else tells."""
    rng, episodes, length = np.random.default_rng(6), 80, 4
    rows = rng.normal(0, 1, (episodes, length, 4)).astype(np.float32)
    answer = np.repeat(rows[:, :1, 0] > rows[:, :1, 1], length, 1)
    first = np.zeros((episodes, length), bool)
    first[:, 0] = True
    labels = {"params": torch.from_numpy(np.where(answer[..., None], [0.0, -9.0], [-9.0, 0.0]).reshape(-1, 2).astype(np.float32))}  # fmt: skip
    table = imitation.Table(TASK, torch.from_numpy(rows.reshape(-1, 4)), torch.from_numpy(first.reshape(-1)), labels, {}, HEAD)  # fmt: skip
    family = families.build(parse(["gru:8:int8"]), {TASK: port()}, 0)
    pace = imitation.Pace(120, 256, 2e-2, 1.0, sequence=8, burn_in=8)
    imitation.imitate(family, {TASK: table}, objective.mixture("kl", 0.0), pace, 0, 0)
    policy = NumpyPolicy(family.blueprint("gru-8-int8-s0", TASK))
    said = played(policy, rows.transpose(1, 0, 2), first.T).argmax(-1) == 0
    assert (said[-1] == answer[:, -1]).mean() > 0.9


# ---------------------------------------------------------------- as other members


def test_inherited_weights_are_those_of_the_float_student():
    rng = np.random.default_rng(7)
    rows, first = torch.from_numpy(rng.normal(0, 1, (30, 20, 4)).astype(np.float32)), torch.from_numpy(starts(30, 20))
    plain = families.build(parse(["gru:12"]), {TASK: port()}, 0)
    plain.stacks[0].theta *= 2
    (member,) = parse(["gru:12:int8"])
    family = families.build([member], {TASK: port()}, 0)
    stack = family.stacks[0].stack
    family.put(member.name, stack.pack(plain.stacks[0].stack.unpack(plain.row("gru-12-s0"))))
    stack.see(family.stacks[0].theta, TASK, rows, fresh=True)
    its, mine = (f.stacks[0].stack.forward(f.stacks[0].theta, TASK, rows, first)[0] for f in (plain, family))
    assert (mine - its).abs().mean() < 0.04 * its.std(), "eight bits, before any further training"


def test_bytes_and_shapes():
    family = families.build(parse(["gru:8:int8"]), {TASK: port()}, 0)
    blueprint = family.blueprint("gru-8-int8-s0", TASK)
    assert isinstance(blueprint.layers[1], QuantisedGru)
    weights, beside = 4 * 24 + 8 * 24 + 8 * 2, 8 * 4 + 6 * 48 + 8 * 2
    assert quantised.weight_bytes(blueprint) == weights + beside
    assert family.stacks[0].stack.hidden_shapes(TASK) == {"memory": (8,), "last": (8,)}
    with pytest.raises(ValueError, match="needs `first`"):
        family.stacks[0].stack.forward(family.stacks[0].theta, TASK, torch.zeros(1, 2, 4), None)
