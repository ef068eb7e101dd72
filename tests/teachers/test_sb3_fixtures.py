"""Files that Stable-Baselines3 and sb3-contrib wrote, against what they answer: `tests/fixtures/NAME.golden.npz`.

What they earn is compared with `NAME.json` in test_fixture_returns, and here with live play of the same episodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fixture_cases import ENVIRONMENTS, FIXTURES, environment_of, facts_of, golden_of, loaded, task_of

from limbeck import distributions, rollout, seeding, teachers
from limbeck.contracts import Teacher
from limbeck.distributions import log_softmax

NAMES = sorted(
    path.stem
    for path in FIXTURES.glob("*.zip")
    if path.name.startswith(("sb3_", "sb3old_", "contrib_")) and path.with_suffix(".json").exists()
)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def played(teacher: Teacher, steps: list[Any], first: np.ndarray) -> dict[str, np.ndarray]:
    """Greedy actions, rows and values of a sequence of batches, the state carried from one to the next."""
    state = teacher.policy.initial_state(first.shape[1])
    found: dict[str, list[Any]] = {"action": [], "params": [], "value": []}
    for obs, fresh in zip(steps, first, strict=True):
        output = teacher.policy(obs, state, fresh)
        state = output.state
        found["action"].append(distributions.act(teacher.policy.head, output.params))
        found["params"].append(output.params)
        found["value"].append(output.value)
    return {key: np.stack(rows) for key, rows in found.items() if rows[0] is not None}


def frames_of(name: str, stack: np.ndarray) -> list[np.ndarray]:
    """The single frames, as the environment gives them, that were last in each stack [T, B, ...]."""
    if stack.ndim == 3:
        return list(stack[..., -4:])
    return list(np.moveaxis(stack[:, :, -1:], 2, -1))


def questions(name: str, golden: dict[str, np.ndarray]) -> tuple[list[Any], np.ndarray]:
    """What the task would give at each step, [B, ...], and where episodes begin [T, B]."""
    if "stack" in golden:
        return frames_of(name, golden["stack"]), golden["first"]
    if "first" in golden:
        return list(golden["obs"]), golden["first"]
    if "masks" in golden:
        obs: Any = {"observation": golden["obs"], "action_mask": golden["masks"]}
    elif "obs" in golden:
        obs = golden["obs"]
    else:
        obs = {key[4:]: rows for key, rows in golden.items() if key.startswith("obs.")}
    return [obs], np.ones((1, len(golden["action"])), bool)


def flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, rows.shape[-1])


def check_rows(teacher: Teacher, ours: np.ndarray, golden: dict[str, np.ndarray]) -> set[str]:
    """Compare the rows [T, B, W] with what the program says of its distribution; the names of what was compared."""
    half = ours.shape[-1] // 2
    wanted = {
        "mean": lambda: ours[..., :half],
        "std": lambda: np.exp(np.clip(ours[..., half:], *distributions.LOG_STD_RANGE)),
        "log_std": lambda: np.clip(ours[..., half:], *distributions.LOG_STD_RANGE),
        "q": lambda: ours,
        "scaled_action": lambda: np.tanh(ours),
    }
    seen = set(wanted) & set(golden)
    for key in seen:
        np.testing.assert_allclose(flat(wanted[key]()), flat(golden[key]), **TOLERANCE, err_msg=key)
    if "logits" in golden and "masks" not in golden:
        seen.add("logits")
        mine, theirs = flat(ours), flat(golden["logits"])
        if teacher.policy.head.kind != "bernoulli":  # torch says normalised logits
            groups = [distributions.groups(teacher.policy.head, rows) for rows in (mine, theirs)]
            mine, theirs = (np.concatenate([log_softmax(g) for g in parts], axis=1) for parts in groups)
        np.testing.assert_allclose(mine, theirs, **TOLERANCE, err_msg="logits")
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_the_programs_own(name: str) -> None:
    golden = golden_of(name)
    teacher = loaded(name, task_of(name).spec)
    steps, first = questions(name, golden)
    ours = played(teacher, steps, first)
    seen = check_rows(teacher, ours["params"], golden)
    action = golden["action"].reshape(ours["action"].shape)
    if teacher.policy.head.discrete:
        assert np.array_equal(ours["action"], action)
    else:
        np.testing.assert_allclose(ours["action"], action, **TOLERANCE)
    if "value" in golden:
        seen.add("value")
        np.testing.assert_allclose(ours["value"], golden["value"].reshape(ours["value"].shape), **TOLERANCE)
    assert seen or "output" in golden or "masks" in golden, "nothing but actions was compared"
    assert len(np.unique(golden["action"])) > 1, "the program always answers the same"
    assert teacher.info.algorithm == facts_of(name)["program"].split()[0]


def test_masked_answers_are_those_under_the_mask() -> None:
    golden = golden_of("contrib_maskable_ppo")
    teacher = loaded("contrib_maskable_ppo", task_of("contrib_maskable_ppo").spec)
    steps, first = questions("contrib_maskable_ppo", golden)
    ours = played(teacher, steps, first)["params"][0]
    wanted = np.exp(log_softmax(golden["masked_logits"]))
    np.testing.assert_allclose(np.exp(log_softmax(ours)), wanted, **TOLERANCE)
    free = {**steps[0], "action_mask": np.ones_like(golden["masks"])}
    plain = played(teacher, [free], first)["params"][0]
    np.testing.assert_allclose(log_softmax(plain), golden["logits"], **TOLERANCE)
    assert not np.array_equal(plain.argmax(1), golden["action"]), "the mask changes nothing"


@pytest.mark.parametrize("name", [name for name in NAMES if "stacked" in name])
def test_a_task_that_stacks_itself_is_seen_as_it_is(name: str) -> None:
    golden = golden_of(name)
    teacher = loaded(name, None)  # the file's own space: the stack
    assert teacher.blueprint is not None
    assert teacher.blueprint.view.history == 1
    ours = played(teacher, list(golden["stack"]), golden["first"])
    assert np.array_equal(ours["action"], golden["action"])
    check_rows(teacher, ours["params"], golden)


@pytest.mark.parametrize("name", NAMES)
def test_inspect_knows_it_without_an_environment(name: str) -> None:
    info = teachers.inspect(FIXTURES / f"{name}.zip")
    assert info.algorithm == facts_of(name)["program"].split()[0]
    assert info.stated["parameters"] > 0, info.notes
    assert not any("not written by" in entry for entry in info.unread), info.unread


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sb3_a2c_cartpole", "sb3_sac_pendulum", "sb3_ppo_mixed", "contrib_lstm_hidden_cartpole"]
)
def test_the_program_earns_the_same_on_the_same_episodes(name: str) -> None:
    """Paired: one seed, one episode. Greedy play differs only where rounding flips a choice."""
    import sb3_contrib
    import stable_baselines3

    program = facts_of(name)["program"]
    model = (getattr(stable_baselines3, program, None) or getattr(sb3_contrib, program)).load(
        FIXTURES / f"{name}.zip", device="cpu"
    )
    task = task_of(name)
    seeds = [seeding.episode_seed(0, "verify", i) for i in range(20)]
    ours = rollout.play(loaded(name, task.spec).policy, task, seeds).returns
    env = ENVIRONMENTS[environment_of(name)]()
    theirs = np.array([live_return(model, env, seed) for seed in seeds])
    difference = ours - theirs
    error = difference.std(ddof=1) / np.sqrt(len(seeds))
    assert abs(difference.mean()) <= 4 * error + 1e-3
    assert (np.abs(difference) < 1e-2).mean() >= 0.9


def live_return(model: Any, env: gym.Env, seed: int) -> float:
    obs, _ = env.reset(seed=seed)
    state, first, total, over = None, np.ones(1, bool), 0.0, False
    while not over:
        action, state = model.predict(obs, state, first, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        first, total, over = np.zeros(1, bool), total + float(reward), terminated or truncated
    return total


def test_the_fixtures_are_all_there() -> None:
    assert len(NAMES) >= 25
    assert {facts_of(name)["program"].split()[0] for name in NAMES} >= {
        "PPO", "A2C", "DQN", "SAC", "TD3", "DDPG", "QRDQN", "RecurrentPPO", "MaskablePPO", "TQC", "TRPO", "ARS",
    }  # fmt: skip
    assert Path(FIXTURES / "sb3_ppo_normalised_pendulum.pkl").exists()
