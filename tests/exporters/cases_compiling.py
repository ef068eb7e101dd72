"""The compilers that tests ask for, and what they must not complain about."""

from __future__ import annotations

import shutil

import pytest

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
STRICT = [*WARNINGS, "-std=c99"]
STRICTER = [*STRICT, "-Wshadow", "-Wconversion"]


def compiler(name: str) -> str:
    """Where a compiler lies; a test that lacks it is skipped."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed; run: apt-get install {name}")
    return found
