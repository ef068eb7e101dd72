"""Seconds of one step of a candidate before it is trained: its C code, compiled and timed on this machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from limbeck import exporters, proof, spaces, storage
from limbeck.contracts import Blueprint
from limbeck.errors import InputError
from limbeck.exporters import c
from limbeck.runtimes import compiled_c


def refuse_without_compiler() -> None:
    if lacking := exporters.missing("c"):
        raise InputError(
            f"a budget of latency is measured on compiled C, and there is {lacking}. Install gcc or clang, or drop --max-latency."
        )


def seconds_of(folder: Path, shape: str, make: Callable[[], Blueprint]) -> float:
    """Median of one step; measured once per `shape` and kept, so that a search continues as it began.

    The weights do not matter to the time of dense arithmetic, so the student need not be trained."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", shape)
    path = folder / "latency" / f"{name}.json"
    if path.exists():
        return float(storage.read_json(path)["p50_seconds"])
    blueprint = make()
    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        c.export(blueprint, Path(place))
        policy = compiled_c.load(Path(place), blueprint.spec, blueprint.head, blueprint.view)
    obs = np.zeros(spaces.input_size(blueprint.spec.observation_space, blueprint.view), np.float32)
    measured = proof.latency_of(lambda: policy.step(obs))
    storage.write_json(path, measured)
    return measured.p50_seconds
