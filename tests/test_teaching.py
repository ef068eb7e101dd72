"""The verb `teach`: a real training run, what it writes, what it refuses, how it stops."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO

from limbeck import seeding, storage, tasks
from limbeck.errors import EnvironmentFault, IncompleteError, InputError
from limbeck.teaching import PRESETS, TaughtTeacher, sb3, teach
from limbeck.teaching.presets import preset_for

QUICK: dict[str, Any] = {"evaluations": 2, "validation_episodes": 3, "fresh_episodes": 5}


class Match(gym.Env[Any, Any]):
    """Ten steps, cut by a time limit; every step gives 1. `seen` collects the seeds of all resets."""

    seen: list[int] = []  # noqa: RUF012
    fail_after: int | None = None

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action
        self.age = self.total = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        Match.seen.append(-1 if seed is None else seed)
        self.age = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.age, self.total = self.age + 1, self.total + 1
        if self.fail_after is not None and self.total > self.fail_after:
            raise RuntimeError("a wire came loose")
        return self.observation_space.sample(), 1.0, False, self.age == 10, {}


def match_task(action: gym.Space[Any], observation: gym.Space[Any] | None = None) -> tasks.EnvTask:
    seen = observation or gym.spaces.Box(-1, 1, (3,), np.float32)
    Match.seen = []
    task = tasks.resolve(lambda: Match(seen, action))
    assert isinstance(task, tasks.EnvTask)
    return task


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> TaughtTeacher:
    out = tmp_path_factory.mktemp("ppo")
    return teach("CartPole-v1", out=out, env_steps=6000, seed=3, evaluations=3, fresh_episodes=40)


def test_ppo_learns_cartpole_far_above_random(taught: TaughtTeacher) -> None:
    assert taught.evaluation.mean > 100 > 40 > taught.random_return
    assert taught.evaluation.low <= taught.evaluation.mean <= taught.evaluation.high
    assert not taught.notes


def test_the_sidecar_says_what_was_done(taught: TaughtTeacher) -> None:
    said = json.loads(taught.sidecar.read_text())
    assert said["sha256"] == taught.sha256 == storage.sha256(taught.file)
    assert said["stated_return"] == taught.evaluation.mean
    assert (said["env"], said["algorithm"], said["seed"], said["complete"]) == ("CartPole-v1", "ppo", 3, True)
    assert said["env_steps"] == 5888 <= 6000  # 23 whole rollouts of 8 x 32
    assert said["settings"]["net"] == [64, 64]
    assert {"stable_baselines3", "torch", "gymnasium", "numpy", "python"} == set(said["versions"])
    curve = {row["env_steps"]: row["mean_return"] for row in said["validation"]}
    assert curve[said["best_at_env_steps"]] == max(curve.values())
    assert min(curve) == 0
    assert max(curve) == 5888


def test_the_stated_return_is_what_the_file_scores_elsewhere(taught: TaughtTeacher) -> None:
    """Played again without any of our code: one Gymnasium environment, SB3's own predict."""
    model, env = PPO.load(taught.file, device="cpu"), gym.make("CartPole-v1")
    returns = []
    for i in range(40):
        obs, _ = env.reset(seed=seeding.episode_seed(3, "verify", (1 << 26) + i))
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(model.predict(obs, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    # a batch of 16 may round differently from a batch of 1: at most one episode in forty may part ways
    assert np.sum(np.array(returns) != np.array(taught.evaluation.returns)) <= 1


def test_dqn_learns_from_its_buffer(tmp_path: Path) -> None:
    taught = teach("CartPole-v1", algorithm="dqn", out=tmp_path, env_steps=3000, evaluations=3, fresh_episodes=20)
    assert isinstance(DQN.load(taught.file, device="cpu"), DQN)
    assert taught.best_at > 0
    assert taught.evaluation.mean > 2 * taught.random_return


def weights(file: Path) -> dict[str, torch.Tensor]:
    return PPO.load(file, device="cpu").policy.state_dict()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    runs = [("a", 0), ("b", 0), ("c", 1)]
    files = [teach("CartPole-v1", out=tmp_path / name, env_steps=512, seed=s, **QUICK).file for name, s in runs]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    first, same, other = (weights(file) for file in files)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("action", "observation"),
    [
        (gym.spaces.MultiDiscrete([2, 3]), None),
        (gym.spaces.MultiBinary(2), None),
        (gym.spaces.Box(-2, 2, (2,), np.float32), None),
        (gym.spaces.Discrete(3), gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2,)), "b": gym.spaces.Discrete(3)})),
    ],
    ids=["multidiscrete", "multibinary", "box", "dict observation"],
)
def test_every_space_can_be_taught(tmp_path: Path, action: Any, observation: Any) -> None:
    taught = teach(match_task(action, observation), out=tmp_path, env_steps=256, settings={"n_epochs": 1}, **QUICK)
    assert taught.evaluation.mean == 10
    assert "not better than random" in taught.notes[0]


def test_training_validation_and_fresh_seeds_never_meet(tmp_path: Path) -> None:
    teach(match_task(gym.spaces.Discrete(2)), out=tmp_path, env_steps=512, **QUICK)
    seen = Match.seen
    validation = {seeding.episode_seed(0, "teach", (1 << 26) + i) for i in range(3)}
    fresh = {seeding.episode_seed(0, "verify", (1 << 26) + i) for i in range(5)}
    training = [s for s in seen if s not in validation | fresh | {0}]  # 0: the look at what it observes
    assert {seeding.stage_of(s) for s in training} == {"teach"}
    assert len(training) == len(set(training)) >= 48  # 512 steps of 10-step episodes
    assert validation | fresh < set(seen)


def test_a_time_limit_is_told_apart_from_an_end() -> None:
    task = match_task(gym.spaces.Discrete(2))
    lanes = task.lanes(2, lambda lane: lane)
    env = sb3._vector_env(lanes, task.spec)
    env.reset()
    for _ in range(9):
        _, _, done, infos = env.step(np.zeros(2, np.int64))
        assert not done.any()
        assert infos == [{}, {}]
    obs, _, done, infos = env.step(np.zeros(2, np.int64))
    assert done.all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert not np.array_equal(infos[0]["terminal_observation"], obs[0])


def test_ctrl_c_keeps_the_best_so_far_and_measures_it(tmp_path: Path) -> None:
    def interrupt(env_steps: int, mean: float) -> None:
        if env_steps >= 1024:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(IncompleteError, match=r"stopped after \d[,\d]* of 4,096 steps.*return"):
        teach("CartPole-v1", out=tmp_path, env_steps=4096, on_progress=interrupt, **{**QUICK, "evaluations": 4})
    said = json.loads((tmp_path / "teacher.json").read_text())
    assert said["complete"] is False
    assert said["stated_return"] > 0
    assert said["sha256"] == storage.sha256(tmp_path / "teacher.zip")
    assert isinstance(PPO.load(tmp_path / "teacher.zip", device="cpu"), PPO)


def test_a_fault_of_the_environment_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Match, "fail_after", 60)
    with pytest.raises(EnvironmentFault, match="a wire came loose"):
        teach(match_task(gym.spaces.Discrete(2)), out=tmp_path, env_steps=4096, **QUICK)
    said = json.loads((tmp_path / "teacher.json").read_text())
    assert said["complete"] is False
    assert "stated_return" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "pp"}, "unknown algorithm 'pp'; did you mean 'ppo'"),
        ({"env": "Pendulum-v1", "algorithm": "dqn"}, "dqn cannot act in Box"),
        ({"env": "CartPole-v7"}, "unknown environment"),
        ({"env": "digits"}, "digits cannot be trained on"),
        ({"env_steps": 10}, "env_steps = 10, allowed at least 256"),
        ({"env_steps": -5}, "env_steps = -5, allowed at least 256"),
        ({"env_steps": 10**20}, "allowed at least 256 and at most 10,000,000,000"),
        ({"seed": -1}, "seed = -1, allowed 0 to 2,147,483,647"),
        ({"seed": 2**40}, "seed = 1099511627776, allowed 0 to"),
        ({"settings": {"learning_rate": float("nan")}}, "ppo setting learning_rate = nan, allowed 0 and above"),
        ({"settings": {"n_steps": 0}}, "ppo setting n_steps = 0, allowed 1 and above"),
        ({"settings": {"gama": 0.9}}, "unknown ppo setting 'gama'; did you mean 'gamma'"),
        ({"evaluations": 0}, "evaluations = 0"),
    ],
)
def test_refusals_say_what_is_allowed_and_write_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {"env": "CartPole-v1", "out": tmp_path / "new", **changes}
    with pytest.raises(InputError, match=message):
        teach(**arguments)
    assert not (tmp_path / "new").exists()


def test_actions_that_do_not_count_from_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="count from 0"):
        teach(match_task(gym.spaces.Discrete(2, start=1)), out=tmp_path)


def test_a_finished_teacher_is_not_overwritten(taught: TaughtTeacher) -> None:
    with pytest.raises(InputError, match="holds a measured teacher already"):
        teach("CartPole-v1", out=taught.file.parent, env_steps=512)
    assert storage.sha256(taught.file) == taught.sha256


def test_without_the_library_the_line_that_installs_it_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(InputError, match=r'pip install "limbeck\[sb3\]"'):
        teach("CartPole-v1", out=tmp_path)


def test_every_preset_names_arguments_the_library_has() -> None:
    for algorithm, known in PRESETS.items():
        for name in known:
            preset = preset_for(algorithm, name, "Discrete", None, {})
            assert preset.env_steps <= known[name].env_steps
            lanes = match_task(gym.spaces.Discrete(2)).lanes(1, lambda lane: lane)
            sb3.build(algorithm, preset, 0, lanes, match_task(gym.spaces.Discrete(2)).spec)
