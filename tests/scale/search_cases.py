"""A tiny real search of a few seconds, and what must be the same however often it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli_cases import recipe_file

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "recipes" / "teachers" / "cartpole.safetensors"
DRIVER = ROOT / "tests" / "kill_driver.py"
TINY: dict[str, Any] = {
    "teacher": str(TEACHER),
    "env": "CartPole-v1",
    "task": {"kwargs": {"max_episode_steps": 60}},
    "collect": {"steps": 128, "slots": 4},
    "imitate": {"gradient_steps": 4},
    "race": {"episodes": 2, "final_episodes": 4},
    "polish": {"generations": 2, "pairs": 2, "episodes": 2, "validation_episodes": 4, "validate_every": 2},
    "verify": {"episodes": 4, "random_episodes": 8, "accept": True},
    "prove": {"max_episodes": 60, "chunk": 8, "bound_episodes": 10, "retain": 0.5},
    "export": {"golden_steps": 32, "targets": ["c"]},
}
SMALL = ("search.population=2", "search.rungs=1,2", "search.widths=2,4", "search.depths=1")


def tiny(folder: Path, **changes: Any) -> Path:
    """A recipe file; nested tables are merged."""
    return recipe_file(folder, TINY, changes)


def arguments(recipe: Path, out: Path, *more: str, trials: int = 4, options: tuple[str, ...] = SMALL) -> list[str]:
    return ["search", str(recipe), "--out", str(out), "--trials", str(trials), *more, "--options", *options]


def started(*words: str, killed_at: str | None = None) -> subprocess.Popen[str]:
    """The real command line in a process of its own."""
    begin = [str(DRIVER), killed_at] if killed_at else ["-m", "limbeck.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.Popen(
        [sys.executable, *begin, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def found(folder: Path) -> dict[str, Any]:
    """What a search came to, without what passes from run to run: seconds and memory."""
    front = json.loads((folder / "front.json").read_text())
    bill = {k: v for k, v in front["bill"].items() if k not in ("seconds", "peak_memory_bytes")}
    passes = [
        (json.loads((p / "pass.json").read_text()), json.loads((p / "result.json").read_text())["outcomes"])
        for p in sorted((folder / "passes").iterdir())
    ]
    return {**front, "bill": bill, "passes": passes}
