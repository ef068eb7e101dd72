from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from limbeck import seeding, tasks, teachers
from limbeck.contracts import Blueprint, Dense, Episodes, Evaluation, Normaliser, Spec, Teacher, TeacherInfo
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import VerifySettings
from limbeck.spaces import head_for
from limbeck.teachers import verification
from limbeck.teachers.verification import verify

FEW = VerifySettings(episodes=12, random_episodes=12)


class Drift(gym.Env):
    """A point at `scale` times x in -1..1 that an action pushes; the reward is 1 - |x|. Ten steps."""

    scale = 100.0

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.x, self.t = float(np.clip(self.x + 0.5 * action[0], -1, 1)), self.t + 1
        return self._seen(), 1 - abs(self.x), False, self.t == 10, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.scale * self.x], np.float32)


@pytest.fixture
def drift() -> tasks.EnvTask:
    return tasks.resolve(Drift)


def pusher(task: Any, gain: float, scale: float | None = Drift.scale, **stated: Any) -> Teacher:
    """action = gain * x, from an observation that is normalised by `scale` (None: not at all)."""
    norm = Normaliser(np.zeros(1, np.float32), np.full(1, scale, np.float32)) if scale is not None else None
    layer = Dense(np.full((1, 1), gain, np.float32), np.zeros(1, np.float32))
    drawn = Blueprint(task.spec, head_for(task.spec.action_space), (layer,), normaliser=norm)
    return Teacher(NumpyPolicy(drawn), TeacherInfo("t", "limbeck", "t", "", stated), drawn)


# ---------------------------------------------------------------- sound teachers


def test_a_real_teacher_on_its_own_environment(cartpole_zip: Path) -> None:
    task = tasks.resolve("CartPole-v1")
    result = verify(teachers.load(cartpole_zip, task.spec), task, VerifySettings(episodes=8, random_episodes=8), 0)
    assert set(result.evaluations) == {"greedy", "sampled", "random"}
    assert (result.evaluations["greedy"].mean, result.mode) == (500.0, "greedy")
    assert result.evaluations["random"].high < 100
    assert len(result.evaluations["greedy"].returns) == 8
    assert result.env_steps == sum(e.env_steps for e in result.evaluations.values())
    assert result.evaluations["greedy"].env_steps == 8 * 500


def test_the_same_seed_gives_the_same_numbers(drift: tasks.EnvTask) -> None:
    one, two, other = (verify(pusher(drift, -1.0), drift, FEW, seed) for seed in (0, 0, 1))
    assert one == two
    assert one.evaluations["greedy"].returns != other.evaluations["greedy"].returns
    assert set(one.evaluations) == {"greedy", "random"}  # a deterministic head has one mode


def test_a_labelled_set(drift: tasks.EnvTask) -> None:
    task = tasks.digits()
    part = slice(0, task.train_rows)
    classes = np.eye(10, dtype=np.float32)[task.labels[part]]
    weight = np.linalg.lstsq(task.inputs[part], classes, rcond=None)[0]
    teacher = teachers.load(lambda obs: 20 * (obs @ weight), task.spec)
    result = verify(teacher, task, VerifySettings(episodes=100, random_episodes=100), 0)
    assert result.evaluations["greedy"].mean > 0.85
    assert result.evaluations["random"].mean < 0.3
    with pytest.raises(InputError, match="not above random play"):
        verify(teachers.load(lambda obs: np.zeros((len(obs), 10), np.float32), task.spec), task, FEW, 0)


# ---------------------------------------------------------------- complaints and their causes


def test_a_missing_normaliser_is_named(drift: tasks.EnvTask) -> None:
    sound = pusher(drift, -1.5)
    assert verify(sound, drift, FEW, 0).evaluations["greedy"].mean > 7
    bare = pusher(drift, -1.5, None)
    with pytest.raises(InputError) as caught:
        verify(bare, drift, replace(FEW, expect=verify(sound, drift, FEW, 0).evaluations["greedy"].mean), 0)
    assert "perhaps a missing normaliser: observations spread up to" in str(caught.value)
    assert "of the actions sit at a bound" in str(caught.value)
    trained = pusher(drift, -1.5, None, trained_normalised=True)  # better than random play, and still not itself
    with pytest.raises(InputError, match="likely a missing normaliser: give the file that VecNormalize"):
        verify(trained, drift, FEW, 0)
    assert verify(trained, drift, replace(FEW, accept=True), 0).notes[0].startswith("accepted although it was trained")
    given = pusher(drift, -1.5, None, trained_normalised=True, normaliser_sha256="of one that scales rewards only")
    assert verify(given, drift, FEW, 0).mode == "greedy"


def test_a_wrong_environment_is_named(drift: tasks.EnvTask) -> None:
    with pytest.raises(InputError, match="100% of the normalised observations lie beyond 10") as caught:
        verify(pusher(drift, 1.0, 0.01), drift, FEW, 0)
    assert "not above random play" in str(caught.value)
    assert "--accept-teacher" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_constant_action_is_named() -> None:
    task = tasks.resolve("CartPole-v1")
    teacher = teachers.load(lambda obs: np.zeros(len(obs), int), task.spec)
    with pytest.raises(InputError, match="the same action nearly always"):
        verify(teacher, task, FEW, 0)


def test_nothing_unusual_is_said_as_such() -> None:
    task = tasks.resolve("CartPole-v1")
    teacher = teachers.load(lambda obs: (obs[:, 1] < 0).astype(int), task.spec)
    with pytest.raises(InputError, match="nothing unusual in"):
        verify(teacher, task, replace(FEW, expect=1000.0), 0)


def test_expect_overrides_what_is_stated_and_accept_overrides_both(drift: tasks.EnvTask) -> None:
    teacher = pusher(drift, -1.0)
    verify(teacher, drift, FEW, 0, stated=5.0)
    with pytest.raises(InputError, match=r"below the 9\.999 stated"):
        verify(teacher, drift, FEW, 0, stated=9.999)
    verify(teacher, drift, replace(FEW, expect=5.0), 0, stated=9.999)
    with pytest.raises(InputError, match=r"below the 9\.999 stated"):
        verify(teacher, drift, replace(FEW, expect=9.999), 0, stated=5.0)
    accepted = verify(pusher(drift, 1.0), drift, replace(FEW, expect=9.999, accept=True), 0)
    assert len([note for note in accepted.notes if note.startswith("accepted although")]) == 2


def test_the_stated_return_is_found() -> None:
    def info(value: Any) -> TeacherInfo:
        return TeacherInfo("", "", "", "", {"return": value})

    assert verification.stated_return(info({"mean": 268.9, "low": 265.9})) == 265.9
    assert verification.stated_return(info({"mean": 268.9})) == 268.9
    assert verification.stated_return(info(12)) == 12.0
    assert verification.stated_return(info("much")) is None
    assert verification.stated_return(info(float("nan"))) is None
    assert verification.stated_return(TeacherInfo("", "", "", "")) is None


# ---------------------------------------------------------------- numbers


def episodes(returns: list[float]) -> Episodes:
    return Episodes("t", np.arange(len(returns)), np.array(returns), np.ones(len(returns), np.int64))


def test_greedy_is_kept_within_noise() -> None:
    noise = np.array([-1.0, 1.0, -1.0, 1.0, 1.0])
    greedy = episodes([10.0] * 5)
    assert verification.better_mode({"greedy": greedy}) == "greedy"
    assert verification.better_mode({"greedy": greedy, "sampled": episodes(list(10 + noise))}) == "greedy"
    assert verification.better_mode({"greedy": greedy, "sampled": episodes(list(13 + noise))}) == "sampled"
    assert verification.better_mode({"greedy": greedy, "sampled": greedy}) == "greedy"


def test_the_note_on_the_mode_claims_no_more_than_was_measured() -> None:
    def scored(mean: float) -> Evaluation:
        return Evaluation("teacher", "greedy", mean, mean, mean, 1, 1, (mean,))

    ahead = verification._mode_note({"greedy": scored(2.0), "sampled": scored(1.0)}, "greedy")
    behind = verification._mode_note({"greedy": scored(1.0), "sampled": scored(1.1)}, "greedy")
    assert ahead == ("the teacher plays greedy, its better mode (greedy 2, sampled 1)",)
    assert behind == ("the teacher plays greedy, since sampling is not surely better (greedy 1, sampled 1.1)",)


def test_the_interval_covers_the_mean() -> None:
    """Over 400 normal samples of 40 the 95 % interval covers the true mean in 93 % (percentile bootstrap, n = 40)."""
    rng = seeding.generator(0, "select")
    hits = 0
    for number in range(400):
        low, high = verification.bootstrap(rng.normal(3.0, 2.0, 40), number)
        hits += low <= 3.0 <= high
    assert 0.93 - 0.05 < hits / 400 < 0.98  # four standard errors below 0.93; above 0.95 by chance alone
    low, high = verification.bootstrap(np.full(5, 7.0), 0)
    assert (low, high) == (7.0, 7.0)


def test_which_heads_are_random() -> None:
    box, spec = spaces.Box(-1, 1, (2,), np.float32), Spec(spaces.Discrete(2), spaces.Discrete(2))
    assert verification.has_randomness(head_for(spec.action_space))
    assert not verification.has_randomness(head_for(spec.action_space, "q"))
    assert verification.has_randomness(head_for(box, "squashed"))
    assert not verification.has_randomness(head_for(box, "tanh"))
