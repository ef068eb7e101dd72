"""Grammar, the stacked family, and that a member in the stack is the member alone."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import imitation, objective
from limbeck.contracts import Head, Spec, View
from limbeck.errors import InputError
from limbeck.imitation import Pace, Table
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.stack import Port
from limbeck.testing import check_policy

TASK = "toy"


def port(inputs=5, actions=3, history=1):
    spec = Spec(gs.Box(-3, 3, (inputs,), np.float32), gs.Discrete(actions), TASK)
    return Port(spec, View(history=history), Head("categorical", (actions,), start=(0,)), inputs * history)


def toy_table(rows=400, inputs=5, actions=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    logits = np.tanh(x @ rng.normal(size=(inputs, actions))).astype(np.float32) * 3
    first = np.zeros(rows, bool)
    first[::50] = True
    labels = {"params": torch.from_numpy(logits - logits.max(1, keepdims=True))}
    return Table(
        TASK,
        torch.from_numpy(x),
        torch.from_numpy(first),
        labels,
        {"temperature": torch.tensor(1.0)},
        Head("categorical", (actions,)),
    )


def train(texts, rounds=2, keep=None):
    members = [m for m in parse(texts) if keep is None or m.name in keep]
    family = families.build(members, {TASK: port()}, run_seed=3)
    pace = Pace(gradient_steps=30, batch=64, learning_rate=3e-3, gradient_clip=1.0, sequence=16, burn_in=4)
    for number in range(rounds):
        losses = imitation.imitate(family, {TASK: toy_table()}, objective.mixture("kl", 0.0), pace, number, 3)
    return family, losses


@pytest.mark.parametrize("spec", ["linear", "mlp:8", "mlp:16x16:tanh", "gru:6"])
def test_a_member_in_the_stack_equals_the_member_alone(spec):
    together, losses = train([f"{spec}@3"])
    for member in together.members:
        alone, its_loss = train([f"{spec}@3"], keep=[member.name])
        assert np.allclose(together.row(member.name), alone.row(member.name), atol=2e-5)
        assert losses[member.name] == pytest.approx(its_loss[member.name], rel=1e-4)


def test_a_family_of_several_shapes_equals_its_parts():
    together, _ = train(["linear@2", "mlp:8"])
    alone, _ = train(["linear@2", "mlp:8"], keep=["mlp-8-s0"])
    assert np.allclose(together.row("mlp-8-s0"), alone.row("mlp-8-s0"), atol=2e-5)


def test_training_lowers_the_loss_and_is_repeatable():
    family, losses = train(["mlp:16"], rounds=8)
    again, _ = train(["mlp:16"], rounds=8)
    assert np.array_equal(family.row("mlp-16-s0"), again.row("mlp-16-s0"))
    _, early = train(["mlp:16"], rounds=1)
    assert losses["mlp-16-s0"] < 0.5 * early["mlp-16-s0"]


@pytest.mark.parametrize("spec", ["linear", "mlp:8:tanh", "mlp:8x4", "gru:6"])
def test_the_frozen_member_says_what_the_stack_says(spec):
    family, _ = train([spec])
    rows = family.stacks[0]
    x, first = torch.randn(12, 7, 5), torch.zeros(12, 7, dtype=torch.bool)
    first[0], first[5, 2], first[9] = True, True, True
    wanted = rows.stack.forward(rows.theta, TASK, x, first)[0].detach().numpy()
    policy = NumpyPolicy(family.blueprint(rows.members[0].name, TASK))
    check_policy(policy)
    state = policy.initial_state(7)
    for t in range(12):
        output = policy.on_flat(x[t].numpy(), state, first[t].numpy())
        state = output.state
        assert np.allclose(output.params, wanted[t], atol=1e-5)


def test_a_gru_forgets_at_first_inside_a_batch():
    family, _ = train(["gru:6"])
    rows = family.stacks[0]
    x, first = torch.randn(10, 1, 5), torch.zeros(10, 1, dtype=torch.bool)
    first[0] = first[6] = True
    whole = rows.stack.forward(rows.theta, TASK, x, first)
    tail = rows.stack.forward(rows.theta, TASK, x[6:], first[6:])
    assert torch.allclose(whole[:, 6:], tail, atol=1e-6)
    first[6] = False
    assert not torch.allclose(rows.stack.forward(rows.theta, TASK, x, first)[:, 6:], tail, atol=1e-3)


def test_dropping_members_keeps_the_others_and_their_optimiser():
    family, _ = train(["mlp:8@4"])
    before = {m.name: family.row(m.name) for m in family.members}
    family.keep(["mlp-8-s1", "mlp-8-s3"])
    assert [m.name for m in family.members] == ["mlp-8-s1", "mlp-8-s3"]
    assert all(np.array_equal(family.row(m.name), before[m.name]) for m in family.members)
    assert family.stacks[0].mean.shape == family.stacks[0].theta.shape


def test_a_checkpoint_continues_bit_for_bit():
    family, _ = train(["mlp:8@2", "linear"], rounds=2)
    saved = {k: np.array(v) for k, v in family.to_arrays().items()}
    other = families.build(parse(["mlp:8@2", "linear"]), {TASK: port()}, run_seed=3)
    other.from_arrays(saved)
    pace = Pace(30, 64, 3e-3, 1.0)
    for one in (family, other):
        imitation.imitate(one, {TASK: toy_table()}, objective.mixture("kl", 0.0), pace, 2, 3)
    assert all(np.array_equal(family.row(m.name), other.row(m.name)) for m in family.members)


def test_the_objective_does_not_depend_on_batch_size_and_is_continuous_in_its_weights():
    table, family = toy_table(), families.build(parse(["linear"]), {TASK: port()}, 0)
    rows = family.stacks[0]

    def value(weight, repeat=1):
        labels = {
            "params": table.labels["params"][:100].repeat(repeat, 1)[None],
            "hard": torch.zeros(1, 100 * repeat, dtype=torch.int64),
        }
        inputs = table.inputs[:100].repeat(repeat, 1)[None]
        from limbeck.contracts import Batch

        batch = Batch(TASK, inputs, torch.empty(0), torch.ones(1, 100 * repeat), labels)
        return objective.evaluate(
            objective.mixture("kl", weight), rows.stack.forward(rows.theta, TASK, inputs, None), batch, table.head
        ).item()

    assert value(0.3, 2) == pytest.approx(value(0.3), rel=1e-5)
    assert value(1e-9) == pytest.approx(value(0.0), abs=1e-6)
    assert value(1 - 1e-7) == pytest.approx(value(1.0), abs=1e-5)
    assert value(0.25) == pytest.approx(0.75 * value(0.0) + 0.25 * value(1.0), rel=1e-5)


def test_masked_rows_do_not_count():
    from limbeck.contracts import Batch

    family = families.build(parse(["linear"]), {TASK: port()}, 0)
    rows, x = family.stacks[0], torch.randn(2, 4, 5)
    params, mask = torch.randn(2, 4, 3), torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]])
    out = rows.stack.forward(rows.theta, TASK, x, None)
    one = objective.evaluate(
        objective.mixture("kl", 0.0), out, Batch(TASK, x, torch.empty(0), mask, {"params": params}), port().head
    )
    params[mask == 0] = 99.0
    two = objective.evaluate(
        objective.mixture("kl", 0.0), out, Batch(TASK, x, torch.empty(0), mask, {"params": params}), port().head
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize(("text", "words"), [
    ("mpl:8", "did you mean 'mlp'"), ("mlp", "needs its sizes"), ("mlp:0", "no number from 1"), ("mlp:8:rleu", "did you mean 'relu'"),
    ("linear:3", "takes no sizes"), ("mlp:8@0", "no number"), ("mlp:99999999999", "no number"), ("mlp:8x8:relu:x", "too many"), ("mlp:64x64:r", "Allowed there: a rank such as r8, relu, tanh"), ("mlp:64x64:r8:r", "Allowed there: relu, tanh"),
    ("gru:8x8", "at most 1"), ("", "unknown student"), ("mlp:8\x1b[31m", "\\x1b"),
    ("cnn", "needs its sizes"), ("cnn:8", "no convolution such as 8k4s2"), ("cnn:8k0", "no number from 1"), ("cnn:8k3s0", "no number from 1"),
    ("cnn:8k3:cp0-24", "no number from 1"), ("cnn:8k3:24-cp2", "at most one cpN"), ("cnn:8k3:gru4-24", "then one gruN"), ("cnn:" + "-".join(["8192k1024s1024"] * 16), "longer than a folder"),
    ("cnn:8k3:24:rleu", "did you mean 'relu'"), ("cnn:8k3:gap", "unknown activation"), ("cnn:8k3:tanh:24", "is no readout"),
    ("cnn:8k3:24:relu:x", "too many"), ("conv1d:8", "no convolution such as"), ("conv2d:8k3", "did you mean 'conv1d'"),
    ("cnn:" + "-".join(["2k1"] * 17), "17 convolutions, at most 16"), ("cnn:8k3-", "'' is no convolution"), ("cnn:8k9999", "no number from 1 to 1024"),
])  # fmt: skip
def test_bad_grammar_teaches_the_grammar(text, words):
    with pytest.raises(InputError) as caught:
        parse([text])
    assert words in str(caught.value)
    assert "linear, mlp:32x32" in str(caught.value)


@pytest.mark.parametrize(("text", "canonical"), [
    ("cnn:4k8s4-8k4s2:cp2-24", "cnn:4k8s4-8k4s2:cp2-24"), ("cnn:16k3s1:64:relu", "cnn:16k3:64"), ("cnn:16k3:tanh", "cnn:16k3:tanh"),
    ("cnn:16k3", "cnn:16k3"), ("cnn:16k3:cp4", "cnn:16k3:cp4"), ("cnn:16k3:cp4-8x8-gru16:elu", "cnn:16k3:cp4-8x8-gru16:elu"),
    ("cnn:16k3:gru16", "cnn:16k3:gru16"), ("conv1d:16k5s2-16k3:32", "conv1d:16k5s2-16k3:32"), ("gru:064", "gru:64"), ("mlp:8:relu", "mlp:8"),
])  # fmt: skip
def test_the_canonical_text_is_read_back_as_the_same_and_names_a_folder(text, canonical):
    (member,) = parse([text])
    assert member.architecture.spec == canonical
    assert parse([canonical])[0] == member
    assert re.fullmatch(r"[a-z0-9_-]+-s0", member.name)


def test_names_are_unique_and_repeat_specs_count_on():
    names = [m.name for m in parse(["mlp:8@2", "mlp:8:relu", "mlp:8:tanh"])]
    assert names == ["mlp-8-s0", "mlp-8-s1", "mlp-8-s2", "mlp-8-tanh-s0"]
