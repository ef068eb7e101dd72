"""Environments of other libraries: found by their ids, played the same twice, quiet, and missed by name."""

import importlib
import json
import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest
from task_cases import seeds

from limbeck import rollout, tasks
from limbeck.errors import InputError
from limbeck.tasks.plugins import PLUGINS

FAMILIES = [  # module, extra, id, wrappers, arguments, bounds of the mean return of random play
    ("gymnasium", "", "CartPole-v1", [], {}, (8, 60)),
    ("Box2D", "envs", "LunarLander-v3", [], {}, (-500, 50)),
    ("mujoco", "envs", "HalfCheetah-v5", [], {"max_episode_steps": 100}, (-80, 20)),
    ("mujoco", "envs", "HalfCheetah-v4", [], {"max_episode_steps": 100}, (-80, 20)),
    ("ale_py", "atari", "ALE/Pong-v5", [], {"max_num_frames_per_episode": 160}, (-3, 3)),
    ("ale_py", "atari", "PongNoFrameskip-v4", [], {"max_num_frames_per_episode": 60}, (-3, 3)),
    ("cv2", "atari", "ALE/Pong-v5", ["atari"], {"max_num_frames_per_episode": 160}, (-3, 3)),
    ("minatar", "minatar", "MinAtar/Breakout-v1", [], {"max_episode_steps": 500}, (0, 5)),
    ("minigrid", "minigrid", "MiniGrid-DoorKey-5x5-v0", [], {}, (0, 1)),
    ("minigrid", "minigrid", "MiniGrid-MemoryS7-v0", ["full_grid"], {}, (0, 1)),
    ("highway_env", "highway", "highway-fast-v0", [], {"config": {"duration": 8, "vehicles_count": 8}}, (1, 9)),
    ("sardine", "recommender", "sardine/SlateRerank-Static-v0", ["ideal_state"], {}, (0, 60)),
    ("sardine", "recommender", "sardine/SlateTopK-Bored-v0", [], {}, (0, 200)),
    ("pettingzoo", "multiagent", "pettingzoo/sisl.pursuit_v5", [], {"n_pursuers": 2, "n_evaders": 4, "x_size": 8, "y_size": 8, "max_cycles": 30}, (-10, 30)),
    ("mpe2", "multiagent", "mpe2/simple_spread_v3", [], {}, (-60, 0)),
]  # fmt: skip


def needed(module, extra):
    return pytest.importorskip(module, reason=f'pip install "limbeck[{extra}]"')


@pytest.mark.parametrize(
    ("module", "extra", "env", "wrappers", "arguments", "bounds"), FAMILIES, ids=lambda v: str(v)[:28]
)
def test_each_family_plays_the_same_episodes_twice(module, extra, env, wrappers, arguments, bounds):
    needed(module, extra)
    task = tasks.resolve(env, wrappers, **arguments)
    one, again, alone = (rollout.play(None, task, seeds(n), mode="uniform") for n in (2, 2, 1))
    assert np.array_equal(one.returns, again.returns)
    assert alone.returns[0] == one.returns[0]  # and whoever plays beside it
    assert one.lengths.min() > 1
    assert bounds[0] <= one.returns.mean() <= bounds[1]


@pytest.mark.slow
def test_no_family_says_anything_while_it_is_found_built_and_played():
    """One process of its own, with every warning on: libraries warn once per process, and C code prints past Python."""
    known = [f for f in FAMILIES if importlib.util.find_spec(f[0]) is not None]
    code = """
        import json, sys
        from limbeck import rollout, tasks
        for env, wrappers, arguments in json.loads(sys.argv[1]):
            rollout.play(None, tasks.resolve(env, wrappers, **arguments), [3], mode="uniform")
        tasks.resolve("CartPole-v1", ["pixels"])
    """
    argument = json.dumps([family[2:5] for family in known])
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code), argument],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "mark",
    ["ALE/Pong-v5", "MinAtar/Breakout-v1", "MiniGrid-Empty-5x5-v0", "highway-fast-v0", "sardine/SlateRerank-Static-v0"],
)
def test_a_missing_library_names_the_line_that_installs_it(monkeypatch, mark):
    package, library, extra = next(row for start, row in PLUGINS.items() if mark.startswith(start))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        tasks.resolve(mark)
    assert str(caught.value).endswith(f'needs {library}, which is not installed. Run: pip install "limbeck[{extra}]"')


def test_every_extra_that_is_named_exists():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {extra for _, _, extra in PLUGINS.values()} | {"envpool", "multiagent", "envs"} <= set(extras)
    everything = " ".join(extras["all"])
    assert "atari" not in everything
    assert "minatar" not in everything  # GPL: whoever wants them names them


def test_a_module_offers_factories_and_ids(tmp_path, monkeypatch):
    (tmp_path / "my_factories.py").write_text(
        textwrap.dedent("""
        import gymnasium as gym
        def short(length=9):
            return gym.make("CartPole-v1", max_episode_steps=length)
        class Own(gym.Wrapper):
            def __init__(self):
                super().__init__(short(3))
        gym.register("MineToo-v0", entry_point=Own)
    """)
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for text, arguments, longest in [
        ("short", {}, 9),
        ("short", {"length": 4}, 4),
        ("Own", {}, 3),
        ("MineToo-v0", {}, 3),
    ]:
        task = tasks.resolve(f"my_factories:{text}", **arguments)
        assert rollout.play(None, task, seeds(4), mode="uniform").lengths.max() == longest
    with pytest.raises(InputError, match="unknown environment 'my_factories:shrt'"):
        tasks.resolve("my_factories:shrt")


def test_a_vector_of_ale_py_is_played_by_seed():
    needed("ale_py", "atari")
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv("pong", 3, num_threads=1, max_num_frames_per_episode=140)
    task = tasks.resolve(env)
    assert task.spec.observation_space.shape == (4, 84, 84)
    one, again = (rollout.play(None, task, seeds(3), mode="uniform") for _ in range(2))
    assert np.array_equal(one.lengths, again.lengths)
    seen = []
    for order in (seeds(3), seeds(3)[::-1]):
        frames = []
        rollout.play(None, task, order, mode="uniform", watch=frames.append)
        seen.append(frames[30].obs)
    assert not np.array_equal(seen[0][0], seen[0][2])  # each lane by its own seed
    assert np.array_equal(seen[0][0], seen[1][2])
    env.close()


@pytest.mark.slow
def test_asynchronous_vectors_play_what_single_environments_play():
    env = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="async")
    wanted = rollout.play(None, tasks.resolve("CartPole-v1"), seeds(6), mode="uniform").returns
    assert np.array_equal(rollout.play(None, tasks.resolve(env), seeds(6), mode="uniform").returns, wanted)
    env.close()
