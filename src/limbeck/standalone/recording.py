"""Record a policy's play as a Minari data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from limbeck import rollout, seeding, tasks, teachers
from limbeck.assets import bundled
from limbeck.contracts import Array, Mode
from limbeck.dataset import observation_columns
from limbeck.errors import InputError
from limbeck.recordings import Recordings, checked, minari_layout

MOST = 100_000  # episodes


def record(teacher: Any, env: Any, folder: Path, episodes: int, mode: str, seed: int) -> Recordings:
    """Play `episodes` episodes and write them; what was written is returned."""
    if not 1 <= episodes <= MOST:
        raise InputError(f"--episodes {episodes} is out of range. Allowed: 1 to {MOST:,}.")
    if mode not in ("greedy", "sampled"):
        raise InputError(f"--mode {mode!r} is unknown. Allowed: greedy, sampled.")
    played: Mode = "greedy" if mode == "greedy" else "sampled"
    task = tasks.resolve(env)
    loaded = teachers.load(bundled(teacher) if isinstance(teacher, (str, Path)) else teacher, task.spec)
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
