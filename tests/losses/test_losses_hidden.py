"""Losses on hidden layers, in the stack that trains: own parameters learn, members stay apart, and freezing leaves them behind."""

import gymnasium.spaces as gs
import numpy as np
import pytest
import torch

from limbeck import objective, spaces
from limbeck.contracts import Batch, Head, Spec, View
from limbeck.errors import InputError
from limbeck.losses import LOSSES
from limbeck.losses.relations import GROUP
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.testing import evaluated

HEAD = Head("categorical", (3,), start=(0,))
FLAT, PICTURE = gs.Box(-1, 1, (4,), np.float32), gs.Box(0, 255, (9, 9, 2), np.uint8)
BATCH = 32


def stack_for(student, space, terms, features):
    port = Port(Spec(space, gs.Discrete(3), "toy"), View(), HEAD, spaces.flat_size(space, View()))
    members = parse([student])
    plain = Stack(members[0].architecture, {"toy": port})
    owned = objective.owned(terms, plain.hidden_shapes("toy"), features)
    return Stack(members[0].architecture, {"toy": port}, owned), members


def trained(student, space, text, features, labels, steps=60):
    """Adam on one fixed minibatch; the losses [steps] of the terms beside kl, and the stack with its theta."""
    terms = objective.parse(text, HEAD)
    stack, members = stack_for(student, space, terms, features)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((1, BATCH, spaces.flat_size(space, View()))).astype(np.float32))
    params = torch.from_numpy(rng.normal(size=(1, BATCH, 3)).astype(np.float32)).log_softmax(-1)
    batch = Batch("toy", x, None, None, {"params": params, **labels})
    theta = stack.initial(members, 0).requires_grad_()
    begin = theta.detach().clone()
    optimiser, curve = torch.optim.Adam([theta], 0.02), []
    for _ in range(steps):
        seen = stack.look(theta, "toy", x, None)
        inside = objective.Inside(seen.hidden, seen.own)
        loss = objective.evaluate(terms, seen.params, batch, HEAD, inside=inside)
        curve.append(objective.evaluate(terms[1:], seen.params, batch, HEAD, inside=inside).sum().item())
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    return curve, stack, begin, theta.detach()


def feature(*shape):
    return torch.from_numpy(np.random.default_rng(5).normal(size=(1, BATCH, *shape)).astype(np.float32))


VALUES = {"value": torch.from_numpy(np.random.default_rng(6).normal(size=(1, BATCH)).astype(np.float32)) * 30 + 100,
          "value_mean": torch.tensor(100.0), "value_scale": torch.tensor(30.0)}  # fmt: skip
CASES = [
    ("mlp:8", FLAT, "kl + 0.5*value", {}, VALUES, {"value@last/weight", "value@last/bias"}),
    ("mlp:8", FLAT, "kl + 100*hint@dense0=net", {"net": (5,)}, {"feature:net": feature(5)}, {"weight", "bias"}),
    ("cnn:3k3-4k3:8", PICTURE, "kl + 100*hint@conv1=net", {"net": (5, 3, 3)}, {"feature:net": feature(5, 3, 3)}, {"weight", "bias"}),
    ("cnn:3k3-4k3:8", PICTURE, "kl + 1000*attention@conv0=net", {"net": (5, 4, 4)}, {"feature:net": feature(5, 4, 4)}, set()),
    ("mlp:8", FLAT, "kl + 3000*similarity@dense0=net", {"net": (5,)}, {"feature:net": feature(5)}, set()),
    ("mlp:8", FLAT, "kl + relational@last=net", {"net": (5,)}, {"feature:net": feature(5)}, set()),
    ("mlp:8", FLAT, "kl + cka@last=net", {"net": (5,)}, {"feature:net": feature(5)}, set()),
    ("mlp:8", FLAT, "kl + 0.8*contrastive@last=net", {"net": (5,)}, {"feature:net": feature(5)},
     {"student_weight", "student_bias", "teacher_weight", "teacher_bias"}),
]  # fmt: skip


@pytest.mark.parametrize(("student", "space", "text", "features", "labels", "owned"), CASES, ids=[c[2] for c in CASES])
def test_it_trains_in_a_stack_and_stays_behind_when_frozen(student, space, text, features, labels, owned):
    curve, stack, begin, theta = trained(student, space, text, features, labels)
    assert np.isfinite(curve).all()
    assert curve[-1] < 0.95 * curve[0]
    assert {name.rsplit("/")[-1] for name in stack.owned} - {"sides"} == {name.rsplit("/")[-1] for name in owned}
    behind = slice(stack.parameters, None)
    if owned:
        assert not torch.equal(theta[:, behind], begin[:, behind]), "the loss's own parameters learn"
    blueprint = stack.freeze(theta[0].numpy(), "toy", None, "one")
    assert blueprint.parameters == stack.parameters
    assert theta.shape[1] - stack.parameters == sum(int(np.prod(shape)) for shape in stack.owned.values())


@pytest.mark.parametrize(("student", "space", "text", "features", "labels", "owned"), CASES, ids=[c[2] for c in CASES])
def test_members_do_not_feel_each_other(student, space, text, features, labels, owned):
    terms = objective.parse(text, HEAD)
    stack, _ = stack_for(student, space, terms, features)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.random((1, BATCH, spaces.flat_size(space, View()))).astype(np.float32))
    theta = stack.initial(parse([student]), 0).repeat(3, 1) * torch.tensor([[1.0], [0.5], [2.0]])
    mask = (torch.arange(BATCH) < 20).float()[None]
    batch = Batch("toy", x, None, mask, {"params": torch.zeros(1, BATCH, 3), **labels})

    def value(rows):
        seen = stack.look(rows, "toy", x, None)
        return objective.evaluate(terms, seen.params, batch, HEAD, inside=objective.Inside(seen.hidden, seen.own))

    together = value(theta)
    for k in range(3):
        assert torch.allclose(together[k], value(theta[k : k + 1])[0], rtol=1e-4), text


def test_value_by_hand():
    """h = (1, 2), w = (.5, -1), b = 3: 1.5 against (130 - 100) / 20 = 1.5, and against (60 - 100) / 20 = -2: 3.5 - .5."""
    own = {"weight": torch.tensor([[0.5], [-1.0]]), "bias": torch.tensor([3.0])}
    labels = {
        "value": torch.tensor([130.0, 60.0]),
        "value_mean": torch.tensor(100.0),
        "value_scale": torch.tensor(20.0),
    }
    rows = evaluated(LOSSES["value"], HEAD, labels, torch.tensor([[1.0, 2.0], [1.0, 2.0]]), own)
    assert rows.tolist() == pytest.approx([0.0, 3.0])


def test_attention_does_not_see_channels_or_scale():
    rng = np.random.default_rng(2)
    maps = torch.from_numpy(rng.normal(size=(7, 3, 4, 5)))
    sides = {"sides": torch.empty(4, 5, 3, 0, dtype=torch.float64)}
    hidden = (3 * maps[:, [2, 0, 1]]).permute(0, 2, 3, 1).flatten(1)
    assert evaluated(LOSSES["attention"], HEAD, {"feature": maps}, hidden, sides).max().item() < 1e-12
    turned = (3 * maps.flip(-1)).permute(0, 2, 3, 1).flatten(1)
    assert evaluated(LOSSES["attention"], HEAD, {"feature": maps}, turned, sides).min().item() > 1e-3


def test_relations_do_not_see_rotations_and_scale():
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(30, 5)))
    turn, _ = torch.linalg.qr(torch.from_numpy(rng.normal(size=(5, 5))))
    for name in ("relational", "cka", "similarity"):
        assert evaluated(LOSSES[name], HEAD, {"feature": x}, 7 * x @ turn).item() == pytest.approx(0, abs=1e-9), name
    moved = 7 * x @ turn + 3
    assert evaluated(LOSSES["relational"], HEAD, {"feature": x}, moved).item() == pytest.approx(0, abs=1e-9)
    assert evaluated(LOSSES["cka"], HEAD, {"feature": x}, moved).item() == pytest.approx(0, abs=1e-9)
    assert evaluated(LOSSES["similarity"], HEAD, {"feature": x}, moved).item() > 1e-4


def test_cka_is_the_squared_correlation_of_single_units():
    """One unit on each side: CKA = r^2 of Pearson."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=40), rng.normal(size=40)
    value = evaluated(LOSSES["cka"], HEAD, {"feature": torch.from_numpy(y)[:, None]}, torch.from_numpy(x)[:, None])
    assert 1 - value.item() == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-9)


def test_large_batches_are_compared_in_groups():
    """Two groups of 64: the mean of both, so a batch of 512 has 8 x 64^3 angles, not 512^3."""
    rng = np.random.default_rng(5)
    x, y = (torch.from_numpy(rng.normal(size=(2 * GROUP, 3))) for _ in range(2))
    parts = [
        evaluated(LOSSES["relational"], HEAD, {"feature": y[s]}, x[s]) for s in (slice(0, GROUP), slice(GROUP, None))
    ]
    assert evaluated(LOSSES["relational"], HEAD, {"feature": y}, x).item() == pytest.approx(sum(parts).item() / 2)
    uneven = evaluated(LOSSES["relational"], HEAD, {"feature": y[:100]}, x[:100])
    assert np.isfinite(uneven.item())


def test_a_layer_that_is_not_there_or_no_picture_is_refused():
    with pytest.raises(InputError, match="no student layer 'dense3'"):
        stack_for("mlp:8", FLAT, objective.parse("kl + hint@dense3=net", HEAD), {"net": (5,)})
    with pytest.raises(InputError, match="compares pictures; the student's layer is 8, the teacher's 5"):
        stack_for("mlp:8", FLAT, objective.parse("kl + attention@dense0=net", HEAD), {"net": (5,)})
    with pytest.raises(InputError, match="written hint@STUDENT_LAYER=TEACHER_LAYER"):
        objective.parse("kl + hint", HEAD)
