"""Every target says what numpy says, on every kind of policy; folders are checked; faults have words."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_export import CASES, blueprint, observations, starts
from cases_layers import LAYER_CASES, MASKED
from gymnasium import spaces as S

from limbeck import exporters, storage
from limbeck.contracts import Blueprint, Dense, View
from limbeck.errors import InputError, StorageError
from limbeck.exporters import golden
from limbeck.runtimes import compiled_c
from limbeck.runtimes.numpy import NumpyPolicy

ALL = {**CASES, **LAYER_CASES}
needs_compiler = pytest.mark.skipif(
    compiled_c.find_compiler() is None, reason="no C compiler: apt-get install gcc libc6-dev"
)


def golden_of(policy: Blueprint, rows: int = 40) -> golden.Golden:
    return golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, rows), starts(rows))


@needs_compiler
@pytest.mark.parametrize("name", ALL)
def test_all_targets_repeat_numpy(name: str, tmp_path: Path) -> None:
    policy = ALL[name]
    rows = golden_of(policy)
    artifacts = exporters.export(policy, tmp_path, ("c", "onnx", "numpy"), rows, {"teacher_sha256": "ab"})
    assert [a.target for a in artifacts] == ["c", "onnx", "numpy"]
    assert all(a.compiled and a.size_bytes > 0 for a in artifacts)
    for target in ("c", "onnx", "numpy"):
        result = golden.compare(rows, exporters.load(tmp_path, target))
        assert result.ok
        assert result.worst_error <= golden.TOLERANCE
        assert target != "numpy" or result.worst_error == 0
        assert result.actions_equal >= (rows.rows - golden.close_calls(policy.head, rows.params).sum()) / rows.rows


@needs_compiler
def test_golden_actions_vary_so_that_agreement_means_something() -> None:
    for name, policy in ALL.items():
        rows = golden_of(policy)
        assert (rows.params != rows.params[0]).any(), name
        actions = rows.actions.reshape(40, -1)
        assert (actions != actions[0]).any(), name


@needs_compiler
def test_check_replays_every_target_from_the_folder(tmp_path: Path) -> None:
    policy = CASES["gru"]
    exporters.export(policy, tmp_path, ("c", "onnx", "numpy"), golden_of(policy))
    rows = exporters.check(tmp_path)
    assert {row.target for row in rows if row.ok} == {"c", "onnx", "numpy"}
    assert all(row.ok or "apt-get install" in row.note for row in rows)
    assert all(row.worst_error <= golden.TOLERANCE for row in rows)


@pytest.mark.parametrize("name", ["numpy/policy.safetensors", "contract.json", "golden.safetensors", "README.md"])
def test_a_changed_file_is_named(name: str, tmp_path: Path) -> None:
    policy = CASES["tiny"]
    exporters.export(policy, tmp_path, ("numpy",), golden_of(policy))
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1 if name != "contract.json" else 0
    (tmp_path / name).write_bytes(bytes(content) if name != "contract.json" else bytes(content) + b" ")
    with pytest.raises(StorageError, match=Path(name).name.replace(".", r"\.")):
        exporters.check(tmp_path)


def test_a_removed_file_is_named(tmp_path: Path) -> None:
    exporters.export(CASES["tiny"], tmp_path, ("numpy",), golden_of(CASES["tiny"]))
    (tmp_path / "golden.safetensors").unlink()
    with pytest.raises(StorageError, match=r"golden\.safetensors"):
        exporters.check(tmp_path)


def test_a_wrong_weight_does_not_pass_even_with_new_checksums(tmp_path: Path) -> None:
    policy = CASES["tiny"]
    exporters.export(policy, tmp_path, ("numpy",), golden_of(policy))
    path = tmp_path / "numpy" / "policy.safetensors"
    arrays, meta = storage.read_arrays(path)
    arrays["layers.0.weight"][0, 0] += np.float32(0.01)
    storage.write_arrays(path, arrays, meta)
    storage.write_manifest(tmp_path)
    (row,) = exporters.check(tmp_path)
    assert row.ok is False
    assert row.worst_error > golden.TOLERANCE


def test_an_export_that_disagrees_is_refused_and_leaves_no_artefact(tmp_path: Path) -> None:
    policy, other = CASES["tiny"], blueprint(S.Discrete(4), hidden=(4,), seed=5)
    with pytest.raises(InputError, match="disagrees with its policy"):
        exporters.export(policy, tmp_path, ("numpy",), golden_of(other))
    with pytest.raises(InputError, match="did not finish"):
        exporters.check(tmp_path)


def test_unknown_targets_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown target 'onx'; did you mean 'onnx'\?"):
        exporters.export(CASES["tiny"], tmp_path / "new", ("onx",), golden_of(CASES["tiny"]))
    assert not (tmp_path / "new").exists()
    assert {"c", "numpy", "onnx", "onnx15", "onnx_int8", "python", "safetensors"} <= set(exporters.targets())


def test_every_target_has_a_test_file() -> None:
    for target in exporters.targets():
        assert (Path(__file__).parent / f"test_exporters_{target}.py").is_file()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    good = CASES["linear"]
    layer = good.layers[0]
    assert isinstance(layer, Dense)
    weight = layer.weight.copy()
    weight[1, 1] = np.nan
    bad = Blueprint(good.spec, good.head, (Dense(weight, layer.bias),))
    with pytest.raises(InputError, match="NaN or infinite"):
        exporters.export(bad, tmp_path / "new", ("c", "onnx"), golden_of(good))
    assert not (tmp_path / "new").exists()


def test_without_a_compiler_c_is_written_and_not_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    (artifact,) = exporters.export(CASES["tiny"], tmp_path, ("c",), golden_of(CASES["tiny"]))
    assert not artifact.compiled
    assert artifact.note == "C written, not proved here: no C compiler"
    assert artifact.size_bytes == 4 * CASES["tiny"].parameters
    assert (tmp_path / "c" / "policy.h").is_file()
    rows = exporters.check(tmp_path)
    assert all(row.ok is None and "apt-get install" in row.note for row in rows)
    with pytest.raises(InputError, match="no C compiler was found"):
        exporters.load(tmp_path, "c")


def test_without_onnx_its_target_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.split(".")[0] in ("onnx", "onnxruntime"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"limbeck\[onnx\]"):
        exporters.export(CASES["tiny"], tmp_path, ("onnx",), golden_of(CASES["tiny"]))
    exporters.export(CASES["tiny"], tmp_path, ("numpy",), golden_of(CASES["tiny"]))


def test_a_folder_that_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no contract\.json"):
        exporters.check(tmp_path)
    storage.write_json(tmp_path / "contract.json", {"format": "limbeck-artifact-1"})
    storage.write_manifest(tmp_path)
    with pytest.raises(StorageError, match="damaged"):
        exporters.check(tmp_path)
    (tmp_path / "contract.json").write_text("{")
    storage.write_manifest(tmp_path)
    with pytest.raises(StorageError, match="damaged"):
        exporters.check(tmp_path)


def test_the_contract_says_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    policy = CASES["dict view"]
    exporters.export(policy, tmp_path, ("numpy",), golden_of(policy), {"teacher_sha256": "ab", "member": "mlp:20x18"})
    said = json.loads((tmp_path / "contract.json").read_text())
    assert said["input"]["size"] == 7
    assert [(p["key"], p["offset"], p["count"], p["kind"]) for p in said["input"]["parts"]] == [
        ("zeta", 0, 4, "numbers"),
        ("alpha", 4, 3, "one-hot"),
    ]
    assert said["input"]["indices"] == [6, 1, 0]
    assert said["memory"]["kind"] == ["history"]
    assert said["meta"] == {"teacher_sha256": "ab", "member": "mlp:20x18"}
    assert said["output"]["deterministic"] is True
    squashed = exporters.contracts.describe(CASES["squashed"], (), {})
    assert squashed["output"]["squash"] == "tanh"
    assert squashed["output"]["dtype"] == "float32"
    assert squashed["output"]["clip"] is True
    assert exporters.contracts.describe(CASES["gru"], (), {})["memory"]["kind"] == ["gru1"]


def test_the_contract_states_the_mask_and_the_padding(tmp_path: Path) -> None:
    policy = LAYER_CASES["masked keys"]
    exporters.export(policy, tmp_path, ("numpy",), golden_of(policy))
    said = json.loads((tmp_path / "contract.json").read_text())
    assert said["input"]["size"] == 4 + 5
    assert [(p["key"], p["offset"], p["count"], p["kind"]) for p in said["input"]["parts"]] == [
        ("state", 0, 4, "numbers"),
        ("action_mask", 4, 5, "action mask"),
    ]
    assert said["input"]["padding"] == "zero"
    assert "the history holds zeros" in said["memory"]["reset"]
    assert exporters.contracts.read(tmp_path).view == policy.view


def test_folders_written_before_there_were_masks_still_load(tmp_path: Path) -> None:
    policy = CASES["dict view"]
    exporters.export(policy, tmp_path, ("c", "onnx", "numpy"), golden_of(policy))
    path = tmp_path / "contract.json"
    said = json.loads(path.read_text())
    said["view"] = {name: said["view"][name] for name in ("keys", "indices", "history")}
    del said["agents"], said["input"]["padding"]
    path.write_text(json.dumps(said))
    storage.write_manifest(tmp_path)
    assert exporters.contracts.read(tmp_path).view == policy.view
    assert all(row.ok in (True, None) for row in exporters.check(tmp_path))


@pytest.mark.parametrize(("entry", "value"), [
    ("view", {"keys": ["zeta", 4], "indices": None, "history": 1}), ("view", {"keys": None, "indices": [0.5], "history": 1}),
    ("view", {"keys": None, "indices": None, "history": "2"}), ("view", {"keys": None, "indices": None, "history": 10**9}),
    ("view", {"keys": None, "indices": None, "history": 1, "padding": "*/"}),
    ("view", {"keys": None, "indices": None, "history": 1, "mask": "none"}), ("view", 3), ("head", {}), ("targets", 7),
])  # fmt: skip
def test_a_contract_that_makes_no_sense_is_refused_in_one_line(entry: str, value: object, tmp_path: Path) -> None:
    policy = CASES["dict view"]
    exporters.export(policy, tmp_path, ("numpy",), golden_of(policy))
    path = tmp_path / "contract.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    with pytest.raises(StorageError) as caught:
        exporters.check(tmp_path)
    assert "\n" not in str(caught.value)


def test_masks_that_fit_no_action_are_refused(tmp_path: Path) -> None:
    wrong = replace(LAYER_CASES["masked"], view=View(keys=("state", "kind"), mask="kind"))
    with pytest.raises(InputError, match="holds 3 numbers for 5 actions"):
        exporters.export(wrong, tmp_path, ("c",), golden_of(LAYER_CASES["masked"]))
    continuous = blueprint(S.Box(-1, 1, (5,)), observation_space=MASKED, view=View(mask="action_mask"))
    with pytest.raises(InputError, match="on a deterministic head"):
        exporters.contracts.check_exportable(continuous)
