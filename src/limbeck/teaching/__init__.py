"""Train a teacher: Stable-Baselines3 underneath, the best checkpoint kept, its return measured on fresh seeds; for a
labelled set a classifier (`labelled`), measured on the test part.

The best of many checkpoints looks better than it is on the episodes that chose it, so three streams of seeds never
meet: training episodes, validation episodes (they choose) and fresh ones (they give the number that is stated).
Each better checkpoint is on disk at once; a kill loses what came after it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import blueprints, rollout, seeding, spaces, storage, tasks
from limbeck.contracts import Evaluation, Spec
from limbeck.errors import IncompleteError, InputError, printable, unknown
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings.ranges import RANGES
from limbeck.teaching import labelled, sb3
from limbeck.teaching.presets import PRESETS, Preset, preset_for

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["PRESETS", "Preset", "TaughtTeacher", "teach"]

Progress = Callable[[int, float], None]  # (environment steps so far, mean return on the validation seeds)
TEACHER, SIDECAR, FORMAT = "teacher.zip", "teacher.json", "limbeck-teacher-1"
CLASSIFIER, CLASSIFIER_FILE = "classifier", "teacher.safetensors"  # for labelled sets
# Half of a stream's 2**27 indices. Training episodes count up from 0 and validation from here; the fresh seeds start
# here too, so that verifying the teacher later, from index 0 of "verify", plays episodes of its own.
SECOND_HALF = 1 << 26
SLOTS = 16
RESAMPLES = 2000


@dataclass(frozen=True)
class TaughtTeacher:
    """A trained teacher on disk and what it is worth."""

    file: Path  # SB3 zip of the best checkpoint
    sidecar: Path  # JSON: provenance, and the `stated_return` that `distill` checks
    evaluation: Evaluation  # of the file, on fresh seeds
    random_return: float  # mean of uniformly random play on the same seeds
    algorithm: str
    env: str
    env_steps: int  # trained
    best_at: int  # environment steps at the kept checkpoint
    sha256: str
    notes: tuple[str, ...] = ()


def teach(
    env: str | tasks.EnvTask | tasks.DatasetTask,
    *,
    out: Path,
    algorithm: str = "ppo",
    env_steps: int | None = None,
    seed: int = 0,
    settings: Mapping[str, float] | None = None,
    evaluations: int = 20,
    validation_episodes: int = 20,
    fresh_episodes: int = 100,
    on_progress: Progress | None = None,
) -> TaughtTeacher:
    """Train by "ppo" or "dqn" on `env` for at most `env_steps` steps; write `<out>/teacher.zip` and `<out>/teacher.json`.

    `settings` replaces entries of the preset by their Stable-Baselines3 names. The same seed gives the same weights.
    A labelled set is taught by "classifier": `<out>/teacher.safetensors`, epochs instead of steps, no `settings`.
    Ctrl-C measures and keeps the best checkpoint so far, then raises IncompleteError.
    """
    out = Path(out)
    _check_count("seed", seed, *map(int, RANGES["seed"]))
    if algorithm == CLASSIFIER:
        if env_steps is not None or settings:
            raise InputError("a classifier has a fixed number of epochs. Drop env_steps and settings.")
        return _teach_classifier(env, out, seed, on_progress)
    task = _trainable(env, algorithm)
    preset = preset_for(algorithm, task.name, type(task.spec.action_space).__name__, env_steps, settings or {})
    counts = {"evaluations": evaluations, "validation_episodes": validation_episodes, "fresh_episodes": fresh_episodes}
    for name, count in counts.items():
        _check_count(name, count)
    sb3.library()
    _refuse_finished(out)
    with storage.locked(out), _one_thread():
        best = _Best(out, task, _description(task, algorithm, seed, preset), on_progress)
        stopped = _train(best, algorithm, preset, seed, evaluations, validation_episodes)
        taught = _measure(best, algorithm, seed, fresh_episodes, stopped)
    if stopped:
        raise IncompleteError(
            f"teach was stopped after {best.trained:,} of {preset.env_steps:,} steps. The best so far is kept in {taught.file}: "
            f"return {taught.evaluation.mean:.1f} over {fresh_episodes} fresh episodes. To train in full, choose another --out."
        )
    return taught


# ---------------------------------------------------------------- what was asked for


def _trainable(env: str | tasks.EnvTask | tasks.DatasetTask, algorithm: str) -> tasks.EnvTask:
    if algorithm not in PRESETS:
        raise unknown("algorithm", algorithm, [*PRESETS, CLASSIFIER])
    task = tasks.resolve(env)
    if isinstance(task, tasks.DatasetTask):
        raise InputError(f"{printable(task.name)} cannot be trained on by {algorithm}. Allowed there: {CLASSIFIER}.")
    if not isinstance(task, tasks.EnvTask):
        raise InputError(
            f"{printable(task.name)} cannot be trained on. Allowed: a Gymnasium id or package.module:EnvId."
        )
    _check_spaces(task.spec, algorithm)
    return task


def _check_spaces(spec: Spec, algorithm: str) -> None:
    spaces.to_json(spec.observation_space)  # refuses what no policy here can read
    if algorithm == "dqn" and not isinstance(spec.action_space, gym.spaces.Discrete):
        raise InputError(f"dqn cannot act in {spec.action_space}. Allowed there: ppo; dqn needs a Discrete space.")
    if any(spaces.head_for(spec.action_space).start):
        raise InputError(
            f"Stable-Baselines3 cannot act in {spec.action_space}. Allowed: actions that count from 0; wrap the environment."
        )


def _check_count(name: str, count: int, low: int = 1, high: int = 100_000) -> None:
    if not low <= count <= high:
        raise InputError(f"{name} = {count}, allowed {low:,} to {high:,}. Change it.")


def _refuse_finished(out: Path) -> None:
    if (out / SIDECAR).exists() and "stated_return" in storage.read_json(out / SIDECAR):
        raise InputError(f"{out} holds a measured teacher already. Choose another --out, or remove {out / SIDECAR}.")


def _description(task: tasks.EnvTask, algorithm: str, seed: int, preset: Preset) -> dict[str, Any]:
    import torch

    return {
        "format": FORMAT,
        "file": TEACHER,
        "env": task.name,
        "algorithm": algorithm,
        "seed": seed,
        "settings": {**preset.settings, "env_steps": preset.env_steps, "lanes": preset.lanes, "net": preset.net},
        "versions": {
            "python": platform.python_version(),
            "stable_baselines3": sb3.library().__version__,
            "torch": torch.__version__,
            "gymnasium": gym.__version__,
            "numpy": np.__version__,
        },
    }


# ---------------------------------------------------------------- training


class _Best:
    """The best checkpoint so far, on disk from the moment it was found."""

    def __init__(
        self, out: Path, task: tasks.EnvTask, description: Mapping[str, Any], on_progress: Progress | None
    ) -> None:
        self.file, self.sidecar, self.task = out / TEACHER, out / SIDECAR, task
        self._description, self._on_progress, self._started = description, on_progress, time.perf_counter()
        self.trained, self.at = 0, 0  # environment steps so far; those at the kept checkpoint
        self.curve: list[tuple[int, float]] = []  # (environment steps, mean validation return)

    def offer(self, model: BaseAlgorithm, mean: float) -> None:
        """Keep the model unless an earlier one did as well on the validation seeds."""
        self.trained = model.num_timesteps
        better = not self.curve or mean > max(value for _, value in self.curve)
        self.curve.append((self.trained, mean))
        if better:
            self.at = self.trained
            storage.write_bytes(self.file, sb3.save(model))
        self.describe({"complete": False})
        if self._on_progress is not None:
            self._on_progress(self.trained, mean)

    def describe(self, more: Mapping[str, Any]) -> None:
        """Write the sidecar for the file as it stands."""
        state = {
            "sha256": storage.sha256(self.file),
            "env_steps": self.trained,
            "best_at_env_steps": self.at,
            "seconds": round(time.perf_counter() - self._started, 1),
            "validation": [{"env_steps": steps, "mean_return": mean} for steps, mean in self.curve],
        }
        storage.write_json(self.sidecar, {**self._description, **state, **more})


def _train(best: _Best, algorithm: str, preset: Preset, seed: int, evaluations: int, episodes: int) -> bool:
    """Train and offer checkpoints to `best`; True when Ctrl-C ended it early."""
    task = best.task
    seeds = [seeding.episode_seed(seed, "teach", SECOND_HALF + i) for i in range(episodes)]

    def look(model: BaseAlgorithm) -> None:
        played = rollout.play(sb3.GreedyPolicy(model, task.spec), task, seeds, slots=SLOTS)
        best.offer(model, float(played.returns.mean()))

    lanes = task.lanes(preset.lanes, _training_seeds(seed, preset.lanes))
    model = sb3.build(algorithm, preset, seed, lanes, task.spec)
    try:
        sb3.learn(model, preset.env_steps, max(1, preset.env_steps // evaluations), look)
    except KeyboardInterrupt:
        if not best.curve:
            raise IncompleteError("teach was stopped before its first checkpoint; nothing was kept.") from None
        best.trained = model.num_timesteps
        return True
    finally:
        lanes.close()
    return False


def _training_seeds(seed: int, lanes: int) -> Callable[[int], int]:
    episodes = [0] * lanes

    def next_seed(lane: int) -> int:
        index = lane + lanes * episodes[lane]
        episodes[lane] += 1
        return seeding.episode_seed(seed, "teach", index)

    return next_seed


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, so that sums always round the same way; torch's global generator is given back as it was."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- labelled sets


def _teach_classifier(
    env: str | tasks.EnvTask | tasks.DatasetTask, out: Path, seed: int, on_progress: Progress | None
) -> TaughtTeacher:
    """Train a classifier, state its share of labels right on every row of the test part, which chose nothing."""
    task = tasks.resolve(env)
    if not isinstance(task, tasks.DatasetTask):
        raise InputError(f"{printable(task.name)} is no labelled set. Allowed for {CLASSIFIER}: {', '.join(tasks.DIGITS)}, mnist.")  # fmt: skip
    _refuse_finished(out)
    rows = task.train_rows

    def told(epoch: labelled.Epoch) -> None:
        if on_progress is not None:
            on_progress(epoch.number * rows, epoch.validation_accuracy)

    with storage.locked(out):
        found = labelled.train_classifier(task, seed=seed, on_epoch=told)
        file, sidecar = out / CLASSIFIER_FILE, out / SIDECAR
        seeds = [seeding.episode_seed(seed, "proof", i) for i in range(task.proof_episodes)]
        played = rollout.play(NumpyPolicy(found.blueprint), task, seeds, slots=SLOTS)
        chance = float(rollout.play(None, task, seeds, mode="uniform", run_seed=seed, slots=SLOTS).returns.mean())
        mean, (low, high) = float(played.returns.mean()), _interval(played.returns, seed)
        trained, stated = len(found.epochs) * rows, {"mean": mean, "low": low, "high": high, "episodes": len(seeds)}
        made = {"algorithm": CLASSIFIER, "environment": task.name, "seed": seed, "env_steps": trained}
        blueprints.save(found.blueprint, file, {**made, "return": stated})
        digest = storage.sha256(file)
        storage.write_json(sidecar, {
            "format": FORMAT, "file": file.name, "env": task.name, "algorithm": CLASSIFIER, "seed": seed,
            "sha256": digest, "epochs": storage.plain(found.epochs), "kept_epoch": found.kept, "random_return": chance,
            "stated_return": mean, "stated_low": low, "stated_high": high, "confidence": 0.95, "episodes": len(seeds),
        })  # fmt: skip
    evaluation = Evaluation(
        "teacher", "greedy", mean, low, high, len(seeds), len(seeds), tuple(played.returns.tolist())
    )
    notes = (*task.notes, *_doubts(low, chance))
    return TaughtTeacher(
        file, sidecar, evaluation, chance, CLASSIFIER, task.name, trained, found.kept * rows, digest, notes
    )


# ---------------------------------------------------------------- what it is worth


def _measure(best: _Best, algorithm: str, seed: int, episodes: int, stopped: bool) -> TaughtTeacher:
    """Play the file itself on seeds that chose nothing, and state the result in the sidecar."""
    task = best.task
    policy = sb3.GreedyPolicy(sb3.load(algorithm, best.file), task.spec)
    seeds = [seeding.episode_seed(seed, "verify", SECOND_HALF + i) for i in range(episodes)]
    played = rollout.play(policy, task, seeds, slots=SLOTS)
    chance = float(rollout.play(None, task, seeds, mode="uniform", run_seed=seed, slots=SLOTS).returns.mean())
    mean, (low, high) = float(played.returns.mean()), _interval(played.returns, seed)
    best.describe(
        {
            "complete": not stopped,
            "stated_return": mean,
            "stated_low": low,
            "stated_high": high,
            "confidence": 0.95,
            "episodes": episodes,
            "mode": "greedy",
            "seed_stream": "verify",
            "random_return": chance,
        }
    )
    returns = tuple(played.returns.tolist())
    evaluation = Evaluation("teacher", "greedy", mean, low, high, episodes, played.env_steps, returns)
    notes = (*task.notes, *_doubts(low, chance))
    digest = storage.sha256(best.file)
    return TaughtTeacher(
        best.file, best.sidecar, evaluation, chance, algorithm, task.name, best.trained, best.at, digest, notes
    )


def _interval(returns: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    rng = seeding.generator(seed, "verify", RESAMPLES)
    means = returns[rng.integers(len(returns), size=(RESAMPLES, len(returns)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _doubts(low: float, chance: float) -> tuple[str, ...]:
    if low > chance:
        return ()
    return (f"not better than random play ({chance:.1f}): give more --env-steps, another --seed or --algorithm",)
