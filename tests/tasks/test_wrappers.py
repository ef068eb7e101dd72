"""Named wrappers: what they add, to which environments, and what is refused."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from task_cases import Compound, Masked, seeds

from limbeck import rollout, tasks
from limbeck.errors import EnvironmentFault, InputError
from limbeck.tasks.observers import shrink, without_velocity
from limbeck.tasks.wrappers import WRAPPERS


def first_frames(task, n=1):
    frames = []
    rollout.play(None, task, seeds(n), mode="uniform", watch=frames.append)
    return frames


@pytest.mark.parametrize(("env", "words"), [
    (("CartPole-v1", ["pixel"]), "unknown wrapper 'pixel'; did you mean 'pixels'"), (("CartPole-v1", ["atari"]), "for ALE environments, given CartPole-v1"),
    (("CartPole-v1", ["full_grid"]), "for MiniGrid"), (("CartPole-v1", ["ideal_state"]), "for SARDINE"), (("Taxi-v4", ["hide_velocity"]), "does not know where Taxi-v4 keeps"),
    (("Reacher-v5", ["hide_velocity"]), "does not know where Reacher-v5"), (("CartPole-v1", ["pixels:0x4"]), "HEIGHTxWIDTH"), (("CartPole-v1", ["pixels:tiny"]), "HEIGHTxWIDTH"),
    (("CartPole-v1", ["flatten:3"]), "takes no option"), (("digits", ["flatten"]), "ready-made"),
    ((lambda: gym.make("CartPole-v1"), ["pixels"]), "render_mode='rgb_array'"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(env, words):
    with pytest.raises(InputError) as caught:
        tasks.resolve(*env)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrapper_that_needs_another_argument_than_given_is_refused():
    with pytest.raises(InputError, match="needs render_mode='rgb_array'"):
        tasks.resolve("CartPole-v1", ["pixels"], render_mode="human")
    pytest.importorskip("ale_py", reason='pip install "limbeck[atari]"')
    with pytest.raises(InputError, match="needs frameskip=1"):
        tasks.resolve("ALE/Pong-v5", ["atari"], frameskip=4)


def test_ready_made_vectors_and_tasks_take_no_wrappers():
    for ready in (gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"), tasks.resolve("CartPole-v1")):
        with pytest.raises(InputError, match="ready-made"):
            tasks.resolve(ready, ["flatten"])


def test_hidden_velocities_leave_teacher_and_student_a_key_each():
    task = tasks.resolve("CartPole-v1", ["hide_velocity"])
    assert {k: v.shape for k, v in task.spec.observation_space.spaces.items()} == {"observation": (4,), "visible": (2,)}
    for frame in first_frames(task):
        assert np.array_equal(frame.obs["visible"], frame.obs["observation"][:, [0, 2]])
    wanted = rollout.play(None, tasks.resolve("CartPole-v1"), seeds(5), mode="uniform")
    assert np.array_equal(rollout.play(None, task, seeds(5), mode="uniform").returns, wanted.returns)


@pytest.mark.parametrize(("env", "visible"), [
    ("Pendulum-v1", (0, 1)), ("MountainCar-v0", (0,)), ("MountainCarContinuous-v0", (0,)), ("Acrobot-v1", (0, 1, 2, 3)), ("LunarLander-v3", (0, 1, 4, 6, 7)),
    ("HalfCheetah-v5", tuple(range(8))), ("HalfCheetah-v4", tuple(range(8))), ("Hopper-v5", tuple(range(5))), ("Swimmer-v4", (0, 1, 2)), ("InvertedPendulum-v5", (0, 1)),
    ("Ant-v5", (*range(13), *range(27, 105))),
])  # fmt: skip
def test_velocities_are_known_where_they_are(env, visible):
    task = tasks.resolve(env, ["hide_velocity"])
    assert task.spec.observation_space["visible"].shape == (len(visible),)
    assert without_velocity(task.make().env) == visible


def test_a_velocity_is_what_changes_a_position():
    """The entries called velocities of HalfCheetah are those that MuJoCo's state keeps as such."""
    env = tasks.resolve("HalfCheetah-v5").make()
    obs, _ = env.reset(seed=0)
    data = env.unwrapped.data
    assert np.array_equal(obs[list(without_velocity(env))], data.qpos[1:])


def test_pixels_stand_beside_the_state():
    task = tasks.resolve("CartPole-v1", ["hide_velocity", "pixels:32x48x3"])
    assert set(task.spec.observation_space.spaces) == {"observation", "visible", "pixels"}
    task = tasks.resolve("CartPole-v1", ["pixels:32x48"])
    frames = first_frames(task)
    pictures = [f.obs["pixels"][0] for f in frames if f.alive[0]]
    assert pictures[0].shape == (32, 48, 1)
    assert pictures[0].dtype == np.uint8
    assert not np.array_equal(pictures[0], pictures[-1])
    assert set(tasks.resolve("CartPole-v1", ["pixels"]).spec.observation_space.spaces) == {"state", "pixels"}


def test_a_shrunk_picture_keeps_its_mean_and_its_places():
    frame = np.zeros((60, 90, 3), np.uint8)
    frame[:30, :45] = (255, 0, 0)
    small = shrink(frame, (2, 2, 3))
    assert small[..., 0].tolist() == [[255, 0], [0, 0]]
    assert small[..., 1:].max() == 0
    assert shrink(frame, (2, 2, 1))[0, 0, 0] == round(0.299 * 255)
    uneven = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    assert shrink(uneven, (7, 5, 3)).tolist() == uneven.tolist()
    assert abs(float(shrink(uneven, (3, 2, 3)).mean()) - float(uneven.mean())) < 12
    with pytest.raises(InputError, match="would be larger"):
        shrink(frame, (61, 10, 1))


def test_flatten_makes_one_vector_and_keeps_a_mask_apart():
    task = tasks.resolve(Compound, ["flatten"])
    assert isinstance(task.spec.observation_space, spaces.Box)
    frame = first_frames(task)[2]
    row = frame.obs[frame.alive][0]
    assert row.tolist() == [1, 0, 1, 0, 0, 1, 0, 0, 2, -2, 252, 252, 252, 252]  # deep/bits, pair/0, pair/1, picture
    masked = tasks.resolve(lambda: Masked("entry"), ["flatten"])
    assert set(masked.spec.observation_space.spaces) == {"observation", "action_mask"}
    assert (rollout.play(None, masked, seeds(5), mode="uniform").returns == 12).all()


def test_the_full_grid_holds_the_agent_and_what_its_view_does_not():
    pytest.importorskip("minigrid", reason='pip install "limbeck[minigrid]"')
    task = tasks.resolve("MiniGrid-DoorKey-5x5-v0", ["full_grid"])
    parts = task.spec.observation_space.spaces
    assert {k: v.shape for k, v in parts.items()} == {"image": (7, 7, 3), "direction": (), "full": (5, 5, 3)}
    for frame in first_frames(task):
        for row in np.flatnonzero(frame.alive):
            agents = np.argwhere(frame.obs["full"][row, ..., 0] == 10)  # MiniGrid's number for the agent
            assert len(agents) == 1
            assert frame.obs["full"][row][tuple(agents[0])][2] == frame.obs["direction"][row]


def test_the_ideal_state_of_a_recommenders_user_is_what_its_library_says():
    sardine = pytest.importorskip("sardine", reason='pip install "limbeck[recommender]"')
    from sardine.wrappers import IdealState

    task = tasks.resolve("sardine/SlateRerank-Static-v0", ["ideal_state"])
    assert set(task.spec.observation_space.spaces) == {"clicks", "hist", "slate", "ideal"}
    theirs = IdealState(gym.make("sardine/SlateRerank-Static-v0"))
    seed = seeds(1)[0]
    frames = first_frames(task)
    seen, _ = theirs.reset(seed=seed)
    for frame in frames:
        assert np.array_equal(frame.obs["ideal"][0], seen)
        seen = theirs.step(frame.actions[0])[0]
    assert sardine is not None


def test_atari_frames_are_those_of_gymnasiums_own_preprocessing():
    pytest.importorskip("ale_py", reason='pip install "limbeck[atari]"')
    pytest.importorskip("cv2", reason='pip install "limbeck[atari]"')
    task = tasks.resolve("ALE/Pong-v5", ["atari"], max_num_frames_per_episode=240)
    assert task.spec.observation_space.shape == (84, 84)
    assert task.spec.observation_space.dtype == np.uint8
    made = task.make()
    assert made.unwrapped._frameskip == 1
    assert (made.frame_skip, made.noop_max, made.scale_obs, made.terminal_on_life_loss) == (4, 30, False, False)
    played = rollout.play(None, task, seeds(2), mode="uniform")
    assert played.lengths.max() <= 60


def test_frames_are_the_last_ones_with_the_first_repeated():
    task = tasks.resolve("CartPole-v1", ["frames:3"])
    assert task.spec.observation_space.shape == (3, 4)
    frames = first_frames(task)
    first = frames[0].obs[0]
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[1], first[2])
    assert np.array_equal(frames[1].obs[0, 1], first[2])
    with pytest.raises(InputError, match="Allowed: a number"):
        tasks.resolve("CartPole-v1", ["frames:x"])
    with pytest.raises(InputError, match="stacks arrays"):
        tasks.resolve("Blackjack-v1", ["frames"])


def test_a_picture_that_is_not_drawn_is_a_fault():
    class Blind(gym.Env):
        observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)
        render_mode = "rgb_array"

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def render(self):
            raise RuntimeError("no picture")

    with pytest.raises(EnvironmentFault, match="no picture"):
        tasks.resolve(Blind, ["pixels"])


def test_every_wrapper_is_tried_here():
    with open(__file__, encoding="utf-8") as mine:
        text = mine.read()
    assert all(f'["{name}' in text for name in WRAPPERS)
