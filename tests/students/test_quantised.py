"""Students in whole numbers: what is trained is what is frozen, to the bit; steps and gradients by their closed forms."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import blueprints, imitation, objective
from limbeck.contracts import Head, Normaliser, Quantise, Quantised, Readout, Shared, Spec, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students import quantised, quantised_parts
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.testing import check_policy

TASK = "toy"
TEXTS = (
    "mlp:12x8:int8",
    "mlp:12:tanh:int4",
    "mlp:12x8:hardtanh:int2",
    "mlp:12x8:ternary",
    "linear:int8",
    "mlp:24x24:r3:int4",
    "mlp:12x8:mixed4",
    "mlp:24x24:r3:mixed2",
)


def port(inputs=5, actions=3, view=View()):
    spec = Spec(gs.Box(-9, 9, (inputs,), np.float32), gs.Discrete(actions), TASK)
    return Port(spec, view, Head("categorical", (actions,), start=(0,)), inputs * view.history)


def rows_of(count, inputs=5, seed=0):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))


def taught(texts, steps=60, seen=600):
    """A family after some gradient steps towards a linear teacher, and its table."""
    inputs = rows_of(seen)
    labels = {"params": (3 * inputs @ rows_of(5, 3, 1)).log_softmax(-1)}
    table = imitation.Table(TASK, inputs, torch.zeros(seen, dtype=torch.bool), labels, {}, port().head)
    family = families.build(parse(texts), {TASK: port()}, 0)
    pace = imitation.Pace(steps, 64, 1e-2, 1.0)
    losses = imitation.imitate(family, {TASK: table}, objective.mixture("kl", 0.0), pace, 0, 0)
    return family, table, losses


# ---------------------------------------------------------------- names


def test_the_name_states_the_width():
    member = parse(["mlp:32x32:tanh:int4"])[0]
    assert (member.name, member.architecture.spec) == ("mlp-32x32-tanh-int4-s0", "mlp:32x32:tanh:int4")
    assert parse(["mlp:32x32:int4:tanh"])[0] == member, "in either order"
    assert parse(["linear:int8"])[0].name == "linear-int8-s0"
    assert parse(["mlp:64x64:int8:r4"])[0].architecture.spec == "mlp:64x64:r4:int8"
    wide = (
        "gru:16:int8",
        "cnn:8k3:32:int8",
        "cnn:16k3:32-gru16:int8",
        "cnn:8k3:cp2-24:r4:tanh:int8",
        "conv1d:16k5s2-16k3:32:int4",
        "gru:16:mixed4",
        "cnn:8k3:32:mixed2",
    )
    for text in (*TEXTS, *wide):
        assert parse([text])[0].architecture.spec == text
        assert parse([parse([text])[0].architecture.spec]) == parse([text])


def test_a_mixed_student_is_larger_by_its_first_layer():
    """5 x 12, 12 x 8 and 8 x 3 weights; 23 biases, 10 ranges of inputs and 2 of layers in 32 bits."""
    bits = {text: Stack(parse([text])[0].architecture, {TASK: port()}).bits
            for text in ("mlp:12x8:int8", "mlp:12x8:mixed4", "mlp:12x8:mixed2")}  # fmt: skip
    assert list(bits.values()) == [8 * 180 + 32 * 35, 8 * 60 + 4 * 120 + 32 * 35, 8 * 60 + 2 * 120 + 32 * 35]


@pytest.mark.parametrize(("text", "words"), [
    ("mlp:8:int5", "did you mean 'int8'"), ("mlp:8:int8:int4", "not both int8 and int4"), ("mlp:8:gelu:int8", "Allowed with it: relu, tanh, hardtanh"),
    ("nested:8x8:int8", "int8 is a width of weights of linear, mlp, gru, cnn and conv1d students, nested has none"), ("tree:leaves=4:int8", "tree has none"),
    ("nested:16x16:mixed4", "nested has none; compress: .quantise: mixed4. makes it so later"), ("gru:8:gelu:int8", "too many parts, of which gru takes no 'gelu'"),
    ("cnn:4k3:8:elu:int8", "int8 has no elu. Allowed with it: relu, tanh, hardtanh"), ("gru:8:int8:int4", "not both"), ("gru:int8", "gru needs its sizes"),
    ("cnn:4k3:8:int9", "did you mean 'int8'"), ("linear:mixed4", "linear is one layer, of which mixed4 would be int8"), ("mlp:8:mixed8", "did you mean 'mixed4'"),
    ("mlp:8:mixed4:int4", "not both mixed4 and int4"),
])  # fmt: skip
def test_other_widths_are_refused_in_one_line(text, words):
    with pytest.raises(InputError, match=words) as refusal:
        parse([text])
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------- steps and gradients by hand


def whole_of(width, weights):
    """The whole numbers and their step of one output's weights, on inputs in -1..1."""
    weight = torch.tensor(weights)[None, :, None]
    one = torch.full((1, 1, 1), 1.0 / 127)
    layer = quantised_parts.whole(width, weight, torch.zeros(1, 1, 1), one, one, one)
    return layer.weight.flatten().tolist(), float(layer.step) * 127


@pytest.mark.parametrize(("width", "weights", "numbers", "step"), [
    ("int8", [1.27, -0.5, 0.004], [127, -50, 0], 0.01),
    ("int4", [0.7, -0.36, 0.1], [7, -4, 1], 0.1),
    ("int2", [-3.0, 0.3, 0.3, 0.4], [-2, 0, 0, 0], 1.0),  # mean |w| is 1
    ("int2", [2.0, -0.4, 0.6, -1.0], [1, 0, 1, -1], 1.0),
    ("ternary", [1.0, -0.4, 0.5, -0.8], [1, 0, 1, -1], 2.3 / 3),  # threshold 0.7 x 0.675, step the mean of the three that stay
])  # fmt: skip
def test_steps_are_those_of_their_sources(width, weights, numbers, step):
    found, worth = whole_of(width, weights)
    assert found == numbers
    assert worth == pytest.approx(step, rel=1e-6)


def test_gradients_go_straight_through():
    """Of a linear student d y / d w is the input as it is told apart, and d y / d b is 1: as if nothing were rounded."""
    stack = Stack(parse(["linear:int4"])[0].architecture, {TASK: port(actions=2)})
    theta, rows = stack.initial(parse(["linear:int4"]), 0), rows_of(7)
    stack.see(theta, TASK, rows, fresh=True)
    (gradient,) = torch.autograd.grad(
        stack.forward(theta.requires_grad_(), TASK, rows[None], None)[0, 0, :, 0].sum(), theta
    )
    named = {name: part[0] for name, part in stack._policy(gradient[0].numpy()).items()}
    step = (rows.amax(0) - rows.amin(0)) / 2 / 127
    assert ((named["head0.weight"][:, 0] - rows.sum(0)).abs() <= 7 * step / 2 + 1e-5).all()
    assert (named["head0.weight"][:, 1] == 0).all()
    assert named["head0.bias"][0] == pytest.approx(7.0)
    assert (named["inputs0.low"] == 0).all(), "ranges of inputs are seen, not learned"


# ---------------------------------------------------------------- what is trained is what is frozen


def test_sums_are_rescaled_without_a_rounding_between():
    """Next to every half: floor((sum m + 2**(k - 1)) / 2**k) in Python's whole numbers; float32 misses thousands of these."""
    sums, ratios, wanted, single = [], [], [], 0
    for k in range(10, 31, 4):
        for m in range(128, 256, 3):
            for q in range(-127, 127, 5):
                total = (((2 * q + 1) << k) // 2 - 1) // m
                if abs(total) < 2**22:
                    sums, ratios, wanted = (
                        [*sums, total],
                        [*ratios, m / 2**k],
                        [*wanted, (total * m + (1 << (k - 1))) >> k],
                    )
                    single += np.floor(np.float32(total) * np.float32(m / 2**k) + np.float32(0.5)) != wanted[-1]
    found = quantised_parts.rescaled(torch.tensor(sums, dtype=torch.float32), torch.tensor(ratios, dtype=torch.float32))
    assert single > 50
    assert found.tolist() == wanted
    assert quantised_parts.rounded(torch.tensor([0.5 - 2.0**-25])).item() == 0, "a sum with 0.5 would be 1 in float32"


def test_what_is_trained_is_what_is_frozen():
    family, table, losses = taught([f"{text}@2" for text in TEXTS])
    first = taught(TEXTS, steps=1)[2]
    raw = np.concatenate([table.inputs.numpy(), 20 * rows_of(200, seed=2).numpy()])  # far outside of the range too
    for rows in family.stacks:
        said = rows.stack.forward(rows.theta, TASK, torch.from_numpy(raw)[None], None)[:, 0]
        for k, member in enumerate(rows.members):
            blueprint = family.blueprint(member.name, TASK)
            blueprints.check(blueprint)
            kinds = [type(layer) for layer in blueprint.layers]
            assert (kinds[0], kinds[-1], set(kinds[1:-1]) <= {Quantised}) == (Quantise, Readout, True)
            policy = NumpyPolicy(blueprint)
            check_policy(policy)
            params = policy(raw, {}, np.ones(len(raw), bool)).params
            assert np.array_equal(params, said[k].numpy()), "no normaliser that would be folded in: the same bits"
            if member.seed == 0:
                assert losses[member.name] < 0.8 * first[member.name], "it learns"


def test_a_normaliser_goes_into_the_quantiser(tmp_path):
    family, table, _ = taught(["mlp:12x8:int8"])
    normaliser = Normaliser(np.arange(5, dtype=np.float32) * 100, np.full(5, 0.5, np.float32))
    family.normalisers[TASK] = normaliser
    blueprint = family.blueprint("mlp-12x8-int8-s0", TASK)
    assert blueprint.normaliser is None
    raw = table.inputs.numpy() * normaliser.scale + normaliser.mean
    said = family.stacks[0].stack.forward(family.stacks[0].theta, TASK, table.inputs[None], None)[0, 0]
    first = np.ones(len(raw), bool)
    params = NumpyPolicy(blueprint)(raw, {}, first).params
    assert (params.argmax(1) == said.argmax(1).numpy()).mean() >= 0.995
    blueprints.save(blueprint, tmp_path / "policy.safetensors")
    again = NumpyPolicy(blueprints.load(tmp_path / "policy.safetensors")[0])
    assert np.array_equal(again(raw, {}, first).params, params)


@pytest.mark.parametrize("padding", ["first", "zero"])
def test_histories_are_quantised_frame_by_frame(padding):
    """Zeros before an episode's start are normalised ones, so that normaliser stays."""
    view = View(history=3, padding=padding)
    family = families.build(parse(["mlp:12:int8"]), {TASK: port(view=view)}, 0)
    family.normalisers[TASK] = Normaliser(np.full(5, 2.0, np.float32), np.full(5, 0.5, np.float32))
    blueprint = family.blueprint("mlp-12-int8-s0", TASK)
    assert (blueprint.normaliser is None) == (padding == "first")
    frames = np.clip(rows_of(3).numpy(), -2, 2)
    policy = NumpyPolicy(blueprint)
    state, params = policy.initial_state(1), []
    for t, frame in enumerate(frames):
        out = policy((frame * 0.5 + 2.0)[None], state, np.array([t == 0]))
        state, params = out.state, [*params, out.params[0]]
    past = [frames[0], frames[0]] if padding == "first" else [np.zeros(5, np.float32)] * 2
    history = [np.concatenate([*past, *frames][t : t + 3]) for t in range(3)]
    rows = family.stacks[0]
    said = rows.stack.forward(rows.theta, TASK, torch.from_numpy(np.stack(history))[None], None)[0, 0]
    assert np.allclose(params, said.numpy(), atol=2e-3), "a few levels of an untrained student's small numbers"


def test_a_team_shares_one_quantised_network():
    spec = Spec(gs.Box(-1, 1, (2, 4), np.float32), gs.MultiDiscrete([3, 3]), TASK, 2)
    team = Port(spec, View(), Head("multicategorical", (3, 3), start=(0, 0), shape=(2,)), 8, 2)
    family = families.build(parse(["mlp:6:int8"]), {TASK: team}, 0)
    blueprint = family.blueprint("mlp-6-int8-s0", TASK)
    assert isinstance(blueprint.layers[0], Shared)
    x, rows = rows_of(9, 8), family.stacks[0]
    said = rows.stack.forward(rows.theta, TASK, x[None], None)[0, 0].numpy()
    assert np.allclose(NumpyPolicy(blueprint)(x.numpy().reshape(9, 2, 4), {}, np.ones(9, bool)).params, said, atol=1e-5)


def test_a_member_in_the_stack_is_the_member_alone():
    together, alone = (
        taught(["mlp:12x8:int4@2", "mlp:6:tanh:ternary"], steps=15)[0],
        taught(["mlp:12x8:int4"], steps=15)[0],
    )
    assert np.allclose(together.row("mlp-12x8-int4-s0"), alone.row("mlp-12x8-int4-s0"), atol=1e-4)


@pytest.mark.parametrize(
    "text", ["mlp:700x300:int8", "mlp:700x300:tanh:int4", "mlp:700:ternary", "gru:400:int8", "gru:300:ternary"]
)
def test_no_sum_leaves_its_bits(text):
    """The worst weights there are: all alike, with huge biases, and outputs or gates that are dead."""
    family = families.build(parse([text]), {TASK: port()}, 0)
    stack, row = family.stacks[0].stack, {}
    for name, value in stack.unpack(family.row(family.members[0].name)).items():
        row[name] = np.full_like(value, 3.0) if name.endswith("weight") else np.full_like(value, -1e4)
        if name.endswith("weight"):
            row[name][:, 0] = 0.0
    family.put(family.members[0].name, stack.pack(row))
    blueprints.check(family.blueprint(family.members[0].name, TASK))


def test_bytes_are_those_of_packed_numbers():
    found = {text: quantised.weight_bytes(families.build(parse([text]), {TASK: port()}, 0).blueprint(parse([text])[0].name, TASK))
             for text in ("mlp:16", "mlp:16:int8", "mlp:16:int4", "mlp:16:ternary")}  # fmt: skip
    weights, beside = 5 * 16 + 16 * 3, 5 * 8 + 16 * 6 + 3 * 8
    assert found == {"mlp:16": 4 * (weights + 19), "mlp:16:int8": weights + beside, "mlp:16:int4": weights // 2 + beside,
                     "mlp:16:ternary": weights // 4 + beside}  # fmt: skip
    with pytest.raises(InputError, match="Allowed: up to 16,384"):
        Stack(parse(["mlp:8:int8"])[0].architecture, {TASK: port(inputs=20_000)})


def test_inherited_weights_are_those_of_the_float_student():
    plain, (member,) = taught(["mlp:12x8"])[0], parse(["mlp:12x8:int8"])
    family = families.build([member], {TASK: port()}, 0)
    stack = family.stacks[0].stack
    family.put(member.name, stack.pack(plain.stacks[0].stack.unpack(plain.row("mlp-12x8-s0"))))
    x = rows_of(600)
    stack.see(family.stacks[0].theta, TASK, x, fresh=True)
    its, mine = (f.stacks[0].stack.forward(f.stacks[0].theta, TASK, x[None], None)[0, 0] for f in (plain, family))
    assert (mine - its).abs().mean() < 0.02 * its.std(), "eight bits, before any further training"
