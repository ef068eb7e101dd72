"""What a run refuses is not searched: asked before a folder is made, for every loss, driver and student."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_cases import SMALL, TEACHER, TINY, tiny

from limbeck import identity, runs, settings, storage, verbs
from limbeck.errors import InputError, StorageError
from limbeck.machine import steady
from limbeck.scale import passes, search, study
from limbeck.scale.passes import Candidate, Pass
from limbeck.scale.sampling import Book
from limbeck.scale.space import Method, Space, answers, corners, draw_method, space_of
from limbeck.settings import SearchSettings
from limbeck.stages import choosing, scene
from limbeck.stages.opening import open_both
from limbeck.stages.scene import Scene

SWINGER = TEACHER.parent / "pendulum.safetensors"
OWN_ROLLOUT = {"imitate": {"loss": "entropy_regularised"}, "collect": {"student_mode": "sampled"}}


def space(values: dict[str, Any], **changes: Any) -> Space:
    """The space of a recipe's changes and a search's settings, of few architectures unless said otherwise."""
    changes = {"widths": (4, 8), "depths": (1,), **changes}
    recipe = settings.recipe_from({"teacher": str(TEACHER), "env": "CartPole-v1", **values})
    return space_of(recipe, *open_both(recipe), SearchSettings(**changes))


def specs(found: Space) -> set[str]:
    return {spec for method in corners(found) for spec, _ in found.sizes(method).values()}


# ---------------------------------------------------------------- students


def test_students_that_cannot_inherit_are_not_in_the_space() -> None:
    """The teacher is 64x64 with tanh: at most two layers, of at most 64, with tanh; linear has no activation."""
    found = space({"imitate": {"inherit": "teacher"}}, widths=(8, 64, 128), depths=(1, 2, 3))
    dense = [(n,) for n in (8, 64)] + list(itertools.product((8, 64), repeat=2))
    assert specs(found) == {"linear", *(f"mlp:{'x'.join(map(str, sizes))}:tanh" for sizes in dense)}
    with pytest.raises(InputError, match="cannot be cut out of the teacher"):
        space({"imitate": {"inherit": "teacher"}}, students=("linear", "mlp:512x512:tanh"))


@pytest.mark.parametrize("student", ["tree:leaves=16", "oblique:depth=2", "rule:3", "ternary:3"])
def test_grown_students_are_refused(student: str) -> None:
    with pytest.raises(InputError, match=r"is grown from collected rows.*Allowed in a search: mlp"):
        space({}, students=("linear", student))


def test_priority_leaves_memories_out() -> None:
    with pytest.raises(InputError, match=r"'gru:\*' cannot be searched: imitate.priority"):
        space({"imitate": {"priority": 0.5}}, students=("mlp:*", "gru:*"))
    assert any(spec.startswith("gru") for spec in specs(space({}, students=("mlp:*", "gru:*"))))


def test_dropout_is_searched_with_those_that_have_hidden_layers() -> None:
    found = space({"imitate": {"dropout": 0.1}})
    assert found.students == ("mlp:*",)
    assert any(line.startswith("linear: imitate.dropout") for line in found.left_out)
    assert "linear" not in specs(found)


@pytest.mark.parametrize("name", ["assistant", "population"])
def test_what_makes_candidates_depend_on_their_company_is_refused_for_that_reason(name: str) -> None:
    with pytest.raises(InputError, match=f"imitate.{name} .* depend on its company"):
        space({"imitate": {name: 0.3 if name == "assistant" else True}})


# ---------------------------------------------------------------- methods


def test_a_loss_of_the_student_s_own_play_is_searched_with_the_student_driving() -> None:
    found = space(OWN_ROLLOUT)
    assert found.drivers["entropy_regularised"] == ("student",)
    assert found.drivers["kl"] == ("student", "beta")  # sampled play of students says nothing with the others
    assert any(line.startswith("entropy_regularised with beta driving") for line in found.left_out)
    with pytest.raises(InputError, match="driver trb cannot be searched"):
        space(OWN_ROLLOUT, drivers=("student", "trb"))
    with pytest.raises(
        InputError, match=r"'entropy_regularised' cannot be searched: .*Needed: collect\.driver=student"
    ):
        space(OWN_ROLLOUT, drivers=("beta",))


def test_a_plateau_is_not_searched_with_a_teacher_that_drives() -> None:
    found = space({"imitate": {"stop": "plateau"}})
    assert set(found.drivers.values()) == {("student", "beta", "trb")}
    assert "kl, kl_reverse, nll with teacher driving: imitate.stop=plateau" in found.left_out[0]


def test_settings_of_one_driver_are_searched_with_that_driver() -> None:
    found = space({"collect": {"driver": "beta", "beta_schedule": "exponential"}})
    assert set(found.drivers.values()) == {("beta",)}
    assert found.default()["driver.kl"] == "beta"


def test_a_sampler_is_only_offered_drivers_that_serve_the_loss(tmp_path: Path) -> None:
    found, book = space(OWN_ROLLOUT), Book(tmp_path, "journal", "TPESampler", 2, 0)
    drawn = [draw_method(found, book.ask({"loss": loss})) for loss in found.losses * 6]
    assert {method.loss for method in drawn} == set(found.losses)
    assert all(method.driver in found.drivers[method.loss] for method in drawn)
    assert {method.driver for method in drawn if method.loss == "kl"} == {"student", "beta"}
    for method in drawn[:4]:
        assert draw_method(found, book.ask(answers(found, method))) == method


def test_what_is_left_out_is_told_and_what_cannot_be_searched_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is grown"):
        verbs.search(tiny(tmp_path), out=tmp_path / "out", trials=2, students=["tree:leaves=4"])
    with pytest.raises(InputError, match="depend on its company"):
        verbs.search(tiny(tmp_path, imitate={"assistant": 0.3}), out=tmp_path / "out", trials=2)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- passes


def opened(folder: Path, **changes: dict[str, Any]) -> tuple[Scene, Space]:
    """A verified scene and its space of one round, without any refusal asked of the candidates."""
    recipe = settings.recipe_from({**TINY, **{key: {**TINY[key], **value} for key, value in changes.items()}})
    task, teacher = open_both(recipe)
    recipe = replace(recipe, teacher_sha256=identity.of_teacher(teacher))
    run = runs.open_run(folder / "teacher", recipe, lambda *_: None, identity.of_task(task))
    return scene.verify(run, task, teacher), space_of(
        recipe, task, teacher, SearchSettings(rungs=(1,), widths=(2,), depths=(1,))
    )


def method_of(found: Space, polish: bool = False) -> Method:
    return replace(next(corners(found)), polish=polish)


def test_a_row_of_another_length_is_never_inherited(tmp_path: Path) -> None:
    """mlp:512x512 out of 64x64: 64 neurons a layer are all there are to cut."""
    here, found = opened(tmp_path, imitate={"inherit": "teacher"})
    plan = Pass(0, method_of(found), (Candidate(0, "mlp:512x512:tanh", 0),))
    storage.write_json(passes.folder_of(tmp_path, 0) / passes.PLAN, plan)
    with steady(1), pytest.raises(InputError, match=r"4,610 numbers were cut out .* which has 266,242"):
        passes.train(here, found, plan, tmp_path)


def test_one_polished_member_is_scored_alone_and_billed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"task": {"kwargs": {"max_episode_steps": 500}}, "imitate": {"gradient_steps": 1}}
    here, found = opened(tmp_path, **whole, polish={"generations": 6, "pairs": 6}, prove={"retain": 1.0})
    asked: list[list[str]] = []
    real = choosing.scored

    def scored(one: Scene, family: Any, *rest: Any) -> Any:
        asked.append([member.name for member in family.members])
        return real(one, family, *rest)

    monkeypatch.setattr(choosing, "scored", scored)
    plan = Pass(0, method_of(found, polish=True), (Candidate(0, "mlp:2", 0), Candidate(1, "mlp:2", 0)))
    storage.write_json(passes.folder_of(tmp_path, 0) / passes.PLAN, plan)
    with steady(1):
        ended = passes.train(here, found, plan, tmp_path)
    print(ended)
    polished = [o for o in ended.outcomes if o.polished]
    assert polished
    assert asked[0] == ["mlp-2-s0", "mlp-2-s1"]
    assert [len(names) for names in asked[1:]] == [1] * len(polished)


def test_a_step_is_timed_for_each_number_of_outputs(tmp_path: Path) -> None:
    """gaussian_nll trains a spread beside each mean, executed_huber the mean alone."""
    values = {"teacher": str(SWINGER), "env": "Pendulum-v1"}
    found = space(values, losses=("executed_huber", "gaussian_nll"))
    methods = list(corners(found))
    says = {found.port(method).says for method in methods}
    assert says == {1, 2}
    for method in methods:
        study._seconds(found, tmp_path, "mlp:2", method)
    assert sorted(path.stem for path in (tmp_path / "latency").iterdir()) == ["mlp-2-h1-o1", "mlp-2-h1-o2"]


def test_too_few_steps_are_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    """A pass of two candidates takes 3 rounds of 128 steps, and 2 and 4 episodes of one step or more of each: 2 x 2 + 4."""
    told: list[str] = []
    with pytest.raises(InputError, match="env_steps = 391 is less than one pass takes, at least 392"):
        search.search(
            {**TINY},
            {"env_steps": 391, "trials": 4},
            SMALL,
            tmp_path / "out",
            (),
            lambda stage, text: told.append(text),
        )
    assert not (tmp_path / "out").exists()
    assert not any("playing" in text for text in told)


def test_another_recipe_is_refused_before_a_data_base_is_made(tmp_path: Path) -> None:
    """What a search that ended early left is another's: its teacher's recipe is looked at before the storage."""
    found = space({})
    say = lambda stage, text: None  # noqa: E731
    runs.open_run(tmp_path / "out" / study.TEACHER, found.recipe, say, identity.of_task(found.task))
    base = tmp_path / "new.db"
    other = replace(
        found, recipe=replace(found.recipe, seed=3), settings=replace(found.settings, storage=f"sqlite:///{base}")
    )
    with pytest.raises(StorageError, match="was made by another recipe: seed differs"):
        study.open_study(tmp_path / "out", other, say)
    assert not base.exists()
