"""Run-time dispatch of the C: the same bits at every level, and none of it where it does not belong."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
from cases_compiling import WARNINGS, compiler
from cases_export import CASES
from cases_layers import LAYER_CASES
from test_exporters_c import ALL
from test_exporters_trees import CASES as TREES

from limbeck.contracts import Blueprint
from limbeck.exporters import c
from limbeck.exporters.ccode import dispatch

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="dispatch is for x86-64 alone")

# plays 40 rows at every level that this processor has, in one build: the question is answered by the length of the name
EVERY_LEVEL = r"""
#include <stdio.h>
#include <string.h>
static int supported(unsigned long name)
{
    return name == sizeof("avx512vl") ? __builtin_cpu_supports("avx512vl") : !name || __builtin_cpu_supports("avx2");
}
static unsigned long chosen, asked;
#define __builtin_cpu_supports(name) (asked++, sizeof(name) == chosen)
#define LIMBECK_IMPLEMENTATION
#include "policy.h"

int main(void)
{
    static const unsigned long levels[] = {0, sizeof("avx2"), sizeof("avx512vl")};
    static limbeck_state memory;
    static float obs[LIMBECK_OBS], params[LIMBECK_PARAMS];
    static limbeck_action action[LIMBECK_ACTIONS];
    unsigned seed, number;
    int k, row, i;
    for (k = 0; k < 3; k++) {
        chosen = levels[k];
        if (!supported(chosen))
            continue;
        printf("\n%s", k == 0 ? "none" : k == 1 ? "avx2" : "avx512vl");
        limbeck_reset(&memory);
        for (row = 0, seed = 1; row < 40; row++) {
            for (i = 0; i < LIMBECK_OBS; i++) {
                seed = seed * 1664525u + 1013904223u;
                obs[i] = (float)(seed >> 8) / 4194304.0f - 2.0f;
            }
            limbeck_step(&memory, obs, params, action);
            for (i = 0; i < LIMBECK_PARAMS; i++) {
                memcpy(&number, params + i, sizeof number);
                printf(" %08x", number);
            }
            for (i = 0; i < LIMBECK_ACTIONS; i++) {
                memcpy(&number, action + i, sizeof number);
                printf(" %08x", number);
            }
        }
    }
    printf("\nasked %lu\n", asked);
    return 0;
}
"""


def write(policy: Blueprint, folder: Path, source: str = "") -> None:
    (folder / "policy.h").write_text(c.generate(policy)[0])
    (folder / "main.c").write_text(source or '#define LIMBECK_IMPLEMENTATION\n#include "policy.h"\n')


def levels(cc: str, policy: Blueprint, folder: Path, *flags: str) -> dict[str, str]:
    """What each level of this processor answers, bit for bit; the GNU dialect, which would contract."""
    write(policy, folder, EVERY_LEVEL)
    command = [compiler(cc), *WARNINGS, *flags, "main.c", "-o", "program", "-lm"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    lines = subprocess.run([str(folder / "program")], capture_output=True, text=True, check=True).stdout.split("\n")[1:]
    assert lines[-2].startswith("asked ")
    assert lines[-2] != "asked 0"
    return dict(line.split(" ", 1) for line in lines[:-2])


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", ["odd widths", "conv hwc", "lstm first and last"])
def test_every_level_gives_the_same_bits(cc: str, name: str, tmp_path: Path) -> None:
    answers = levels(cc, ALL[name], tmp_path, "-O2")
    if len(answers) == 1:
        pytest.skip("this processor has no AVX2")
    assert len(set(answers.values())) == 1, list(answers)


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", [*CASES, *LAYER_CASES])
def test_every_policy_gives_the_same_bits_at_every_level(
    cc: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "FEW", 0)
    if "_DISPATCH" not in c.generate(ALL[name])[0]:
        pytest.skip("no routine over vectors")
    for number, flags in enumerate((("-O1",), ("-O3", "-std=c99"))):
        (folder := tmp_path / str(number)).mkdir()
        assert len(set(levels(cc, ALL[name], folder, *flags).values())) == 1


BUILDS = {
    "-O2": True,
    "-O1 -std=c99": True,
    "-O3 -march=x86-64-v2": True,
    "-O0": False,
    "-Os": False,
    "-O2 -mavx": False,
    "-O2 -march=x86-64-v3": False,
    "-O2 -march=x86-64-v4": False,
    "-O2 -mno-avx": True,  # which no macro tells of
    "-O2 -ffreestanding": False,
    "-O2 -mno-sse": False,
    "-O2 -DLIMBECK_NO_DISPATCH": False,
}


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_only_builds_that_want_it_see_it(cc: str, tmp_path: Path) -> None:
    write(ALL["odd widths"], tmp_path)
    for flags, wanted in BUILDS.items():
        command = [compiler(cc), *flags.split(), "-dM", "-E", "main.c"]
        macros = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert (re.search("^#define LIMBECK_DISPATCH\\b", macros, re.MULTILINE) is not None) == wanted, flags


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_nothing_is_stored(cc: str, tmp_path: Path) -> None:
    """No number that is written, no constructor: threads that step at once share constants alone."""
    write(ALL["odd widths"], tmp_path)
    subprocess.run([compiler(cc), "-O2", "-c", "main.c", "-o", "main.o"], cwd=tmp_path, check=True)
    rows = subprocess.run(
        ["nm", "main.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {row.split()[-2] for row in rows} <= {"T", "t", "r", "U"}
    outside = {row.split()[-1] for row in rows if " U " in row}
    assert outside <= {"__cpu_model", "_GLOBAL_OFFSET_TABLE_"}
    parts = subprocess.run(["objdump", "-h", "main.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ".text" in parts
    assert "array" not in parts
    assert ".ctors" not in parts


def test_policies_that_gain_nothing_stay_short() -> None:
    for name in ("linear", "categorical", "pool of raw numbers", "whole picture and memory"):
        assert "_DISPATCH" not in c.generate(ALL[name])[0]
    for policy in TREES.values():
        assert "_DISPATCH" not in c.generate(policy)[0]
    text, _ = c.generate(ALL["odd widths"])
    assert len(text.split("#ifdef LIMBECK_DISPATCH")[1]) < 25_000
