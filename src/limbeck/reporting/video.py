"""Teacher and student side by side on the same seed, as a small mp4: a pure function of policies, task and seed.

Both episodes are played by rollout.play, the one way a policy meets a task; a camera around the environment keeps the
frames. Frames are shrunk and packed as they come, so a long episode does not fill the memory. imageio-ffmpeg is
imported nowhere else. A task that cannot draw is no error: the reason is stored where the page finds it.
"""

from __future__ import annotations

import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import rollout, storage, tasks
from limbeck.contracts import Mode, Policy, Task
from limbeck.errors import EnvironmentFault, missing_library, printable
from limbeck.reporting import lettering, words
from limbeck.tasks.quiet import quiet

SIDE_WIDTH = 320  # pixels at most, per player
STRIP_HEIGHT, TEXT_SCALE = 24, 2
SHOWN_FPS = 25.0  # frames between are skipped
HOLD_SECONDS = 1.0  # the last picture stays that long
LIMIT_BYTES = 1_500_000
QUALITIES = (30, 36, 42, 48)  # x264 crf, tried in this order until the file is small enough
INK, DONE_INK = (236, 238, 240), (150, 156, 164)
Picture = NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True)
class VideoInfo:
    """What the video shows; stored beside it as JSON for the page."""

    path: Path
    student: str
    seed: int
    teacher_mode: str
    teacher_return: float  # up to the last step shown
    student_return: float
    teacher_steps: int
    student_steps: int
    teacher_ended: bool  # False: still running when the video stops
    student_ended: bool
    frames: int
    fps: float
    width: int
    height: int
    size_bytes: int


class CannotDraw(Exception):
    """Why a task gives no pictures, in words for the page."""


def side_by_side(
    teacher: Policy,
    student: Policy,
    task: Task,
    seed: int,
    path: Path,
    teacher_mode: Mode = "greedy",
    max_steps: int = 1000,
    fps: float | None = None,
    *,
    student_name: str = "student",
    run_seed: int = 0,
) -> VideoInfo | None:
    """Write `path` (mp4) and `path` with suffix .json; None, with the reason in the .json, where nothing can be drawn.

    `fps` None: the environment's own render_fps. The student plays greedily, the teacher in `teacher_mode`.
    """
    try:
        _require_encoder()
        info = _film(teacher, student, task, seed, path, teacher_mode, max_steps, fps, student_name, run_seed)
    except (CannotDraw, EnvironmentFault) as error:
        path.unlink(missing_ok=True)  # an older run's video would contradict the reason
        storage.write_json(path.with_suffix(".json"), {"reason": str(error)})
        return None
    storage.write_json(path.with_suffix(".json"), replace(info, path=Path(path.name)))
    return info


def _film(
    teacher: Policy,
    student: Policy,
    task: Task,
    seed: int,
    path: Path,
    teacher_mode: Mode,
    max_steps: int,
    fps: float | None,
    student_name: str,
    run_seed: int,
) -> VideoInfo:
    speed = fps or _check_drawing(task, seed)
    stride = max(1, round(speed / SHOWN_FPS))
    reels = [
        _record(policy, task, seed, mode, run_seed, max_steps, stride)
        for policy, mode in ((teacher, teacher_mode), (student, "greedy"))
    ]
    left, right = reels
    frames = _compose(
        left, right, f"teacher {teacher_mode}" if teacher_mode == "sampled" else "teacher", student_name, speed / stride
    )
    count, (height, width) = _encode(frames, speed / stride, path)
    return VideoInfo(
        path, student_name, seed, teacher_mode, left.returns[-1], right.returns[-1], left.steps, right.steps, left.ended,
        right.ended, count, speed / stride, width, height, path.stat().st_size,
    )  # fmt: skip


# ---------------------------------------------------------------- the camera


@dataclass
class Reel:
    """Packed pictures of one episode with the return so far at each of them."""

    pictures: list[bytes] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    returns: list[float] = field(default_factory=list)
    steps: int = 0
    total: float = 0.0
    ended: bool = False

    def add(self, picture: Picture) -> None:
        if self.shape not in ((), picture.shape):
            raise CannotDraw(f"the pictures change their size from {self.shape} to {picture.shape} within an episode")
        self.shape = picture.shape
        self.pictures.append(zlib.compress(picture.tobytes(), 1))
        self.returns.append(self.total)

    def picture(self, i: int) -> Picture:
        """The i-th picture, or the last one when the episode was shorter."""
        packed = self.pictures[min(i, len(self.pictures) - 1)]
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.shape)


class Camera(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps every `stride`-th picture of an episode and its last one; ends the episode after `max_steps`."""

    def __init__(self, env: gym.Env[Any, Any], reel: Reel, stride: int, max_steps: int) -> None:
        super().__init__(env)
        self._reel, self._stride, self._max_steps = reel, stride, max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        first = self.env.reset(seed=seed, options=options)
        self._reel.add(shrink(frame_of(self.env)))
        return first

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        reel = self._reel
        reel.steps += 1
        reel.total += float(reward)
        reel.ended = bool(terminated or truncated)
        stop = reel.ended or reel.steps >= self._max_steps
        if stop or reel.steps % self._stride == 0:
            reel.add(shrink(frame_of(self.env)))
        return obs, reward, terminated, bool(truncated or (stop and not terminated)), info


def _record(policy: Policy, task: Task, seed: int, mode: Mode, run_seed: int, max_steps: int, stride: int) -> Reel:
    reel = Reel()
    assert isinstance(task, tasks.EnvTask)  # drawing_env has seen to it
    filmed = replace(task, make=lambda: Camera(drawing_env(task), reel, stride, max_steps), pool=None)
    rollout.play(policy, filmed, [seed], mode=mode, run_seed=run_seed, slots=1)
    return reel


def drawing_env(task: Task) -> gym.Env[Any, Any]:
    """The task's environment made to draw, with the same arguments. Raises CannotDraw."""
    if not isinstance(task, tasks.EnvTask):
        raise CannotDraw(f"{printable(task.name)} is not made of single environments that could be drawn")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # drawing without a screen
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on stdout, which may carry JSON
    plain = task.make()
    spec = plain.spec
    plain.close()
    if spec is None:
        raise CannotDraw(
            f"{printable(task.name)} comes from a factory: it has no Gymnasium id to make a drawing copy from"
        )
    try:
        with quiet("mujoco" in str(spec.entry_point)):
            return gym.make(spec, render_mode="rgb_array", disable_env_checker=True)
    except Exception as error:  # any environment may refuse in its own way; the words reach the page
        raise CannotDraw(f"{printable(task.name)} cannot draw: {type(error).__name__} {printable(error)}") from error


def _check_drawing(task: Task, seed: int) -> float:
    """Draw once; the environment's frames per second (30 where it states none)."""
    env = drawing_env(task)
    try:
        env.reset(seed=seed)
        frame_of(env)
    except CannotDraw:
        raise
    except Exception as error:  # as above: missing drivers and libraries show up here
        raise CannotDraw(f"{printable(task.name)} cannot draw: {type(error).__name__} {printable(error)}") from error
    finally:
        env.close()
    stated = env.metadata.get("render_fps")
    return float(stated) if isinstance(stated, (int, float)) and 0 < stated < math.inf else 30.0


def frame_of(env: gym.Env[Any, Any]) -> Picture:
    """What the environment draws now, uint8 [H, W, 3]. Raises CannotDraw for anything else."""
    drawn = np.asarray(env.render())
    if drawn.dtype.kind == "f" and drawn.size and drawn.min() >= 0 and drawn.max() <= 1:  # MinAtar draws shares
        drawn = (255 * drawn).round().astype(np.uint8)
    if drawn.ndim != 3 or drawn.shape[2] != 3 or min(drawn.shape[:2]) < 8 or drawn.dtype != np.uint8:
        raise CannotDraw(f"the environment draws {drawn.dtype} of shape {drawn.shape}, expected uint8 [H, W, 3]")
    return drawn


def shrink(picture: Picture, width: int = SIDE_WIDTH) -> Picture:
    """Block averages (or repeats, for tiny pictures) by whole factors, to at most `width` and even sides.

    >>> shrink(np.zeros((400, 600, 3), np.uint8)).shape, shrink(np.zeros((84, 84, 3), np.uint8)).shape
    ((200, 300, 3), (252, 252, 3))
    """
    down = math.ceil(max(picture.shape[1], picture.shape[0]) / width)
    if down > 1:
        rows, columns = (n // down * down for n in picture.shape[:2])
        blocks = picture[:rows, :columns].reshape(rows // down, down, columns // down, down, 3)
        picture = blocks.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8)
    up = width // max(picture.shape[:2])
    if up > 1:
        picture = picture.repeat(up, axis=0).repeat(up, axis=1)
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


# ---------------------------------------------------------------- composing and encoding


def _compose(left: Reel, right: Reel, left_name: str, right_name: str, fps: float) -> Callable[[], Iterator[Picture]]:
    """A function that yields the frames anew each time, since a second try may be needed at a lower quality."""
    count = max(len(left.pictures), len(right.pictures)) + round(HOLD_SECONDS * fps)

    def frames() -> Iterator[Picture]:
        for i in range(count):
            sides = [_side(reel, i, name) for reel, name in ((left, left_name), (right, right_name))]
            gap = np.zeros((sides[0].shape[0], 4, 3), np.uint8)
            yield np.concatenate([sides[0], gap, sides[1]], axis=1)

    return frames


def _side(reel: Reel, i: int, name: str) -> Picture:
    picture = reel.picture(i)
    over = i >= len(reel.pictures) - 1
    score = words.number(reel.returns[min(i, len(reel.returns) - 1)])
    tail = f" {score}{' ended' if over and reel.ended else ''}"
    room = (picture.shape[1] - 2 * TEXT_SCALE) // (lettering.ADVANCE * TEXT_SCALE) - len(tail)
    ink = DONE_INK if over else INK
    caption = lettering.strip(name[: max(room, 1)] + tail, picture.shape[1], STRIP_HEIGHT, TEXT_SCALE, ink)
    return np.concatenate([caption, picture], axis=0)


def _encode(frames: Callable[[], Iterator[Picture]], fps: float, path: Path) -> tuple[int, tuple[int, int]]:
    """H.264 in mp4, at the first quality that is small enough; (number of frames, (height, width))."""
    for crf in QUALITIES:
        content, count, shape = _encode_once(frames(), fps, crf)
        if len(content) <= LIMIT_BYTES:
            storage.write_bytes(path, content)
            return count, shape
    raise CannotDraw(f"the video stays above {words.size(LIMIT_BYTES)} at the lowest quality; film fewer steps")


def _encode_once(frames: Iterator[Picture], fps: float, crf: int) -> tuple[bytes, int, tuple[int, int]]:
    first = next(frames)
    height, width = first.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "video.mp4"
        writer = _writer(str(target), (width, height), fps, crf)
        writer.send(None)
        count = 0
        try:
            for frame in _chain(first, frames):
                writer.send(np.ascontiguousarray(frame))
                count += 1
        except OSError as error:  # the encoder died, its last words are in the message
            raise CannotDraw(f"the video could not be encoded: {printable(error)}") from error
        finally:
            writer.close()
        return target.read_bytes(), count, (height, width)


def _chain(first: Picture, rest: Iterator[Picture]) -> Iterator[Picture]:
    yield first
    yield from rest


def _writer(target: str, size: Sequence[int], fps: float, crf: int) -> Any:
    import imageio_ffmpeg

    # One thread and no metadata: the same frames give the same bytes.
    fixed = ["-crf", str(crf), "-preset", "veryfast", "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    return imageio_ffmpeg.write_frames(
        target, tuple(size), fps=fps, codec="libx264", pix_fmt_in="rgb24", pix_fmt_out="yuv420p", macro_block_size=2,
        quality=None, ffmpeg_log_level="error", output_params=[*fixed, "-movflags", "+faststart", "-map_metadata", "-1"],
    )  # fmt: skip


def _require_encoder() -> None:
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise CannotDraw(str(missing_library("imageio-ffmpeg", "report", "the side-by-side video"))) from error
