"""The compilers that tests ask for, and what they must not complain about."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from limbeck.contracts import Blueprint
from limbeck.exporters import c

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
STRICT = [*WARNINGS, "-std=c99"]
STRICTER = [*STRICT, "-Wshadow", "-Wconversion"]


def compiler(name: str) -> str:
    """Where a compiler lies; a test that lacks it is skipped."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed; run: apt-get install {name}")
    return found


_INCLUDE = '#define {macro}_IMPLEMENTATION\n#include "{name}.h"\n'
_RUN = """
static int run_{name}(void)
{{
    static {name}_state memory;
    static float obs[{macro}_OBS], params[{macro}_PARAMS];
    static {name}_action action[{macro}_ACTIONS];
    int row;
    for (row = 0; row < {rows}; row++) {{
        if (fread(obs, sizeof *obs, {macro}_OBS, stdin) != {macro}_OBS)
            return 1;
        if (row % {episode} == 0)
            {name}_reset(&memory);
        {name}_step(&memory, obs, params, action);
        fwrite(params, sizeof *params, {macro}_PARAMS, stdout);
        {acted}
    }}
    return 0;
}}
"""
_ACTED = "fwrite(action, sizeof *action, {macro}_ACTIONS, stdout);"


def program(
    folder: Path,
    command: Sequence[str],
    policies: Sequence[Blueprint],
    rows: int,
    episode: int = 1,
    acted: bool = False,
) -> Path:
    """One program that plays every policy on `rows` observations each, under prefixes of their own.

    It writes the numbers that the head reads, and the actions where `acted`; an episode begins at each `episode`-th row.
    """
    source, names = ["#include <stdio.h>\n"], [f"p{k}" for k in range(len(policies))]
    for name, policy in zip(names, policies, strict=True):
        (folder / f"{name}.h").write_text(c.generate(policy, name)[0])
        words = {"name": name, "macro": name.upper(), "rows": rows, "episode": episode}
        acting = _ACTED.format(**words) if acted else ""
        source += [_INCLUDE.format(**words), _RUN.format(**words, acted=acting)]
    calls = " || ".join(f"run_{name}()" for name in names)
    (folder / "main.c").write_text("".join(source) + f"int main(void)\n{{\n    return {calls};\n}}\n")
    done = subprocess.run([*command, "main.c", "-o", "program"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "program"
