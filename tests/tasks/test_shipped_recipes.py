"""The recipes that are shipped: each is read, its students and wrappers are known, its environment is resolved."""

import importlib.util
from pathlib import Path

import pytest

from limbeck import recipes, rollout, seeding, settings, tasks
from limbeck.contracts import View
from limbeck.spaces import check_view
from limbeck.stages import opening
from limbeck.students import grammar

FOLDER = Path(__file__).parents[2] / "recipes"
NEEDS = {
    "breakout": "minatar", "doorkey": "minigrid", "pong": "ale_py", "highway": "highway_env", "pursuit": "pettingzoo", "sardine": "sardine", "halfcheetah": "mujoco",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["cartpole", "pendulum", "halfcheetah", "breakout", "doorkey", "pong", "highway", "pursuit", "sardine"]
)
def test_a_family_has_a_recipe_that_holds_together(name):
    recipe = settings.recipe_from(recipes.read(FOLDER / f"{name}.yaml"))
    if importlib.util.find_spec(NEEDS.get(name, "gymnasium")) is None:
        pytest.skip(f'pip install "limbeck[test]": {NEEDS[name]} is missing')
    assert recipe.teacher == f"recipes/teachers/{name}.safetensors"
    assert 1 <= len(grammar.parse(recipe.students)) <= 6
    task = tasks.resolve(recipe.env, recipe.task.wrappers, **recipe.task.kwargs)
    check_view(task.spec.observation_space, View(keys=recipe.keys, indices=recipe.indices, history=recipe.history))
    assert task.spec.agents == (4 if name == "pursuit" else 1)


@pytest.mark.parametrize(("name", "trained", "chance"), [
    ("cartpole", (475, 500), (9, 60)), ("pendulum", (-400, 0), (-1800, -700)), ("halfcheetah", (3000, 12000), (-900, 100)), ("breakout", (8, 60), (0, 4)),
    ("doorkey", (0.9, 1), (0, 0.5)), ("sardine", (20, 60), (3, 22)), pytest.param("highway", (15, 31), (3, 17), marks=pytest.mark.slow),
    pytest.param("pursuit", (8, 80), (-20, 8), marks=pytest.mark.slow), pytest.param("pong", (-14, 21), (-21, -17), marks=pytest.mark.slow),
])  # fmt: skip
def test_the_recipes_teacher_and_chance_score_what_they_should(name, trained, chance):
    """One bound for each side: a wrong wrapper, a wrong entry or a wrong order of its numbers falls out of it.

    Pong: 4.9 over 32 episodes whose standard deviation is 12, so that three of them lie 2.7 of their mean's errors above -14.
    """
    recipe = settings.recipe_from(recipes.read(FOLDER / f"{name}.yaml"))
    if importlib.util.find_spec(NEEDS.get(name, "gymnasium")) is None or not (FOLDER.parent / recipe.teacher).exists():
        pytest.skip(f'pip install "limbeck[test]", and {recipe.teacher}')
    task = tasks.resolve(recipe.env, recipe.task.wrappers, **recipe.task.kwargs)
    teacher = opening.open_teacher(recipe, task, FOLDER.parent / recipe.teacher)
    played = [seeding.episode_seed(0, "verify", i) for i in range(3 if name in ("highway", "pong", "pursuit") else 8)]
    for policy, mode, (low, high) in ((teacher.policy, "greedy", trained), (None, "uniform", chance)):
        assert low <= rollout.play(policy, task, played, mode=mode).returns.mean() <= high
