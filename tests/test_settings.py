"""Recipes: strict, checked whole, resolved and re-runnable."""

from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from limbeck import recipes, settings
from limbeck.errors import InputError
from limbeck.stages import opening, refusals
from limbeck.students.grammar import parse

BASE = {"teacher": "t.zip", "env": "CartPole-v1"}


@pytest.mark.parametrize(("values", "words"), [
    ({"sed": 1}, "did you mean 'seed'"), ({"collect": {"slot": 1}}, "in collect 'slot'; did you mean 'slots'"),
    ({"seed": "x"}, "seed = 'x'"), ({"seed": -1}, "seed = -1, allowed 0"), ({"collect": {"slots": 0}}, "collect.slots = 0"),
    ({"env_steps": 10**30}, "env_steps"), ({"imitate": {"learning_rate": float("nan")}}, "imitate.learning_rate = nan"),
    ({"prove": {"retain": 99}}, "prove.retain = 99"), ({"students": []}, "students is empty"), ({"threads": 10**9}, "threads"),
    ({"imitate": {"sequence": 8, "burn_in": 8}}, "burn_in"), ({"collect": {"driver": "nobody"}}, "driver"), ({"collect": 3}, "collect"),
    *(({"compress": wrong}, "is not understood. Allowed: a list of steps, each prune SHARE") for wrong in (
        {"prune": 0.5}, 5, None, [["prune", 0.5]], [None], [{"prune": 0.5, "quantise": "int4"}], [{"prune": {"a": 1}}])),
])  # fmt: skip
def test_wrong_values_are_named(values, words):
    with pytest.raises(InputError) as caught:
        settings.recipe_from({**BASE, **values})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed_at_once():
    with pytest.raises(InputError) as caught:
        settings.recipe_from({**BASE, "seed": -1, "collect": {"slots": 0}, "prove": {"alpha": 2}})
    assert all(word in str(caught.value) for word in ("seed", "collect.slots", "prove.alpha"))


@pytest.mark.parametrize(("option", "words"), [
    ("nonsense", "KEY=VALUE"), ("a.b.c=1", "KEY=VALUE"), ("colect.slots=8", "did you mean 'collect'"), ("seed.x=1", "seed"), ("compress=[prune: .5", "is no list. Allowed: A,B or, as in a recipe, [A, B]"),
])  # fmt: skip
def test_wrong_options_are_named(option, words):
    with pytest.raises(InputError) as caught:
        settings.recipe_from(settings.with_options(BASE, [option]))
    assert words in str(caught.value)


def test_tables_and_lists_are_read_as_a_shell_gives_them():
    """A table as YAML or JSON; a dotted name into one is told how to write it; blanks around commas are nothing."""
    for text in ('{"max_episode_steps": 300, "mode": "hard"}', "{max_episode_steps: 300, mode: hard}"):
        recipe = settings.recipe_from(settings.with_options(BASE, [f"task.kwargs={text}"]))
        assert recipe.task.kwargs == {"max_episode_steps": 300, "mode": "hard"}
    for option in ("task.kwargs.max_episode_steps=300", "task.kwargs=300", "task.kwargs={", "task.kwargs={1: 2}"):
        with pytest.raises(InputError, match=r"is no table.*in quotes: 'task\.kwargs=\{max_episode_steps: 300\}'"):
            settings.with_options(BASE, [option])
    assert settings.with_options({}, ["report.track=tensorboard, mlflow"])["report"]["track"] == (
        "tensorboard",
        "mlflow",
    )


def test_options_reach_their_stage():
    recipe = settings.recipe_from(
        settings.with_options(BASE, ["collect.slots=8", "race.rounds=1,2", "students=linear,mlp:8", "seconds=none"])
    )
    assert recipe.collect.slots == 8
    assert recipe.race.rounds == (1, 2)
    assert recipe.students == ("linear", "mlp:8")
    assert recipe.seconds is None
    as_written = settings.with_options(BASE, ["compress=[prune: .5, quantise: int4]", "race.rounds=[1, 2]"])
    assert settings.recipe_from(as_written).compress == ("prune 0.5", "quantise int4")
    assert settings.recipe_from(as_written).race.rounds == (1, 2)


def test_a_recipe_written_and_read_is_the_same(tmp_path):
    recipe = settings.recipe_from({**BASE, "students": ["mlp:8@2"], "prove": {"retain": 0.9}, "keys": ["a", "b"]})
    recipes.write(tmp_path / "recipe.yaml", recipe)
    assert settings.recipe_from(recipes.read(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(("text", "words"), [
    ("teacher: !!python/object/apply:builtins.open [CANARY, w]", "not a plain YAML"), ("a: &x [1]\nb: *x", "aliases"),
    ("seed: 1\nseed: 2", "appears twice"), ("- 1", "holds list"), ("a: " + "[" * 50 + "]" * 50, "nested deeper"), ("a: [", "not a plain YAML"),
    ("1: 2", "a recipe is a table"), ("teacher: x\n\x00", "not a plain YAML"),
])  # fmt: skip
def test_only_plain_yaml_is_read(tmp_path, text, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        recipes.read(tmp_path / "r.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "CANARY").exists()


def test_text_in_another_encoding_and_huge_files_are_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"teacher: \xff\xfe")
    with pytest.raises(InputError, match="byte 9"):
        recipes.read(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"a" * (1 << 21))
    with pytest.raises(InputError, match="at most"):
        recipes.read(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="no recipe file"):
        recipes.read(tmp_path / "missing.yaml")


def numeric_fields():
    """Paths of every stage's fields that hold one number, and the recipe's own."""
    for owner, prefix in [
        (settings.Recipe, ""),
        *((type(f.default), f"{f.name}.") for f in fields(settings.Recipe) if is_dataclass(f.default)),
    ]:
        hints = get_type_hints(owner)
        for f in fields(owner):
            kind = hints[f.name]
            if {int, float} & {kind, *(get_args(kind) if get_origin(kind) is not tuple else ())}:
                yield f"{prefix}{f.name}"


def test_every_number_has_a_range():
    found = set(numeric_fields())
    assert found >= {"seed", "gamma", "grow.samples", "critic.ridge", "polish.horizon"}
    assert found - set(settings.ranges.RANGES) == {"verify.expect"}, (
        "a return may be any finite number, and is checked apart"
    )
    assert set(settings.ranges.RANGES) <= found


@pytest.mark.parametrize("path", sorted(set(settings.ranges.RANGES)))
def test_a_number_beyond_its_range_is_refused(path):
    *stage, name = path.split(".")
    for wrong in (settings.ranges.RANGES[path][0] - 1, settings.ranges.RANGES[path][1] + 1, float("nan")):
        given = {name: wrong}
        with pytest.raises(InputError, match=path.replace(".", r"\.")):
            settings.recipe_from({**BASE, **({stage[0]: given} if stage else given)})


def test_an_expression_in_a_field_stays_text():
    recipe = settings.recipe_from({**BASE, "normaliser": "open('CANARY', 'w')"})
    assert recipe.normaliser == "open('CANARY', 'w')"


@given(st.dictionaries(st.sampled_from(["seed", "threads", "history", "seconds", "env_steps", "students", "junk"]),
                       st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.lists(st.integers())), max_size=4))  # fmt: skip
@hypothesis_settings(max_examples=150, deadline=None)
def test_anything_is_a_recipe_or_one_clear_line(values):
    try:
        settings.recipe_from({**BASE, **values})
    except InputError as error:
        message = str(error)
        assert "\n" not in message


def test_task_arguments_that_no_file_can_hold_are_refused():
    settings.recipe_from({**BASE, "task": {"kwargs": {"a": 1, "b": [True, None, {"c": "x"}], "d": (0.5, 2)}}})
    with pytest.raises(InputError, match=r"task\.kwargs\.b\.c is object"):
        settings.recipe_from({**BASE, "task": {"kwargs": {"a": 1, "b": {"c": object()}}}})


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_recipes_that_ship_are_sound(path):
    """Everything that a run would refuse before it begins: keys, task, teacher, views, students, losses, targets."""
    recipe = settings.recipe_from(recipes.read(path))
    if find_spec("envpool") is None:  # tests/tasks/test_pooled.py has the backend, where it is installed
        recipe = replace(recipe, task=replace(recipe.task, backend="gymnasium"))
    task, teacher = opening.open_both(recipe)
    refusals.refuse(recipe, task, teacher)
    assert parse(recipe.students)
