"""One step of the exported C student 8-64-64-4 ReLU: against the core's arithmetic floor, ONNX Runtime and SB3 predict.

    python benchmarks/c_latency.py

Native: a C loop over 64 observations that adds up the chosen actions; the compiler's default dialect, no fast-math.
Floor: the net's multiply-adds at the peak float32 FMA rate of this core, measured in the same run by 12 independent
chains of the widest vectors that -march=native gives. From Python: one observation in, one action out. Rounds of all
contestants alternate, and the best of ROUNDS counts, so that a busy machine slows nobody more than the others.
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
import numpy as np
from machine import machine

from limbeck import seeding, spaces, storage
from limbeck.contracts import Array, Blueprint, Dense, Spec
from limbeck.exporters import c, onnx
from limbeck.runtimes import compiled_c, onnx_session

SIZES = (8, 64, 64, 4)
ROUNDS = 15
RESULT = Path(__file__).parent / "results" / "c_latency.json"
BUILDS = {
    "O2": ("-O2",),
    "O2 native": ("-O2", "-march=native"),
    "O3 native": ("-O3", "-march=native"),
}

LOOP = r"""
#define _POSIX_C_SOURCE 200809L
#include "policy.c"
#include <stdio.h>
#include <time.h>

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }

int main(void)
{
    static float obs[64][LIMBECK_OBS];
    float params[LIMBECK_PARAMS];
    limbeck_action action[LIMBECK_ACTIONS];
    limbeck_state memory;
    long sum = 0;
    double best = 1e30;
    int i, round;
    for (i = 0; i < 64 * LIMBECK_OBS; i++)
        obs[i / LIMBECK_OBS][i % LIMBECK_OBS] = (float)(i * 7 % 31) / 8.0f - 2.0f;
    limbeck_reset(&memory);
    for (round = 0; round < 10; round++) {
        double begin = now(), spent;
        for (i = 0; i < 20000; i++) {
            limbeck_step(&memory, obs[i % 64], params, action);
            sum += action[0];
        }
        spent = (now() - begin) / 20000;
        best = spent < best ? spent : best;
    }
    printf("%.3f %ld\n", best, sum);
    return 0;
}
"""

FLOOR = r"""
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <time.h>
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float vec __attribute__((vector_size(LANES * 4)));

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }

int main(int argc, char **argv)
{
    const vec m = (vec){0} + 0.999f, s = (vec){0} + 0.001f * (float)argc;
    /* different beginnings: equal chains would be merged by the compiler */
    vec a = s, b = a + s, c = b + s, d = c + s, e = d + s, f = e + s;
    vec g = f + s, h = g + s, i = h + s, j = i + s, k = j + s, l = k + s;
    double best = 1e30;
    int round, n;
    (void)argv;
    for (round = 0; round < 10; round++) {
        double begin = now(), spent;
        for (n = 0; n < 50000; n++) {
            a = a * m + s, b = b * m + s, c = c * m + s, d = d * m + s, e = e * m + s, f = f * m + s;
            g = g * m + s, h = h * m + s, i = i * m + s, j = j * m + s, k = k * m + s, l = l * m + s;
        }
        spent = (now() - begin) / (50000.0 * 12 * LANES);
        best = spent < best ? spent : best;
    }
    a = a + b + c + d + e + f + g + h + i + j + k + l;
    printf("%.9f %d %f\n", best, LANES, (double)a[0]);
    return 0;
}
"""


def main() -> None:
    network = student()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        artifact = c.export(network, folder / "c")
        native = native_times(folder, network.multiply_adds)
        python = python_times(network, folder)
    report = {
        "machine": {**machine(), "compiler": compiler_version()},
        "network": {"sizes": SIZES, "parameters": network.parameters, "multiply_adds": network.multiply_adds},
        "bytes": artifact.size_bytes,
        "rounds": ROUNDS,
        "native": native,
        "python_us": python,
        "ratios": ratios(native, python),
    }
    storage.write_json(RESULT, report)
    print(json.dumps(storage.plain(report), indent=1))


def student() -> Blueprint:
    """8-64-64-4 ReLU with random weights."""
    rng = seeding.generator(0, "train", 8644)
    layers = tuple(
        Dense(
            (rng.normal(size=(n, m)) / np.sqrt(n)).astype(np.float32),
            rng.normal(size=m).astype(np.float32) * 0.1,
            "relu",
        )
        for n, m in itertools.pairwise(SIZES)
    )
    layers = (*layers[:-1], Dense(layers[-1].weight, layers[-1].bias))
    spec = Spec(gym.spaces.Box(-np.inf, np.inf, (8,), np.float32), gym.spaces.Discrete(4), "latency")
    return Blueprint(spec, spaces.head_for(spec.action_space), layers, name="mlp:64x64")


# ---------------------------------------------------------------- native


def native_times(folder: Path, multiply_adds: int) -> dict[str, Any]:
    """Nanoseconds per step of each build, and the floor."""
    (folder / "c" / "loop.c").write_text(LOOP)
    (folder / "floor.c").write_text(FLOOR)
    programs = {
        name: build(folder / "c" / "loop.c", folder / name.replace(" ", "_"), flags) for name, flags in BUILDS.items()
    }
    floor = build(folder / "floor.c", folder / "floor", ("-O3", "-march=native", "-w"))
    times: dict[str, list[float]] = {name: [] for name in programs}
    rates, sums, lanes = [], set(), 0
    for _ in range(ROUNDS):
        per_multiply_add, lanes_word, _ = run(floor)
        rates.append(float(per_multiply_add))
        lanes = int(lanes_word)
        for name, program in programs.items():
            spent, actions = run(program)
            times[name].append(float(spent))
            sums.add(actions)
    floor_ns = min(rates) * multiply_adds
    return {
        "floor_ns": floor_ns,
        "floor_lanes": lanes,
        "floor_gigamacs": 1 / min(rates),
        "step_ns": {name: min(values) for name, values in times.items()},
        "step_ns_median": {name: statistics.median(values) for name, values in times.items()},
        "same_actions_in_all_builds": len(sums) == 1,
    }


def build(source: Path, program: Path, flags: tuple[str, ...]) -> Path:
    compiled_c.run_compiler([*flags, str(source), "-o", str(program), "-lm"])
    return program


def run(program: Path) -> list[str]:
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()


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
    calls = {"limbeck step": 20_000, "limbeck step native": 20_000, "onnxruntime": 1_000, "sb3 predict": 200}
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = ActorCriticPolicy(
            network.spec.observation_space, network.spec.action_space, lambda _: 1e-3,
            net_arch={"pi": [64, 64], "vf": [64, 64]}, activation_fn=torch.nn.ReLU,
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


def ratios(native: dict[str, Any], python: dict[str, float]) -> dict[str, float]:
    """What issue and README quote: native over floor, and how many times faster than the others from Python."""
    ours = python["limbeck step native"]
    return {
        **{f"native {name} / floor": ns / native["floor_ns"] for name, ns in native["step_ns"].items()},
        "sb3 predict / limbeck": python["sb3 predict"] / ours,
        "onnxruntime / limbeck": python["onnxruntime"] / ours,
        "sb3 predict / limbeck portable build": python["sb3 predict"] / python["limbeck step"],
        "onnxruntime / limbeck portable build": python["onnxruntime"] / python["limbeck step"],
    }


if __name__ == "__main__":
    main()
