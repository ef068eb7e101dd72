"""The share of a teacher's answers that a view leaves open: closed forms, and silence where there is nothing to say."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from limbeck.contracts import Head, Spec, View
from limbeck.dataset import Dataset
from limbeck.proof import blindness
from limbeck.proof.blindness import Blindness, measure, sees_all, sentence

EPISODE = 8
CHOICE = Head("categorical", (3,), start=(0,))
POINT = Head("deterministic", (1,), (-9.0,), (9.0,), shape=(1,))
SEEN = View(keys=("seen",))
STEPS = blindness.STEPS  # of a real measurement


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(blindness, "STEPS", 300)


def recorded(seen, hidden, answers, head):
    """A data set of episodes of EPISODE rows in which `seen` [N, n] and `hidden` [N, m] were observed."""
    params = np.full((len(seen), head.width), -20.0, np.float32)
    if head.discrete:
        params[np.arange(len(seen)), answers] = 0.0
    else:
        params[:] = answers.reshape(len(seen), -1)
    boxes = {"hidden": spaces.Box(-9, 9, hidden.shape[1:]), "seen": spaces.Box(-9, 9, seen.shape[1:])}
    columns = {"obs/hidden": hidden.astype(np.float32), "obs/seen": seen.astype(np.float32), "teacher/params": params}
    columns["first"] = np.arange(len(seen)) % EPISODE == 0
    action = spaces.Discrete(3) if head.discrete else spaces.Box(-9, 9, (1,))
    return Dataset(Path("."), "made up", [columns], [{}]), Spec(spaces.Dict(boxes), action)


def numbers(seed, count=EPISODE * 500, width=3):
    return np.random.default_rng(seed).standard_normal((count, width))


def test_a_hidden_bit_leaves_half_of_the_last_choices_open():
    place, bit = np.tile(np.arange(EPISODE), 500), np.repeat(np.random.default_rng(0).integers(2, size=500), EPISODE)
    answers = np.where(place == EPISODE - 1, bit, 2)
    data, spec = recorded(np.eye(EPISODE)[place], bit[:, None], answers, CHOICE)
    found = measure(data, spec, CHOICE, SEEN, View())
    expected = 1 - 1 / (2 * EPISODE)
    assert found.fires
    assert found.low <= expected <= found.high
    assert abs(found.imitable - expected) < 0.02
    assert abs(found.with_memory - found.imitable) < 0.02
    assert "keys or indices" in sentence(found, student_remembers=False)


def test_a_hidden_number_leaves_its_share_of_the_variance_open():
    seen, hidden = numbers(0), numbers(1, width=1)
    answers = np.sqrt(0.75) * seen[:, 0] + np.sqrt(0.25) * hidden[:, 0]
    found = measure(*recorded(seen, hidden, answers, POINT), POINT, SEEN, View())
    assert found.unit == "variance"
    assert found.fires
    assert found.low <= 0.75 <= found.high
    assert abs(found.imitable - 0.75) < 0.05
    assert "variance of its actions" in sentence(found, student_remembers=False)


def test_what_was_shown_at_the_start_needs_memory_and_that_is_said():
    place, bit = np.tile(np.arange(EPISODE), 500), np.repeat(np.random.default_rng(0).integers(2, size=500), EPISODE)
    shown = np.where(place == 0, 2 * bit - 1, 0)
    answers = np.where(place == EPISODE - 1, bit, 2)
    data, spec = recorded(np.column_stack([np.eye(EPISODE)[place], shown]), bit[:, None], answers, CHOICE)
    found = measure(data, spec, CHOICE, SEEN, View())
    assert found.fires
    assert found.with_memory > 0.99
    assert "a longer history or a gru" in sentence(found, student_remembers=False)
    assert "keys" not in sentence(found, student_remembers=False)
    assert not measure(data, spec, CHOICE, View(keys=("seen",), history=EPISODE), View()).fires
    remembers = measure(data, spec, CHOICE, SEEN, View(), student_remembers=True)
    assert remembers.reason.startswith("not measured: a memory")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("head", [CHOICE, POINT])
def test_hidden_numbers_that_the_teacher_ignores_are_no_gap(head, seed):
    seen, hidden = numbers(seed), numbers(100 + seed, width=2)
    score = seen[:, 0] * seen[:, 1] + np.sin(2 * seen[:, 2])
    answers = np.digitize(score, [-0.5, 0.5]) if head.discrete else score
    found = measure(*recorded(seen, hidden, answers, head), head, SEEN, View(), run_seed=seed)
    assert not found.fires
    assert not found.reason


def test_what_is_merely_hard_to_read_is_no_gap(monkeypatch):
    """The student must learn a wave that the teacher is shown: its network fits worse, and more rows would mend that."""
    monkeypatch.setattr(blindness, "STEPS", STEPS)
    seen = numbers(0, 2000, 6)
    wave = np.sin(3 * seen[:, :1] + seen[:, 1:2])
    data, spec = recorded(seen, wave, wave[:, 0], POINT)
    found = measure(data, spec, POINT, SEEN, View())
    assert found.low < 0.9, "the network on the student's view does miss much"
    assert not found.fires


def test_few_rows_and_wide_views_are_not_measured():
    few, spec = recorded(numbers(0, 160), numbers(1, 160), np.zeros(160, int), CHOICE)
    assert measure(few, spec, CHOICE, SEEN, View()) == Blindness(
        reason="not measured: 160 rows were collected, 2,000 are needed"
    )
    one, spec = recorded(numbers(0, 2400), numbers(1, 2400), np.zeros(2400, int), CHOICE)
    one.shards[0]["first"] = np.arange(2400) == 0
    assert measure(one, spec, CHOICE, SEEN, View()) == Blindness(
        reason="not measured: 6 stretches of play were held out, 24 are needed"
    )
    wide, spec = recorded(numbers(0, 2000, 2501), numbers(1, 2000), np.zeros(2000, int), CHOICE)
    found = measure(wide, spec, CHOICE, SEEN, View())
    assert found.reason == "not measured: a view has more than 2,500 numbers"
    assert not found.fires
    assert sentence(found, student_remembers=False) == ""


def test_equal_views_need_no_measurement():
    data, spec = recorded(numbers(0), numbers(1), np.zeros(EPISODE * 500, int), CHOICE)
    for view in (View(), View(history=4), SEEN):
        assert measure(data, spec, CHOICE, view, view).reason == "the student sees all that the teacher sees"


@pytest.mark.parametrize(
    ("student", "teacher", "memories", "all_"),
    [
        (View(), View(), (False, False), True),
        (View(history=4), View(), (False, False), True),
        (View(), View(history=4), (False, False), False),
        (View(), View(history=4), (True, False), True),
        (View(), View(), (False, True), False),
        (View(), View(), (True, True), True),
        (View(keys=("a",)), View(), (False, False), False),
        (View(), View(keys=("a",)), (False, False), True),
        (View(keys=("a", "b")), View(keys=("a",)), (False, False), True),
        (View(indices=(0, 1)), View(), (False, False), False),
        (View(indices=(0, 1)), View(indices=(1,)), (False, False), True),
        (View(), View(indices=(1,)), (False, False), True),
    ],
)
def test_who_sees_all(student, teacher, memories, all_):
    assert sees_all(student, teacher, *memories) is all_


def test_the_same_run_measures_the_same():
    data, spec = recorded(numbers(0, 2000), numbers(1, 2000, 1), numbers(1, 2000, 1)[:, 0], POINT)
    assert measure(data, spec, POINT, SEEN, View()) == measure(data, spec, POINT, SEEN, View())
