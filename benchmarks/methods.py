"""Imitation methods on the same work: who drives x which loss x three sizes x five tasks, then polish on the best.

Stage 1. Every cell is {teacher, student, blend, offline} x {kl, nll, regress, anneal} for one size of student on one
task: three independent collections, each training four stacked members that share it. What a cell is worth is its
retention on seeds that all cells share and no stage of a run draws; intervals come from a hierarchical bootstrap
(collections, then their members), because members of one collection are not independent.
Stage 2. The best cell of each task's smallest size, and plain behavioural cloning (teacher-driven nll), each once
with and once without polish by evolution.

Every finished collection is one line of results/methods.jsonl; running the same command again goes on after the last.

    python benchmarks/methods.py [--tasks cartpole ...] [--workers 2] [--minutes 330] [--out benchmarks/results/methods.jsonl]
    python benchmarks/methods_picture.py        # docs/results.md and docs/methods.svg from what is there
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).parent
TEACHERS = HERE.parent / "recipes" / "teachers"
DRIVERS = {"teacher": "teacher", "student": "student", "blend": "trb", "offline": "offline"}  # as recipes name them
COLLECTIONS, MEMBERS = 3, 4
SEED0 = 2_000_000  # evaluation seeds; none of a run's streams lies below 2**27


@dataclass(frozen=True)
class Work:
    """A task with its teacher and what every cell on it gets."""

    teacher: str
    env: str
    sizes: tuple[str, str, str]  # largest first
    rounds: int
    steps: int  # environment steps per round
    gradient_steps: int  # per round
    episodes: int  # of evaluation, per member
    continuous: bool = False
    kwargs: tuple[tuple[str, Any], ...] = ()
    keys: tuple[str, ...] | None = None


WORKS = {
    "cartpole": Work(str(TEACHERS / "cartpole.safetensors"), "CartPole-v1", ("mlp:16", "mlp:4", "linear"), 4, 256, 100, 40),
    "lunarlander": Work("bundled:ppo-lunar", "LunarLander-v3", ("mlp:32x32", "mlp:16", "linear"), 4, 256, 100, 40),
    "breakout": Work(
        str(TEACHERS / "breakout.safetensors"), "MinAtar/Breakout-v1", ("cnn:8k3:32", "mlp:32", "mlp:8"), 6, 1000, 200, 16,
        kwargs=(("max_episode_steps", 2000),),
    ),
    "halfcheetah": Work(
        str(TEACHERS / "halfcheetah.safetensors"), "HalfCheetah-v5", ("mlp:64x64", "mlp:32x32", "mlp:32"), 8, 4000, 400, 8,
        continuous=True,
    ),
    "doorkey": Work(
        str(TEACHERS / "doorkey.safetensors"), "MiniGrid-DoorKey-5x5-v0", ("cnn:8k2:32", "mlp:32x32", "mlp:16"), 8, 512, 200, 40,
        keys=("image",),
    ),
}  # fmt: skip

LOSSES = {  # cell's name -> recipe's loss: discrete, continuous
    "kl": ("kl", "gaussian_kl"),
    "nll": ("nll", "gaussian_nll"),
    "regress": ("logit_mse", "executed_huber"),
    "anneal": ("anneal", "anneal"),
}
NONSENSE = {  # (driver, loss) -> why the cell is empty
    ("teacher", "anneal"): "regret is a return gap only on the student's own states",
    ("offline", "anneal"): "regret is a return gap only on the student's own states",
}


@dataclass(frozen=True)
class Cell:
    """One collection of one cell, or one polish of it."""

    task: str
    driver: str
    loss: str
    size: str
    collection: int
    polish: str = "none"  # before or es: stage 2

    @property
    def key(self) -> str:
        return "/".join(map(str, asdict(self).values()))


# ---------------------------------------------------------------- one collection


def measure(cell: Cell) -> dict[str, Any]:
    """Train the cell's members on one collection and play them: the line that is stored."""
    import numpy as np
    import torch

    from limbeck import identity, rollout, runs, settings
    from limbeck.runtimes.numpy import NumpyPolicy
    from limbeck.settings import Recipe
    from limbeck.stages import choosing, learn
    from limbeck.stages.opening import open_both
    from limbeck.stages.refusals import refuse

    torch.set_num_threads(1)
    work = WORKS[cell.task]
    recipe: Recipe = settings.recipe_from(recipe_of(cell))
    task, teacher = open_both(recipe)
    refuse(recipe, task, teacher)
    with tempfile.TemporaryDirectory() as folder:
        run = runs.open_run(Path(folder) / "run", recipe, lambda stage, text: None, identity.of_task(task))
        here = _scene(run, task, teacher, work)
        begin = time.perf_counter()
        family, done = learn.imitate_rounds(here)
        seconds = time.perf_counter() - begin
        seeds = [SEED0 + i for i in range(work.episodes)]
        line: dict[str, Any] = {"key": cell.key, **asdict(cell), "env_steps": done.collection_steps, "seconds": seconds}
        names = [member.name for member in family.members]
        line["parameters"] = family.blueprint(names[0], task.name).parameters
        if cell.polish == "es":
            one = choosing.Chosen(family.members[0], family.blueprint(names[0], task.name), -np.inf)
            chosen, cost = choosing.polish(here, family, [one])
            line |= {"polish_steps": cost.env_steps, "polish_seconds": cost.seconds}
            names = [chosen[0].member.name]
        elif cell.polish == "before":
            names = names[:1]
        played = [rollout.play(NumpyPolicy(family.blueprint(n, task.name)), task, seeds).returns for n in names]
        line["returns"] = [float(returns.mean()) for returns in played]
        line["retention"] = [here.retention(value) for value in line["returns"]]
    return line


def recipe_of(cell: Cell) -> dict[str, Any]:
    """The recipe that a cell is."""
    work = WORKS[cell.task]
    return {
        "teacher": work.teacher,
        "env": work.env,
        "students": (f"{cell.size}@{MEMBERS}",),
        "seed": 1000 + cell.collection,
        "keys": work.keys,
        "task": {"kwargs": dict(work.kwargs)},
        "collect": {"driver": DRIVERS[cell.driver], "steps": work.steps},
        "imitate": {
            "loss": LOSSES[cell.loss][work.continuous],
            "rounds": work.rounds,
            "gradient_steps": work.gradient_steps,
        },
        "race": {"rounds": ()},
        "polish": {"max_parameters": 10_000, "generations": 10, "pairs": 8, "episodes": 4},
    }


def _scene(run: Any, task: Any, teacher: Any, work: Work) -> Any:
    """The scene of a run whose teacher was played once for all cells of its task, on the evaluation seeds."""
    from limbeck.stages.scene import Scene

    known = reference(work, task, teacher)
    return Scene(run, task, teacher, "greedy", known["teacher"], known["random"], known["steps"], {})


def reference(work: Work, task: Any, teacher: Any) -> dict[str, float]:
    """Returns of the teacher and of random play on the evaluation seeds, stored beside the results."""
    from limbeck import rollout

    path = HERE / "results" / "methods_reference.json"
    stored: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    key = f"{Path(work.teacher).name} {work.env} {work.episodes} {dict(work.kwargs)}"
    if key not in stored:
        many = [SEED0 + i for i in range(5 * work.episodes)]
        taught = rollout.play(teacher.policy, task, many)
        random = rollout.play(None, task, many, mode="uniform")
        top, bottom = taught.returns.mean(), random.returns.mean()
        stored = json.loads(path.read_text()) if path.exists() else {}
        stored[key] = {"teacher": float(top), "random": float(bottom), "steps": taught.env_steps / len(many)}
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(stored, indent=1) + "\n")
        aside.replace(path)
    return stored[key]


# ---------------------------------------------------------------- all of them


def stage_one(tasks: list[str]) -> Iterator[Cell]:
    """All cells that make sense, the collections outermost: an interrupted run has every cell once before any twice."""
    for collection in range(COLLECTIONS):
        for task in tasks:
            for driver, loss in itertools.product(DRIVERS, LOSSES):
                if (driver, loss) not in NONSENSE:
                    for size in WORKS[task].sizes:
                        yield Cell(task, driver, loss, size, collection)


def stage_two(tasks: list[str], lines: list[dict[str, Any]]) -> Iterator[Cell]:
    """The best cell of the smallest size and plain cloning, before and after polish."""
    for task in tasks:
        size = WORKS[task].sizes[-1]
        mine = [line for line in lines if (line["task"], line["size"], line["polish"]) == (task, size, "none")]
        if not mine:
            continue
        means: dict[tuple[str, str], list[float]] = {}
        for line in mine:
            means.setdefault((line["driver"], line["loss"]), []).extend(line["retention"])
        best = max(means, key=lambda cell: sum(means[cell]) / len(means[cell]))
        for driver, loss in dict.fromkeys([best, ("teacher", "nll")]):
            for collection, polish in itertools.product(range(COLLECTIONS), ("before", "es")):
                yield Cell(task, driver, loss, size, collection, polish)


def run_all(cells: list[Cell], out: Path, workers: int, until: float) -> None:
    """Measure what is not stored yet, until the clock says stop; one line per finished collection."""
    stored = {line["key"] for line in read(out)}
    waiting = [cell for cell in cells if cell.key not in stored]
    print(f"{len(cells)} collections, {len(cells) - len(waiting)} stored, {len(waiting)} to do", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    queue = iter(waiting)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool, out.open("a") as file:
        running: dict[Future[dict[str, Any]], Cell] = {}
        while True:
            while len(running) < workers and time.time() < until and (cell := next(queue, None)) is not None:
                running[pool.submit(measure, cell)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                line = future.result()
                file.write(json.dumps(line) + "\n")
                file.flush()
                mean = sum(line["retention"]) / len(line["retention"])
                print(f"{cell.key:58} {mean:7.3f}  {line['seconds']:.1f} s", flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """The stored lines; one that a kill cut off is dropped."""
    lines = out.read_text().splitlines() if out.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(WORKS), default=list(WORKS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=330.0, help="start nothing new after so long")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "methods.jsonl")
    given = parser.parse_args()
    until = time.time() + 60 * given.minutes
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    run_all(list(stage_one(given.tasks)), given.out, given.workers, until)
    run_all(list(stage_two(given.tasks, read(given.out))), given.out, given.workers, until)


if __name__ == "__main__":
    main()
