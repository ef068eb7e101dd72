"""Classifiers as teachers: they learn, they freeze into the same function, and say what they are worth."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from limbeck import blueprints, storage, tasks, teachers
from limbeck.contracts import Dense
from limbeck.errors import InputError
from limbeck.proof import labels
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import head_for
from limbeck.teaching import teach
from limbeck.teaching.labelled import ClassifierSettings, Network, classification_loss, train_classifier

QUICK = ClassifierSettings(filters=(), hidden=(16,), epochs=3)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    said = []
    out = tmp_path_factory.mktemp("digits")
    return teach("digits", out=out, algorithm="classifier", on_progress=lambda *row: said.append(row)), said


def test_a_convolutional_classifier_learns_digits(taught):
    teacher, said = taught
    task = tasks.resolve("digits")
    assert teacher.evaluation.low > 0.95 > 0.2 > teacher.random_return
    assert teacher.evaluation.episodes == task.proof_episodes == 450
    blueprint = blueprints.load(teacher.file)[0]
    kinds = [layer.kind for layer in blueprint.layers]
    assert kinds == ["conv", "pool", "conv", "pool", "dense", "dense"]
    assert [layer.weight.shape[-1] for layer in blueprint.layers if layer.kind != "pool"] == [10, 20, 50, 10]
    assert labels.measure(NumpyPolicy(blueprint), task).accuracy.value == pytest.approx(teacher.evaluation.mean)
    assert said[0][0] == task.train_rows
    assert len(said) == ClassifierSettings().epochs


def test_the_sidecar_holds_the_curves_and_the_stated_accuracy(taught):
    teacher, said = taught
    told = json.loads(teacher.sidecar.read_text())
    assert told["sha256"] == teacher.sha256 == storage.sha256(teacher.file)
    epochs = told["epochs"]
    assert [e["number"] for e in epochs] == list(range(1, len(epochs) + 1))
    assert epochs[-1]["loss"] < 0.1 * epochs[0]["loss"]
    best = min(epochs, key=lambda e: e["validation_loss"])
    assert told["kept_epoch"] == best["number"]
    assert [e["validation_accuracy"] for e in epochs] == [accuracy for _, accuracy in said]
    loaded = teachers.load(teacher.file, tasks.resolve("digits").spec)
    assert loaded.info.algorithm == "classifier"
    assert loaded.info.stated["return"]["mean"] == teacher.evaluation.mean


@pytest.mark.parametrize("image", [(28, 28, 1), (8, 8, 1), (9, 11, 3)])
@pytest.mark.parametrize("flat", [True, False])
def test_frozen_layers_are_the_same_function(image, flat):
    rng = np.random.default_rng(0)
    x = rng.random((20, *image)).astype(np.float32)
    task = tasks.labelled("pictures", x.reshape(20, -1) if flat else x, np.arange(20) % 3, 3, image=image)
    torch.manual_seed(0)
    head = head_for(task.spec.action_space)
    network = Network(task, ClassifierSettings(), head)
    blueprint = network.freeze(task, head)
    blueprints.check(blueprint)
    said = NumpyPolicy(blueprint)(task.inputs, {}, np.ones(20, bool)).params
    with torch.inference_mode():
        wanted = network(torch.from_numpy(task.inputs)).numpy()
    assert said == pytest.approx(wanted, abs=1e-5)
    dense = next(layer for layer in blueprint.layers if isinstance(layer, Dense))
    assert dense.inputs == {(28, 28, 1): 320, (8, 8, 1): 80, (9, 11, 3): 80}[image]


def test_several_labels_are_learned_together():
    task = tasks.resolve("digits:attributes")
    found = train_classifier(task, ClassifierSettings(epochs=12))
    assert found.blueprint.head.kind == "bernoulli"
    measured = labels.measure(NumpyPolicy(found.blueprint), task)
    assert measured.accuracy.low > 0.9
    assert measured.macro_f1.low > 0.85
    most = np.maximum(task.labels.mean(axis=0), 1 - task.labels.mean(axis=0)).mean()
    assert measured.accuracy.low > most + 0.2, "better than always giving the more frequent answer"


def test_the_same_seed_gives_the_same_weights_and_touches_nothing_else():
    task = tasks.resolve("digits")
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    one, same, other = (train_classifier(task, QUICK, seed=seed).blueprint for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(one.layers, same.layers, strict=True))
    assert not np.array_equal(one.layers[0].weight, other.layers[0].weight)


def test_the_test_part_is_never_looked_at():
    from dataclasses import replace

    task = tasks.resolve("digits")
    inputs = task.inputs.copy()
    inputs[task.part("test")] = np.nan
    blind = train_classifier(replace(task, inputs=inputs), QUICK)
    seen = train_classifier(task, QUICK)
    assert np.array_equal(blind.blueprint.layers[0].weight, seen.blueprint.layers[0].weight)
    assert blind.epochs == seen.epochs


def test_the_kept_weights_are_those_of_the_best_validation_loss():
    task = tasks.resolve("digits")
    found = train_classifier(task, ClassifierSettings(filters=(), hidden=(64,), epochs=8, learning_rate=0.05))
    assert found.kept == min(found.epochs, key=lambda e: e.validation_loss).number
    rows = task.part("validation")
    logits = NumpyPolicy(found.blueprint)(task.inputs[rows], {}, np.ones(269, bool)).params
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(task.labels[rows]))
    assert loss.item() == pytest.approx(found.epochs[found.kept - 1].validation_loss, rel=1e-5)
    head = head_for(task.spec.action_space)
    assert classification_loss(torch.from_numpy(logits), torch.from_numpy(task.labels[rows]), head) == loss


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"hidden": (0,)}, "a layer's size = 0"),
        ({"filters": (4, 4, 4, 4)}, r"4 convolutions leave nothing of a picture of \(8, 8, 1\)"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_settings_that_build_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        train_classifier(tasks.resolve("digits"), ClassifierSettings(**settings))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": "digits"}, "digits cannot be trained on by ppo. Allowed there: classifier"),
        ({"env": "CartPole-v1", "algorithm": "classifier"}, "CartPole-v1 is no labelled set. Allowed for classifier"),
        ({"env": "digits", "algorithm": "classifier", "env_steps": 100}, "fixed number of epochs"),
        ({"env": "digits", "algorithm": "classifier", "seed": -1}, "seed = -1, allowed 0 to"),
        ({"env": "digits", "algorithm": "clasifier"}, "did you mean 'classifier'"),
    ],
)
def test_teaching_the_wrong_thing_is_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        teach(out=tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_finished_classifier_is_not_overwritten(taught):
    with pytest.raises(InputError, match="holds a measured teacher already"):
        teach("digits", out=taught[0].file.parent, algorithm="classifier")
