"""`imitation`'s DAgger on LunarLander, by the protocol of benchmarks/protocol.py, in a virtual environment of its own.

    python benchmarks/peers/imitation_dagger.py --settings tuned --collections 10 --out results.json

imitation 1.0.1 pins stable-baselines3 2.2 and gymnasium 0.29, whose newest LunarLander is v2 (without wind it is the
same game as v3: the teacher's mean return in the output tells). The first call builds the environment, every call
runs itself again inside it. What helps the peer is on: no progress bars, no logging rollouts, one thread (faster for
nets this small). `--settings tuned` (the best for it of those we tried) is the fair rival, `default` what a user gets.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv" / "imitation"
TEACHER = HERE.parents[1] / "src" / "limbeck" / "assets" / "ppo-lunar.safetensors"
ENV = "LunarLander-v2"
REQUIREMENTS = (
    "imitation==1.0.1", "stable-baselines3==2.2.1", "gymnasium==0.29.1", "numpy<2", "datasets<4", "pyarrow<20",
    "setuptools<81", "Box2D==2.3.10", "pygame-ce", "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What may be chosen about the peer; the defaults are its own, but for the number of environments, which has none."""

    env_steps: int = 16_000  # a collection ends after the round that passes this
    envs: int = 8
    round_episodes: int = 3  # least of a round; every environment finishes its episode
    round_steps: int = 500  # least of a round
    beta_rounds: int = 15  # linear schedule from teacher to student
    epochs: int = 4  # of behavioural cloning per round, over all data so far
    batch: int = 32
    learning_rate: float = 1e-3


# Tuned by us for this task, three collections each: fewer environments (rounds become short), a faster schedule, more
# learning per step. 16 environments: 15.5k steps, 8.8 s; 4: 5.8k, 3.6 s; 4, student-driven after one round and twice
# the epochs: 3.6k, 2.4 s; as below: 2.5k, 2.1 s.
SETTINGS = {
    "default": Settings(),
    "tuned": Settings(env_steps=8000, envs=2, round_episodes=2, beta_rounds=3, epochs=8, batch=64, learning_rate=3e-3),
}


def main() -> None:
    options = _options()
    if Path(sys.prefix).resolve() != VENV.resolve():
        python = ensure_venv()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # it stores every episode as a data set
        os.execv(python, [str(python), "-W", "ignore", str(Path(__file__).resolve()), *sys.argv[1:]])
    result = run(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="a Limbeck policy (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    parser.add_argument("--collections", type=int, default=10)
    parser.add_argument("--settings", choices=sorted(SETTINGS), default="tuned")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that play checkpoints")
    return parser.parse_args()


# ---------------------------------------------------------------- outside: the peer's own environment


def ensure_venv() -> Path:
    """The interpreter of the peer's environment, built when it is missing or was built from other requirements."""
    python, stamp = VENV / "bin" / "python", VENV / "requirements.json"
    torch = "torch==" + importlib.metadata.version("torch").split("+")[0]  # the same build our side runs on
    wanted = json.dumps([*REQUIREMENTS, torch])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"building {VENV} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", *REQUIREMENTS, torch], check=True)
        stamp.write_text(wanted)
    return python


# ---------------------------------------------------------------- inside: the peer


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All collections and their summary, as plain data."""
    import torch

    sys.path.insert(0, str(HERE.parent))
    import machine
    import protocol

    torch.set_num_threads(1)
    settings = SETTINGS[options.settings]
    teacher = read_policy(options.teacher)
    bar, floor = protocol.mean_returns([teacher, None], ENV, options.workers)
    collections, results = [], []
    for seed in range(options.collections):
        billed = collect(teacher, seed, settings)
        means = protocol.mean_returns([b["network"] for b in billed], ENV, options.workers)
        checkpoints = [
            protocol.Checkpoint(b["env_steps"], b["seconds"], mean, protocol.retention(mean, bar, floor))
            for b, mean in zip(billed, means, strict=True)
        ]
        results.append(protocol.first_lasting(checkpoints))
        reached = asdict(results[-1]) if results[-1] else None
        collections.append({"seed": seed, "reached": reached, "checkpoints": [asdict(c) for c in checkpoints]})
        print(f"collection {seed}: {reached}", file=sys.stderr, flush=True)
    return {
        "peer": "imitation DAgger",
        "env": ENV,
        "student": "mlp:32x32 (FeedForward32Policy)",
        "settings": {"name": options.settings, **asdict(settings)},
        "teacher": {
            "sha256": hashlib.sha256(options.teacher.read_bytes()).hexdigest(),
            "mean_return": bar,
            "random_return": floor,
        },
        "protocol": {"bar": protocol.BAR, "seeds": [protocol.SEEDS[0], protocol.SEEDS[-1]]},
        "machine": machine.machine(),
        "summary": protocol.summary(results),
        "collections": collections,
    }


def collect(teacher: Any, seed: int, settings: Settings) -> list[dict[str, Any]]:
    """One collection: SimpleDAggerTrainer.train's own loop, with the clock stopped between rounds to copy the student."""
    import torch
    from imitation.data import rollout

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(teacher, seed, scratch, settings)
        billed: list[dict[str, Any]] = []
        env_steps, seconds = 0, 0.0
        while env_steps < settings.env_steps:
            started = time.perf_counter()
            collector = trainer.create_trajectory_collector()
            trajectories = rollout.generate_trajectories(
                policy=trainer.expert_policy,
                venv=collector,
                sample_until=rollout.make_sample_until(settings.round_steps, settings.round_episodes),
                deterministic_policy=True,
                rng=collector.rng,
            )
            trainer.extend_and_update(
                {"n_epochs": settings.epochs, "progress_bar": False, "log_rollouts_venv": None, "log_interval": 10**9}
            )
            seconds += time.perf_counter() - started
            env_steps += sum(len(t) for t in trajectories)
            billed.append({"env_steps": env_steps, "seconds": seconds, "network": network_of(trainer.policy)})
        trainer.venv.close()
    return billed


def _trainer(teacher: Any, seed: int, scratch: str, settings: Settings) -> Any:
    import gymnasium as gym
    import numpy as np
    from imitation.algorithms import bc, dagger
    from imitation.util import logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    rng = np.random.default_rng(seed)
    venv = DummyVecEnv([lambda: gym.make(ENV, disable_env_checker=True)] * settings.envs)
    venv.seed(seed * settings.envs)
    quiet = logger.configure(scratch, format_strs=[])
    student = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        batch_size=settings.batch,
        optimizer_kwargs={"lr": settings.learning_rate},
        device="cpu",
        custom_logger=quiet,
    )
    return dagger.SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=scratch,
        expert_policy=_expert(teacher, venv),
        rng=rng,
        bc_trainer=student,
        beta_schedule=dagger.LinearBetaSchedule(settings.beta_rounds),
        custom_logger=quiet,
    )


def _expert(teacher: Any, venv: Any) -> Any:
    """The shared weights as a Stable-Baselines3 policy, the only expert the peer accepts; its critic is never asked."""
    import torch
    from stable_baselines3.common.policies import ActorCriticPolicy

    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[teacher[0][2]]
    hidden = [len(bias) for _, bias, _ in teacher[:-1]]
    policy = ActorCriticPolicy(
        venv.observation_space, venv.action_space, lambda _: 0.0, net_arch=hidden, activation_fn=activation
    )
    own = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [policy.action_net]
    with torch.no_grad():
        for layer, (weight, bias, _) in zip(own, teacher, strict=True):
            layer.weight.copy_(torch.from_numpy(weight.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias.copy()))
    return policy


def network_of(policy: Any) -> list[Any]:
    """An actor of two tanh layers as plain arrays."""
    import torch

    layers = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [policy.action_net]
    arrays = [(m.weight.detach().numpy().T.copy(), m.bias.detach().numpy().copy()) for m in layers]
    return [(*a, "tanh" if i < len(arrays) - 1 else "identity") for i, a in enumerate(arrays)]


def read_policy(path: Path) -> list[Any]:
    """The dense layers of a Limbeck policy without importing Limbeck, whose pins the peer cannot share."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["limbeck"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "normaliser.mean" in arrays or any(layer["type"] != "dense" for layer in described["layers"]):
        sys.exit(f"{path}: the benchmark's teacher must be dense layers without a normaliser.")
    kinds = enumerate(described["layers"])
    return [(arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"], kind["activation"]) for i, kind in kinds]


if __name__ == "__main__":
    main()
