"""Every loss of the table, on every teacher head it accepts, against the laws and against numbers from outside."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck import objective, storage
from limbeck.contracts import Batch, Head
from limbeck.distributions import canonical
from limbeck.errors import InputError
from limbeck.losses import ANNEAL, AUTO, CONSTANTS, LOSSES, choose, fitting, student_head
from limbeck.losses.q import entropy_temperature
from limbeck.losses.shapes import unit
from limbeck.settings import ImitateSettings
from limbeck.testing import check_loss, check_stored_q, example_labels

HEADS = {
    "categorical": Head("categorical", (5,)),
    "q": Head("q", (5,)),
    "multicategorical": Head("multicategorical", (3, 2, 4)),
    "bernoulli": Head("bernoulli", (4,)),
    "gaussian": Head("gaussian", (3,), (-1.0, -2.0, -math.inf), (1.0, 3.0, math.inf)),
    "squashed": Head("squashed", (2,), (-1.0, -2.0), (1.0, 2.0)),
    "deterministic": Head("deterministic", (2,), (-1.0, -2.0), (1.0, 2.0)),
    "tanh": Head("tanh", (2,), (-1.0, -2.0), (1.0, 2.0)),
}
CASES = [(name, head) for name, entry in LOSSES.items() for head in entry.heads if entry.reads == "params"]
LAYERS = [("value", (6,), (6,)), ("hint", (6,), (4,)), ("hint", (3, 2, 2), (2, 4, 2)), ("hint", (3, 2, 2), (3,)),
          ("attention", (4, 4, 3), (3, 4, 4)), ("attention", (4, 2, 2), (3, 2, 4)),
          ("similarity", (6,), (6,)), ("similarity", (6,), (3,)), ("relational", (6,), (6,)), ("relational", (3,), (2, 2, 2)),
          ("cka", (6,), (6,)), ("cka", (6,), (3,)), ("contrastive", (6,), (3,))]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_laws(name, kind):
    check_loss(LOSSES[name], HEADS[kind])


@pytest.mark.parametrize(("name", "layer", "feature"), LAYERS)
def test_laws_of_losses_on_hidden_layers(name, layer, feature):
    check_loss(LOSSES[name], HEADS["categorical"], layer=layer, feature=feature)


def test_every_loss_is_under_the_laws():
    assert {name for name, _ in CASES} | {name for name, _, _ in LAYERS} == set(LOSSES)


def test_every_head_has_a_default_loss():
    assert set(AUTO) == set(HEADS)
    assert all(kind in LOSSES[AUTO[kind]].heads for kind in AUTO)


def test_kl_of_the_worked_example_is_0_0257_nats():
    # A source gives "about 0.045" for KL((.8, .2) || (.7, .3)); the closed form is .8 ln(8/7) + .2 ln(2/3).
    p, q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.7, 0.3]]).log()
    value = LOSSES["kl"].fn(q, {"params": p}, HEADS["categorical"]).item()
    assert value == pytest.approx(0.8 * math.log(8 / 7) + 0.2 * math.log(2 / 3), abs=1e-7)
    assert value == pytest.approx(0.0257321, abs=1e-6)
    assert value / math.log(2) == pytest.approx(0.037124, abs=1e-5)


def test_gaussian_kl_matches_torch_distributions():
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(rng.normal(size=(50, 6)).clip(-1.9, 1.9)) for _ in range(2)]
    (mt, lt), (ms, ls) = rows[0].chunk(2, -1), rows[1].chunk(2, -1)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mt, lt.exp()), normal(ms, ls.exp())).sum(-1)
    assert torch.allclose(LOSSES["gaussian_kl"].fn(rows[1], {"params": rows[0]}, HEADS["gaussian"]), wanted)


def test_squashed_kl_is_invariant_under_the_squash():
    # Monte-Carlo KL of the squashed densities; the margin is five standard errors.
    torch.manual_seed(0)
    mt, st, ms, ss = 0.3, 0.4, -0.2, 0.6
    u = mt + st * torch.randn(200_000, dtype=torch.float64)
    ratio = torch.distributions.Normal(mt, st).log_prob(u) - torch.distributions.Normal(ms, ss).log_prob(u)
    head = Head("squashed", (1,), (-1.0,), (1.0,))
    rows = [torch.tensor([[m, math.log(s)]], dtype=torch.float64) for m, s in ((mt, st), (ms, ss))]
    value = LOSSES["squashed_kl"].fn(rows[1], {"params": rows[0]}, head).item()
    assert value == pytest.approx(ratio.mean().item(), abs=5 * ratio.std().item() / math.sqrt(len(u)))


def test_bernoulli_kl_matches_torch_distributions():
    rng = np.random.default_rng(1)
    t, s = (torch.from_numpy(rng.normal(size=(20, 4))) for _ in range(2))
    bernoulli = torch.distributions.Bernoulli
    wanted = torch.distributions.kl_divergence(bernoulli(logits=t), bernoulli(logits=s)).sum(-1)
    assert torch.allclose(LOSSES["kl"].fn(s, {"params": t}, HEADS["bernoulli"]), wanted)


def test_cross_entropy_matches_torch():
    rng = np.random.default_rng(2)
    logits, hard = torch.from_numpy(rng.normal(size=(30, 5))), torch.from_numpy(rng.integers(5, size=30))
    value = LOSSES["cross_entropy"].fn(logits, {"params": logits, "hard": hard}, HEADS["categorical"])
    assert torch.allclose(value, torch.nn.functional.cross_entropy(logits, hard, reduction="none"))


def test_temperature_meets_its_entropy_target_and_ignores_offsets():
    q = torch.from_numpy(np.random.default_rng(3).normal(size=(500, 4)) * 30)
    tau = entropy_temperature(q, 0.25)
    logs = torch.log_softmax(q.double() / tau, -1)
    assert -(logs.exp() * logs).sum(-1).mean().item() == pytest.approx(0.25 * math.log(4), rel=1e-6)
    assert entropy_temperature(q + 1e3, 0.25) == pytest.approx(tau, rel=1e-6)


def test_stored_q_keeps_action_and_gap(tmp_path):
    def store_and_load(q):
        storage.write_arrays(tmp_path / "q.safetensors", {"q": canonical(HEADS["q"], q)[0]})
        return storage.read_arrays(tmp_path / "q.safetensors")[0]["q"]

    check_stored_q(store_and_load)


def test_the_storage_law_can_fail():
    with pytest.raises(AssertionError, match="storage changed"):
        check_stored_q(lambda q: q.astype(np.float16).astype(np.float32))


def test_a_loss_that_sums_over_the_batch_is_caught():
    wrong = replace(LOSSES["kl"], fn=lambda s, labels, head: LOSSES["kl"].fn(s, labels, head).sum().expand(len(s)))
    wrong.fn.__name__ = "summed"
    with pytest.raises(AssertionError, match=r"repeated|gradient|mixes"):
        check_loss(wrong, HEADS["categorical"])


def test_a_cross_entropy_called_kl_is_caught():
    def soft_cross_entropy(s, labels, head):
        return -(labels["params"].exp() * torch.log_softmax(s, -1)).sum(-1)

    with pytest.raises(AssertionError, match="agree"):
        check_loss(replace(LOSSES["kl"], fn=soft_cross_entropy), HEADS["categorical"])


def wrong(name, fn):
    fn.__name__ = f"wrong_{name}"
    return replace(LOSSES[name], fn=fn)


def test_a_batch_loss_that_counts_masked_rows_is_caught():
    def unmasked(student, labels, head, mask):
        return LOSSES["cka"].fn(student, labels, head, torch.ones_like(mask))

    with pytest.raises(AssertionError, match="counts masked rows"):
        check_loss(wrong("cka", unmasked), HEADS["q"])


def test_a_loss_that_ties_members_together_is_caught():
    def tied(student, labels, head):
        return LOSSES["kl"].fn(student, labels, head) * (2 + torch.tanh(student.detach().mean()))

    with pytest.raises(AssertionError, match=r"member of a stack|repeated|mixes|order"):
        check_loss(wrong("kl", tied), HEADS["categorical"])


def test_a_temperature_that_multiplies_the_wrong_axis_is_caught():
    def broadcast(student, labels, head):
        tau = labels["temperature"]
        p, q = (torch.log_softmax(x / tau, -1) for x in (labels["params"], student))
        return tau**2 * (p.exp() * (p - q)).sum(-1)

    with pytest.raises(AssertionError, match="temperature"):
        check_loss(wrong("kd", broadcast), HEADS["categorical"])


def test_equal_rows_have_no_direction_and_no_gradient():
    """The published normalisation divides by 1e-12 there; a layer of dead units would be torn out of nothing."""
    labels = {"feature": torch.randn(1, 32, 6, generator=torch.Generator().manual_seed(0))}
    upstream = torch.randn(32, 32, 6, generator=torch.Generator().manual_seed(1))
    steep = {}
    for name, normalised in (("published", lambda x: torch.nn.functional.normalize(x, dim=-1)), ("ours", unit)):
        towards = torch.zeros(32, 32, 6).requires_grad_()
        steep[name] = torch.autograd.grad((normalised(towards) * upstream).sum(), towards)[0].abs().max().item()
    assert steep["published"] > 1e11
    assert steep["ours"] == 0
    for name in ("relational", "similarity", "cka"):
        point = torch.ones(1, 1, 32, 6).requires_grad_()
        value = LOSSES[name].fn(point, labels, HEADS["q"], torch.ones(1, 32))
        assert torch.autograd.grad(value.sum(), point)[0].abs().max() < 10, name


def test_too_few_actions_are_refused():
    two = Head("categorical", (2,))
    for name in ("dkd", "dist", "standardised"):
        with pytest.raises(InputError, match=f"'{name}' needs a teacher with at least 3 actions; this one has 2"):
            choose(name, two)
        assert choose(name, HEADS["categorical"]) == name
    assert not {"dkd", "dist", "standardised"} & set(fitting(two))


@pytest.mark.parametrize(("name", "kind"), [
    ("regret", "gaussian"), ("kl_gap", "multicategorical"), ("bellman", "categorical"), ("critic_guided", "q"), ("js", "tanh"),
    ("gaussian_nll", "deterministic"), ("dkd", "bernoulli"), ("entropy_regularised", "squashed"),
])  # fmt: skip
def test_what_a_head_cannot_serve_is_refused(name, kind):
    with pytest.raises(InputError, match=f"loss '{name}' needs a teacher with .* this one is {kind}"):
        choose(name, HEADS[kind])


def test_anneal_ends_in_what_an_error_costs():
    for kind in ANNEAL:
        terms = objective.parse("anneal", HEADS[kind])
        assert [term.at(0.0) for term in terms] == [1.0, 0.0]
        assert [term.at(1.0) for term in terms] == [0.0, 1.0]
        assert terms[0].name == AUTO[kind]
        assert {"regret", "critic"} & LOSSES[terms[1].name].needs
    with pytest.raises(InputError, match="this teacher is bernoulli"):
        objective.parse("anneal", HEADS["bernoulli"])


def test_pictures_are_compared_with_pictures():
    with pytest.raises(InputError, match="compares pictures; the student's layer is 8, the teacher's 3 x 4 x 4"):
        LOSSES["attention"].owns((8,), (3, 4, 4))


def test_hyper_parameters_are_settings_and_labels():
    example = example_labels(HEADS["categorical"])
    for name in CONSTANTS:
        assert isinstance(getattr(ImitateSettings(), name), float)
        assert example[name].ndim == 0


def test_ce_and_kl_mix_by_lambda():
    rng = np.random.default_rng(4)
    rows = [torch.from_numpy(rng.normal(size=(1, 20, 5))) for _ in range(2)]
    hard = torch.from_numpy(rng.integers(5, size=(1, 20)))
    batch = Batch("t", rows[0], None, None, {"params": rows[1], "hard": hard})
    value = objective.evaluate(objective.mixture("kl", 0.3), rows[0][None], batch, HEADS["categorical"]).item()
    logs = [torch.log_softmax(x, -1)[0] for x in rows]
    ce = torch.nn.functional.nll_loss(logs[0], hard[0]).item()
    kl = torch.nn.functional.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True).item()
    assert value == pytest.approx(0.3 * ce + 0.7 * kl, rel=1e-9)


def test_a_loss_that_the_teacher_cannot_serve_is_refused():
    with pytest.raises(InputError, match="needs a teacher with q"):
        choose("q_kl", HEADS["categorical"])
    with pytest.raises(InputError, match="did you mean 'gaussian_kl'"):
        choose("gausian_kl", HEADS["gaussian"])


@pytest.mark.parametrize(("teacher", "loss", "student"), [
    ("q", "q_kl", "categorical"), ("gaussian", "executed_huber", "deterministic"), ("squashed", "executed_huber", "tanh"),
    ("tanh", "executed_huber", "tanh"), ("q", "bellman", "q"), ("gaussian", "gaussian_nll", "gaussian"),
    ("squashed", "critic_guided", "tanh"), ("q", "value", "categorical"), ("gaussian", "gaussian_kl", "gaussian"), ("squashed", "squashed_kl", "squashed"),
])  # fmt: skip
def test_student_heads(teacher, loss, student):
    assert student_head([loss], HEADS[teacher]).kind == student
