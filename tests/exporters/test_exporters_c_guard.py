"""The guard of the exported C, its own tanh, and headers that share a program: what a robot relies on."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_compiling import WARNINGS
from cases_export import CASES, blueprint, observations
from cases_layers import HWC, LAYER_CASES
from gymnasium import spaces as S

from limbeck import distributions, spaces, tables
from limbeck.contracts import Array, Blueprint, Range, View
from limbeck.dataset import Dataset
from limbeck.exporters import c
from limbeck.exporters.ccode import guard as cguard
from limbeck.runtimes import compiled_c
from limbeck.runtimes.compiled_c import CPolicy
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.students.port import Port

pytestmark = pytest.mark.skipif(compiled_c.find_compiler() is None, reason="no C compiler: apt-get install gcc")

NONE = (np.nan, np.inf, -np.inf)


def seen(policy: Blueprint, seed: int = 0) -> Blueprint:
    """The policy with a range of what it saw: about -2..3, the first number always 0.5."""
    rng = np.random.default_rng(seed)
    size = spaces.flat_size(policy.spec.observation_space, policy.view)
    low, high = rng.uniform(-2.5, -1, size).astype(np.float32), rng.uniform(2, 3, size).astype(np.float32)
    low[0] = high[0] = 0.5
    return replace(policy, seen=Range(low, high))


def played(policy: Blueprint, folder: Path) -> CPolicy:
    c.export(policy, folder)
    return compiled_c.load(folder, policy.spec, policy.head, policy.view)


def replaced(policy: Blueprint, flat: Array) -> Array:
    """The observation that the documentation promises: the middle of what was seen, or 0, for what is not finite."""
    if policy.seen is None:
        middle = np.zeros(flat.shape[1], np.float32)
    else:
        low, high = cguard.limits(policy.seen)
        middle = np.float32(0.5) * low + np.float32(0.5) * high
    return np.where(np.isfinite(flat), flat, middle)


GUARDED = {
    "categorical": CASES["categorical"],
    "categorical seen": seen(CASES["categorical"]),
    "squashed seen": seen(CASES["squashed"]),
    "half open": CASES["gaussian half open"],
    "memory seen": seen(CASES["gru"]),
    "history": CASES["history"],
    "lstm seen": seen(LAYER_CASES["lstm"]),
}


@pytest.mark.parametrize("name", GUARDED)
def test_numbers_that_are_none_are_read_as_the_middle_and_counted(name: str, tmp_path: Path) -> None:
    policy = GUARDED[name]
    mine, reference = played(policy, tmp_path), NumpyPolicy(policy)
    rng = np.random.default_rng(1)
    flat = rng.uniform(-1, 2, (24, mine.library.obs)).astype(np.float32)
    flat[:, 0] = 0.5
    for row in range(1, 24):  # every place and every kind, then several, then all
        flat[row, row % flat.shape[1]] = NONE[row % 3]
    flat[20], flat[21], flat[22] = NONE
    state, own = mine.initial_state(1), reference.initial_state(1)
    low, high = distributions.bounds(policy.head) if not policy.head.discrete else (np.empty(0), np.empty(0))
    for row in range(24):
        first = np.array([row == 0])
        given = mine.on_flat(flat[row : row + 1], state, first)
        wanted = reference(replaced(policy, flat[row : row + 1]), own, first)
        state, own = given.state, wanted.state
        np.testing.assert_allclose(given.params, wanted.params, rtol=1e-5, atol=1e-5)
        assert np.isfinite(given.action).all()
        if not policy.head.discrete:
            assert ((given.action >= low) & (given.action <= high)).all()
    for row in flat:
        mine.step(row)
    assert (mine.steps, mine.strange) == (24, 23)
    assert mine.outside(flat).tolist() == (~np.isfinite(flat)).sum(1).tolist()
    mine.reset()
    assert (mine.steps, mine.strange) == (0, 0)


def test_what_training_never_saw_is_counted_and_changes_no_answer(tmp_path: Path) -> None:
    policy = seen(CASES["squashed"])
    mine, blind = played(policy, tmp_path / "seen"), played(CASES["squashed"], tmp_path / "blind")
    assert policy.seen is not None
    low, high = cguard.limits(policy.seen)
    spare = np.float32(0.1) * (policy.seen.high - policy.seen.low)
    np.testing.assert_allclose(low, policy.seen.low - spare, rtol=1e-5)
    np.testing.assert_allclose(high, policy.seen.high + spare, rtol=1e-5)
    edge = np.stack([low, high, np.nextafter(low, -9, dtype=np.float32), np.nextafter(high, 9, dtype=np.float32)])
    flat = np.concatenate([edge, np.random.default_rng(2).normal(size=(200, 5)).astype(np.float32) * 3])
    wanted = ((flat < low) | (flat > high)).sum(1)
    assert mine.outside(flat).tolist() == wanted.tolist()
    assert wanted[:4].tolist() == [0, 0, 5, 5]
    assert not blind.outside(flat).any()
    first = np.ones(len(flat), bool)
    assert mine.on_flat(flat, {}, first).params.tobytes() == blind.on_flat(flat, {}, first).params.tobytes()
    for row in flat:
        mine.step(row)
    assert (mine.steps, mine.strange) == (len(flat), int((wanted > 0).sum()))


def test_only_the_numbers_a_view_picks_are_guarded(tmp_path: Path) -> None:
    policy = seen(CASES["indices"])  # picks 4, 0, 2
    mine = played(policy, tmp_path)
    flat = np.full((3, 5), 0.5, np.float32)
    flat[1, [1, 3]] = np.nan, 1e9
    flat[2, 4] = 0.6  # the picked number that never changed
    assert mine.outside(flat).tolist() == [0, 0, 1]


def test_long_observations_are_not_looked_at_and_actions_stay_numbers(tmp_path: Path) -> None:
    long = S.Box(-1, 1, (cguard.GUARDED + 1,), np.float32)
    policy = blueprint(S.Box(-1, 2, (2,), np.float32), "gaussian", observation_space=long, hidden=(16,))
    text, _ = c.generate(policy)
    assert "#define LIMBECK_GUARD 0" in text
    assert "observations of more than 512 numbers are not guarded" in text
    mine = played(policy, tmp_path)
    for value in NONE:
        flat = np.full((1, cguard.GUARDED + 1), value, np.float32)
        assert not mine.outside(flat).any()
        action = mine.on_flat(flat, {}, np.ones(1, bool)).action
        assert ((action >= -1) & (action <= 2)).all()
    assert spaces.flat_size(HWC) <= cguard.GUARDED  # small pictures are guarded


@pytest.mark.parametrize("name", ["squashed", "gaussian half open", "gru first"])
def test_huge_numbers_give_actions_that_are_numbers(name: str, tmp_path: Path) -> None:
    policy = CASES[name]
    mine = played(policy, tmp_path)
    signs = np.sign(np.random.default_rng(3).normal(size=(40, mine.library.obs))).astype(np.float32)
    action = mine.on_flat(signs * np.float32(3e38), mine.initial_state(40), np.ones(40, bool)).action
    low, high = distributions.bounds(policy.head)
    assert np.isfinite(action).all()
    assert ((action.reshape(40, -1) >= low) & (action.reshape(40, -1) <= high)).all()


def test_the_range_is_that_of_the_data_set(tmp_path: Path) -> None:
    space = S.Dict({"a": S.Box(-9, 9, (3,), np.float32), "action_mask": S.MultiBinary(2), "k": S.Discrete(2)})
    policy = blueprint(
        S.Discrete(2), observation_space=space, view=View(keys=("k", "a"), mask="action_mask", history=2)
    )
    data, rng = Dataset(tmp_path, "t"), np.random.default_rng(4)
    rounds = [rng.normal(size=(50, 3)).astype(np.float32) for _ in range(3)]
    port = Port(policy.spec, policy.view, policy.head, 10)
    assert tables.range_of(data, port) is None
    for number, rows in enumerate(rounds):
        masks, kinds = np.ones((50, 2), np.int8), np.ones(50, np.int64)
        data.add(number, {"first": np.ones(50, bool), "obs/a": rows, "obs/k": kinds, "obs/action_mask": masks}, {})
    found, every = tables.range_of(data, port), np.concatenate(rounds)
    assert found is not None
    assert found.low.tolist() == [0, 1, *every.min(0)]
    assert found.high.tolist() == [0, 1, *every.max(0)]


# ---------------------------------------------------------------- tanh


def tanh_of(folder: Path, *flags: str, plain: bool = False) -> ctypes.CDLL:
    """The header's tanh as a function of (address, count)."""
    text, _ = c.generate(CASES["activation tanh"])
    (folder / "policy.h").write_text(text.replace("defined(__GNUC__)", "0") if plain else text)
    (folder / "tanh.c").write_text(
        '#define LIMBECK_IMPLEMENTATION\n#include "policy.h"\nvoid each(float *y, int n) { limbeck_tanh(y, n); }\n'
    )
    command = [*compiled_c.compiler(), *flags, "-w", "-shared", "-fPIC", "tanh.c", "-o", "tanh.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "tanh.so"))
    library.each.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def applied(library: ctypes.CDLL, values: Array) -> Array:
    copy = np.array(values, np.float32)
    library.each(copy.ctypes.data, len(copy))
    return copy


BUILDS = {"O0": ["-O0"], "O2": ["-O2", "-ffp-contract=off"], "native": ["-O3", "-march=native"]}


@pytest.mark.parametrize("build", BUILDS)
def test_tanh_is_within_its_bound(build: str, tmp_path: Path) -> None:
    """Minimax 1.5e-7, its constants' rounding 0.4e-7, and the roundings of P, Q, product and quotient (6e-8 each): below 6e-7."""
    library = tanh_of(tmp_path, *BUILDS[build])
    bits = np.arange(0, 0x7F800000, 7001, dtype=np.uint32)
    x = bits.view(np.float32)
    y = applied(library, x)
    exact = np.tanh(x.astype(np.float64))
    normal = x > 1e-37
    assert (np.abs(y - exact) <= 6e-7).all()
    assert (np.abs(y - exact)[normal] <= 6e-7 * exact[normal]).all()
    assert (applied(library, -x) == -y).all()
    ends = applied(library, np.array([np.inf, -np.inf, 3e38, -8.00001, 0], np.float32))
    assert ends.tolist() == [1, -1, 1, -1, 0]
    assert np.abs(y).max() <= 1 + 6e-7
    assert np.isnan(applied(library, np.full(3, np.nan))).all()


@pytest.mark.slow
@pytest.mark.parametrize("begin", range(0x39000000, 0x41800000, 1 << 24))
def test_tanh_of_every_float(begin: int, tmp_path: Path) -> None:
    """Of all from 1.2e-4 to 16; below, tanh is its argument within 5e-9, and above, it is 1."""
    library = tanh_of(tmp_path, "-O2", "-ffp-contract=off")
    x = np.arange(begin, begin + (1 << 24), dtype=np.uint32).view(np.float32)
    exact = np.tanh(x.astype(np.float64))
    assert (np.abs(applied(library, x) - exact) <= 6e-7 * exact).all()


def test_tanh_has_the_same_bits_in_every_build(tmp_path: Path) -> None:
    x = np.random.default_rng(5).normal(size=40_003).astype(np.float32) * 4
    found = set()
    for number, (flags, plain) in enumerate(
        ((("-O0",), False), (("-O2",), True), (("-O3", "-march=native"), False), (("-O2",), False))
    ):
        (folder := tmp_path / str(number)).mkdir()
        found.add(applied(tanh_of(folder, *flags, "-ffp-contract=off", plain=plain), x).tobytes())
    assert len(found) == 1


# ---------------------------------------------------------------- one program

TWO = r"""
#include "left.h"
#include "right.h"
#include <stdio.h>
int main(void)
{
    static const float obs[LEFT_OBS] = {0.5f};
    float params[LEFT_PARAMS + RIGHT_PARAMS];
    left_action one[LEFT_ACTIONS];
    right_action two[RIGHT_ACTIONS];
    left_state a;
    right_state b;
    left_reset(&a), right_reset(&b);
    left_step(&a, obs, params, one), right_step(&b, obs, params + LEFT_PARAMS, two);
    printf("%a %a %u %u\n", (double)params[0], (double)params[LEFT_PARAMS], (unsigned)a.steps, (unsigned)b.strange);
    return 0;
}
"""


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("language", ["c", "c++"])
def test_two_policies_in_one_program(together: bool, language: str, tmp_path: Path) -> None:
    """Each in a source of its own, or both in one; the rest of the program may be C++."""
    names = {"left": CASES["squashed"], "right": seen(CASES["gru"])}
    for name, policy in names.items():
        (tmp_path / f"{name}.h").write_text(c.generate(policy, name)[0])
        (tmp_path / f"{name}.c").write_text(f'#define {name.upper()}_IMPLEMENTATION\n#include "{name}.h"\n')
    main = tmp_path / ("main.c" if language == "c" else "main.cc")
    main.write_text("#define LEFT_IMPLEMENTATION\n#define RIGHT_IMPLEMENTATION\n" * together + TWO)
    program = shutil.which("gcc" if language == "c" else "g++")
    if program is None:
        pytest.skip("no g++: apt-get install g++")
    standard = "-std=c99" if language == "c" else "-std=c++17"
    sources = [main.name]
    if not together:
        for name in names:
            subprocess.run(["gcc", "-std=c99", *WARNINGS, "-O2", "-c", f"{name}.c"], cwd=tmp_path, check=True)
        sources += [f"{name}.o" for name in names]
    subprocess.run([program, standard, *WARNINGS, "-O2", *sources, "-o", "two", "-lm"], cwd=tmp_path, check=True)
    said = subprocess.run([str(tmp_path / "two")], capture_output=True, text=True, check=True).stdout.split()
    for word, policy in zip(said, names.values(), strict=False):
        row = np.array([[0.5, 0, 0, 0, 0]], np.float32)
        reference = NumpyPolicy(policy)
        wanted = reference(row, reference.initial_state(1), np.ones(1, bool)).params[0, 0]
        assert float.fromhex(word) == pytest.approx(float(wanted), rel=1e-5, abs=1e-5)
    assert said[2:] == ["1", "0"]


@pytest.mark.parametrize("policy", [CASES["odd widths"], blueprint(S.Discrete(6), hidden=(70,))], ids=["odd", "narrow"])
def test_relu_networks_give_the_same_bits_in_every_build_without_contraction(policy: Blueprint, tmp_path: Path) -> None:
    flat = spaces.input_rows(
        observations(policy.spec.observation_space, 50), policy.spec.observation_space, policy.view
    )
    compilers = [path for path in map(shutil.which, ("gcc", "clang")) if path]
    found = set()
    for cc in compilers:
        for flags in (("-O0",), ("-O2",), ("-O3", "-march=native")):
            (folder := tmp_path / f"{len(found)}{Path(cc).name}{flags[0]}").mkdir()
            (folder / "policy.h").write_text(c.generate(policy)[0])
            (folder / "all.c").write_text(
                '#define LIMBECK_IMPLEMENTATION\n#include "policy.h"\n'
                "void all(const float *obs, float *params, int rows) { limbeck_state m; limbeck_action a[LIMBECK_ACTIONS];\n"
                "    limbeck_reset(&m); while (rows--) { limbeck_step(&m, obs, params, a); obs += LIMBECK_OBS; params += LIMBECK_PARAMS; } }\n"
            )
            command = [cc, "-std=c99", *flags, "-ffp-contract=off", "-shared", "-fPIC", "all.c", "-o", "all.so"]
            subprocess.run(command, cwd=folder, check=True)
            params = np.empty((50, policy.head.width), np.float32)
            library = ctypes.CDLL(str(folder / "all.so"))
            library.all(ctypes.c_void_p(flat.ctypes.data), ctypes.c_void_p(params.ctypes.data), 50)
            found.add(params.tobytes())
    assert len(found) == 1
