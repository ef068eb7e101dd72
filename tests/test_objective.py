"""Sums of losses: weights that leave something to train, one unit for a student's numbers, one measure for all."""

import pytest
import torch

from limbeck import objective
from limbeck.contracts import Batch, Head
from limbeck.errors import InputError
from limbeck.losses import AUTO, LOSSES, UNITS
from limbeck.objective import Term

LOGITS, Q = Head("categorical", (4,)), Head("q", (4,))
TAU, GAP = 0.02, 3.0


def labels(count=64, actions=4):
    q = torch.randn(count, actions, generator=torch.Generator().manual_seed(0)) * TAU
    q = q - q.max(-1, keepdim=True).values
    return {
        "params": q[None], "advantage": q[None], "temperature": torch.tensor(TAU), "gap": torch.tensor(GAP),
        "gap_power": torch.tensor(1.0), "dkd_beta": torch.tensor(1.0),
    }  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [
    ("1>0*kl", "at the last round"), ("0>1*kl", "at the first round"), ("0*kl", "at the first round"),
    ("1>0*kl + 1*value", "at the last round"), ("1e999*kl", "beyond all numbers"), ("1>1e999*kl", "beyond all numbers"),
])  # fmt: skip
def test_a_round_without_anything_to_train_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        objective.parse(text, LOGITS)


@pytest.mark.parametrize("text", ["anneal + kl", "0.5*anneal", "kl + anneal"])
def test_the_name_of_a_sum_stands_alone(text):
    with pytest.raises(
        InputError, match=r"stands for the whole sum '1>0\*kl \+ 0>1\*regret' .* Write it alone"
    ) as caught:
        objective.parse(text, LOGITS)
    assert "did you mean" not in str(caught.value)


def test_what_is_accepted_can_be_evaluated_in_every_round():
    terms = objective.parse("1>0*kl + 0>1*kl_reverse", LOGITS)
    batch = Batch("toy", torch.empty(0), None, None, {"params": torch.randn(1, 8, 4).log_softmax(-1)})
    for share in (0.0, 0.5, 1.0):
        assert torch.isfinite(objective.evaluate(terms, torch.zeros(2, 1, 8, 4), batch, LOGITS, share)).all()


@pytest.mark.parametrize(
    "text", ["bellman + q_kl", "kd + 0.5*q_mse", "bellman + entropy_regularised", "1>0*q_kl + 0>1*kd"]
)
def test_losses_of_another_unit_are_refused(text):
    with pytest.raises(InputError, match="in several units"):
        objective.parse(text, Q)


@pytest.mark.parametrize("text", ["bellman + kd", "q_kl + regret", "q_mse + q_huber", "kd + cross_entropy", "anneal"])
def test_losses_of_one_unit_are_not(text):
    assert objective.parse(text, Q)


@pytest.mark.parametrize("text", ["gaussian_nll", "critic_guided", "critic_guided + gaussian_nll"])
@pytest.mark.parametrize("kind", ["gaussian", "squashed"])
def test_continuous_students_are_measured_by_a_divergence(text, kind):
    head = Head(kind, (2,), (-1.0, -1.0), (1.0, 1.0))
    found = objective.measure(objective.parse(text, head), head)
    assert LOSSES[found.name].divergence
    rows = torch.cat([torch.linspace(-1, 1, 8).reshape(1, 4, 2), torch.full((1, 4, 2), -3.0)], -1)
    batch = Batch("toy", torch.empty(0), None, None, {"params": rows})
    apart = objective.each_row(found, torch.stack([rows, rows + 0.1]), batch, head)
    assert (apart >= 0).all(), "gaussian_nll is -3 a number here"
    assert apart[0].abs().max() < 1e-6
    assert (apart[1] > 0).all()
    own = objective.measure(objective.parse(f"{AUTO[kind]} + {kind}_kl", head), head)
    assert own.name == AUTO[kind]


POINT = [name for name, kind in UNITS.items() if LOSSES[name].kind == "point" and name != "entropy_regularised"]


@pytest.mark.parametrize("name", POINT)
def test_a_students_unit_is_where_its_loss_is_least(name):
    """Rows Q / unit have no gradient, others do; so students of that loss come to hold them."""
    given, terms = labels(), (Term(name, 1.0),)
    unit = objective.unit(terms, TAU, GAP)
    sizes = []
    for factor in (1.0, 1.5):
        rows = (factor * given["params"] / unit).requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES[name].fn(rows, given, Q).sum(), rows)
        sizes.append(float(gradient.abs().max()))
    assert sizes[0] < 1e-3 * sizes[1]


@pytest.mark.parametrize("name", [*POINT, "bellman"])
def test_a_perfect_student_of_any_unit_is_nowhere_away_from_its_teacher(name):
    given, terms = labels(), (Term(name, 1.0),)
    batch = Batch("toy", torch.empty(0), None, None, given)
    rows = given["params"] / objective.unit(terms, TAU, GAP)
    found = objective.measure(terms, Q)
    assert objective.each_row(found, rows, batch, Q).abs().max() < 1e-5
    assert objective.evaluate((found,), rows[None], batch, Q).abs().max() < 1e-5
    worse = objective.each_row(found, 0.5 * rows, batch, Q)
    half, whole = ((share * given["params"] / TAU).log_softmax(-1) for share in (0.5, 1.0))
    assert torch.allclose(worse, (whole.exp() * (whole - half)).sum(-1), atol=1e-5), "in nats, whatever the unit"
