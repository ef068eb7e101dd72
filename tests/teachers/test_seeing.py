"""What a teacher sees: one rule for keys, masks, stacks, and images laid out another way, for every format.

The reference is the row itself: `spaces.flatten` of the teacher's own observation against that of the task's, viewed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from sb3_cases import Nowhere
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from limbeck import blueprints, teachers
from limbeck.contracts import Array, Blueprint, Dense, Spec, View
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import flatten, head_for
from limbeck.teachers import seeing

MOVES = spaces.Discrete(2)
BOX = spaces.Box(np.array([-1, -5, 0], np.float32), np.array([1, 5, 9], np.float32))
OTHER = spaces.Box(-1.0, 1.0, (4,), np.float32)
HWC = spaces.Box(0, 255, (10, 12, 3), np.uint8)
CHW = spaces.Box(0, 255, (3, 10, 12), np.uint8)
GREY = spaces.Box(0, 255, (10, 12, 1), np.uint8)
PLAIN = spaces.Box(0, 255, (10, 12), np.uint8)
MASK = spaces.MultiBinary(2)


def seen(theirs: gym.Space, offered: gym.Space, given: View | None = None, view: View = View()) -> tuple[View, str]:
    found, notes = seeing.view_on(Spec(theirs, MOVES), view, Spec(offered, MOVES, "here"), given)
    return found, "; ".join(notes)


def repeated(inner: Array, space: gym.Space, view: View) -> Array:
    """The rows of a sequence of single observations [T, ...] with the view's history, from the first on."""
    identity = np.eye(flatten(inner[:1], space, view).shape[1] * view.history, dtype=np.float32)
    layer = Dense(identity, np.zeros(len(identity), np.float32))
    row = spaces.Box(-np.inf, np.inf, (len(identity),), np.float32)
    policy = NumpyPolicy(Blueprint(Spec(space, row), head_for(row), (layer,), view))
    state, rows = policy.initial_state(1), []
    for t in range(len(inner)):
        output = policy(inner[t : t + 1], state, np.array([t == 0]))
        state, rows = output.state, [*rows, output.params[0]]
    return np.stack(rows)


# ---------------------------------------------------------------- entries of a Dict


def test_the_entry_of_its_own_shape_is_found() -> None:
    offered = spaces.Dict({"pixels": HWC, "state": BOX, "action_mask": MASK})
    assert seen(BOX, offered) == (View(keys=("state",)), "the teacher sees 'state' of the observation")
    assert seen(HWC, offered)[0] == View(keys=("pixels",))
    turned = seen(CHW, offered)[0]
    assert turned.keys == ("pixels",)
    assert turned.indices is not None


def test_the_mask_is_never_taken_for_the_observation() -> None:
    assert seen(spaces.MultiBinary(2), spaces.Dict({"x": spaces.MultiBinary(2), "action_mask": MASK}))[0].keys == ("x",)
    with pytest.raises(InputError, match="no entry fits"):
        seen(spaces.MultiBinary(2), spaces.Dict({"x": BOX, "action_mask": MASK}))


def test_what_cannot_be_told_is_asked_for() -> None:
    offered = spaces.Dict({"a": BOX, "b": BOX})
    with pytest.raises(InputError, match=r"a and b fit\. Name the entry with --options teacher_keys=NAME"):
        seen(BOX, offered)
    assert seen(BOX, offered, View(keys=("b",)))[0].keys == ("b",)
    with pytest.raises(InputError, match=r"view key 'c' is not in the observation\. Allowed: a, b"):
        seen(BOX, offered, View(keys=("c",)))
    with pytest.raises(InputError, match="teacher Box"):
        seen(OTHER, offered, View(keys=("b",)))
    with pytest.raises(InputError, match="no entry fits"):
        seen(OTHER, offered)


def test_a_teacher_of_the_flattened_dict() -> None:
    offered = spaces.Dict({"z": BOX, "a": OTHER, "action_mask": MASK})
    view, note = seen(spaces.Box(-np.inf, np.inf, (7,)), offered)
    assert view.keys == ("a", "z")  # the order of the space, as gymnasium flattens it
    assert "one flat row" in note
    assert seen(spaces.Box(-9, 9, (7,)), offered, View(keys=("z", "a")))[0].keys == ("z", "a")


def test_a_dict_teacher_on_a_larger_dict() -> None:
    theirs = spaces.Dict({"state": BOX, "pixels": CHW})
    offered = spaces.Dict({"pixels": HWC, "state": BOX, "secret": OTHER, "action_mask": MASK})
    view, note = seen(theirs, offered, view=View(keys=("state", "pixels")))
    assert view.keys == ("state", "pixels")
    assert view.indices[:3] == (0, 1, 2)
    rows = {"pixels": HWC.sample()[None], "state": BOX.sample()[None]}
    mine = {"pixels": rows["pixels"].transpose(0, 3, 1, 2), "state": rows["state"]}
    assert np.array_equal(flatten(rows, offered, view), flatten(mine, theirs, View(keys=("state", "pixels"))))
    assert "does not see 'secret'" in note
    renamed = spaces.Dict({"image": HWC, "proprio": BOX})
    assert seen(theirs, renamed, View(keys=("image", "proprio")))[0].keys == ("image", "proprio")
    with pytest.raises(InputError, match=r"observation keys: teacher .*pixels.*, task \['image', 'proprio'\]"):
        seen(theirs, renamed)
    with pytest.raises(InputError, match="observations: teacher Dict"):
        seen(theirs, BOX)
    assert seen(spaces.Dict({"only": BOX}), BOX)[0] == View()


def test_the_users_mask_and_indices_win() -> None:
    offered = spaces.Dict({"x": BOX, "allowed": MASK})
    assert seen(BOX, offered, View(mask="allowed"))[0] == View(keys=("x",), mask="allowed")
    assert seen(spaces.Box(-1, 1, (2,)), BOX, View(indices=(2, 0)))[0].indices == (2, 0)
    with pytest.raises(InputError, match="view index 3"):
        seen(spaces.Box(-1, 1, (2,)), BOX, View(indices=(3,)))


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(("theirs", "offered", "axes"), [(CHW, HWC, (2, 0, 1)), (HWC, CHW, (1, 2, 0))])
def test_an_image_is_turned_to_the_layout_of_the_training(
    theirs: spaces.Box, offered: spaces.Box, axes: tuple[int, ...]
) -> None:
    view, note = seen(theirs, offered)
    image = offered.sample()
    assert np.array_equal(flatten(image[None], offered, view)[0], image.transpose(axes).reshape(-1))
    assert ("first" if theirs is CHW else "last") in note


def test_one_channel_lies_the_same_either_way() -> None:
    assert seen(spaces.Box(0, 255, (1, 10, 12), np.uint8), GREY)[0] == View()


def test_a_flattened_image() -> None:
    view, note = seen(spaces.Box(0, 255, (360,), np.uint8), HWC)
    assert view == View()
    assert "one flat row" in note


def test_own_indices_are_kept_behind_the_turning() -> None:
    view, _ = seen(CHW, HWC, view=View(indices=(0, 120, 359)))
    image = HWC.sample()
    assert np.array_equal(flatten(image[None], HWC, view)[0], image.transpose(2, 0, 1).reshape(-1)[[0, 120, 359]])


# ---------------------------------------------------------------- stacks


class Walk(Nowhere):
    """Episodes of five steps of anything."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, self.steps >= 5, info


@pytest.mark.parametrize("space", [BOX, HWC, CHW, GREY])
def test_the_stack_of_stable_baselines_is_the_history_of_the_view(space: spaces.Box) -> None:
    """Frame for frame the row is what VecFrameStack (and VecTransposeImage, which SB3 puts on top) hands the policy."""
    single: list[Any] = []

    class Told(Walk):
        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            obs, info = super().reset(**kwargs)
            single.append(obs)
            return obs, info

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            result = super().step(action)
            single.append(result[0])
            return result

    env: Any = VecFrameStack(DummyVecEnv([lambda: Told(space, MOVES)]), 3)
    env = VecTransposeImage(env) if space in (HWC, GREY) else env
    stacks = [env.reset().copy()]
    for _ in range(4):
        stacks.append(env.step(np.zeros(1, np.int64))[0].copy())
    view, note = seen(env.observation_space, space)
    assert (view.history, view.padding) == (3, "zero")
    assert "last 3 observations, and before an episode's first one zeros" in note
    wanted = np.concatenate(stacks).reshape(5, -1).astype(np.float32)
    assert np.array_equal(repeated(np.stack(single[:5]), space, view), wanted)
    assert seen(env.observation_space, env.observation_space)[0] == View()  # a task that stacks itself


@pytest.mark.parametrize("space", [BOX, PLAIN, HWC])
def test_the_stack_of_gymnasium_repeats_the_first_frame(space: spaces.Box) -> None:
    env = FrameStackObservation(Walk(space, MOVES), 3)
    stacks = [env.reset()[0]]
    for _ in range(4):
        stacks.append(env.step(0)[0])
    view, note = seen(env.observation_space, space)
    assert (view.history, view.padding) == (3, "first")
    assert "copies" in note
    wanted = np.stack(stacks).reshape(5, -1).astype(np.float32)
    assert np.array_equal(repeated(np.stack([stack[-1] for stack in stacks]), space, view), wanted)


def test_a_wider_observation_with_other_bounds_is_no_stack() -> None:
    for theirs in (spaces.Box(-1.0, 1.0, (6,)), spaces.Box(-1.0, 1.0, (7,)), spaces.Box(-1.0, 1.0, (3 * 65,))):
        with pytest.raises(InputError, match="observations: teacher Box"):
            seen(theirs, BOX)
    unbounded = spaces.Box(-np.inf, np.inf, (6,))
    assert seen(unbounded, spaces.Box(-np.inf, np.inf, (3,)))[0].history == 2


def test_frames_that_lie_between_each_other_are_refused() -> None:
    floats = spaces.Box(0.0, 1.0, (4, 5, 2), np.float32)
    with pytest.raises(InputError, match=r"teacher Box\(4, 5, 6\)"):
        seen(spaces.Box(0.0, 1.0, (4, 5, 6), np.float32), floats)


def test_a_stack_inside_a_dict() -> None:
    offered = spaces.Dict({"x": OTHER, "action_mask": MASK})
    view, note = seen(spaces.Box(-1.0, 1.0, (8,), np.float32), offered)
    assert (view.keys, view.history) == (("x",), 2)
    assert "frame stack" in note
    with pytest.raises(InputError, match="observations: teacher Dict"):
        seen(spaces.Dict({"x": spaces.Box(-1.0, 1.0, (8,), np.float32)}), offered)


# ---------------------------------------------------------------- Limbeck's own files take the same way


def test_a_policy_file_is_placed_by_the_same_rule(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = Dense(rng.standard_normal((360, 2)).astype(np.float32), np.zeros(2, np.float32))
    own = Blueprint(Spec(CHW, MOVES), head_for(MOVES), (layer,))
    blueprints.save(own, tmp_path / "p.safetensors")
    offered = spaces.Dict({"pixels": HWC, "state": BOX})
    teacher = teachers.load(tmp_path / "p.safetensors", Spec(offered, MOVES))
    image, state = np.stack([HWC.sample() for _ in range(6)]), np.stack([BOX.sample() for _ in range(6)])
    first = np.ones(6, bool)
    ours = teacher.policy({"pixels": image, "state": state}, {}, first).params
    np.testing.assert_allclose(ours, NumpyPolicy(own)(image.transpose(0, 3, 1, 2), {}, first).params, rtol=1e-5)
    with pytest.raises(InputError, match=r"the teacher does not fit here: observations: .*; actions: "):
        teachers.load(tmp_path / "p.safetensors", Spec(BOX, spaces.Discrete(3), "here"))
