"""The C text: strict compilers, sanitizers, hostile names, exact constants, numbers that are none."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_compiling import STRICT, compiler
from cases_export import CASES, MIXED, blueprint, observations, starts
from cases_layers import LAYER_CASES
from gymnasium import spaces as S
from hypothesis import given
from hypothesis import strategies as st
from test_exporters_trees import CASES as TREES

from limbeck import spaces
from limbeck.contracts import Blueprint, Spec, View
from limbeck.errors import InputError
from limbeck.exporters import c
from limbeck.runtimes import compiled_c
from limbeck.runtimes.numpy import NumpyPolicy

HOSTILE = [
    "quote \" and ' and \\",
    "line\nbreak\r\u2028",
    "*/ int main(void) { return 1; } /*",
    "??/",
    "backslash at the end \\",
    "</script><script>",
    'x;}int z=(creat("CANARY",0600),0);/*',
    'x;}\nint z=(creat("CANARY",0600),0);/*',
    "@p @P @p_step",
    "*/\n#error stop\n/*",
    "??/\n#error stop",
    "\\\n#error stop\\",
    "#define int float",
    "int",
    "ünïcödé ж",
]
MAIN = r"""
#define LIMBECK_IMPLEMENTATION
#include "policy.h"
#include <stdio.h>
#include <stdlib.h>
int main(void)
{
    limbeck_state *memory = malloc(sizeof *memory);
    float *obs = malloc(LIMBECK_OBS * sizeof *obs), *params = malloc(LIMBECK_PARAMS * sizeof *params);
    limbeck_action *action = malloc(LIMBECK_ACTIONS * sizeof *action);
    int first, i;
    while (scanf("%d", &first) == 1) {
        for (i = 0; i < LIMBECK_OBS; i++)
            if (scanf("%a", obs + i) != 1)
                return 1;
        if (first)
            limbeck_reset(memory);
        limbeck_step(memory, obs, params, action);
        for (i = 0; i < LIMBECK_PARAMS; i++)
            printf("%a ", (double)params[i]);
        for (i = 0; i < LIMBECK_ACTIONS; i++)
            printf("%a ", (double)action[i]);
        printf("\n");
    }
    free(memory), free(obs), free(params), free(action);
    return 0;
}
"""


def write(policy: Blueprint, folder: Path) -> None:
    (folder / "policy.h").write_text(c.generate(policy)[0])
    (folder / "main.c").write_text(MAIN)


def compile_program(cc: str, folder: Path, *flags: str) -> Path:
    command = [cc, *STRICT, *flags, "main.c", "-o", "program", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def play(command: list[str], policy: Blueprint, folder: Path, env: dict[str, str]) -> None:
    """Lead the program through rows and compare with numpy."""
    rows, first = 20, starts(20)
    obs = observations(policy.spec.observation_space, rows)
    flat = spaces.input_rows(obs, policy.spec.observation_space, policy.view)
    words = "\n".join(f"{int(f)} " + " ".join(float(v).hex() for v in row) for f, row in zip(first, flat, strict=True))
    done = subprocess.run(command, cwd=folder, input=words, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    given_rows = np.array([[float.fromhex(w) for w in line.split()] for line in done.stdout.splitlines()])
    reference, state = NumpyPolicy(policy), NumpyPolicy(policy).initial_state(1)
    for row in range(rows):
        one = {k: v[row : row + 1] for k, v in obs.items()} if isinstance(obs, dict) else obs[row : row + 1]
        output = reference(one, state, first[row : row + 1])
        state = output.state
        np.testing.assert_allclose(given_rows[row, : policy.head.width], output.params[0], rtol=1e-5, atol=1e-5)


SOME = ["wide end", "dict view", "gru first", "multicategorical", "gaussian half open", "tiny"]
SOME += ["conv hwc", "conv chw", "conv of frames", "nested", "lstm first and last", "gsde squashed", "masked keys"]
ALL = {**CASES, **LAYER_CASES}
MORE = ["gaussian half open", "masked keys", "lstm", "parallel", "activation tanh", "gsde"]
MORE += ["wide end", "conv hwc", "conv chw", "conv of frames", "lstm first and last"]  # over wider vectors as well


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", SOME)
def test_strict_compilers(cc: str, name: str, tmp_path: Path) -> None:
    write(ALL[name], tmp_path)
    play([str(compile_program(compiler(cc), tmp_path, "-O2", "-Wconversion", "-Wshadow"))], ALL[name], tmp_path, {})


def random_sizes(seed: int) -> tuple[int, ...]:
    """Hidden layers whose widths are no multiples of vectors, from 17 on, where they are computed over vectors."""
    return tuple(int(8 * v + k) for v, k in np.random.default_rng(seed).integers((2, 1), (19, 8), (2, 2)))


@pytest.mark.parametrize("hidden", [(100, 100), *map(random_sizes, range(2))])
def test_no_size_warns_where_loops_are_unrolled(hidden: tuple[int, ...], tmp_path: Path) -> None:
    """GCC unrolls the outputs that fill no vector, and must see that they end."""
    write(blueprint(S.Discrete(4), hidden=hidden, observation_space=S.Box(-3, 3, (8,), np.float32)), tmp_path)
    for cc, flags in (("gcc", "-O2"), ("gcc", "-O2 -march=x86-64-v3"), ("clang", "-O2 -DLIMBECK_NO_DISPATCH")):
        if "x86" in flags and platform.machine() != "x86_64":
            continue
        command = [compiler(cc), *STRICT, *flags.split(), "-c", "main.c", "-o", "main.o"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (cc, flags, done.stderr[:500])


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", SOME)
def test_sanitizers_find_nothing(cc: str, name: str, tmp_path: Path) -> None:
    sanitized(cc, ALL[name], tmp_path, "-DLIMBECK_NO_DISPATCH")  # the code for wider vectors takes seconds to compile


def sanitized(cc: str, policy: Blueprint, folder: Path, *more: str) -> None:
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *more]
    (folder / "probe.c").write_text("int main(void) { return 0; }")
    probe = subprocess.run([compiler(cc), *flags, "probe.c", "-o", "probe"], cwd=folder, capture_output=True)
    if probe.returncode != 0:
        pytest.skip(f"{cc} comes without its sanitizers' library: apt-get install libclang-rt-14-dev")
    write(policy, folder)
    play([str(compile_program(compiler(cc), folder, *flags))], policy, folder, {"ASAN_OPTIONS": "detect_leaks=0"})


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("flags", [("-O0",), ("-O2",), ("-O3", "-march=native"), ("-O2", "plain")])
def test_every_policy_with_every_compiler(cc: str, name: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    write(ALL[name], tmp_path)
    if "plain" in flags:  # the plain C99 path, as other compilers see it
        source = (tmp_path / "policy.h").read_text().replace("defined(__GNUC__)", "0")
        (tmp_path / "policy.h").write_text(source)
        flags = flags[:-1]
    play([str(compile_program(compiler(cc), tmp_path, *flags))], ALL[name], tmp_path, {})


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", MORE)
def test_sanitizers_find_nothing_in_more_policies(cc: str, name: str, tmp_path: Path) -> None:
    sanitized(cc, ALL[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", TREES)
def test_strict_compilers_and_sanitizers_find_nothing_in_trees(cc: str, name: str, tmp_path: Path) -> None:
    write(TREES[name], tmp_path)
    play([str(compile_program(compiler(cc), tmp_path, "-O3", "-march=native"))], TREES[name], tmp_path, {})
    sanitized(cc, TREES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gru with history", "odd widths", "conv chw", "nested", "lstm", "masked keys", "squashed"]
)
def test_valgrind_sees_nothing(name: str, tmp_path: Path) -> None:
    valgrind = compiler("valgrind")
    write(ALL[name], tmp_path)
    program = compile_program(compiler("gcc"), tmp_path, "-O2", "-g")
    play([valgrind, "-q", "--error-exitcode=9", str(program)], ALL[name], tmp_path, {})


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", ["odd widths", "conv hwc", "conv chw"])
def test_plain_c99_gives_the_same_bits_as_vectors(cc: str, name: str, tmp_path: Path) -> None:
    """Every sum has one order, whatever the machine's vectors: only fused multiply-adds could differ."""
    outputs = []
    size = spaces.input_size(ALL[name].spec.observation_space, ALL[name].view)
    words = "1 " + " ".join(str((i * 37 % 101) / 100) for i in range(size))
    for plain in (False, True):
        folder = tmp_path / str(plain)
        folder.mkdir()
        write(ALL[name], folder)
        if plain:
            text = (folder / "policy.h").read_text()
            (folder / "policy.h").write_text(text.replace("defined(__GNUC__)", "0"))
        program = compile_program(compiler(cc), folder, "-O2", "-ffp-contract=off")
        outputs.append(subprocess.run([str(program)], input=words, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_never_become_code(cc: str, name: str, tmp_path: Path) -> None:
    space = S.Dict({name: S.Box(-1, 1, (2,), np.float32), "b": S.Discrete(2)})
    policy = blueprint(S.Discrete(3), hidden=(), observation_space=space)
    policy = replace(policy, name=name, spec=Spec(space, policy.spec.action_space, name))
    write(policy, tmp_path)
    text = (tmp_path / "policy.h").read_bytes()
    assert all(32 <= byte < 127 or byte == 10 for byte in text)
    end = text.index(b"*/")
    assert b"creat" not in text[end:]
    program = compile_program(compiler(cc), tmp_path, "-trigraphs")
    subprocess.run([str(program)], cwd=tmp_path, input="1 0 0 0 0\n", text=True, check=True, capture_output=True)
    assert not (tmp_path / "CANARY").exists()


@given(st.text(max_size=60))
def test_comment_text_cannot_end_or_continue_a_comment(name: str) -> None:
    shown = c.comment_text(name)
    assert all(32 <= ord(ch) < 127 for ch in shown)
    assert not set("*?\\") & set(shown)


@given(st.floats(width=32, allow_nan=False))
def test_constants_are_exact(value: float) -> None:
    word = c.literal(value)
    read = {"INFINITY": np.inf, "-INFINITY": -np.inf}.get(word)
    back = np.float32(float.fromhex(word.removesuffix("f")) if read is None else read)
    assert back.tobytes() == np.float32(value).tobytes()
    assert "," not in word


def test_odd_constants_survive_the_compiler(tmp_path: Path) -> None:
    policy = CASES["linear"]
    values = np.array([1e-45, -1e-40, -0.0, 3.4028235e38, 1.17549435e-38], np.float32)
    odd = replace(policy, layers=(replace(policy.layers[0], weight=np.tile(values[:, None], 4)),))
    write(odd, tmp_path)
    text = (tmp_path / "main.c").read_text().replace("int main(void)\n{", "int main(void)\n{\n    show();")
    show = 'static void show(void) { int i; for (i = 0; i < 5; i++) printf("%a ", (double)limbeck_weight_0[i]); }\nint main(void)'
    (tmp_path / "main.c").write_text(text.replace("int main(void)", show, 1))
    command = [compiler("gcc"), *STRICT, "main.c", "-o", "program", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "program")], input="", capture_output=True, text=True, check=True)
    back = np.array([float.fromhex(w) for w in done.stdout.split()], np.float32)
    assert back.tobytes() == values.tobytes()


def test_a_prefix_names_everything_and_nothing_else_is_allowed(tmp_path: Path) -> None:
    text, _ = c.generate(CASES["gru with history"], "left_leg")
    assert "limbeck_" not in text
    assert "LIMBECK_" not in text
    artifact = c.export(CASES["gru with history"], tmp_path, "left_leg")
    assert compiled_c.build(artifact.folder).params == 4
    for bad in ("", "Leg", "1leg", "a-b", "a b", "x;}", "a" * 33):
        with pytest.raises(InputError, match="cannot begin C names"):
            c.generate(CASES["tiny"], bad)


@pytest.mark.parametrize(
    "name", ["categorical", "multicategorical", "bernoulli", "tiny", "gru", "history", "squashed", "gaussian"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_never_leave_the_range(name: str, value: float, tmp_path: Path) -> None:
    policy = CASES[name]
    c.export(policy, tmp_path)
    played = compiled_c.load(tmp_path, policy.spec, policy.head, policy.view)
    flat = np.zeros((5, played.library.obs), np.float32)
    flat[np.arange(5), np.arange(5)] = value
    action = played.on_flat(flat, played.initial_state(5), np.ones(5, bool)).action.reshape(5, -1)
    if policy.head.discrete:
        sizes = [2] * policy.head.sizes[0] if policy.head.kind == "bernoulli" else policy.head.sizes
        choice = action - np.array(policy.head.start or 0)
        assert (choice >= 0).all()
        assert (choice < np.array(sizes)).all()
    else:
        low, high = np.array(policy.head.low), np.array(policy.head.high)
        inside = (action >= low - 1e-6) & (action <= high + 1e-6)
        assert (inside | np.isnan(action)).all()


def test_tiny_policies_stay_tiny(tmp_path: Path) -> None:
    assert c.export(CASES["linear"], tmp_path / "linear").size_bytes <= 4 * CASES["linear"].parameters + 400
    assert c.export(CASES["tiny"], tmp_path / "tiny").size_bytes <= 4 * CASES["tiny"].parameters + 600
    for name in ("categorical", "activation tanh", "gru", "squashed", "gaussian half open"):
        assert "math.h" not in c.generate(CASES[name])[0]


def test_long_vectors_leave_the_stack_and_the_comment_says_so(tmp_path: Path) -> None:
    policy = blueprint(S.Discrete(4), hidden=(5000, 9), gru=3, view=View(history=2))
    text, _ = c.generate(policy)
    assert "vectors too long for a small stack: y (20000 bytes)." in text
    assert "float scratch[5000];" in text
    stack = sum(int(size) for size in re.findall(r"ALIGNED float x\d*\[(\d+)\];", text))
    assert 0 < 4 * stack <= 16 * 1024
    assert "scratch" not in c.generate(CASES["odd widths"])[0]
    write(policy, tmp_path)
    play([str(compile_program(compiler("gcc"), tmp_path, "-O1", "-Wconversion"))], policy, tmp_path, {})
    c.export(policy, tmp_path)
    played = compiled_c.load(tmp_path, policy.spec, policy.head, policy.view)
    assert played.library.state_bytes - played.library.carried_bytes == 8 + 20000  # counters and scratch
    assert played.initial_state(2)["memory"].shape == (2, 4 * (5 + 1 + 3))


def test_statistics_of_images_are_written_once() -> None:
    text = c.generate(LAYER_CASES["conv hwc"])[0]
    assert "mean[" not in text
    assert "inverse_scale[" not in text
    assert "x[i] * 0x1.010102p-8f" in text


def test_a_mask_that_is_no_number_forbids(tmp_path: Path) -> None:
    policy = LAYER_CASES["masked"]
    c.export(policy, tmp_path)
    played = compiled_c.load(tmp_path, policy.spec, policy.head, policy.view)
    flat = np.zeros((4, played.library.obs), np.float32)
    flat[:, -5:] = [[0, 0, 1, 0, 0], [np.nan, np.nan, np.nan, 1, np.nan], [0] * 5, [np.nan] * 5]
    assert played.on_flat(flat, {}, np.ones(4, bool)).action.tolist() == [1, 2, -1, -1]  # start is -1


@pytest.mark.slow
def test_a_policy_of_1_7_million_weights_is_written_in_seconds(tmp_path: Path) -> None:
    import time

    from cases_layers import conv, drawn, policy

    size = (84, 84)
    layers = (conv(size, (8, 8, 4, 32), stride=(4, 4)), conv((20, 20), (4, 4, 32, 64), stride=(2, 2)))
    layers = (*layers, conv((9, 9), (3, 3, 64, 64)), drawn(3136, 512, "relu"))
    nature = policy(S.Box(0, 255, (84, 84, 4), np.uint8), *layers, scale=255.0)
    begin = time.perf_counter()
    c.generate(nature)
    assert time.perf_counter() - begin < 15
    write(nature, tmp_path)
    play([str(compile_program(compiler("gcc"), tmp_path, "-O2"))], nature, tmp_path, {})
    assert c.export(nature, tmp_path).size_bytes < 4 * nature.parameters + 5000


def test_action_offsets_beyond_32_bits_are_refused() -> None:
    far = blueprint(S.Discrete(3, start=2**40), hidden=(), observation_space=MIXED)
    with pytest.raises(InputError, match="32 bits"):
        c.generate(far)
