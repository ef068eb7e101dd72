"""A student to 95 % of its teacher on LunarLander or HalfCheetah: environment steps and seconds, against peers and the floor.

Protocol (`protocol.py`): a checkpoint per round, each played on fixed seeds outside the bill; the result of a
collection is its first checkpoint from which retention >= .95 holds at all later ones; median and quartiles.

    python benchmarks/distillers.py lunarlander [--collections 10] [--peers] [--out benchmarks/results/lunarlander.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Work:
    """What is distilled into what, and how long; the student has the peers' layers (LunarLander: with ReLU)."""

    env: str
    teacher: str
    student: str
    loss: str
    rounds: int
    steps: int  # environment steps per round
    lanes: int
    gradient_steps: int
    batch: int
    learning_rate: tuple[float, float]  # cosine over the rounds
    seeds: int  # episodes per checkpoint
    peers: tuple[tuple[str, str, float], ...]  # method, settings, share of the collections


WORKS = {
    "lunarlander": Work(
        "LunarLander-v3", "bundled:ppo-lunar", "mlp:32x32", "kl", 6, 512, 2, 100, 512, (1e-2, 1e-3), 200,
        (("dagger", "tuned", 1.0), ("bc", "tuned", 0.5), ("dagger", "default", 0.3)),
    ),
    "halfcheetah": Work(
        "HalfCheetah-v5", str(HERE.parent / "recipes" / "teachers" / "halfcheetah.safetensors"), "mlp:64x64:tanh",
        "gaussian_kl", 7, 3000, 3, 500, 512, (5e-3, 2e-4), 32,
        (("dagger", "tuned", 1.0), ("bc", "tuned", 1.0)),
    ),
}  # fmt: skip


def collect_once(
    work: Work, task: tasks.EnvTask, teacher: NumpyPolicy, seed: int
) -> list[tuple[int, float, Blueprint]]:
    """One collection: after every round the steps and seconds so far, and the student as it then was."""
    head = losses.student_head([work.loss], teacher.head)
    port = Port(task.spec, View(), head, int(np.prod(task.spec.observation_space.shape)))
    family = families.build(parse([work.student]), {task.name: port}, seed)
    name, rounds, seconds, steps = family.members[0].name, [], 0.0, 0
    terms = objective.parse(work.loss, teacher.head)
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(Path(folder), task.name)
        for number in range(work.rounds):
            begin = time.perf_counter()
            plan = collection.Plan(work.steps, work.lanes, "teacher" if number == 0 else "student")
            students = [NumpyPolicy(family.blueprint(name, task.name))]
            taken = collection.collect(task, teacher, students, plan, number, seed)
            data.add(number, taken.columns, {})
            if number == 0:
                family.normalisers[task.name] = imitation.normaliser_of(data, port)
            table = imitation.table(data, port, teacher.head, family.normalisers[task.name], 1.0)
            rate = imitation.cosine(*work.learning_rate, number / (work.rounds - 1))
            pace = imitation.Pace(work.gradient_steps, work.batch, rate, 1.0)
            imitation.imitate(family, {task.name: table}, terms, pace, number, seed)
            seconds, steps = seconds + time.perf_counter() - begin, steps + taken.env_steps
            rounds.append((steps, seconds, family.blueprint(name, task.name)))
    return rounds


def floor_seconds(work: Work, teacher: NumpyPolicy, env_steps: int, gradient_steps: int) -> dict[str, float]:
    """Bare stepping, bare labels and bare gradients of the same counts, each the plainest loop there is."""
    env = gym.make(work.env, disable_env_checker=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(env_steps)]
    observations = np.zeros((env_steps, *env.observation_space.shape), np.float32)
    begin = time.perf_counter()
    for i, action in enumerate(actions):
        observations[i], _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    stepping = time.perf_counter() - begin
    begin = time.perf_counter()
    labels = teacher(observations, {}, np.ones(env_steps, bool)).params
    labelling = time.perf_counter() - begin
    gradients = _bare_gradients(work, torch.from_numpy(observations), torch.from_numpy(labels), gradient_steps)
    return {"stepping": stepping, "labels": labelling, "gradients": gradients}


def _bare_gradients(work: Work, x: torch.Tensor, labels: torch.Tensor, gradient_steps: int) -> float:
    discrete = work.loss == "kl"
    wanted = labels.log_softmax(-1) if discrete else labels[:, : labels.shape[1] // 2].clone()
    widths = [x.shape[1], *map(int, work.student.split(":")[1].split("x")), wanted.shape[1]]
    layers = [part for a, b in itertools.pairwise(widths) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    net = torch.nn.Sequential(*layers[:-1])
    adam = torch.optim.Adam(net.parameters(), 3e-3, fused=True)
    begin = time.perf_counter()
    for _ in range(gradient_steps):
        rows = torch.randint(len(x), (work.batch,))
        if discrete:
            said = net(x[rows]).log_softmax(-1)
            loss = torch.nn.functional.kl_div(said, wanted[rows], log_target=True, reduction="batchmean")
        else:
            loss = torch.nn.functional.huber_loss(net(x[rows]), wanted[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return time.perf_counter() - begin


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"q25": float(low), "median": float(median), "q75": float(high)}


def ours(work: Work, collections: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    task = tasks.resolve(work.env)
    teacher = NumpyPolicy(blueprints.load(Path(bundled(work.teacher)))[0])
    seeds = protocol.SEEDS[: work.seeds]
    top = rollout.play(teacher, task, seeds).returns.mean()
    bottom = rollout.play(None, task, seeds, mode="uniform").returns.mean()
    collect_once(work, task, teacher, 999)  # warm-up: first-call costs of the libraries
    results, curves, ratios = [], [], []
    for seed in range(collections):
        rounds = collect_once(work, task, teacher, seed)
        env_steps, seconds, _ = rounds[-1]
        ratios.append(
            seconds / sum(floor_seconds(work, teacher, env_steps, work.rounds * work.gradient_steps).values())
        )
        means = [float(rollout.play(NumpyPolicy(b), task, seeds).returns.mean()) for _, _, b in rounds]
        checkpoints = [
            Checkpoint(n, s, m, protocol.retention(m, top, bottom)) for (n, s, _), m in zip(rounds, means, strict=True)
        ]
        results.append(protocol.first_lasting(checkpoints))
        curves.append([asdict(c) for c in checkpoints])
        print(f"collection {seed}: {results[-1]}, at the end {checkpoints[-1].retention:.3f}", flush=True)
    told = {key: value for key, value in asdict(work).items() if key not in ("teacher", "peers")}
    return {"teacher_return": float(top), "random_return": float(bottom), "settings": told,
            "summary": protocol.summary(results), "wall_over_floor": quartiles(ratios), "curves": curves}  # fmt: skip


def peer(name: str, method: str, settings: str, collections: int) -> dict[str, Any]:
    """imitation's DAgger or cloning in its own environment, in this same run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.json"
        command = [sys.executable, str(HERE / "peers" / "imitation_peer.py"), "--work", name, "--method", method]
        command += ["--settings", settings, "--collections", str(collections), "--out", str(path)]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def ratio(theirs: float | None, mine: float | None) -> float | None:
    """None where one side's median collection never got there."""
    return None if theirs is None or mine is None else theirs / mine


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=sorted(WORKS))
    parser.add_argument("--collections", type=int, default=10)
    parser.add_argument(
        "--peers", action="store_true", help="run imitation's DAgger and cloning too, in an environment of their own"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    work, out = WORKS[given.work], given.out or HERE / "results" / f"{given.work}.json"
    result: dict[str, Any] = {"machine": machine(), "limbeck": ours(work, given.collections)}
    mine = result["limbeck"]["summary"]
    for method, settings, share in work.peers if given.peers else ():
        theirs = peer(given.work, method, settings, max(2, round(share * given.collections)))
        ratios = {key: ratio(theirs["summary"][key]["median"], mine[key]["median"]) for key in ("env_steps", "seconds")}
        result[f"imitation {method}, {settings}"] = {**theirs, "median_over_limbeck": ratios}
        print(f"imitation {method}, {settings}: {theirs['summary']}  ratios {ratios}")
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result["limbeck"][k] for k in ("summary", "wall_over_floor")}, indent=1))


if __name__ == "__main__":
    main()
