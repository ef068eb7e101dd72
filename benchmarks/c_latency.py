"""One step of exported C students 8-64-64-4, ReLU and tanh: against the arithmetic floor, ONNX Runtime and SB3 predict.

    python benchmarks/c_latency.py

Native: a C loop over 64 observations that adds up the chosen actions, guard included; no fast-math. Each build has its
own floors, measured with the same compiler and instructions (those that a plain -O2 build picks at run time, without fused
multiply-adds, as there) as times of work that a step cannot avoid:

- "multiply-adds alone": at the peak rate of 12 independent chains in registers;
- "with its activations": and 128 tanh in registers, 8 independent chains, of the cheaper of two formulas that are as
  exact as the exported one (one division, or Newton's steps instead); ReLU counts nothing, so there the two are equal;
- "reading": the multiply-adds with every weight read once from memory in order, and the activations.

ONNX Runtime is called through its C API on bound tensors, one thread; it too chooses the widest instructions of the machine
at run time. From Python: one observation in, one action out. Rounds of all contestants alternate, and the best of ROUNDS
(from Python, of BURSTS) counts, so that a busy machine slows nobody more than the others.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import latency_programs
import numpy as np
import onnxruntime
from machine import machine

from limbeck import seeding, spaces, storage
from limbeck.contracts import Array, Blueprint, Dense, Range, Spec
from limbeck.exporters import c, onnx
from limbeck.exporters.ccode import dispatch
from limbeck.runtimes import compiled_c, onnx_session

SIZES = (8, 64, 64, 4)
ACTIVATIONS = ("relu", "tanh")
ROUNDS = 15
BURSTS = 300  # of calls from Python, each shorter than what the scheduler gives to one program
RESULT = Path(__file__).parent / "results" / "c_latency.json"
BUILDS = {
    "O2": ("-O2",),
    "O2 SSE2": ("-O2", "-DLIMBECK_NO_DISPATCH"),
    "O2 native": ("-O2", "-march=native"),
    "O3 native": ("-O3", "-march=native"),
}


def main() -> None:
    networks = {activation: student(activation) for activation in ACTIVATIONS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = {name: c.export(network, folder / name / "c") for name, network in networks.items()}
        native = native_times(networks, folder)
        python = {name: python_times(network, folder / name) for name, network in networks.items()}
    relu = networks["relu"]
    report = {
        "machine": {**machine(), "compiler": compiler_version()},
        "network": {"sizes": SIZES, "parameters": relu.parameters, "multiply_adds": relu.multiply_adds},
        "bytes": {name: artifact.size_bytes for name, artifact in made.items()},
        "rounds": ROUNDS,
        "native": native,
        "python_us": python,
        "ratios": ratios(native, python),
    }
    storage.write_json(RESULT, report)
    print(json.dumps(storage.plain(report), indent=1))


def student(activation: str = "relu") -> Blueprint:
    """8-64-64-4 with random weights, and a range of what was seen."""
    rng = seeding.generator(0, "train", 8644)
    layers = tuple(
        Dense(
            (rng.normal(size=(n, m)) / np.sqrt(n)).astype(np.float32),
            rng.normal(size=m).astype(np.float32) * 0.1,
            activation,
        )
        for n, m in itertools.pairwise(SIZES)
    )
    layers = (*layers[:-1], Dense(layers[-1].weight, layers[-1].bias))
    spec = Spec(gym.spaces.Box(-np.inf, np.inf, (8,), np.float32), gym.spaces.Discrete(4), "latency")
    seen = Range(np.full(8, -3, np.float32), np.full(8, 3, np.float32))
    return Blueprint(spec, spaces.head_for(spec.action_space), layers, name="mlp:64x64", seen=seen)


# ---------------------------------------------------------------- native


def native_times(networks: dict[str, Blueprint], folder: Path) -> dict[str, Any]:
    """Nanoseconds per step of each activation and build, of ONNX Runtime, and the floors."""
    commands = programs(networks, folder)
    times: dict[str, list[float]] = {name: [] for name in commands if not name.startswith("floor")}
    parts: dict[str, list[list[float]]] = {build: [] for build in BUILDS}
    actions: dict[str, set[str]] = {activation: set() for activation in networks}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            words = run(command)
            kind, which = name.split(" ", 1)
            if kind == "floor":
                parts[which].append([float(word) for word in words[:4]])
            else:
                times[name].append(float(words[0]))
                actions[kind].add(words[1])
    if any(len(found) != 1 for found in actions.values()):
        raise SystemExit(f"the builds or ONNX Runtime do not choose the same actions: {actions}")
    best = {build: np.min(found, axis=0) for build, found in parts.items()}
    return {
        "floor_ns": {
            name: {build: floors(network, best[build]) for build in BUILDS} for name, network in networks.items()
        },
        "floor_lanes": {build: int(best[build][3]) for build in BUILDS},
        "step_ns": {name: min(values) for name, values in times.items()},
        "step_ns_median": {name: statistics.median(values) for name, values in times.items()},
    }


def floors(network: Blueprint, measured: Array) -> dict[str, float]:
    """Nanoseconds of a step's arithmetic; `measured` [4]: nanoseconds per multiply-add, per one that reads, per tanh; lanes.

    >>> {name: round(ns) for name, ns in floors(student("tanh"), np.array([0.01, 0.02, 0.25, 16])).items()}
    {'multiply-adds alone': 49, 'with its activations': 81, 'reading': 129}
    >>> round(floors(student("relu"), np.array([0.01, 0.02, 0.25, 16]))["with its activations"])
    49
    """
    squashed = sum(layer.outputs for layer in network.layers if isinstance(layer, Dense) and layer.activation == "tanh")
    adds, reads, squash = (float(ns) for ns in measured[:3])
    return {
        "multiply-adds alone": network.multiply_adds * adds,
        "with its activations": network.multiply_adds * adds + squashed * squash,
        "reading": network.multiply_adds * max(reads, adds) + squashed * squash,
    }


def programs(networks: dict[str, Blueprint], folder: Path) -> dict[str, list[str]]:
    """The commands to time, by "activation build", "activation onnxruntime" and "floor build"."""
    commands: dict[str, list[str]] = {}
    for flags_name, flags in {**BUILDS, "O2": ("-O2", *picked(folder))}.items():
        commands[f"floor {flags_name}"] = [compiled(latency_programs.FLOOR, folder, f"floor {flags_name}", flags)]
    for activation, network in networks.items():
        place = folder / activation
        for flags_name, flags in BUILDS.items():
            commands[f"{activation} {flags_name}"] = [compiled(latency_programs.LOOP, place / "c", flags_name, flags)]
        onnx.export(network, place / "onnx")
        caller = compiled(latency_programs.RUNTIME, place / "onnx", "runtime", ("-O2", "-w", "-ldl"))
        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*")
        commands[f"{activation} onnxruntime"] = [caller, str(library), str(place / "onnx" / "policy.onnx")]
    return commands


def picked(folder: Path) -> tuple[str, ...]:
    """The flags for the instructions that a plain build picks at run time here."""
    asked = (f'if (__builtin_cpu_supports("{kind}")) return puts("{kind}") < 0;' for kind in dispatch.TARGETS)
    source = f"#include <stdio.h>\nint main(void) {{ {' '.join(asked)} return 0; }}\n"
    found = run([compiled(source, folder, "picked", ("-O2",))])
    return (f"-m{found[0]}", "-ffp-contract=off") if found else ()


def compiled(source: str, folder: Path, name: str, flags: tuple[str, ...]) -> str:
    program = folder / name.replace(" ", "_")
    text = program.with_suffix(".c")
    text.write_text(source)
    compiled_c.run_compiler([*flags, "-Wno-unknown-pragmas", str(text), "-o", str(program), "-lm"])
    return str(program)


def run(command: list[str]) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def compiler_version() -> str:
    return subprocess.run(
        [*compiled_c.compiler(), "--version"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[0]


# ---------------------------------------------------------------- from Python


def python_times(network: Blueprint, folder: Path) -> dict[str, float]:
    """Microseconds per call, one observation in and one action out."""
    observations = seeding.generator(0, "train", 9).normal(size=(64, 8)).astype(np.float32)
    contestants = {
        "limbeck step": c_step(network, folder, native=False),
        "limbeck step native": c_step(network, folder, native=True),
        "onnxruntime": onnx_step(network, folder),
        "sb3 predict": sb3_step(network),
    }
    answers = [[int(call(o)) for o in observations] for call in contestants.values()]
    if any(answer != answers[0] for answer in answers):
        raise SystemExit("the contestants do not choose the same actions")
    calls = {"limbeck step": 2_000, "limbeck step native": 2_000, "onnxruntime": 100, "sb3 predict": 10}
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(BURSTS):
        for name, call in contestants.items():
            best[name] = min(best[name], timed(call, observations, calls[name]))
    return best


def timed(call: Callable[[Array], Any], observations: Array, calls: int) -> float:
    rows = [observations[i % len(observations)] for i in range(calls)]
    begin = time.perf_counter()
    for row in rows:
        call(row)
    return (time.perf_counter() - begin) / calls * 1e6


def c_step(network: Blueprint, folder: Path, native: bool) -> Callable[[Array], int]:
    return compiled_c.load(folder / "c", network.spec, network.head, native=native).step


def onnx_step(network: Blueprint, folder: Path) -> Callable[[Array], int]:
    artifact = onnx.export(network, folder / "onnx")
    run_session = onnx_session.session((artifact.folder / "policy.onnx").read_bytes(), "policy.onnx").run

    def step(obs: Array) -> int:
        return run_session(["action"], {"obs": obs[None]})[0][0, 0]  # type: ignore[no-any-return]

    return step


def sb3_step(network: Blueprint) -> Callable[[Array], int]:
    """An SB3 policy with the same weights; its own `predict`."""
    import torch
    from stable_baselines3.common.policies import ActorCriticPolicy

    torch.set_num_threads(1)
    first = network.layers[0]
    assert isinstance(first, Dense)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = ActorCriticPolicy(
            network.spec.observation_space, network.spec.action_space, lambda _: 1e-3,
            net_arch={"pi": [64, 64], "vf": [64, 64]},
            activation_fn=torch.nn.ReLU if first.activation == "relu" else torch.nn.Tanh,
        )  # fmt: skip
    linear = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [policy.action_net]
    with torch.no_grad():
        for module, layer in zip(linear, network.layers, strict=True):
            assert isinstance(layer, Dense)
            module.weight.copy_(torch.from_numpy(layer.weight.T.copy()))
            module.bias.copy_(torch.from_numpy(layer.bias))
    policy.set_training_mode(False)

    def step(obs: Array) -> int:
        return int(policy.predict(obs, deterministic=True)[0])

    return step


def ratios(native: dict[str, Any], python: dict[str, dict[str, float]]) -> dict[str, float]:
    """What is quoted: native over the floors, and how many times faster than the others."""
    found = {}
    for activation in ACTIVATIONS:
        for flags in BUILDS:
            step = native["step_ns"][f"{activation} {flags}"]
            for name, floor in native["floor_ns"][activation][flags].items():
                found[f"{activation} {flags} / floor, {name}"] = step / floor
            found[f"onnxruntime C API / {activation} {flags}"] = native["step_ns"][f"{activation} onnxruntime"] / step
        for ours in ("limbeck step", "limbeck step native"):
            for other in ("sb3 predict", "onnxruntime"):
                found[f"python, {activation}: {other} / {ours}"] = python[activation][other] / python[activation][ours]
    return found


if __name__ == "__main__":
    main()
