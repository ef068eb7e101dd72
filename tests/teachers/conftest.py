"""Fixtures of the teacher tests; what they are made of stands in hostile_cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_cases import FIXTURES, Trap, recording


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


@pytest.fixture
def audited() -> Callable:
    return recording


@pytest.fixture(scope="session")
def cartpole_zip() -> Path:
    return FIXTURES / "cartpole_ppo_sb3.zip"
