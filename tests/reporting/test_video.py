"""A real video of real episodes, read back; and tasks that cannot draw."""

from __future__ import annotations

import doctest
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest

from limbeck import rollout, seeding, spaces, tasks
from limbeck.contracts import Array, Blueprint, Dense, Task
from limbeck.errors import InputError
from limbeck.reporting import side_by_side, video
from limbeck.runtimes.numpy import NumpyPolicy

SEED = seeding.episode_seed(0, "video", 0)


def linear(task: Task, weight: Any) -> NumpyPolicy:
    head = spaces.head_for(task.spec.action_space)
    layer = Dense(np.asarray(weight, np.float32), np.zeros(head.width, np.float32))
    return NumpyPolicy(Blueprint(task.spec, head, (layer,)))


@pytest.fixture(scope="module")
def cartpole() -> Task:
    return tasks.resolve("CartPole-v1")


@pytest.fixture(scope="module")
def balancer(cartpole: Task) -> NumpyPolicy:
    return linear(cartpole, [[0, 0.1], [0, 0.3], [0, 1], [0, 1]])  # pushes towards the side the pole falls to


@pytest.fixture(scope="module")
def clumsy(cartpole: Task) -> NumpyPolicy:
    return linear(cartpole, np.zeros((4, 2)))  # always pushes left: falls within a dozen steps


def test_video_shows_the_same_episodes_that_rollout_plays(
    tmp_path: Path, cartpole: Task, balancer: NumpyPolicy, clumsy: NumpyPolicy
) -> None:
    path = tmp_path / "video.mp4"
    info = side_by_side(balancer, clumsy, cartpole, SEED, path, max_steps=100, student_name="linear-s1")
    assert info is not None
    fallen = rollout.play(clumsy, cartpole, [SEED])
    assert (info.student_steps, info.student_return) == (fallen.lengths[0], fallen.returns[0])
    assert info.student_ended
    assert (info.teacher_steps, info.teacher_return, info.teacher_ended) == (100, 100.0, False)
    assert info.fps == 25.0  # every second of CartPole's 50 frames a second
    assert info.frames == 1 + 100 // 2 + 25  # the start, every second step, a second of stillness
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == info.frames
    assert seconds == pytest.approx(info.frames / 25, abs=0.1)
    assert path.stat().st_size == info.size_bytes < 1_500_000
    told = json.loads((tmp_path / "video.json").read_text())
    assert told["path"] == "video.mp4"
    assert told["seed"] == SEED


def test_decoded_frames_hold_both_players_and_captions(
    tmp_path: Path, cartpole: Task, balancer: NumpyPolicy, clumsy: NumpyPolicy
) -> None:
    info = side_by_side(balancer, clumsy, cartpole, SEED, tmp_path / "v.mp4", max_steps=60)
    assert info is not None
    frames = decode(tmp_path / "v.mp4", info)
    half = info.width // 2
    assert np.abs(frames[0, 24:, : half - 2] - frames[0, 24:, half + 2 :]).mean() < 1  # the same start
    assert np.abs(frames[-1, 24:, : half - 2] - frames[-1, 24:, half + 2 :]).mean() > 1
    captions = frames[:, :24]
    assert captions.max() > 180  # letters
    assert np.abs(captions[0] - captions[20]).max() > 100  # the returns so far change
    frozen = frames[len(frames) // 2 :, 24:, half + 2 :]  # the fallen student holds its last picture
    assert np.abs(frozen[0] - frozen[-1]).mean() < 2


def decode(path: Path, info: video.VideoInfo) -> Array:
    reader = imageio_ffmpeg.read_frames(str(path))
    next(reader)
    return np.stack([np.frombuffer(f, np.uint8).reshape(info.height, info.width, 3).astype(int) for f in reader])


def test_video_is_a_pure_function_of_its_arguments(
    tmp_path: Path, cartpole: Task, balancer: NumpyPolicy, clumsy: NumpyPolicy
) -> None:
    made = []
    for name in ("a.mp4", "b.mp4"):
        side_by_side(balancer, clumsy, cartpole, SEED, tmp_path / name, "sampled", max_steps=20)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_a_file_that_is_too_large_is_encoded_again(
    tmp_path: Path, cartpole: Task, balancer: NumpyPolicy, clumsy: NumpyPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = side_by_side(balancer, clumsy, cartpole, SEED, tmp_path / "a.mp4", max_steps=40)
    assert best is not None
    monkeypatch.setattr(video, "LIMIT_BYTES", best.size_bytes - 1)
    smaller = side_by_side(balancer, clumsy, cartpole, SEED, tmp_path / "b.mp4", max_steps=40)
    assert smaller is not None
    assert smaller.size_bytes < best.size_bytes
    monkeypatch.setattr(video, "LIMIT_BYTES", 100)
    assert side_by_side(balancer, clumsy, cartpole, SEED, tmp_path / "c.mp4", max_steps=40) is None
    assert "film fewer steps" in reason(tmp_path / "c.json")


def reason(path: Path) -> str:
    told: str = json.loads(path.read_text())["reason"]
    return told


class Painter(gym.Env[Any, Any]):
    """Two-step episodes; the pictures are whatever `paint` gives for the step."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, paint: Callable[[int], Any], render_mode: str | None = None) -> None:
        self.paint, self.render_mode, self.at = paint, render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at += 1
        return np.zeros(2, np.float32), 0.5, self.at == 2, False, {}

    def render(self) -> Any:
        return self.paint(self.at)


def canvas(at: int) -> Array:
    return np.full((40, 60, 3), 100 * at, np.uint8)


def fail(at: int) -> Array:
    raise OSError("no display \x1b[31m")


UNDRAWABLE: dict[str, Callable[[int], Any]] = {
    "expected uint8": lambda at: None,
    "expected uint8 [H, W, 3]": lambda at: np.zeros((4, 4, 3), np.uint8),
    r"cannot draw: OSError no display \x1b": fail,
    "change their size": lambda at: np.zeros((40 + 40 * at, 60, 3), np.uint8),
}


@pytest.fixture
def painter() -> Iterator[Callable[[Callable[[int], Any]], Task]]:
    """Makes a registered task with the given pictures."""

    def make(paint: Callable[[int], Any]) -> Task:
        gym.register("Painter-v0", lambda render_mode=None: Painter(paint, render_mode))
        return tasks.resolve("Painter-v0")

    yield make
    gym.registry.pop("Painter-v0", None)


def still(task: Task) -> NumpyPolicy:
    return linear(task, np.zeros((spaces.flat_size(task.spec.observation_space), 2)))


def test_an_environment_without_a_stated_speed_gets_thirty_frames(tmp_path: Path, painter: Any) -> None:
    task = painter(canvas)
    info = side_by_side(still(task), still(task), task, SEED, tmp_path / "v.mp4")
    assert info is not None
    assert (info.fps, info.teacher_return, info.frames) == (30.0, 1.0, 3 + 30)


def test_pictures_of_shares_are_drawn_as_bytes(tmp_path: Path, painter: Any) -> None:
    """MinAtar draws floats from 0 to 1."""
    task = painter(lambda at: np.full((40, 60, 3), 0.5 * at))
    assert side_by_side(still(task), still(task), task, SEED, tmp_path / "v.mp4") is not None
    beyond = painter(lambda at: np.full((40, 60, 3), 1.5))
    assert side_by_side(still(beyond), still(beyond), beyond, SEED, tmp_path / "w.mp4") is None
    assert "float64" in reason(tmp_path / "w.json")


@pytest.mark.parametrize("words", UNDRAWABLE)
def test_environments_that_fail_to_draw_give_a_reason(tmp_path: Path, painter: Any, words: str) -> None:
    task = painter(UNDRAWABLE[words])
    assert side_by_side(still(task), still(task), task, SEED, tmp_path / "v.mp4") is None
    assert words in reason(tmp_path / "v.json")


def test_tasks_that_cannot_draw_give_a_reason_and_no_stale_video(tmp_path: Path) -> None:
    gym.register("Blind-v0", lambda: Painter(canvas))  # takes no render_mode
    try:
        cases = {
            "not made of single environments": tasks.labelled("toy", np.eye(8), np.arange(8) % 2),
            "comes from a factory": tasks.resolve(lambda: Painter(canvas)),
            "cannot draw: TypeError": tasks.resolve("Blind-v0"),
        }
        for i, (words, task) in enumerate(cases.items()):
            path = tmp_path / f"{i}.mp4"
            path.write_bytes(b"older")
            assert side_by_side(still(task), still(task), task, SEED, path) is None
            assert words in reason(path.with_suffix(".json"))
            assert not path.exists()
    finally:
        gym.registry.pop("Blind-v0")


def test_without_the_encoder_the_reason_names_the_install_line(
    tmp_path: Path, cartpole: Task, balancer: NumpyPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert side_by_side(balancer, balancer, cartpole, SEED, tmp_path / "v.mp4") is None
    assert 'pip install "limbeck[report]"' in reason(tmp_path / "v.json")


def test_a_policy_for_another_task_is_an_error_not_a_reason(tmp_path: Path, cartpole: Task) -> None:
    other = linear(tasks.resolve("MountainCar-v0"), np.zeros((2, 3)))
    with pytest.raises(InputError):
        side_by_side(other, other, cartpole, SEED, tmp_path / "v.mp4", max_steps=5)


def test_environment_arguments_reach_the_drawing_copy() -> None:
    task = tasks.resolve("CartPole-v1", sutton_barto_reward=True)
    env = video.drawing_env(task)
    try:
        assert env.spec is not None
        assert env.spec.kwargs["sutton_barto_reward"] is True
        assert env.render_mode == "rgb_array"
    finally:
        env.close()


def test_shrink_averages_blocks_and_keeps_even_sides() -> None:
    picture = np.zeros((10, 642, 3), np.uint8)
    picture[:, ::3] = 90
    small = video.shrink(picture)
    assert small.shape == (2, 214, 3)
    assert (small == 30).all()
    assert video.shrink(np.zeros((211, 160, 3), np.uint8)).shape == (210, 160, 3)


def test_examples() -> None:
    assert doctest.testmod(video).failed == 0
