"""Larger students as assistants of smaller ones: labels, never targets of a gradient."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import imitation, objective
from limbeck.contracts import Batch, Head, Spec, View
from limbeck.imitation import Assistants, Pace, Table
from limbeck.objective import Term
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port

TASK, INPUTS = "toy", 5


def head(kind="categorical", size=3):
    return Head(kind, (size,), *(((-1.0,) * size, (1.0,) * size) if kind in ("deterministic", "tanh") else ()))


def trained(texts, assistant, kind="categorical", keep=None, loss="kl"):
    action = gs.Discrete(3) if kind == "categorical" else gs.Box(-1, 1, (3,), np.float32)
    port = Port(Spec(gs.Box(-3, 3, (INPUTS,), np.float32), action, TASK), View(), head(kind), INPUTS)
    members = [m for m in parse(texts) if keep is None or m.name in keep]
    family = families.build(members, {TASK: port}, 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, INPUTS)).astype(np.float32)
    labels = {"params": torch.from_numpy(np.tanh(x @ rng.normal(size=(INPUTS, 3))).astype(np.float32))}
    table = Table(TASK, torch.from_numpy(x), torch.zeros(300, dtype=torch.bool), labels, {}, head(kind))
    pace = Pace(30, 64, 3e-3, 1.0, assistant=assistant)
    imitation.imitate(family, {TASK: table}, objective.mixture(loss, 0.0), pace, 0, 3)
    return family


SIZES = ["mlp:4", "mlp:16x16@2", "mlp:8"]  # not in the order of their sizes


@pytest.mark.parametrize(("kind", "loss"), [("categorical", "kl"), ("tanh", "executed_huber")])
def test_the_largest_learns_from_the_teacher_alone(kind, loss):
    plain, assisted = trained(SIZES, 0.0, kind, loss=loss), trained(SIZES, 0.3, kind, loss=loss)
    for name in ("mlp-16x16-s0", "mlp-16x16-s1"):
        assert np.array_equal(plain.row(name), assisted.row(name)), "a gradient entered the assistant"
    for name in ("mlp-8-s0", "mlp-4-s0"):
        assert not np.allclose(plain.row(name), assisted.row(name), atol=1e-4)


def test_only_the_next_larger_one_counts():
    whole, without = trained(SIZES, 0.3), trained(SIZES, 0.3, keep=["mlp-8-s0", "mlp-4-s0"])
    assert not np.allclose(whole.row("mlp-8-s0"), without.row("mlp-8-s0"), atol=1e-4), "its assistant is gone"
    of_teacher = trained(SIZES, 0.0, keep=["mlp-8-s0"])
    assert np.allclose(without.row("mlp-8-s0"), of_teacher.row("mlp-8-s0"), atol=1e-5)


def test_nested_widths_assist_each_other():
    plain, assisted = trained(["nested:16x16"], 0.0), trained(["nested:16x16"], 0.3)
    assert not np.allclose(plain.row("nested-16x16-w4-s0"), assisted.row("nested-16x16-w4-s0"), atol=1e-4)
    wide, narrow = (assisted.blueprint(f"nested-16x16-w{w}-s0", TASK).layers[1].weight for w in (16, 4))
    assert np.array_equal(wide[:4, :4], narrow)


def test_a_lesson_is_the_weighted_divergence():
    above = Assistants(0.3, head())

    class Sized:
        def __init__(self, bits):
            self.stack = type("S", (), {"bits": bits})()

    batch = Batch(TASK, torch.zeros(1, 1, INPUTS), None, None, {"params": torch.zeros(1, 1, 3)})
    larger = torch.tensor([0.8, 0.1, 0.1]).log().view(1, 1, 1, 3).requires_grad_()
    student = torch.tensor([[0.7, 0.2, 0.1], [0.8, 0.1, 0.1]]).log().view(2, 1, 1, 3).requires_grad_()
    assert above.lesson(Sized(90), larger, batch).tolist() == [0.0]
    lesson = above.lesson(Sized(20), student, batch)
    wanted = 0.3 * (0.8 * np.log(0.8 / 0.7) + 0.1 * np.log(0.1 / 0.2))
    assert lesson.tolist() == pytest.approx([wanted, 0.0], abs=1e-6)
    into = torch.autograd.grad(lesson.sum(), [student, larger], allow_unused=True)
    assert into[0].abs().sum() > 0
    assert into[1] is None


@pytest.mark.parametrize(("loss", "kind"), [("bellman", "q"), ("kd", "categorical"), ("q_kl", "categorical")])
def test_students_of_action_values_are_compared_as_policies(loss, kind):
    """Rows of one loss, whatever their unit: the divergence of softmax(Q / tau), with tau from the labels."""
    tau, terms = 0.5, (Term(loss, 1.0),)
    above = Assistants(0.3, head(kind), terms)
    batch = Batch(
        TASK, torch.zeros(1, 1, INPUTS), None, None, {"params": torch.zeros(1, 1, 3), "temperature": torch.tensor(tau)}
    )
    p, q = ([0.8, 0.1, 0.1], [0.7, 0.2, 0.1])
    unit = objective.unit(terms, tau, 1.0)
    larger, student = (torch.tensor(rows).log().view(1, 1, 1, 3) * tau / unit for rows in (p, q))
    sized = [SimpleNamespace(stack=SimpleNamespace(bits=n)) for n in (90, 20)]
    above.lesson(sized[0], larger, batch)
    wanted = 0.3 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert above.lesson(sized[1], student, batch).tolist() == pytest.approx([wanted], abs=1e-6)


def test_students_of_bellman_targets_assist_each_other():
    """The smaller learns nothing from the targets, all unknown: what moves it is the larger one alone."""
    action, q = gs.Discrete(3), head("q")
    port = Port(Spec(gs.Box(-3, 3, (INPUTS,), np.float32), action, TASK), View(), q, INPUTS)
    family = families.build(parse(["mlp:16", "mlp:8"]), {TASK: port}, 3)
    before = {name: family.row(name).copy() for name in ("mlp-16-s0", "mlp-8-s0")}
    labels = {"params": torch.zeros(100, 3), "action": torch.zeros(100, dtype=torch.int64)}
    labels |= {"target": torch.zeros(100), "known": torch.zeros(100)}
    x = torch.randn(100, INPUTS, generator=torch.Generator().manual_seed(0))
    scalars = {"temperature": torch.tensor(0.1)}
    table = Table(TASK, x, torch.zeros(100, dtype=torch.bool), labels, scalars, q)
    imitation.imitate(family, {TASK: table}, (Term("bellman", 1.0),), Pace(5, 32, 3e-3, 1.0, assistant=0.3), 0, 3)
    assert np.array_equal(before["mlp-16-s0"], family.row("mlp-16-s0"))
    assert not np.allclose(before["mlp-8-s0"], family.row("mlp-8-s0"), atol=1e-4)
