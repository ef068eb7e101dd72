"""Population-based tuning: factors that matter, copying by return, checkpoints that hold it all."""

from dataclasses import replace
from pathlib import Path

import family_runs
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from limbeck import imitation, objective, storage
from limbeck.contracts import Batch, Head, Spec, View
from limbeck.errors import InputError
from limbeck.imitation import Pace, Table
from limbeck.losses import LOSSES
from limbeck.objective import Term
from limbeck.settings import recipe_from
from limbeck.stages import tuning
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.testing import example_labels

TASK = "toy"
PORT = Port(
    Spec(gs.Box(-3, 3, (5,), np.float32), gs.Discrete(3), TASK), View(), Head("categorical", (3,), start=(0,)), 5
)
CARTPOLE = Path(__file__).parents[1] / "fixtures" / "cartpole_ppo_sb3.zip"
KD = (Term("kd", 1.0),)


def recipe(students=("mlp:8@40",), **imitate):
    values = {
        "teacher": "t",
        "env": "e",
        "students": students,
        "imitate": {"population": True, "loss": "kd", **imitate},
    }
    return recipe_from(values)


def family_of(text="mlp:8@4"):
    family = families.build(parse([text]), {TASK: PORT}, 0)
    tuning.begin(recipe((text,)), family, KD, PORT.head)
    return family


def train(family, temperature=1.0):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    labels = {"params": torch.from_numpy(3 * np.tanh(x @ rng.normal(size=(5, 3))).astype(np.float32))}
    scalars = {"temperature": torch.tensor(temperature)}
    table = Table(TASK, torch.from_numpy(x), torch.zeros(300, dtype=torch.bool), labels, scalars, PORT.head)
    return imitation.imitate(family, {TASK: table}, KD, Pace(20, 64, 3e-3, 1.0), 0, 0)


def test_factors_are_log_uniform_and_the_first_is_one():
    factors = np.log(family_of("mlp:8@200").stacks[0].tuned["temperature"].numpy()) / np.log(4.0)
    assert factors[0] == 0.0
    assert abs(factors).max() <= 1.0
    drawn = np.sort(
        factors[1:] / 2 + 0.5
    )  # Kolmogorov-Smirnov against uniform: 1.95 / sqrt(n) is passed 999 times in 1000
    assert np.abs(drawn - np.arange(1, 200) / 199).max() < 1.95 / 199**0.5


def test_a_tuned_member_is_one_trained_at_its_temperature():
    family = family_of()
    losses = train(family, 1.5)
    rows = family.stacks[0]
    for k, member in enumerate(rows.members):
        alone = families.build([member], {TASK: PORT}, 0)
        its = train(alone, 1.5 * float(rows.tuned["temperature"][k]))
        assert np.allclose(family.row(member.name), alone.row(member.name), atol=2e-5)
        assert losses[member.name] == pytest.approx(its[member.name], rel=1e-4)


def test_the_worst_copy_the_best():
    family = family_of("mlp:8@8")
    train(family)
    rows = family.stacks[0]
    names = [m.name for m in rows.members]
    scores = {name: float(score) for name, score in zip(names, [5, 3, 9, 1, 7, 2, 8, 4], strict=True)}
    before = rows.theta.clone(), rows.mean.clone(), rows.square.clone(), rows.tuned["temperature"].clone()
    copied = tuning.copy(rows, scores, 4.0, np.random.default_rng(0))
    assert copied == {names[3]: names[2], names[5]: names[6]}, "a quarter of eight"
    for now, was in zip((rows.theta, rows.mean, rows.square), before, strict=False):
        assert torch.equal(now[3], was[2])
        assert torch.equal(now[5], was[6])
        untouched = [0, 1, 2, 4, 6, 7]
        assert torch.equal(now[untouched], was[untouched])
    ratio = float(rows.tuned["temperature"][3] / before[3][2])
    at_the_edge = float(rows.tuned["temperature"][3]) in (0.25, 4.0)
    assert at_the_edge or any(ratio == pytest.approx(r) for r in (1.25, 0.8))


def test_equals_are_left_alone():
    rows = family_of().stacks[0]
    assert tuning.copy(rows, dict.fromkeys((m.name for m in rows.members), 1.0), 4.0, np.random.default_rng(0)) == {}


def test_what_can_be_tuned():
    choice, q = Head("categorical", (3,)), Head("q", (3,))
    kl = objective.parse("kl", choice)
    assert tuning.tunable(kl, choice) == ()
    assert tuning.tunable(KD, choice) == ("temperature",)
    assert tuning.tunable((Term("q_kl", 1.0), Term("regret", 1.0)), q) == ("temperature", "regret")


@pytest.mark.parametrize("name", sorted(name for name, e in LOSSES.items() if {"categorical", "q"} & set(e.heads) and e.reads == "params"))  # fmt: skip
@pytest.mark.parametrize("kind", ["categorical", "q"])
def test_a_temperature_is_tunable_exactly_where_it_changes_the_loss(name, kind):
    entry, head = LOSSES[name], Head(kind, (5,))
    if kind not in entry.heads:
        return
    labels = example_labels(head)
    student = torch.from_numpy(np.random.default_rng(0).normal(size=(2, len(labels["params"]), 5))).float()
    values = []
    for factors in ([1.0, 1.0], [1.0, 2.0]):  # of two members
        tau = labels["temperature"] * torch.tensor(factors)
        long = {key: v[None] if v.ndim else v for key, v in labels.items()} | {"temperature": tau[:, None, None, None]}
        batch = Batch(TASK, torch.empty(0), None, None, long)
        values.append(objective.evaluate((Term(name, 1.0),), student[:, None], batch, head))
    assert values[0][0] == values[1][0], "the first member's is as it was"
    assert (values[0][1] != values[1][1]) == ("temperature" in tuning.tunable((Term(name, 1.0),), head))


@pytest.mark.parametrize(("of_q", "of_policy", "more", "words"), [
    ("entropy_regularised", "entropy_regularised + kd", {}, "costs to come of entropy_regularised"),
    ("q_kl", "kd", {"adversarial": 0.5}, "worst inputs of imitate.adversarial"),
])  # fmt: skip
def test_what_is_found_at_one_temperature_is_not_mixed_with_many(of_q, of_policy, more, words):
    head = Head("q", (3,))
    with pytest.raises(InputError, match=words):
        tuning.refuse(recipe(("mlp:8@4",), loss=of_q, **more), objective.parse(of_q, head), head)
    given = recipe(("mlp:8@4",), loss=of_policy, **more)
    tuning.refuse(given, objective.parse(of_policy, PORT.head), PORT.head)


def test_factors_travel_in_the_checkpoint_and_are_dropped_with_their_members():
    family, other = family_of(), family_of()
    family.stacks[0].tuned["temperature"] *= 1.1
    other.from_arrays({key: array.copy() for key, array in family.to_arrays().items()})
    assert torch.equal(other.stacks[0].tuned["temperature"], family.stacks[0].tuned["temperature"])
    kept = family.stacks[0].tuned["temperature"][[1, 3]]
    family.keep(["mlp-8-s1", "mlp-8-s3"])
    assert torch.equal(family.stacks[0].tuned["temperature"], kept)


def test_a_population_on_cartpole_continues_bit_for_bit(tmp_path, monkeypatch):
    options = [
        "imitate.population=true",
        "imitate.loss=kd",
        "imitate.temperature=2",
        "imitate.population_every=1",
        "race.rounds=4",
    ]
    _, whole, done = family_runs.imitated(tmp_path / "a", CARTPOLE, "CartPole-v1", ["mlp:4@4"], options)
    lines = [row for row in storage.read_metrics(tmp_path / "a") if row["stage"] == "population"]
    assert {row["round"] for row in lines} == {0, 1, 2}
    assert len(lines) == 12
    assert all(0.25 <= row["factor_temperature"] <= 4.0 for row in lines)
    assert done.race_steps > 0
    with monkeypatch.context() as patched:
        family_runs.killed_after_round(1, patched)
        with pytest.raises(KeyboardInterrupt):
            family_runs.imitated(tmp_path / "b", CARTPOLE, "CartPole-v1", ["mlp:4@4"], options)
    _, parts, again = family_runs.imitated(tmp_path / "b", CARTPOLE, "CartPole-v1", ["mlp:4@4"], options)
    assert all(np.array_equal(whole.row(m.name), parts.row(m.name)) for m in whole.members)
    assert torch.equal(whole.stacks[0].tuned["temperature"], parts.stacks[0].tuned["temperature"])
    assert replace(again, seconds=0) == replace(done, seconds=0)
    assert lines == [row for row in storage.read_metrics(tmp_path / "b") if row["stage"] == "population"]


@pytest.mark.parametrize(("students", "options", "words"), [
    ("mlp:8@4", ["imitate.population=true"], "nothing to tune in loss 'auto'"),
    ("mlp:8,mlp:4", ["imitate.population=true", "imitate.loss=kd"], "several members of a size"),
    ("nested:8@4", ["imitate.population=true", "imitate.loss=kd"], "nested widths share their numbers"),
    ("mlp:8@4", ["imitate.assistant=0.3"], "there is one size"),
    ("mlp:8,mlp:4", ["imitate.assistant=-1"], "imitate.assistant = -1"),
    ("mlp:8,tree:leaves=8", ["imitate.assistant=0.3"], "there is one size"),
    ("mlp:8,rule:3@4", ["imitate.population=true", "imitate.loss=kd"], "several members of a size that is trained"),
    ("mlp:8@4", ["imitate.population=true", "imitate.loss=kd", "imitate.population_every=12"], "neither after the last of 12"),
    ("mlp:8@4", ["imitate.population=true", "imitate.loss=kd", "imitate.population_every=4"], "race.rounds = 4, 8"),
    ("mlp:8,tree:leaves=8,rule:3", ["collect.student_mode=sampled"], "greedy answer alone and do not say how sure it is (tree:leaves=8, rule:3)"),
])  # fmt: skip
def test_it_is_refused_at_once(students, options, words, refused):
    refused(words, options, students.split(","))
