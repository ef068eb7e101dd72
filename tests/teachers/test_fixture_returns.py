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

EPISODES = 64
SEEDS = [seeding.episode_seed(0, "verify", i) for i in range(EPISODES)]
STATED = sorted(path.stem for path in FIXTURES.glob("*.json") if "return_mean" in facts_of(path.stem))
RECORDED = [name for name in STATED if name.startswith("demos_")]  # what was recorded, no policy
REFUSED = {"keras_lambda": "Lambda", "torch_module": "more than tensors"}  # code that nobody vouched for
TEACHERS = [name for name in STATED if name not in RECORDED and name not in REFUSED]
BY_CHANCE = {"sb3_sac_images", "rslrl_export_gru"}  # stated to be no better than uniform play, by two standard errors
TOO_CLOSE = {
    "rslrl_v2", "rslrl_v3", "rslrl_export_mlp", "rslrl_state_std", "sb3_ppo_squashed_pendulum", "sb3_ppo_stacked_images",
}  # fmt: skip
QUICK = {"cleanrl_c51", "keras_dense", "onnx_legacy", "onnx_gru", "torch_state_dict"}  # long episodes: one per format

LATER = {  # 200 steps each, of formats that others stand for
    "cleanrl_ddpg", "cleanrl_ppo_continuous", "rslrl_v2", "rslrl_v3", "rslrl_export_gru", "rslrl_export_mlp", "rslrl_lstm",
    "sb3_ddpg_pendulum", "sb3_td3_pendulum",
}  # fmt: skip

walls = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in confined.MACHINES,
    reason="teachers that are programs need Linux on x86-64 or ARM64",
)


def long_episodes(name: str) -> bool:
    """Those that balance CartPole for most of its 500 steps, or draw pictures of 84 x 84."""
    far = facts_of(name)["return_mean"] > 300 and environment_of(name).startswith("CartPole")
    return far or environment_of(name).startswith("Beacon(84")


def marked(name: str) -> object:
    slow = name in PROGRAMS or name in LATER or (long_episodes(name) and name not in QUICK)
    return pytest.param(name, marks=[pytest.mark.slow] * slow + [walls] * (name in PROGRAMS))


def squared_error(stated: dict) -> float:
    """Of the stated mean; the stated spread divides by the count."""
    return stated["return_std"] ** 2 / (stated["return_episodes"] - 1)


def agrees(stated: dict, returns: Floats) -> bool:
    """Whether the means differ by at most four standard errors; both samples are finite."""
    error = np.sqrt(squared_error(stated) + returns.var(ddof=1) / len(returns))
    return bool(abs(returns.mean() - stated["return_mean"]) <= 4 * error + 1e-3)


@functools.cache
def random_returns(environment: str, name: str) -> Floats:
    return rollout.play(None, task_of(name), SEEDS, mode="uniform").returns


def by_chance(name: str) -> Floats:
    """What uniform play earns in the same episodes; played once per environment."""
    first = next(other for other in TEACHERS if environment_of(other) == environment_of(name))
    return random_returns(environment_of(name), first)


def above_chance(name: str, mean: float, squared: float) -> bool:
    chance = by_chance(name)
    return bool(mean - chance.mean() > 2 * np.sqrt(squared + chance.var(ddof=1) / EPISODES))


@pytest.mark.parametrize("name", [marked(name) for name in TEACHERS])
def test_a_loaded_teacher_earns_what_its_program_stated(name: str, tmp_path: Path) -> None:
    """Within four standard errors of the difference of the two means (the program's episodes are not ours), and above
    uniform play by two where the stated mean is.

    The returns of eight files cannot tell a right policy from a random one; that these load rightly, only the golden
    answers prove (test_sb3_fixtures, test_layouts, test_onnx_model). sb3_sac_images and rslrl_export_gru play no better
    than chance. rslrl_v2, rslrl_v3, rslrl_export_mlp, rslrl_state_std, sb3_ppo_squashed_pendulum and
    sb3_ppo_stacked_images play so little above it that uniform play, too, would pass the comparison.
    `test_uniform_play_fails_where_the_return_can_tell` holds this list.
    """
    task = task_of(name)
    returns = rollout.play(loaded(name, task.spec, tmp_path).policy, task, SEEDS).returns
    assert agrees(facts_of(name), returns), (returns.mean(), facts_of(name)["return_mean"])
    if name not in BY_CHANCE:
        assert above_chance(name, returns.mean(), returns.var(ddof=1) / EPISODES)


def test_uniform_play_fails_where_the_return_can_tell() -> None:
    """The control of the test above, for every file."""
    passed = {name for name in TEACHERS if agrees(facts_of(name), by_chance(name))}
    assert passed == BY_CHANCE | TOO_CLOSE


def test_every_other_file_is_stated_to_be_better_than_chance() -> None:
    stated = {name: facts_of(name) for name in TEACHERS}
    better = {name for name, f in stated.items() if above_chance(name, f["return_mean"], squared_error(f))}
    assert set(TEACHERS) - better == BY_CHANCE
    said = {name for name, f in stated.items() if any("no better than chance" in note for note in f["notes"])}
    assert said <= BY_CHANCE


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
