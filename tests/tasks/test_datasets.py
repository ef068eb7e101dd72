"""Labelled sets: what they hold, how they are split, what they pay, what they refuse."""

import gymnasium as gym
import numpy as np
import pytest

from limbeck import rollout, seeding, tasks
from limbeck.contracts import Head, PolicyOutput
from limbeck.errors import InputError
from limbeck.tasks.datasets import ATTRIBUTES


def seeds(count, stage="proof"):
    return [seeding.episode_seed(0, stage, i) for i in range(count)]


def test_the_three_forms_of_digits_are_the_same_rows():
    flat, image, several = (tasks.resolve(name) for name in tasks.DIGITS)
    assert flat.spec.observation_space.shape == several.spec.observation_space.shape == (64,)
    assert image.spec.observation_space == gym.spaces.Box(0, 1, (8, 8, 1), np.float32)
    assert np.array_equal(image.inputs.reshape(-1, 64), flat.inputs)
    assert np.array_equal(several.inputs, flat.inputs)
    assert {t.image for t in (flat, image, several)} == {(8, 8, 1)}
    assert several.spec.action_space == gym.spaces.MultiBinary(4)
    assert [t.name for t in (flat, image, several)] == list(tasks.DIGITS)


def test_the_attributes_are_true_of_the_digits():
    digit, several = tasks.resolve("digits").labels, tasks.resolve("digits:attributes").labels
    even, large, prime, loop = several.T
    assert np.array_equal(even, 1 - digit % 2)
    assert np.array_equal(large, digit > 4)
    assert np.array_equal(prime, [all(d % k for k in range(2, d)) and d > 1 for d in digit])
    assert set(digit[loop == 1]) == {0, 6, 8, 9}
    assert tasks.resolve("digits:attributes").label_names == tuple(ATTRIBUTES)


def test_parts_are_disjoint_whole_and_what_the_stages_see():
    task = tasks.resolve("digits")
    parts = [range(len(task.inputs))[task.part(name)] for name in ("train", "validation", "test")]
    assert [*parts[0], *parts[1], *parts[2]] == list(range(1797))
    for stage, part in (("collect", parts[0]), ("select", parts[1]), ("proof", parts[2]), ("gallery", parts[2])):
        assert {task.row(s) for s in seeds(2000, stage)} == set(part)


class Says:
    """Answers each observation with given 0/1 labels."""

    def __init__(self, task, wrong):
        self.spec, self.head, self._wrong = task.spec, Head("bernoulli", (4,), shape=(4,)), wrong
        self._known = {row.tobytes(): labels for row, labels in zip(task.inputs, task.labels, strict=True)}

    def initial_state(self, batch):
        return {}

    def __call__(self, obs, state, first):
        labels = np.array([self._known[row.tobytes()] for row in np.asarray(obs, np.float32)])
        labels[:, : self._wrong] = 1 - labels[:, : self._wrong]
        return PolicyOutput((2.0 * labels - 1).astype(np.float32), {})


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_several_labels_pay_the_share_that_is_right(wrong):
    task = tasks.resolve("digits:attributes")
    played = rollout.play(Says(task, wrong), task, seeds(64))
    assert played.returns == pytest.approx(1 - wrong / 4)
    assert (played.lengths == 1).all()


def test_random_answers_to_yes_or_no_questions_are_half_right():
    task = tasks.resolve("digits:attributes")
    returns = rollout.play(None, task, seeds(2000, "bounds"), mode="uniform").returns
    assert set(np.unique(returns)) == {0, 0.25, 0.5, 0.75, 1}
    assert returns.mean() == pytest.approx(0.5, abs=5 * 0.25 / np.sqrt(2000))


def test_answers_of_several_labels_come_in_rows():
    task = tasks.resolve("digits:attributes")
    lanes = task.lanes(5, lambda lane: seeding.episode_seed(0, "collect", lane))
    step = lanes.start()
    answers = lanes.answers()
    assert answers.shape == (5, 4)
    after = lanes.step(answers)
    assert (after.reward == 1).all()
    assert step.obs.shape == after.obs.shape == (5, 64)


@pytest.mark.parametrize(
    ("inputs", "labels", "classes", "message"),
    [
        (np.zeros((10, 2)), np.zeros(9), None, "do not fit"),
        (np.zeros((10, 2, 2)), np.zeros(10), None, "do not fit"),
        (np.full((10, 2), np.inf), np.zeros(10), None, "NaN or infinite"),
        (np.zeros((10, 2)), np.full(10, 0.5), None, "whole numbers"),
        (np.zeros((10, 2)), np.full(10, np.nan), None, "whole numbers"),
        (np.zeros((10, 2)), np.full(10, 3), 3, "from 3 to 3. Allowed: whole numbers from 0 to 2"),
        (np.zeros((10, 2)), np.full((10, 3), 2), None, "0 to 1, for each of several labels"),
        (np.zeros((10, 2)), np.full(10, -1), None, "from -1 to -1"),
    ],
)
def test_what_is_no_labelled_set_is_refused(inputs, labels, classes, message):
    with pytest.raises(InputError, match=message):
        tasks.labelled("bad", inputs, labels, classes)


def test_images_keep_their_shape():
    task = tasks.labelled("pictures", np.random.default_rng(0).random((20, 4, 6, 3)), np.arange(20) % 2)
    assert task.spec.observation_space.shape == task.image == (4, 6, 3)
    lanes = task.lanes(2, lambda lane: seeding.episode_seed(0, "collect", lane))
    assert lanes.start().obs.shape == (2, 4, 6, 3)
