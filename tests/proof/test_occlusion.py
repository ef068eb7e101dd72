"""Maps of where in a picture a policy looks, against linear policies, whose map is a sum over each patch."""

import doctest
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from limbeck import blueprints, tasks
from limbeck.contracts import Blueprint, Dense, Gru, Head, Spec, View
from limbeck.exporters import golden
from limbeck.proof import occlusion
from limbeck.proof.occlusion import numbers, pictures
from limbeck.proof.saliency import Rows
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import flat_size, head_for
from limbeck.stages import portrait

TEACHERS = Path(__file__).parents[2] / "recipes" / "teachers"
TWO = gym.spaces.Discrete(2)


def linear(space, weight, view=View()):
    """The lead of action 0 is weight x."""
    both = np.stack([weight, np.zeros_like(weight)], axis=1).astype(np.float32)
    return NumpyPolicy(Blueprint(Spec(space, TWO), head_for(TWO), (Dense(both, np.zeros(2, np.float32)),), view))


def visited(width, count=40, seed=0):
    return Rows(np.random.default_rng(seed).normal(0, 1, (count, width)).astype(np.float32), np.arange(count) % 20 == 0)


def test_examples():
    assert doctest.testmod(occlusion) == (0, 1)


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 3), (3, 12, 20)])
def test_a_linear_policy_s_map_is_what_its_weights_say(shape):
    """|sum over a patch of w (x - mean)| averaged over states: 12 rows in 10 cells, 20 columns in 10, all channels."""
    space = gym.spaces.Box(-9, 9, shape, np.float32)
    weight = np.random.default_rng(1).normal(0, 1, flat_size(space))
    policy, rows = linear(space, weight), visited(flat_size(space))
    parts = (rows.flat - rows.flat.mean(axis=0)) * weight
    first_channels = len(shape) == 3 and shape[0] == 3
    parts = parts.reshape(-1, 3, 12, 20).sum(axis=1) if first_channels else parts.reshape(-1, 12, 20, parts.shape[1] // 240).sum(axis=3)  # fmt: skip
    wanted = np.zeros((10, 10))
    for r in range(10):
        inside = [y for y in range(12) if y * 10 // 12 == r]
        for c in range(10):
            wanted[r, c] = np.abs(parts[:, inside][:, :, 2 * c : 2 * c + 2].sum(axis=(1, 2))).mean()
    found = occlusion.maps(policy, rows)[""]
    assert (found.height, found.width, found.states) == (12, 20, 40)
    np.testing.assert_allclose(found.shares, wanted / wanted.sum(), atol=1e-6)


def test_a_single_pixel_has_all_of_it_and_a_blind_policy_no_map():
    space, weight = gym.spaces.Box(0, 1, (10, 10), np.float32), np.zeros(100)
    assert occlusion.maps(linear(space, weight), visited(100)) == {}
    weight[37] = -2.0
    shares = np.array(occlusion.maps(linear(space, weight), visited(100))[""].shares)
    assert shares[3, 7] == 1.0 == shares.sum()


def test_numbers_beside_a_picture_are_told_as_numbers_and_the_picture_as_one_map():
    space = gym.spaces.Dict({"camera": gym.spaces.Box(0, 1, (8, 8), np.float32), "pose": gym.spaces.Box(-9, 9, (3,), np.float32)})  # fmt: skip
    view = View(keys=("pose", "camera"))
    assert numbers(space, view).tolist() == [0, 1, 2]
    (picture,) = pictures(space, view)
    assert (picture.key, picture.grid, picture.places[0], len(picture.places)) == ("camera", (8, 8), 3, 64)
    weight = np.zeros(67)
    weight[[0, 2, 3 + 8 * 5 + 1]] = [1.0, 3.0, 2.0]
    policy, rows = linear(space, weight, view), visited(67)
    told = portrait.saliency(policy, rows, ["pose[0]", "pose[1]", "pose[2]", *["camera"] * 64], numbers(space, view))
    spread = rows.flat.std(axis=0)
    assert told["pose[2]"] == pytest.approx(3 * spread[2] / (spread[0] + 3 * spread[2]), abs=1e-4)
    assert told["pose[0]"] == pytest.approx(spread[0] / (spread[0] + 3 * spread[2]), abs=1e-4)
    assert told.get("pose[1]", 0.0) < 1e-6
    assert occlusion.maps(policy, rows)["camera"].shares[5][1] == pytest.approx(1, abs=1e-6)


def test_picked_pixels_keep_their_places_and_small_tables_are_no_pictures():
    space = gym.spaces.Box(0, 1, (10, 10), np.float32)
    view = View(indices=(99, 4))
    policy = linear(space, np.array([1.0, 1.0]), view)
    shares = np.array(occlusion.maps(policy, visited(2))[""].shares)
    assert set(zip(*np.nonzero(shares), strict=True)) == {(9, 9), (0, 4)}
    assert pictures(gym.spaces.Box(0, 1, (5, 5), np.float32), View()) == [], "five vehicles of five numbers"
    assert numbers(gym.spaces.Box(0, 1, (5, 5), np.float32), View()).tolist() == list(range(25))


def test_memory_follows_the_true_pictures():
    """h' = tanh of pixel 0 (the update gate is shut): a patch that was hidden in the step before has no influence now."""
    gates = np.zeros((100, 3), np.float32)
    gates[0, 2] = 1.0
    gru = Gru(gates, np.zeros((1, 3), np.float32), np.array([0, -50, 0], np.float32), np.zeros(3, np.float32))
    out = Dense(np.array([[1.0, -1.0]], np.float32), np.zeros(2, np.float32))
    spec = Spec(gym.spaces.Box(-9, 9, (10, 10), np.float32), TWO)
    rows = visited(100)
    found = occlusion.maps(NumpyPolicy(Blueprint(spec, Head("categorical", (2,)), (gru, out))), rows)[""]
    assert found.shares[0][0] == 1.0


def test_large_networks_are_asked_in_fewer_states(monkeypatch):
    space = gym.spaces.Box(0, 1, (10, 10), np.float32)
    policy, rows = linear(space, np.ones(100)), visited(100, 200)
    assert occlusion.maps(policy, rows)[""].states == occlusion.MOST_STATES
    answer = policy.blueprint.multiply_adds + occlusion.COPIED * 100
    monkeypatch.setattr(occlusion, "BUDGET", 10 * 101 * answer)
    assert occlusion.maps(policy, rows)[""].states == 10
    monkeypatch.setattr(occlusion, "BUDGET", 1.0)
    assert occlusion.maps(policy, rows)[""].states == occlusion.FEWEST_STATES


def test_large_pictures_are_hidden_block_by_block(monkeypatch):
    """All patches of 480 x 640 pixels of three colours at once are 101 pictures of 3.7 MB each, and as many copies."""
    space, asked = gym.spaces.Box(0, 1, (48, 64, 3), np.float32), []
    policy, rows = linear(space, np.ones(flat_size(space))), visited(flat_size(space), 2)
    real = NumpyPolicy.on_flat
    monkeypatch.setattr(
        NumpyPolicy, "on_flat", lambda self, flat, *rest: asked.append(flat.size) or real(self, flat, *rest)
    )
    for numbers_at_once, pictures_at_once in ((occlusion.NUMBERS, 1 + occlusion.BLOCK), (3 * flat_size(space), 4)):
        monkeypatch.setattr(occlusion, "NUMBERS", numbers_at_once)
        asked.clear()
        found = occlusion.maps(policy, rows)[""]
        assert sum(asked) == found.states * 101 * flat_size(space)
        assert max(asked) == pictures_at_once * flat_size(space)
        assert np.array(found.shares).sum() == pytest.approx(1)


def test_breakout_s_teacher_looks_where_something_moves(tmp_path):
    """The top row of MinAtar's Breakout is always empty, so hiding it hides nothing; the ball and the paddle move."""
    pytest.importorskip("minatar", reason='needs MinAtar: pip install "limbeck[minatar]"')
    blueprint, task = blueprints.load(TEACHERS / "breakout.safetensors")[0], tasks.resolve("MinAtar/Breakout-v1")
    seen = golden.record(NumpyPolicy(blueprint), task, 0, 64)
    golden.save(seen, tmp_path / golden.FILE, blueprint.spec, blueprint.view)
    found = portrait.looks(tmp_path, blueprint)
    assert found["saliency"] == {}, "pixels are not told one by one"
    shares = np.array(found["looks"][""].shares)
    assert shares.shape == (10, 10)
    assert shares.sum() == pytest.approx(1)
    still = seen.obs.reshape(len(seen.obs), *task.spec.observation_space.shape).std(axis=0).max(axis=2) == 0
    assert still[0].all()
    assert (shares[still] < 1e-6).all()
    assert shares[9].sum() > 0.1, "the paddle's row has more than its share"
