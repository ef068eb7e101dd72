"""Accuracy, macro-F1 and their intervals against scikit-learn, scipy and counting; losses on held rows."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from limbeck import objective, tasks, teachers
from limbeck.errors import InputError
from limbeck.losses import LOSSES
from limbeck.proof import labels
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teaching.labelled import ClassifierSettings, train_classifier


def answers(rows=300, classes=4, seed=0, several=False):
    rng = np.random.default_rng(seed)
    if several:
        wanted = (rng.random((rows, classes)) < [0.1, 0.5, 0.8, 0.02]).astype(np.int64)
        return np.where(rng.random(wanted.shape) < 0.15, 1 - wanted, wanted), wanted
    wanted = rng.choice(classes, rows, p=[0.6, 0.25, 0.1, 0.05])
    return np.where(rng.random(rows) < 0.2, rng.integers(classes, size=rows), wanted), wanted


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_scikit_learn(several, seed):
    given, wanted = answers(several=several, seed=seed)
    found = labels.scores(given, wanted, 4)
    assert found.exact.value == pytest.approx(accuracy_score(wanted, given))
    assert found.accuracy.value == pytest.approx((given == wanted).mean())
    assert found.macro_f1.value == pytest.approx(f1_score(wanted, given, average="macro"))
    for rate in (found.accuracy, found.macro_f1, found.exact):
        assert 0 <= rate.low <= rate.value <= rate.high <= 1
        assert rate.rows == 300


def test_a_class_that_nobody_mentions_counts_in_no_mean():
    given, wanted = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2])
    assert labels.scores(given, wanted, 5).macro_f1.value == pytest.approx(f1_score(wanted, given, average="macro"))
    assert labels.scores(wanted, wanted, 5).macro_f1.value == 1


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (97, 100), (433, 450), (1, 3)])
def test_wilson_is_the_published_interval(hits, rows):
    found, wanted = labels.wilson(hits, rows), stats.binomtest(hits, rows).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_the_bootstrap_is_that_of_scipy():
    given, wanted = answers(several=True)
    found = labels.scores(given, wanted, 4)

    def f1(index):
        return f1_score(wanted[index], given[index], average="macro")

    other = stats.bootstrap(
        (np.arange(300),), f1, n_resamples=400, method="percentile", vectorized=False, rng=np.random.default_rng(0)
    )
    # two bootstraps of 400 and 2,000 draws: their quantiles agree to a small part of the interval's width
    width = found.macro_f1.high - found.macro_f1.low
    assert found.macro_f1.low == pytest.approx(other.confidence_interval.low, abs=0.15 * width)
    assert found.macro_f1.high == pytest.approx(other.confidence_interval.high, abs=0.15 * width)


def test_rows_are_drawn_whole():
    """Twenty copies of one label are one label's worth of knowledge: the interval must not shrink."""
    given, wanted = (side[:, :1] for side in answers(several=True))
    once = labels.scores(given, wanted, 1).accuracy
    copies = labels.scores(np.tile(given, (1, 20)), np.tile(wanted, (1, 20)), 20).accuracy
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_the_interval_covers_what_it_should():
    """Of 200 samples of 150 rows, 95 % of the intervals hold the true accuracy: 190 +- 3 standard deviations of 3.1."""
    rng = np.random.default_rng(0)
    held = 0
    for hits in rng.binomial(150, 0.9, 200):
        rate = labels.wilson(int(hits), 150)
        held += rate.low <= 0.9 <= rate.high
    assert 180 <= held <= 199


def test_the_same_rows_give_the_same_numbers():
    given, wanted = answers()
    assert labels.scores(given, wanted, 4) == labels.scores(given, wanted, 4)
    assert labels.scores(given, wanted, 4, run_seed=1).macro_f1.low != labels.scores(given, wanted, 4).macro_f1.low


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (np.zeros(3, int), np.zeros(4, int), "do not fit"),
        (np.zeros((3, 2), int), np.zeros(3, int), "do not fit"),
        (np.zeros(0, int), np.zeros(0, int), "do not fit"),
        (np.array([0, 4]), np.array([0, 1]), "outside 0 to 3"),
        (np.array([0, 1]), np.array([0, -1]), "outside 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(given, wanted, message):
    with pytest.raises(InputError, match=message):
        labels.scores(given, wanted, 4)


@pytest.fixture(scope="module")
def quick():
    task = tasks.resolve("digits")
    return task, train_classifier(task, ClassifierSettings(filters=(), hidden=(16,), epochs=4))


def test_a_policy_is_measured_on_the_part_that_is_named(quick):
    task, found = quick
    policy = NumpyPolicy(found.blueprint)
    test = labels.measure(policy, task)
    assert test.accuracy.rows == task.proof_episodes == 450
    assert test.accuracy == test.exact
    assert test.accuracy.interval == "wilson"
    validation = labels.measure(policy, task, "validation")
    assert validation.accuracy.value == pytest.approx(found.epochs[found.kept - 1].validation_accuracy)
    said = policy(task.inputs[task.part("test")], {}, np.ones(450, bool)).params.argmax(axis=1)
    assert test.macro_f1.value == pytest.approx(f1_score(task.labels[task.part("test")], said, average="macro"))


def test_losses_on_held_rows_are_the_objective_and_its_parts(quick):
    task, found = quick
    student = NumpyPolicy(found.blueprint)
    rows = task.part("validation")
    teacher = teachers.load(lambda obs: np.tile(obs[:, :10] * 9, (1, 1)), task.spec).policy
    held = labels.held_out(teacher, task)
    told = labels.losses_on(student, held, objective.mixture("kl", 0.3))
    assert set(told) == {"loss", "kd_loss", "hard_loss"}
    assert told["loss"] == pytest.approx(0.7 * told["kd_loss"] + 0.3 * told["hard_loss"], rel=1e-5)
    assert told["hard_loss"] == pytest.approx(found.epochs[found.kept - 1].validation_loss, rel=1e-5)
    logits = torch.from_numpy(student(task.inputs[rows], {}, np.ones(269, bool)).params)
    wanted = torch.from_numpy(task.inputs[rows][:, :10] * 9)
    kl = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=z) for z in (wanted, logits)))
    assert told["kd_loss"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert set(labels.losses_on(student, held, objective.mixture("kl", 0.0))) == {"loss", "kd_loss"}
    assert set(labels.losses_on(student, held, objective.mixture("kl", 1.0))) == {"loss", "hard_loss"}


def test_a_teacher_agrees_with_itself_on_several_labels():
    task = tasks.resolve("digits:attributes")
    found = train_classifier(task, ClassifierSettings(filters=(), hidden=(8,), epochs=2))
    policy = NumpyPolicy(found.blueprint)
    told = labels.losses_on(policy, labels.held_out(policy, task), objective.mixture("kl", 0.5))
    assert told["kd_loss"] == pytest.approx(0, abs=1e-6)
    assert told["hard_loss"] == pytest.approx(found.epochs[found.kept - 1].validation_loss, rel=1e-5)
    measured = labels.measure(policy, task)
    assert measured.accuracy.value > measured.exact.value
    assert measured.accuracy.interval == "bootstrap"
    assert "bernoulli" in LOSSES["cross_entropy"].heads
