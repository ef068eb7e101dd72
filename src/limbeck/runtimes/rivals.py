"""What an exported policy is timed against: the same network in torch, in Stable-Baselines3, and the arithmetic alone."""

from __future__ import annotations

import subprocess  # a program that was just compiled
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import Array, Blueprint, Dense
from limbeck.runtimes import compiled_c

SECONDS = 60  # that the program of the floor may take at most; it takes a hundredth
FLAGS = ("-std=gnu99", "-O3", "-march=native")

_FLOOR = r"""
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
    for (round = 0; round < 20; round++) {
        double begin = now(), spent;
        for (n = 0; n < 20000; n++) {
            a = a * m + s, b = b * m + s, c = c * m + s, d = d * m + s, e = e * m + s, f = f * m + s;
            g = g * m + s, h = h * m + s, i = i * m + s, j = j * m + s, k = k * m + s, l = l * m + s;
        }
        spent = (now() - begin) / (20000.0 * 12 * LANES);
        best = spent < best ? spent : best;
    }
    a = a + b + c + d + e + f + g + h + i + j + k + l;
    printf("%.9f %f\n", best, (double)a[0]);
    return 0;
}
"""


def seconds_per_multiply_add() -> float | None:
    """Of float32 at the peak rate of one core: twelve independent chains of the widest vectors; None without a compiler."""
    if compiled_c.find_compiler() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        source, program = Path(place) / "floor.c", Path(place) / "floor"
        storage.write_text(source, _FLOOR)
        compiled_c.run_compiler([*FLAGS, str(source), "-o", str(program)])
        done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=SECONDS)  # noqa: S603  # ours
    return float(done.stdout.split()[0]) * 1e-9


def torch_call(blueprint: Blueprint) -> Callable[[Array], object] | str:
    """The network as torch's Sequential, one row to the head's numbers; or in words why there is none."""
    import torch

    kinds = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid, "elu": torch.nn.ELU,
             "leaky_relu": torch.nn.LeakyReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU,
             "hardtanh": torch.nn.Hardtanh, "softplus": torch.nn.Softplus, "identity": torch.nn.Identity}  # fmt: skip
    layers = dense_chain(blueprint)
    if layers is None:
        return "only dense networks on plain observations are rebuilt in torch"
    modules: list[torch.nn.Module] = []
    for layer in layers:
        linear = torch.nn.Linear(layer.inputs, layer.outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(layer.weight.T.copy()))
            linear.bias.copy_(torch.from_numpy(layer.bias))
        modules += [linear] if layer.activation == "identity" else [linear, kinds[layer.activation]()]
    network = torch.nn.Sequential(*modules).eval()
    discrete = blueprint.head.kind in ("categorical", "q")

    def call(row: Array) -> object:
        with torch.inference_mode():
            found = network(torch.from_numpy(row)[None])
            return int(found.argmax()) if discrete else found.numpy()

    return call


def sb3_call(blueprint: Blueprint) -> Callable[[Array], object] | str:
    """`predict` of a Stable-Baselines3 MlpPolicy of the same sizes, untrained; or in words why there is none."""
    layers = dense_chain(blueprint)
    activations = {layer.activation for layer in layers or ()} - {"identity"}
    if layers is None or len(activations) > 1 or not activations <= {"relu", "tanh"}:
        return "only dense networks of one activation, relu or tanh, are an MlpPolicy"
    try:
        import torch
        from stable_baselines3.common.policies import ActorCriticPolicy
    except ImportError:
        return 'not installed: pip install "limbeck[sb3]"'
    space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (layers[0].inputs,), np.float32)
    sizes = [layer.outputs for layer in layers[:-1]]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # of action spaces it would rather have otherwise
        policy = ActorCriticPolicy(
            space, blueprint.spec.action_space, lambda _: 1e-3, net_arch={"pi": sizes, "vf": sizes},
            activation_fn=torch.nn.Tanh if "tanh" in activations else torch.nn.ReLU,
        )  # fmt: skip
    policy.set_training_mode(False)
    return lambda row: policy.predict(row, deterministic=True)[0]


def dense_chain(blueprint: Blueprint) -> tuple[Dense, ...] | None:
    """The layers of a policy that is nothing but dense layers on the flat observation; None for others."""
    layers = tuple(layer for layer in blueprint.layers if isinstance(layer, Dense))
    view, space = blueprint.view, blueprint.spec.observation_space
    plain = len(layers) == len(blueprint.layers) and view.history == 1 and view.indices is None and view.mask is None
    plain = plain and blueprint.normaliser is None and layers[0].inputs == spaces.flat_size(space, view)
    return layers if plain else None
