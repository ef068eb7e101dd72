"""LunarLander, mlp:32x32 to 95 % of the bundled teacher: environment steps and seconds, against a peer and the floor.

Protocol: a checkpoint per round, each played on 400 fixed seeds outside the bill; the result of a collection is its
first checkpoint from which retention >= .95 holds at all later ones; median and quartiles over ten collections.

    python benchmarks/lunarlander.py [--collections 10] [--peer] [--out benchmarks/results/lunarlander.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from machine import machine

from limbeck import blueprints, collection, imitation, losses, objective, rollout, seeding, tasks
from limbeck.assets import bundled
from limbeck.contracts import View
from limbeck.dataset import open_dataset
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.stack import Port

HERE = Path(__file__).parent
STUDENT, ROUNDS, STEPS, LANES, GRADIENT_STEPS, BATCH = "mlp:32x32", 6, 512, 2, 200, 512
TARGET, EVALUATION_EPISODES = 0.95, 400


def collect_once(task: tasks.EnvTask, teacher: NumpyPolicy, seed: int) -> list[dict[str, object]]:
    """One collection: after every round the steps and seconds so far, and the student as it then was."""
    head = losses.student_head("kl", teacher.head)
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
            rounds.append({"env_steps": steps, "seconds": seconds, "policy": family.blueprint(name, task.name)})
    return rounds


def first_lasting(rounds: list[dict[str, object]], retentions: list[float]) -> int | None:
    """Index of the first checkpoint from which the target holds at all later ones."""
    good = len(retentions)
    while good and retentions[good - 1] >= TARGET:
        good -= 1
    return good if good < len(rounds) else None


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


def ours(collections: int) -> dict[str, object]:
    torch.set_num_threads(1)
    task = tasks.resolve("LunarLander-v3")
    teacher = NumpyPolicy(blueprints.load(bundled("bundled:ppo-lunar"))[0])
    seeds = [seeding.episode_seed(12345, "select", i) for i in range(EVALUATION_EPISODES)]
    top = rollout.play(teacher, task, seeds).returns.mean()
    bottom = rollout.play(None, task, seeds, mode="uniform").returns.mean()
    collect_once(task, teacher, 999)  # warm-up: first-call costs of the libraries
    reached, curves, ratios = [], [], []
    for seed in range(collections):
        rounds = collect_once(task, teacher, seed)
        whole = sum(floor_seconds(task, teacher, rounds[-1]["env_steps"], ROUNDS * GRADIENT_STEPS).values())
        ratios.append(rounds[-1]["seconds"] / whole)
        played = [rollout.play(NumpyPolicy(r["policy"]), task, seeds).returns.mean() for r in rounds]
        retentions = [float((mean - bottom) / (top - bottom)) for mean in played]
        curves.append(
            [
                {"env_steps": r["env_steps"], "seconds": r["seconds"], "retention": v}
                for r, v in zip(rounds, retentions, strict=True)
            ]
        )
        index = first_lasting(rounds, retentions)
        reached.append(None if index is None else (rounds[index]["env_steps"], rounds[index]["seconds"]))
        print(f"collection {seed}: {reached[-1]}  {[round(v, 3) for v in retentions]}", flush=True)
    done = [r for r in reached if r is not None]
    return {
        "teacher_return": float(top), "random_return": float(bottom), "collections": collections, "reached": len(done),
        "env_steps": quartiles([r[0] for r in done]), "seconds": quartiles([r[1] for r in done]),
        "wall_over_floor": quartiles(ratios), "curves": curves,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--collections", type=int, default=10)
    parser.add_argument("--peer", action="store_true", help="run imitation's DAgger too, in its own environment")
    parser.add_argument("--peer-collections", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lunarlander.json")
    given = parser.parse_args()
    result = {"machine": machine(), "protocol": __doc__, "limbeck": ours(given.collections)}
    if given.peer:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peer.json"
            command = [
                sys.executable,
                str(HERE / "peers" / "imitation_dagger.py"),
                "--collections",
                str(given.peer_collections),
                "--out",
                str(path),
            ]
            subprocess.run(command, check=True)
            peer = json.loads(path.read_text())
        result["imitation_dagger"] = peer
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result["limbeck"].items() if k != "curves"}, indent=1))


if __name__ == "__main__":
    main()
