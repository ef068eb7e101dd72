"""Compiled C as a policy: whole batches, any order, the fast call from Python, and a compiler that says no."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from cases_export import CASES, observations, starts
from cases_layers import LAYER_CASES

from limbeck import distributions, spaces
from limbeck.errors import InputError
from limbeck.exporters import c
from limbeck.runtimes import compiled_c
from limbeck.runtimes.compiled_c import CPolicy

pytestmark = pytest.mark.skipif(
    compiled_c.find_compiler() is None, reason="no C compiler: apt-get install gcc libc6-dev"
)


ALL = {**CASES, **LAYER_CASES}


def compiled(name: str, folder: Path, native: bool = False) -> CPolicy:
    policy = ALL[name]
    c.export(policy, folder)
    return compiled_c.load(folder, policy.spec, policy.head, policy.view, native=native)


@pytest.mark.parametrize(
    "name", ["odd widths", "gru with history", "tanh matrix", "dict view", "lstm first and last", "conv of frames"]
)
@pytest.mark.parametrize("native", [False, True])
def test_rows_do_not_depend_on_the_batch_or_their_place(name: str, native: bool, tmp_path: Path) -> None:
    played = compiled(name, tmp_path, native)
    rng = np.random.Generator(np.random.Philox(1))
    flats = rng.normal(size=(5, 33, played.library.obs)).astype(np.float32)
    order = rng.permutation(33)
    together, shuffled = played.initial_state(33), played.initial_state(33)
    alone = [played.initial_state(1) for _ in range(33)]
    for step, flat in enumerate(flats):
        first = starts(33, 3) if step == 3 else np.full(33, step == 0)
        whole = played.on_flat(flat, together, first)
        mixed = played.on_flat(flat[order], shuffled, first[order])
        together, shuffled = whole.state, mixed.state
        assert mixed.params.tobytes() == whole.params[order].tobytes()
        assert mixed.action.tobytes() == whole.action[order].tobytes()
        for row in range(33):
            single = played.on_flat(flat[row : row + 1], alone[row], first[row : row + 1])
            alone[row] = single.state
            assert single.params.tobytes() == whole.params[row : row + 1].tobytes()


def test_state_goes_in_and_out_and_is_never_written_in_place(tmp_path: Path) -> None:
    played = compiled("gru", tmp_path)
    state = played.initial_state(4)
    before = state["memory"].copy()
    flat = np.ones((4, played.library.obs), np.float32)
    output = played.on_flat(flat, state, np.ones(4, bool))
    assert np.array_equal(state["memory"], before)
    assert not np.array_equal(output.state["memory"], before)
    assert compiled("tiny", tmp_path / "tiny").initial_state(4) == {}


@pytest.mark.parametrize(
    "name", ["categorical", "multicategorical", "squashed", "tanh matrix", "gru", "history", "masked keys", "lstm"]
)
def test_the_fast_call_is_the_same_policy(name: str, tmp_path: Path) -> None:
    policy, played = ALL[name], compiled(name, tmp_path)
    obs = observations(policy.spec.observation_space, 12)
    flat = spaces.input_rows(obs, policy.spec.observation_space, policy.view)
    state = played.initial_state(1)
    for row in range(12):
        first = np.array([row in (0, 5)])
        if first[0]:
            played.reset()
        output = played.on_flat(flat[row : row + 1], state, first)
        state = output.state
        action = played.step(flat[row])
        assert np.array_equal(np.asarray(action).reshape(-1), output.action.reshape(-1))
        assert isinstance(action, int) == (name in ("categorical", "gru", "history", "masked keys", "lstm"))
        np.testing.assert_allclose(distributions.act(policy.head, output.params), output.action, rtol=1e-6, atol=1e-6)


def test_two_policies_of_one_text_do_not_share_memory(tmp_path: Path) -> None:
    one, two = compiled("gru", tmp_path), compiled("gru", tmp_path)
    flat = np.full(one.library.obs, 2, np.float32)
    fresh = [two.step(flat) for _ in range(3)]
    two.reset()
    for _ in range(50):
        one.step(-flat)
    assert [two.step(flat) for _ in range(3)] == fresh


@pytest.mark.parametrize("name", ["categorical", "squashed"])
def test_the_fast_call_outlives_its_policy_and_leaks_nothing(name: str, tmp_path: Path) -> None:
    import sys

    played = compiled(name, tmp_path)
    step, obs = played.step, np.ones(played.library.obs, np.float32)
    wanted = np.array(step(obs))
    held = sys.getrefcount(obs)
    del played
    gc.collect()
    for _ in range(10_000):
        result = step(obs)
    assert np.array_equal(result, wanted)
    assert sys.getrefcount(obs) == held
    assert sys.getrefcount(result) < 1000 or isinstance(result, int)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(5),
        np.zeros(4, np.float32),
        np.zeros(6, np.float32),
        np.zeros(10, np.float32)[::2],
        np.zeros(5, np.int32),
        np.zeros(10, np.float16),
    ],
)
def test_the_fast_call_refuses_other_arrays(bad: np.ndarray, tmp_path: Path) -> None:
    step = compiled("categorical", tmp_path).step
    with pytest.raises((ValueError, BufferError)):
        step(bad)
    with pytest.raises(TypeError):
        step([0.0] * 5)
    with pytest.raises(TypeError):
        step()


def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    played = compiled("gru", tmp_path)
    flat, first, state = np.zeros((2, 5), np.float32), np.ones(2, bool), played.initial_state(2)
    for bad in (
        (flat[:, :4], state, first),
        (flat, state, first[:1]),
        (flat, {}, first),
        (flat, played.initial_state(3), first),
    ):
        with pytest.raises(InputError, match="does not fit"):
            played.on_flat(*bad)
    with pytest.raises(InputError, match="does not fit"):
        played.on_flat(flat, {"memory": state["memory"].astype(np.float32)}, first)


def test_another_contract_is_refused(tmp_path: Path) -> None:
    c.export(CASES["categorical"], tmp_path)
    with pytest.raises(InputError, match="its contract says"):
        compiled_c.load(tmp_path, CASES["multicategorical"].spec, CASES["multicategorical"].head)


def test_compiler_words_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c.export(CASES["tiny"], tmp_path)
    (tmp_path / "policy.h").write_text((tmp_path / "policy.h").read_text() + "\nint broken = ;\n")
    with pytest.raises(InputError, match=r"refused policy\.h: .*error"):
        compiled_c.build(tmp_path)
    (tmp_path / "policy.h").write_text("int x;")
    with pytest.raises(InputError, match="no LIMBECK_POLICY_H guard"):
        compiled_c.build(tmp_path)
    (tmp_path / "policy.h").unlink()
    with pytest.raises(InputError, match=r"no readable policy\.h"):
        compiled_c.build(tmp_path)
    monkeypatch.setenv("CC", "a-compiler-that-is-not-here")
    assert compiled_c.find_compiler() is None


def test_cc_may_carry_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiled_c.find_compiler()
    assert found is not None
    monkeypatch.setenv("CC", f"{found[0]} -DUNUSED")
    assert compiled_c.find_compiler() == [found[0], "-DUNUSED"]
    assert compiled("tiny", tmp_path).library.params == 4


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    compiled("wide end", tmp_path / "c")
    assert os.listdir(place) == []
