"""Three opposite conventions of one weight: the same objective up to a stated factor, in formulas and as recipes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from limbeck import objective, recipes
from limbeck.contracts import Batch, Head
from limbeck.errors import InputError
from limbeck.losses.weights import RANGES, canonical, chosen

HEAD = Head("categorical", (5,))
RECIPES = Path(__file__).parents[2] / "recipes" / "weights"


def example(temperature):
    rng = np.random.default_rng(0)
    teacher, student = (torch.from_numpy(rng.normal(size=(1, 1, 40, 5)) * 2) for _ in range(2))
    hard = torch.from_numpy(rng.integers(5, size=(1, 40)))
    labels = {"params": teacher[0], "hard": hard, "temperature": torch.tensor(temperature, dtype=torch.float64)}
    return student, Batch("toy", student[0], None, None, labels)


def ours(hard_weight, scale, temperature):
    """Value and gradient of scale * ((1 - h) KD + h CE) by the objective that training uses."""
    student, batch = example(temperature)
    student = student.requires_grad_()
    value = scale * objective.evaluate(objective.mixture("kd", hard_weight), student, batch, HEAD).sum()
    return value.item(), torch.autograd.grad(value, student)[0]


def written(convention, weight, tau):
    """The same as a source writes it, in torch's own functions."""
    student, batch = example(tau)
    student = student.requires_grad_()
    rows, teacher = student.reshape(40, 5), batch.labels["params"].reshape(40, 5)
    ce = functional.cross_entropy(rows, batch.labels["hard"].reshape(40))
    soft = (rows / tau).log_softmax(-1), (teacher / tau).log_softmax(-1)
    kl = functional.kl_div(soft[0], soft[1], reduction="batchmean", log_target=True)
    value = {
        "ce": weight * ce + (1 - weight) * kl,
        "task": kl + weight * ce,
        "kd": (1 - weight) * ce + weight * tau**2 * kl,
    }[convention]
    return value.item(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("convention", "weight"), [
    ("ce", 0.0), ("ce", 0.25), ("ce", 1.0), ("task", 0.0), ("task", 1 / 3), ("task", 50.0), ("kd", 0.0), ("kd", 0.75), ("kd", 1.0),
])  # fmt: skip
def test_the_canonical_form_is_what_the_source_writes(convention, weight, tau):
    value, gradient = ours(*canonical(convention, weight, tau), tau)
    wanted, wanted_gradient = written(convention, weight, tau)
    assert value == pytest.approx(wanted, rel=1e-9)
    assert torch.allclose(gradient, wanted_gradient, atol=1e-12)


def test_the_same_number_means_three_things():
    shares = {convention: canonical(convention, 0.9)[0] for convention in RANGES}
    assert shares == pytest.approx({"ce": 0.9, "task": 0.9 / 1.9, "kd": 0.1})


def test_numbers_of_one_objective_have_parallel_gradients():
    """h = 1/4 said three ways at tau = 2; a source without tau^2 has to weigh the task by a quarter as much."""
    said = {"ce": 1 / 13, "task": 1 / 12, "kd": 0.75}
    forms = {convention: canonical(convention, weight, 2.0) for convention, weight in said.items()}
    assert [h for h, _ in forms.values()] == pytest.approx([0.25] * 3)
    gradients = [written(convention, weight, 2.0)[1].reshape(-1) for convention, weight in said.items()]
    for gradient, (_, scale) in zip(gradients, forms.values(), strict=True):
        assert functional.cosine_similarity(gradient, gradients[2], dim=0).item() == pytest.approx(1, abs=1e-12)
        assert (gradient.norm() / gradients[2].norm()).item() == pytest.approx(scale / forms["kd"][1], rel=1e-9)


def test_three_recipes_that_are_one():
    read = {path.stem: recipes.read(path)["imitate"] for path in sorted(RECIPES.glob("*.yaml"))}
    assert sorted(read) == ["alpha_on_kd", "lambda_on_ce", "lambda_on_task"]
    forms = {}
    for name, imitate in read.items():
        assert (imitate["loss"], imitate["temperature"]) == ("kd", 2.0)
        keys = (imitate.get("hard_weight", 0.0), imitate.get("task_weight"), imitate.get("kd_weight"))
        assert sum(bool(key) for key in keys) == 1, "each names its own convention"
        forms[name] = chosen(*keys)
    assert [h for h, _ in forms.values()] == pytest.approx([0.25] * 3)
    assert {name: scale for name, (_, scale) in forms.items()} == pytest.approx(
        {"alpha_on_kd": 1, "lambda_on_ce": 1, "lambda_on_task": 4 / 3}
    )
    values, gradients = zip(*(ours(h, 1.0, 2.0) for h, _ in forms.values()), strict=True)
    assert values == pytest.approx([values[0]] * 3)
    assert all(torch.allclose(gradient, gradients[0]) for gradient in gradients)
    hinton = written("kd", 0.75, 2.0)
    assert values[0] == pytest.approx(hinton[0])
    assert torch.allclose(gradients[0], hinton[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kdd", 0.5), "unknown weight convention 'kdd'; did you mean 'kd'"),
        (("ce", 1.5), "weight 1.5 in convention 'ce'. Allowed: 0 to 1"),
        (("task", -1.0), "weight -1"),
        (("kd", float("nan")), "weight nan"),
        (("ce", 0.5, 0.0), "temperature 0 is not positive"),
    ],
)
def test_what_no_convention_means_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        canonical(*arguments)


def test_a_recipe_weighs_in_one_way():
    assert chosen(0.0, None, None) == (0.0, 1.0)
    assert chosen(0.0, None, 0.0) == (1.0, 1.0)
    with pytest.raises(InputError, match="2 ways at once: hard_weight, kd_weight"):
        chosen(0.3, None, 0.7)
