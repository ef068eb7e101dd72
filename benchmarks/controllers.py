"""CartPole: controllers of at most three numbers found from a neural teacher, the seconds it takes, and 2,000 starts.

Counted are collection, search and race, from the loaded teacher to the chosen rule, on one thread; wall time and
processor time, because other work on the machine slows the one and not the other. The starts are seeds of the proof
stream, which no search has seen.

    python benchmarks/controllers.py [--starts 2000] [--repeats 5] [--out benchmarks/results/controllers.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from limbeck import rollout, runs, seeding, settings
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import growing, learn, refusals, scene
from limbeck.stages.opening import open_both

HERE = Path(__file__).parent
TEACHER = HERE.parent / "recipes" / "teachers" / "cartpole.safetensors"
STUDENTS = ("rule:3", "ternary:3", "rule:2")
ROUNDS, KEEP = 3, 8


def find(student: str, seed: int, starts: int) -> dict[str, Any]:
    """One controller: how long it took, what it is, and its returns on starts of its own."""
    recipe = settings.recipe_from(
        {"teacher": str(TEACHER), "env": "CartPole-v1", "students": [student], "seed": seed,
         "imitate": {"rounds": ROUNDS}, "grow": {"keep": KEEP}, "verify": {"episodes": 8, "random_episodes": 8}}
    )  # fmt: skip
    task, teacher = open_both(recipe, None, None)
    refusals.refuse(recipe, task, teacher)
    with tempfile.TemporaryDirectory() as folder:
        run = runs.open_run(Path(folder) / "run", recipe, lambda stage, text: None, {})
        here = scene.verify(run, task, teacher)
        begin, used = time.perf_counter(), time.process_time()
        family, done = learn.imitate_rounds(here)
        growing.settle(here, family)
        seconds, processor = time.perf_counter() - begin, time.process_time() - used
        raced = growing.race_steps(here, family)
    blueprint = family.blueprint(family.members[0].name, task.name)
    (layer,) = blueprint.layers
    seeds = [seeding.episode_seed(seed, "proof", i) for i in range(starts)]
    returns = rollout.play(NumpyPolicy(blueprint), task, seeds).returns
    return {
        "student": student,
        "seed": seed,
        "seconds": seconds,
        "processor_seconds": processor,
        "collection_steps": done.collection_steps,
        "race_steps": raced,
        "numbers": blueprint.parameters,
        "weights": np.asarray(layer.weight).tolist(),
        "biases": np.asarray(layer.bias).tolist(),
        "reads": layer.reads,
        "starts": starts,
        "perfect": int((returns == 500).sum()),
        "mean_return": float(returns.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "controllers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for student in STUDENTS:
        for seed in range(options.repeats):
            found.append(find(student, seed, options.starts))
            print(json.dumps(found[-1]), flush=True)
    result = {"machine": machine(), "rounds": ROUNDS, "teacher": TEACHER.name, "found": found}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
