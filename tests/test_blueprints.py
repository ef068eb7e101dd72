"""Policies on disk: what comes back, what is refused, and when a normaliser may be folded away."""

import json
import math
import subprocess
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from limbeck import blueprints, cli, spaces, storage
from limbeck.contracts import Blueprint, Dense, Gru, Normaliser, Spec, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy

SPEC = Spec(gym.spaces.Box(-5, 5, (3,), np.float32), gym.spaces.Box(-2, 2, (2,), np.float32), "Pendulum-v1")


def policy(mean=0.0, scale=1.0, history=1, recurrent=False):
    rng = np.random.default_rng(0)
    width = 3 * history
    first = Dense(rng.normal(size=(width, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32), "tanh")
    if recurrent:
        shapes = ((width, 18), (6, 18), (18,), (18,))
        first = Gru(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))
    last = Dense(rng.normal(size=(6, 2)).astype(np.float32), np.zeros(2, np.float32))
    normaliser = Normaliser(np.full(3, mean, np.float32), np.full(3, scale, np.float32))
    return Blueprint(SPEC, spaces.head_for(SPEC.action_space), (first, last), View(history=history), normaliser)


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("recurrent", [False, True])
def test_saved_and_loaded_a_policy_says_the_same(tmp_path, history, recurrent):
    given = policy(0.3, 2.0, history, recurrent)
    blueprints.save(given, tmp_path / "p.safetensors", {"seed": 3})
    found, provenance = blueprints.load(tmp_path / "p.safetensors")
    assert provenance == {"seed": 3}
    obs, first = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32), np.ones(5, bool)
    one, two = NumpyPolicy(given), NumpyPolicy(found)
    assert np.array_equal(one(obs, one.initial_state(5), first).params, two(obs, two.initial_state(5), first).params)


def test_folding_keeps_the_function_and_drops_the_normaliser():
    given = policy(3.0, 0.7, history=2)
    folded = blueprints.fold(given)
    assert folded.normaliser is None
    assert folded.parameters == given.parameters - 6
    obs, first = np.random.default_rng(1).normal(3, 0.7, size=(50, 3)).astype(np.float32), np.ones(50, bool)
    one, two = NumpyPolicy(given), NumpyPolicy(folded)
    difference = one(obs, one.initial_state(50), first).params - two(obs, two.initial_state(50), first).params
    assert np.abs(difference).max() < 1e-5


def test_far_off_observations_and_clips_keep_their_normaliser():
    kelvin, clipped = policy(300.0, 1.0), policy(0.0, 1.0)
    clipped = replace(clipped, normaliser=replace(clipped.normaliser, clip=10.0))
    assert blueprints.fold(kelvin).normaliser is not None
    assert blueprints.fold(clipped).normaliser is not None
    assert math.isinf(kelvin.normaliser.clip)


def rewritten(tmp_path, change):
    """A policy file whose description was changed by hand."""
    path = tmp_path / "evil.safetensors"
    blueprints.save(policy(), path)
    arrays, meta = storage.read_arrays(path)
    described = json.loads(meta["limbeck"])
    change(described)
    storage.write_arrays(path, arrays, {**meta, "limbeck": json.dumps(described)})
    return path


@pytest.mark.parametrize(("change", "words"), [
    (lambda d: d["head"].update(kind="deterministic */ int x; /*"), "unknown head"),
    (lambda d: d["head"].update(kind="categorical"), "cannot act in"),
    (lambda d: d["head"].update(sizes=[3]), "does not act in"),
    (lambda d: d["head"].update(high=["99", "99"]), "does not act in"),
    (lambda d: d["layers"][0].update(activation="tanh */"), "unknown activation"),
    (lambda d: d["layers"].pop(), "the last layer gives"),
    (lambda d: d.update(format="limbeck-policy-99"), "Update limbeck"),
    (lambda d: d.pop("view"), "damaged"),
])  # fmt: skip
def test_a_description_that_does_not_fit_is_refused(tmp_path, change, words):
    with pytest.raises(InputError) as caught:
        blueprints.load(rewritten(tmp_path, change))
    assert words in str(caught.value)


def test_no_code_in_a_policy_file_reaches_the_compiler(tmp_path, monkeypatch, capsys):
    marker = tmp_path / "CANARY"
    code = f'deterministic */ __attribute__((constructor)) void f(void){{ extern int system(const char*); system("touch {marker}"); }} /*'
    path = rewritten(tmp_path, lambda d: d["head"].update(kind=code))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(path), "--to", "c"]) == 2
    assert not marker.exists()
    control = tmp_path / "control.c"  # the same text does run when it is compiled
    control.write_text(f"/* {code} */\nint main(void){{ return 0; }}\n")
    if subprocess.run(["sh", "-c", "command -v cc"], capture_output=True).returncode == 0:
        subprocess.run(["cc", str(control), "-o", str(tmp_path / "control")], check=True, capture_output=True)
        subprocess.run([str(tmp_path / "control")], check=True)
        assert marker.exists()


def test_arrays_of_wrong_shapes_are_refused(tmp_path):
    good = policy(recurrent=True)
    gru = good.layers[0]
    bad = replace(good, layers=(replace(gru, bias_h=np.zeros(17, np.float32)), good.layers[1]))
    with pytest.raises(InputError, match="shapes"):
        blueprints.check(bad)
