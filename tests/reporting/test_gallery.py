"""The search for disagreements: every state that differs is found, costs are closed forms, and the states come back."""

from __future__ import annotations

import doctest
import io
import math
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.registration import EnvSpec

from limbeck import rollout, seeding, tasks
from limbeck.contracts import Blueprint, Dense, Head, Policy, Task
from limbeck.proof.regret import Judge
from limbeck.reporting import pictures, video
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import gallery
from limbeck.tasks.datasets import labelled


@pytest.fixture(scope="module")
def cartpole() -> Task:
    return tasks.resolve("CartPole-v1")


def steady(task: Task, left: float, right: float, angle: float = 0.0) -> Policy:
    """Always the same two logits, the right one moved by the pole's angle."""
    weight = np.zeros((4, 2), np.float32)
    weight[2, 1] = angle
    layer = Dense(weight, np.array([left, right], np.float32))
    return NumpyPolicy(Blueprint(task.spec, Head("categorical", (2,)), (layer,)))


def watched(
    student: Policy, teacher: Policy, task: Task, seeds: list[int], judge: Judge | None = None
) -> gallery.Differences:
    watcher = gallery.Differences(teacher, student.head, judge, None)
    rollout.play(student, task, seeds, most=1000, watch=watcher)
    return watcher


def test_examples_of_the_gallery() -> None:
    assert doctest.testmod(gallery).failed == 0


def test_opposite_policies_differ_everywhere_by_their_divergence(cartpole: Task) -> None:
    seeds = [seeding.episode_seed(0, "gallery", i) for i in range(3)]
    found = watched(steady(cartpole, 1.0, 0.0), steady(cartpole, 0.0, 2.0), cartpole, seeds)
    assert found.states == found.different == len(found.found) > 20
    p, q = np.exp([0.0, 2.0]) / np.exp([0.0, 2.0]).sum(), np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    assert found.unit == "nats"
    assert {round(s.cost, 6) for s in found.found} == {round(float((p * np.log(p / q)).sum()), 6)}
    steps = [s.step for s in found.found if s.episode == 1]
    assert steps == list(range(len(steps)))


def test_policies_that_agree_have_no_gallery(cartpole: Task) -> None:
    found = watched(
        steady(cartpole, 1.0, 0.0), steady(cartpole, 3.0, 0.0), cartpole, [seeding.episode_seed(0, "gallery", 0)]
    )
    assert found.states > 0
    assert found.different == 0
    assert found.found == []


def test_a_judge_weighs_the_states_and_what_costs_nothing_is_left_out(cartpole: Task) -> None:
    """Costs are the cart's velocity, so states of positive velocity alone are shown, the fastest first."""
    judge = Judge("fitted", lambda obs, rows, value, acted: np.asarray(obs)[:, 1].astype(np.float64), 0.99)
    found = watched(
        steady(cartpole, 0.0, 1.0), steady(cartpole, 1.0, 0.0), cartpole, [seeding.episode_seed(0, "gallery", 0)], judge
    )
    assert found.unit == "return (fitted)"
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=seeding.episode_seed(0, "gallery", 0))
    velocities, done = [], False
    while not done:
        velocities.append(float(obs[1]))
        obs, _, terminated, truncated, _ = env.step(1)
        done = terminated or truncated
    env.close()
    assert [s.cost for s in found.found] == pytest.approx([v for v in velocities if v > 0])
    assert gallery._costliest(found.found, 1)[0].step == int(np.argmax(velocities))


def test_states_come_back_with_their_pictures(cartpole: Task, tmp_path: Path) -> None:
    """The picture of step 5 is what the environment itself draws after five of the student's actions."""
    student, seed = steady(cartpole, 0.0, 0.0, 30.0), seeding.episode_seed(0, "gallery", 2)
    states = [gallery.Seen(2, step, 1.0, (0.0,), (0.0,)) for step in (5, 0)]
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=seed)
    drawn, seen, acted = [], [], []
    for _ in range(6):
        drawn.append(np.asarray(env.render()))
        seen.append(np.asarray(obs))
        acted.append(int(obs[2] * 30 > 0))
        obs = env.step(acted[-1])[0]
    env.close()
    states = [replace(s, student=(float(acted[s.step]),), teacher=(1.0 - acted[s.step],)) for s in states]
    visit = gallery.Visit(student, cartpole, tmp_path / "gallery" / "m", 0)
    shown, steps = visit.all(states, [0, 0, seed], "nats")
    assert steps == 6
    assert [d.step for d in shown] == [5, 0]
    assert shown[0].picture == "gallery/m-0.jpg"
    assert (tmp_path / "gallery" / "m-0.jpg").read_bytes() == pictures.jpeg(drawn[5])
    assert visit.observations[0]["numbers"] == pytest.approx(seen[5].tolist())


def test_states_that_do_not_come_back_are_not_shown(cartpole: Task, tmp_path: Path) -> None:
    wrong = gallery.Seen(0, 3, 1.0, (0.0,), (1.0,))  # this student never pushes right
    visit = gallery.Visit(steady(cartpole, 1.0, 0.0), cartpole, tmp_path / "m", 0)
    assert visit.all([wrong], [seeding.episode_seed(0, "gallery", 0)], "nats")[0] == []


def test_an_environment_that_cannot_draw_leaves_numbers_and_the_reason(cartpole: Task, tmp_path: Path) -> None:
    blind = replace(cartpole, make=lambda: _without_id(gym.make("CartPole-v1").unwrapped))
    visit = gallery.Visit(steady(cartpole, 1.0, 0.0), blind, tmp_path / "m", 0)
    (shown,), _ = visit.all([gallery.Seen(0, 2, 1.0, (1.0,), (0.0,))], [7], "nats")
    assert shown.picture == ""
    assert len(visit.observations[0]["numbers"]) == 4
    assert "comes from a factory" in visit.reason


class Blinking(CartPoleEnv):
    """Draws twice, then its window is gone; or steps no further than 3 where somebody looks."""

    drawn = 0
    taken = 0
    ends_at = 999

    def render(self) -> np.ndarray:
        Blinking.drawn += 1
        if Blinking.drawn > 2:
            raise RuntimeError("the window is gone")
        return np.zeros((16, 16, 3), np.uint8)

    def step(self, action: int) -> tuple:
        Blinking.taken += 1
        if self.render_mode and Blinking.taken > self.ends_at:
            raise RuntimeError("not while drawing")
        return super().step(action)


def blinking(cartpole: Task, monkeypatch: pytest.MonkeyPatch, ends_at: int = 999) -> Task:
    monkeypatch.setattr(Blinking, "drawn", 0)
    monkeypatch.setattr(Blinking, "taken", 0)
    monkeypatch.setattr(Blinking, "ends_at", ends_at)
    monkeypatch.setitem(gym.registry, "Blinking-v0", EnvSpec("Blinking-v0", Blinking))
    return replace(cartpole, make=lambda: gym.make("Blinking-v0"), pool=None)


def visited(task: Task, place: Path) -> tuple[gallery.Visit, list[str], int]:
    """A student that always pushes left, visited again at steps 0, 2, 4 and 6: its pictures and the steps on the bill."""
    visit = gallery.Visit(steady(task, 1.0, 0.0), task, place / "gallery" / "m", 0)
    shown, steps = visit.all([gallery.Seen(0, step, 1.0, (1.0,), (0.0,)) for step in (0, 2, 4, 6)], [7], "nats")
    assert [d.step for d in shown] == [0, 2, 4, 6]
    return visit, [Path(d.picture).name for d in shown], steps


def test_a_camera_that_breaks_ends_the_pictures_not_the_play(
    cartpole: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit, files, steps = visited(blinking(cartpole, monkeypatch), tmp_path)
    assert files == ["m-0.jpg", "m-1.jpg", "", ""]
    assert steps == Blinking.taken == 7, "every step taken is on the bill, and none is taken twice"
    assert visit.reason == "the environment cannot draw: RuntimeError the window is gone"


def test_a_play_that_breaks_before_the_camera_is_billed_too(
    cartpole: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit, files, steps = visited(blinking(cartpole, monkeypatch, ends_at=3), tmp_path)
    assert files == [""] * 4
    assert steps == Blinking.taken == 4 + 7
    assert visit.reason.startswith("with a camera, ")
    assert "not while drawing" in visit.reason


def _without_id(env: gym.Env) -> gym.Env:
    env.spec = None
    return env


def test_labelled_rows_are_pictures_of_themselves(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((40, 64)).astype(np.float32)
    task = labelled("toy", rows, np.arange(40) % 10, image=(8, 8, 1))
    weight = np.zeros((64, 10), np.float32)
    student = NumpyPolicy(
        Blueprint(task.spec, Head("categorical", (10,)), (Dense(weight, np.eye(10, dtype=np.float32)[3]),))
    )
    visit = gallery.Visit(student, task, tmp_path / "gallery" / "m", 0)
    (shown,), _ = visit.all([gallery.Seen(0, 0, 1.0, (4.0,), (3.0,))], [seeding.episode_seed(0, "gallery", 0)], "nats")
    assert shown.picture == "gallery/m-0.jpg"
    assert (shown.teacher_action, shown.student_action) == ("4", "3")


def test_pictures_are_small_and_colours_stay(tmp_path: Path) -> None:
    frame = np.zeros((400, 600, 3), np.uint8)
    frame[:, 300:] = (200, 40, 90)
    content = pictures.jpeg(frame)
    assert len(content) < 8000
    image = pytest.importorskip("PIL.Image", reason="needs limbeck[report]")
    back = np.asarray(image.open(io.BytesIO(content))).astype(int)
    assert back.shape == (200, 300, 3)
    assert np.abs(back[:, 160:].mean(axis=(0, 1)) - (200, 40, 90)).max() < 4


def test_without_pillow_the_gallery_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(video.CannotDraw, match=r'pip install "limbeck\[report\]"'):
        pictures.jpeg(np.zeros((10, 10, 3), np.uint8))


def test_an_observation_is_a_picture_only_where_it_has_a_height_and_a_width() -> None:
    stack = np.zeros((4, 84, 84), np.uint8)
    stack[3] = 255
    shown = pictures.of_observation(stack)
    assert shown is not None
    assert shown.shape == (84, 84, 3)
    assert shown.min() == 255  # the newest frame
    assert pictures.of_observation(np.zeros((2, 3))) is None
    spread = pictures.of_observation(np.linspace(-1, 1, 64), (8, 8, 1))
    assert spread is not None
    assert (spread.min(), spread.max()) == (0, 255)
    assert math.isclose(float(spread.mean()), 127.5, abs_tol=1)
