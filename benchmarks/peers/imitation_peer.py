"""`imitation`'s DAgger and behavioural cloning by the protocol of benchmarks/protocol.py, in an environment of its own.

    python benchmarks/peers/imitation_peer.py --work lunarlander --method dagger --settings tuned --out results.json

imitation 1.0.1 pins stable-baselines3 2.2 and gymnasium 0.29, whose newest LunarLander is v2 and newest HalfCheetah v4
(the same games as v3 without wind and as v5: the teacher's mean return in the output tells). The first call builds the
environment, every call runs itself again inside it. What helps the peer is on: no progress bars, no logging rollouts,
one thread (faster for nets this small). `--settings tuned` (the best for it of those we tried) is the fair rival,
`default` what a user gets.
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
ROOT = HERE.parents[1]
VENV = HERE / ".venv" / "imitation"
REQUIREMENTS = (
    "imitation==1.0.1", "stable-baselines3==2.2.1", "gymnasium==0.29.1", "numpy<2", "datasets<4", "pyarrow<20",
    "setuptools<81", "Box2D==2.3.10", "pygame-ce", "safetensors", "mujoco<3", "imageio",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What is distilled into what."""

    env: str
    teacher: Path
    student: tuple[int, int]  # hidden layers, tanh
    action_size: int | None = None  # of continuous actions: the teacher's first rows are their means
    seeds: int = 200  # episodes per checkpoint


WORKS = {
    "lunarlander": Work("LunarLander-v2", ROOT / "src" / "limbeck" / "assets" / "ppo-lunar.safetensors", (32, 32)),
    "halfcheetah": Work("HalfCheetah-v4", ROOT / "recipes" / "teachers" / "halfcheetah.safetensors", (64, 64), 6, 32),
}


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
    episodes: tuple[int, ...] = (2, 4, 8, 16, 32)  # of the teacher, for cloning: one student each


# LunarLander, DAgger, three collections each: fewer environments (rounds become short), a faster schedule, more
# learning per step. 16 environments: 15.5k steps, 8.8 s; 4: 5.8k, 3.6 s; 4, student-driven after one round and twice
# the epochs: 3.6k, 2.4 s; as below: 2.5k, 2.1 s.
SETTINGS = {
    ("lunarlander", "dagger", "default"): Settings(),
    ("lunarlander", "dagger", "tuned"): Settings(
        env_steps=5000, envs=2, round_episodes=2, beta_rounds=3, epochs=8, batch=64, learning_rate=3e-3
    ),
    ("lunarlander", "bc", "tuned"): Settings(envs=2, epochs=32, batch=64, learning_rate=3e-3),
    ("halfcheetah", "dagger", "default"): Settings(env_steps=96_000),
    ("halfcheetah", "dagger", "tuned"): Settings(
        env_steps=48_000, envs=4, round_episodes=4, beta_rounds=3, epochs=8, batch=64, learning_rate=1e-3
    ),
    ("halfcheetah", "bc", "tuned"): Settings(envs=4, epochs=16, batch=64, episodes=(8, 16, 32)),
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
    parser.add_argument("--work", choices=sorted(WORKS), default="lunarlander")
    parser.add_argument("--method", choices=["dagger", "bc"], default="dagger")
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    parser.add_argument("--collections", type=int, default=10)
    parser.add_argument("--settings", choices=["default", "tuned"], default="tuned")
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
    work, settings = WORKS[options.work], SETTINGS[options.work, options.method, options.settings]
    seeds = protocol.SEEDS[: work.seeds]
    teacher = read_policy(work)
    bar, floor = protocol.mean_returns([teacher, None], work.env, options.workers, seeds)
    collect = {"dagger": dagger_rounds, "bc": cloned}[options.method]
    collections, results = [], []
    for seed in range(options.collections):
        billed = collect(work, teacher, seed, settings)
        means = protocol.mean_returns([b["network"] for b in billed], work.env, options.workers, seeds)
        checkpoints = [
            protocol.Checkpoint(b["env_steps"], b["seconds"], mean, protocol.retention(mean, bar, floor))
            for b, mean in zip(billed, means, strict=True)
        ]
        results.append(protocol.first_lasting(checkpoints))
        reached = asdict(results[-1]) if results[-1] else None
        collections.append({"seed": seed, "reached": reached, "checkpoints": [asdict(c) for c in checkpoints]})
        print(f"collection {seed}: {reached}, at the end {checkpoints[-1].retention:.3f}", file=sys.stderr, flush=True)
    return {
        "peer": f"imitation {options.method}",
        "env": work.env,
        "student": f"mlp:{'x'.join(map(str, work.student))}:tanh",
        "settings": {"name": options.settings, **asdict(settings)},
        "teacher": {
            "sha256": hashlib.sha256(work.teacher.read_bytes()).hexdigest(),
            "mean_return": bar,
            "random_return": floor,
        },
        "protocol": {"bar": protocol.BAR, "seeds": [seeds[0], seeds[-1]]},
        "machine": machine.machine(),
        "summary": protocol.summary(results),
        "collections": collections,
    }


def dagger_rounds(work: Work, teacher: Any, seed: int, settings: Settings) -> list[dict[str, Any]]:
    """One collection: SimpleDAggerTrainer.train's own loop, with the clock stopped between rounds to copy the student."""
    import torch
    from imitation.algorithms import dagger
    from imitation.data import rollout

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        venv, student, rng, quiet = _parts(work, seed, scratch, settings)
        trainer = dagger.SimpleDAggerTrainer(
            venv=venv,
            scratch_dir=scratch,
            expert_policy=_expert(work, teacher, venv),
            rng=rng,
            bc_trainer=student,
            beta_schedule=dagger.LinearBetaSchedule(settings.beta_rounds),
            custom_logger=quiet,
        )
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


def cloned(work: Work, teacher: Any, seed: int, settings: Settings) -> list[dict[str, Any]]:
    """Behavioural cloning: a student from scratch for every number of the teacher's episodes, each with a bill of its own."""
    import torch
    from imitation.data import rollout

    billed = []
    for episodes in settings.episodes:
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as scratch:
            venv, student, rng, _ = _parts(work, seed, scratch, settings)
            expert = _expert(work, teacher, venv)
            started = time.perf_counter()
            trajectories = rollout.generate_trajectories(
                policy=expert,
                venv=venv,
                sample_until=rollout.make_min_episodes(episodes),
                deterministic_policy=True,
                rng=rng,
            )
            student.set_demonstrations(rollout.flatten_trajectories(trajectories))
            student.train(n_epochs=settings.epochs, progress_bar=False, log_interval=10**9)
            seconds = time.perf_counter() - started
            env_steps = sum(len(t) for t in trajectories)
            billed.append({"env_steps": env_steps, "seconds": seconds, "network": network_of(student.policy)})
            venv.close()
    return billed


def _parts(work: Work, seed: int, scratch: str, settings: Settings) -> tuple[Any, Any, Any, Any]:
    """Environments, a cloning trainer, its generator and a silent logger."""
    import gymnasium as gym
    import numpy as np
    from imitation.algorithms import bc
    from imitation.util import logger
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import DummyVecEnv

    rng = np.random.default_rng(seed)
    venv = DummyVecEnv([lambda: gym.make(work.env, disable_env_checker=True)] * settings.envs)
    venv.seed(seed * settings.envs)
    quiet = logger.configure(scratch, format_strs=[])
    policy = ActorCriticPolicy(
        venv.observation_space, venv.action_space, lambda _: settings.learning_rate, net_arch=list(work.student)
    )
    student = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        policy=policy,
        rng=rng,
        batch_size=settings.batch,
        optimizer_kwargs={"lr": settings.learning_rate},
        device="cpu",
        custom_logger=quiet,
    )
    return venv, student, rng, quiet


def _expert(work: Work, teacher: Any, venv: Any) -> Any:
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


def read_policy(work: Work) -> list[Any]:
    """The dense layers of a Limbeck policy, its normaliser folded in, without importing Limbeck, whose pins the peer
    cannot share; of a Gaussian the means alone."""
    from safetensors import safe_open

    with safe_open(work.teacher, "numpy") as file:
        described = json.loads(file.metadata()["limbeck"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if any(layer["type"] != "dense" for layer in described["layers"]):
        sys.exit(f"{work.teacher}: the benchmark's teacher must be dense layers.")
    layers = [
        [arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"], kind["activation"]]
        for i, kind in enumerate(described["layers"])
    ]
    if "normaliser.mean" in arrays:  # its clip at some spreads is left out: the teacher's mean return tells
        scaled = layers[0][0] / arrays["normaliser.scale"][:, None]
        layers[0][0] = scaled.astype("float32")
        layers[0][1] = (layers[0][1] - arrays["normaliser.mean"] @ scaled).astype("float32")
    if work.action_size is not None:
        layers[-1][:2] = layers[-1][0][:, : work.action_size], layers[-1][1][: work.action_size]
    return [tuple(layer) for layer in layers]


if __name__ == "__main__":
    main()
