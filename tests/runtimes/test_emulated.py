"""Policies on emulated microcontrollers: the reference's answers, counts that repeat, memory, faults that are told."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import quantised_cases
from cases_export import CASES, blueprint, observations, starts
from cases_layers import LAYER_CASES, conv
from cases_layers import policy as picture
from gymnasium import spaces as S

from limbeck import spaces
from limbeck.contracts import Blueprint, Pool
from limbeck.errors import EnvironmentFault, InputError
from limbeck.exporters import c, golden
from limbeck.runtimes import compiled_c, emulated, firmware
from limbeck.runtimes.emulated import EmulatedPolicy
from limbeck.runtimes.numpy import NumpyPolicy

ALL = {**CASES, **LAYER_CASES}
pytestmark = pytest.mark.skipif(
    bool(firmware.missing("cortex-m0")), reason=f"microcontrollers: {firmware.missing('cortex-m0')}"
)
needs_riscv = pytest.mark.skipif(bool(firmware.missing("rv32")), reason=f"RISC-V: {firmware.missing('rv32')}")
CHOSEN = {
    "cortex-m0": ["categorical", "gru with history"],
    "cortex-m3": ["squashed"],
    "cortex-m4f": ["dict view", "lstm", "masked q", "bernoulli"],
    "cortex-m7": ["tanh matrix", "norm"],
}


def loaded(policy: Blueprint, folder: Path, board: str) -> EmulatedPolicy:
    if not (folder / "policy.h").exists():
        (folder / "policy.h").write_text(c.generate(policy)[0])
    return emulated.load(folder, policy.spec, policy.head, policy.view, board)


def same_as_reference(policy: Blueprint, folder: Path, board: str, rows: int = 30) -> golden.Comparison:
    held = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, rows), starts(rows))
    played = loaded(policy, folder, board)
    result = golden.compare(held, played)
    played.close()
    return result


@pytest.mark.parametrize(("board", "name"), [(board, name) for board, names in CHOSEN.items() for name in names])
def test_golden_rows(board: str, name: str, tmp_path: Path) -> None:
    assert same_as_reference(ALL[name], tmp_path, board).ok


@pytest.mark.slow
@pytest.mark.parametrize("board", ["cortex-m0", "cortex-m4f", pytest.param("rv32", marks=needs_riscv)])
def test_golden_rows_of_every_kind(board: str, tmp_path: Path) -> None:
    wrong = []
    for number, (name, policy) in enumerate(ALL.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            if not same_as_reference(policy, folder, board).ok:
                wrong.append(name)
        except firmware.DoesNotFit:
            assert board == "cortex-m0", name
    assert not wrong


@needs_riscv
@pytest.mark.parametrize("name", ["categorical", "gru with history", "squashed"])
def test_golden_rows_on_riscv(name: str, tmp_path: Path) -> None:
    assert same_as_reference(ALL[name], tmp_path, "rv32").ok


@pytest.mark.parametrize(
    ("board", "width"),
    [("cortex-m0", "int8"), ("cortex-m4f", "int4"), pytest.param("rv32", "ternary", marks=needs_riscv)],
)
def test_whole_numbers_are_exact(board: str, width: str, tmp_path: Path) -> None:
    policy = quantised_cases.policy((6, 24, 16, 4), "tanh", width)
    flat = quantised_cases.observations(6, 40)
    wanted = NumpyPolicy(policy)(flat, {}, np.ones(40, bool)).params
    given = loaded(policy, tmp_path, board)(flat, {}, np.ones(40, bool)).params
    assert given.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["gru with history", "masked keys"])
def test_rows_are_independent_and_memory_travels_with_them(name: str, tmp_path: Path) -> None:
    policy, rng = ALL[name], np.random.Generator(np.random.Philox(1))
    played = loaded(policy, tmp_path, "cortex-m4f")
    flats = rng.normal(size=(4, 9, played.sizes.obs)).astype(np.float32)
    order = rng.permutation(9)
    together, shuffled = played.initial_state(9), played.initial_state(9)
    alone = [played.initial_state(1) for _ in range(9)]
    for step, flat in enumerate(flats):
        first = np.arange(9) % 4 == 0 if step == 2 else np.full(9, step == 0)
        given = {key: value.copy() for key, value in together.items()}
        whole = played.on_flat(flat, together, first)
        assert all(np.array_equal(together[key], value) for key, value in given.items())
        mixed = played.on_flat(flat[order], shuffled, first[order])
        together, shuffled = whole.state, mixed.state
        assert mixed.params.tobytes() == whole.params[order].tobytes()
        for row in range(9):
            single = played.on_flat(flat[row : row + 1], alone[row], first[row : row + 1])
            alone[row] = single.state
            assert single.params.tobytes() == whole.params[row : row + 1].tobytes()


def test_more_rows_than_a_pipe_holds(tmp_path: Path) -> None:
    policy = blueprint(S.Discrete(4), hidden=(4,))
    played = loaded(policy, tmp_path, "cortex-m4f")
    flat = np.random.default_rng(0).normal(size=(6000, 5)).astype(np.float32)
    wanted = NumpyPolicy(policy)(flat, {}, np.ones(6000, bool)).params
    np.testing.assert_allclose(played(flat, {}, np.ones(6000, bool)).params, wanted, rtol=1e-5, atol=1e-5)


def test_costs_repeat_and_grow_with_the_policy(tmp_path: Path) -> None:
    found = []
    for width in (8, 16):
        policy, folder = blueprint(S.Discrete(4), hidden=(width, width)), tmp_path / str(width)
        folder.mkdir()
        obs = observations(policy.spec.observation_space, 9)
        flat = spaces.input_rows(obs, policy.spec.observation_space, policy.view)
        twice = []
        for _ in range(2):
            played = loaded(policy, folder, "cortex-m4f")
            twice.append(emulated.measure(played, folder, "cortex-m4f", flat, starts(9)))
            played.close()
        assert twice[0] == twice[1]
        found.append(twice[0])
        numbers = sum(layer.weight.size + layer.bias.size for layer in policy.layers)
        assert 4 * numbers < twice[0].flash_bytes < 4 * numbers + 4096
        assert 4 * width < twice[0].stack_bytes < 2048
        macs = policy.multiply_adds  # a load, a load, a multiplication and an addition each, at least two instructions
        assert 2 * macs < twice[0].instructions < 20 * macs
    assert found[0].instructions < found[1].instructions
    assert "arm-none-eabi-gcc" in found[0].tools


def test_a_count_passes_the_24_bits_of_the_timer(tmp_path: Path) -> None:
    """A convolution over a picture of twice the height takes twice the instructions, beyond 2**24 ticks of five."""
    found = []
    for height in (32, 62):  # 30 and 60 rows of output
        kernel = conv((height, 62), (3, 3, 2, 16))
        policy = picture(
            S.Box(-1, 1, (height, 62, 2), np.float32),
            kernel,
            Pool((height - 2, 60), 16, (height - 2, 60), (1, 1), "mean"),
        )
        folder = tmp_path / str(height)
        folder.mkdir()
        flat = np.random.default_rng(0).normal(size=(1, height * 62 * 2)).astype(np.float32)
        played = loaded(policy, folder, "cortex-m3")
        found.append(int(played.measured(flat, np.ones(1, bool))[0, 0]))
        played.close()
    assert found[1] > 2**24
    assert abs(found[1] / found[0] - 2) < 0.02


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    with pytest.raises(firmware.DoesNotFit, match=r"does not fit: [\d,]+ bytes of flash, 262,144 are there"):
        loaded(blueprint(S.Discrete(4), hidden=(256, 256)), tmp_path / "large", "cortex-m0")
    (tmp_path / "deep").mkdir()
    with pytest.raises(firmware.DoesNotFit, match="its stack passes"):
        loaded(blueprint(S.Discrete(4), hidden=(8, 4070, 2)), tmp_path / "deep", "cortex-m0")
    with pytest.raises(firmware.DoesNotFit, match="300,000 bytes of flash, 262,144 are there"):
        firmware.check_size("cortex-m0", 300_000)
    (tmp_path / "wide").mkdir()
    wide = blueprint(S.Discrete(2), hidden=(), observation_space=S.Box(-1, 1, (4500,), np.float32))
    with pytest.raises(firmware.DoesNotFit, match="of RAM"):
        loaded(wide, tmp_path / "wide", "cortex-m0")


def test_a_dead_and_a_silent_emulator_are_faults_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = CASES["tiny"]
    dead, silent = (loaded(policy, tmp_path, "cortex-m4f") for _ in range(2))
    flat, first = np.ones((1, 5), np.float32), np.ones(1, bool)
    ids = [one._emulator._process.pid for one in (dead, silent)]
    os.kill(ids[0], signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="cortex-m4f ended"):
        dead(flat, {}, first)
    with pytest.raises(EnvironmentFault, match="was closed"):
        dead(flat, {}, first)
    os.kill(ids[1], signal.SIGSTOP)
    os.waitid(os.P_PID, ids[1], os.WSTOPPED | os.WNOWAIT)  # all its threads stand still
    monkeypatch.setattr(emulated, "SECONDS", 0.2)
    with pytest.raises(EnvironmentFault, match="silent"):
        silent(flat, {}, first)
    assert not any(Path(f"/proc/{one}").exists() for one in ids)


def test_an_emulator_ends_with_its_policy(tmp_path: Path) -> None:
    played = loaded(CASES["tiny"], tmp_path, "cortex-m4f")
    process = played._emulator._process
    del played
    gc.collect()
    assert process.returncode is not None


def test_an_emulator_ends_when_its_host_is_killed(tmp_path: Path) -> None:
    image = firmware.build(c.generate(CASES["tiny"])[0], "cortex-m4f")
    (tmp_path / "policy.elf").write_bytes(image.elf)
    command = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    options = ["-semihosting-config", "enable=on,target=native", "-kernel", str(tmp_path / "policy.elf")]
    done = subprocess.run([*command, *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert len(done.stdout) == 20


def test_misfits_are_refused(tmp_path: Path) -> None:
    played = loaded(CASES["gru"], tmp_path, "cortex-m4f")
    with pytest.raises(InputError, match="does not fit"):
        played.on_flat(np.ones((2, 4), np.float32), played.initial_state(2), np.ones(2, bool))
    with pytest.raises(InputError, match="does not fit"):
        played.on_flat(np.ones((2, 5), np.float32), {}, np.ones(2, bool))
    other = CASES["dict"]
    with pytest.raises(InputError, match="its contract says"):
        emulated.load(tmp_path, other.spec, other.head, other.view, "cortex-m4f")
    with pytest.raises(InputError, match=r"no readable policy\.h"):
        emulated.load(tmp_path / "none", other.spec, other.head, other.view, "cortex-m4f")
    with pytest.raises(InputError, match="Allowed: cortex-m0"):
        firmware.missing("cortex-m4")


def test_absent_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm" in firmware.missing("cortex-m0")
    assert "apt-get install gcc-riscv64-unknown-elf" in firmware.missing("rv32")
    assert compiled_c.find_compiler() is None
