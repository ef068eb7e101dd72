"""Start the Pong teacher from a larger policy that already plays: DAgger with the larger one as the expert.

    python recipes/teachers/imitate.py SOURCE.safetensors [--frames N] [--out FOLDER]

PPO from nothing needs some millions of frames before a sticky Pong moves; where a larger network has been paid for
already, its answers on the states that the small one reaches are far cheaper. SOURCE holds a Nature network
(32 of 8x8/4, 64 of 4x4/2, 64 of 3x3/1, dense 512, heads `pi` and `v`) as plain tensors.

Ross et al. 2011 (arXiv:1011.0686); the loss is the divergence from the expert's distribution (arXiv:1511.06295), and
the critic copies the expert's.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from network import ActorCritic, Network
from ppo import evaluate
from safetensors.torch import load_file
from torch import Tensor, nn
from train import PROOF_SEED, TEACHERS

ENVS, STEPS, BATCH, UPDATES = 32, 64, 256, 24  # of one round: 2048 frames, 24 gradient steps
EXPERT_ROUNDS = 8  # rounds in which the expert still drives
MEMORY = 65_536  # frames


def expert_of(file: Path, like: ActorCritic, observations: object, actions: object) -> ActorCritic:
    """The Nature network, in the same clothes as ours: tensors are matched by their order."""
    network = Network(
        ((32, 8, 4), (64, 4, 2), (64, 3, 1)), (512,), "relu", divide=like.network.divide, channels_last=False
    )
    net = ActorCritic(observations, actions, network)  # type: ignore[arg-type]
    source = load_file(file)
    heads = {k: v.float() for k, v in source.items() if k.split(".")[0] in ("pi", "v")}
    trunk = [v.float() for k, v in sorted(source.items()) if k not in heads]
    wanted = sorted(k for k in net.state_dict() if k.startswith("trunk."))
    assert [t.shape for t in trunk] == [net.state_dict()[k].shape for k in wanted], "not a Nature network"
    renamed = {f"{k.split('.')[0]}.0.{k.split('.')[1]}": v for k, v in heads.items()}
    net.load_state_dict({**net.state_dict(), **dict(zip(wanted, trunk, strict=True)), **renamed})
    return net


def imitate(net: ActorCritic, expert: ActorCritic, frames: int) -> None:
    envs = TEACHERS["pong"].training(ENVS, 7)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    shape = net.shape
    seen, logits, values = torch.zeros(MEMORY, *shape, dtype=torch.uint8), torch.zeros(MEMORY, 6), torch.zeros(MEMORY)
    obs, rounds, started = np.array(envs.reset(seed=7)[0]), frames // (ENVS * STEPS), time.process_time()
    for number in range(rounds):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - number / rounds)
        with torch.no_grad():
            for step in range(STEPS):
                x = torch.from_numpy(np.array(obs))
                begin = ((number * STEPS + step) * ENVS) % MEMORY
                rows = slice(begin, begin + ENVS)
                seen[rows] = x
                logits[rows], values[rows] = expert(x, bf16=True)
                driver = logits[rows] if number < EXPERT_ROUNDS else net(x, bf16=True)[0]
                obs = envs.step(net.executed(net.said(driver)))[0]
        filled = min((number + 1) * STEPS * ENVS, MEMORY)
        losses = [
            _update(net, optimiser, seen, logits, values, torch.randint(filled, (BATCH,))) for _ in range(UPDATES)
        ]
        if (number + 1) % 8 == 0:
            print(
                f"{(number + 1) * STEPS * ENVS:>9,} frames {time.process_time() - started:6.0f} s"
                f"  divergence {np.mean(losses):.4f}",
                flush=True,
            )
    envs.close()


def _update(
    net: ActorCritic, optimiser: torch.optim.Optimizer, seen: Tensor, logits: Tensor, values: Tensor, rows: Tensor
) -> float:
    policy, value = net(seen[rows], bf16=True)
    wanted = logits[rows].log_softmax(1)
    divergence = nn.functional.kl_div(policy.log_softmax(1), wanted, log_target=True, reduction="batchmean")
    loss = divergence + 0.1 * nn.functional.mse_loss(value, values[rows])
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    return float(divergence.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--frames", type=int, default=180_000)
    parser.add_argument("--out", type=Path, default=Path("teachers"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, started = TEACHERS["pong"], time.process_time()
    envs = teacher.training(1, 0)
    net = ActorCritic(envs.single_observation_space, envs.single_action_space, teacher.network)
    expert = expert_of(args.source, net, envs.single_observation_space, envs.single_action_space)
    envs.close()
    imitate(net, expert, args.frames)
    seconds = time.process_time() - started
    torch.save(net.state_dict(), args.out / "pong.pt")
    print("in ale-py's vector environment:", evaluate(net, teacher.training, 32, PROOF_SEED - 1000, bf16=True, envs=32))
    score = evaluate(net, teacher.plain, 32, PROOF_SEED)
    settings = {
        "steps": args.frames,
        "seed": 0,
        "reward_scale": 1.0,
        "expert": "Nature network, PPO, 1.4 M steps without sticky actions",
    }
    record = {
        "name": "pong",
        "algorithm": "DAgger",
        "recipe": "recipes/teachers/imitate.py SOURCE",
        "env": teacher.env,
        "env_kwargs": teacher.kwargs,
        "network": asdict(teacher.network),
        "settings": settings,
        "parameters": sum(p.numel() for p in net.parameters()),
        "cpu_seconds": round(seconds),
        "return": asdict(score),
    }
    (args.out / "pong.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"pong: {score.mean:.3f} ({score.low:.3f} to {score.high:.3f}), {score.episodes} episodes")


if __name__ == "__main__":
    main()
