"""The border: nested observations become one flat Dict, text is left out, masks arrive and are kept."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from task_cases import Compound, Masked, seeds

from limbeck import collection, rollout, tasks
from limbeck.contracts import PolicyOutput
from limbeck.errors import InputError
from limbeck.spaces import head_for
from limbeck.tasks.border import simple_space

NESTED = {"pair/0", "pair/1", "deep/bits", "picture"}


def watched(task, n=3):
    frames = []
    episodes = rollout.play(None, task, seeds(n), mode="uniform", watch=frames.append)
    return frames, episodes


def vector_of(build, mode, count=3):
    return gym.vector.SyncVectorEnv([build] * count, autoreset_mode=mode)


def test_a_nested_observation_becomes_one_flat_dict_without_its_text():
    task = tasks.resolve(Compound)
    assert set(task.spec.observation_space.spaces) == NESTED
    assert task.notes == ("the text 'deep/said' is left out: no policy here reads text",)
    frames, episodes = watched(task)
    assert episodes.lengths.tolist() == [4, 4, 4]
    for t, frame in enumerate(frames[:4]):
        row = np.flatnonzero(frame.alive)[0]
        assert frame.obs["pair/0"][row] == t
        assert frame.obs["pair/1"][row].tolist() == [t, -t]
        assert frame.obs["deep/bits"][row].tolist() == [1, 0, 1]
        assert frame.obs["picture"].dtype == np.uint8
        assert frame.obs["picture"][row].max() == 250 + t


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
def test_a_vector_of_nested_environments_shows_the_same(mode):
    single, vector = tasks.resolve(Compound), tasks.resolve(vector_of(Compound, mode))
    assert vector.spec.observation_space == single.spec.observation_space
    assert vector.notes == single.notes
    wanted, got = ({k: v[f.alive] for k, v in f.obs.items()} for f in (watched(single)[0][2], watched(vector)[0][2]))
    assert all(np.array_equal(wanted[key][:1], got[key][:1]) for key in NESTED)


def test_plain_spaces_and_flat_dicts_are_left_as_they_are():
    for space in (spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Discrete(3)):
        simple, border, notes = simple_space(space)
        assert simple is space
        assert border.plain
        assert notes == ()


def test_a_tuple_of_numbers_gets_numbers_for_keys():
    assert set(tasks.resolve("Blackjack-v1").spec.observation_space.spaces) == {"0", "1", "2"}


@pytest.mark.parametrize(("space", "words"), [
    (spaces.Text(4), "holds text alone"), (spaces.Dict({"a": spaces.Text(4)}), "holds text alone"),
    (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "part 'a' is a Sequence space"),
    (spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}), "two parts of the observation would be called 'a/b'"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(space, words):
    with pytest.raises(InputError, match=words):
        simple_space(space)


@pytest.mark.parametrize("offer", ["method", "action_mask", "action_masks", "entry"])
def test_a_mask_is_found_wherever_it_is_kept_and_random_play_respects_it(offer):
    task = tasks.resolve(lambda: Masked(offer))
    assert set(task.spec.observation_space.spaces) == {"observation", "action_mask"}
    assert "action_mask" in task.notes[-1]
    frames, episodes = watched(task, 40)
    assert episodes.returns.tolist() == [12.0] * 40  # one forbidden action would cost 100
    first = frames[0]
    assert first.obs["action_mask"][first.alive].sum(axis=1).tolist() == [2] * int(first.alive.sum())
    taken = {int(a) for f in frames for a in f.actions[f.alive & (f.obs["observation"][:, 0] == 0)]}
    assert taken == {0, 1}  # uniform over what is allowed, not one of the two


def test_without_a_mask_random_play_breaks_the_rule():
    episodes = rollout.play(None, tasks.resolve(lambda: Masked("nowhere")), seeds(10), mode="uniform")
    assert episodes.returns.max() < 0


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
def test_the_masks_of_a_vector_of_environments_come_along(mode):
    task = tasks.resolve(vector_of(Masked, mode))
    assert rollout.play(None, task, seeds(9), mode="uniform").returns.tolist() == [12.0] * 9


def test_a_mask_for_continuous_actions_is_ignored_and_said_to_be():
    task = tasks.resolve(lambda: Masked("method", spaces.Box(-1, 1, (2,), np.float32)))
    assert isinstance(task.spec.observation_space, spaces.Box)
    assert "is ignored" in task.notes[-1]


def test_random_actions_while_collecting_respect_the_mask():
    task = tasks.resolve(Masked)

    class Lowest:
        """A teacher that takes the lowest allowed action."""

        spec, head = task.spec, head_for(task.spec.action_space)

        def initial_state(self, batch):
            return {}

        def __call__(self, obs, state, first):
            return PolicyOutput(np.where(obs["action_mask"] > 0, 0.0, -50.0).astype(np.float32), state)

    plan = collection.Plan(steps=480, lanes=8, driver="teacher", random_share=0.9)
    columns = collection.collect(task, Lowest(), [], plan, 0, 0).columns
    assert (columns["driver"] == collection.RANDOM).mean() > 0.8
    assert (columns["reward"] == 1.0).all()


def test_uniform_multidiscrete_actions_keep_to_each_groups_mask():
    head, rng = head_for(spaces.MultiDiscrete([3, 4])), np.random.default_rng(0)
    allowed = np.array([1, 0, 1, 0, 0, 0, 1], bool)
    drawn = np.concatenate([rollout.uniform(head, rng, allowed) for _ in range(200)])
    assert set(map(tuple, drawn.tolist())) == {(0, 3), (2, 3)}
    nothing = np.array([1, 0, 0, 0, 0, 0, 0], bool)  # a list of which nothing is allowed is drawn from whole
    drawn = np.concatenate([rollout.uniform(head, rng, nothing) for _ in range(200)])
    assert {a for a, _ in drawn.tolist()} == {0}
    assert {b for _, b in drawn.tolist()} == {0, 1, 2, 3}
