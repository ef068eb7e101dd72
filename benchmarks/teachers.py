"""Seconds until a teacher is loaded and verified, whole processes; and the inert reader against torch's.

python benchmarks/teachers.py [--teacher FILE] [--env ID] [--zips FILE ...] [--out benchmarks/results/teachers.json]

(a) A fresh process imports limbeck, makes the environment, loads the teacher and plays 20 episodes in each of its modes
    and 40 at random, as `limbeck distill` does before anything else. Must be below 5 s, meant to be below 2 s.
(b) The weights of Stable-Baselines3 zips, read inertly and by torch.load(weights_only=True), in turns: the same arrays
    bit for bit, at most 3 times the time.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "teachers"
EPISODES, PROCESSES, READINGS = 20, 5, 40
LIMIT_SECONDS, AIM_SECONDS, LIMIT_RATIO = 5.0, 2.0, 3.0


def default_teacher() -> str:
    """The Stable-Baselines3 zip on a developer's machine, else the teacher inside the package."""
    file = SHARED / "lunarlander_ppo_sb3.zip"
    return str(file) if file.exists() else "bundled:ppo-lunar"


def load_and_verify(teacher: str, env: str) -> dict[str, Any]:
    """In a process of its own: seconds of each step, and what the verification found."""
    begin = time.perf_counter()
    from limbeck import tasks, teachers
    from limbeck.assets import bundled
    from limbeck.settings import VerifySettings
    from limbeck.teachers.verification import verify

    marks = [begin, time.perf_counter()]
    task = tasks.resolve(env)
    marks.append(time.perf_counter())
    loaded = teachers.load(bundled(teacher), task.spec)
    marks.append(time.perf_counter())
    found = verify(loaded, task, VerifySettings(episodes=EPISODES), 0)
    marks.append(time.perf_counter())
    names = ("import", "environment", "load", "verify")
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": {name: after - before for name, before, after in zip(names, marks, marks[1:], strict=False)},
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "returns": {key: evaluation.mean for key, evaluation in found.evaluations.items()},
        "env_steps": found.env_steps,
    }


def fresh(teacher: str, env: str) -> dict[str, Any]:
    """The same in a fresh process, with the seconds of the whole of it."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--child", "--teacher", teacher, "--env", env]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return {"total": time.perf_counter() - begin, **json.loads(done.stdout)}


def startup(teacher: str, env: str) -> dict[str, Any]:
    rows = [fresh(teacher, env) for _ in range(PROCESSES)]
    steps = {key: statistics.median(row["seconds"][key] for row in rows) for key in rows[0]["seconds"]}
    return {
        "teacher": Path(teacher).name,
        "env": env,
        "episodes_per_mode": EPISODES,
        "median_seconds": statistics.median(row["total"] for row in rows),
        "least_seconds": min(row["total"] for row in rows),
        "median_cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows),
        "median_seconds_by_step": steps,
        "returns": rows[0]["returns"],
        "env_steps": rows[0]["env_steps"],
    }


def readers(path: Path) -> dict[str, Any]:
    """Milliseconds of both readers on the weights of one zip, taken in turns."""
    import torch

    from limbeck.teachers import inert

    torch.set_num_threads(1)
    content = zipfile.ZipFile(path).read("policy.pth")
    ours = inert.tensors(inert.read_torch_zip(content), path.name)
    theirs = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    same = list(ours) == list(theirs) and all(same_bits(ours[key], theirs[key].numpy()) for key in ours)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(READINGS):
        begin = time.perf_counter()
        inert.read_torch_zip(content)
        middle = time.perf_counter()
        torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        times[0].append(middle - begin)
        times[1].append(time.perf_counter() - middle)
    inert_ms, torch_ms = (1e3 * statistics.median(column) for column in times)
    return {
        "bytes": len(content), "same_bits": same, "inert_ms": inert_ms, "torch_ms": torch_ms,
        "ratio": statistics.median(a / b for a, b in zip(*times, strict=True)),
    }  # fmt: skip


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default=default_teacher())
    parser.add_argument("--env", default="LunarLander-v3")
    parser.add_argument("--zips", type=Path, nargs="*", default=sorted(SHARED.glob("*_sb3.zip")))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "teachers.json")
    parser.add_argument("--child", action="store_true", help="load and verify once, here, and print the numbers")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(load_and_verify(given.teacher, given.env)))
        return
    zips = given.zips or [HERE.parent / "tests" / "fixtures" / "cartpole_ppo_sb3.zip"]
    first = startup(given.teacher, given.env)
    print(
        f"load and verify {first['teacher']}: {first['median_seconds']:.2f} s "
        f"({first['median_cpu_seconds']:.2f} s of processor; must < {LIMIT_SECONDS:g}, aim < {AIM_SECONDS:g})"
    )
    both = {path.name: readers(path) for path in zips}
    for name, row in both.items():
        print(
            f"{name:<28} inert {row['inert_ms']:.2f} ms, torch {row['torch_ms']:.2f} ms, ratio {row['ratio']:.2f} "
            f"(must <= {LIMIT_RATIO:g}), {'the same bits' if row['same_bits'] else 'OTHER ARRAYS'}"
        )
    limits = {"seconds": LIMIT_SECONDS, "aim_seconds": AIM_SECONDS, "ratio": LIMIT_RATIO}
    kept = {"machine": machine(), "limits": limits, "load_and_verify": first, "inert_against_torch": both}
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(kept, indent=1) + "\n")
    sound = first["median_seconds"] < LIMIT_SECONDS and all(
        row["same_bits"] and row["ratio"] <= LIMIT_RATIO for row in both.values()
    )
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
