"""Tasks: ids, aliases, faults of the environment, labelled sets, vector environments."""

import sys
import textwrap
import time

import gymnasium as gym
import numpy as np
import pytest

from limbeck import rollout, seeding, tasks
from limbeck.errors import EnvironmentFault, InputError


class Faulty(gym.Env):
    """Well-behaved until step `at`."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fault, at=5):
        self.fault, self.at = fault, at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        if self.fault == "reset":
            raise RuntimeError("boom at reset")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        obs, reward = np.zeros(3, np.float32), 1.0
        if self.t == self.at:
            if self.fault == "raise":
                raise RuntimeError("boom\x1b[31m from the environment")
            if self.fault == "hang":
                time.sleep(3600)
            if self.fault == "nan observation":
                obs = np.full(3, np.nan, np.float32)
            if self.fault == "nan reward":
                reward = float("nan")
            if self.fault == "shape":
                obs = np.zeros(4, np.float32)
        return obs, reward, False, self.t == 20, {}


def seeds(n, stage="verify"):
    return [seeding.episode_seed(0, stage, i) for i in range(n)]


@pytest.mark.parametrize(("fault", "words"), [
    ("raise", "raised RuntimeError in step at step 4"), ("reset", "raised RuntimeError in reset: boom at reset"),
    ("nan observation", "observation that is not finite at step 5"), ("nan reward", "reward that is not finite"), ("shape", "raised ValueError"),
])  # fmt: skip
def test_a_fault_names_environment_step_and_seed(fault, words):
    with pytest.raises(EnvironmentFault) as caught:
        rollout.play(None, tasks.resolve(lambda: Faulty(fault)), seeds(4), mode="uniform")
    assert words in str(caught.value)
    assert "\x1b" not in str(caught.value)
    if fault not in ("reset",):
        assert any(str(seed) in str(caught.value) for seed in seeds(4))


def test_a_hang_ends_in_a_fault(monkeypatch):
    monkeypatch.setattr(tasks.watchdog, "limit_seconds", 0.6)
    task = tasks.resolve(lambda: Faulty("hang"))
    with pytest.raises(EnvironmentFault, match=r"did not return within 0\.6 s"):
        rollout.play(None, task, seeds(2), mode="uniform")


def test_an_interrupt_that_is_no_hang_stays_an_interrupt():
    class Interrupted(Faulty):
        def step(self, action):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout.play(None, tasks.resolve(lambda: Interrupted("none")), seeds(2), mode="uniform")


@pytest.mark.parametrize(("env", "words"), [
    ("LunarLandr-v3", "did you mean 'LunarLander-v3'"), ("CartPole-v7", "the version here is 'CartPole-v1'"), ("nomodule_xyz:Env-v0", "cannot be imported"),
    ("\x1b]0;title\x07", "\\x1b"),
])  # fmt: skip
def test_unknown_environments_name_the_nearest(env, words):
    with pytest.raises(InputError) as caught:
        tasks.resolve(env)
    assert words in str(caught.value)


def test_an_old_id_is_an_alias_that_says_so():
    task = tasks.resolve("LunarLander-v2")
    assert task.spec.name == "LunarLander-v3"
    assert "LunarLander-v3 is used" in task.notes[0]


def test_a_module_id_registers_its_environment(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(
        textwrap.dedent("""
        import gymnasium as gym
        gym.register("Mine-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=7)
    """)
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    played = rollout.play(None, tasks.resolve("my_envs:Mine-v0"), seeds(3), mode="uniform")
    assert played.lengths.max() <= 7


def test_a_vector_environment_without_a_mode_is_refused():
    env = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    env.metadata = {}
    with pytest.raises(InputError, match="autoreset_mode=None"):
        tasks.resolve(env)


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
def test_ready_made_vectors_play_the_same_episodes_as_single_environments(mode):
    env = gym.make_vec("CartPole-v1", num_envs=6, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    wanted = rollout.play(None, tasks.resolve("CartPole-v1"), seeds(20), mode="uniform")
    assert np.array_equal(rollout.play(None, tasks.resolve(env), seeds(20), mode="uniform").returns, wanted.returns)


def test_a_vector_whose_lanes_share_one_generator_is_refused():
    env = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    with pytest.raises(InputError, match="no seed per lane"):
        rollout.play(None, tasks.resolve(env), seeds(4), mode="uniform")


def test_digits_are_one_step_episodes_with_disjoint_parts():
    task = tasks.resolve("digits")
    rows = {stage: {task.row(s) for s in seeds(3000, stage)} for stage in ("collect", "race", "proof")}
    assert len(rows["collect"]) == task.train_rows
    assert not rows["collect"] & rows["proof"]
    assert not rows["race"] & (rows["proof"] | rows["collect"])
    played = rollout.play(None, task, seeds(2000, "proof"), mode="uniform")
    assert (played.lengths == 1).all()
    assert abs(played.returns.mean() - 0.1) < 5 * np.sqrt(0.09 / 2000)


def test_an_episode_that_never_ends_is_a_fault(monkeypatch):
    class Endless(Faulty):
        def step(self, action):
            return np.zeros(3, np.float32), 0.0, False, False, {}

    monkeypatch.setattr(rollout, "MAX_EPISODE_STEPS", 200)
    with pytest.raises(EnvironmentFault, match="without ending"):
        rollout.play(None, tasks.resolve(lambda: Endless("none")), seeds(2), mode="uniform")


def test_labelled_refuses_what_is_no_data():
    with pytest.raises(InputError, match="do not fit"):
        tasks.labelled("bad", np.zeros((10, 2)), np.zeros(9))
    with pytest.raises(InputError, match="NaN"):
        tasks.labelled("bad", np.full((10, 2), np.nan), np.zeros(10))


def test_slow_lanes_together_may_take_longer_than_one_call_may(monkeypatch):
    class Slow(Faulty):
        def step(self, action):
            time.sleep(0.25)
            return np.zeros(3, np.float32), 1.0, True, False, {}

    monkeypatch.setattr(tasks.watchdog, "limit_seconds", 1.0)  # eight lanes take two seconds, each a quarter of one
    assert rollout.play(None, tasks.resolve(lambda: Slow("none")), seeds(8), mode="uniform").env_steps == 8


def test_an_environment_that_is_never_built_is_a_fault(monkeypatch):
    monkeypatch.setattr(tasks.watchdog, "limit_seconds", 0.6)
    with pytest.raises(EnvironmentFault, match=r"building did not return within 0\.6 s"):
        tasks.resolve(lambda: time.sleep(3600))


def test_a_limit_set_inside_ends_with_the_block():
    before = tasks.watchdog.limit_seconds

    @tasks.own_limit()
    def refused():
        tasks.watchdog.limit_seconds = before + 1
        raise InputError("out")

    with pytest.raises(InputError):
        refused()
    assert tasks.watchdog.limit_seconds == before


def test_a_missing_plugin_is_named_as_pip_knows_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(InputError, match=r'Run: pip install "limbeck\[minigrid\]"$'):
        tasks.resolve("MiniGrid-Empty-5x5-v0")


def test_a_labelled_set_knows_how_many_rows_it_has_for_proofs():
    task = tasks.labelled("toy", np.eye(40), np.arange(40) % 2)
    assert task.proof_episodes == len({task.row(seed) for seed in seeds(task.proof_episodes, "proof")}) == 10
    assert tasks.resolve("CartPole-v1").proof_episodes is None
