"""int8 by ONNX Runtime: near the policy, honest about it, and held against its own answers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import quantised_cases
from cases_export import CASES, blueprint, observations, starts
from cases_layers import LAYER_CASES
from gymnasium import spaces as S
from test_exporters_trees import CASES as TREES

from limbeck import exporters, storage
from limbeck.contracts import Blueprint, Shared
from limbeck.errors import InputError
from limbeck.exporters import golden, onnx_int8
from limbeck.exporters import onnx as exact
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.shadow import Shadowed

WIDE = blueprint(S.Discrete(4), hidden=(64, 64), activation="tanh")


def rows_of(policy: Blueprint, count: int = 120) -> golden.Golden:
    return golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, count), starts(count))


@pytest.mark.parametrize("name", ["squashed", "gru with history", "lstm", "conv hwc", "masked"])
def test_it_is_near_the_policy_and_repeats_itself(name: str, tmp_path: Path) -> None:
    policy = {**CASES, **LAYER_CASES}[name]
    rows = rows_of(policy)
    (artifact,) = exporters.export(policy, tmp_path, ("onnx_int8",), rows)
    (row,) = exporters.check(tmp_path)
    assert row.ok
    assert row.worst_error <= golden.TOLERANCE
    assert artifact.note.startswith("lossy: ")
    assert artifact.note in row.note
    result = golden.compare(rows, exporters.load(tmp_path, "onnx_int8"))
    spread = rows.params.std(axis=0).max()
    assert not result.ok
    assert result.worst_error < 0.5 * spread  # about as many steps of 1/127 as there are layers and inputs
    model = onnx.load(tmp_path / "onnx_int8" / "policy.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert {o.domain for o in model.opset_import} == {""}
    assert any(t.data_type == onnx.TensorProto.INT8 and len(t.dims) >= 2 for t in model.graph.initializer)


def test_what_it_says_of_its_actions_is_counted(tmp_path: Path) -> None:
    rows = rows_of(WIDE, 200)
    (artifact,) = exporters.export(WIDE, tmp_path, ("onnx_int8",), rows)
    _, actions = golden.answers(exporters.load(tmp_path, "onnx_int8"), rows.obs, rows.first)
    share = (actions == rows.actions).mean()
    found = re.fullmatch(r"lossy: the policy's action in ([\d.]+)% of 200 golden rows", artifact.note)
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * share, abs=0.05)
    assert 0.8 < share <= 1
    assert artifact.size_bytes < 0.6 * len(exact.generate(WIDE))
    shadowed = Shadowed(NumpyPolicy(WIDE), {"onnx_int8": exporters.load(tmp_path, "onnx_int8")})
    shadowed(rows.obs, shadowed.initial_state(200), np.ones(200, bool))
    assert shadowed.different["onnx_int8"] == (actions != rows.actions).sum()  # what makes a proof of its own necessary


def test_another_file_under_new_checksums_is_seen(tmp_path: Path) -> None:
    rows = rows_of(WIDE)
    exporters.export(WIDE, tmp_path, ("onnx_int8",), rows)
    other = blueprint(S.Discrete(4), hidden=(64, 64), activation="tanh", seed=3)
    storage.write_bytes(tmp_path / "onnx_int8" / "policy.onnx", exact.generate(other))
    storage.write_manifest(tmp_path)
    assert [row.ok for row in exporters.check(tmp_path)] == [False]


def test_the_same_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = rows_of(WIDE, 40)
    first, second = (
        (onnx_int8.export_from(WIDE, tmp_path / name, rows).folder / "policy.onnx").read_bytes() for name in "ab"
    )
    assert first == second


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    whole, tree = quantised_cases.policy((5, 6, 4)), TREES["labels"]
    shared = replace(TREES["labels"], layers=(Shared(TREES["labels"].layers, 1),))
    assert exporters.unfit("onnx_int8", shared) == exporters.unfit("onnx_int8", tree) != ""
    assert exporters.unfit("onnx_int8", WIDE) == exporters.unfit("onnx_int8", LAYER_CASES["parallel"]) == ""
    with pytest.raises(InputError, match="computes in whole numbers already"):
        exporters.export(whole, tmp_path, ("numpy", "onnx_int8"), rows_of(whole, 8))
    with pytest.raises(InputError, match="no matrix products or convolutions"):
        exporters.export(tree, tmp_path, ("numpy", "onnx_int8"), rows_of(tree, 8))
    with pytest.raises(InputError, match="without states to calibrate on"):
        onnx_int8.export(WIDE, tmp_path)
    assert not list(tmp_path.iterdir())
