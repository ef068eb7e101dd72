"""The WebAssembly module: its size, its own mathematics, every kind of policy in both engines, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quantised_cases
from cases_export import CASES, blueprint, observations, starts
from cases_layers import LAYER_CASES
from gymnasium import spaces as S
from scipy import special

from limbeck import exporters
from limbeck.contracts import Blueprint, Range
from limbeck.errors import InputError
from limbeck.exporters import c, golden
from limbeck.exporters import wasm as target
from limbeck.exporters.contract import Contract
from limbeck.runtimes import wasm
from limbeck.runtimes.numpy import NumpyPolicy

ALL = {**CASES, **LAYER_CASES, "int4": quantised_cases.policy((5, 7, 6, 3), "relu", "int4")}
SOME = ["squashed", "dict view", "activation gelu", "lstm first and last", "conv chw", "masked q", "int4"]
LUNAR = S.Box(-3, 3, (8,), np.float32)
needs_clang = pytest.mark.skipif(bool(target.missing()), reason=target.missing())
needs_wasmtime = pytest.mark.skipif(bool(wasm.missing("wasmtime")), reason=wasm.missing("wasmtime"))


def golden_of(policy: Blueprint, rows: int = 20) -> golden.Golden:
    return golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, rows), starts(rows))


def replay(policy: Blueprint, folder: Path, engine: str) -> golden.Comparison:
    if lacking := wasm.missing(engine):
        pytest.skip(lacking)
    target.export(policy, folder)
    contract = Contract(policy.spec, policy.head, policy.view, ("wasm",))
    backend = next(one for one in target.backends(folder, contract) if one.name == engine)
    return golden.compare(golden_of(policy), backend.load())


@needs_clang
@pytest.mark.parametrize("name", SOME)
def test_the_module_repeats_numpy(name: str, tmp_path: Path) -> None:
    result = replay(ALL[name], tmp_path, "wasmtime")
    assert result.ok
    assert name != "int4" or result.worst_error == 0, "whole numbers are the same everywhere"


@needs_clang
def test_the_shipped_loader_repeats_numpy_in_node(tmp_path: Path) -> None:
    assert replay(ALL["gru with history"], tmp_path, "node").ok


@pytest.mark.slow
@needs_clang
@pytest.mark.parametrize("engine", wasm.ENGINES)
@pytest.mark.parametrize("name", ALL)
def test_every_policy_in_every_engine(name: str, engine: str, tmp_path: Path) -> None:
    assert replay(ALL[name], tmp_path, engine).ok


@needs_clang
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_64x64_takes_less_than_25_kilobytes(activation: str, tmp_path: Path) -> None:
    policy = blueprint(S.Discrete(4), hidden=(64, 64), activation=activation, observation_space=LUNAR)
    artifact = target.export(policy, tmp_path)
    assert artifact.size_bytes == (tmp_path / "policy.wasm").stat().st_size
    assert 4 * policy.parameters < artifact.size_bytes < 25_000


MEASURE = """
#include "math.h"
#define MEASURED(name) __attribute__((export_name("of_" #name))) float of_##name(float x) { return name(x); }
MEASURED(tanhf) MEASURED(expf) MEASURED(expm1f) MEASURED(erff) MEASURED(log1pf) MEASURED(logf) MEASURED(sqrtf)
"""
EXACT = {
    "tanhf": np.tanh,
    "expf": np.exp,
    "expm1f": np.expm1,
    "erff": special.erf,
    "log1pf": np.log1p,
    "logf": np.log,
    "sqrtf": np.sqrt,
}  # in float64


@needs_clang
@needs_wasmtime
def test_own_mathematics_is_right_to_the_last_place(tmp_path: Path) -> None:
    import wasmtime

    (tmp_path / "m.c").write_text(MEASURE)
    target._run("clang", [*target.CLANG, f"-I{target.FREESTANDING}", "-c", str(tmp_path / "m.c"), "-o", str(tmp_path / "m.o")])  # fmt: skip
    target._run("wasm-ld", [*target.LINK, str(tmp_path / "m.o"), "-o", str(tmp_path / "m.wasm")])
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, (tmp_path / "m.wasm").read_bytes())
    found = wasmtime.Instance(store, module, []).exports(store)
    sizes = np.concatenate([np.geomspace(1e-30, 120, 400), np.linspace(0, 12, 200), [0.0, 1e-5, 4.0, 10.0, np.inf]])
    for name, exact in EXACT.items():
        points = np.concatenate([sizes, -sizes]).astype(np.float32)
        points = np.append(
            points[points >= {"logf": 0, "sqrtf": 0, "log1pf": -1}.get(name, -np.inf)], np.float32(np.nan)
        )
        with np.errstate(all="ignore"):
            wanted = exact(points.astype(np.float64)).astype(np.float32)
        given = np.array([found[f"of_{name}"](store, float(x)) for x in points], np.float32)
        finite = np.isfinite(wanted)
        assert np.array_equal(given[~finite], wanted[~finite], equal_nan=True), name
        assert (np.abs(given[finite] - wanted[finite]) <= np.spacing(np.abs(wanted[finite]))).all(), name


@needs_clang
def test_names_never_become_code(tmp_path: Path) -> None:
    policy = blueprint(S.Discrete(2), hidden=(3,), name='*/ #include "nowhere"\n int x(void) { </script>')
    assert replay(policy, tmp_path, "wasmtime").ok
    assert (tmp_path / "policy.mjs").read_bytes() == (target.FREESTANDING / "policy.mjs").read_bytes()


@needs_clang
@needs_wasmtime
def test_the_guard_counts_what_training_never_saw(tmp_path: Path) -> None:
    seen = Range(np.full(5, -1, np.float32), np.full(5, 1, np.float32))
    plain = blueprint(S.Discrete(4), hidden=(6,))
    target.export(Blueprint(plain.spec, plain.head, plain.layers, seen=seen), tmp_path)
    engine = wasm.Wasmtime((tmp_path / "policy.wasm").read_bytes())
    rows = np.zeros((4, 5), np.float32)
    rows[1, 2], rows[2, 4] = 1.5, np.nan
    engine.play(wasm.Rows(rows, np.array([True, False, False, False]), np.zeros((4, 0), np.uint8)))
    assert [engine.count(name) for name in ("guard", "steps", "strange")] == [2, 4, 2]


@needs_clang
def test_check_names_both_engines(tmp_path: Path) -> None:
    policy = CASES["tiny"]
    (artifact,) = exporters.export(policy, tmp_path, ("wasm",), golden_of(policy))
    assert artifact.compiled
    rows = exporters.check(tmp_path)
    assert [(row.target, row.backend) for row in rows] == [("wasm", "wasmtime"), ("wasm", "node")]
    assert all(row.ok if not wasm.missing(row.backend) else row.ok is None for row in rows)


def test_without_a_compiler_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="no clang and no wasm-ld; run: apt-get install clang lld"):
        target.export(CASES["tiny"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@needs_clang
def test_without_an_engine_the_module_is_written_and_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wasm, "missing", lambda engine: f"{engine} is away")
    (artifact,) = exporters.export(CASES["tiny"], tmp_path, ("wasm",), golden_of(CASES["tiny"]))
    assert not artifact.compiled
    assert artifact.note == "WebAssembly written, not proved here: wasmtime is away"
    assert [row.note for row in exporters.check(tmp_path)] == ["not run: wasmtime is away", "not run: node is away"]


@needs_clang
def test_a_function_that_no_module_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, size = c.generate(CASES["tiny"])
    exported = '__attribute__((export_name("own"))) float own(float x) { return cosf(x); }'
    calling = f"{text}\n#ifdef LIMBECK_IMPLEMENTATION\nfloat cosf(float);\n{exported}\n#endif\n"
    monkeypatch.setattr(c, "generate", lambda blueprint: (calling, size))
    with pytest.raises(InputError, match="calls cosf, which target wasm has no own version of"):
        target.export(CASES["tiny"], tmp_path)


@needs_clang
def test_c_that_does_not_compile_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "generate", lambda blueprint: ("this is no C\n", 0))
    with pytest.raises(InputError, match=r"^clang refused the policy: [^\n]*error[^\n]*$"):
        target.export(CASES["tiny"], tmp_path)
