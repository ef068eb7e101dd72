"""Convolutions and gated memories in whole numbers say in C, WebAssembly and on microcontrollers what numpy says, bit by bit."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import quantised_cases as cases
from cases_compiling import STRICTER, compiler, program
from cases_export import blueprint, starts
from cases_quantised_layers import ALL, ROWS, SOME, remembering, rows_of
from gymnasium import spaces as S

from limbeck import spaces
from limbeck.contracts import Blueprint, Dense
from limbeck.contracts.quantised import LARGEST_SUM
from limbeck.exporters import c, golden, wasm
from limbeck.runtimes import compiled_c, emulated, firmware
from limbeck.runtimes.numpy import NumpyPolicy

# ---------------------------------------------------------------- compiled


def flat_of(policy: Blueprint, rows: golden.Golden) -> np.ndarray:
    return spaces.input_rows(rows.obs, policy.spec.observation_space, policy.view).astype(np.float32)


def played(folder: Path, command: list[str], policies: Mapping[str, Blueprint], under: tuple[str, ...] = ()) -> None:
    """One program with every policy, each under a prefix of its own: numbers and actions are those of numpy, bit by bit."""
    path = program(folder, command, list(policies.values()), ROWS, episode=7, acted=True)
    held = [rows_of(policy) for policy in policies.values()]
    shown = b"".join(flat_of(policy, one).tobytes() for policy, one in zip(policies.values(), held, strict=True))
    run = subprocess.run([*under, str(path)], input=shown, capture_output=True)
    assert (run.returncode, run.stderr) == (0, b""), run.stderr.decode()
    wanted = [
        np.concatenate([one.params.view(np.int32), one.actions.reshape(ROWS, -1).astype(np.int32)], axis=1)
        for one in held
    ]
    said = np.split(np.frombuffer(run.stdout, np.int32), np.cumsum([w.size for w in wanted])[:-1])
    for name, given, right in zip(policies, said, wanted, strict=True):
        assert np.array_equal(given, right.reshape(-1)), name


def test_the_answers_differ_from_row_to_row() -> None:
    """Else the other tests could not fail."""
    for name, policy in ALL.items():
        assert len(np.unique(rows_of(policy).params, axis=0)) >= 8, name


FAST = "-O3 -march=native -ffp-contract=fast"


@pytest.mark.parametrize(("cc", "flags"), [("gcc", "-O2"), ("clang", "-O1")])
def test_compiled_code_gives_the_same_bits(cc: str, flags: str, tmp_path: Path) -> None:
    played(tmp_path, [compiler(cc), *STRICTER, *flags.split()], SOME)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-O0", "-O2", FAST])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_all_widths_and_activations_give_the_same_bits(cc: str, flags: str, tmp_path: Path) -> None:
    played(tmp_path, [compiler(cc), *STRICTER, *flags.split()], ALL)


@pytest.mark.slow
def test_it_is_c_plus_plus_too(tmp_path: Path) -> None:
    flags = ["-x", "c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    played(tmp_path, [compiler("g++"), *flags], SOME)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cc", "flags"),
    [
        ("gcc", "-fsanitize=address,undefined -fno-sanitize-recover=all"),
        ("clang", "-fsanitize=undefined,float-cast-overflow -fsanitize-trap=all"),  # which needs no library
    ],
)
def test_sanitizers_find_nothing(cc: str, flags: str, tmp_path: Path) -> None:
    played(tmp_path, [compiler(cc), *STRICTER, "-O1", *flags.split()], ALL)


@pytest.mark.slow
def test_valgrind_sees_nothing(tmp_path: Path) -> None:
    valgrind = compiler("valgrind")
    played(tmp_path, [compiler("gcc"), *STRICTER, "-O2", "-g"], SOME, (valgrind, "-q", "--error-exitcode=9"))


def loaded(policy: Blueprint, folder: Path) -> compiled_c.CPolicy:
    (folder / "policy.h").write_text(c.generate(policy)[0])
    return compiled_c.load(folder, policy.spec, policy.head, policy.view)


def test_any_bytes_as_a_memory_are_read_without_harm(tmp_path: Path) -> None:
    """A caller's state may hold anything: levels are bytes all the same, so no sum leaves its 22 bits."""
    compiler("cc")
    policy = ALL["memory int8 7"]
    code = loaded(policy, tmp_path)
    rng, rows = np.random.default_rng(0), 200
    flat, never = cases.observations(spaces.input_size(policy.spec.observation_space, policy.view), rows), np.zeros(rows, bool)  # fmt: skip
    state = code.initial_state(rows)
    kept = state["memory"].view(np.int16)[
        :, -8:-1
    ]  # 7 numbers behind the history, and two bytes to the next multiple of 4
    assert kept.shape == (rows, 7)
    kept[:] = rng.choice(np.array([-(2**15), 2**15 - 1, 0, -1, 16256, -16256], np.int16), kept.shape)
    for _ in range(20):
        output = code.on_flat(flat, state, never)
        state = output.state
        assert np.isfinite(output.params).all()
        assert np.abs(output.params / policy.layers[-1].scale).max() <= LARGEST_SUM


def test_rows_are_independent_and_memory_travels_with_them(tmp_path: Path) -> None:
    compiler("cc")
    policy = ALL["memories"]
    code, reference = loaded(policy, tmp_path), NumpyPolicy(policy)
    rng = np.random.default_rng(1)
    state, wanted = code.initial_state(5), reference.initial_state(5)
    for step in range(20):
        flat, first = rng.normal(size=(5, 5)).astype(np.float32), rng.random(5) < (1 if step == 0 else 0.1)
        said, right = code.on_flat(flat, state, first), reference(flat, wanted, first)
        assert said.params.tobytes() == right.params.tobytes()
        state, wanted = said.state, right.state
    carried = state["memory"].view(np.int16)
    assert np.array_equal(carried[:, :3], wanted["quantised_gru1"])
    assert np.array_equal(carried[:, 3:8], wanted["quantised_gru3"])


def test_what_is_stored_and_kept() -> None:
    """Bytes of flash and of the state, counted by hand."""
    text, stored = c.generate(ALL["1 x 1"])
    weights, sums, steps, outs = 4 * 2, 4 * 4, 2 * 4, 80 * 3 + 3 * 8  # 3 inputs of 4 bits are two bytes
    assert stored == 2 * 4 + weights + sums + steps + 255 + outs, "one offset and one scale for 60 pixels"
    assert "int16_t quantised" not in text
    text, stored = c.generate(ALL["memory int4 4"])
    n_in, history = ALL["memory int4 4"].layers[1].inputs, ALL["memory int4 4"].view.history
    assert "int16_t quantised_gru1[4];" in text
    assert "math.h" not in text
    assert "expf" not in text
    apart = 12 * (-(-n_in // 2) + 2) + 24 * 4 + 24 * 2 + 255
    assert stored == 2 * 4 * (n_in // history) + apart + 4 * 3 + 3 * 8
    large = c.generate(ALL["large"])[0]
    assert f"float scratch[{80 * 81 * 3 // 4}];" in large, "a picture of 19440 bytes does not lie on the stack"


def test_the_guard_replaces_and_counts_as_before(tmp_path: Path) -> None:
    compiler("cc")
    policy = ALL["memory int8 7"]
    code = loaded(policy, tmp_path)
    clean = np.zeros((1, policy.spec.observation_space.shape[0]), np.float32)
    broken = clean.copy()
    broken[0, 0] = np.nan
    first, state = np.ones(1, bool), code.initial_state(1)
    assert code.outside(broken).tolist() == [1]
    said = [code.on_flat(rows, state, first) for rows in (clean, broken)]
    assert said[0].params.tobytes() == said[1].params.tobytes(), "what is not finite is read as 0"


# ---------------------------------------------------------------- WebAssembly and microcontrollers

needs_clang = pytest.mark.skipif(bool(wasm.missing()), reason=wasm.missing())
BOARD_POLICIES = ["int8 relu hwc", "int4 tanh chw", "ternary hardtanh hwc", "agents", "memories", "picture then memory"]
BOARD_POLICIES += ["memory int2 7", "extreme memory"]


@needs_clang
@pytest.mark.parametrize("engine", ["wasmtime", pytest.param("node", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["agents", "memories", "int2 tanh chw", "large"])
def test_webassembly_gives_the_same_bits(name: str, engine: str, tmp_path: Path) -> None:
    from limbeck.runtimes import wasm as engines

    if lacking := engines.missing(engine):
        pytest.skip(lacking)
    policy = ALL[name]
    wasm.export(policy, tmp_path)
    module = engines.load(
        tmp_path / "policy.wasm", tmp_path / "policy.mjs", policy.spec, policy.head, policy.view, engine
    )
    found = golden.compare(rows_of(policy), module)
    assert (found.ok, found.worst_error) == (True, 0)


def on_board(name: str, board: str, folder: Path) -> golden.Comparison:
    if missing := firmware.missing(board):
        pytest.skip(missing)
    policy = ALL[name]
    (folder / "policy.h").write_text(c.generate(policy)[0])
    device = emulated.load(folder, policy.spec, policy.head, policy.view, board)
    try:
        return golden.compare(rows_of(policy), device)
    finally:
        device.close()


@pytest.mark.parametrize(("board", "name"), [("cortex-m0", "picture then memory")])
def test_a_microcontroller_gives_the_same_bits(board: str, name: str, tmp_path: Path) -> None:
    assert on_board(name, board, tmp_path).worst_error == 0


@pytest.mark.slow
@pytest.mark.parametrize("board", ["cortex-m0", "cortex-m3", "cortex-m4f", "cortex-m7", "rv32"])
@pytest.mark.parametrize("name", BOARD_POLICIES)
def test_all_microcontrollers_give_the_same_bits(board: str, name: str, tmp_path: Path) -> None:
    found = on_board(name, board, tmp_path)
    assert (found.ok, found.worst_error) == (True, 0)


@pytest.mark.slow
@pytest.mark.parametrize("board", ["cortex-m0", "cortex-m4f"])
def test_a_memory_closes_the_loop_on_a_microcontroller(board: str, tmp_path: Path) -> None:
    """The device drives a pendulum for whole episodes; numpy drives its twin and never differs."""
    if missing := firmware.missing(board):
        pytest.skip(missing)
    made = remembering("int8", 3, 12)
    made = replace(made, layers=(cases.quantise(np.random.default_rng(0), 3), *made.layers[1:]))
    space = S.Box(np.float32([-1, -1, -8]), np.float32([1, 1, 8]), (3,), np.float32)
    made = replace(made, spec=replace(made.spec, observation_space=space))
    (tmp_path / "policy.h").write_text(c.generate(made)[0])
    device, reference = emulated.load(tmp_path, made.spec, made.head, made.view, board), NumpyPolicy(made)
    torques = np.float32([[-2], [0], [2]])
    chosen: list[list[int]] = []
    for who in (device, reference):
        taken: list[int] = []
        env = gym.make("Pendulum-v1", max_episode_steps=60)
        for seed in range(2):
            obs, _ = env.reset(seed=seed)
            state, first, over = who.initial_state(1), np.ones(1, bool), False
            while not over:
                output = who(obs[None], state, first)
                state, first = output.state, np.zeros(1, bool)
                taken.append(int(output.params[0].argmax()))
                obs, _, done, late, _ = env.step(torques[taken[-1]])
                over = bool(done or late)
        env.close()
        chosen.append(taken)
    device.close()
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 1


@pytest.mark.slow
def test_a_whole_memory_takes_a_fraction_of_the_instructions(tmp_path: Path) -> None:
    """Where floats are made in software: a memory of 16 after 8 numbers, both ways."""
    if missing := firmware.missing("cortex-m0"):
        pytest.skip(missing)
    space = S.Box(-3, 3, (8,), np.float32)
    real = blueprint(S.Discrete(3), hidden=(), gru=16, observation_space=space)
    obs, first, counts = cases.observations(8, 8), starts(8), {}
    for name, made in {"real": real, "int8": remembering("int8", 8, 16)}.items():
        assert not any(isinstance(layer, Dense) for layer in made.layers[:1])
        (tmp_path / "policy.h").write_text(c.generate(made)[0])
        device = emulated.cost(tmp_path, made.spec, made.head, made.view, "cortex-m0", obs, first)
        counts[name] = device.instructions
    assert counts["real"] >= 8 * counts["int8"]
