"""Record a policy's play as a Minari data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import rollout, seeding, settings
from limbeck.contracts import Array, Mode
from limbeck.dataset import observation_columns
from limbeck.errors import InputError, printable
from limbeck.recordings import Recordings, checked, minari_layout
from limbeck.settings import OBJECT
from limbeck.stages.opening import open_task, open_teacher
from limbeck.teachers.demonstrations import DemonstratedPolicy

MOST = 100_000  # episodes
READING = ("kind", "architecture", "normaliser", "trust", "teacher_keys", "teacher_indices", "task")  # keys of a recipe


def record(
    teacher: Any, env: Any, folder: Path, episodes: int, mode: str, seed: int, options: Sequence[str]
) -> Recordings:
    """Play `episodes` episodes and write them; what was written is returned."""
    if not 1 <= episodes <= MOST:
        raise InputError(f"--episodes {episodes} is out of range. Allowed: 1 to {MOST:,}.")
    if mode not in ("greedy", "sampled"):
        raise InputError(f"--mode {mode!r} is unknown. Allowed: greedy, sampled.")
    if folder == Path():
        raise InputError("OUT is empty. Give a new folder for the data set.")
    for option in options:
        if option.partition("=")[0].partition(".")[0] not in READING:
            raise InputError(
                f"{printable(option)} does not apply to recording. Allowed: {', '.join(READING)}. Drop it."
            )
    played: Mode = "greedy" if mode == "greedy" else "sampled"
    named = [one if isinstance(one, (str, Path)) else None for one in (teacher, env)]
    values = {"teacher": str(named[0] or OBJECT), "env": str(named[1] or OBJECT), "seed": seed}
    recipe = settings.recipe_from(settings.with_options(values, options))
    task = open_task(recipe, None if named[1] else env)
    loaded = open_teacher(recipe, task, None if named[0] else teacher)
    if isinstance(loaded.policy, DemonstratedPolicy):
        raise InputError(f"{printable(teacher)} is recordings already, and they cannot play. Give a policy.")
    minari_layout.refuse_taken(folder)
    seeds = [seeding.episode_seed(seed, "collect", i) for i in range(episodes)]
    kept: dict[int, list[dict[str, Array]]] = {}

    def watch(frame: rollout.Frame) -> None:
        columns = observation_columns(frame.obs) | {"action": frame.actions, "reward": frame.reward}
        columns |= {"terminated": frame.terminated, "truncated": frame.truncated}
        for lane in np.flatnonzero(frame.alive):
            row = {key: np.array(column[lane]) for key, column in columns.items()}
            kept.setdefault(int(frame.indices[lane]), []).append(row)

    rollout.play(loaded.policy, task, seeds, mode=played, run_seed=seed, watch=watch)
    rows = [row for number in sorted(kept) for row in kept[number]]
    joined = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    names = [key for key in joined if key.startswith("obs")]
    obs = joined["obs"] if names == ["obs"] else {key[4:]: joined[key] for key in names}
    made = checked(
        task.name, "", obs, joined["action"], joined["reward"], joined["terminated"], joined["truncated"], task.spec
    )
    minari_layout.write(made, folder, task.spec, f"limbeck/{folder.name}-v0")
    return made
