"""envpool collects, Gymnasium judges: the two are compared, and what envpool gets wrong is kept out."""

import gymnasium as gym
import numpy as np
import pytest
from task_cases import seeds

from limbeck import rollout, tasks
from limbeck.errors import InputError
from limbeck.tasks.pooled import PooledLanes

envpool = pytest.importorskip("envpool", reason='pip install "limbeck[envpool]"')


def stream(task, steps, lanes=4, until=lambda step: False):
    """Uniform play in collection lanes: one (observation before, actions, step) per vector step."""
    head, rng = rollout.spaces.head_for(task.spec.action_space), np.random.default_rng(0)
    waiting = iter(seeds(10_000, "collect"))
    made = task.lanes(lanes, lambda lane: next(waiting), stream=True)
    step, found = made.start(), []
    try:
        for _ in range(steps):
            said = np.concatenate([rollout.uniform(head, rng) for _ in range(lanes)])
            actions = rollout.distributions.execute(head, said)
            before, step = step, made.step(actions)
            found.append((before.obs, actions, step))
            if until(step):
                break
    finally:
        made.close()
    return made, found


def test_collection_is_pooled_and_play_is_not():
    task = tasks.resolve("CartPole-v1", backend="envpool")
    assert "envpool's port" in task.notes[-1]
    made, _ = stream(task, 3)
    assert isinstance(made, PooledLanes)
    wanted = rollout.play(None, tasks.resolve("CartPole-v1"), seeds(6), mode="uniform").returns
    assert np.array_equal(rollout.play(None, task, seeds(6), mode="uniform").returns, wanted)


def test_reset_rows_are_masked_and_a_round_is_the_same_twice():
    task = tasks.resolve("CartPole-v1", backend="envpool")
    (_, one), (_, again) = stream(task, 200), stream(task, 200)
    assert all(
        np.array_equal(a[0], b[0]) and np.array_equal(a[2].reward, b[2].reward) for a, b in zip(one, again, strict=True)
    )
    ends = np.array([step.terminated | step.truncated for _, _, step in one])
    alive = np.array([step.alive for _, _, step in one])
    assert ends.sum() > 10
    assert np.array_equal(~alive[1:], ends[:-1])  # the row after an end, and no other, is no transition
    assert not np.array_equal(one[0][0][0], one[0][0][1])  # a seed of its own for each lane


@pytest.mark.parametrize(("env", "wrappers"), [("MiniGrid-DoorKey-5x5-v0", ()), ("HalfCheetah-v5", ()), ("Pendulum-v1", ()), ("LunarLander-v3", ()), ("highway-fast-v0", ()), ("ALE/Pong-v5", ("atari",))])  # fmt: skip
def test_observations_are_what_gymnasiums_space_says(env, wrappers):
    module = {"MiniGrid": "minigrid", "highway": "highway_env", "ALE/Pong": "cv2"}.get(env.split("-")[0], "gymnasium")
    pytest.importorskip(module, reason='pip install "limbeck[minigrid,highway,atari]"')
    task = tasks.resolve(env, wrappers, backend="envpool")
    space = task.spec.observation_space
    for before, _, _ in stream(task, 5)[1]:
        row = {k: v[0] for k, v in before.items()} if isinstance(before, dict) else before[0]
        parts = {k: (row[k], space[k]) for k in space.spaces} if isinstance(row, dict) else {"": (row, space)}
        for value, part in parts.values():
            assert np.asarray(value).dtype == part.dtype
            assert np.asarray(value).shape == part.shape
        if isinstance(row, dict):
            assert set(row) == set(space.spaces)  # no mission bytes


@pytest.mark.parametrize(("env", "options", "words"), [
    ("MinAtar/Breakout-v1", {}, "the nearest it has is 'Breakout-v5'"), ("LunarLander-v3", {"continuous": True}, "does not know the argument 'continuous'"),
    ("CartPole-v1", {"wrappers": ["hide_velocity"]}, "takes no wrappers"), ("ALE/Pong-v5", {}, "in the wrapper 'atari' alone"),
    (lambda: gym.make("CartPole-v1"), {}, "needs an environment's id"), ("digits", {}, "needs an environment's id"),
])  # fmt: skip
def test_what_envpool_cannot_do_is_refused(env, options, words):
    if isinstance(env, str) and "/" in env:
        pytest.importorskip("minatar" if "MinAtar" in env else "ale_py", reason='pip install "limbeck[atari,minatar]"')
    with pytest.raises(InputError) as caught:
        tasks.resolve(env, backend="envpool", **options)
    assert words in str(caught.value)


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="unknown backend 'envpol'; did you mean 'envpool'"):
        tasks.resolve("CartPole-v1", backend="envpol")


def test_a_pool_object_is_played_by_seed_though_it_takes_none():
    made = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, num_threads=1, seed=1)
    task = tasks.resolve(made)
    one, again, other = (
        rollout.play(None, task, s, mode="uniform").returns for s in (seeds(8), seeds(8), seeds(8, "race"))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    partial = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, batch_size=2, num_threads=1, seed=1)
    with pytest.raises(InputError, match="batch_size=num_envs"):
        tasks.resolve(partial)


# ---------------------------------------------------------------- equal dynamics


def test_cartpole_moves_as_gymnasiums_does_from_the_same_state():
    plain, worst = gym.make("CartPole-v1").unwrapped, 0.0
    plain.reset(seed=0)
    for before, actions, step in stream(tasks.resolve("CartPole-v1", backend="envpool"), 300)[1]:
        for lane in np.flatnonzero(step.alive):
            plain.state, plain.steps_beyond_terminated = tuple(before[lane].astype(float)), None
            obs, reward, terminated, *_ = plain.step(int(actions[lane]))
            worst = max(worst, float(np.abs(obs - step.obs[lane]).max()))
            assert terminated == step.terminated[lane]
            assert reward == step.reward[lane]
    assert worst < 1e-5


@pytest.mark.slow
def test_halfcheetah_moves_as_gymnasiums_does_from_the_same_state():
    plain = tasks.resolve("HalfCheetah-v5").make().unwrapped
    plain.reset(seed=0)
    errors, spread = [], []
    for before, actions, step in stream(tasks.resolve("HalfCheetah-v5", backend="envpool"), 100)[1]:
        plain.set_state(np.concatenate([[0.0], before[0][:8]]), before[0][8:])
        obs, reward, *_ = plain.step(actions[0])
        errors.append([*np.abs(obs - step.obs[0]), abs(reward - step.reward[0])])
        spread.append(np.abs(obs - before[0]).max())
    assert np.max(errors) < 1e-4 * np.median(spread)  # contact solvers start warm, so not bit for bit


@pytest.mark.slow
def test_lunarlander_returns_agree_within_what_a_proof_would_notice():
    """Two one-sided tests at 5 % (Schuirmann 1987). The margin is what retention .95 allows between the trained
    teacher (280) and random play (-180): .05 * 460 = 23. Each lane's first episode alone is taken, so that short
    episodes are not favoured."""
    task, lanes = tasks.resolve("LunarLander-v3", backend="envpool"), 400
    total, length, over = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes, bool)

    def tally(step):
        going = step.alive & ~over
        total[going] += step.reward[going]
        length[going] += 1
        over[:] |= step.terminated | step.truncated
        return over.all()

    stream(task, 1001, lanes, tally)
    assert over.all()
    played = rollout.play(None, tasks.resolve("LunarLander-v3"), seeds(lanes, "collect"), mode="uniform")
    for ours, theirs, margin in ((total, played.returns, 23.0), (length, played.lengths, 0.1 * played.lengths.mean())):
        difference = ours.mean() - theirs.mean()
        error = np.sqrt(ours.var(ddof=1) / lanes + theirs.var(ddof=1) / lanes)
        assert abs(difference) + 1.645 * error < margin
