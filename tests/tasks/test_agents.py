"""Teams: PettingZoo's parallel environments as one joint environment."""

import sys
import types

import numpy as np
import pytest
from gymnasium import spaces
from task_cases import seeds

from limbeck import rollout, tasks
from limbeck.errors import InputError
from limbeck.tasks.agents import Team

PURSUIT = {"n_pursuers": 3, "n_evaders": 4, "x_size": 8, "y_size": 8, "max_cycles": 30}


class Pair:
    """Two agents; the second leaves after two steps. Each is paid its own action."""

    possible_agents: list

    def __init__(self, masked=False, unlike=False, continuous=False):
        self.possible_agents, self.agents = ["left", "right"], []
        self.masked, self.unlike, self.continuous = masked, unlike, continuous

    def observation_space(self, agent):
        box = spaces.Box(1, 9, (2 + (self.unlike and agent == "right"),), np.float32)
        if not self.masked:
            return box
        return spaces.Dict({"observation": box, "action_mask": spaces.Box(0, 1, (3,), np.int8)})

    def action_space(self, agent):
        return spaces.Box(-1, 2, (2,), np.float32) if self.continuous else spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        return self._seen(), {a: {} for a in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.t += 1
        rewards = {a: float(np.sum(action)) for a, action in actions.items()}
        over = {a: self.t >= (2 if a == "right" else 4) for a in self.agents}
        acting = self.agents
        self.agents = [a for a in self.agents if not over[a]]
        return self._seen(), rewards, over, dict.fromkeys(acting, False), {a: {} for a in acting}

    def close(self):
        pass

    def _seen(self):
        seen = {a: np.full(2, 5.0 + i, np.float32) for i, a in enumerate(self.possible_agents) if a in self.agents}
        return {
            a: {"observation": o, "action_mask": np.array([0, 0, 1], np.int8)} if self.masked else o
            for a, o in seen.items()
        }


def test_rows_keep_their_agent_and_the_gone_are_zeros():
    team = Team(Pair())
    assert team.agents == 2
    assert team.observation_space == spaces.Box(0, 9, (2, 2), np.float32)  # zeros belong to it
    assert team.action_space == spaces.MultiDiscrete([3, 3])
    obs, _ = team.reset(seed=1)
    assert obs.tolist() == [[5, 5], [6, 6]]
    rewards, ends = [], []
    for _ in range(4):
        obs, reward, terminated, truncated, _ = team.step(np.array([2, 1]))
        rewards.append(reward)
        ends.append((terminated, truncated))
    assert obs.tolist() == [[0, 0], [0, 0]]
    assert rewards == [1.5, 1.5, 2.0, 2.0]  # the mean over those that acted
    assert ends == [(False, False)] * 3 + [(True, False)]


def test_a_team_with_masks_and_one_with_continuous_actions():
    task = tasks.resolve(lambda: Team(Pair(masked=True)))
    assert task.spec.agents == 2
    assert task.spec.observation_space["action_mask"].shape == (6,)
    assert rollout.play(None, task, seeds(6), mode="uniform").returns.tolist() == [8.0] * 6  # action 2, always
    team = Team(Pair(continuous=True))
    assert team.action_space.shape == (4,)
    team.reset()
    assert team.step(np.array([1, 1, 2, 2], np.float32))[1] == 3.0


def test_unlike_agents_are_refused():
    with pytest.raises(InputError, match=r"the agents differ: left .* right"):
        Team(Pair(unlike=True))


def test_pursuit_is_a_team_of_pursuers():
    pytest.importorskip("pettingzoo", reason='pip install "limbeck[multiagent]"')
    task = tasks.resolve("pettingzoo/sisl.pursuit_v5", **PURSUIT)
    assert task.spec.agents == 3
    assert task.spec.observation_space.shape == (3, 7, 7, 3)
    assert task.spec.action_space.nvec.tolist() == [5, 5, 5]
    one, again = (rollout.play(None, task, seeds(2), mode="uniform") for _ in range(2))
    assert np.array_equal(one.returns, again.returns)
    assert one.lengths.max() == 30
    assert -30 < one.returns.mean() < 30


def test_the_joint_returns_are_the_means_of_the_agents_own():
    pytest.importorskip("pettingzoo", reason='pip install "limbeck[multiagent]"')
    from pettingzoo.sisl import pursuit_v5

    task, frames = tasks.resolve("pettingzoo/sisl.pursuit_v5", **PURSUIT), []
    rollout.play(None, task, seeds(1), mode="uniform", watch=frames.append)
    own = pursuit_v5.parallel_env(**PURSUIT)
    obs, _ = own.reset(seed=seeds(1)[0])
    for frame in frames:
        assert np.array_equal(frame.obs[0], np.stack([obs[a] for a in own.possible_agents]))
        obs, rewards, *_ = own.step(dict(zip(own.possible_agents, frame.actions[0].tolist(), strict=True)))
        assert frame.reward[0] == pytest.approx(np.mean(list(rewards.values())))


@pytest.mark.parametrize("continuous", [False, True])
def test_spread_of_mpe2_plays(continuous):
    pytest.importorskip("mpe2", reason='pip install "limbeck[multiagent]"')
    task = tasks.resolve("mpe2/simple_spread_v3", continuous_actions=continuous)
    assert task.spec.agents == 3
    one, again = (rollout.play(None, task, seeds(2), mode="uniform") for _ in range(2))
    assert np.array_equal(one.returns, again.returns)
    assert one.lengths.tolist() == [25, 25]


@pytest.mark.parametrize(("env", "words"), [
    ("pettingzoo/sisl.pursuit_v4", "the version here is 'pursuit_v5'"), ("pettingzoo/sisl.pursut_v5", "did you mean 'pursuit_v5'"), ("pettingzoo/nowhere.x_v1", "cannot be imported"),
])  # fmt: skip
def test_unknown_teams_name_the_nearest(env, words):
    pytest.importorskip("pettingzoo", reason='pip install "limbeck[multiagent]"')
    with pytest.raises(InputError) as caught:
        tasks.resolve(env)
    assert words in str(caught.value)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpe2", types.ModuleType("mpe2"))
    monkeypatch.delitem(sys.modules, "mpe2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'Run: pip install "limbeck\[multiagent\]"$'):
        tasks.resolve("mpe2/simple_spread_v3")
