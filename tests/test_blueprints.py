"""Policies on disk: what comes back, what is refused, and when a normaliser may be folded away."""

import json
import math
import subprocess
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from limbeck import blueprints, cli, spaces, storage
from limbeck.contracts import (
    Blueprint,
    Conv,
    Dense,
    Gru,
    Gsde,
    Norm,
    Normaliser,
    Parallel,
    Pool,
    Shared,
    Spec,
    View,
)
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


def rewritten(tmp_path, change, given=None):
    """A policy file whose description was changed by hand."""
    path = tmp_path / "evil.safetensors"
    blueprints.save(given or policy(), path)
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


def deep():
    """Branches, agents, a picture and a normalisation, as a file holds them."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    picture = (
        Conv(normal(2, 3, 1, 4), normal(4), (4, 5), (1, 1), (1, 0, 0, 1), "relu"),
        Pool((4, 4), 4, (2, 2), (2, 2)),
        Dense(normal(16, 3), normal(3)),
    )
    shared = (Shared((Dense(normal(2, 2), normal(2), "tanh"),), 2), Norm(normal(4), normal(4)))
    layers = (
        Parallel((picture, shared, ()), ((0, 20), (20, 24), (0, 2)), 24),
        Gsde(normal(9, 2), normal(2), normal(9, 2)),
    )
    spec = Spec(gym.spaces.Box(-5, 5, (24,), np.float32), SPEC.action_space, "pictures")
    return Blueprint(spec, spaces.head_for(SPEC.action_space, "gaussian"), layers)


def test_a_nested_policy_comes_back(tmp_path):
    given = deep()
    blueprints.save(given, tmp_path / "p.safetensors")
    found, _ = blueprints.load(tmp_path / "p.safetensors")
    x = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)
    one, two = (NumpyPolicy(p)(x, {}, np.ones(5, bool)).params for p in (given, found))
    assert np.array_equal(one, two)
    assert one.shape == (5, 4)


def parallel(d):
    return d["layers"][0]


def conv(d):
    return parallel(d)["branches"][0][0]


def pool(d):
    return parallel(d)["branches"][0][1]


def shared(d):
    return parallel(d)["branches"][1][0]


def nest(levels):
    """A description with layers inside of layers."""

    def change(d):
        inner = []
        for _ in range(levels):
            inner = [{"type": "parallel", "branches": [inner], "spans": [[0, 24]], "width": 24}]
        d["layers"] = [*inner, *d["layers"]]

    return change


HOSTILE = {
    "unknown layer": (lambda d: parallel(d).update(type="pickle"), "unknown layer"),
    "a list as type": (lambda d: parallel(d).update(type=["dense"]), "unknown layer"),
    "no type": (lambda d: conv(d).pop("type"), "damaged"),
    "negative stride": (lambda d: conv(d).update(stride=[-1, 1]), "stride (-1, 1)"),
    "no stride": (lambda d: conv(d).update(stride=[0, 1]), "stride (0, 1)"),
    "a word as stride": (lambda d: conv(d).update(stride="11"), "2 whole numbers"),
    "words in a stride": (lambda d: conv(d).update(stride=["1", "1"]), "a whole number"),
    "a fraction as stride": (lambda d: conv(d).update(stride=[1.5, 1]), "a whole number"),
    "true as stride": (lambda d: conv(d).update(stride=[True, 1]), "a whole number"),
    "negative padding": (lambda d: conv(d).update(padding=[-1, 0, 0, 0]), "padding (-1, 0, 0, 0)"),
    "padding of two": (lambda d: conv(d).update(padding=[1, 1]), "4 whole numbers"),
    "huge padding": (lambda d: conv(d).update(padding=[2**40, 0, 0, 0]), "padding"),
    "large padding": (lambda d: conv(d).update(padding=[2**16] * 4), "numbers"),
    "huge size": (lambda d: conv(d).update(size=[2**50, 2**50]), "over"),
    "another size": (lambda d: conv(d).update(size=[5, 4]), "does not fit"),
    "three sizes": (lambda d: conv(d).update(size=[4, 5, 1]), "2 whole numbers"),
    "unknown layout": (lambda d: conv(d).update(layout="nchw"), "unknown layout"),
    "a number as activation": (lambda d: conv(d).update(activation=3), "a word"),
    "unknown method": (lambda d: pool(d).update(method="median"), "median"),
    "no channels": (lambda d: pool(d).update(channels=0), "0 channels"),
    "many channels": (lambda d: pool(d).update(channels=10**15), "numbers where"),
    "a window of nothing": (lambda d: pool(d).update(window=[0, 2]), "whole windows"),
    "a large window": (lambda d: pool(d).update(window=[9, 9]), "window"),
    "padding alone": (lambda d: pool(d).update(padding=[2, 0, 0, 0]), "whole windows"),
    "no agents": (lambda d: shared(d).update(count=0), "without layers or agents"),
    "many agents": (lambda d: shared(d).update(count=10**18), "numbers where"),
    "no shared layers": (lambda d: shared(d).update(layers=[]), "without layers"),
    "layers as a word": (lambda d: shared(d).update(layers="dense"), "a list"),
    "layers of a layer as a table": (lambda d: d.update(layers={"0": 1}), "a list"),
    "branches as a number": (lambda d: parallel(d).update(branches=3), "damaged"),
    "one branch too few": (lambda d: parallel(d)["branches"].pop(), "2 branches over 3"),
    "a stretch outside": (lambda d: parallel(d).update(spans=[[0, 20], [20, 24], [23, 25]]), "of 24 numbers"),
    "a stretch backwards": (lambda d: parallel(d).update(spans=[[0, 20], [20, 24], [2, 0]]), "of 24 numbers"),
    "stretches as words": (lambda d: parallel(d).update(spans=["ab", "cd", "ef"]), "2 whole numbers"),
    "a wide row": (lambda d: parallel(d).update(width=10**9), "numbers where"),
    "epsilon below zero": (lambda d: d["layers"][1].update(epsilon=-1.0), "out of range"),
    "epsilon as a word": (lambda d: d["layers"][1].update(epsilon="nan"), "a number"),
    "epsilon that is none": (lambda d: d["layers"][1].update(epsilon=math.nan), "out of range"),
    "no limit": (lambda d: d["layers"][1].update(limit=0), "out of range"),
    "ten levels": (nest(10), "deeper than"),
    "a huge observation": (lambda d: d["observation_space"].update(shape=[2**20, 2**20]), "up to"),
    "a negative observation": (lambda d: d["observation_space"].update(shape=[-24]), "up to"),
    "many observations": (lambda d: d.update(observation_space={"type": "Discrete", "n": 10**12, "start": 0}), "numbers where"),
    "no actions": (lambda d: d.update(action_space={"type": "Discrete", "n": 0, "start": 0}), "damaged"),
    "an observation of what": (lambda d: d["observation_space"].update(dtype="object"), "damaged"),
    "a history of words": (lambda d: d["view"].update(history="3"), "a whole number"),
    "a long history": (lambda d: d["view"].update(history=10**9), "history"),
    "unknown padding": (lambda d: d["view"].update(padding="last */"), "padding"),
    "a mask that is not there": (lambda d: d["view"].update(mask="none"), "mask"),
    "a mask of numbers": (lambda d: d["view"].update(mask=7), "a word"),
    "fractions as indices": (lambda d: d["view"].update(indices=[0.5]), "a whole number"),
    "a task of numbers": (lambda d: d.update(task=[1]), "a word"),
    "a name that is a table": (lambda d: d.update(name={}), "a word"),
    "half an agent": (lambda d: d.update(agents=0.5), "a whole number"),
    "sizes of fractions": (lambda d: d["head"].update(sizes=[2.0]), "a whole number"),
    "no head": (lambda d: d.update(head=None), "damaged"),
    "no layers": (lambda d: d.pop("layers"), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions_are_refused_in_one_line(tmp_path, name):
    change, words = HOSTILE[name]
    with pytest.raises(InputError) as caught:
        blueprints.load(rewritten(tmp_path, change, deep()))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def places(described, place=()):
    """The path of every value of a description."""
    inner = described.items() if isinstance(described, dict) else enumerate(described)
    for key, value in inner:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_change_of_a_description_escapes(tmp_path, count):
    """Every value of the description in turn becomes something else: refused in one line, or a policy."""
    blueprints.save(deep(), tmp_path / "p.safetensors")
    arrays, meta = storage.read_arrays(tmp_path / "p.safetensors")
    rng = np.random.default_rng(7)
    others = [
        None,
        True,
        -1,
        0,
        3,
        2**31,
        10**30,
        0.5,
        math.nan,
        math.inf,
        "",
        "x",
        "relu",
        [],
        [1, 2],
        {},
        [[1, 2]],
        [None],
    ]
    refused = []
    for _ in range(count):
        described = json.loads(meta["limbeck"])
        found = list(places(described))
        *path, last = found[rng.integers(len(found))]
        target = described
        for key in path:
            target = target[key]
        target[last] = others[rng.integers(len(others))]
        try:
            blueprints.from_arrays(arrays, {**meta, "limbeck": json.dumps(described)}, "a file")
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 0.8 * count
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": ' * 100_000, "null", "[]", "7", "{", '{"format": "limbeck-policy-1"}']
)
def test_what_is_no_description_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "evil.safetensors"
    storage.write_arrays(path, {"layers.0.weight": np.zeros((3, 2), np.float32)}, {"limbeck": text})
    with pytest.raises(InputError, match="damaged"):
        blueprints.load(path)


@pytest.mark.parametrize(("name", "array", "words"), [
    ("layers.0.branches.0.0.weight", np.zeros((6, 4), np.float32), "4 dimensions"),
    ("layers.0.branches.0.0.weight", np.zeros((2, 3, 2, 4), np.float32), "numbers where"),
    ("layers.0.branches.0.0.weight", np.zeros((0, 3, 1, 4), np.float32), "has shape"),
    ("layers.0.branches.0.2.weight", np.zeros(16, np.float32), "2 dimensions"),
    ("layers.0.branches.0.2.bias", np.zeros((), np.float32), "1 dimensions"),
    ("layers.0.branches.0.2.bias", np.zeros(4, np.float32), "has shape"),
    ("layers.1.spread", np.zeros((9, 3), np.float32), "has shape"),
    ("layers.1.bias", np.array([np.nan, 0], np.float32), "NaN"),
    ("layers.1.bias", np.array([1e300, 0]), "NaN or infinite"),
    ("layers.0.branches.1.1.weight", np.zeros((2, 2), np.float32), "1 dimensions"),
])  # fmt: skip
def test_hostile_arrays_are_refused_in_one_line(tmp_path, name, array, words):
    path = rewritten(tmp_path, lambda d: None, deep())
    arrays, meta = storage.read_arrays(path)
    assert name in arrays
    storage.write_arrays(path, {**arrays, name: array}, meta)
    with pytest.raises(InputError) as caught:
        blueprints.load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_cannot_stand_where_words_are_wanted(tmp_path):
    path = rewritten(tmp_path, lambda d: conv(d).pop("activation"), deep())
    arrays, meta = storage.read_arrays(path)
    storage.write_arrays(path, {**arrays, "layers.0.branches.0.0.activation": np.zeros(3, np.float32)}, meta)
    assert blueprints.load(path)[0].layers[0].branches[0][0].activation == "identity"


def test_rows_that_no_machine_holds_are_refused():
    """A small file whose layers blow the row up and shrink it again."""
    spec = Spec(gym.spaces.Box(-5, 5, (1,), np.float32), SPEC.action_space, "bomb")
    one, two = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    wide = Conv(one, two, (1, 1), padding=(5000, 5000, 5000, 5000))
    narrow = Pool((10001, 10001), 1, (10001, 10001), (1, 1))
    out = Dense(np.ones((1, 2), np.float32), np.zeros(2, np.float32))
    with pytest.raises(InputError, match="needs a row of 100,020,001 numbers"):
        blueprints.check(Blueprint(spec, spaces.head_for(SPEC.action_space), (wide, narrow, out)))


def test_files_written_before_there_were_masks_and_agents_still_load(tmp_path):
    def older(d):
        d["view"] = {name: d["view"][name] for name in ("keys", "indices", "history", "noise")}
        del d["agents"]

    found, _ = blueprints.load(rewritten(tmp_path, older))
    assert found.view == View()
    assert found.spec == SPEC


def test_arrays_of_wrong_shapes_are_refused(tmp_path):
    good = policy(recurrent=True)
    gru = good.layers[0]
    bad = replace(good, layers=(replace(gru, bias_h=np.zeros(17, np.float32)), good.layers[1]))
    with pytest.raises(InputError, match=r"has shape \(17,\)"):
        blueprints.check(bad)
