from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hostile_cases import numpy_rows

from limbeck import distributions, teachers
from limbeck.contracts import Spec, Teacher
from limbeck.errors import InputError
from limbeck.teachers import modules

BOX = spaces.Box(-1.0, 1.0, (5,), np.float32)
WALK = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))
FLAT = numpy_rows(5, 2)


def spec(action: Any, observation: Any = BOX) -> Spec:
    return Spec(observation, action, "toy")


def rows(teacher: Teacher, obs: Any) -> np.ndarray:
    return teacher.policy(obs, {}, np.ones(len(obs), bool)).params


def linear(weight: np.ndarray, dtype: type = np.float32) -> Any:
    return lambda obs: (np.asarray(obs) @ weight).astype(dtype)


def test_the_form_of_the_answer_picks_the_head() -> None:
    wide = numpy_rows(5, 4)
    cases = [
        (linear(wide), spaces.Discrete(4), None, "categorical"),
        (linear(wide), spaces.Discrete(4), "q", "q"),
        (lambda obs: (obs[:, 0] > 0).astype(int), spaces.Discrete(4), None, "categorical"),
        (linear(wide), spaces.MultiDiscrete([2, 2]), None, "multicategorical"),
        (lambda obs: (obs[:, :2] > 0).astype(int), spaces.MultiDiscrete([2, 2]), None, "multicategorical"),
        (linear(wide), spaces.MultiBinary(4), None, "bernoulli"),
        (lambda obs: obs[:, :4] > 0, spaces.MultiBinary(4), None, "bernoulli"),
        (linear(FLAT), WALK, None, "deterministic"),
        (linear(FLAT), WALK, "tanh", "tanh"),
        (linear(wide), WALK, None, "gaussian"),
        (linear(wide), WALK, "squashed", "squashed"),
        (lambda obs: (obs[:, :2], np.ones_like(obs[:, :2])), WALK, None, "gaussian"),
    ]
    for function, action, kind, head in cases:
        assert teachers.load(function, spec(action), kind=kind).policy.head.kind == head


def test_actions_logits_probabilities_and_mean_std_mean_what_they_say() -> None:
    obs = numpy_rows(200, 5, seed=3)
    logits = obs @ numpy_rows(5, 3)
    by_logits = teachers.load(linear(numpy_rows(5, 3)), spec(spaces.Discrete(3, start=2)))
    assert np.array_equal(distributions.act(by_logits.policy.head, rows(by_logits, obs)), logits.argmax(1) + 2)

    by_actions = teachers.load(lambda o: (o @ numpy_rows(5, 3)).argmax(1) + 2, spec(spaces.Discrete(3, start=2)))
    assert np.array_equal(distributions.act(by_actions.policy.head, rows(by_actions, obs)), logits.argmax(1) + 2)
    sure = np.exp(distributions.canonical(by_actions.policy.head, rows(by_actions, obs))[0]).max(axis=1)
    assert sure.min() > 1 - 1e-6

    def softmax(o: np.ndarray) -> np.ndarray:
        e = np.exp(o @ numpy_rows(5, 3))
        return e / e.sum(1, keepdims=True)

    by_share = teachers.load(softmax, spec(spaces.Discrete(3)), kind="probabilities")
    assert np.allclose(distributions.kl(by_share.policy.head, rows(by_share, obs), logits), 0, atol=1e-5)

    spread = teachers.load(lambda o: (o[:, :2], 0.5 * np.ones((len(o), 2))), spec(WALK))
    assert np.allclose(rows(spread, obs)[:, 2:], np.log(0.5))
    pairs = teachers.load(lambda o: (o[:, :2] > 0).astype(int), spec(spaces.MultiDiscrete([2, 3])))
    assert np.array_equal(distributions.act(pairs.policy.head, rows(pairs, obs)), obs[:, :2] > 0)
    bits = teachers.load(lambda o: o[:, :3] > 0, spec(spaces.MultiBinary(3)))
    assert np.array_equal(distributions.act(bits.policy.head, rows(bits, obs)), obs[:, :3] > 0)


def test_a_module_plays_as_it_does_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    assert module.training
    teacher = teachers.load(module, spec(spaces.Discrete(3)))
    obs = numpy_rows(20, 5)
    with torch.no_grad():
        wanted = module.eval()(torch.tensor(obs)).numpy()
    assert np.allclose(rows(teacher, obs), wanted, atol=1e-6)
    assert teacher.info.format == "torch"
    assert all(parameter.requires_grad for parameter in module.parameters())
    module[0].weight.data.zero_()
    assert np.allclose(rows(teacher, obs), wanted, atol=1e-6), "the teacher changed with the module"
    again = teachers.load(module, spec(spaces.Discrete(3)))
    assert again.info.sha256 != teacher.info.sha256


def test_a_module_sees_shaped_one_hot_and_dict_observations() -> None:
    shaped = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 2), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    plane = spaces.Box(0, 255, (2, 3), np.uint8)
    assert rows(teachers.load(shaped, spec(spaces.Discrete(2), plane)), np.zeros((4, 2, 3), np.uint8)).shape == (4, 2)
    one_hot = torch.nn.Linear(6, 2)
    given = teachers.load(one_hot, spec(spaces.Discrete(2), spaces.Discrete(6, start=1)))
    expected = (one_hot.weight[:, 2] + one_hot.bias).detach().numpy()
    assert np.allclose(rows(given, np.array([3])), expected, atol=1e-6)

    class Pair(torch.nn.Module):
        def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
            return obs["a"] + obs["b"][:, :2]

    both = spaces.Dict({"a": spaces.Discrete(2), "b": BOX})
    teacher = teachers.load(Pair(), spec(spaces.Discrete(2), both))
    obs = {"a": np.array([0, 1, 1]), "b": numpy_rows(3, 5)}
    params = teacher.policy(obs, {}, np.ones(3, bool)).params
    assert np.allclose(params, np.eye(2)[[0, 1, 1]] + obs["b"][:, :2])


@pytest.mark.parametrize(
    ("function", "action", "kind", "what"),
    [
        (linear(numpy_rows(5, 3)), spaces.Discrete(4), None, r"Needed: int \[B\] actions, or float \[B, 4\] logits"),
        (linear(numpy_rows(5, 3)), WALK, None, r"float \[B, 2\] actions"),
        (linear(FLAT), WALK, "gaussian", "Needed"),
        (linear(FLAT), WALK, "categorical", "cannot act"),
        (linear(FLAT), WALK, "probabilities", "no continuous action"),
        (linear(FLAT), spaces.Discrete(2), "nonsense", "unknown kind"),
        (linear(FLAT), spaces.Discrete(2), "probabilities", "add to 1"),
        (lambda obs: np.full((len(obs), 2), np.nan, np.float32), WALK, None, "NaN"),
        (lambda obs: np.full(len(obs), 7), spaces.Discrete(2), None, "outside the action space"),
        (lambda obs: (obs[:, :2], -np.ones((len(obs), 2))), WALK, None, "must be positive"),
        (lambda obs: "left", spaces.Discrete(2), None, "Allowed: one array"),
        (lambda obs: (obs, obs, obs), spaces.Discrete(2), None, "Allowed: one array"),
        (lambda obs: (np.zeros(len(obs), int), None), spaces.Discrete(2), None, "Allowed: one array"),
        (lambda obs: obs[0, :2], WALK, None, "Needed"),
        (lambda obs: 1 / 0, WALK, None, "raised ZeroDivisionError"),
        (linear(FLAT), spaces.Box(-np.inf, np.inf, (2,), np.float32), "tanh", "finite action bounds"),
    ],
)
def test_answers_that_do_not_fit_say_what_does(function: Any, action: Any, kind: str | None, what: str) -> None:
    with pytest.raises(InputError, match=what):
        teachers.load(function, spec(action), kind=kind)


def test_randomness_memory_and_mixed_rows_are_found() -> None:
    rng, count = np.random.default_rng(0), iter(range(10**9))
    batch_norm = torch.nn.Sequential(torch.nn.BatchNorm1d(5, track_running_stats=False), torch.nn.Linear(5, 2))
    for source in (
        lambda obs: rng.standard_normal((len(obs), 2)),
        lambda obs: obs[:, :2] + next(count),
        lambda obs: obs[:, :2] - obs[:, :2].mean(0),
        batch_norm,
    ):
        with pytest.raises(InputError, match=r"two answers|raised ValueError"):
            teachers.load(source, spec(WALK))


def test_an_answer_that_turns_bad_later_is_refused() -> None:
    teacher = teachers.load(lambda obs: np.where(obs[:, :2] > 5, np.nan, obs[:, :2]), spec(WALK))
    with pytest.raises(InputError, match="NaN"):
        rows(teacher, np.full((3, 5), 9, np.float32))


def test_nan_in_a_module_names_the_tensor() -> None:
    module = torch.nn.Linear(5, 2)
    module.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="bias holds NaN"):
        teachers.load(module, spec(spaces.Discrete(2)))


def test_an_imported_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "class P:\n    @staticmethod\n    def act(obs):\n        return obs[:, :2]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    teacher = teachers.load("mine_for_test:P.act", spec(WALK))
    assert teacher.policy.head.kind == "deterministic"
    for wrong in ("mine_for_test:nothing", "no_such_module_here:x"):
        with pytest.raises(InputError, match="cannot be imported"):
            teachers.load(wrong, spec(WALK))
    sys.modules.pop("mine_for_test")


def test_what_is_no_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="Name the environment"):
        teachers.load(lambda obs: obs)
    with pytest.raises(InputError, match="a int is no teacher"):
        teachers.load(3, spec(WALK))
    with pytest.raises(InputError, match="normaliser"):
        teachers.load(linear(FLAT), spec(WALK), normaliser="x.pkl")
    assert set(modules.KINDS) >= {"categorical", "q", "probabilities"}
