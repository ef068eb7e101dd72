"""Both parts of the loss on both parts of the data, and the closing measures, of a real teacher and lesser students."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from limbeck import objective, tasks
from limbeck.contracts import Normaliser, View
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import Recipe
from limbeck.stages import labelled
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port
from limbeck.teaching.labelled import ClassifierSettings, train_classifier


@pytest.fixture(scope="module")
def taught():
    task = tasks.resolve("digits")
    found = train_classifier(task, ClassifierSettings(filters=(), hidden=(48,), epochs=12))
    return task, NumpyPolicy(found.blueprint), found.epochs[found.kept - 1]


def scene(task, teacher):
    run = SimpleNamespace(recipe=Recipe("digits.safetensors", "digits"))
    return SimpleNamespace(task=task, teacher=SimpleNamespace(policy=teacher), run=run)


def test_a_round_tells_both_parts_of_the_loss_on_both_parts_of_the_data(taught):
    task, teacher, _ = taught
    family = families.build(parse(["linear@2"]), {"digits": Port(task.spec, View(), teacher.head, 64)}, 0)
    family.normalisers["digits"] = Normaliser(np.zeros(64, np.float32), np.ones(64, np.float32))
    found = labelled.losses(scene(task, teacher), family, objective.mixture("kl", 0.3), 1.0)
    assert list(found) == ["linear-s0", "linear-s1"]
    for row in found.values():
        assert set(row) == {"kd_loss", "hard_loss", "validation_loss", "validation_kd_loss", "validation_hard_loss"}
        whole = 0.7 * row["validation_kd_loss"] + 0.3 * row["validation_hard_loss"]
        assert row["validation_loss"] == pytest.approx(whole, rel=1e-5)
        assert row["hard_loss"] == pytest.approx(np.log(10), abs=0.2), "fresh students know nothing"
    without = labelled.losses(scene(task, teacher), family, objective.mixture("kl", 0.0), 1.0)
    assert set(without["linear-s0"]) == {"kd_loss", "validation_loss", "validation_kd_loss"}
    several = objective.mixture(
        (objective.Term("js", 1.0), objective.Term("kl", 0.5), objective.Term("value", 1.0)), 0.0
    )
    told = labelled.losses(scene(task, teacher), family, several, 1.0)["linear-s0"]
    assert set(told) == {"js_loss", "kl_loss", "validation_loss", "validation_js_loss", "validation_kl_loss"}


def test_the_end_tells_accuracy_and_macro_f1_with_intervals(taught):
    task, teacher, _ = taught
    lesser = NumpyPolicy(train_classifier(task, ClassifierSettings(filters=(), hidden=(8,), epochs=3)).blueprint)
    found = labelled.scores(task, {"teacher": teacher, "small": lesser}, 0)
    rows = task.part("test")
    for name, policy in (("teacher", teacher), ("small", lesser)):
        said = policy(task.inputs[rows], {}, np.ones(450, bool)).params.argmax(axis=1)
        assert found[name]["accuracy"].value == pytest.approx((said == task.labels[rows]).mean())
        assert found[name]["macro_f1"].value == pytest.approx(f1_score(task.labels[rows], said, average="macro"))
        assert all(rate.low < rate.value < rate.high for rate in found[name].values())
    assert found["small"]["accuracy"].high < found["teacher"]["accuracy"].low


def test_environments_have_no_labels():
    task = tasks.resolve("CartPole-v1")
    assert labelled.losses(scene(task, None), None, (), 1.0) == {}
    assert labelled.scores(task, {}, 0) == {}
