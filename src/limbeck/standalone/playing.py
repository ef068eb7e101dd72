"""`limbeck play`: a student plays live in the browser, its environment here or, for CartPole, in the page as well."""

from __future__ import annotations

import base64
import math
import shlex
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import exporters, spaces, storage, tasks
from limbeck.contracts import Array, Step, Task
from limbeck.errors import EnvironmentFault, InputError, printable, unknown
from limbeck.exporters.contract import Contract, action_count
from limbeck.reporting.video import CannotDraw, drawing_env, shrink
from limbeck.runs import RESULT, Tell
from limbeck.standalone import playpage
from limbeck.standalone.folders import finished, run_of, task_of
from limbeck.standalone.playpage import CARTPOLE, World
from limbeck.standalone.serving import Answer, Server
from limbeck.tasks import EnvLanes, EnvTask

STARTS = 100  # seeds whose first states the page of CartPole holds
MOST_SEED = 2**31 - 1
WIDEST = 640  # pixels of a streamed picture
LONGEST_WAIT = 0.5  # seconds without a look at signals


@dataclass(frozen=True)
class Episode:
    """One episode as the page played it."""

    seed: int
    total: float  # return, undiscounted
    steps: int
    pushes: int = 0  # times that somebody pushed the cart


@dataclass(frozen=True)
class Played:
    """The page that was written, or what was played while it was served."""

    page: Path | None
    episodes: tuple[Episode, ...] = ()


def play(source: str, env: str | None, seed: int, port: int, out: Path | None, tell: Tell) -> Played:
    """Serve the page of an artefact until Ctrl-C, or write it to `out`."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"--seed {seed} is out of range. Allowed: 0 to {MOST_SEED:,}.")
    folder, run = _artefact(source)
    contract = _contract(folder, run)
    task = _stepped(task_of(contract.spec, run or run_of(folder), env))
    if task.name == CARTPOLE and _is_plain(task):
        world = _cartpole(task, seed)
        if out is not None:
            storage.write_text(out, playpage.write(folder, world, seed, served=False))
            return Played(out)
        return _serve(folder, world, seed, port, {}, tell)
    if out is not None:
        raise InputError(
            f"--out was given for {printable(task.name)}: a page alone holds the dynamics of {CARTPOLE} only. Leave it out, and the environment is streamed."
        )
    with _streamed(task, contract, seed) as stage:
        return _serve(folder, stage.world, seed, port, {"reset": stage.reset, "step": stage.step}, tell)


# ---------------------------------------------------------------- what is played


def _artefact(source: str) -> tuple[Path, Path | None]:
    """The artefact folder, and the run it belongs to."""
    text, _, member = source.rpartition(":") if not Path(source).is_dir() else (source, "", "")
    folder = Path(text)
    if not text or not folder.is_dir():
        raise InputError(
            f"nothing to play is at {printable(source)}. Give an artefact folder, a run folder, or RUN:MEMBER."
        )
    if not (folder / RESULT).is_file():
        if member:
            raise InputError(f"{printable(text)} is no finished run, so it has no member {printable(member)!r}.")
        return folder, None
    members = finished(folder).members
    names = [one.name for one in members]
    if member and member not in names:
        raise unknown("member", member, names)
    proved = [one.name for one in members if one.proof is not None and one.proof.verdict == "proved"]
    return folder / "artifacts" / (member or (proved or names)[-1]), folder


def _contract(folder: Path, run: Path | None) -> Contract:
    """The contract of an artefact that holds the module, and whose files are what they were."""
    contract = exporters.contract.intact(folder)
    if "wasm" not in contract.targets:
        around = run_of(folder) if run is None and folder.resolve().parent.name == "artifacts" else run
        of_run = around is not None and (around / RESULT).is_file()
        what = f"{_quoted(around)} --members {_quoted(folder.resolve().name)}" if of_run else "POLICY.safetensors"
        raise InputError(
            f"{printable(folder)} holds {', '.join(map(printable, contract.targets))}, wasm is needed. Run: limbeck export {what} --to wasm"
        )
    return contract


def _quoted(word: object) -> str:
    return shlex.quote(printable(word))


def _stepped(task: Task) -> EnvTask:
    if not isinstance(task, EnvTask):
        raise InputError(
            f"{printable(task.name)} is no environment that is stepped one by one. Name a Gymnasium id with --env."
        )
    return task


# ---------------------------------------------------------------- CartPole in the page


def _is_plain(task: Task) -> bool:
    """Whether nothing is around CartPole that the page would not know."""
    if not isinstance(task, EnvTask):
        return False
    env = task.make()
    try:
        return env.spec is not None and not env.spec.additional_wrappers and not env.spec.kwargs
    finally:
        env.close()


def _cartpole(task: Task, seed: int) -> World:
    """The constants of Gymnasium's environment, and the states its resets begin with."""
    assert isinstance(task, EnvTask)
    env = task.make()
    pole: Any = env.unwrapped
    names = {"gravity": "gravity", "masspole": "masspole", "totalMass": "total_mass", "length": "length", "tau": "tau",
             "polemassLength": "polemass_length", "forceMag": "force_mag", "xThreshold": "x_threshold",
             "thetaThreshold": "theta_threshold_radians"}  # fmt: skip
    physics = {name: float(getattr(pole, its)) for name, its in names.items()}
    if env.spec and env.spec.max_episode_steps:
        physics["maxSteps"] = float(env.spec.max_episode_steps)
    starts = {}
    for one in range(seed, min(seed + STARTS, MOST_SEED)):
        env.reset(seed=one)
        starts[one] = [float(v) for v in pole.state]
    fps = float(env.metadata.get("render_fps", 50))
    env.close()
    return World(fps, 2.0, physics, starts)


# ---------------------------------------------------------------- environments that are streamed


@dataclass
class Stage:
    """One environment and the episode that the page plays in it."""

    lanes: EnvLanes
    contract: Contract
    world: World
    seed: int | None = None  # of the episode that begins next
    episode: int = 0  # how many were begun; a page that was overtaken by another asks for an older one
    over: bool = True
    total: float = field(default=0.0)

    def reset(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the episode of a seed."""
        seed = body.get("seed")
        if type(seed) is not int or not 0 <= seed <= MOST_SEED:
            raise InputError(f"seed {printable(seed)} is none. Allowed: 0 to {MOST_SEED:,}.")
        self.seed, self.episode, self.over, self.total = seed, self.episode + 1, False, 0.0
        return {"episode": self.episode, **self._seen(self.lanes.start(), drawn=True)}

    def step(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One step with the page's action; `drawn`: with a picture."""
        if body.get("episode") != self.episode:
            raise InputError("another page plays this environment now. Reload this one to take it back.")
        if self.over:
            raise InputError("the episode is over. Begin another.")
        step = self.lanes.step(self._action(body.get("action")))
        self.total += float(step.reward[0])
        self.over = bool(step.terminated[0] or step.truncated[0])
        ended = {"terminated": bool(step.terminated[0]), "truncated": bool(step.truncated[0])}
        shown = self._seen(step, drawn=bool(body.get("drawn")) or self.over)
        return {"reward": float(step.reward[0]), "return": self.total, **ended, **shown}

    def next_seed(self, lane: int) -> int | None:
        """The seed that was asked for, once: the lane waits after an episode."""
        seed, self.seed = self.seed, None
        return seed

    def _action(self, given: Any) -> Array:
        """[1, ...] the executed action as the environment takes it."""
        head, count = self.contract.head, action_count(self.contract.head)
        numbers = given if isinstance(given, list) else []
        if len(numbers) != count or not all(type(v) in (int, float) and math.isfinite(v) for v in numbers):
            raise InputError(f"action {printable(given, 80)} is none. Allowed: {count} finite numbers.")
        if not head.discrete:
            return np.array(numbers, np.float32).reshape(1, *head.shape)
        action = np.array(numbers).astype(np.int64).reshape(1, *head.shape)
        if not self.contract.spec.action_space.contains(spaces.as_received(action, self.contract.spec.action_space)[0]):
            raise InputError(f"action {printable(given, 80)} is not in {self.contract.spec.action_space}.")
        return action

    def _seen(self, step: Step, drawn: bool) -> dict[str, Any]:
        """What the policy reads, and a picture."""
        obs = step.final_obs if step.final_obs is not None else step.obs
        flat = spaces.input_rows(obs, self.contract.spec.observation_space, self.contract.view)[0]
        shown = {"obs": flat.tolist()}
        if drawn and not self.world.notice:
            shown["picture"] = base64.b64encode(png(self._picture())).decode()
        return shown

    def _picture(self) -> NDArray[np.uint8]:
        try:
            return picture(self.lanes.render(0))
        except CannotDraw as error:
            raise EnvironmentFault(f"{self.contract.spec.name} drew before, but no longer: {error}.") from error


@contextmanager
def _streamed(task: Task, contract: Contract, seed: int) -> Iterator[Stage]:
    """The environment, made to draw where it can."""
    assert isinstance(task, EnvTask)
    fps, notice = 30.0, ""
    try:
        env = drawing_env(task)
        try:
            env.reset(seed=seed)
            shape = picture(env.render()).shape
            fps = float(env.metadata.get("render_fps") or fps)
        finally:
            env.close()
        task = replace(task, make=partial(drawing_env, task))
    except (
        Exception
    ) as error:  # each environment refuses to draw in its own way; it plays unseen, and the page says why
        words = str(error) if isinstance(error, CannotDraw) else f"{type(error).__name__} {printable(error)}"
        shape, notice = (2, 3, 3), f"No picture: {words}."
    stage: list[Stage] = []
    lanes = EnvLanes(task, 1, lambda lane: stage[0].next_seed(lane))
    stage.append(Stage(lanes, contract, World(fps, shape[1] / shape[0], notice=notice)))
    try:
        yield stage[0]
    finally:
        lanes.close()


def picture(drawn: Any) -> NDArray[np.uint8]:
    """What an environment drew as [H, W, 3] bytes, at most WIDEST wide. Raises CannotDraw."""
    rows = np.asarray(drawn)
    if rows.dtype.kind == "f" and rows.size and rows.min() >= 0 and rows.max() <= 1:  # MinAtar draws shares
        rows = (255 * rows).round().astype(np.uint8)
    if rows.ndim != 3 or rows.shape[2] != 3 or min(rows.shape) < 1 or rows.dtype != np.uint8:
        raise CannotDraw(f"the environment draws {rows.dtype} of shape {rows.shape}, expected uint8 [H, W, 3]")
    return shrink(rows, WIDEST) if max(rows.shape) > WIDEST else rows


def png(rows: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] bytes as a PNG file (RFC 2083), each row as its difference from the one above."""
    height, width, _ = rows.shape
    lines = np.full((height, 1 + 3 * width), 2, np.uint8)  # a line begins with the number of its filter: "Up"
    flat = rows.reshape(height, -1)
    lines[:, 1:] = flat - np.concatenate([np.zeros_like(flat[:1]), flat[:-1]])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


# ---------------------------------------------------------------- serving


def _serve(folder: Path, world: World, seed: int, port: int, answers: Mapping[str, Answer], tell: Tell) -> Played:
    """Answer the page until Ctrl-C, which is how one leaves."""
    episodes: list[Episode] = []

    def played(body: Mapping[str, Any]) -> dict[str, Any]:
        counts = [body.get(name) for name in ("seed", "steps", "pushes")]
        if not all(type(count) is int for count in counts) or type(body.get("return")) not in (int, float):
            raise InputError("an episode has a seed, a return, steps and pushes.")
        episode = Episode(body["seed"], float(body["return"]), body["steps"], body["pushes"])
        episodes.append(episode)
        pushed = f", pushed {episode.pushes} times" if episode.pushes else ""
        tell("play", f"seed {episode.seed}: return {episode.total:.6g}, {episode.steps} steps{pushed}")
        return {}

    page = playpage.write(folder, world, seed, served=True)
    server = Server(page, playpage.security(served=True), {**answers, "played": played}, port)
    try:
        tell("play", f"{server.url} (Ctrl-C ends)")
        while True:
            server.answer(LONGEST_WAIT)
    except KeyboardInterrupt:
        if tasks.watchdog.expired:  # its interrupt arrived just after the call came back
            raise tasks.watchdog.fault() from None
        return Played(None, tuple(episodes))
    finally:
        server.close()
