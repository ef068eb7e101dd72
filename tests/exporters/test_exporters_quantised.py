"""Policies in whole numbers say the same to the last bit in numpy, C and ONNX, and in Python's own integers."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import quantised_cases as cases
from cases_compiling import STRICTER, WARNINGS, compiler, program
from cases_export import blueprint
from gymnasium import spaces as S
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import blueprints, exporters, spaces
from limbeck.contracts import (
    Blueprint,
    Conv,
    Dense,
    Gru,
    Normaliser,
    Parallel,
    Quantise,
    Quantised,
    Readout,
    Shared,
    Spec,
    View,
)
from limbeck.contracts.quantised import LARGEST_SUM, SCALES, tanh_levels
from limbeck.exporters import c, golden, onnx
from limbeck.runtimes import compiled_c, emulated, firmware, onnx_session
from limbeck.runtimes.numpy import NumpyPolicy, apply

ROWS = 24
PLAIN = {
    f"{activation} {width}": cases.policy((5, 7, 6, 3), activation, width, seed=seed)
    for seed, (activation, width) in enumerate((a, w) for a in cases.ACTIVATIONS for w in cases.WIDTHS)
}
EACH = ("identity int8", "relu int4", "tanh int2", "hardtanh ternary")  # every activation and every width once
POLICIES: dict[str, Blueprint] = {
    **{name: PLAIN[name] for name in EACH},
    "extreme": cases.extreme(),
    "no hidden layer": cases.policy((9, 5)),
    "one number": cases.policy((1, 1, 1, 2), "tanh", "int4"),
    "whole vectors": cases.policy((8, 32, 16, 4), "relu", "ternary"),
    "three at the end": cases.policy((11, 15, 3), "hardtanh", "int2"),
    "history": cases.policy((3, 6, 2), "tanh", view=View(history=3)),
    "indices": cases.policy((2, 6, 2), view=View(indices=(2, 0))),
}
POLICIES["indices"] = replace(
    POLICIES["indices"], spec=replace(POLICIES["indices"].spec, observation_space=S.Box(-3, 3, (4,), np.float32))
)


def observed(policy: Blueprint) -> np.ndarray:
    """[ROWS, O] what the policy is shown."""
    return cases.observations(spaces.input_size(policy.spec.observation_space, policy.view), ROWS)


def reference(policy: Blueprint, obs: np.ndarray) -> np.ndarray:
    played = NumpyPolicy(policy)
    return played(obs, played.initial_state(len(obs)), np.ones(len(obs), bool)).params


# ---------------------------------------------------------------- the reference itself


@pytest.mark.parametrize("name", PLAIN)
def test_numpy_says_what_whole_numbers_say(name: str) -> None:
    obs = observed(PLAIN[name])
    wanted = np.array([cases.said(PLAIN[name], row) for row in obs], np.float32)
    assert np.array_equal(reference(PLAIN[name], obs), wanted)


def test_the_largest_sums_multipliers_and_shifts_are_exact() -> None:
    policy = cases.extreme()
    obs = observed(policy)
    levels = apply(policy.layers[0], obs)
    sums = levels @ policy.layers[1].weight + policy.layers[1].bias
    assert np.abs(sums).max() == LARGEST_SUM
    assert np.array_equal(reference(policy, obs), np.array([cases.said(policy, row) for row in obs], np.float32))


@given(
    total=st.integers(-LARGEST_SUM, LARGEST_SUM),
    multiplier=st.integers(1, 255),
    shift=st.integers(1, 31),
    activation=st.sampled_from(cases.ACTIVATIONS),
)
def test_a_sum_becomes_a_level_as_the_contract_says(total: int, multiplier: int, shift: int, activation: str) -> None:
    one = (np.zeros((1, 1), np.float32), *(np.float32([v]) for v in (total, multiplier, shift)))
    layer = Quantised(*one, activation)
    assert layer.problem() == ""
    assert apply(layer, np.zeros((1, 1), np.float32)).item() == cases._answer(layer, 0, total)


def test_halves_go_up_and_numbers_that_are_none_become_zero() -> None:
    layer = Quantise(np.float32([0.5]), np.float32([2]))
    below = np.nextafter(np.float32(0.75), np.float32(0))
    given_rows = [0.75, below, 0.25, 0.2499, -0.25, 1e38, np.inf, -np.inf, np.nan]
    said = apply(layer, np.float32(given_rows)[:, None])[:, 0]
    assert said.tolist() == [1, 0, 0, -1, -1, 127, 127, -127, 0]


def test_the_tanh_table_has_no_entry_near_a_half() -> None:
    exact = np.array([127 * math.tanh(q / 32) for q in range(-127, 128)])
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-4  # libraries differ by 1e-14
    assert np.abs(tanh_levels() - exact).max() < 0.5


# ---------------------------------------------------------------- C


def played(folder: Path, command: list[str], policies: Mapping[str, Blueprint] = POLICIES) -> None:
    """Every policy's numbers are those of numpy, bit by bit."""
    path = program(folder, command, list(policies.values()), ROWS)
    shown = [observed(policy) for policy in policies.values()]
    wanted = [reference(policy, obs) for policy, obs in zip(policies.values(), shown, strict=True)]
    done = subprocess.run([str(path)], input=b"".join(o.tobytes() for o in shown), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    said = np.frombuffer(done.stdout, np.float32)
    ends = np.cumsum([w.size for w in wanted])
    for name, given_rows, right in zip(policies, np.split(said, ends[:-1]), wanted, strict=True):
        assert np.array_equal(given_rows, right.reshape(-1)), name


FAST = "-O3 -march=native -ffp-contract=fast"


@pytest.mark.parametrize(("cc", "flags"), [("gcc", "-O2"), ("clang", FAST)])
def test_compiled_code_gives_the_same_bits(cc: str, flags: str, tmp_path: Path) -> None:
    played(tmp_path, [compiler(cc), *STRICTER, *flags.split()])


BORDERS = r"""
#define LIMBECK_IMPLEMENTATION
#include "policy.h"
#include <stdio.h>
int main(void)
{
    float obs, params[2];
    limbeck_action action;
    limbeck_state memory;
    limbeck_reset(&memory);
    while (fread(&obs, sizeof obs, 1, stdin) == 1) {
        limbeck_step(&memory, &obs, params, &action);
        fwrite(params, sizeof *params, 1, stdout);
    }
    return 0;
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the x87 is of x86 alone")
@pytest.mark.parametrize("flags", ["-std=c99 -O2", "-std=gnu17 -O2", "-std=gnu17 -O0"])
def test_floats_that_are_computed_wider_move_no_level(flags: str, tmp_path: Path) -> None:
    """At the borders of all levels the rounding of a difference decides, which the x87 would not do."""
    offset, scale, sums = np.float32([0.3]), np.float32([37.7]), np.float32([[1, -1]])
    ends = (Quantise(offset, scale), Readout(sums, np.zeros(2, np.float32), np.ones(2, np.float32)))
    spec = Spec(S.Box(-9, 9, (1,), np.float32), S.Discrete(2), "a task")
    policy = Blueprint(spec, spaces.head_for(spec.action_space), ends)
    noise = np.random.default_rng(0).normal(size=20_000) * 2e-6
    obs = (offset + (np.arange(-100, 100).repeat(100) + 0.5 + noise) / scale).astype(np.float32)
    wanted = NumpyPolicy(policy).on_flat(obs[:, None], {}, np.ones(len(obs), bool)).params[:, 0]
    exact = np.floor((obs.astype(np.float64) - offset) * scale.astype(np.float64) + 0.5)
    assert np.count_nonzero(exact != wanted) > 1000  # else this test could not fail
    (tmp_path / "policy.h").write_text(c.generate(policy)[0])
    (tmp_path / "main.c").write_text(BORDERS)
    command = [compiler("gcc"), *WARNINGS, "-Wconversion", *flags.split(), "-mfpmath=387", "main.c", "-o", "program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([str(tmp_path / "program")], input=obs.tobytes(), capture_output=True, check=True).stdout
    assert np.array_equal(np.frombuffer(said, np.float32), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-O0", "-O2", FAST])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_all_widths_and_activations_give_the_same_bits(cc: str, flags: str, tmp_path: Path) -> None:
    played(tmp_path, [compiler(cc), *STRICTER, *flags.split()], {**PLAIN, **POLICIES})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cc", "flags"),
    [
        ("gcc", "-fsanitize=address,undefined -fno-sanitize-recover=all"),
        ("clang", "-fsanitize=undefined,float-cast-overflow -fsanitize-trap=all"),  # which needs no library
    ],
)
def test_sanitizers_find_nothing(cc: str, flags: str, tmp_path: Path) -> None:
    played(tmp_path, [compiler(cc), *STRICTER, "-O1", *flags.split()])


def loaded(policy: Blueprint, folder: Path, native: bool = False) -> compiled_c.CPolicy:
    (folder / "policy.h").write_text(c.generate(policy)[0])
    return compiled_c.load(folder, policy.spec, policy.head, policy.view, native=native)


def test_what_the_guard_does_not_see_is_handled_by_the_quantiser(tmp_path: Path) -> None:
    compiler("cc")
    policy = cases.policy((600, 3), width="int4")  # more numbers than the guard looks at
    obs = observed(policy)
    obs[::3, ::7], obs[1::3, ::5], obs[2::3, ::11] = np.nan, np.inf, -np.inf
    code = loaded(policy, tmp_path)
    said = code.on_flat(obs, code.initial_state(ROWS), np.ones(ROWS, bool)).params
    assert np.isfinite(said).all()
    assert np.array_equal(said, reference(policy, obs))


def test_quantisers_of_every_scale_round_as_numpy_does(tmp_path: Path) -> None:
    compiler("cc")
    size = 100
    scale = np.repeat(np.array([*SCALES, 3e-27, 1.7], np.float32), size // 4)
    first = Quantise(np.zeros(size, np.float32), scale)
    eye = Readout(np.eye(size, dtype=np.float32), np.zeros(size, np.float32), np.ones(size, np.float32))
    policy = replace(cases.policy((size, size)), layers=(first, eye))
    halves = np.random.default_rng(1).integers(-270, 271, (400, size)) / 2 / scale.astype(np.float64)
    limit = float(np.finfo(np.float32).max)
    on = np.clip(halves, -limit, limit).astype(np.float32)
    obs = np.concatenate([on, np.nextafter(on, np.float32(-limit)), np.nextafter(on, np.float32(limit))])
    code = loaded(policy, tmp_path, native=True)
    said = code.on_flat(obs, code.initial_state(len(obs)), np.ones(len(obs), bool)).params
    assert np.array_equal(said, reference(policy, obs))
    assert len(np.unique(said)) == 255


@pytest.mark.parametrize(
    ("view", "mean", "clip"),
    [(View(history=3, padding="zero"), 0.3, math.inf), (View(), 0.0, 1.5)],
    ids=["a mean before zeros", "a clip tighter than the quantiser's"],
)
def test_a_normaliser_that_stays_divides_as_numpy_does(view: View, mean: float, clip: float, tmp_path: Path) -> None:
    """Observations on the borders of levels: one unit in the last place more or less gives another level."""
    compiler("cc")
    size, rng = 40, np.random.default_rng(5)
    seen = size * view.history
    scale = rng.uniform(0.1, 3, size).astype(np.float32)
    quantiser = Quantise(np.zeros(seen, np.float32), np.full(seen, 50, np.float32))
    eye = Readout(np.eye(seen, dtype=np.float32), np.zeros(seen, np.float32), np.ones(seen, np.float32))
    norm = Normaliser(np.full(size, mean, np.float32), scale, clip)
    base = replace(cases.policy((size, seen)), view=view)
    policy = replace(base, layers=(quantiser, eye), normaliser=norm)
    assert blueprints.fold(policy).normaliser is not None
    obs = ((rng.integers(-100, 100, (200, size)) + 0.5) / 50 * scale + mean).astype(np.float32)
    code = loaded(policy, tmp_path)
    said = code.on_flat(obs, code.initial_state(len(obs)), np.ones(len(obs), bool)).params
    assert np.array_equal(said, reference(policy, obs))


def test_the_code_needs_no_library_and_stores_narrow_numbers() -> None:
    sizes = {width: c.generate(cases.policy((8, 64, 64, 2), "tanh", width)) for width in cases.WIDTHS}
    assert all("math.h" not in made[0] and "tanhf" not in made[0] for made in sizes.values())
    weights, rest = 8 * 64 + 64 * 64 + 64 * 2, 16 * 4 + 130 * 4 + 128 * 2 + 2 * 4 + 255
    for width, bits in (("int8", 8), ("int4", 4), ("int2", 2), ("ternary", 2)):
        assert sizes[width][1] == weights * bits // 8 + rest


@pytest.mark.slow
@pytest.mark.parametrize("board", ["cortex-m0", "cortex-m3"])
def test_whole_numbers_take_a_fraction_of_the_instructions(board: str, tmp_path: Path) -> None:
    """A published program of this kind took 23 to 29 times fewer than soft floats for 8-64-64-2 tanh."""
    if missing := firmware.missing(board):
        pytest.skip(missing)
    space = S.Box(-3, 3, (8,), np.float32)
    real = blueprint(S.Discrete(2), hidden=(64, 64), activation="tanh", observation_space=space)
    obs, first, counts = cases.observations(8, 8), np.ones(8, bool), {}
    for name, policy in {"real": real, "int8": cases.policy((8, 64, 64, 2), "tanh")}.items():
        (tmp_path / "policy.h").write_text(c.generate(policy)[0])
        device = emulated.cost(tmp_path, policy.spec, policy.head, policy.view, board, obs, first)
        counts[name] = device.instructions
    assert counts["real"] >= 15 * counts["int8"]


# ---------------------------------------------------------------- ONNX


@pytest.mark.parametrize("name", POLICIES)
def test_onnx_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    policy = POLICIES[name]
    (tmp_path / "p.onnx").write_bytes(onnx.generate(policy))
    graph = onnx_session.load(tmp_path / "p.onnx", policy.spec, policy.head, policy.view)
    obs = observed(policy)
    obs[3, 0], obs[4, 0], obs[5, 0] = np.nan, np.inf, -np.inf
    said = graph(obs, graph.initial_state(ROWS), np.ones(ROWS, bool)).params
    assert np.array_equal(said, reference(policy, obs))


def test_an_artefact_folder_repeats_its_golden_rows_to_the_bit(tmp_path: Path) -> None:
    compiler("cc")
    policy = POLICIES["tanh int2"]
    rows = golden.label(NumpyPolicy(policy), cases.observations(5, ROWS), np.ones(ROWS, bool))
    exporters.export(policy, tmp_path, ("c", "onnx", "numpy"), rows)
    for target in ("c", "onnx", "numpy"):
        assert golden.compare(rows, exporters.load(tmp_path, target)).worst_error == 0


# ---------------------------------------------------------------- inside of other layers


def nested() -> Blueprint:
    """Branches and agents in whole numbers, and real numbers in front of and behind them."""
    rng = np.random.default_rng(4)

    def part(n_in: int, n_out: int, width: str) -> tuple[Quantise, Quantised, Readout]:
        hidden = cases.dense(rng, n_in, 5, "tanh", width)
        return cases.quantise(rng, n_in), hidden, cases.readout(rng, 5, n_out, width)

    def real(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    both = Parallel((part(3, 2, "int4"), (Dense(real(3, 4), real(4), "relu"),)), ((0, 3), (3, 6)), 6)
    shared = Shared(part(3, 3, "int8"), 2)
    memory = Gru(real(6, 12), real(4, 12), real(12), real(12))
    picture = Conv(real(2, 1, 2, 3), real(3), (2, 1), activation="relu")
    layers = (both, shared, memory, picture, *part(3, 3, "ternary"))
    base = cases.policy((6, 3))
    return replace(base, layers=layers)


def test_whole_numbers_inside_of_branches_agents_and_after_convolutions(tmp_path: Path) -> None:
    """Real numbers in front round differently elsewhere, so an odd level may be another one: nearly all rows agree."""
    compiler("cc")
    policy = nested()
    obs = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
    first = np.ones(200, bool)
    wanted = reference(policy, obs)
    code = loaded(policy, tmp_path)
    (tmp_path / "p.onnx").write_bytes(onnx.generate(policy))
    graph = onnx_session.load(tmp_path / "p.onnx", policy.spec, policy.head)
    for other in (code.on_flat(obs, code.initial_state(200), first), graph(obs, graph.initial_state(200), first)):
        assert (other.params == wanted).all(1).mean() > 0.97


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), width=st.sampled_from(cases.WIDTHS))
def test_any_size_is_exact_in_numpy(seed: int, size: int, width: str) -> None:
    policy = cases.policy((size, 9, 2), "tanh", width, seed=seed)
    obs = observed(policy)[:8]
    assert np.array_equal(reference(policy, obs), np.array([cases.said(policy, row) for row in obs], np.float32))
