"""Formulas that texts on distillation get wrong: each wrong one gives a wrong answer here, ours the right one."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional

from limbeck import blueprints, collection, distributions, imitation, losses, objective, teachers
from limbeck.contracts import Batch, Blueprint, Dense, Head, Spec, View
from limbeck.errors import InputError
from limbeck.imitation import Pace, Table
from limbeck.losses import AUTO, LOSSES
from limbeck.objective import Term
from limbeck.proof.agreement import compare
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.tasks import labelled
from limbeck.tasks.mnist_files import standardised
from limbeck.teaching.labelled import ClassifierSettings, Network
from limbeck.testing import evaluated, example_labels

TWO, THREE, Q2 = Head("categorical", (2,)), Head("categorical", (3,)), Head("q", (2,))
SPEC = Spec(gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(3), "toy")


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def kl(student, teacher, head=TWO):
    return LOSSES["kl"].fn(student, {"params": teacher}, head).item()


def toy_table(rows=64, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(-1, 1, (rows, 4)).astype(np.float32)
    params = distributions.log_softmax((inputs @ rng.normal(size=(4, 3)) * 3).astype(np.float32))
    labels = {"params": torch.from_numpy(params), "hard": torch.from_numpy(params.argmax(axis=1))}
    first = torch.arange(rows) % 8 == 0
    return Table("toy", torch.from_numpy(inputs), first, labels, {"temperature": torch.tensor(1.0)}, THREE)


def toy_family(*students):
    return families.build(parse(students), {"toy": Port(SPEC, View(), THREE, 4)}, 0)


def trained(family, table, terms=(Term("kl", 1.0),), steps=30):
    pace = Pace(steps, 64, 1e-2, 1.0, sequence=8, burn_in=2)
    return imitation.imitate(family, {"toy": table}, terms, pace, 0, 0)


# ---------------------------------------------------------------- the divergence itself


def test_kl_of_the_worked_example_is_not_0_045():
    p, q = row(0.8, 0.2).log(), row(0.7, 0.3).log()
    nats = kl(q, p)
    assert nats == pytest.approx(0.0257321, abs=1e-7)
    assert nats / math.log(2) == pytest.approx(0.037124, abs=1e-6)
    assert distributions.kl(TWO, p.numpy(), q.numpy())[0] == pytest.approx(nats, abs=1e-12)


def test_kl_of_teacher_and_student_is_not_kl_of_student_and_teacher():
    p, q = row(0.8, 0.2).log(), row(0.7, 0.3).log()
    backward = 0.7 * math.log(0.7 / 0.8) + 0.3 * math.log(0.3 / 0.2)
    assert backward == pytest.approx(0.0281681, abs=1e-6)
    assert kl(q, p) == pytest.approx(0.0257321, abs=1e-7), "ours is KL(teacher || student)"
    assert kl(p, q) == pytest.approx(backward, abs=1e-9), "and turned round the other one"


def test_raw_q_values_are_no_probabilities():
    def wrong(teacher, student):
        return float((teacher * (teacher / student).log()).sum())

    assert wrong(row(2, 1), row(3, 2)) == pytest.approx(2 * math.log(2 / 3) + math.log(1 / 2))
    assert wrong(row(2, 1), row(3, 2)) < -1.5, "a divergence below zero, and between two sides that agree"
    assert math.isnan(wrong(row(2, -1), row(3, 2)))
    labels = {"params": row(2, -1), "temperature": torch.tensor(1.0)}
    assert LOSSES["q_kl"].fn(row(12, 9), labels, Q2).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES["q_kl"].fn(row(0, 0), labels, Q2).item() > 0.5
    with pytest.raises(InputError, match="needs a teacher with logits"):
        losses.choose("kl", Q2)
    with pytest.raises(InputError, match="a q head describes no distribution"):
        distributions.kl(Q2, np.array([[2.0, 1.0]]), np.array([[3.0, 2.0]]))


def test_temperature_divides_logits_not_probabilities():
    p = row(0.8, 0.2)
    divided = p / 2
    assert divided.sum() == pytest.approx(0.5), "no distribution any more"
    assert torch.allclose(divided / divided.sum(), p), "and normalised again, the temperature has done nothing"
    # logits halved: sqrt(.8) : sqrt(.2) = 2 : 1
    softened = 2 / 3 * math.log(2 / 3 / 0.5) + 1 / 3 * math.log(1 / 3 / 0.5)
    labels = {"params": p.log(), "temperature": torch.tensor(2.0, dtype=torch.float64)}
    assert LOSSES["kd"].fn(row(0, 0), labels, TWO).item() == pytest.approx(4 * softened, abs=1e-12)
    assert LOSSES["q_kl"].fn(row(0, 0), labels, Q2).item() == pytest.approx(softened, abs=1e-12)


def test_without_tau_squared_the_teachers_part_fades():
    def slope(tau, squared):
        student = row(0.0, 0.0).requires_grad_()
        labels = {"params": row(1.0, -1.0), "temperature": torch.tensor(tau, dtype=torch.float64)}
        value = LOSSES["kd"].fn(student, labels, TWO).sum() / (1.0 if squared else tau**2)
        return torch.autograd.grad(value, student)[0].norm().item()

    assert slope(10.0, squared=False) / slope(20.0, squared=False) == pytest.approx(4, rel=0.01)
    assert slope(10.0, squared=True) / slope(20.0, squared=True) == pytest.approx(1, rel=0.01)


def test_kl_is_minimised_never_maximised():
    table, family = toy_table(), toy_family("linear")
    rows = family.stacks[0]
    batch = Batch("toy", table.inputs[None], None, None, {key: value[None] for key, value in table.labels.items()})

    def value(theta):
        said = rows.stack.forward(theta, "toy", batch.inputs, None)
        return objective.evaluate((Term("kl", 1.0),), said, batch, THREE).sum()

    start = rows.theta.clone().requires_grad_()
    before = value(start)
    (gradient,) = torch.autograd.grad(before, start)
    assert value(start + 0.1 * gradient) > before, "a step the wrong way makes the student worse"
    told = trained(family, table, steps=100)
    assert value(rows.theta) < 0.5 * before, "the loop goes downhill"
    assert 0 < told["linear-s0"] < before


def test_softmax_is_applied_once():
    sure = row(50.0, 0.0)
    hard = {"params": sure, "hard": torch.tensor([0])}
    wrong = functional.cross_entropy(sure.softmax(-1), hard["hard"]).item()
    assert wrong == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6), "a floor of 0.31 that no student gets below"
    assert LOSSES["cross_entropy"].fn(sure, hard, TWO).item() == pytest.approx(0, abs=1e-9)
    logits = row(4.0, 0.0)
    twice = logits.softmax(-1).softmax(-1)
    assert twice[0, 0] == pytest.approx(0.7239, abs=1e-4)
    assert logits.softmax(-1)[0, 0] == pytest.approx(0.9820, abs=1e-4)
    stored = torch.from_numpy(distributions.canonical(TWO, logits.numpy())[0])
    again = torch.from_numpy(distributions.canonical(TWO, stored.numpy())[0])
    assert torch.allclose(again, stored), "what is stored may be normalised again: log-probabilities, not probabilities"
    assert stored.exp()[0, 0] == pytest.approx(0.9820, abs=1e-4)


def test_log_probabilities_and_raw_logits_may_meet():
    teacher, student = row(2.0, 0.0, -1.0), row(5.0, 4.0, 3.0)
    wrong = functional.kl_div(student, teacher.softmax(-1), reduction="sum").item()
    assert wrong < 0, "torch's kl_div takes log-probabilities first; given logits it is no divergence"
    forms = [kl(s, t, THREE) for s in (student, student.log_softmax(-1)) for t in (teacher, teacher.log_softmax(-1))]
    wanted = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=z) for z in (teacher, student)))
    assert forms == pytest.approx([wanted.item()] * 4, abs=1e-12)


# ---------------------------------------------------------------- who is trained, and by whom


def test_every_weight_of_every_student_is_in_the_optimiser():
    student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    optimiser = torch.optim.Adam(teacher.parameters())  # the mistake: the student is missing
    before = copy.deepcopy(student.state_dict())
    functional.cross_entropy(student(torch.ones(2, 4)), torch.tensor([0, 1])).backward()
    optimiser.step()
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())

    family = toy_family("linear@2", "mlp:6x5@2", "gru:4@2")
    started = {member.name: family.row(member.name) for member in family.members}
    trained(family, toy_table(), steps=3)
    for rows in family.stacks:
        sizes = [math.prod(shape) for shape in rows.stack.shapes.values()]
        for member in rows.members:
            moved = np.split(family.row(member.name) != started[member.name], np.cumsum(sizes)[:-1])
            still = [name for name, part in zip(rows.stack.shapes, moved, strict=True) if not part.any()]
            assert not still, f"{member.name}: {still} never moved"


CASES = [(name, kind) for name, entry in LOSSES.items() for kind in entry.heads if entry.reads == "params"]
HEADS = {
    "categorical": THREE, "q": Head("q", (3,)), "multicategorical": Head("multicategorical", (2, 3)),
    "bernoulli": Head("bernoulli", (3,)), "gaussian": Head("gaussian", (2,), (-1.0, -1.0), (1.0, 1.0)),
    "squashed": Head("squashed", (2,), (-1.0, -1.0), (1.0, 1.0)),
    "deterministic": Head("deterministic", (2,), (-1.0, -1.0), (1.0, 1.0)), "tanh": Head("tanh", (2,), (-1.0, -1.0), (1.0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_called_distillation_has_a_teacher_in_it(name, kind):
    entry, head = LOSSES[name], HEADS[kind]
    one, other = example_labels(head, 8, seed=1), example_labels(head, 8, seed=2)
    other["hard"] = one["hard"]
    width = sum(head.sizes) if "action" in entry.needs else head.width
    student = torch.linspace(-1, 1, 8 * width).reshape(8, width)
    moved = not torch.allclose(evaluated(entry, head, one, student), evaluated(entry, head, other, student))
    assert moved == (name != "cross_entropy"), "only the task's own cross-entropy does without a teacher"
    assert not (entry.divergence and name == "cross_entropy"), "and it is no divergence"


def test_no_teacher_gets_a_loss_without_a_teacher_by_default():
    assert all(LOSSES[AUTO[kind]].divergence for kind in HEADS)
    assert [term.name for term in objective.mixture("kl", 0.9)] == ["kl", "cross_entropy"]


def test_the_teacher_is_not_trained_along():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    both = copy.deepcopy(module), torch.nn.Linear(4, 3)
    optimiser = torch.optim.SGD([*both[0].parameters(), *both[1].parameters()], 0.5)  # the mistake
    x = torch.rand(32, 4)
    LOSSES["kl"].fn(both[1](x), {"params": both[0](x)}, THREE).mean().backward()
    optimiser.step()
    assert not torch.equal(both[0][0].weight, module[0].weight), "the teacher moved to meet the student"

    before = {key: value.numpy().tobytes() for key, value in module.state_dict().items()}
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 4)).astype(np.float32)
    task = labelled("toy", x, module(torch.from_numpy(x)).argmax(-1).numpy(), 3)
    teacher = teachers.load(module, task.spec)
    plan = collection.Plan(96, 8, "teacher")
    columns = collection.collect(task, teacher.policy, [], plan, 0, 0).columns
    labels = {"params": torch.from_numpy(columns["teacher/params"]), "hard": torch.from_numpy(columns["hard"])}
    obs, first = torch.from_numpy(columns["obs"]), torch.from_numpy(columns["first"])
    table = Table("toy", obs, first, labels, {"temperature": torch.tensor(1.0)}, teacher.policy.head)
    family = families.build(parse(["mlp:8"]), {"toy": Port(task.spec, View(), THREE, 4)}, 0)
    trained(family, table, objective.mixture("kl", 0.3))
    assert {key: value.numpy().tobytes() for key, value in module.state_dict().items()} == before
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(column.requires_grad for column in table.labels.values()), "labels are data, not a graph"


# ---------------------------------------------------------------- students and values


@pytest.mark.parametrize(("inputs", "actions"), [(4, 3), (64, 10), (784, 10)])
def test_a_linear_student_is_linear(inputs, actions):
    wrong = torch.nn.Sequential(torch.nn.Linear(inputs, 512), torch.nn.ReLU(), torch.nn.Linear(512, actions))
    x = torch.randn(5, inputs, dtype=torch.float32)
    assert not torch.allclose(wrong(x) + wrong(-x), 2 * wrong(0 * x), atol=1e-3), "a hidden layer is no linear map"
    spec = Spec(gym.spaces.Box(-1, 1, (inputs,), np.float32), gym.spaces.Discrete(actions), "toy")
    family = families.build(parse(["linear"]), {"toy": Port(spec, View(), Head("categorical", (actions,)), inputs)}, 0)
    assert family.stacks[0].stack.parameters == inputs * actions + actions
    blueprint = family.blueprint("linear-s0", "toy")
    assert [layer.kind for layer in blueprint.layers] == ["dense"]
    assert blueprint.layers[0].activation == "identity"
    assert blueprint.parameters == inputs * actions + actions


# Two states, 0 and 1; action "stay" or "switch"; a step that ends in state 1 pays 1; gamma 1/2.
NEXT, PAYS, GAMMA = np.array([[0, 1], [1, 0]]), np.array([[0.0, 1.0], [1.0, 0.0]]), 0.5
BEST = np.array([[1.0, 2.0], [2.0, 1.0]])  # Q*: for ever in state 1 is worth 1 / (1 - gamma) = 2
UNIFORM = np.array([[0.5, 1.5], [1.5, 0.5]])  # Q^pi of the policy that tosses a coin, worth 1 in both states


def iterated(value_of):
    q = np.zeros((2, 2))
    for _ in range(80):
        q = PAYS + GAMMA * value_of(q)[NEXT]
    return q


def test_bellmans_max_gives_q_star_not_q_pi():
    assert iterated(lambda q: q.max(axis=1)) == pytest.approx(BEST)
    assert iterated(lambda q: q.mean(axis=1)) == pytest.approx(UNIFORM)
    # what is stored as a Q teacher's value is max Q: the value of its greedy policy where Q is Q*
    head = Head("q", (2,))
    stored = collection.label_columns(head, BEST.astype(np.float32), None)
    assert stored["teacher/value"] == pytest.approx([2.0, 2.0])
    assert (stored["teacher/params"] + stored["teacher/value"][:, None]) == pytest.approx(BEST)
    # of Q^pi the maximum (1.5) is the value of no policy: pi is worth 1, a policy teacher says so itself
    assert UNIFORM.max(axis=1) == pytest.approx([1.5, 1.5])
    assert (UNIFORM * 0.5).sum(axis=1) == pytest.approx([1.0, 1.0])
    said = collection.label_columns(TWO, np.zeros((2, 2), np.float32), np.ones(2, np.float32))
    assert said["teacher/value"] == pytest.approx([1.0, 1.0])


def test_regret_by_q_star_is_the_difference_of_the_returns():
    """Performance difference: V*(s) - V^pi(s) = E[regret on pi's own states] / (1 - gamma); here (2 - 1) = 0.5 / 0.5."""
    head = Head("q", (2,))
    states, actions = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])  # what a coin visits and does
    rows = BEST[states].astype(np.float32)
    taught = distributions.act(head, rows)
    regret = compare(head, rows, taught, TWO, np.zeros((4, 2), np.float32), actions)["regret"]
    assert regret.tolist() == [1, 0, 0, 1]
    assert regret.mean() / (1 - GAMMA) == pytest.approx(2.0 - 1.0)


def test_chosen_actions_are_labels_not_values():
    """Two of the same observation, answered once 0 and once 2: their mean is action 1, which nobody chose."""
    indices = np.array([0, 2] * 32)
    assert round(float(indices.mean())) == 1, "regressed as numbers"
    labels = {"params": torch.zeros(64, 3), "hard": torch.from_numpy(indices)}
    table = Table("toy", torch.ones(64, 4), torch.ones(64, dtype=torch.bool), labels, {}, THREE)
    family = toy_family("linear")
    trained(family, table, (Term("cross_entropy", 1.0),), steps=400)
    layer = family.blueprint("linear-s0", "toy").layers[0]
    logits = torch.from_numpy(np.ones((1, 4), np.float32) @ layer.weight + layer.bias)
    assert logits.softmax(-1)[0].tolist() == pytest.approx([0.5, 0.0, 0.5], abs=0.06)


def test_a_callable_that_returns_actions_has_no_q_values():
    def acts(obs):
        return np.full(len(obs), 2)

    teacher = teachers.load(acts, SPEC)
    assert teacher.policy.head.kind == "categorical"
    said = teacher.policy(np.zeros((1, 4), np.float32), {}, np.ones(1, bool)).params
    assert distributions.log_softmax(said).argmax() == 2
    with pytest.raises(InputError, match=r"float \[B, 3\] logits \(kind='q': action values\)"):
        teachers.load(acts, SPEC, kind="q")


# ---------------------------------------------------------------- pictures


def test_three_channels_of_numbers_do_not_normalise_one():
    grey = np.random.default_rng(0).random((5, 28, 28, 1)).astype(np.float32)
    colours = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert ((grey - np.array(colours[0])) / np.array(colours[1])).shape == (5, 28, 28, 3), "broadcast in silence"
    with pytest.raises(InputError, match=r"3 means and 3 spreads for images of 1 channel, shape \(5, 28, 28, 1\)"):
        standardised(grey, *colours)
    mean, spread = float(grey.mean()), float(grey.std())
    assert standardised(grey, (mean,), (spread,)).std() == pytest.approx(1, abs=1e-3)


def test_a_layer_of_320_inputs_does_not_take_784_pixels():
    spec = Spec(gym.spaces.Box(0, 1, (784,), np.float32), gym.spaces.Discrete(10), "mnist")
    layers = [Dense(np.zeros(shape, np.float32), np.zeros(shape[1], np.float32)) for shape in ((320, 50), (50, 10))]
    with pytest.raises(InputError, match="a dense layer takes 320 numbers where 784 arrive"):
        blueprints.check(Blueprint(spec, Head("categorical", (10,), start=(0,)), tuple(layers)))
    # 320 is what two 5 x 5 convolutions with pooling leave of 28 x 28: there it is right
    rng = np.random.default_rng(0)
    task = labelled("pictures", rng.random((20, 784)), np.arange(20) % 10, 10, image=(28, 28, 1))
    network = Network(task, ClassifierSettings(), Head("categorical", (10,), start=(0,)))
    assert network.dense[0].in_features == 320
    blueprints.check(network.freeze(task, Head("categorical", (10,), start=(0,))))
