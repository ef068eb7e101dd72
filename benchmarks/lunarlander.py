"""LunarLander, mlp:32x32 to 95 % of the bundled teacher: environment steps and seconds, against a peer and the floor.

Protocol (`protocol.py`): a checkpoint per round, each played on 400 fixed seeds outside the bill; the result of a
collection is its first checkpoint from which retention >= .95 holds at all later ones; median and quartiles.

    python benchmarks/lunarlander.py [--collections 10] [--peer] [--out benchmarks/results/lunarlander.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import protocol
import torch
from machine import machine
from protocol import Checkpoint

from limbeck import blueprints, collection, imitation, losses, objective, rollout, tasks
from limbeck.assets import bundled
from limbeck.contracts import Blueprint, View
from limbeck.dataset import open_dataset
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.stack import Port

HERE = Path(__file__).parent
STUDENT, ROUNDS, STEPS, LANES, GRADIENT_STEPS, BATCH = "mlp:32x32", 6, 512, 2, 200, 512
# the best of five settings tried for it; what its users get, in half the collections
PEER_SETTINGS = {"tuned": 1.0, "default": 0.5}


def collect_once(task: tasks.EnvTask, teacher: NumpyPolicy, seed: int) -> list[tuple[int, float, Blueprint]]:
    """One collection: after every round the steps and seconds so far, and the student as it then was."""
    head = losses.student_head(["kl"], teacher.head)
    port = Port(task.spec, View(), head, 8)
    family = families.build(parse([STUDENT]), {task.name: port}, seed)
    name, rounds, seconds, steps = family.members[0].name, [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(Path(folder), task.name)
        for number in range(ROUNDS):
            begin = time.perf_counter()
            plan = collection.Plan(STEPS, LANES, "teacher" if number == 0 else "student")
            taken = collection.collect(
                task, teacher, [NumpyPolicy(family.blueprint(name, task.name))], plan, number, seed
            )
            data.add(number, taken.columns, {})
            if number == 0:
                family.normalisers[task.name] = imitation.normaliser_of(data, port)
            table = imitation.table(data, port, teacher.head, family.normalisers[task.name], 1.0)
            rate = imitation.cosine(3e-3, 3e-4, number / (ROUNDS - 1))
            pace = imitation.Pace(GRADIENT_STEPS, BATCH, rate, 1.0)
            imitation.imitate(family, {task.name: table}, objective.mixture("kl", 0.0), pace, number, seed)
            seconds, steps = seconds + time.perf_counter() - begin, steps + taken.env_steps
            rounds.append((steps, seconds, family.blueprint(name, task.name)))
    return rounds


def floor_seconds(task: tasks.EnvTask, teacher: NumpyPolicy, env_steps: int, gradient_steps: int) -> dict[str, float]:
    """Bare stepping, bare labels and bare gradients of the same counts, each the plainest loop there is."""
    env = gym.make(task.name, disable_env_checker=True)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(4, size=env_steps)
    observations = np.zeros((env_steps, 8), np.float32)
    begin = time.perf_counter()
    for i, action in enumerate(actions.tolist()):
        observations[i], _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    stepping = time.perf_counter() - begin
    begin = time.perf_counter()
    labels = teacher(observations, {}, np.ones(env_steps, bool)).params
    labelling = time.perf_counter() - begin
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
    )
    adam = torch.optim.Adam(net.parameters(), 3e-3, fused=True)
    x, p = torch.from_numpy(observations), torch.from_numpy(labels).log_softmax(-1)
    begin = time.perf_counter()
    for _ in range(gradient_steps):
        rows = torch.randint(env_steps, (BATCH,))
        loss = torch.nn.functional.kl_div(net(x[rows]).log_softmax(-1), p[rows], log_target=True, reduction="batchmean")
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {"stepping": stepping, "labels": labelling, "gradients": time.perf_counter() - begin}


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"q25": float(low), "median": float(median), "q75": float(high)}


def ours(collections: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    task = tasks.resolve("LunarLander-v3")
    teacher = NumpyPolicy(blueprints.load(bundled("bundled:ppo-lunar"))[0])
    top = rollout.play(teacher, task, protocol.SEEDS).returns.mean()
    bottom = rollout.play(None, task, protocol.SEEDS, mode="uniform").returns.mean()
    collect_once(task, teacher, 999)  # warm-up: first-call costs of the libraries
    results, curves, ratios = [], [], []
    for seed in range(collections):
        rounds = collect_once(task, teacher, seed)
        env_steps, seconds, _ = rounds[-1]
        ratios.append(seconds / sum(floor_seconds(task, teacher, env_steps, ROUNDS * GRADIENT_STEPS).values()))
        means = [float(rollout.play(NumpyPolicy(b), task, protocol.SEEDS).returns.mean()) for _, _, b in rounds]
        checkpoints = [
            Checkpoint(n, s, m, protocol.retention(m, top, bottom)) for (n, s, _), m in zip(rounds, means, strict=True)
        ]
        results.append(protocol.first_lasting(checkpoints))
        curves.append([asdict(c) for c in checkpoints])
        print(f"collection {seed}: {results[-1]}", flush=True)
    settings = {
        "student": STUDENT,
        "round_steps": STEPS,
        "lanes": LANES,
        "gradient_steps": GRADIENT_STEPS,
        "batch": BATCH,
    }
    return {"teacher_return": float(top), "random_return": float(bottom), "settings": settings,
            "summary": protocol.summary(results), "wall_over_floor": quartiles(ratios), "curves": curves}  # fmt: skip


def peer(settings: str, collections: int) -> dict[str, Any]:
    """imitation's DAgger in its own environment, in this same run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.json"
        script = str(HERE / "peers" / "imitation_dagger.py")
        command = [
            sys.executable,
            script,
            "--settings",
            settings,
            "--collections",
            str(collections),
            "--out",
            str(path),
        ]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--collections", type=int, default=10)
    parser.add_argument("--peer", action="store_true", help="run imitation's DAgger too, in its own environment")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lunarlander.json")
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "limbeck": ours(given.collections)}
    mine = result["limbeck"]["summary"]
    for settings, share in PEER_SETTINGS.items() if given.peer else ():
        theirs = peer(settings, max(2, round(share * given.collections)))
        ratios = {key: theirs["summary"][key]["median"] / mine[key]["median"] for key in ("env_steps", "seconds")}
        result[f"imitation DAgger, {settings}"] = {**theirs, "median_over_limbeck": ratios}
        print(f"imitation DAgger, {settings}: {theirs['summary']}  ratios {ratios}")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result["limbeck"][k] for k in ("summary", "wall_over_floor")}, indent=1))


if __name__ == "__main__":
    main()
