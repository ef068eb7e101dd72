"""`limbeck bench`: budgets, the table, exit codes, and what an artefact is timed against."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limbeck import cli, exporters, spaces, standalone, tasks
from limbeck.errors import InputError, StorageError
from limbeck.exporters import golden
from limbeck.runtimes import compiled_c, rivals
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.standalone import benching

sys.path.append(str(Path(__file__).parent / "exporters"))

from cases_export import CASES, observations  # the random policies of the exporters' tests
from cases_layers import LAYER_CASES

pytestmark = pytest.mark.skipif(compiled_c.find_compiler() is None, reason="no C compiler: apt-get install gcc")


def artefact(folder: Path, name: str, targets: list[str]) -> Path:
    rng = np.random.default_rng(0)
    obs, first = rng.normal(size=(20, 5)).astype(np.float32), np.arange(20) % 7 == 0
    policy = replace(CASES[name], name=name)
    exporters.export(policy, folder, targets, golden.label(NumpyPolicy(policy), obs, first))
    return folder


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "CALLS", 60)
    monkeypatch.setattr(benching, "ROUNDS", 2)


@pytest.mark.parametrize(("text", "seconds"), [("1ms", 1e-3), ("250us", 2.5e-4), ("0.5s", 0.5), (" 20us ", 2e-5)])
def test_budgets(text: str, seconds: float) -> None:
    assert benching.budget_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "ms", "-1ms", "0ms", "0.0s", "1 min", "1e3us", "nan", "inf s", "1ms\n2", "٣ms"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="Allowed: a positive number and us, ms or s"):
        benching.budget_of(text)


def test_a_folder_against_its_rivals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bench, told = artefact(tmp_path / "a", "categorical", ["c", "numpy"]), standalone.bench, []
    monkeypatch.setattr(standalone, "bench", lambda *given: told.append(bench(*given)) or told[-1])
    assert cli.main(["bench", str(folder), "--budget", "1s"]) == 0
    (found,) = told
    rows = {row.name: row for row in found.rows}
    own = [row for row in found.rows if row.within is not None]
    assert found.ok
    assert {row.name.split()[0] for row in own} == {"c", "numpy"}
    assert all(0 <= row.p50_seconds <= row.p99_seconds <= row.max_seconds for row in own)
    assert all(row.calls == 120 and row.jitter_seconds == row.p99_seconds - row.p50_seconds for row in own)
    assert rows["torch"].within is None
    assert "multiply-adds take" in rows["floor"].note
    for rival in ("torch", "sb3 predict", "onnxruntime"):
        assert rows[rival].calls == 120 or rows[rival].note
    said = capsys.readouterr().out
    assert "budget 1 s" in said
    assert all(len(line) <= 120 for line in said.splitlines())
    alone = artefact(tmp_path / "b", "tiny", ["c"])  # without weights, so without rivals
    assert cli.main(["bench", str(alone), "--budget", "0.000001us", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["rows"][0]["within"] is False


@pytest.mark.parametrize("name", ["indices", "history of picked", "masked q"])
def test_numpy_is_timed_on_the_numbers_that_the_view_picks(name: str) -> None:
    """The rows that numpy is given are those that its own call makes of the observation: picked, reordered, masked."""
    policy = NumpyPolicy({**CASES, **LAYER_CASES}[name])
    space, view = policy.spec.observation_space, policy.blueprint.view
    obs = observations(space, 6)
    rows = golden.label(policy, obs, np.arange(6) == 0)
    call, given = benching._calls(policy, rows, spaces.input_rows(obs, space, view))
    for i, row in enumerate(given):
        one = tasks.take_rows(obs, slice(i, i + 1))
        state, first = policy.initial_state(1), np.ones(1, bool)
        np.testing.assert_array_equal(call(row, state, first).params, policy(one, state, first).params)
    assert benching._step(policy, rows, spaces.input_rows(obs, space, view))() is None


def test_memory_and_missing_weights(tmp_path: Path) -> None:
    found = benching.bench(artefact(tmp_path / "a", "gru", ["c"]), "1s")
    rows = {row.name: row for row in found.rows}
    assert rows["torch"].calls == 0
    assert "needs the weights" in rows["torch"].note


def test_changed_files_and_folders_that_are_none(tmp_path: Path) -> None:
    folder = artefact(tmp_path / "a", "tiny", ["c"])
    (folder / "c" / "policy.h").write_text((folder / "c" / "policy.h").read_text() + "\n")
    with pytest.raises(StorageError, match="no longer what was exported"):
        benching.bench(folder, "1ms")
    with pytest.raises(InputError, match="no folder at"):
        benching.bench(tmp_path / "nothing", "1ms")


def test_rivals_say_what_the_policy_says() -> None:
    policy, rows = CASES["activation tanh"], np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    call = rivals.torch_call(policy)
    assert not isinstance(call, str)
    wanted = NumpyPolicy(policy)(rows, {}, np.ones(20, bool)).params.argmax(1)
    assert [call(row) for row in rows] == wanted.tolist()
    assert rivals.dense_chain(CASES["history"]) is None
    assert isinstance(rivals.torch_call(CASES["gru"]), str)
    assert isinstance(rivals.sb3_call(CASES["activation gelu"]), str)
    floor = rivals.seconds_per_multiply_add()
    assert floor is not None
    assert 1e-12 < floor < 1e-8  # between a hundred times today's best core and a microcontroller
