"""Train one teacher of the table below: python recipes/teachers/train.py NAME [--out FOLDER].

Writes NAME.pt (a plain torch state dict) and NAME.json (what it is, how it was made, what it scores). The score is
measured in the plain environment, on episodes that neither training nor the choice of the checkpoint has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import environments as worlds
import torch
from network import Network
from ppo import Make, Settings, evaluate, train

PROOF_SEED = 90_000_000


@dataclass(frozen=True)
class Teacher:
    """One row of the table."""

    env: str  # in words, with what differs from the id's defaults
    training: Make
    plain: Make
    network: Network
    settings: Settings
    episodes: int = 128  # of the final measurement
    kwargs: dict[str, object] = field(default_factory=dict)


MLP = Network()
TEACHERS = {
    "cartpole": Teacher(
        "CartPole-v1",
        worlds.pooled("CartPole-v1"),
        worlds.several(worlds.cartpole),
        MLP,
        Settings(
            300_000, envs=16, horizon=128, minibatch=256, epochs=8, learning_rate=1e-3, lam=0.97, reward_scale=0.1
        ),
    ),
    "doorkey": Teacher(
        "MiniGrid-DoorKey-5x5-v0, image only",
        worlds.pooled("MiniGrid-DoorKey-5x5-v0"),
        worlds.several(worlds.doorkey),
        Network(conv=((16, 2, 1), (32, 2, 1), (32, 2, 1)), dense=(64,), activation="relu", key="image", divide=10.0),
        Settings(400_000, envs=32, horizon=128, minibatch=512, epochs=4, learning_rate=1e-3),
    ),
    "pendulum": Teacher(
        "Pendulum-v1",
        worlds.pooled("Pendulum-v1"),
        worlds.several(worlds.pendulum),
        MLP,
        Settings(
            1_200_000,
            envs=16,
            horizon=512,
            minibatch=512,
            epochs=8,
            gamma=0.9,
            entropy=0.0,
            reward_scale=0.1,
            check_episodes=256,
        ),
    ),
    "halfcheetah": Teacher(
        "HalfCheetah-v5",
        worlds.pooled("HalfCheetah-v5"),
        worlds.several(worlds.halfcheetah),
        Network(normalise=True, log_std=-1.0),
        Settings(
            4_000_000,
            envs=16,
            horizon=256,
            minibatch=512,
            epochs=8,
            learning_rate=5e-4,
            gamma=0.98,
            lam=0.92,
            entropy=0.0005,
            reward_scale=0.05,
            check_episodes=16,
        ),
    ),
    "breakout": Teacher(
        "MinAtar/Breakout-v1, at most 5000 steps",
        worlds.several(worlds.breakout),
        worlds.several(worlds.breakout),
        Network(conv=((16, 3, 1),), dense=(64,), activation="relu"),
        Settings(
            6_000_000, envs=64, horizon=128, minibatch=1024, epochs=4, learning_rate=2.5e-3, lam=0.9, check_episodes=32
        ),
        kwargs={"max_episode_steps": 5000},
    ),
    "sardine": Teacher(
        "sardine/SlateRerank-Static-v0 in sardine.wrappers.IdealState",
        worlds.several(worlds.sardine_rerank),
        worlds.several(worlds.sardine_rerank),
        MLP,
        Settings(
            1_000_000,
            envs=32,
            horizon=40,
            minibatch=512,
            epochs=6,
            gamma=0.9,
            entropy=0.002,
            checks=20,
            check_episodes=256,
        ),
        episodes=1024,
    ),
    "highway": Teacher(
        "highway-fast-v0",
        worlds.pooled("highway-fast-v0"),
        worlds.several(worlds.highway),
        Network(normalise=True),
        Settings(
            3_000_000,
            envs=32,
            horizon=128,
            minibatch=1024,
            epochs=6,
            learning_rate=7e-4,
            gamma=0.95,
            entropy=0.02,
            reward_scale=0.3,
            check_episodes=128,
        ),
        episodes=100,
    ),
    "pursuit": Teacher(
        "pettingzoo.sisl.pursuit_v5, one network for all pursuers",
        worlds.pursuers,
        worlds.pursuers,
        MLP,
        Settings(
            800_000,
            envs=16,
            horizon=128,
            minibatch=1024,
            epochs=4,
            learning_rate=1e-3,
            reward_scale=0.2,
            checks=8,
            check_episodes=32,
        ),
        episodes=128,
        kwargs=dict(worlds.PURSUIT),
    ),
    "pong": Teacher(  # the file here was made by imitate.py; half a million steps of PPO from nothing stayed at -20.5
        "ALE/Pong-v5, sticky 0.25, no-ops 30, skip 4, 84x84 grey, 4 frames",
        worlds.pong_vector,
        worlds.several(worlds.pong),
        Network(conv=((16, 8, 4), (32, 4, 2)), dense=(128,), activation="relu", divide=255.0, channels_last=False),
        Settings(
            3_000_000,
            envs=16,
            horizon=128,
            minibatch=256,
            epochs=3,
            learning_rate=5e-4,
            clip=0.1,
            bf16=True,
            checks=15,
            check_episodes=8,
        ),
        episodes=48,
        kwargs={"frameskip": 1, "repeat_action_probability": 0.25},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(TEACHERS))
    parser.add_argument("--out", type=Path, default=Path("teachers"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher, started, wall = TEACHERS[args.name], time.process_time(), time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{args.name}.pt"
    net = train(teacher.training, teacher.network, teacher.settings, lambda best: torch.save(best, file))
    seconds, wall = time.process_time() - started, time.monotonic() - wall
    score = evaluate(net, teacher.plain, teacher.episodes, PROOF_SEED)
    record = {
        "name": args.name,
        "env": teacher.env,
        "env_kwargs": teacher.kwargs,
        "network": asdict(teacher.network),
        "settings": asdict(teacher.settings),
        "parameters": sum(p.numel() for p in net.parameters()),
        "cpu_seconds": round(seconds),
        "wall_seconds": round(wall),
        "return": asdict(score),
    }
    (args.out / f"{args.name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{args.name}: {score.mean:.3f} ({score.low:.3f} to {score.high:.3f}), {score.episodes} episodes")


if __name__ == "__main__":
    main()
