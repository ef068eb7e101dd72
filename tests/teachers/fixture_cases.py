"""The teacher files in tests/fixtures: what their JSON states, the environment it names, and what each needs to load."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from limbeck import tasks, teachers
from limbeck.contracts import Spec, Task, Teacher

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROGRAMS = ("torch_scripted", "torch_traced", "torch_exported")  # code, which plays confined where its digest is given
OPTIONS: dict[str, dict[str, str]] = {
    "torch_state_dict": {"architecture": "dense tanh > dense relu > head"},
    "rslrl_state_std": {"architecture": "tanh", "kind": "gaussian"},
}


def _environments() -> Any:
    spec = importlib.util.spec_from_file_location("fixture_environments", FIXTURES / "makers" / "environments.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = _environments()


def _masked_identity() -> gym.Env:
    from sb3_contrib.common.envs import InvalidActionEnvDiscrete

    return InvalidActionEnvDiscrete(dim=6, ep_length=50, n_invalid_actions=3)


def _four_frames() -> gym.Env:
    """Stacked by the environment, [4, 84, 84]."""
    env = gym.wrappers.FrameStackObservation(MADE.Beacon(84, "CHW"), 4)
    return gym.wrappers.ReshapeObservation(env, (4, 84, 84))


ENVIRONMENTS: dict[str, Callable[[], gym.Env]] = {  # the first that the stated name begins with
    "CartPole-v1 without velocities": lambda: MADE.HiddenVelocity(gym.make("CartPole-v1")),
    "CartPole-v1": lambda: gym.make("CartPole-v1"),
    "Pendulum-v1": lambda: gym.make("Pendulum-v1"),
    "Beacon(84, 'CHW'), four frames": _four_frames,
    "Beacon(36, 'HWC', continuous=True)": lambda: MADE.Beacon(36, "HWC", continuous=True),
    "Beacon(36, 'HWC')": MADE.Beacon,
    "Beacon(36, 'CHW', floats=True)": lambda: MADE.Beacon(36, "CHW", floats=True),
    "Copy(MultiDiscrete([3, 2, 4]))": lambda: MADE.Copy(spaces.MultiDiscrete([3, 2, 4])),
    "Copy(MultiBinary(4))": lambda: MADE.Copy(spaces.MultiBinary(4)),
    "Mixed()": MADE.Mixed,
    "InvalidActionEnvDiscrete": _masked_identity,
}


def facts_of(name: str) -> dict[str, Any]:
    """What NAME.json states."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def golden_of(name: str) -> dict[str, np.ndarray]:
    """The program's own answers."""
    with np.load(FIXTURES / f"{name}.golden.npz") as found:
        return {key: found[key] for key in found.files}


def environment_of(name: str) -> str:
    """The key of `ENVIRONMENTS` that NAME.json names."""
    said = facts_of(name)["env"]
    return next(key for key in ENVIRONMENTS if said.startswith(key))


def task_of(name: str) -> Task:
    return tasks.resolve(ENVIRONMENTS[environment_of(name)])


def loaded(name: str, spec: Spec | None, scratch: Path | None = None) -> Teacher:
    """The teacher with the options that its file needs: statistics beside it, its digest where it is code. A model
    with weights in another file is first written to the folder `scratch` as one file, as its refusal advises."""
    path = FIXTURES / facts_of(name)["file"]
    if path.with_name(f"{path.name}.data").exists() and scratch is not None:
        import onnx

        onnx.save(onnx.load(path), scratch / path.name)
        path = scratch / path.name
    options: dict[str, Any] = dict(OPTIONS.get(name, {}))
    statistics = path.with_suffix(".pkl")
    if statistics.exists():
        options["normaliser"] = statistics
    if name in PROGRAMS:
        options["trust"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return teachers.load(path, spec, **options)
