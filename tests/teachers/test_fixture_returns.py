"""Every teacher file plays as well in its environment as the program that wrote it says in `tests/fixtures/NAME.json`."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from fixture_cases import FIXTURES, PROGRAMS, environment_of, facts_of, loaded, task_of

from limbeck import recordings, rollout, seeding, teachers
from limbeck.contracts import Floats
from limbeck.errors import UnsafeError
from limbeck.teachers import confined

EPISODES = 32
SEEDS = [seeding.episode_seed(0, "verify", i) for i in range(EPISODES)]
STATED = sorted(path.stem for path in FIXTURES.glob("*.json") if "return_mean" in facts_of(path.stem))
RECORDED = [name for name in STATED if name.startswith("demos_")]  # what was recorded, no policy
REFUSED = {"keras_lambda": "Lambda", "torch_module": "more than tensors"}  # code that nobody vouched for
TEACHERS = [name for name in STATED if name not in RECORDED and name not in REFUSED]
BY_CHANCE = {"sb3_sac_images"}  # plays no better than chance, as its JSON says
TOO_CLOSE = {"rslrl_v2", "rslrl_v3", "rslrl_state_std", "sb3_ppo_squashed_pendulum", "sb3_ppo_stacked_images"}
QUICK = {"cleanrl_c51", "keras_dense", "onnx_legacy", "onnx_gru", "torch_state_dict"}  # long episodes: one per format


walls = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in confined.MACHINES, reason="no walls on this system"
)


def long_episodes(name: str) -> bool:
    """Those that balance CartPole for most of its 500 steps, or draw pictures of 84 x 84."""
    far = facts_of(name)["return_mean"] > 300 and environment_of(name).startswith("CartPole")
    return far or environment_of(name).startswith("Beacon(84")


def marked(name: str) -> object:
    marks = [pytest.mark.slow] if name in PROGRAMS or (long_episodes(name) and name not in QUICK) else []
    return pytest.param(name, marks=[*marks, walls] if name in PROGRAMS else marks)


def gap_of(stated: dict, returns: Floats) -> tuple[float, float]:
    """How far the mean is from the stated one, and four standard errors of the difference: both samples are finite."""
    theirs = stated["return_std"] ** 2 / (stated["return_episodes"] - 1)  # the stated spread divides by the count
    return abs(returns.mean() - stated["return_mean"]), 4 * np.sqrt(theirs + returns.var(ddof=1) / len(returns)) + 1e-3


@functools.cache
def random_returns(environment: str, name: str) -> Floats:
    return rollout.play(None, task_of(name), SEEDS, mode="uniform").returns


def by_chance(name: str) -> Floats:
    """What uniform play earns in the same episodes; played once per environment."""
    first = next(other for other in TEACHERS if environment_of(other) == environment_of(name))
    return random_returns(environment_of(name), first)


@pytest.mark.parametrize("name", [marked(name) for name in TEACHERS])
def test_a_loaded_teacher_earns_what_its_program_stated(name: str, tmp_path: Path) -> None:
    """Within four standard errors of the difference of the two means (the program's episodes are not ours), and
    above uniform play by two.

    Six files cannot tell a right policy from a random one by their return, so for them only the golden answers
    (test_sb3_fixtures, test_layouts) prove the loading: sb3_sac_images plays no better than chance, and the stated
    returns of rslrl_v2, rslrl_v3, rslrl_state_std, sb3_ppo_squashed_pendulum and sb3_ppo_stacked_images lie so little
    above it that uniform play passes too. `test_uniform_play_fails_where_the_return_can_tell` holds this list.
    """
    task = task_of(name)
    returns = rollout.play(loaded(name, task.spec, tmp_path).policy, task, SEEDS).returns
    gap, margin = gap_of(facts_of(name), returns)
    assert gap <= margin, (returns.mean(), facts_of(name)["return_mean"], margin)
    if name not in BY_CHANCE:
        chance = by_chance(name)
        error = np.sqrt((returns.var(ddof=1) + chance.var(ddof=1)) / EPISODES)
        assert returns.mean() - chance.mean() > 2 * error, (returns.mean(), chance.mean(), error)


def test_uniform_play_fails_where_the_return_can_tell() -> None:
    """The control of the test above, for every file."""
    passed = {name for name in TEACHERS if np.less_equal(*gap_of(facts_of(name), by_chance(name)))}
    assert passed == BY_CHANCE | TOO_CLOSE


def test_the_files_that_play_by_chance_say_so() -> None:
    said = {name for name in STATED if any("no better than chance" in note for note in facts_of(name)["notes"])}
    assert said == BY_CHANCE


@pytest.mark.parametrize("name", RECORDED)
def test_recordings_hold_the_returns_that_were_stated(name: str) -> None:
    stated, returns = facts_of(name), recordings.read(FIXTURES / facts_of(name)["file"]).returns
    assert len(returns) == stated["return_episodes"]
    assert (returns.mean(), returns.std()) == pytest.approx((stated["return_mean"], stated["return_std"]), abs=1e-3)


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_files_that_are_code_are_not_played(name: str, words: str) -> None:
    with pytest.raises(UnsafeError, match=words):
        teachers.load(FIXTURES / facts_of(name)["file"], task_of(name).spec)


def test_no_file_is_forgotten() -> None:
    silent = {path.stem for path in FIXTURES.glob("*.json")} - set(STATED)
    assert not silent, f"no return is stated for {silent}"
    assert len(TEACHERS) >= 55
