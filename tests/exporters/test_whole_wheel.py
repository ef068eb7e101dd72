"""limbeck-runtime plays convolutions and memories in whole numbers, with numpy alone and without Limbeck."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from cases_export import observations, starts
from cases_quantised_layers import SOME
from test_runtime_wheel import assembled, run

from limbeck import exporters, spaces
from limbeck.exporters import golden
from limbeck.runtimes.numpy import NumpyPolicy

TARGETS = ("numpy", "safetensors", "python", "onnx")
PLAYED = {"picture": "whole picture and memory", "gru": "whole gru first and last", "agents": "whole agents"}
PLAYED |= {"chw": "whole image chw", "memories": "memories"}


def test_every_target_repeats_its_golden_rows_to_the_bit(tmp_path: Path) -> None:
    wanted = {}
    for folder, name in PLAYED.items():
        made = SOME[name]
        rows = golden.label(NumpyPolicy(made), observations(made.spec.observation_space, 25), starts(25))
        exporters.export(made, tmp_path / folder, TARGETS, rows)
        wanted[folder] = spaces.as_received(rows.actions, made.spec.action_space)
        for target in TARGETS:
            assert golden.compare(rows, exporters.load(tmp_path / folder, target)).worst_error == 0
    site = assembled(tmp_path / "site")
    found = run(sys.executable, "blocked", str(site), *(str(tmp_path / folder) for folder in PLAYED))
    assert found["loaded"] == []
    for folder, told in found["told"].items():
        assert set(told["played"]) == set(TARGETS)
        for target, (ok, note) in told["rows"].items():
            assert ok, (target, note)
            assert np.array_equal(told["played"][target][0], wanted[folder])
